package agent

import (
	"sync/atomic"

	"github.com/xenserver/dtagent/probes/event"
)

const (
	handoverEvents = 8192     // events that wait between the probes' reader and the engine
	handoverBytes  = 16 << 20 // and what their heads and tails may hold together
	keptBuffer     = 4 << 10  // a larger buffer is not kept for the next event
)

// handover is the bounded queue between the goroutine that reads the probes
// and the one that runs the engine: neither waits for a lock of the other. When
// it is full new events are dropped and counted, since the reader must not
// stop: the kernel's buffer behind it would overflow.
type handover struct {
	free chan *slot // slots not in use
	full chan *slot // events in order; closed when there are no more

	bytes   atomic.Int64
	dropped atomic.Uint64
}

// slot holds a copy of an event whose payload is the slot's own.
type slot struct {
	ev  event.Event
	buf []byte
}

func newHandover() *handover {
	h := &handover{free: make(chan *slot, handoverEvents), full: make(chan *slot, handoverEvents)}
	slots := make([]slot, handoverEvents)
	for i := range slots {
		h.free <- &slots[i]
	}
	return h
}

// put copies ev into the queue. It never blocks and is for one goroutine.
func (h *handover) put(ev *event.Event) {
	n := len(ev.Head) + len(ev.Tail)
	if h.bytes.Load()+int64(n) > handoverBytes {
		h.dropped.Add(1)
		return
	}
	var s *slot
	select {
	case s = <-h.free:
	default:
		h.dropped.Add(1)
		return
	}
	h.bytes.Add(int64(n))
	s.ev = *ev
	s.buf = append(append(s.buf[:0], ev.Head...), ev.Tail...)
	if ev.Head != nil {
		s.ev.Head = s.buf[:len(ev.Head):len(ev.Head)]
	}
	if ev.Tail != nil {
		s.ev.Tail = s.buf[len(ev.Head):]
	}
	h.full <- s // has room for every slot
}

// done gives a slot back that came from full.
func (h *handover) done(s *slot) {
	h.bytes.Add(-int64(len(s.buf)))
	if cap(s.buf) > keptBuffer {
		s.buf = nil
	}
	s.ev = event.Event{}
	h.free <- s
}

// close says that there will be no more events. put must not be called again.
func (h *handover) close() { close(h.full) }
