//go:build linux

package probes

import "github.com/xenserver/dtagent/probes/event"

// Disks says whose the disks are that guests' requests are for. Its functions are
// called by the goroutine in Run, for each request that is told, and must not wait.
type Disks struct {
	// Of returns the disk that a tapdisk serves, nil if it is not known.
	Of func(tgid uint32) *event.GuestDisk
	// Usual returns what 99 of 100 requests to it took, in ns; 0 if that is not
	// learned. Nil: it never is.
	Usual func(tgid uint32, write bool) int64
}

// SetDisks says who knows the guests' disks.
func (m *Manager) SetDisks(d Disks) { m.disks.Store(&d) }

// disk says of a request whose it is.
func (m *Manager) disk(ev *event.Event) {
	d := m.disks.Load()
	if d == nil {
		return
	}
	if d.Of != nil {
		ev.Disk = d.Of(ev.TGID)
	}
	if d.Usual != nil {
		ev.Request.Usual = d.Usual(ev.TGID, ev.Request.Write)
	}
}
