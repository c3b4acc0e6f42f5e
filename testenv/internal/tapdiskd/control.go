//go:build linux

package tapdiskd

import (
	"encoding/binary"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// Kinds of a message: enum tapdisk_message_id. An answer's is one more.
const (
	msgError  = 1
	MsgPID    = 3
	MsgPause  = 9
	MsgResume = 11
	MsgClose  = 13
	MsgList   = 19

	pauseAnswer = MsgPause + 1
)

// MessageSize is that of struct tapdisk_message.
const MessageSize = 544

// control is the socket by which tap-ctl talks to a tapdisk: one question a connection.
type control struct {
	paths     []string // to be removed
	fd, conn  int      // -1: none
	in, out   [MessageSize]byte
	answering bool // the answer is to be sent
	ended     bool
	nbd       []int // sockets of the servers for those who are no guests
	wait      [3]fdSet
	timeout   [2]int64
}

// listen makes what a tapdisk of blktap 4 has below /run/blktap-control.
func (c *control) listen(dir string, minor int) (err error) {
	c.conn = -1
	pid := os.Getpid()
	if c.fd, err = c.socket(filepath.Join(dir, fmt.Sprintf("ctl%d", pid))); err != nil {
		return err
	}
	for _, name := range []string{"nbdserver", "nbd-old", "nbdserver-new", "nbd"} {
		fd, err := c.socket(filepath.Join(dir, fmt.Sprintf("%s%d.%d", name, pid, minor)))
		if err != nil {
			return err
		}
		c.nbd = append(c.nbd, fd)
	}
	minors := filepath.Join(dir, "tapdisk")
	if err := os.MkdirAll(minors, 0o700); err != nil {
		return err
	}
	path := filepath.Join(minors, fmt.Sprintf("tapdisk-%d", minor))
	c.paths = append(c.paths, path)
	return os.WriteFile(path, nil, 0o600)
}

func (c *control) socket(path string) (int, error) {
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err == nil {
		err = unix.Bind(fd, &unix.SockaddrUnix{Name: path})
	}
	if err == nil {
		err = unix.Listen(fd, 10)
	}
	if err != nil {
		return -1, fmt.Errorf("control socket %s: %w", path, err)
	}
	c.paths = append(c.paths, path)
	return fd, nil
}

func (c *control) remove() {
	for _, p := range c.paths {
		_ = unix.Unlink(p)
	}
}

// refuse ends a connection to one of the servers, which there are not.
func (c *control) refuse(fd int) {
	if conn, e := call(unix.SYS_ACCEPT, uintptr(fd), 0, 0); e == 0 {
		call(unix.SYS_CLOSE, conn)
	}
}

func (c *control) accept() {
	fd, e := call(unix.SYS_ACCEPT, uintptr(c.fd), 0, 0)
	if e != 0 {
		return
	}
	if c.conn >= 0 {
		call(unix.SYS_CLOSE, fd)
		return
	}
	c.conn = int(fd)
}

// event reads the question, or sends the answer, of the connection.
func (c *control) event(s *server) {
	if c.answering {
		call(unix.SYS_SENDTO, uintptr(c.conn), addr(&c.out), MessageSize, unix.MSG_DONTWAIT)
		call(unix.SYS_CLOSE, uintptr(c.conn))
		c.conn, c.answering = -1, false
		return
	}
	for got := uintptr(0); got < MessageSize; {
		c.wait = [3]fdSet{}
		c.wait[0].set(c.conn)
		c.timeout = [2]int64{2, 0}
		call(unix.SYS_PSELECT6, uintptr(c.conn)+1, addr(&c.wait[0]), 0, 0, addr(&c.timeout), 0)
		n, e := call(unix.SYS_READ, uintptr(c.conn), addr(&c.in)+got, MessageSize-got)
		if e != 0 || n == 0 {
			call(unix.SYS_CLOSE, uintptr(c.conn))
			c.conn = -1
			return
		}
		got += n
	}
	kind := binary.NativeEndian.Uint16(c.in[:])
	c.out = [MessageSize]byte{}
	switch kind {
	case MsgPID:
		binary.NativeEndian.PutUint32(c.out[4:], uint32(unix.Getpid()))
	case MsgPause:
		s.pausing = true // answered when it is
		return
	case MsgResume:
		if s.resume() != nil {
			c.fail()
			return
		}
	case MsgClose:
		c.ended = true
	case MsgList:
		le := binary.NativeEndian
		le.PutUint32(c.out[4:], 1) // how many there are
		le.PutUint32(c.out[8:], uint32(s.Minor))
		le.PutUint32(c.out[12:], s.state())
		copy(c.out[16:271], s.Type+":"+s.Images[0])
	default:
		c.fail()
		return
	}
	c.reply(kind + 1)
}

func (c *control) fail() { c.reply(msgError) }

// reply has the answer of that kind sent.
func (c *control) reply(kind uint16) {
	if c.conn < 0 {
		return
	}
	binary.NativeEndian.PutUint16(c.out[:], kind)
	copy(c.out[2:4], c.in[2:4])
	c.answering = true
}

// state is that of the disk: flags TD_VBD_*.
func (s *server) state() (v uint32) {
	for _, f := range []struct {
		on   bool
		flag uint32
	}{{s.quiesced, 0x8}, {s.pausing, 0x10}, {s.paused, 0x20}} {
		if f.on {
			v |= f.flag
		}
	}
	return v
}
