//go:build linux

package xapi

import (
	"bytes"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/xenserver/dtagent/testenv/config"
	"github.com/xenserver/dtagent/testenv/internal/node"
	"github.com/xenserver/dtagent/testenv/internal/sys"
	"github.com/xenserver/dtagent/testenv/truth"
)

// How xapi keeps its stunnels (stunnel_cache.ml) and how often it tries to get
// one (xmlrpc_client.ml, with_reusable_stunnel).
const (
	maxTunnels = 70
	attempts   = 10
	retryDelay = 10 * time.Second
)

var (
	errClosed   = errors.New("connection closed by server")
	errNoTunnel = errors.New("Stunnel_connection_failed")
)

// tunnel is a stunnel client, a child of this process: what is written in plain to
// one end of a socket pair goes to another host over TLS.
type tunnel struct {
	p     *node.Proc
	fd    int
	child *node.Lasting
	host  string
	log   string // path of what stunnel says
	from  string // its end of the TCP connection, once that is known
	sent  int    // requests so far
}

// tunnelKey is what joins the two ends of the n-th request on a connection in the
// truth: the client's address on the wire tells which connection.
func tunnelKey(addr, port string, n int) string {
	return "tunnel:" + strings.TrimPrefix(addr, "::ffff:") + " " + port + " " + strconv.Itoa(n)
}

// tunnels are those that nobody uses at present.
type tunnels struct {
	mu   sync.Mutex
	idle []*tunnel // the oldest first
	next int
}

func (c *tunnels) take(host string) *tunnel {
	c.mu.Lock()
	defer c.mu.Unlock()
	for i, tn := range c.idle {
		if tn.host == host {
			c.idle = append(c.idle[:i:i], c.idle[i+1:]...)
			return tn
		}
	}
	return nil
}

// put keeps tn, and returns one that there is no more room for.
func (c *tunnels) put(tn *tunnel) *tunnel {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.idle = append(c.idle, tn)
	if len(c.idle) <= maxTunnels {
		return nil
	}
	old := c.idle[0]
	c.idle = c.idle[1:]
	return old
}

func (c *tunnels) number() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.next++
	return c.next
}

// withTunnel calls f with a connection to a host: one from the cache or a new one,
// which has answered in any case.
func (c *tunnels) withTunnel(t *node.Thread, host string, f func(tn *tunnel) error) error {
	for tn := c.take(host); tn != nil; tn = c.take(host) {
		if tn.alive(t) {
			return c.use(t, tn, f)
		}
		t.Log(node.Debug, "stunnel", "get_reusable_stunnel: Found non-reusable stunnel in the cache. disconnecting from %s:%d", host, config.HTTPSPort)
		tn.disconnect()
	}
	t.Log(node.Debug, "stunnel", "get_reusable_stunnel: stunnel cache is empty; creating a fresh connection to %s:%d", host, config.HTTPSPort)
	for n := 1; n <= attempts; n++ {
		tn, err := openTunnel(t, host, c.number(), poolConfig)
		if err == nil {
			if tn.alive(t) {
				return c.use(t, tn, f)
			}
			tn.disconnect()
		}
		t.Log(node.Error, "stunnel", "get_reusable_stunnel: fresh stunnel failed reusable check; delaying %.2f seconds before reconnecting to %s:%d (attempt %d / %d)",
			retryDelay.Seconds(), host, config.HTTPSPort, n, attempts)
		sys.Sleep(retryDelay)
	}
	return errNoTunnel
}

func (c *tunnels) use(t *node.Thread, tn *tunnel, f func(tn *tunnel) error) error {
	t.Log(node.Debug, "xmlrpc_client", "stunnel pid: %d (cached) connected to %s:%d", tn.child.PID, tn.host, config.HTTPSPort)
	err := f(tn)
	if err != nil {
		t.Log(node.Warn, "xmlrpc_client", "stunnel pid: %d caught %v", tn.child.PID, err)
	}
	if old := c.put(tn); old != nil { // as xapi: a broken one too, the next user finds out
		old.disconnect()
	}
	return err
}

// poolConfig has stunnel check that the host has the certificate that it has in the
// pool; without it nothing is checked.
const poolConfig = "\n# use SNI to request a specific cert. CAfile contains\n# public certs of all hosts in the pool and must contain\n# the cert of the server we connect to\n" +
	"sni = pool\nCAfile=" + config.PoolCertificates + "\n\nverifyPeer=yes\n"

// openTunnel starts a stunnel whose standard streams are one end of a socket pair, and
// tells it where to connect and what to check.
func openTunnel(t *node.Thread, host string, number int, check string) (*tunnel, error) {
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("socketpair: %w", err)
	}
	defer unix.Close(pair[0])
	var conf [2]int
	if err := unix.Pipe2(conf[:], unix.O_CLOEXEC); err != nil {
		unix.Close(pair[1])
		return nil, fmt.Errorf("pipe: %w", err)
	}
	defer unix.Close(conf[1])
	checks := "None"
	if check != "" {
		checks = "SNI=pool path=" + config.PoolCertificates
	}
	t.Log(node.Debug, "stunnel", "client cert verification %s:%d: %s", host, config.HTTPSPort, checks)
	log := filepath.Join(t.P.Setup.Root, fmt.Sprintf("stunnel-%d.log", number))
	logFD, err := unix.Open(log, unix.O_WRONLY|unix.O_CREAT|unix.O_TRUNC|unix.O_CLOEXEC, 0o600)
	if err != nil {
		unix.Close(conf[0])
		unix.Close(pair[1])
		return nil, fmt.Errorf("%s: %w", log, err)
	}
	id := uuid()
	child, err := t.Spawn(node.Child{Path: "/usr/bin/stunnel", Args: []string{"-fd", id}, Component: "xapi"}, [3]int{pair[0], pair[0], logFD}, id, conf[0])
	unix.Close(conf[0])
	unix.Close(logFD)
	if err != nil {
		unix.Close(pair[1])
		return nil, err
	}
	tn := &tunnel{p: t.P, fd: pair[1], child: child, host: host, log: log}
	text := fmt.Sprintf("client=yes\nforeground=yes\nsocket = r:TCP_NODELAY=1\nsocket = r:SO_KEEPALIVE=1\nsocket = a:SO_KEEPALIVE=1\n\nfips=no\ndebug=authpriv.5\nconnect=%s:%d\n"+
		"sslVersion = TLSv1.2\nciphers = ECDHE-RSA-AES256-GCM-SHA384:ECDHE-RSA-AES128-GCM-SHA256\ncurve = secp384r1\n",
		host, config.HTTPSPort) + check
	if err := sys.Write(conf[1], []byte(text)); err != nil {
		tn.disconnect()
		return nil, fmt.Errorf("stunnel: %w", err)
	}
	t.Log(node.Debug, "stunnel", "Started a client (pid:%d): -> %s:%d", child.PID, host, config.HTTPSPort)
	return tn, nil
}

