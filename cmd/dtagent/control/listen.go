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
// socket with mode 0600. A socket that an agent left behind is replaced; one on
// which an agent answers is an error.
func Listen(path string) (net.Listener, error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return nil, fmt.Errorf("control socket: %w", err)
	}
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
	return &listener{UnixListener: ln, path: path, free: make(chan struct{}, maxPeers)}, nil
}

// maxPeers bounds the connections served at once; further ones wait.
const maxPeers = 32

type listener struct {
	*net.UnixListener
	path string
	free chan struct{} // a token for each connection that is open
}

func (l *listener) Accept() (net.Conn, error) {
	l.free <- struct{}{}
	c, err := l.UnixListener.Accept()
	if err != nil {
		<-l.free
		return nil, err
	}
	return &conn{Conn: c, release: sync.OnceFunc(func() { <-l.free })}, nil
}

func (l *listener) Close() error {
	_ = os.Remove(l.path)
	return l.UnixListener.Close()
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
