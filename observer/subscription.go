package observer

import (
	"slices"
	"time"

	"github.com/xenserver/dtagent/correlate"
	"github.com/xenserver/dtagent/observer/export"
	"github.com/xenserver/dtagent/observer/processor"
	"github.com/xenserver/dtagent/probes/event"
	"go.opentelemetry.io/otel/attribute"
)

// subscription is one Observer's: which spans it gets, through processors of
// its own, to which endpoints.
//
// A span is known only some time after it ended, while its trace is being put
// together. So what the Observer gave up, components, endpoints or everything, it
// still gets for Limits.Linger if it ended before: a change loses no span in
// flight.
type subscription struct {
	uuid     string
	pipeline *processor.Pipeline

	// What follows is changed under Set.mu held for writing.
	tags     []attribute.KeyValue
	size     int // bytes of tags, an estimate
	edit     *export.Edit
	requests Requests
	native   bool // spans hang under the toolstack's own
	claims   []claim
	outlets  []outlet
}

// claim is to the spans of some components.
type claim struct {
	components event.Components
	before     time.Time // zero: all of them; else those that ended by then
}

// outlet is the way to one endpoint.
type outlet struct {
	pipe   *pipe
	before time.Time // as in claim
}

func newSubscription(uuid string, c processor.Config) *subscription {
	s := &subscription{uuid: uuid}
	s.pipeline = processor.New(c, s.pass)
	return s
}

// wants tells whether the Observer gets sp.
func (s *subscription) wants(sp *correlate.Span) bool {
	for i := range s.claims {
		c := &s.claims[i]
		if (c.components.Has(sp.Component) || c.components.Has(sp.Also)) && ended(sp, c.before) {
			return true
		}
	}
	return false
}

// pass hands a span that came through the processors to the endpoints. Set.mu
// is held for reading, or nothing changes any more.
func (s *subscription) pass(sp *correlate.Span) {
	size := s.size + sp.Size()
	for i := range s.outlets {
		if o := &s.outlets[i]; ended(sp, o.before) {
			o.pipe.push(export.Record{Span: sp, Attributes: s.tags, Edit: s.edit, UnderNative: s.native}, size)
		}
	}
}

func ended(sp *correlate.Span, by time.Time) bool { return by.IsZero() || sp.End <= by.UnixNano() }

// claimed returns the claims after a change to want at now.
func (s *subscription) claimed(want event.Components, now time.Time) (out []claim) {
	if want != 0 {
		out = append(out, claim{components: want})
	}
	for _, c := range s.claims {
		if c.before.IsZero() {
			c.before = now
		}
		if c.components &^= want; c.components != 0 {
			out = append(out, c)
		}
	}
	return out
}

// connected returns the outlets after a change to pipes at now. Nothing more goes
// to a pipe whose place another takes: that would be twice to one sink.
func (s *subscription) connected(pipes []*pipe, now time.Time) (out []outlet) {
	for _, p := range pipes {
		out = append(out, outlet{pipe: p})
	}
	for _, o := range s.outlets {
		if slices.ContainsFunc(pipes, func(p *pipe) bool { return p.sink == o.pipe.sink }) {
			continue
		}
		if o.before.IsZero() {
			o.before = now
		}
		out = append(out, o)
	}
	return out
}

// over tells whether what was given up at before has lingered long enough.
func (s *Set) over(before, now time.Time) bool {
	return !before.IsZero() && now.Sub(before) >= s.o.Limits.Linger
}

// endLate ends what has lingered, lets the pipes drain to which nothing leads
// any more, and keeps their number within bounds. s.apply is held.
func (s *Set) endLate(now time.Time) {
	for _, sub := range s.subs {
		if !slices.ContainsFunc(sub.claims, func(c claim) bool { return !s.over(c.before, now) }) {
			s.mu.RLock()
			sub.pipeline.Shutdown() // while it still has its endpoints
			s.mu.RUnlock()
		}
	}
	s.yield()
	surplus := s.leaving[:max(len(s.leaving)-maxLeaving, 0)]
	s.mu.Lock()
	for _, sub := range s.subs {
		sub.claims = slices.DeleteFunc(sub.claims, func(c claim) bool { return s.over(c.before, now) })
		sub.outlets = slices.DeleteFunc(sub.outlets, func(o outlet) bool {
			return s.over(o.before, now) || slices.Contains(surplus, o.pipe)
		})
	}
	s.subs = slices.DeleteFunc(s.subs, func(sub *subscription) bool { return len(sub.claims) == 0 })
	s.mu.Unlock()

	for _, p := range s.leaving {
		if !slices.ContainsFunc(s.subs, func(sub *subscription) bool { return sub.leadsTo(p) }) {
			p.drain(s.o.Limits.DrainTimeout)
		}
	}
	for _, p := range surplus {
		p.expire()
	}
	s.sweep()
}

// yield ends the pipes given up that have the queue on disk of one in use.
func (s *Set) yield() {
	if len(s.leaving) == 0 {
		return
	}
	used := map[string]bool{}
	for _, p := range s.pipes {
		used[p.sink] = true
	}
	for _, p := range s.leaving {
		if used[p.sink] && (p.isHolder() || !p.isOpen()) {
			p.yield()
		}
	}
}

func (s *subscription) leadsTo(p *pipe) bool {
	return slices.ContainsFunc(s.outlets, func(o outlet) bool { return o.pipe == p })
}
