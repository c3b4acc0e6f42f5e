//go:build linux

package fault

import (
	"errors"
	"fmt"
	"runtime"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// network is a network namespace with nothing but a loopback, so that what is
// delayed in it is nobody else's.
type network struct{ space netns.NsHandle }

// ownNetwork makes one that goes with the device.
func (d *device) ownNetwork() (*network, error) {
	var n network
	err := restoring(func() (err error) {
		n.space, err = netns.New()
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("network namespace: %w", err)
	}
	d.net = &n
	d.onClose(n.space.Close)
	h, err := netlink.NewHandleAt(n.space, unix.NETLINK_ROUTE)
	if err != nil {
		return nil, fmt.Errorf("network namespace: %w", err)
	}
	defer h.Close()
	lo, err := h.LinkByName("lo")
	if err == nil {
		err = h.LinkSetUp(lo)
	}
	if err != nil {
		return nil, fmt.Errorf("lo: %w", err)
	}
	return &n, nil
}

// inside calls f on a thread in the network. f must not leave its goroutine for
// what is to be in there.
func (n *network) inside(f func() error) error {
	return restoring(func() error {
		if err := netns.Set(n.space); err != nil {
			return fmt.Errorf("network namespace: %w", err)
		}
		return f()
	})
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
		return errors.Join(err, fmt.Errorf("network namespace: %w", back)) // the thread stays locked, and ends with its goroutine
	}
	runtime.UnlockOSThread()
	return err
}

// setDelay has a packet and its answer take d together: half of it each way, as
// both pass the loopback.
func (n *network) setDelay(d time.Duration) error {
	h, err := netlink.NewHandleAt(n.space, unix.NETLINK_ROUTE)
	if err != nil {
		return fmt.Errorf("network namespace: %w", err)
	}
	defer h.Close()
	lo, err := h.LinkByName("lo")
	if err != nil {
		return fmt.Errorf("lo: %w", err)
	}
	q := netlink.NewNetem(
		netlink.QdiscAttrs{LinkIndex: lo.Attrs().Index, Handle: netlink.MakeHandle(1, 0), Parent: netlink.HANDLE_ROOT},
		netlink.NetemQdiscAttrs{Latency: uint32((d / 2).Microseconds()), Limit: 10000})
	if err := h.QdiscReplace(q); err != nil {
		return missingModule("sch_netem", err)
	}
	return nil
}
