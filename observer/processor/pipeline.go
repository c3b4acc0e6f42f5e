// Package processor decides which of the spans that an Observer asks for go to
// its endpoints: a chain of stages in the model of the OpenTelemetry SDK's span
// processors. In this order: head sampling by trace id, waits, tail sampling by
// local tree, minimum duration, span names. A span that is filtered is counted by the
// stage that did it.
package processor

import (
	"container/list"
	"sync"
	"time"

	"github.com/xenserver/dtagent/correlate"
	"github.com/xenserver/dtagent/observer/glob"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
)

// Pipeline is the chain of one Observer. All methods may be called by several
// goroutines at once.
type Pipeline struct {
	next   func(*correlate.Span)
	clock  func() time.Time
	limits limits

	mu    sync.Mutex
	c     Config
	head  sdktrace.Sampler // nil: takes all
	drop  glob.Patterns
	down  bool // after Shutdown
	stats Stats

	trees  map[treeKey]*tree // of both lists
	held   list.List         // of *tree, not judged yet; the one whose first span came first is first
	judged list.List         // of *tree, least recently used first
}

// New returns a Pipeline that hands on to next what passes. next is called
// while the Pipeline is locked, so it sees the spans of a tree in order; it must
// not call the Pipeline, nor wait for anybody who does.
func New(c Config, next func(*correlate.Span)) *Pipeline {
	p := &Pipeline{next: next, clock: time.Now, limits: defaultLimits, trees: map[treeKey]*tree{}}
	p.use(c)
	return p
}

// OnEnd takes a span. next is called 0 or more times before it returns. Without
// tail sampling it does not allocate.
func (p *Pipeline) OnEnd(sp *correlate.Span) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.stats.Received++
	switch {
	case !p.sampled(sp):
		p.stats.Filtered[SampledOut]++
	case p.isUnwantedWait(sp):
		p.stats.Filtered[UnwantedWait]++
	case p.c.tail():
		p.hold(sp)
	default:
		p.finish(sp)
	}
}

// finish takes a span through the stages after tail sampling.
func (p *Pipeline) finish(sp *correlate.Span) {
	switch {
	case p.tooShort(sp):
		p.stats.Filtered[TooShort]++
	case p.dropped(sp):
		p.stats.Filtered[NameDropped]++
	default:
		p.stats.Passed++
		p.next(sp)
	}
}

// Configure puts c in force. What is held is judged as c says: without tail
// sampling it passes at once. Head sampling decides about new spans only.
func (p *Pipeline) Configure(c Config) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.use(c)
	p.rejudge()
}

func (p *Pipeline) use(c Config) {
	p.c, p.head, p.drop = c, c.sampler(), glob.ParseAll(c.Drop)
}

// Tick ends the holds that are over at now. It should be called twice a second.
func (p *Pipeline) Tick(now time.Time) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.endHolds(now)
}

// ForceFlush judges all that is held now by what is known of it.
func (p *Pipeline) ForceFlush() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.flush()
}

// Shutdown is ForceFlush, and from then on nothing is held: a span that still
// comes is judged at once, by what is known of its tree.
func (p *Pipeline) Shutdown() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.down = true
	p.flush()
}

// Stats returns what has become of the spans so far.
func (p *Pipeline) Stats() Stats {
	p.mu.Lock()
	defer p.mu.Unlock()
	s := p.stats
	s.Trees = p.held.Len()
	return s
}