// disconnect ends the child.
func (tn *tunnel) disconnect() {
	unix.Close(tn.fd)
	tn.child.Wait()
}

// alive tells whether the other end answers, by a call that no other has the answer
// to.
func (tn *tunnel) alive(t *node.Thread) bool {
	id := uuid()
	method := "system.isAlive:" + id
	body := "<methodCall><methodName>" + method + "</methodName><params><param><value>" + id + "</value></param></params></methodCall>"
	got, err := tn.call(t, method, ownHeader("POST / HTTP/1.1", len(body), "", ""), body, 1024, func([]byte) *failure { return nil })
	return err == nil && bytes.Contains(got, []byte(id))
}

// userAgent is xapi's as a client: its library's name and its own version.
const userAgent = "xen-api-libs/26.17.0"

// ownHeader is the header of a call of xapi's own, in the order in which http.ml
// writes it; subtask and more are whole lines, or nothing.
func ownHeader(line string, length int, subtask, more string) string {
	return line + "\r\ncontent-length: " + strconv.Itoa(length) + "\r\n" + subtask + "user-agent: " + userAgent + "\r\nconnection: keep-alive\r\n" + more + "\r\n"
}

// call makes one request, header and body in one write, and reads the answer: its
// header byte by byte, its body in pieces of at most piece. fault is the error
// in a body.
func (tn *tunnel) call(t *node.Thread, name, header, body string, piece int, fault func(body []byte) *failure) ([]byte, error) {
	s := t.Begin(truth.Client, name)
	defer s.End()
	tn.sent++
	s.Detail = tn.host
	got, err := tn.exchange(header+body, piece)
	s.Entry.End = truth.Now()
	if key, ok := tn.key(); ok {
		s.Keys = append(s.Keys, key)
	}
	if err != nil {
		s.Err = err.Error()
		return nil, err
	}
	if f := fault(got); f != nil {
		s.Err = f.code
	}
	return got, nil
}

func (tn *tunnel) exchange(request string, piece int) ([]byte, error) {
	if err := sys.Write(tn.fd, []byte(request)); err != nil {
		return nil, err
	}
	length, status := -1, ""
	for first := true; ; first = false {
		line, err := readLine(tn.fd)
		if err != nil {
			return nil, err
		}
		if line = strings.TrimSuffix(line, "\r"); line == "" && !first {
			break
		}
		if first {
			f := strings.Fields(line)
			if len(f) > 0 && f[0] == "FRAME" {
				f = f[1:]
			}
			if len(f) < 2 {
				return nil, errClosed
			}
			status = f[1]
			continue
		}
		if k, v, _ := strings.Cut(line, ":"); strings.EqualFold(k, "content-length") {
			n, err := strconv.Atoi(strings.TrimSpace(v))
			if err != nil || n < 0 || n > maxReply {
				return nil, fmt.Errorf("content-length %q", v)
			}
			length = n
		}
	}
	if status != "200" {
		return nil, fmt.Errorf("HTTP %s", status)
	}
	if length < 0 {
		return nil, errors.New("no content-length")
	}
	body := make([]byte, length)
	for at := 0; at < length; {
		n, err := sys.Read(tn.fd, body[at:min(at+piece, length)])
		if err != nil {
			return nil, unexpected(err)
		}
		at += n
	}
	return body, nil
}

// maxReply bounds what a host takes from another.
const maxReply = 16 << 20

// readLine reads to the end of a line, one byte a call, as Http_client does.
func readLine(fd int) (string, error) {
	var line []byte
	b := make([]byte, 1)
	for {
		n, err := sys.Read(fd, b)
		if err != nil {
			return "", unexpected(err)
		}
		if n == 1 && b[0] == '\n' {
			return string(line), nil
		}
		if len(line) > 8192 {
			return "", errTooLong
		}
		line = append(line, b[0])
	}
}

// key is this end's name of the last request in the truth. Stunnel's log tells its
// address; it is read by a thread that nobody watches.
func (tn *tunnel) key() (string, bool) {
	if tn.p.Truth == nil {
		return "", false
	}
	if tn.from == "" {
		found := make(chan string)
		go func() {
			b, _ := os.ReadFile(tn.log) // without it there is no address
			_, at, _ := strings.Cut(string(b), "connected remote server from ")
			at, _, _ = strings.Cut(at, "\n")
			found <- at
		}()
		tn.from = <-found
	}
	a, err := netip.ParseAddrPort(tn.from)
	if err != nil {
		return "", false
	}
	return tunnelKey(a.Addr().String(), strconv.Itoa(int(a.Port())), tn.sent), true
}
