//go:build linux

package xapi

import (
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/xenserver/dtagent/testenv/config"
	"github.com/xenserver/dtagent/testenv/internal/node"
	"github.com/xenserver/dtagent/testenv/internal/sys"
	"github.com/xenserver/dtagent/testenv/truth"
)

// listener is one accepting socket with its thread.
type listener struct {
	name string // of its connections' threads in log lines
	fd   int
	tcp  bool
}

// accept is the life of an accept thread: epoll_wait, accept4, a new thread.
func (x *xapi) accept(l listener) func(t *node.Thread) {
	return func(t *node.Thread) {
		ep, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
		if err == nil {
			err = unix.EpollCtl(ep, unix.EPOLL_CTL_ADD, l.fd, &unix.EpollEvent{Events: unix.EPOLLIN, Fd: int32(l.fd)})
		}
		if err != nil {
			t.Log(node.Error, "server_io", "epoll: %v", err)
			return
		}
		events := make([]unix.EpollEvent, 1)
		for {
			if _, err := unix.EpollWait(ep, events, -1); err != nil {
				continue
			}
			fd, _, err := unix.Accept4(l.fd, unix.SOCK_CLOEXEC)
			if err != nil {
				t.Log(node.Debug, "server_io", "Caught Unix exception in accept: %v", err)
				continue
			}
			x.p.Go(l.name, func(t *node.Thread) { x.serve(t, l, fd) })
		}
	}
}

// conn is one connection in its thread.
type conn struct {
	x    *xapi
	t    *node.Thread
	l    listener
	fd   int
	head headReader
	in   node.Context // what the request brought
	n    int          // requests so far
}

func (x *xapi) serve(t *node.Thread, l listener, fd int) {
	c := &conn{x: x, t: t, l: l, fd: fd, head: headReader{fd: fd, tcp: l.tcp}}
	if l.tcp {
		tv := unix.NsecToTimeval(int64(10 * time.Second))
		_ = unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &tv) // as xapi: without it, no timeout
		t.Log(node.Debug, "http", "Accepted inet connection")
	} else {
		t.Log(node.Debug, "http", "Accepted unix connection")
	}
	for c.one() {
		if l.tcp { // the time limit is for the first request only
			_ = unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{})
		}
	}
	t.Log(node.Debug, "http", "Closing connection")
	if c.fd >= 0 { // else it was passed on
		unix.Close(fd)
	}
}

// one does one request and tells whether another may follow.
func (c *conn) one() bool {
	t := c.t
	t.Tag, t.Parent = "", ""
	var s *node.Span
	c.head.begun = func() {
		s = t.Begin(truth.API, "")
		c.n++
	}
	r, err := c.head.read()
	if s == nil {
		if err != nil && err != io.EOF {
			t.Log(node.Warn, "http", "%v", err)
		}
		if err == io.EOF {
			t.Log(node.Warn, "http", "End_of_file (File \"xen-api/ocaml/libs/http-lib/http_svr.ml\", line 490, characters 44-51)")
		}
		return false
	}
	defer s.End()
	if err != nil {
		s.Name, s.Err = "(bad request)", err.Error()
		switch {
		case errors.Is(err, errTooLong) && c.l.tcp:
			c.refuse(s, 431, "Request Header Fields Too Large")
		case errors.Is(err, errTooLong):
			c.refuse(s, 500, "Internal Error")
		case errors.Is(err, errParse):
			c.refuse(s, 400, "Bad Request")
		}
		return false
	}
	s.Name = r.method + " " + r.path
	s.Detail = c.transport() + " " + r.path
	t.Trace = ""
	if in, ok := node.Parse(r.header["traceparent"]); ok {
		s.Traceparent = r.header["traceparent"]
		if c.in = in; c.x.p.Native() != config.NativeOff {
			t.Trace = s.Traceparent
		}
		if r.badDepth() {
			c.refuse(s, 500, "Internal Error")
			return false
		}
	} else {
		c.in = node.Context{}
	}
	c.peerKey(s)
	t.Log(node.Debug, "http", "Request { frame = %v; method = %s; path = %s; query = [ %s ]; content_length = [ %s ]; transfer encoding = ; version = %s; cookie = [ (value filtered) ]; task = ; subtask_of = ; content-type = %s; host = %s; user_agent = %s; }",
		r.framed, r.method, r.path, filtered(r.query), lengthOf(r), r.version, r.header["content-type"], r.header["host"], r.header["user-agent"])
	c.name()
	return c.route(s, r)
}

