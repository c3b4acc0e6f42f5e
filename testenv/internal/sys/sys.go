//go:build linux

// Package sys has the system calls of the simulated dom0, made as OCaml's unix
// library makes them: blocking, on the calling thread, at most 64 KiB each.
package sys

import (
	"errors"
	"fmt"
	"io"
	"net/netip"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Piece is the most that OCaml's unix library moves in one read or write
// (UNIX_BUFFER_SIZE).
const Piece = 65536

// Read makes one read; it returns io.EOF for 0 bytes.
func Read(fd int, b []byte) (int, error) {
	for {
		n, err := unix.Read(fd, b)
		switch {
		case err == unix.EINTR:
			continue
		case err != nil:
			return 0, err
		case n == 0 && len(b) > 0:
			return 0, io.EOF
		}
		return n, nil
	}
}

// ReadFull reads until b is full, asking for all that is missing each time.
func ReadFull(fd int, b []byte) error {
	for len(b) > 0 {
		n, err := Read(fd, b[:min(len(b), Piece)])
		if err != nil {
			return err
		}
		b = b[n:]
	}
	return nil
}

// Write writes all of b in pieces of at most Piece.
func Write(fd int, b []byte) error {
	for len(b) > 0 {
		n, err := unix.Write(fd, b[:min(len(b), Piece)])
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return err
		}
		b = b[n:]
	}
	return nil
}

// Send is send(2): sendto without an address, as glibc's syslog and Python's
// sockets call it.
func Send(fd int, b []byte) error {
	var p unsafe.Pointer
	if len(b) > 0 {
		p = unsafe.Pointer(&b[0])
	}
	for {
		_, _, errno := syscall.Syscall6(unix.SYS_SENDTO, uintptr(fd), uintptr(p), uintptr(len(b)), unix.MSG_NOSIGNAL, 0, 0)
		if errno == unix.EINTR {
			continue
		}
		if errno != 0 {
			return errno
		}
		return nil
	}
}

// Sleep blocks the calling thread in nanosleep.
func Sleep(d time.Duration) {
	if d <= 0 {
		return
	}
	ts := unix.NsecToTimespec(int64(d))
	for unix.Nanosleep(&ts, &ts) == unix.EINTR {
	}
}

// ListenUnix makes a listening stream socket at path.
func ListenUnix(path string) (int, error) {
	fd, err := BindUnix(path)
	if err != nil {
		return -1, err
	}
	return fd, Listen(fd)
}

// BindUnix makes a stream socket at path, in place of what is there, on which
// nobody listens yet.
func BindUnix(path string) (int, error) {
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return -1, fmt.Errorf("socket: %w", err)
	}
	_ = unix.Unlink(path) // of the process before this one
	if err := unix.Bind(fd, &unix.SockaddrUnix{Name: path}); err != nil {
		return -1, fmt.Errorf("bind %s: %w", path, err)
	}
	return fd, nil
}

// Listen makes connections to a socket possible.
func Listen(fd int) error {
	if err := unix.Listen(fd, 1024); err != nil {
		return fmt.Errorf("listen: %w", err)
	}
	return nil
}

// ListenTCP makes a listening AF_INET6 socket on addr; an IPv4 address is bound as
// a mapped one, so that its clients arrive as they do in a dom0, where xapi
// listens on [::].
func ListenTCP(addr netip.AddrPort) (int, uint16, error) {
	fd, err := unix.Socket(unix.AF_INET6, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return -1, 0, fmt.Errorf("socket: %w", err)
	}
	if err := errors.Join(
		unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1),
		unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_KEEPALIVE, 1),
		unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_NODELAY, 1), // which connections inherit
		unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_V6ONLY, 0),
		unix.Bind(fd, &unix.SockaddrInet6{Port: int(addr.Port()), Addr: addr.Addr().As16()}),
		unix.Listen(fd, 128),
	); err != nil {
		unix.Close(fd)
		return -1, 0, fmt.Errorf("listen %s: %w", addr, err)
	}
	sa, err := unix.Getsockname(fd)
	if err != nil {
		return -1, 0, fmt.Errorf("listen %s: %w", addr, err)
	}
	return fd, uint16(sa.(*unix.SockaddrInet6).Port), nil
}

// ConnectUnix connects a stream socket to path.
func ConnectUnix(path string) (int, error) {
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return -1, fmt.Errorf("socket: %w", err)
	}
	if err := unix.Connect(fd, &unix.SockaddrUnix{Name: path}); err != nil {
		unix.Close(fd)
		return -1, fmt.Errorf("connect %s: %w", path, err)
	}
	return fd, nil
}
