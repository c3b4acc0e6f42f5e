//go:build linux

package node

import (
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/xenserver/dtagent/testenv/internal/sys"
	"github.com/xenserver/dtagent/testenv/truth"
)

// Accepted is a connection that a daemon has taken.
type Accepted struct {
	FD    int
	Peer  unix.Sockaddr
	Taken int64 // when, ktime
}

// Listen takes connections at path in a thread of its own, and serves each in
// another, as the daemons' xcp_service does. The connection is closed for serve.
func (p *Proc) Listen(path string, serve func(*Thread, Accepted) error) error {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	l, err := sys.ListenUnix(path)
	if err != nil {
		return err
	}
	p.Go("", func(t *Thread) {
		for {
			fd, peer, err := unix.Accept4(l, unix.SOCK_CLOEXEC)
			if err == unix.EINTR {
				continue
			}
			if err != nil {
				t.Log(Error, "xcp_service", "accept: %v", err)
				return
			}
			c := Accepted{fd, peer, truth.Now()}
			p.Go("", func(t *Thread) {
				defer unix.Close(fd)
				if err := serve(t, c); err != nil {
					t.Log(Error, "xcp_service", "%v", err)
				}
			})
		}
	})
	return nil
}
