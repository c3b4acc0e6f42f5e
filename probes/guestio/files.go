//go:build linux

package guestio

import (
	"slices"

	"github.com/xenserver/dtagent/probes/guestio/shm"
)

// tapdiskFiles follows what tapdisks have in shared memory, where and when there is
// such a thing. It is for one goroutine.
type tapdiskFiles struct {
	dir      shm.Dir
	w        *shm.Watcher
	followed map[uint32]bool
}

// changed holds something when something has changed; nil if that is not to be known.
func (f *tapdiskFiles) changed() <-chan struct{} {
	if f.w == nil {
		return nil
	}
	return f.w.Changed
}

// follow has the files of tapdisks watched. What cannot be is looked at now and then.
func (f *tapdiskFiles) follow(taps []uint32) {
	if f.w == nil {
		var err error
		if f.w, err = f.dir.Watch(); err != nil {
			return
		}
		f.followed = map[uint32]bool{}
		f.again()
	}
	for _, tgid := range taps {
		if !f.followed[tgid] && f.w.Follow(tgid) == nil {
			f.followed[tgid] = true
			f.again()
		}
	}
	for tgid := range f.followed {
		if !slices.Contains(taps, tgid) { // inotify forgets what is no more by itself
			delete(f.followed, tgid)
		}
	}
}

// again has what changed before it was watched looked at.
func (f *tapdiskFiles) again() {
	select {
	case f.w.Changed <- struct{}{}:
	default:
	}
}

func (f *tapdiskFiles) close() {
	if f.w != nil {
		_ = f.w.Close()
	}
}
