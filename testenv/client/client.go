// Package client sends what XAPI's real clients send, call by call and byte by
// byte: Python's xmlrpc.client, the npm xen-api module, xe, or anything at all.
package client

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"strconv"
	"strings"
	"syscall"
)

// Shape is a kind of client.
type Shape uint8

// Shapes.
const (
	Python Shape = iota // XML-RPC at /, header and body in one call each (python3 xmlrpc.client)
	Node                // JSON-RPC 2.0 at /jsonrpc, header and body in one call (npm xen-api)
	JSON1               // JSON-RPC 1.0 at /jsonrpc, as xapi itself calls other hosts
)

// Options of a client. The zero value is Python, one connection for each call,
// without a trace context.
type Options struct {
	Shape       Shape
	KeepAlive   bool     // one connection for all calls
	Traceparent string   // header value; "" sends none
	Tracestate  string   // the same
	Baggage     string   // the same
	Framed      bool     // start with FRAME and the header's length, as member hosts do
	Header      []string // further header lines, without CR LF, before those that end the header
	UserAgent   string   // "": as the shape's client has it
}

// Failure is XAPI's answer to a call that failed: Code and its parameters.
type Failure struct {
	Code   string
	Params []string
}

// Error gives the code and the parameters.
func (f *Failure) Error() string {
	return strings.Join(append([]string{f.Code}, f.Params...), " ")
}

// Client calls one xapi. It is for one goroutine at a time.
type Client struct {
	dial func(ctx context.Context) (net.Conn, error)
	o    Options
	id   int

	conn net.Conn
	r    *bufio.Reader
	buf  bytes.Buffer
}

// Unix returns a client of the socket at path.
func Unix(path string, o Options) *Client {
	return &Client{o: o, dial: func(ctx context.Context) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", path)
	}}
}

// TCP returns a client of addr (host:port).
func TCP(addr string, o Options) *Client {
	return &Client{o: o, dial: func(ctx context.Context) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "tcp", addr)
	}}
}

// TLS returns a client of the stunnel at addr, whose certificate is not checked.
func TLS(addr string, o Options) *Client {
	return &Client{o: o, dial: func(ctx context.Context) (net.Conn, error) {
		d := tls.Dialer{Config: &tls.Config{InsecureSkipVerify: true}} // self-signed, on this machine
		return d.DialContext(ctx, "tcp", addr)
	}}
}

// Dial returns a client of what dial connects to.
func Dial(dial func(ctx context.Context) (net.Conn, error), o Options) *Client {
	return &Client{dial: dial, o: o}
}

// With returns a client of the same xapi with other options.
func (c *Client) With(o Options) *Client { return &Client{dial: c.dial, o: o} }

// Trace changes the traceparent of the calls from now on; "" sends none.
func (c *Client) Trace(traceparent string) { c.o.Traceparent = traceparent }

// Login opens a session and returns its reference.
func (c *Client) Login(ctx context.Context) (string, error) {
	v, err := c.Call(ctx, "session.login_with_password", "root", "", "1.0", "partner")
	if err != nil {
		return "", err
	}
	s, ok := v.(string)
	if !ok {
		return "", fmt.Errorf("login: session is %T", v)
	}
	return s, nil
}

// Call makes one call and returns its value: string, bool, float64, nil, []any
// or map[string]any. Parameters are strings, bools, ints, or of those kinds. A
// failure that XAPI answers is a *Failure.
func (c *Client) Call(ctx context.Context, method string, params ...any) (any, error) {
	c.id++
	var uri, contentType string
	var body []byte
	switch c.o.Shape {
	case Python:
		uri, contentType, body = "/", "text/xml", xmlCall(method, params)
	case Node:
		uri, contentType, body = "/jsonrpc", "application/json", json2Call(0, method, params)
	default:
		uri, contentType, body = "/jsonrpc", "application/json", json1Call(c.id, method, params)
	}
	reply, err := c.exchange(ctx, c.header(uri, contentType, len(body)), body)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", method, err)
	}
	if reply.status != 200 {
		return nil, fmt.Errorf("%s: HTTP status %d", method, reply.status)
	}
	if c.o.Shape == Python {
		return xmlReply(reply.body)
	}
	return jsonReply(reply.body)
}

// header is the request's header as the shape's client writes it.
func (c *Client) header(uri, contentType string, n int) []byte {
	b := &c.buf
	b.Reset()
	line := func(name, value string) {
		if value != "" {
			b.WriteString(name)
			b.WriteString(": ")
			b.WriteString(value)
			b.WriteString("\r\n")
		}
	}
	trace := func() {
		line("traceparent", c.o.Traceparent)
		line("tracestate", c.o.Tracestate)
		line("baggage", c.o.Baggage)
		for _, h := range c.o.Header {
			b.WriteString(h)
			b.WriteString("\r\n")
		}
	}
	agent := func(def string) string {
		if c.o.UserAgent != "" {
			return c.o.UserAgent
		}
		return def
	}
	b.WriteString("POST " + uri + " HTTP/1.1\r\n")
	switch c.o.Shape {
	case Python:
		line("Host", "localhost")
		trace()
		line("Accept-Encoding", "gzip")
		line("Content-Type", contentType)
		line("User-Agent", agent("Python-xmlrpc/3.11"))
		line("Content-Length", strconv.Itoa(n))
	case Node:
		line("accept", "application/json")
		line("content-type", contentType)
		line("user-agent", agent("node"))
		trace()
		line("host", "localhost")
		line("content-length", strconv.Itoa(n))
		line("connection", "keep-alive")
	default:
		line("content-length", strconv.Itoa(n))
		line("user-agent", agent("xen-api-libs/1.0"))
		line("connection", "keep-alive")
		trace()
	}
	b.WriteString("\r\n")
	if c.o.Framed {
		head := bytes.Clone(b.Bytes())
		b.Reset()
		fmt.Fprintf(b, "FRAME %012d", len(head))
		b.Write(head)
	}
	return b.Bytes()
}

