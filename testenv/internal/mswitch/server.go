//go:build linux

// Package mswitch is the message switch: its server, and its clients as xapi
// and xenopsd have them (message-switch/unix/protocol_unix.ml).
package mswitch

import (
	"bytes"
	"encoding/json"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/xenserver/dtagent/testenv/internal/sys"
)

// Socket is where the switch listens.
const Socket = "/var/run/message-switch/sock"

// maxBody bounds a request's body.
const maxBody = 64 << 20

// Server is the switch: one thread, one epoll, everything in memory.
type Server struct {
	epoll  int
	listen int
	conns  map[int]*conn
	queues map[string]*queue
	buf    [4096]byte
	// HandOver is called before a message goes to a waiting connection.
	HandOver func()
}

type conn struct {
	fd    int
	in    []byte
	token string
	wait  *transfer // a /transfer not answered yet
}

type transfer struct {
	from   map[string]int64 // by queue; one number on the wire
	queues []string
	until  time.Time
}

type queue struct {
	owner    string // of a transient one: it ends with that client's last connection
	next     int64
	messages []message // not acknowledged
}

type message struct {
	id      int64
	payload string
	kind    string // JSON
}

// NewServer listens on Socket.
func NewServer() (*Server, error) {
	s := &Server{conns: map[int]*conn{}, queues: map[string]*queue{}, HandOver: func() {}}
	var err error
	if s.epoll, err = unix.EpollCreate1(unix.EPOLL_CLOEXEC); err != nil {
		return nil, fmt.Errorf("epoll: %w", err)
	}
	if s.listen, err = sys.ListenUnix(Socket); err != nil {
		return nil, err
	}
	return s, s.add(s.listen)
}

func (s *Server) add(fd int) error {
	return unix.EpollCtl(s.epoll, unix.EPOLL_CTL_ADD, fd, &unix.EpollEvent{Events: unix.EPOLLIN, Fd: int32(fd)})
}

// Run serves until epoll fails.
func (s *Server) Run() error {
	events := make([]unix.EpollEvent, 64)
	for {
		n, err := unix.EpollWait(s.epoll, events, s.timeout())
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return fmt.Errorf("epoll: %w", err)
		}
		for _, e := range events[:n] {
			if int(e.Fd) == s.listen {
				s.accept()
			} else if c := s.conns[int(e.Fd)]; c != nil {
				s.read(c)
			}
		}
		s.expire()
	}
}

// timeout is the time in ms until the first transfer gives up.
func (s *Server) timeout() int {
	ms := -1
	now := time.Now()
	for _, c := range s.conns {
		if c.wait != nil {
			left := max(0, int(c.wait.until.Sub(now)/time.Millisecond)+1)
			if ms < 0 || left < ms {
				ms = left
			}
		}
	}
	return ms
}

func (s *Server) expire() {
	now := time.Now()
	for _, c := range s.conns {
		if c.wait != nil && now.After(c.wait.until) {
			s.deliver(c, true)
		}
	}
}

func (s *Server) accept() {
	fd, _, err := unix.Accept4(s.listen, unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK)
	if err != nil {
		return
	}
	if s.add(fd) != nil {
		unix.Close(fd)
		return
	}
	s.conns[fd] = &conn{fd: fd}
}

func (s *Server) drop(c *conn) {
	delete(s.conns, c.fd)
	unix.Close(c.fd)
	for _, o := range s.conns {
		if o.token == c.token {
			return
		}
	}
	for name, q := range s.queues {
		if q.owner != "" && q.owner == c.token {
			delete(s.queues, name)
		}
	}
}

// read takes what there is, until a request is whole or there is nothing.
func (s *Server) read(c *conn) {
	for {
		n, err := unix.Read(c.fd, s.buf[:])
		if err == unix.EAGAIN {
			return
		}
		if err != nil || n == 0 {
			s.drop(c)
			return
		}
		c.in = append(c.in, s.buf[:n]...)
		for {
			size, ok := s.request(c)
			if !ok {
				s.drop(c)
				return
			}
			if size == 0 {
				break
			}
			c.in = append(c.in[:0], c.in[size:]...)
		}
	}
}

// request answers the request that c.in begins with, if it is whole, and
// returns its size. False means that the client talks nonsense.
func (s *Server) request(c *conn) (int, bool) {
	head := bytes.Index(c.in, []byte("\r\n\r\n"))
	if head < 0 {
		return 0, len(c.in) < maxBody
	}
	lines := strings.Split(string(c.in[:head]), "\r\n")
	length := 0
	for _, l := range lines[1:] {
		name, value, _ := strings.Cut(l, ":")
		if strings.EqualFold(name, "content-length") {
			var err error
			if length, err = strconv.Atoi(strings.TrimSpace(value)); err != nil || length < 0 || length > maxBody {
				return 0, false
			}
		}
	}
	size := head + 4 + length
	if len(c.in) < size {
		return 0, true
	}
	f := strings.Fields(lines[0])
	if len(f) < 2 {
		return 0, false
	}
	s.handle(c, f[0], strings.Split(strings.TrimPrefix(f[1], "/"), "/"), string(c.in[head+4:size]))
	return size, true
}

