//go:build linux

package fault

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"time"

	"github.com/willscott/go-nfs"
	"github.com/willscott/go-nfs/helpers"
	"github.com/willscott/go-nfs/helpers/memfs"
	"golang.org/x/sys/unix"
)

// openNFSNetem makes a file on an NFS server that is the delay away.
func openNFSNetem(_ context.Context, o Options, d *device) error {
	n, err := d.nfs(o, new(lag))
	if err != nil {
		return err
	}
	d.set = n.setDelay
	return d.set(0)
}

// openNFSServer makes a file on an NFS server that takes its time to answer.
func openNFSServer(_ context.Context, o Options, d *device) error {
	l := new(lag)
	d.set = l.set
	_, err := d.nfs(o, l)
	return err
}

// nfs runs an NFSv3 server in this process, in a network of its own, that has one
// file in memory, and mounts it. Unlike the others it is a mount that everybody
// sees, as the kernel tells of a mount's requests (mountstats) only then.
func (d *device) nfs(o Options, answers *lag) (*network, error) {
	n, err := d.ownNetwork()
	if err != nil {
		return nil, err
	}
	fs := memfs.New()
	f, err := fs.Create("disk")
	if err != nil {
		return nil, fmt.Errorf("nfs: %w", err)
	}
	if err := errors.Join(f.Truncate(o.Size), f.Close()); err != nil {
		return nil, fmt.Errorf("nfs: %w", err)
	}
	var l net.Listener
	err = n.inside(func() (err error) {
		l, err = net.Listen("tcp4", "127.0.0.1:0")
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("nfs: %w", err)
	}
	late := &lagging{Listener: l, lag: answers}
	served := make(chan struct{})
	go func() {
		defer close(served)
		nfs.Serve(late, helpers.NewCachingHandler(helpers.NewNullAuthHandler(fs), 16)) // ends with the listener
	}()
	d.onClose(func() error {
		err := late.Close()
		<-served
		return err
	})
	dir, err := os.MkdirTemp("", uniqueName())
	if err != nil {
		return nil, err
	}
	d.onClose(func() error { return os.Remove(dir) })
	port := l.Addr().(*net.TCPAddr).Port
	// soft: who reads gets an error, in place of waiting for ever, when the server
	// died with its process.
	options := fmt.Sprintf("addr=127.0.0.1,vers=3,proto=tcp,port=%d,mountport=%[1]d,mountproto=tcp,mountvers=3,nolock,noacl,soft,timeo=%d,retrans=1",
		port, 3*maxDelay/(time.Second/10))
	err = n.inside(func() error { return unix.Mount("127.0.0.1:/", dir, "nfs", unix.MS_NOSUID|unix.MS_NODEV, options) })
	if errors.Is(err, unix.ENODEV) || errors.Is(err, unix.EPROTONOSUPPORT) {
		return nil, missingModule("nfsv3", err)
	}
	if err != nil {
		return nil, fmt.Errorf("nfs: mount: %w", err)
	}
	d.onClose(func() error {
		err := unix.Unmount(dir, 0)
		if isBusy(err) { // it is open; from now on that is of no use
			err = unix.Unmount(dir, unix.MNT_FORCE|unix.MNT_DETACH)
		}
		if err != nil {
			return fmt.Errorf("unmount %s: %w", dir, err)
		}
		return nil
	})
	d.path = filepath.Join(dir, "disk")
	return n, nil
}
