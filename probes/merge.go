//go:build linux

package probes

import (
	"sync"

	"github.com/xenserver/dtagent/bpf"
	"github.com/xenserver/dtagent/probes/event"
)

// Perf buffers of several CPUs are read one after the other, so a reply can be
// read before its request when a thread moves. The redactor and the marking of
// SM scripts need the order of making; merge restores it by holding records
// for a moment. A ring buffer needs no merge: it is one for all CPUs.
const (
	mergeWindow  = event.Time(20e6) // ns from a record's time until it is in its buffer, a processor's steal time included
	mergeRecords = 4096             // held at once, of each CPU
	mergeBytes   = 16 << 20         // held at once, of all CPUs
	mergeSmall   = 2048             // bytes of a slot's own buffer
	mergeSpares  = 64               // larger buffers that are kept for the next large record
)

// merge orders the records of several CPUs by time. One goroutine puts, one
// takes.
type merge struct {
	mu    sync.Mutex
	room  sync.Cond // signalled when something was taken, or closed
	lanes []lane    // by CPU
	held  int       // bytes of records
	spare [][]byte  // buffers of more than mergeSmall
	over  bool      // closed: what is held goes out
	early uint64    // records that went out before their time for want of room
}

// lane is the queue of one CPU, oldest first.
type lane struct {
	slots   []slot
	head, n int
}

type slot struct {
	time event.Time
	lost uint64
	raw  []byte

	since uint64
}

func newMerge() *merge {
	g := new(merge)
	g.room.L = &g.mu
	return g
}

// put copies a record. It waits while there is no room; the kernel's buffers
// fill meanwhile and count what they lose.
func (g *merge) put(rec *bpf.Record) {
	g.mu.Lock()
	defer g.mu.Unlock()
	for rec.CPU >= len(g.lanes) {
		g.lanes = append(g.lanes, lane{})
	}
	l := &g.lanes[rec.CPU]
	for (l.n == mergeRecords || g.held+len(rec.Raw) > mergeBytes) && !g.over {
		g.room.Wait()
	}
	if l.n == len(l.slots) {
		l.grow()
	}
	s := &l.slots[(l.head+l.n)%len(l.slots)]
	s.time, s.lost, s.since = timeOf(rec.Raw), rec.Lost, rec.Since
	if n := len(g.spare); n > 0 && len(rec.Raw) > mergeSmall {
		s.raw, g.spare = g.spare[n-1], g.spare[:n-1]
	}
	s.raw = append(s.raw[:0], rec.Raw...)
	l.n++
	g.held += len(rec.Raw)
}

// grow makes room for twice as many records. The taker's record stays where
// it points: slots are moved by value, their bytes are not.
func (l *lane) grow() {
	slots := make([]slot, max(64, 2*len(l.slots)))
	for i := range l.n {
		slots[i] = l.slots[(l.head+i)%len(l.slots)]
	}
	l.slots, l.head = slots, 0
}

// take returns the oldest record if it was made before limit, or if there is
// little room left; done gives it back. false: there is none.
func (g *merge) take(rec *bpf.Record, limit event.Time) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	oldest := -1
	full := g.held > mergeBytes/2
	for i := range g.lanes {
		l := &g.lanes[i]
		if l.n == 0 {
			continue
		}
		full = full || l.n > mergeRecords/2
		if oldest < 0 || l.slots[l.head].time < g.lanes[oldest].slots[g.lanes[oldest].head].time {
			oldest = i
		}
	}
	if oldest < 0 {
		return false
	}
	s := &g.lanes[oldest].slots[g.lanes[oldest].head]
	if s.time > limit && !g.over {
		if !full {
			return false
		}
		g.early++
	}
	rec.CPU, rec.Raw, rec.Lost, rec.Since = oldest, s.raw, s.lost, s.since
	return true
}

// done gives back the record of take.
func (g *merge) done(rec *bpf.Record) {
	g.mu.Lock()
	defer g.mu.Unlock()
	l := &g.lanes[rec.CPU]
	s := &l.slots[l.head]
	g.held -= len(s.raw)
	if cap(s.raw) > mergeSmall {
		if len(g.spare) < mergeSpares {
			g.spare = append(g.spare, s.raw)
		}
		s.raw = nil
	}
	l.head = (l.head + 1) % len(l.slots)
	l.n--
	g.room.Signal()
}

// close lets everything out and put never wait again.
func (g *merge) close() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.over = true
	g.room.Signal()
}

// hurried returns how many records went out before their time.
func (g *merge) hurried() uint64 {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.early
}
