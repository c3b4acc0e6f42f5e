package agent

import (
	"sync"
	"sync/atomic"

	"github.com/xenserver/dtagent/probes/event"
)

// DefaultQueue is how many events wait between the probes' reader and the engine
// at most when Config says nothing, MostQueue the most that it can say.
const (
	DefaultQueue = 8192
	MostQueue    = 1 << 20
)

const (
	handoverBytes = 8 << 20 // what the heads and tails of those that wait may hold together
	keptBytes     = 1 << 20 // a larger buffer is not kept for the next batch
)

// handover is the bounded queue between the goroutine that reads the probes and
// the one that runs the engine. Events pile up in a batch that the engine comes
// for by its clock, or when it is half full: waking a goroutine for each event
// would cost several times what the event does. When it is full new events are
// dropped and counted, since the reader must not stop: the kernel's buffer behind
// it would overflow. The engine is told by a KindLost when they were made, at the
// end of the batch that was full, so that the spans they could have touched say so.
type handover struct {
	max     int           // events
	half    chan struct{} // wakes the engine
	dropped atomic.Uint64

	mu      sync.Mutex
	filling batch
	gap     gap // since the last event that was taken
	closed  bool
}

// gap is what was dropped: so many events that were made in that time.
type gap struct {
	events      uint64
	first, last event.Time
}

func (g *gap) add(ev *event.Event) {
	first, last := ev.Time, ev.Time
	if ev.Kind == event.KindLost { // tells of others
		first, last = min(first, ev.First), max(last, ev.Last)
	}
	if g.events == 0 {
		g.first, g.last = first, last
	}
	g.events++
	g.first, g.last = min(g.first, first), max(g.last, last)
}

// end appends the gap, if there is one, to b.
func (g *gap) end(b *batch) {
	if g.events > 0 {
		b.events = append(b.events, event.Event{Kind: event.KindLost, Time: g.first, First: g.first, Last: g.last, Count: g.events})
		*g = gap{}
	}
}

// batch holds copies of events, in order; their heads and tails are its own.
type batch struct {
	events  []event.Event
	payload []byte
}

func newHandover(max int) *handover { return &handover{max: max, half: make(chan struct{}, 1)} }

// put copies ev into the queue. It never waits for the engine.
func (h *handover) put(ev *event.Event) {
	h.mu.Lock()
	defer h.mu.Unlock()
	b := &h.filling
	if len(b.events) >= h.max || len(b.payload)+len(ev.Head)+len(ev.Tail) > handoverBytes {
		h.dropped.Add(1)
		h.gap.add(ev)
		return
	}
	b.events = append(b.events, *ev)
	own := &b.events[len(b.events)-1]
	own.Head, own.Tail = b.copy(ev.Head), b.copy(ev.Tail)
	if len(b.events) >= h.max/2 || len(b.payload) >= handoverBytes/2 {
		h.wake()
	}
}

// copy returns a copy of p. When payload grows, what was copied before stays
// where it is.
func (b *batch) copy(p []byte) []byte {
	if p == nil {
		return nil
	}
	at := len(b.payload)
	b.payload = append(b.payload, p...)
	return b.payload[at:len(b.payload):len(b.payload)]
}

func (h *handover) wake() {
	select {
	case h.half <- struct{}{}:
	default:
	}
}

// take returns the events that wait, and whether there may be more to come. done
// is the batch of the call before, which is used again.
func (h *handover) take(done batch) (full batch, more bool) {
	clear(done.events)
	done.events, done.payload = done.events[:0], done.payload[:0]
	if cap(done.payload) > keptBytes {
		done.payload = nil
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	h.gap.end(&h.filling) // the one event by which a batch can be longer
	full, h.filling = h.filling, done
	return full, !h.closed
}

// waiting is the number of events that wait.
func (h *handover) waiting() int {
	h.mu.Lock()
	defer h.mu.Unlock()
	return len(h.filling.events)
}

// close says that there will be no more events. put must not be called again.
func (h *handover) close() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.closed = true
	h.wake()
}
