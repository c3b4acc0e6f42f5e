// Package processor decides which of the spans that an Observer asks for go to
// its endpoints: a chain of stages in the model of the OpenTelemetry SDK's span
// processors. In this order: head sampling by trace id, tail sampling by local
// tree, minimum duration, span names. A span that is filtered is counted by the
// stage that did it.
package processor

import (
	"sync"
	"time"

	"github.com/xenserver/dtagent/correlate"
)

// Pipeline is the chain of one Observer. All methods may be called by several
// goroutines at once.
type Pipeline struct {
	next func(*correlate.Span)

	mu    sync.Mutex
	c     Config
	stats Stats
}

// New returns a Pipeline that hands on to next what passes. next is called
// while the Pipeline is locked, so it sees the spans of a tree in order; it must
// not call the Pipeline, nor wait for anybody who does.
func New(c Config, next func(*correlate.Span)) *Pipeline {
	return &Pipeline{next: next, c: c}
}

// OnEnd takes a span. next is called 0 or more times before it returns.
func (p *Pipeline) OnEnd(sp *correlate.Span) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.stats.Received++
	p.stats.Passed++
	p.next(sp)
}

// Configure puts c in force. What is held stays held, or passes, as c says.
func (p *Pipeline) Configure(c Config) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.c = c
}

// Tick ends the holds that are over at now. It should be called twice a second.
func (p *Pipeline) Tick(now time.Time) {}

// ForceFlush judges all that is held now by what is known of it.
func (p *Pipeline) ForceFlush() {}

// Shutdown is ForceFlush, and from then on nothing is held: a span that still
// comes is judged at once.
func (p *Pipeline) Shutdown() {}

// Stats returns what has become of the spans so far.
func (p *Pipeline) Stats() Stats {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.stats
}
