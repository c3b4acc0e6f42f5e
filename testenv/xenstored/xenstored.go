// Package xenstored is a xenstored for tests: its socket, its wire protocol, a tree
// in memory, watches. It has no permissions, quotas or transactions.
package xenstored

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"strings"
	"sync"
)

// Kinds of messages: xen/include/public/io/xs_wire.h.
const (
	directory     = 1
	read          = 2
	watch         = 4
	unwatch       = 5
	getDomainPath = 10
	watchEvent    = 15
	failure       = 16
)

// Server is one that listens. Its methods may be called by several goroutines.
type Server struct {
	ln net.Listener

	mu    sync.Mutex
	nodes map[string]string
	conns map[*conn]bool
	asked int
	wg    sync.WaitGroup
}

// conn is one client.
type conn struct {
	net.Conn
	mu      sync.Mutex // held while a message is written
	watches [][2]string
}

// Start listens at path.
func Start(path string) (*Server, error) {
	ln, err := net.Listen("unix", path)
	if err != nil {
		return nil, err
	}
	s := &Server{ln: ln, nodes: map[string]string{"/": ""}, conns: map[*conn]bool{}}
	s.wg.Go(s.serve)
	return s, nil
}

// Close ends it and all connections.
func (s *Server) Close() error {
	err := s.ln.Close()
	s.Hangup()
	s.wg.Wait()
	return err
}

// Hangup ends all connections; clients may come again.
func (s *Server) Hangup() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for c := range s.conns {
		c.Close()
	}
}

// Asked returns how many requests there were.
func (s *Server) Asked() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.asked
}

// Set makes or changes a node and those above it that are missing.
func (s *Server) Set(path, value string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for at := path; at != "/" && at != ""; at = at[:strings.LastIndexByte(at, '/')] {
		if at == path {
			s.nodes[at] = value
		} else if _, ok := s.nodes[at]; !ok {
			s.nodes[at] = ""
		}
	}
	s.changed(path)
}

// SetAll sets nodes below path, in the order of their names.
func (s *Server) SetAll(path string, values map[string]string) {
	var names []string
	for n := range values {
		names = append(names, n)
	}
	slices.Sort(names)
	for _, n := range names {
		s.Set(path+"/"+n, values[n])
	}
}

// Remove takes away a node and all below it.
func (s *Server) Remove(path string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for at := range s.nodes {
		if at == path || strings.HasPrefix(at, path+"/") {
			delete(s.nodes, at)
		}
	}
	s.changed(path)
}

// changed tells those who watch. It needs mu.
func (s *Server) changed(path string) {
	for c := range s.conns {
		for _, w := range c.watches {
			if path == w[0] || strings.HasPrefix(path, w[0]+"/") {
				c.send(watchEvent, 0, path+"\x00"+w[1]+"\x00")
			}
		}
	}
}

func (s *Server) serve() {
	for {
		nc, err := s.ln.Accept()
		if err != nil {
			return
		}
		c := &conn{Conn: nc}
		s.mu.Lock()
		s.conns[c] = true
		s.mu.Unlock()
		s.wg.Go(func() {
			_ = s.talk(c)
			s.mu.Lock()
			delete(s.conns, c)
			s.mu.Unlock()
			c.Close()
		})
	}
}

func (c *conn) send(kind, id uint32, payload string) {
	var b []byte
	for _, v := range []uint32{kind, id, 0, uint32(len(payload))} {
		b = binary.NativeEndian.AppendUint32(b, v)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	_, _ = c.Write(append(b, payload...))
}

// talk answers one client.
func (s *Server) talk(c *conn) error {
	for {
		var h [4]uint32
		if err := binary.Read(c, binary.NativeEndian, &h); err != nil {
			return err
		}
		if h[3] > 4096 {
			return errors.New("payload too long")
		}
		b := make([]byte, h[3])
		if _, err := io.ReadFull(c, b); err != nil {
			return err
		}
		args := strings.Split(string(b), "\x00")
		s.mu.Lock()
		s.asked++
		kind, answer := h[0], ""
		if err := s.obey(c, kind, args, &answer); err != "" {
			kind, answer = failure, err+"\x00"
		}
		c.send(kind, h[1], answer)
		if kind == watch { // the first event comes at once
			c.send(watchEvent, 0, args[0]+"\x00"+args[1]+"\x00")
		}
		s.mu.Unlock()
	}
}

// absolute makes a path that of dom0's home.
func absolute(path string) string {
	if strings.HasPrefix(path, "/") {
		return path
	}
	return "/local/domain/0/" + path
}

// obey does what is asked. It needs mu.
func (s *Server) obey(c *conn, kind uint32, args []string, answer *string) (errno string) {
	path := absolute(args[0])
	value, there := s.nodes[path]
	switch kind {
	case read:
		*answer = value
	case directory:
		below := strings.TrimSuffix(path, "/") + "/"
		var names []string
		for at := range s.nodes {
			if name, ok := strings.CutPrefix(at, below); ok && name != "" && !strings.Contains(name, "/") {
				names = append(names, name)
			}
		}
		slices.Sort(names)
		for _, n := range names {
			*answer += n + "\x00"
		}
		if len(*answer) > 4096 {
			return "E2BIG"
		}
	case watch:
		if len(args) < 2 {
			return "EINVAL"
		}
		c.watches = append(c.watches, [2]string{path, args[1]})
		*answer = "OK\x00"
		return ""
	case unwatch:
		c.watches = slices.DeleteFunc(c.watches, func(w [2]string) bool { return w[0] == path })
		*answer = "OK\x00"
		return ""
	case getDomainPath:
		*answer = fmt.Sprintf("/local/domain/%s\x00", args[0])
		return ""
	default:
		return "ENOSYS"
	}
	if !there {
		return "ENOENT"
	}
	return ""
}
