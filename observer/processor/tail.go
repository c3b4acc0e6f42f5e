package processor

import (
	"container/list"
	"slices"
	"time"

	"github.com/xenserver/dtagent/correlate"
	"go.opentelemetry.io/otel/trace"
)

// grace is how long a finished tree is held for spans that come late.
const grace = time.Second

// limits bound what one Pipeline holds and remembers.
type limits struct {
	trees, spans, bytes int // held; beyond it the oldest tree is judged
	decisions           int // remembered for late spans; beyond it the least recently used goes
}

var defaultLimits = limits{trees: 4096, spans: 20_000, bytes: 16 << 20, decisions: 4096}

type treeKey struct {
	trace  trace.TraceID
	number uint64
}

// tree is what is known of a local tree.
type tree struct {
	key     treeKey
	verdict verdict
	cause   Cause // of filtered
	at      *list.Element

	start, end int64 // of all its spans, ns since 1970
	failed     bool  // a span of it

	// While it is held:
	spans []*correlate.Span // in the order in which they came
	bytes int
	since time.Time // when the first came
	whole bool      // its last span said that it was finished
	due   time.Time // whole: end of the grace
}

type verdict uint8

const (
	held verdict = iota
	kept
	filtered
)

// reason tells whether t is to be kept by what is known of it.
func (c *Config) reason(t *tree) bool {
	return c.KeepErrors && t.failed || c.KeepSlow > 0 && t.end-t.start >= int64(c.KeepSlow)
}

// slowAlready tells whether a tree that is not finished has taken too long for
// a fast one. That it is not finished is not enough: a daemon that was started on
// the way can run for as long as its guest. A span must still be open that others
// hang below.
func (c *Config) slowAlready(t *tree, now time.Time) bool {
	return c.KeepSlow > 0 && !t.whole && now.Sub(t.since) >= c.KeepSlow+SlowMargin && t.lacksParent()
}

// lacksParent tells whether the parent of a held span has not come. The parents
// of those that are linked by a trace context may be elsewhere, and do not
// count.
func (t *tree) lacksParent() bool {
	ids := make(map[trace.SpanID]struct{}, len(t.spans))
	for _, sp := range t.spans {
		ids[sp.SpanID] = struct{}{}
	}
	return slices.ContainsFunc(t.spans, func(sp *correlate.Span) bool {
		_, come := ids[sp.ParentID]
		return !come && sp.ParentID.IsValid() && sp.Link != correlate.LinkTraceparent
	})
}

// hold takes a span into its tree. A tree that is kept passes it on; one that
// was filtered, and by this span shows a reason to be kept, is kept from now on.
func (p *Pipeline) hold(sp *correlate.Span) {
	t := p.treeOf(sp)
	t.start, t.end = min(t.start, sp.Start), max(t.end, sp.End)
	t.failed = t.failed || sp.Error != ""
	switch {
	case t.verdict == held:
		size := sp.Size()
		t.spans = append(t.spans, sp)
		t.bytes += size
		p.stats.Held++
		p.stats.HeldBytes += size
		if t.whole = sp.Last; t.whole {
			t.due = p.clock().Add(grace)
		}
		switch {
		case p.c.reason(t):
			p.keep(t)
		case p.down:
			p.filter(t, HoldEnded)
		default:
			p.makeRoom()
		}
	case t.verdict == kept || p.c.reason(t):
		t.verdict = kept
		p.judged.MoveToBack(t.at)
		p.finish(sp)
	default:
		p.judged.MoveToBack(t.at)
		p.stats.Filtered[t.cause]++
	}
}

// treeOf returns the tree of sp, a new one that is held if it is not known.
func (p *Pipeline) treeOf(sp *correlate.Span) *tree {
	k := treeKey{sp.TraceID, sp.Tree}
	t := p.trees[k]
	if t == nil {
		t = &tree{key: k, start: sp.Start, end: sp.End, since: p.clock()}
		t.at = p.held.PushBack(t)
		p.trees[k] = t
	}
	return t
}

// makeRoom judges the oldest trees until what is held is within the limits.
func (p *Pipeline) makeRoom() {
	for p.held.Len() > p.limits.trees || p.stats.Held > uint64(p.limits.spans) || p.stats.HeldBytes > p.limits.bytes {
		p.filter(p.held.Front().Value.(*tree), HoldOverflow)
	}
}

// keep passes on what is held of t.
func (p *Pipeline) keep(t *tree) {
	for _, sp := range p.judge(t, kept) {
		p.finish(sp)
	}
}

// filter filters what is held of t. A tree that is whole was judged in time,
// whatever else the occasion was.
func (p *Pipeline) filter(t *tree, c Cause) {
	if t.whole {
		c = NotKept
	}
	t.cause = c
	p.stats.Filtered[c] += uint64(len(p.judge(t, filtered)))
}

// judge ends the holding of t, remembers v and returns what was held.
func (p *Pipeline) judge(t *tree, v verdict) []*correlate.Span {
	p.held.Remove(t.at)
	p.stats.Held -= uint64(len(t.spans))
	p.stats.HeldBytes -= t.bytes
	spans := t.spans
	t.verdict, t.spans, t.bytes = v, nil, 0
	t.at = p.judged.PushBack(t)
	for p.judged.Len() > p.limits.decisions {
		delete(p.trees, p.judged.Remove(p.judged.Front()).(*tree).key)
		p.stats.Forgotten++
	}
	return spans
}

// endHolds judges the trees whose time is over.
func (p *Pipeline) endHolds(now time.Time) {
	limit := p.c.hold()
	for t := range p.eachHeld {
		switch {
		case t.whole && !now.Before(t.due):
			p.filter(t, NotKept)
		case p.c.slowAlready(t, now):
			p.keep(t)
		case now.Sub(t.since) >= limit:
			p.filter(t, HoldEnded)
		}
	}
}

// flush judges all trees by what is known of them.
func (p *Pipeline) flush() {
	now := p.clock()
	for t := range p.eachHeld {
		if p.c.slowAlready(t, now) {
			p.keep(t)
		} else {
			p.filter(t, HoldEnded)
		}
	}
}

// rejudge puts a new configuration in force for what is held.
func (p *Pipeline) rejudge() {
	for t := range p.eachHeld {
		if !p.c.tail() || p.c.reason(t) {
			p.keep(t)
		}
	}
	if !p.c.tail() {
		p.judged.Init()
		clear(p.trees)
	}
}

// eachHeld yields the trees that are held, oldest first. The body may judge
// the one it has.
func (p *Pipeline) eachHeld(yield func(*tree) bool) {
	for e := p.held.Front(); e != nil; {
		next := e.Next()
		if !yield(e.Value.(*tree)) {
			return
		}
		e = next
	}
}
