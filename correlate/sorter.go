package correlate

import (
	"time"

	"github.com/xenserver/dtagent/probes/event"
)

// Sorter puts events in the order of their Time. Each CPU's events come in
// order, but those of several CPUs mix; a Sorter holds every event for a window
// and hands it on when no earlier one can come any more.
//
// A Sorter is used by one goroutine.
type Sorter struct {
	window event.Time
	max    int
	out    func(*event.Event)

	heap   []*held
	free   []*held
	seq    uint64
	newest event.Time // of the events added
	passed event.Time // of the last event handed on in order
	stats  SorterStats
}

// SorterStats are a Sorter's counters.
type SorterStats struct {
	Events uint64 `json:"events"`
	Late   uint64 `json:"late"`   // came after a later one was handed on; handed on at once
	Forced uint64 `json:"forced"` // handed on before the window was over, for want of room
	Held   int    `json:"held"`
}

// held is a copy of an event.
type held struct {
	event.Event
	seq  uint64
	head []byte
	tail []byte
}

// before is an order in which it does not matter when the events of a CPU came.
func (h *held) before(o *held) bool {
	switch {
	case h.Time != o.Time:
		return h.Time < o.Time
	case h.CPU != o.CPU:
		return h.CPU < o.CPU
	}
	return h.seq < o.seq
}

// NewSorter returns a Sorter that holds events for window, and at most max of
// them. out is called for each event, in order; it may use the event until it
// returns, and must not call the Sorter.
func NewSorter(window time.Duration, max int, out func(*event.Event)) *Sorter {
	return &Sorter{window: event.Time(window), max: max, out: out}
}

// Add takes an event. It copies it.
func (s *Sorter) Add(ev *event.Event) {
	s.stats.Events++
	if ev.Time < s.passed {
		s.stats.Late++
		s.out(ev)
		return
	}
	if len(s.heap) >= s.max {
		if len(s.heap) == 0 || ev.Time < s.heap[0].Time {
			s.stats.Forced++
			s.passed = ev.Time
			s.out(ev)
			return
		}
		s.stats.Forced++
		s.pop()
	}
	var h *held
	if n := len(s.free); n > 0 {
		h = s.free[n-1]
		s.free = s.free[:n-1]
	} else {
		h = new(held)
	}
	h.Event = *ev
	h.head = append(h.head[:0], ev.Head...)
	h.tail = append(h.tail[:0], ev.Tail...)
	h.Head, h.Tail = h.head, h.tail
	h.seq = s.seq
	s.seq++
	s.heap = append(s.heap, h)
	s.up(len(s.heap) - 1)
	if ev.Time > s.newest {
		s.newest = ev.Time
		s.Advance(ev.Time)
	}
}

// Advance hands on what is older than the window at now.
func (s *Sorter) Advance(now event.Time) {
	for len(s.heap) > 0 && s.heap[0].Time <= now-s.window {
		s.pop()
	}
}

// Drain hands on everything.
func (s *Sorter) Drain() {
	for len(s.heap) > 0 {
		s.pop()
	}
}

// Stats returns the counters.
func (s *Sorter) Stats() SorterStats {
	st := s.stats
	st.Held = len(s.heap)
	return st
}

func (s *Sorter) pop() {
	h := s.heap[0]
	last := len(s.heap) - 1
	s.heap[0] = s.heap[last]
	s.heap[last] = nil
	s.heap = s.heap[:last]
	s.down()
	s.passed = h.Time
	s.out(&h.Event)
	h.Event = event.Event{}
	s.free = append(s.free, h)
}

func (s *Sorter) up(i int) {
	for i > 0 {
		p := (i - 1) / 2
		if !s.heap[i].before(s.heap[p]) {
			return
		}
		s.heap[i], s.heap[p] = s.heap[p], s.heap[i]
		i = p
	}
}

func (s *Sorter) down() {
	for i := 0; ; {
		c := 2*i + 1
		if c >= len(s.heap) {
			return
		}
		if c+1 < len(s.heap) && s.heap[c+1].before(s.heap[c]) {
			c++
		}
		if !s.heap[c].before(s.heap[i]) {
			return
		}
		s.heap[i], s.heap[c] = s.heap[c], s.heap[i]
		i = c
	}
}
