//go:build linux

package tapdiskd

import (
	"errors"
	"fmt"
	"syscall"

	"golang.org/x/sys/unix"
)

const (
	sector       = 512
	dataRequests = 32 * 11 // TAPDISK_DATA_REQUESTS: of an image, at once
)

// piece is a contiguous part of a request: td_request_t.
type piece struct {
	r      *request
	write  bool
	buf    uintptr
	sector uint64
	count  int // sectors
}

// image is one of the chain.
type image interface {
	read(piece)
	write(piece)
	reopen(bool) error // closes the file, or opens it again
}

// file is what an image is kept in.
type file struct {
	path     string
	fd       int
	readOnly bool
	q        *queue
}

func (f *file) open() error {
	flags := unix.O_RDWR
	if f.readOnly {
		flags = unix.O_RDONLY
	}
	var err error
	f.fd, err = unix.Open(f.path, flags|unix.O_DIRECT|unix.O_LARGEFILE|unix.O_CLOEXEC, 0)
	if errors.Is(err, unix.EINVAL) {
		f.fd, err = unix.Open(f.path, flags|unix.O_LARGEFILE|unix.O_CLOEXEC, 0)
	}
	if err != nil {
		return fmt.Errorf("image %s: %w", f.path, err)
	}
	return nil
}

func (f *file) reopen(open bool) error {
	if open {
		return f.open()
	}
	return unix.Close(f.fd)
}

// raw is an image of type aio: the file is the disk.
type raw struct {
	file
	s    *server
	free []*dataIO
}

// dataIO is an I/O on data of the guest, or a piece that waits for its bitmap.
type dataIO struct {
	tiocb tiocb
	piece piece

	// Of a VHD:
	bitmap    *bitmap // in which it sets bits
	waits     bool    // a transaction is closing: its bits belong to the next one
	finished  bool
	redundant bool // it is no guest's: the bitmap of a whole block
	errno     int
}

func pool(q *queue, done func(*tiocb, int)) (free []*dataIO) {
	for range dataRequests {
		io := &dataIO{}
		io.tiocb.arg, io.tiocb.done = io, done
		q.own(&io.tiocb)
		free = append(free, io)
	}
	return free
}

func openRaw(s *server, f file) (*raw, error) {
	r := &raw{file: f, s: s}
	r.free = pool(f.q, r.done)
	return r, r.open()
}

func (r *raw) start(p piece) {
	if len(r.free) == 0 {
		r.s.complete(p, int(syscall.EBUSY))
		return
	}
	io := r.free[len(r.free)-1]
	r.free = r.free[:len(r.free)-1]
	io.piece, io.tiocb.req = p, p.r
	p.r.truth.IOs++
	r.q.io(&io.tiocb, r.fd, p.write, p.buf, p.count*sector, int64(p.sector)*sector)
}

func (r *raw) read(p piece)  { r.start(p) }
func (r *raw) write(p piece) { r.start(p) }

func (r *raw) done(t *tiocb, errno int) {
	io := t.arg.(*dataIO)
	p := io.piece
	r.free = append(r.free, io)
	r.s.complete(p, errno)
}
