package tree

import (
	"cmp"
	"slices"
	"strings"
	"time"

	"github.com/xenserver/dtagent/cmd/dtagent/zipkin"
)

// Collector groups spans that arrive one by one as they finish into traces,
// and hands each on once nothing more is expected. It has no clock of its own
// and must be used by one goroutine.
type Collector struct {
	o      Options
	emit   func(*Trace)
	traces map[string]*pending
	spans  int
	recent map[string]time.Time // traces that were handed on
}

// Options of a Collector. Zero values mean the defaults named.
type Options struct {
	Quiet    time.Duration // after the last span of a trace whose root is there: 2s
	Patience time.Duration // the longest wait for a root or for the task of an Async call: 5m
	MaxSpans int           // kept in all; beyond it the trace that waits longest is handed on: 100,000
}

type pending struct {
	spans []zipkin.Span
	last  time.Time // when a span arrived last
}

// NewCollector returns a Collector that hands traces to emit.
func NewCollector(o Options, emit func(*Trace)) *Collector {
	if o.Quiet <= 0 {
		o.Quiet = 2 * time.Second
	}
	if o.Patience <= 0 {
		o.Patience = 5 * time.Minute
	}
	if o.MaxSpans <= 0 {
		o.MaxSpans = 100_000
	}
	return &Collector{o: o, emit: emit, traces: map[string]*pending{}, recent: map[string]time.Time{}}
}

// Add takes a span that arrived at now.
func (c *Collector) Add(now time.Time, s zipkin.Span) {
	p := c.traces[s.TraceID]
	if p == nil {
		p = &pending{}
		c.traces[s.TraceID] = p
	}
	p.spans = append(p.spans, s)
	p.last = now
	for c.spans++; c.spans > c.o.MaxSpans; {
		c.finish(now, c.oldest())
	}
}

// Advance hands on what is ready at now, what has waited longest first. Call it at
// least once a second.
func (c *Collector) Advance(now time.Time) {
	var ready []string
	for id, p := range c.traces {
		quiet := now.Sub(p.last)
		if quiet >= c.o.Patience || quiet >= c.o.Quiet && p.rooted() {
			ready = append(ready, id)
		}
	}
	slices.SortFunc(ready, c.older)
	for _, id := range ready {
		c.finish(now, id)
	}
	for id, at := range c.recent {
		if now.Sub(at) > c.o.Patience {
			delete(c.recent, id)
		}
	}
}

// Drain hands on everything.
func (c *Collector) Drain(now time.Time) {
	for len(c.traces) > 0 {
		c.finish(now, c.oldest())
	}
}

func (c *Collector) oldest() string {
	var oldest string
	for id := range c.traces {
		if oldest == "" || c.older(id, oldest) < 0 {
			oldest = id
		}
	}
	return oldest
}

// older compares by how long traces have waited.
func (c *Collector) older(a, b string) int {
	return cmp.Or(c.traces[a].last.Compare(c.traces[b].last), strings.Compare(a, b))
}

// maxRecent bounds the memory of traces that were handed on.
const maxRecent = 10_000

func (c *Collector) finish(now time.Time, id string) {
	p := c.traces[id]
	delete(c.traces, id)
	c.spans -= len(p.spans)
	for _, t := range Build(p.spans) {
		_, t.Continued = c.recent[id]
		c.emit(t)
	}
	if len(c.recent) < maxRecent {
		c.recent[id] = now
	}
}

// rooted tells whether the trace's outermost call is there, and, when that is
// an Async call, the task that goes on after its reply.
func (p *pending) rooted() bool {
	ids := make(map[string]bool, len(p.spans))
	parents := make(map[string]bool, len(p.spans)) // with the method of the child
	method := func(s *zipkin.Span) string { return strings.TrimPrefix(s.Name, "Async.") }
	for i := range p.spans {
		ids[p.spans[i].ID] = true
		parents[p.spans[i].ParentID+" "+method(&p.spans[i])] = true
	}
	for i := range p.spans {
		s := &p.spans[i]
		if s.ParentID != "" && (ids[s.ParentID] || s.Kind != "SERVER") {
			continue
		}
		if s.Kind == "SERVER" && strings.HasPrefix(s.Name, "Async.") && s.Error() == "" && !parents[s.ID+" "+method(s)] {
			continue
		}
		return true
	}
	return false
}
