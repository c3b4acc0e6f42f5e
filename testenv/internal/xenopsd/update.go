//go:build linux

package xenopsd

import (
	"fmt"
	"strings"
	"sync"
	"time"
)

// updates is the stream of changes that xapi polls with UPDATES.get.
type updates struct {
	mu       sync.Mutex
	next     int64
	events   []update
	barriers []update
	wake     chan struct{} // closed at the next change
}

type update struct {
	id        int64
	kind, ref string
}

func newUpdates() *updates { return &updates{wake: make(chan struct{}), next: 1} }

// maxUpdates bounds the stream; who is further behind misses changes.
const maxUpdates = 4096

func (u *updates) add(kind, ref string) {
	u.mu.Lock()
	defer u.mu.Unlock()
	e := update{id: u.next, kind: kind, ref: ref}
	u.next++
	if kind == "Barrier" {
		u.barriers = append(u.barriers, e)
	} else {
		keep := u.events[:0]
		for _, o := range u.events { // a later change of the same thing replaces the earlier
			if o.kind != kind || o.ref != ref {
				keep = append(keep, o)
			}
		}
		u.events = append(keep, e)
		if len(u.events) > maxUpdates {
			u.events = u.events[len(u.events)-maxUpdates:]
		}
	}
	close(u.wake)
	u.wake = make(chan struct{})
}

func (u *updates) removeBarrier(ref string) {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.next++ // this counts, though nobody is told
	for i, b := range u.barriers {
		if b.ref == ref {
			u.barriers = append(u.barriers[:i], u.barriers[i+1:]...)
			return
		}
	}
}

func (u *updates) last() int64 {
	u.mu.Lock()
	defer u.mu.Unlock()
	return u.next - 1
}

// get waits until something is later than from, at most for timeout, and gives the
// answer of UPDATES.get: barriers, events, the last number.
func (u *updates) get(from int64, timeout time.Duration) string {
	end := time.NewTimer(timeout)
	defer end.Stop()
	for {
		u.mu.Lock()
		var barriers, events []string
		last := from
		for _, b := range u.barriers {
			if b.id > from {
				barriers = append(barriers, fmt.Sprintf("[%s,[]]", b.ref))
				last = max(last, b.id)
			}
		}
		for _, e := range u.events {
			if e.id > from {
				ref := quoted(e.ref)
				if vm, dev, ok := strings.Cut(e.ref, "."); ok {
					ref = fmt.Sprintf("[%q,%q]", vm, dev)
				}
				events = append(events, fmt.Sprintf("[%q,%s]", e.kind, ref))
				last = max(last, e.id)
			}
		}
		wake := u.wake
		u.mu.Unlock()
		if len(barriers)+len(events) > 0 {
			return fmt.Sprintf("[[%s],[%s],%d]", strings.Join(barriers, ","), strings.Join(events, ","), last)
		}
		select {
		case <-wake:
		case <-end.C:
			return fmt.Sprintf("[[],[],%d]", from)
		}
	}
}
