package correlate

import (
	"encoding/binary"

	"github.com/xenserver/dtagent/correlate/tracecontext"
	"github.com/xenserver/dtagent/correlate/wire"
	"github.com/xenserver/dtagent/probes/event"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/trace"
)

// tree is a set of activities that are in one trace, joined by keys, whether
// the trace id is known yet or not.
//
// It starts without an id and waits: for a trace context in one of its
// messages, or, if its root may still find a parent, to become part of another
// tree. Its finished activities wait with it. Once the id is fixed it never
// changes, and activities are emitted as they finish.
type tree struct {
	number  uint64 // of those that have been made
	refs    int    // activities, places and trees that point here
	into    *tree  // has become part of that one
	id      trace.TraceID
	fixed   bool
	open    int         // activities that are not finished
	out     bool        // is left out: nothing of it is emitted
	task    wire.TaskID // XAPI's, as it became known first: gives the id when nothing better does
	root    ref         // may still find its parent until the deadline
	state   string
	baggage []attribute.KeyValue

	began event.Time // its first activity that was seen
	ahead int64      // of ktime, in ns, by the wall clock as it showed then
	timed bool       // ahead is known

	done, lastDone *activity // finished, waiting for the id
	deadline       event.Time
	prev, next     *tree
}

func (t *tree) links() (prev, next **tree) { return &t.prev, &t.next }

// treePool holds the trees that have no id yet, oldest first.
type treePool struct {
	waiting list[tree, *tree]
	free    *tree
	len     int
	made    uint64
}

func (e *Engine) newTree() *tree {
	t := e.trees.free
	if t == nil {
		t = new(tree)
	} else {
		e.trees.free = t.next
		t.next = nil
	}
	e.trees.len++
	e.trees.made++
	t.number = e.trees.made
	t.deadline = e.now + e.hold
	e.trees.waiting.add(t)
	return t
}

func (e *Engine) releaseTree(t *tree) {
	for t != nil {
		t.refs--
		if t.refs > 0 {
			return
		}
		into := t.into
		if into == nil && !t.fixed {
			e.trees.waiting.del(t)
		}
		*t = tree{next: e.trees.free}
		e.trees.free = t
		e.trees.len--
		t = into
	}
}

// find returns the tree that t is part of.
func (t *tree) find() *tree {
	for t.into != nil {
		t = t.into
	}
	return t
}

// isOf notes the XAPI task that the tree is work for.
func (t *tree) isOf(id wire.TaskID) {
	if t.task.IsZero() && id.Real() {
		t.task = id
	}
}

// fix gives the tree its id and emits what waited. If id is zero, it is that of
// the tree's task, the same on all hosts, or else a new one.
func (e *Engine) fix(t *tree, id trace.TraceID) {
	if t.fixed {
		return
	}
	if !id.IsValid() && !t.task.IsZero() {
		id = e.taskTrace(t.task)
	}
	for !id.IsValid() {
		binary.BigEndian.PutUint64(id[:8], e.cfg.Rand())
		binary.BigEndian.PutUint64(id[8:], e.cfg.Rand())
	}
	t.id, t.fixed = id, true
	t.root = ref{}
	e.trees.waiting.del(t)
	t.refs++ // emitting lets go of it
	for a := t.done; a != nil; {
		next := a.doneNext
		e.emit(a, t.open == 0 && next == nil)
		a = next
	}
	t.done, t.lastDone = nil, nil
	e.releaseTree(t)
}

// settle ends the waiting of a tree: its root takes the best parent that is
// known; if it finds none, the id is fixed.
func (e *Engine) settle(t *tree) {
	t.refs++ // emitting lets go of it
	if a := t.root.get(); a != nil {
		t.root = ref{}
		switch a.kind {
		case rpcActivity:
			e.settleRPC(a)
		case callActivity:
			e.settleCall(a)
		case relayActivity:
			e.settleRelay(a)
		case operationActivity:
			e.settleOperation(a)
		}
	}
	if t.into == nil {
		e.fix(t, trace.TraceID{})
	}
	e.releaseTree(t)
}

// maybeFix fixes the id of a tree to which nothing can be added any more.
func (e *Engine) maybeFix(t *tree) {
	if !t.fixed && t.open == 0 && t.root.get() == nil {
		e.fix(t, trace.TraceID{})
	}
}

// place is a span under which others can hang. It outlives the activity.
type place struct {
	tree *tree // nil: no place
	span trace.SpanID
}

// placeOf returns a's place. Who keeps it lets it go with release.
func (e *Engine) placeOf(a *activity) place {
	a.tree.refs++
	return place{a.tree, a.spanID}
}

func (e *Engine) release(p *place) {
	if p.tree != nil {
		e.releaseTree(p.tree)
		*p = place{}
	}
}

// join hangs a, the root of a tree of its own, under p. It is false, and
// changes nothing, when both trees have different ids already.
func (e *Engine) join(a *activity, p place, link Link) bool {
	if p.tree == nil || a.parentID.IsValid() {
		return false
	}
	c, t := a.tree.find(), p.tree.find()
	switch {
	case c == t:
		return false // would be its own ancestor
	case c.fixed && !(t.fixed && t.id == c.id):
		e.stats.Conflicts++
		return false
	case c.fixed && !a.live(): // emitted already
		return false
	}
	a.parentID, a.link = p.span, link
	if c.fixed {
		return true
	}
	c.root = ref{}
	e.trees.waiting.del(c)
	c.into = t
	t.refs++
	t.open += c.open
	t.isOf(c.task)
	done := c.done
	c.done, c.lastDone = nil, nil
	c.refs++ // emitting lets go of it
	for a := done; a != nil; {
		next := a.doneNext
		e.finished(a, t, next == nil)
		a = next
	}
	e.releaseTree(c)
	e.maybeFix(t)
	return true
}

// remote hangs a, the root of a tree without an id, under a span that is not
// ours.
func (e *Engine) remote(a *activity, c tracecontext.Context) {
	t := a.tree.find()
	if !c.IsValid() || t.fixed || a.parentID.IsValid() {
		return
	}
	a.parentID, a.link = c.SpanID, LinkTraceparent
	e.fix(t, c.TraceID)
}
