package correlate

import (
	"encoding/binary"

	"github.com/xenserver/dtagent/correlate/tracecontext"
	"github.com/xenserver/dtagent/correlate/wire"
	"github.com/xenserver/dtagent/probes/event"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/trace"
)

type activityKind uint8

const (
	callActivity      activityKind = iota // a request to a server's socket
	clientActivity                        // a request of xapi to another host
	taskActivity                          // the thread of an Async call
	sendActivity                          // a call through message-switch, at its caller
	rpcActivity                           // the same, at its server
	operationActivity                     // a task of xenopsd
	atomActivity                          // a step of an operation
	processActivity
	relayActivity // a call through message-switch, at the switch
	waitActivity  // a long wait of a thread
)

// activity is a span in the making.
type activity struct {
	kind      activityKind
	open      bool
	resident  bool // a process that stays when the work it was made for is done
	component event.Component
	gen       uint32 // counts the uses of this struct: see ref
	spanKind  trace.SpanKind
	service   string
	name      string

	tree     *tree
	spanID   trace.SpanID
	parentID trace.SpanID
	link     Link

	born       event.Time // when the engine made it
	start, end event.Time
	err        string
	incomplete string
	attrs      []attribute.KeyValue

	tgid   uint32
	task   wire.TaskID // XAPI's
	thread *thread     // on whose stack it is

	method  string               // call, send, RPC: without prefix
	prefix  wire.Prefix          // call
	cloned  bool                 // call: its task's thread was seen
	reply   event.Time           // call, client: end of the last piece of the reply
	message messageID            // RPC
	worker  ref                  // RPC: the operation that came out of the queue it had pushed it onto
	xenops  uint64               // operation: number of its task
	context tracecontext.Context // RPC, operation: what was sent along, used when no key says better
	native  tracecontext.Context // send, client: the toolstack's own span that the message named as its caller's
	parent  bool                 // others hang below it
	logged  bool                 // call, task: a line of its own was seen
	passed  bool                 // call: another process goes on with its socket
	popped  place                // operation: whose Queue.push its thread popped
	signal  event.Time           // atom: its task's last sign of progress
	program string               // process
	epoch   uint32               // process: in which its fork was seen
	also    event.Component      // process: that of its program, or of the one that starts programs for others
	maker   ref                  // process: what it was started for
	execed  bool                 // process: it has called exec itself
	tid     uint32               // send, client: of the thread that waits for the answer
	cpu     int64                // process: ns that all its threads were on a CPU, -1 if not known
	wait    event.Spent          // wait: its class

	clock   uint64              // number of the threadTime that before is of
	before  event.Times         // what its thread had spent when a began
	object  [objectsOfSpan]uuid // that it works at
	objects uint8

	waits     uint16 // spans of waits below it
	moreWaits uint32 // waits that have none

	prev, next *activity // all, oldest first; next is the free list, too
	doneNext   *activity // tree.done
}

func (a *activity) links() (prev, next **activity) { return &a.prev, &a.next }

// live tells that a has not been emitted.
func (a *activity) live() bool { return a.tree != nil }

// ref points at an activity without keeping it.
type ref struct {
	a   *activity
	gen uint32
}

func (a *activity) ref() ref { return ref{a, a.gen} }

// get returns the activity, nil when it has been emitted.
func (r ref) get() *activity {
	if r.a == nil || r.a.gen != r.gen {
		return nil
	}
	return r.a
}

type activityPool struct {
	live   list[activity, *activity]
	free   *activity
	byLink [len(links)]uint64
}

// begin makes an open activity that is the root of a tree of its own. With a
// parent it joins the parent's tree instead.
func (e *Engine) begin(kind activityKind, c event.Component, tgid uint32, start event.Time, parent *activity, link Link) *activity {
	if e.activities.live.len >= e.limits.Activities {
		e.stats.ActivitiesEvicted++
		old := e.activities.live.head
		if old == parent {
			old = old.next
		}
		if old != nil {
			e.evict(old, "evicted")
		}
		if parent != nil && !parent.live() {
			parent = nil
		}
	}
	a := e.activities.free
	if a == nil {
		a = &activity{attrs: make([]attribute.KeyValue, 0, 16)}
	} else {
		e.activities.free = a.next
		a.next = nil
	}
	a.kind, a.component, a.tgid = kind, c, tgid
	a.service = serviceOf(c)
	a.open, a.born, a.start, a.link = true, e.now, start, LinkNone
	a.epoch = e.gaps.epoch
	if e.gaps.until != 0 {
		a.incomplete = eventsLost
	}
	for !a.spanID.IsValid() {
		binary.BigEndian.PutUint64(a.spanID[:], e.cfg.Rand())
	}
	if parent != nil {
		a.tree, a.parentID, a.link = parent.tree, parent.spanID, link
		parent.parent = true
	} else {
		a.tree = e.newTree()
		a.tree.began = a.start
	}
	a.tree.refs++
	a.tree.find().open++
	e.activities.live.add(a)
	return a
}

// serviceOf is the service.name of a component's spans: what the toolstack
// itself gives them.
func serviceOf(c event.Component) string {
	if c == event.NoComponent {
		return "unknown"
	}
	return c.String()
}

