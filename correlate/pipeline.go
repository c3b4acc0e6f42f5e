package correlate

import (
	"cmp"
	"slices"
	"time"

	"github.com/xenserver/dtagent/probes/event"
)

// Bounds of a Pipeline's Sorter.
const (
	SortWindow = 100 * time.Millisecond // longest time by which the events of two CPUs can mix
	SortEvents = 8192
)

// Pipeline is an Engine behind a Sorter: what the agent runs, and what plays a
// recording back. What comes out depends on nothing but the calls of Add and
// Advance, their order included, and on Config.
//
// A Pipeline is used by one goroutine.
type Pipeline struct {
	engine *Engine
	sorter *Sorter
}

// NewPipeline returns a Pipeline.
func NewPipeline(c Config) *Pipeline {
	e := New(c)
	return &Pipeline{engine: e, sorter: NewSorter(SortWindow, SortEvents, e.Handle)}
}

// Add takes an event. It copies what it keeps of it.
func (p *Pipeline) Add(ev *event.Event) { p.sorter.Add(ev) }

// Advance tells the time, when all events up to now that will come soon have been
// added. Call it at least ten times a second.
func (p *Pipeline) Advance(now event.Time) {
	p.sorter.Advance(now)
	p.engine.Advance(now - event.Time(SortWindow))
}

// Drain emits everything, as at the end of a run.
func (p *Pipeline) Drain() {
	p.sorter.Drain()
	p.engine.Drain()
}

// Stats returns the counters.
func (p *Pipeline) Stats() (Stats, SorterStats) { return p.engine.Stats(), p.sorter.Stats() }

// Known tells, as events, what another Pipeline has to be given first to
// understand the events that come next: the connections that are open, and the
// events that wait in the Sorter. Work in progress is not among it. fn must not
// keep the event, nor call the Pipeline.
func (p *Pipeline) Known(fn func(*event.Event)) {
	p.engine.known(fn)
	p.sorter.waiting(fn)
}

// known tells of the connections, the least recently used first. No thread is said
// to have made them: what one works for now need not be what it connected for.
func (e *Engine) known(fn func(*event.Event)) {
	for c := e.conns.lru.head; c != nil; c = c.next {
		if c.how == 0 {
			continue // nothing was told of it but its data
		}
		fn(&event.Event{
			Kind: event.KindOpen, Component: c.component, TGID: c.id.TGID, Time: e.now,
			Conn: c.id, How: c.how, Listener: c.listener, Peer: c.peer, Ino: c.ino, PeerIno: c.peerIno, PeerTGID: c.peerTGID,
		})
	}
}

// waiting tells of the events that are held, in the order in which they came.
func (s *Sorter) waiting(fn func(*event.Event)) {
	all := slices.Clone(s.heap)
	slices.SortFunc(all, func(a, b *held) int { return cmp.Compare(a.seq, b.seq) })
	for _, h := range all {
		fn(&h.Event)
	}
}