type reply struct {
	status int
	body   []byte
}

// exchange sends one request and reads its answer. A connection that the server
// has closed since the last call is opened again.
func (c *Client) exchange(ctx context.Context, head, body []byte) (reply, error) {
	for {
		fresh := c.conn == nil
		if fresh {
			conn, err := c.dial(ctx)
			if err != nil {
				return reply{}, err
			}
			c.conn = conn
			if c.r == nil {
				c.r = bufio.NewReader(conn)
			} else {
				c.r.Reset(conn)
			}
		}
		deadline, _ := ctx.Deadline() // zero: none
		err := c.conn.SetDeadline(deadline)
		if err == nil {
			err = c.send(head, body)
		}
		var r reply
		if err == nil {
			r, err = readReply(c.r)
		}
		if err != nil {
			c.Close()
			if !fresh && (errors.Is(err, io.EOF) || errors.Is(err, net.ErrClosed) || errors.Is(err, syscall.EPIPE) || errors.Is(err, syscall.ECONNRESET)) {
				continue
			}
			return reply{}, err
		}
		if !c.o.KeepAlive {
			c.Close()
		}
		return r, nil
	}
}

func (c *Client) send(head, body []byte) error {
	if c.o.Shape == Python {
		if _, err := c.conn.Write(head); err != nil {
			return err
		}
		_, err := c.conn.Write(body)
		return err
	}
	_, err := c.conn.Write(append(head, body...))
	return err
}

// maxReply bounds what a client takes from a server.
const maxReply = 16 << 20

func readReply(r *bufio.Reader) (reply, error) {
	var out reply
	length := -1
	for first := true; ; first = false {
		line, err := r.ReadString('\n')
		if err != nil {
			return out, err
		}
		line = strings.TrimRight(line, "\r\n")
		if first {
			if strings.HasPrefix(line, "FRAME ") && len(line) > 18 {
				line = line[18:]
			}
			f := strings.Fields(line)
			if len(f) < 2 {
				return out, fmt.Errorf("status line %q", line)
			}
			if out.status, err = strconv.Atoi(f[1]); err != nil {
				return out, fmt.Errorf("status line %q", line)
			}
			continue
		}
		if line == "" {
			break
		}
		name, value, _ := strings.Cut(line, ":")
		if strings.EqualFold(name, "content-length") {
			if length, err = strconv.Atoi(strings.TrimSpace(value)); err != nil || length < 0 || length > maxReply {
				return out, fmt.Errorf("content-length %q", value)
			}
		}
	}
	if length < 0 {
		body, err := io.ReadAll(io.LimitReader(r, maxReply))
		out.body = body
		return out, err
	}
	out.body = make([]byte, length)
	_, err := io.ReadFull(r, out.body)
	return out, err
}

// Request sends any request and returns status and body of the answer. It opens
// its own connection.
func (c *Client) Request(ctx context.Context, method, uri string, body []byte) (int, []byte, error) {
	head := fmt.Sprintf("%s %s HTTP/1.1\r\nhost: localhost\r\ncontent-length: %d\r\n", method, uri, len(body))
	if c.o.Traceparent != "" {
		head += "traceparent: " + c.o.Traceparent + "\r\n"
	}
	if c.o.Tracestate != "" {
		head += "tracestate: " + c.o.Tracestate + "\r\n"
	}
	one := c.With(Options{Shape: Node})
	r, err := one.exchange(ctx, []byte(head+"connection: close\r\n\r\n"), body)
	if err != nil {
		return 0, nil, fmt.Errorf("%s %s: %w", method, uri, err)
	}
	return r.status, r.body, nil
}

// Raw writes the pieces, one call each, on a connection of its own, half-closes
// it, and returns what comes back until the server closes or ctx ends.
func (c *Client) Raw(ctx context.Context, pieces ...[]byte) ([]byte, error) {
	conn, err := c.dial(ctx)
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	if deadline, ok := ctx.Deadline(); ok {
		if err := conn.SetDeadline(deadline); err != nil {
			return nil, err
		}
	}
	var werr error
	for _, p := range pieces {
		if _, werr = conn.Write(p); werr != nil {
			break // the server may have had enough; its answer counts
		}
	}
	if half, ok := conn.(interface{ CloseWrite() error }); ok && werr == nil {
		werr = half.CloseWrite()
	}
	out, err := io.ReadAll(io.LimitReader(conn, maxReply))
	return out, errors.Join(werr, err)
}

// Close closes the kept connection, if there is one.
func (c *Client) Close() {
	if c.conn != nil {
		_ = c.conn.Close()
		c.conn = nil
	}
}