func filtered(query string) string {
	if query == "" {
		return ""
	}
	return "(value filtered)"
}

func lengthOf(r *request) string {
	if r.length < 0 {
		return ""
	}
	return strconv.Itoa(r.length)
}

func (c *conn) transport() string {
	switch {
	case c.head.peer != "":
		return "tls"
	case c.l.tcp:
		return "tcp"
	}
	return "unix"
}

// peerKey names the calling process, if it is one of the simulation's.
func (c *conn) peerKey(s *node.Span) {
	if c.head.peer != "" {
		s.ParentKey = tunnelKey(c.head.peer, c.head.port, c.n)
	}
	if c.l.tcp || c.x.p.Truth == nil {
		return
	}
	if cred, err := unix.GetsockoptUcred(c.fd, unix.SOL_SOCKET, unix.SO_PEERCRED); err == nil {
		s.ParentKey = "pid:" + strconv.Itoa(int(cred.Pid))
	}
}

// name asks for the peer's name, as xapi does several times a request.
func (c *conn) name() { _, _ = unix.Getpeername(c.fd) }

// names asks for both ends' names, as xapi does when it makes a task's context.
func (c *conn) names() {
	_, _ = unix.Getpeername(c.fd)
	_, _ = unix.Getsockname(c.fd)
}

// handlers are URIs that have one, by prefix, beside RPC and /cli.
var handlers = []string{
	"GET /services", "GET /rrd_updates", "GET /vm_rrd", "GET /host_rrd", "GET /sr_rrd", "GET /rrd", "PUT /rrd", "GET /export", "PUT /import", "POST /import",
	"GET /blob", "PUT /blob", "GET /messages", "GET /vncsnapshot", "GET /host_backup", "PUT /host_restore", "GET /host_logs_download",
	"GET /pool/xmldbdump", "GET /sync_config_files", "GET /system-status", "PUT /pool_patch_upload", "GET /wlb_report", "GET /wlb_diagnostics",
	"GET /audit_log", "GET /update/", "GET /repository", "GET /host_updates", "GET /updates", "PUT /bundle", "CONNECT /console", "GET /console",
	"POST /remote_db_access", "GET /",
}

func (c *conn) route(s *node.Span, r *request) bool {
	switch {
	case r.method == "POST" && (r.path == "/" || r.path == "/RPC2" || r.path == "/json" || r.path == "/jsonrpc"):
		return c.rpc(s, r)
	case r.method == "POST" && r.path == "/cli":
		c.cli(s, r)
		return false
	case r.method == "POST" && r.path == databasePath && c.x.pool.coordinates():
		return c.database(s, r)
	}
	if path := c.passedTo(r); path != "" {
		c.passOn(s, r, path)
		return false
	}
	for _, h := range handlers {
		if h == "GET /" && r.path != "/" {
			continue
		}
		if strings.HasPrefix(r.method+" "+r.path, h) {
			return c.other(s, r)
		}
	}
	c.refuse(s, 403, "Forbidden")
	return false
}

// other is a URI with a handler of its own: what is sent is taken, something is
// sent back.
func (c *conn) other(s *node.Span, r *request) bool {
	t := c.t
	t.Tag = s.Name + " " + newRef("R")
	s.Tag = node.LastWord(t.Tag)
	t.NewSpan(c.in)
	buf := make([]byte, sys.Piece)
	for left := r.length; left > 0; {
		n, err := sys.Read(c.fd, buf[:min(left, len(buf))])
		if err != nil {
			s.Err = unexpected(err).Error()
			return false
		}
		left -= n
	}
	t.Delay(config.LayerAPI)
	body := ""
	if r.method == "GET" {
		body = "<xport><meta><rows>0</rows></meta><data></data></xport>"
	}
	if err := c.respond(r, 200, "OK", "text/xml", body); err != nil {
		s.Err = err.Error()
		return false
	}
	return r.keepAlive()
}

