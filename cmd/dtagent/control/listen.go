package control

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"time"
)

// Listen makes the socket: its directory with mode 0700 if there is none, the
// socket with mode 0600. A socket that an agent left behind is replaced; while
// another process listens there, begins to, or has not released what it listened on,
// that is an error.
func Listen(path string) (_ *Listener, err error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return nil, fmt.Errorf("control socket: %w", err)
	}
	held, err := takeLock(path)
	if err != nil {
		return nil, fmt.Errorf("control socket: %w", err)
	}
	defer func() {
		if err != nil {
			held.release()
		}
	}()
	if info, err := os.Lstat(path); err == nil {
		if info.Mode().Type() != os.ModeSocket {
			return nil, fmt.Errorf("control socket: %s exists and is no socket", path)
		}
		c, err := net.DialTimeout("unix", path, time.Second)
		if err == nil {
			c.Close()
			return nil, fmt.Errorf("control socket: an agent is running on %s already; stop it, or choose another socket with --control", path)
		}
		if !errors.Is(err, syscall.ECONNREFUSED) {
			return nil, fmt.Errorf("control socket: %w", err)
		}
		if err := os.Remove(path); err != nil {
			return nil, fmt.Errorf("control socket: %w", err)
		}
	}
	// Bound under a name of our own first: at no time can others connect.
	private := fmt.Sprintf("%s.%d", path, os.Getpid())
	_ = os.Remove(private)
	ln, err := net.ListenUnix("unix", &net.UnixAddr{Name: private, Net: "unix"})
	if err != nil {
		return nil, fmt.Errorf("control socket: %w", err)
	}
	ln.SetUnlinkOnClose(false)
	if err = os.Chmod(private, 0o600); err == nil {
		err = os.Rename(private, path)
	}
	if err != nil {
		_ = os.Remove(private)
		ln.Close()
		return nil, fmt.Errorf("control socket: %w", err)
	}
	end := sync.OnceValue(func() error {
		_ = os.Remove(path)
		return ln.Close()
	})
	return &Listener{UnixListener: ln, close: end, lock: held, free: make(chan struct{}, maxPeers)}, nil
}

// maxPeers bounds the connections served at once; further ones wait.
const maxPeers = 32

// Listener is the control socket, and what keeps others from having it.
type Listener struct {
	*net.UnixListener
	lock  lock
	close func() error  // ends listening, once
	free  chan struct{} // a token for each connection that is open
}

func (l *Listener) Accept() (net.Conn, error) {
	l.free <- struct{}{}
	c, err := l.UnixListener.Accept()
	if err != nil {
		<-l.free
		return nil, err
	}
	return &conn{Conn: c, release: sync.OnceFunc(func() { <-l.free })}, nil
}

// Close ends listening.
func (l *Listener) Close() error { return l.close() }

// Release is Close, and lets another agent begin: it is for when nothing is attached
// any more. It may be called after Close, and twice.
func (l *Listener) Release() {
	_ = l.Close()
	l.lock.release()
}

type conn struct {
	net.Conn
	release func()
}

func (c *conn) Close() error {
	defer c.release()
	return c.Conn.Close()
}

// dialer connects to the socket whatever address it is asked for.
func dialer(path string) func(context.Context, string, string) (net.Conn, error) {
	return func(ctx context.Context, _, _ string) (net.Conn, error) {
		var d net.Dialer
		return d.DialContext(ctx, "unix", path)
	}
}
