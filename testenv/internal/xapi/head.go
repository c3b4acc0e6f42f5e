//go:build linux

package xapi

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"

	"github.com/xenserver/dtagent/testenv/internal/sys"
)

// headBuffer is the size of xapi's header buffer. TCP listeners allow less by
// what they have read before they know (http.ml).
const (
	headBuffer = 1024
	headTCP    = 1006
)

// maxBody is xapi's limit for RPC bodies (constants.ml, http_limit_max_rpc_size).
const maxBody = 300 * 1024

var (
	errTooLong = errors.New("header too long")
	errParse   = errors.New("not HTTP")
)

// request is one HTTP request.
type request struct {
	framed  bool
	method  string
	path    string
	query   string
	version string
	header  map[string]string // names in lower case; the last of a name wins
	others  [][2]string       // headers that xapi has no field for, the last first, as it keeps them
	baggage []string          // all of them
	length  int
	peer    string // client address of a PROXY line
}

// fields are the headers that xapi has a field for in its record of a request. It
// writes them in an order of its own when it sends the request on.
var fields = map[string]bool{
	"content-length": true, "cookie": true, "transfer-encoding": true, "accept": true, "authorization": true, "task-id": true,
	"subtask-of": true, "content-type": true, "host": true, "user-agent": true, "connection": true,
}

func (r *request) keepAlive() bool {
	c := strings.ToLower(r.header["connection"])
	if r.version == "1.0" {
		return c == "keep-alive"
	}
	return c != "close"
}

// headReader reads headers from one connection as http.ml does: 6 bytes, then 12
// or 18, then at most 4 at a time, and never beyond the end of the header.
type headReader struct {
	fd    int
	tcp   bool
	buf   [headBuffer]byte
	begun func() // called when the first bytes of a request are there, behind the PROXY line
	peer  string // of the PROXY line, kept for all requests
	port  string // of the same
}

// read reads the next header. io.EOF before its first byte ends the connection
// in order.
func (h *headReader) read() (*request, error) {
	n, err := sys.Read(h.fd, h.buf[:6])
	if err != nil {
		return nil, err
	}
	// A PROXY line comes with the connection; the request can be long in coming.
	proxy := strings.HasPrefix("PROXY ", string(h.buf[:n]))
	if !proxy {
		h.begun()
	}
	if err := sys.ReadFull(h.fd, h.buf[n:6]); err != nil {
		return nil, unexpected(err)
	}
	if proxy && string(h.buf[:6]) != "PROXY " {
		proxy = false
		h.begun()
	}
	if proxy {
		line, err := h.proxyLine()
		if err != nil {
			return nil, err
		}
		if f := strings.Fields(line); len(f) >= 4 && f[0] == "TCP6" {
			h.peer, h.port = f[1], f[3] // of TCP4 lines xapi takes nothing
		}
		n, err := sys.Read(h.fd, h.buf[:18])
		if err != nil {
			return nil, err
		}
		h.begun()
		if err := sys.ReadFull(h.fd, h.buf[n:18]); err != nil {
			return nil, unexpected(err)
		}
	} else if err := sys.ReadFull(h.fd, h.buf[6:18]); err != nil {
		return nil, unexpected(err)
	}
	b := h.buf[:18]
	framed := bytes.HasPrefix(b, []byte("FRAME "))
	if framed {
		size, err := strconv.Atoi(string(b[6:]))
		if err != nil || size < 0 {
			return nil, errParse
		}
		if size > headBuffer {
			return nil, errTooLong
		}
		if err := sys.ReadFull(h.fd, h.buf[:size]); err != nil {
			return nil, unexpected(err)
		}
		b = h.buf[:size]
	}
	limit := headBuffer
	if h.tcp {
		limit = headTCP
	}
	for m := matched(b, "\r\n\r\n"); !framed && m < 4; m = matched(b, "\r\n\r\n") {
		want := 4 - m
		if len(b)+want > limit {
			return nil, errTooLong
		}
		n, err := sys.Read(h.fd, h.buf[len(b):len(b)+want])
		if err != nil {
			return nil, unexpected(err)
		}
		b = h.buf[:len(b)+n]
	}
	r, err := parseHead(b)
	if err != nil {
		return nil, err
	}
	r.framed, r.peer = framed, h.peer
	return r, nil
}

// proxyLine reads what is behind "PROXY ", 2 bytes at a time.
func (h *headReader) proxyLine() (string, error) {
	var line []byte
	for m := 0; m < 2; m = matched(line, "\r\n") {
		if len(line) > 128 {
			return "", errTooLong
		}
		n, err := sys.Read(h.fd, h.buf[:2-m])
		if err != nil {
			return "", unexpected(err)
		}
		line = append(line, h.buf[:n]...)
	}
	return string(line[:len(line)-2]), nil
}

// matched is how much of end's beginning b ends with.
func matched(b []byte, end string) int {
	for n := min(len(end), len(b)); n > 0; n-- {
		if bytes.HasSuffix(b, []byte(end[:n])) {
			return n
		}
	}
	return 0
}

func unexpected(err error) error {
	if err == io.EOF {
		return io.ErrUnexpectedEOF
	}
	return err
}

func parseHead(b []byte) (*request, error) {
	lines := strings.Split(strings.TrimSuffix(string(b), "\r\n\r\n"), "\r\n")
	f := strings.Split(lines[0], " ")
	if len(f) != 3 || !strings.HasPrefix(f[2], "HTTP/") {
		return nil, errParse
	}
	r := &request{method: f[0], version: strings.TrimPrefix(f[2], "HTTP/"), header: map[string]string{}, length: -1}
	r.path, r.query, _ = strings.Cut(f[1], "?")
	for _, l := range lines[1:] {
		name, value, ok := strings.Cut(l, ":")
		if !ok {
			continue // xapi ignores what is no header
		}
		name, value = strings.ToLower(strings.TrimSpace(name)), strings.TrimSpace(value)
		r.header[name] = value
		if !fields[name] {
			r.others = append([][2]string{{name, value}}, r.others...)
		}
		switch name {
		case "baggage":
			r.baggage = append(r.baggage, value)
		case "content-length":
			n, err := strconv.Atoi(value)
			if err != nil || n < 0 {
				return nil, fmt.Errorf("%w: content-length %q", errParse, value)
			}
			r.length = n
		}
	}
	return r, nil
}

// badDepth tells whether the baggage has a span.depth that makes xapi fail: one that
// is no number, beside a usable traceparent.
func (r *request) badDepth() bool {
	for _, b := range r.baggage {
		for _, kv := range strings.Split(b, ";") {
			k, v, ok := strings.Cut(kv, "=")
			if ok && strings.TrimSpace(k) == "span.depth" {
				if _, err := strconv.Atoi(strings.TrimSpace(v)); err != nil {
					return true
				}
			}
		}
	}
	return false
}
