package metrics

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"golang.org/x/net/netutil"
)

// maxPeers bounds the connections open at once; further ones wait.
const maxPeers = 16

// Listen makes the socket for scrapes. The address is
// unix:/run/dtagent/metrics.sock, a socket of mode 0600 in a directory that is
// made with mode 0700 if there is none, or a loopback address with a port, as
// 127.0.0.1:9464 or [::1]:9464, which every user of the host can reach. Other
// addresses are refused: span names tell what the host does, and there is no
// login.
func Listen(addr string) (net.Listener, error) {
	path, isUnix := strings.CutPrefix(addr, "unix:")
	var ln net.Listener
	var err error
	if isUnix {
		ln, err = listenUnix(path)
	} else {
		ln, err = listenLoopback(addr)
	}
	if err != nil {
		return nil, fmt.Errorf("metrics address %q: %w", addr, err)
	}
	return netutil.LimitListener(ln, maxPeers), nil
}

func listenLoopback(addr string) (net.Listener, error) {
	a, err := netip.ParseAddrPort(addr)
	if err != nil {
		return nil, errors.New("write unix:/PATH, 127.0.0.1:PORT or [::1]:PORT")
	}
	if !a.Addr().Unmap().IsLoopback() {
		return nil, fmt.Errorf("%s is not a loopback address, and metrics are served to this host only: write unix:/PATH, 127.0.0.1:PORT or [::1]:PORT", a.Addr())
	}
	return net.Listen("tcp", addr)
}

func listenUnix(path string) (net.Listener, error) {
	if !filepath.IsAbs(path) {
		return nil, errors.New("the path of the socket must begin with /")
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return nil, err
	}
	if info, err := os.Lstat(path); err == nil {
		if info.Mode().Type() != os.ModeSocket {
			return nil, errors.New("the file exists and is no socket")
		}
		c, err := net.DialTimeout("unix", path, time.Second)
		if err == nil {
			c.Close()
			return nil, errors.New("another process answers there already")
		}
		if !errors.Is(err, syscall.ECONNREFUSED) {
			return nil, err
		}
		if err := os.Remove(path); err != nil { // left by an agent that was killed
			return nil, err
		}
	}
	// Bound under a name of our own first: at no time can others connect.
	private := fmt.Sprintf("%s.%d", path, os.Getpid())
	_ = os.Remove(private)
	ln, err := net.ListenUnix("unix", &net.UnixAddr{Name: private, Net: "unix"})
	if err != nil {
		return nil, err
	}
	ln.SetUnlinkOnClose(false)
	if err = os.Chmod(private, 0o600); err == nil {
		err = os.Rename(private, path)
	}
	if err != nil {
		_ = os.Remove(private)
		ln.Close()
		return nil, err
	}
	return &unixListener{UnixListener: ln, path: path}, nil
}

type unixListener struct {
	*net.UnixListener
	path string
}

func (l *unixListener) Close() error {
	_ = os.Remove(l.path)
	return l.UnixListener.Close()
}

// Serve answers GET /metrics on ln until ctx is done, and closes ln. Its error
// is nil when ctx ended it.
func (r *Registry) Serve(ctx context.Context, ln net.Listener) error {
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", r.Handler())
	srv := &http.Server{
		Handler:           mux,
		ReadHeaderTimeout: 5 * time.Second,
		ReadTimeout:       10 * time.Second,
		WriteTimeout:      30 * time.Second,
		IdleTimeout:       2 * time.Minute,
		MaxHeaderBytes:    16 << 10,
	}
	stop := context.AfterFunc(ctx, func() { _ = srv.Close() })
	defer stop()
	if err := srv.Serve(ln); ctx.Err() == nil {
		return fmt.Errorf("metrics on %s: %w", ln.Addr(), err)
	}
	return nil
}