func (s *Server) handle(c *conn, method string, path []string, body string) {
	switch {
	case method == "GET" && len(path) == 2 && path[0] == "login":
		c.token = path[1]
		s.reply(c, "")
	case method == "GET" && len(path) == 2 && (path[0] == "persistent" || path[0] == "transient"):
		if s.queues[path[1]] == nil {
			s.queues[path[1]] = &queue{}
			if path[0] == "transient" {
				s.queues[path[1]].owner = c.token
			}
		}
		s.reply(c, path[1])
	case method == "POST" && len(path) == 3 && path[0] == "request":
		kind := append([]byte(`["Request",`), Quote(nil, path[2])...)
		s.send(c, path[1], message{payload: body, kind: string(append(kind, ']'))})
	case method == "POST" && len(path) == 4 && path[0] == "response":
		kind := append([]byte(`["Response",[`), Quote(nil, path[2])...)
		s.send(c, path[1], message{payload: body, kind: string(kind) + "," + path[3] + "]]"})
	case method == "GET" && len(path) == 3 && path[0] == "ack":
		if q, id := s.queues[path[1]], number(path[2]); q != nil {
			for i, m := range q.messages {
				if m.id == id {
					q.messages = append(q.messages[:i], q.messages[i+1:]...)
					break
				}
			}
		}
		s.reply(c, "")
	case method == "POST" && path[0] == "transfer":
		var t struct {
			From    string   `json:"from"`
			Timeout float64  `json:"timeout"`
			Queues  []string `json:"queues"`
		}
		if json.Unmarshal([]byte(body), &t) != nil {
			s.write(c, "HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\n\r\n")
			return
		}
		c.wait = &transfer{from: map[string]int64{}, queues: t.Queues, until: time.Now().Add(time.Duration(t.Timeout * float64(time.Second)))}
		for _, q := range t.Queues {
			c.wait.from[q] = number(t.From)
		}
		s.deliver(c, false)
	default:
		s.write(c, "HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n")
	}
}

func number(s string) int64 {
	n, err := strconv.ParseInt(s, 10, 64)
	if err != nil {
		return -1
	}
	return n
}

// send answers the sender with the message's number, then hands the message to
// whoever waits.
func (s *Server) send(c *conn, name string, m message) {
	q := s.queues[name]
	if q == nil {
		s.reply(c, "[]")
		return
	}
	m.id = q.next
	q.next++
	q.messages = append(q.messages, m)
	s.reply(c, "[["+Quoted(name)+","+strconv.FormatInt(m.id, 10)+"]]")
	for _, w := range s.conns {
		if w.wait != nil {
			for _, n := range w.wait.queues {
				if n == name {
					s.HandOver()
					s.deliver(w, false)
					break
				}
			}
		}
	}
}

// deliver answers c's transfer if there are messages, or at all events if late.
func (s *Server) deliver(c *conn, late bool) {
	b := []byte(`{"messages":[`)
	next, n := int64(-1), 0
	for _, name := range c.wait.queues {
		q := s.queues[name]
		next = max(next, c.wait.from[name])
		if q == nil {
			continue
		}
		for _, m := range slices.Backward(q.messages) { // newest first, as recorded
			if m.id <= c.wait.from[name] {
				continue
			}
			if n > 0 {
				b = append(b, ',')
			}
			n++
			next = max(next, m.id)
			b = append(b, "[["...)
			b = Quote(b, name)
			b = append(b, ',')
			b = strconv.AppendInt(b, m.id, 10)
			b = append(b, `],{"payload":`...)
			b = Quote(b, m.payload)
			b = append(b, `,"kind":`...)
			b = append(b, m.kind...)
			b = append(b, "}]"...)
		}
	}
	if n == 0 && !late {
		return
	}
	b = append(b, `],"next":"`...)
	b = strconv.AppendInt(b, next, 10)
	b = append(b, `"}`...)
	c.wait = nil
	s.reply(c, string(b))
}

func (s *Server) reply(c *conn, body string) {
	s.write(c, "HTTP/1.1 200 OK\r\ncontent-length: "+strconv.Itoa(len(body))+"\r\n\r\n"+body)
}

// write is one write unless the client's buffer is full.
func (s *Server) write(c *conn, out string) {
	b := []byte(out)
	for len(b) > 0 {
		n, err := unix.Write(c.fd, b)
		if err == unix.EAGAIN {
			p := []unix.PollFd{{Fd: int32(c.fd), Events: unix.POLLOUT}}
			if _, err := unix.Poll(p, 1000); err == nil || err == unix.EINTR {
				continue
			}
		}
		if err != nil {
			return // the reader sees the end of it
		}
		b = b[n:]
	}
}
