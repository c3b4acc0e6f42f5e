//go:build linux

package testenv

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"strconv"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
)

// network is a network of two hosts that nobody else is on: a namespace for each,
// with a loopback interface and one end of a veth pair.
type network struct{ spaces []netns.NsHandle }

// newNetwork makes the namespaces. They go when nobody holds them any more: neither
// this network nor a process.
func newNetwork(addrs [2]netip.Prefix) (n *network, err error) {
	n = &network{}
	defer func() {
		if err != nil {
			err = errors.Join(fmt.Errorf("network: %w", err), n.close())
			n = nil
		}
	}()
	for range addrs {
		space, err := newSpace()
		if err != nil {
			return n, err
		}
		n.spaces = append(n.spaces, space)
	}
	first, err := netlink.NewHandleAt(n.spaces[0])
	if err != nil {
		return n, err
	}
	defer first.Close()
	pair := netlink.NewVeth(netlink.LinkAttrs{Name: "eth0"})
	pair.PeerName, pair.PeerNamespace = "eth0", netlink.NsFd(n.spaces[1])
	if err := first.LinkAdd(pair); err != nil {
		return n, fmt.Errorf("veth pair: %w", err)
	}
	for i, space := range n.spaces {
		if err := bringUp(space, addrs[i]); err != nil {
			return n, err
		}
	}
	return n, nil
}

// newSpace makes a network namespace and leaves the calling thread where it was.
func newSpace() (netns.NsHandle, error) {
	var made netns.NsHandle
	err := restoring(func() (err error) {
		made, err = netns.New()
		return err
	})
	return made, err
}

func bringUp(space netns.NsHandle, addr netip.Prefix) error {
	h, err := netlink.NewHandleAt(space)
	if err != nil {
		return err
	}
	defer h.Close()
	for _, name := range []string{"lo", "eth0"} {
		l, err := h.LinkByName(name)
		if err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
		if name == "eth0" {
			mask := net.CIDRMask(addr.Bits(), addr.Addr().BitLen())
			if err := h.AddrAdd(l, &netlink.Addr{IPNet: &net.IPNet{IP: addr.Addr().AsSlice(), Mask: mask}}); err != nil {
				return fmt.Errorf("%s: address %s: %w", name, addr, err)
			}
		}
		if err := h.LinkSetUp(l); err != nil {
			return fmt.Errorf("%s up: %w", name, err)
		}
	}
	return nil
}

func (n *network) close() error {
	var errs []error
	for i := range n.spaces {
		if n.spaces[i].IsOpen() {
			errs = append(errs, n.spaces[i].Close())
		}
	}
	return errors.Join(errs...)
}

// restoring calls f on a thread that is back in its network namespace afterwards.
func restoring(f func() error) error {
	runtime.LockOSThread()
	home, err := netns.Get()
	if err != nil {
		runtime.UnlockOSThread()
		return err
	}
	defer home.Close()
	err = f()
	if back := netns.Set(home); back != nil {
		return errors.Join(err, fmt.Errorf("network namespace: %w", back)) // the thread stays locked: it is of no use to others
	}
	runtime.UnlockOSThread()
	return err
}

// inside calls f on a thread in that namespace.
func inside(space netns.NsHandle, f func() error) error {
	return restoring(func() error {
		if err := netns.Set(space); err != nil {
			return fmt.Errorf("network namespace: %w", err)
		}
		return f()
	})
}

// InNetwork calls f on a thread in the dom0's network namespace: sockets that f
// makes, and processes that it starts, are in there. f must not leave its
// goroutine for that.
func (d *Dom0) InNetwork(f func() error) error {
	path := filepath.Join("/proc", strconv.Itoa(d.cmd.Process.Pid), "ns/net")
	space, err := netns.GetFromPath(path)
	if err != nil {
		return fmt.Errorf("testenv: network of the dom0: %w", err)
	}
	defer space.Close()
	return inside(space, f)
}

// Dial connects to an address inside the dom0's network namespace, as
// net.Dialer.DialContext does.
func (d *Dom0) Dial(ctx context.Context, network, address string) (c net.Conn, err error) {
	if _, e := netip.ParseAddrPort(address); e != nil && network != "unix" { // a name would be looked up on other threads
		return nil, &net.OpError{Op: "dial", Net: network, Err: fmt.Errorf("address %s: %w", address, os.ErrInvalid)}
	}
	err = d.InNetwork(func() error {
		var e error
		c, e = new(net.Dialer).DialContext(ctx, network, address)
		return e
	})
	return c, err
}

// DialTLS connects to the dom0's stunnel inside its network namespace. The
// certificate, which is self-signed, is not checked.
func (d *Dom0) DialTLS(ctx context.Context) (net.Conn, error) {
	raw, err := d.Dial(ctx, "tcp", d.TLSAddr().String())
	if err != nil {
		return nil, err
	}
	c := tls.Client(raw, &tls.Config{InsecureSkipVerify: true}) // of this machine
	if err := c.HandshakeContext(ctx); err != nil {
		return nil, errors.Join(err, raw.Close())
	}
	return c, nil
}