// refuse answers an error page and gives the connection up.
func (c *conn) refuse(s *node.Span, code int, text string) {
	s.Err = "HTTP " + strconv.Itoa(code)
	body := fmt.Sprintf("<html><body><h1>HTTP %d %s</h1></body></html>", code, strings.ToLower(text))
	head := fmt.Sprintf("HTTP/1.1 %d %s\r\nconnection: close\r\ncache-control: no-cache, no-store\r\ncontent-type: text/html\r\ncontent-length: %d\r\n\r\n", code, text, len(body))
	if sys.Write(c.fd, []byte(head)) == nil {
		_ = sys.Write(c.fd, []byte(body)) // nobody may be left to read it
	}
}

// respond is the answer: header in one write, body in another.
func (c *conn) respond(r *request, code int, text, contentType, body string) error {
	keep := "keep-alive"
	if !r.keepAlive() {
		keep = "close"
	}
	c.t.Log(node.Debug, "http", "Response { frame = %v; version = 1.1; code = %d; message = %s; content_length = Some %d; task = None; additional_headers = [ connection=%s; cache-control=no-cache, no-store; content-type=%s; Access-Control-Allow-Origin=*; Access-Control-Allow-Headers=X-Requested-With ] }",
		r.framed, code, text, len(body), keep, contentType)
	head := "HTTP/1.1 " + strconv.Itoa(code) + " " + text + "\r\ncontent-length: " + strconv.Itoa(len(body)) + "\r\nconnection: " + keep +
		"\r\ncache-control: no-cache, no-store\r\ncontent-type: " + contentType + "\r\nAccess-Control-Allow-Origin: *\r\nAccess-Control-Allow-Headers: X-Requested-With\r\n\r\n"
	if r.framed {
		head = fmt.Sprintf("FRAME %012d", len(head)) + head
	}
	if err := sys.Write(c.fd, []byte(head)); err != nil {
		return err
	}
	return sys.Write(c.fd, []byte(body))
}

// rpc is an XML-RPC or JSON-RPC request.
func (c *conn) rpc(s *node.Span, r *request) bool {
	if r.length < 0 {
		c.refuse(s, 400, "Bad Request")
		return false
	}
	if r.length > maxBody {
		c.refuse(s, 500, "Internal Error")
		return false
	}
	body := make([]byte, r.length)
	if err := sys.ReadFull(c.fd, body); err != nil {
		s.Err = unexpected(err).Error()
		return false
	}
	c.name()
	parse, contentType, tag := parseXML, "text/xml", "post_root"
	if r.path == "/jsonrpc" {
		parse, contentType, tag = parseJSON, "application/json", "post_jsonrpc"
	}
	cl, err := parse(body)
	if err != nil {
		c.refuse(s, 500, "Internal Error")
		return false
	}
	s.Name = cl.method
	if f := c.x.emergency(cl.method); f != nil {
		s.Err = f.code
		return c.respond(r, 200, "OK", contentType, cl.emergency(f)) == nil && r.keepAlive()
	}
	sys.Sleep(of(c.x.p.Knobs().Slow, cl.method))
	if c.x.forwards(c, cl.method) {
		return c.forward(s, r, cl, body, contentType)
	}
	v, f := c.dispatch(s, r, cl)
	if f != nil {
		s.Err = f.code
	}
	c.t.Tag = tag
	if c.in.TraceID != "" {
		c.t.NewSpan(c.in)
	}
	err = c.reply(s, r, cl.method, contentType, cl.reply(v, f))
	s.Entry.End = truth.Now()
	if err != nil {
		s.Err = err.Error()
		return false
	}
	return r.keepAlive()
}
