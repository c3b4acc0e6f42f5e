//go:build linux

// Package forwarded is how xapi passes the socket of a request on to another
// daemon (xapi_services.ml, hand_over_connection): what it has read of the request
// goes as JSON over a unix socket, and the client's socket with it by SCM_RIGHTS.
package forwarded

import (
	"encoding/json"
	"fmt"
	"strconv"

	"golang.org/x/sys/unix"

	"github.com/xenserver/dtagent/testenv/internal/node"
	"github.com/xenserver/dtagent/testenv/internal/sys"
	"github.com/xenserver/dtagent/testenv/truth"
)

// maxRequest is the most that a daemon takes of a request.
const maxRequest = 16384

// Request is what xapi passes on of a request.
type Request struct {
	Method  string            `json:"m"`
	URI     string            `json:"uri"`
	Query   map[string]string `json:"query"`
	Version string            `json:"version"`
	Cookie  map[string]string `json:"cookie"`
	Headers map[string]string `json:"additional_headers"`
}

// Key is the truth's name for a socket that is passed on.
func Key(fd int) (string, error) {
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return "", err
	}
	return "socket:" + strconv.FormatUint(st.Ino, 10), nil
}

// Pass passes the socket fd with its request to the daemon that listens at path.
func Pass(path string, r Request, fd int) error {
	text, err := json.Marshal(r)
	if err != nil {
		return err
	}
	control, err := sys.ConnectUnix(path)
	if err != nil {
		return err
	}
	defer unix.Close(control)
	for {
		err := unix.Sendmsg(control, text, unix.UnixRights(fd), nil, 0)
		if err != unix.EINTR {
			return err
		}
	}
}

// Handler goes on with a request; the socket is closed for it.
type Handler func(t *node.Thread, r Request, fd int) error

// Listen takes what is passed on at path, in a thread for each.
func Listen(p *node.Proc, path string, h Handler) error {
	return p.Listen(path, func(t *node.Thread, c node.Accepted) error { return take(t, c.FD, h) })
}

func take(t *node.Thread, control int, h Handler) error {
	text, rights := make([]byte, maxRequest), make([]byte, unix.CmsgSpace(4))
	n, m, _, _, err := unix.Recvmsg(control, text, rights, unix.MSG_CMSG_CLOEXEC)
	for err == unix.EINTR {
		n, m, _, _, err = unix.Recvmsg(control, text, rights, unix.MSG_CMSG_CLOEXEC)
	}
	if err != nil {
		return fmt.Errorf("recvmsg: %w", err)
	}
	messages, err := unix.ParseSocketControlMessage(rights[:m])
	if err != nil || len(messages) != 1 {
		return fmt.Errorf("no socket with %.100q: %v", text[:n], err)
	}
	fds, err := unix.ParseUnixRights(&messages[0])
	if err != nil || len(fds) != 1 {
		return fmt.Errorf("%d sockets: %v", len(fds), err)
	}
	defer unix.Close(fds[0])
	var r Request
	if err := json.Unmarshal(text[:n], &r); err != nil {
		return err
	}
	key, err := Key(fds[0])
	if err != nil {
		return err
	}
	s := t.Begin(truth.API, r.Method+" "+r.URI)
	s.ParentKey = key
	defer s.End()
	err = h(t, r, fds[0])
	s.Entry.End = truth.Now()
	return err
}

// Answer is an answer after which the connection ends.
func Answer(fd int, contentType, body string) error {
	head := "HTTP/1.1 200 OK\r\nconnection: close\r\ncache-control: no-cache, no-store\r\ncontent-type: " + contentType + "\r\ncontent-length: " + strconv.Itoa(len(body)) + "\r\n\r\n"
	if err := sys.Write(fd, []byte(head)); err != nil {
		return err
	}
	return sys.Write(fd, []byte(body))
}