// finish ends a. cause is why it is incomplete, "" if it is not.
func (e *Engine) finish(a *activity, end event.Time, cause string) {
	if !a.open {
		return
	}
	if th := a.thread; th != nil {
		if call := th.sending.get(); call != nil && call.kind == clientActivity {
			e.endSending(th, end)
		}
	}
	a.open = false
	a.end = max(end, a.start)
	if a.incomplete == "" {
		a.incomplete = cause
	}
	e.timed(a)
	if a.thread != nil {
		a.thread.remove(a)
	}
	if !a.task.IsZero() {
		a.attrs = append(a.attrs, attribute.String("xs.xapi.task.id", e.taskString(a.task)))
	}
	if a.kind == callActivity || a.kind == taskActivity {
		e.endTask(a)
	}
	if a.kind == processActivity {
		e.processEnded(a)
	}
	e.worked(a)
	t := a.tree.find()
	if !a.resident {
		t.open--
	}
	e.finished(a, t, true)
	if a.live() {
		e.maybeFix(a.tree.find())
	}
}

// timed says how the time of a, which has ended, was spent, and which long waits
// were part of it.
func (e *Engine) timed(a *activity) {
	tid := a.tgid
	switch {
	case a.kind == sendActivity || a.kind == clientActivity:
		e.callEnded(a)
		return
	case a.kind == processActivity:
	case a.thread != nil:
		tid = a.thread.tid
	default:
		return
	}
	tt := e.timeOf(a.tgid, tid)
	if tt != nil {
		e.takeWaits(tt, a)
	}
	if a.moreWaits > 0 {
		a.attrs = append(a.attrs, attribute.Int64("dt.wait.more", int64(a.moreWaits)))
	}
	split := tt != nil && a.timeSplit(tt)
	if a.kind == processActivity && a.cpu >= 0 {
		// the split is that of the first thread
		key := attribute.Key("dt.process.cpu_us")
		if !split {
			key = timeKeys[event.OnCPU]
		}
		a.attrs = append(a.attrs, attribute.KeyValue{Key: key, Value: attribute.Int64Value(a.cpu / 1000)})
	}
}

// finished emits a when its tree has an id; else it waits there. last is false
// when others follow at once.
func (e *Engine) finished(a *activity, t *tree, last bool) {
	a.doneNext = nil
	switch {
	case t.fixed:
		e.emit(a, last && t.open == 0)
	case t.done == nil:
		t.done, t.lastDone = a, a
	default:
		t.lastDone.doneNext = a
		t.lastDone = a
	}
}

// emit hands out a's span, the last of its tree or not, and forgets a.
func (e *Engine) emit(a *activity, last bool) {
	t := a.tree.find()
	if t.out {
		e.forget(a)
		return
	}
	if !a.parentID.IsValid() && a.kind != callActivity {
		e.weaken(a)
	}
	s := e.arena.span()
	*s = Span{
		TraceID: t.id, SpanID: a.spanID, ParentID: a.parentID, TraceState: t.state,
		Tree: t.number, Last: last,
		Component: a.component, Also: a.also, Service: a.service, Name: a.name, Kind: a.spanKind,
		Start: e.wall(t, a.start), Error: a.err, Link: a.link, Incomplete: a.incomplete, Wait: a.wait,
	}
	s.End = s.Start + max(int64(a.end-a.start), 0)
	e.underNative(a, s)
	s.Attributes = e.arena.attributes(len(a.attrs) + len(t.baggage))
	copy(s.Attributes[copy(s.Attributes, a.attrs):], t.baggage)
	e.stats.Spans++
	if s.Incomplete != "" {
		e.stats.Incomplete++
	}
	e.activities.byLink[linkIndex(s.Link)]++
	e.forget(a)
	e.cfg.Emit(s)
}

func (e *Engine) forget(a *activity) {
	e.release(&a.popped)
	if a.kind == waitActivity {
		e.waits--
	}
	e.activities.live.del(a)
	e.releaseTree(a.tree)
	clear(a.attrs)
	*a = activity{gen: a.gen + 1, attrs: a.attrs[:0], next: e.activities.free}
	e.activities.free = a
}

// evict emits a now, whatever it is waiting for.
func (e *Engine) evict(a *activity, cause string) {
	r := a.ref()
	if a.open {
		e.finish(a, e.now, cause)
	}
	for a = r.get(); a != nil; a = r.get() {
		e.settle(a.tree.find())
	}
}

// set adds an attribute that is not on a yet.
func (a *activity) set(kv attribute.KeyValue) {
	for i := range a.attrs {
		if a.attrs[i].Key == kv.Key {
			a.attrs[i] = kv
			return
		}
	}
	a.attrs = append(a.attrs, kv)
}

// at says where a ran.
func (a *activity) at(tgid, tid uint32) {
	a.attrs = append(a.attrs, attribute.Int64("process.pid", int64(tgid)), attribute.Int64("thread.id", int64(tid)))
}

// text returns b as a string of at most max bytes that is good to show.
// Strings that repeat are the same one.
func (e *Engine) text(b []byte, max int) string {
	return e.strings.String(e.clean(b, max))
}

// unique is text for strings that seldom repeat.
func (e *Engine) unique(b []byte, max int) string {
	return e.arena.string(e.clean(b, max))
}

// clean cuts b and replaces what is not printable ASCII: what the toolstack
// writes is that, and who sends other bytes must not reach a terminal with them.
func (e *Engine) clean(b []byte, max int) []byte {
	if len(b) > max {
		b = b[:max]
	}
	for i, c := range b {
		if c < 0x20 || c > 0x7e {
			e.scratch = append(e.scratch[:0], b...)
			for ; i < len(b); i++ {
				if c := e.scratch[i]; c < 0x20 || c > 0x7e {
					e.scratch[i] = '?'
				}
			}
			return e.scratch
		}
	}
	return b
}

func (e *Engine) taskString(id wire.TaskID) string { return e.arena.string(id[:]) }
