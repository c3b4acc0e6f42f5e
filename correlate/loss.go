package correlate

import (
	"time"

	"github.com/xenserver/dtagent/correlate/tracecontext"
	"github.com/xenserver/dtagent/correlate/wire"
	"github.com/xenserver/dtagent/probes/event"
)

// What a lost event takes with it.
//
// Some keys are good whatever was lost, for an event that uses one names all of
// it: message numbers, tasks of XAPI and of xenopsd, trace contexts, and which
// open socket an event is of, since the kernel side tells sockets apart. Others
// are good only as long as every event is seen: what a thread works for (the end of
// that work, or of the thread, may be what was lost), for whom the next thread of
// a listener is, what a worker took from its queue, where in a message a
// connection is, which number a message got, how often a call between hosts looked
// the same. A link made by one of these across a gap can be a wrong one, and no
// parent is better than that.
//
// So there are epochs: each gap begins one. What an event tells belongs to its
// epoch, and keys of the second kind that are of an older one are not used any
// more; they only serve to end what was under way. A gap of which no more is known
// than from when to when it was begins an epoch with every event in it: there, a key
// of the second kind that an event makes serves that event alone.
//
// All that is open in a gap is Incomplete, and so is what finds no parent, or one
// by a weaker key, soon after one.

// eventsLost is why an activity is incomplete.
const eventsLost = "events lost"

const (
	// lossShadow is how long after a gap it may be what kept a parent from being
	// found: longer than a message waits in its queue.
	lossShadow = event.Time(time.Minute)
	// hopShadow is how long calls between hosts are not told apart by how many there
	// were alike: longer than one task repeats a call.
	hopShadow = event.Time(10 * time.Minute)
)

// gaps is what the Engine knows of lost events.
type gaps struct {
	epoch uint32
	until event.Time // end of the gap that is going on, 0 if none is
	any   bool
	last  event.Time // end of the latest gap
}

// handleLost begins a gap: from ev.First to ev.Last, or at ev.Time if they are not
// told, events may be missing. It comes before the events that were made later.
func (e *Engine) handleLost(ev *event.Event) {
	e.stats.EventsLost += ev.Count
	g := &e.gaps
	g.epoch++
	g.any = true
	goesOn := g.until != 0 // then what is open has been touched already
	g.until = max(g.until, ev.Last, ev.Time)
	g.last = max(g.last, g.until)
	for a := e.activities.live.head; a != nil && !goesOn; a = a.next {
		if a.open {
			e.touch(a)
		}
	}
}

// beginEpoch is called before each event that may be part of a gap or the first
// after it.
func (e *Engine) beginEpoch(ev *event.Event) {
	g := &e.gaps
	g.epoch++
	if ev.Time > g.until {
		g.until = 0
	}
}

// touch says that events of a may be missing.
func (e *Engine) touch(a *activity) {
	if a.incomplete == "" {
		a.incomplete = eventsLost
	}
}

// weaken marks a, which got no parent or one by a weaker key than it should have,
// when a gap may be the reason.
func (e *Engine) weaken(a *activity) {
	if e.gaps.any && a.start < e.gaps.last+lossShadow {
		e.touch(a)
	}
}

// refresh makes a thread's state of this epoch: what it has on its stack is only
// there to be ended.
func (e *Engine) refresh(th *thread) {
	if th.epoch == e.gaps.epoch {
		return
	}
	th.epoch = e.gaps.epoch
	th.stale = th.n
	e.dropDeliveries(th)
	e.release(&th.popped.place)
	th.popped = push{}
}

// fresh returns what op does at present on its thread: its innermost step, or op
// itself when that is not sure.
func (e *Engine) fresh(op *activity) *activity {
	th := op.thread
	if th == nil || th.epoch != e.gaps.epoch {
		return op
	}
	at, innermost := th.operationAt(op)
	if at < th.stale {
		return op
	}
	return th.stack[innermost]
}

// resync makes a connection's state of this epoch: where in a message it is is
// told by the next that begins, and what was under way is only there to be ended.
func (e *Engine) resync(c *conn) {
	if c.epoch == e.gaps.epoch {
		return
	}
	c.epoch = e.gaps.epoch
	c.unsure = c.unsure || !c.read
	e.dropBody(c)
	for i := range c.side {
		s := &c.side[i]
		s.reader.Lost()
		s.begun, s.busy, s.skip = false, false, true
	}
	x := &c.exchange
	if a := x.send.get(); a != nil && !x.answered {
		e.finish(a, e.now, eventsLost)
	}
	if x.action == wire.Transfer {
		// its answer says of itself what it is
		*x = exchange{action: wire.Transfer, n: unknownNumber, tid: x.tid}
	} else {
		*x = exchange{}
	}
	c.hop, c.outgoing = hop{}, outgoing{}
	a := c.call.get()
	if a != nil && a.kind == relayActivity {
		e.finish(a, e.now, eventsLost)
		a = nil
	}
	if a == nil {
		c.call = ref{}
	}
	c.doubt = a != nil
}

// alike counts the calls between hosts that look the same.
type alike struct {
	n      uint32
	unsure bool       // one may have been missed
	last   event.Time // of the latest
}

// another returns how many there were before, and whether that is sure.
func (a *alike) another(g *gaps, now event.Time) (before uint32, sure bool) {
	if g.any && (now < g.last+hopShadow || a.n > 0 && a.last <= g.last) {
		a.unsure = true
	}
	a.last = now
	a.n++
	return a.n - 1, !a.unsure
}

// adopt gives a call of a thread that is not known to work for anything the best
// parent that it names itself: what is done for its task, if that is part of the
// trace that it says it is in, else the span of XAPI's own.
func (e *Engine) adopt(a *activity, c tracecontext.Context) {
	e.weaken(a)
	if p := e.tasks.get(a.task); p != nil && a.task.Real() {
		if t := p.place.tree.find(); !c.IsValid() || !t.fixed || t.id == c.TraceID {
			if e.join(a, p.place, LinkTask) && c.IsValid() {
				e.fix(a.tree.find(), c.TraceID)
			}
		}
	}
	e.remote(a, c)
}
