package correlate

import (
	"bytes"

	"github.com/xenserver/dtagent/correlate/logline"
	"github.com/xenserver/dtagent/correlate/wire"
	"github.com/xenserver/dtagent/probes/event"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/trace"
)

// jobID is the key of a task of xenopsd. The numbers start at 0 in each of its
// processes.
type jobID struct {
	tgid uint32
	n    uint64
}

// job joins an operation to the RPC that asked for it. Either may be seen
// first: the answer that names the task, or the worker that starts it.
type job struct {
	answer   place
	task     wire.TaskID
	answered bool
	op       ref
	started  bool
}

func (e *Engine) dropJob(j *job) { e.release(&j.answer) }

// jobNumber reads the number of a task from an RPC's answer.
func jobNumber(b []byte) (uint64, bool) {
	if len(b) == 0 || len(b) > 18 {
		return 0, false
	}
	var n uint64
	for _, c := range b {
		if c < '0' || c > '9' {
			return 0, false
		}
		n = n*10 + uint64(c-'0')
	}
	return n, true
}

// push is an operation on its way to a worker.
type push struct {
	tgid  uint32
	hash  uint64
	rpc   ref
	place place // of the RPC
	task  wire.TaskID
	live  bool
	born  event.Time
	epoch uint32
}

// pushRing holds the operations in xenopsd's queues, oldest first.
type pushRing struct {
	ring  [1024]push
	first int
	n     int
}

func (r *pushRing) len() int { return r.n }

func (r *pushRing) at(i int) *push { return &r.ring[(r.first+i)%len(r.ring)] }

func (e *Engine) dropPush() {
	r := &e.pushes
	p := r.at(0)
	e.release(&p.place)
	*p = push{}
	r.first = (r.first + 1) % len(r.ring)
	r.n--
}

// trimPushes forgets those at the head that were popped, are too old, or of an
// older epoch.
func (e *Engine) trimPushes() {
	for r := &e.pushes; r.n > 0 && (!r.at(0).live || r.at(0).epoch != e.gaps.epoch || r.at(0).born+e.age < e.now); {
		e.dropPush()
	}
}

func (e *Engine) dropPushes(tgid uint32) {
	for i := range e.pushes.n {
		if p := e.pushes.at(i); p.tgid == tgid {
			e.release(&p.place)
			p.live = false
		}
	}
}

// opHash tells operations apart by the first bytes of their text: log lines are
// cut.
func opHash(op []byte) uint64 {
	h := uint64(14695981039346656037)
	for _, c := range op[:min(len(op), 256)] {
		h = (h ^ uint64(c)) * 1099511628211
	}
	return h
}

func (e *Engine) handleLog(ev *event.Event) {
	e.stats.Logs++
	var a *activity
	if ev.Component != event.Xenopsd {
		// all that is wanted is the task of a call, and what it works at
		a = e.threadOf(ev.TGID, ev.TID).top()
		if a == nil || a.kind != callActivity && a.kind != taskActivity {
			return
		}
		if a.task.Real() && !e.wantsTrace(a) && (a.objects == objectsOfSpan || !logline.NamesObjects(ev.Head)) {
			return
		}
	}
	l, ok := logline.Parse(ev.Head)
	if !ok {
		e.stats.UnreadLogs++
		return
	}
	if a == nil {
		e.xenopsdLine(ev, &l)
	} else if label, id := l.Task(); !id.IsZero() {
		if !a.task.Real() || e.wantsTrace(a) {
			e.noteTask(a, label, id)
			e.noteTrace(a, &l, label, id)
		}
		if ev.Component == event.Xapi {
			e.worksAtLogged(a, &l)
		}
	}
}

func (e *Engine) xenopsdLine(ev *event.Event, l *logline.Line) {
	n, ok := l.Anchor()
	if !ok {
		if bytes.HasPrefix(l.Message, []byte("TASK.signal ")) && bytes.Contains(l.Message, []byte(`"Pending"`)) {
			if a := e.threadOf(ev.TGID, ev.TID).top(); a != nil && a.kind == atomActivity {
				a.signal = ev.Time
			}
		}
		return
	}
	switch n.Kind {
	case logline.QueuePush:
		e.pushed(ev, &n)
	case logline.QueuePop:
		e.popped(ev, &n)
	case logline.TaskStarted:
		e.startOperation(ev, l, &n)
	case logline.Performing:
		e.startAtom(ev, &n)
	case logline.TaskCompleted:
		e.endOperation(ev, n.Xenops, false, nil)
	case logline.TaskFailed:
		e.endOperation(ev, n.Xenops, true, n.Reason)
	}
}

func (e *Engine) pushed(ev *event.Event, n *logline.Anchor) {
	r := &e.pushes
	e.trimPushes()
	if r.n == len(r.ring) {
		e.stats.PushesEvicted++
		e.dropPush()
	}
	p := r.at(r.n)
	*p = push{tgid: ev.TGID, hash: opHash(n.Operation), live: true, born: e.now, epoch: e.gaps.epoch}
	if a := e.threadOf(ev.TGID, ev.TID).top(); a != nil {
		p.rpc, p.place, p.task = a.ref(), e.placeOf(a), a.task
	}
	r.n++
}

func (e *Engine) popped(ev *event.Event, n *logline.Anchor) {
	th := e.useThread(ev.TGID, ev.TID)
	e.unwind(th, 0, ev.Time, endUnseen)
	e.release(&th.popped.place)
	th.popped = push{}
	hash := opHash(n.Operation)
	for i := range e.pushes.n {
		if p := e.pushes.at(i); p.live && p.tgid == ev.TGID && p.hash == hash && p.epoch == e.gaps.epoch {
			th.popped = *p
			*p = push{}
			break
		}
	}
	e.trimPushes()
}

// startOperation begins the span of a task of xenopsd on the thread that does
// it.
func (e *Engine) startOperation(ev *event.Event, l *logline.Line, n *logline.Anchor) {
	th := e.useThread(ev.TGID, ev.TID)
	id := jobID{ev.TGID, n.Xenops}
	parent, link := th.top(), LinkThread
	if parent == nil {
		if up, ok := logline.ParentTask(n.Tag); ok {
			if j := e.jobs.get(jobID{ev.TGID, up}); j != nil {
				if op := j.op.get(); op != nil && op.open {
					// the innermost open step of the task that waits for this one
					parent, link = e.fresh(op), LinkTask
				}
			}
		}
	}
	a := e.begin(operationActivity, ev.Component, ev.TGID, ev.Time, parent, link)
	if parent != nil && parent.kind == operationActivity {
		e.weaken(a) // its step may not have been seen
	}
	a.spanKind = trace.SpanKindInternal
	a.xenops = n.Xenops
	e.scratch, _ = logline.AppendName(e.scratch[:0], n.Operation)
	a.name = e.text(e.scratch, maxName)
	info := l.DebugInfo(&e.dec)
	a.task = n.Task
	a.attrs = append(a.attrs, attribute.Int64("dt.xenopsd.task.id", int64(n.Xenops)))
	if vm := logline.Object(n.Operation); len(vm) > 0 {
		a.attrs = append(a.attrs, attribute.String("dt.vm.uuid", e.text(vm, maxValue)))
	}
	a.at(ev.TGID, ev.TID)
	e.worksAt(a, logline.Object(n.Operation))
	a.context = info.Context
	a.tree.find().isOf(a.task)

	j := e.jobs.get(id)
	if j == nil || j.started {
		j = e.jobs.put(id, e.now)
	}
	j.op, j.started = a.ref(), true
	if parent != nil {
		if parent.kind == rpcActivity || parent.kind == callActivity {
			parent.xenops = n.Xenops + 1
		}
	} else {
		a.popped, th.popped.place = th.popped.place, place{}
		if a.popped.tree != nil && !sameTask(th.popped.task, a.task) {
			e.stats.Conflicts++
			e.release(&a.popped)
		}
		a.tree.root = a.ref()
	}
	e.enter(th, a)
	switch rpc := th.popped.rpc.get(); {
	case j.answered:
		e.joinJob(j, a)
	case a.popped.tree == nil:
	case rpc == nil || !rpc.open: // answered, and no task named
		e.join(a, a.popped, LinkQueue)
	default:
		rpc.worker = a.ref()
	}
	e.release(&th.popped.place)
	th.popped = push{}
}

// operationAt returns op's depth in the stack and that of the innermost
// activity above it that is its own.
func (th *thread) operationAt(op *activity) (at, innermost int) {
	for i := range th.n {
		if th.stack[i] == op {
			at = i
		}
	}
	innermost = at
	if at+1 < th.n && th.stack[at+1].kind == atomActivity {
		innermost = at + 1
	}
	return at, innermost
}

func sameTask(a, b wire.TaskID) bool { return a.IsZero() || b.IsZero() || a == b }

// unanswered says that RPC a was answered without the number of a task: if an
// operation of its is under way, it waited for that.
func (e *Engine) unanswered(a *activity) {
	if op := a.worker.get(); op != nil && op.popped.tree != nil {
		e.join(op, op.popped, LinkQueue)
	}
}

// answered says that RPC a was answered with the number of a task.
func (e *Engine) answered(a *activity, n uint64) {
	if a.xenops == n+1 {
		return // done already, on its own thread
	}
	id := jobID{a.tgid, n}
	j := e.jobs.get(id)
	if j == nil || j.answered {
		j = e.jobs.put(id, e.now)
	}
	j.answer, j.task, j.answered = e.placeOf(a), a.task, true
	if op := j.op.get(); op != nil {
		e.joinJob(j, op)
		if !op.open {
			e.jobs.del(id)
		}
	} else if j.started {
		e.jobs.del(id)
	}
}

func (e *Engine) joinJob(j *job, op *activity) {
	if op.parentID.IsValid() {
		return
	}
	if !sameTask(j.task, op.task) {
		e.stats.Conflicts++
		return
	}
	e.join(op, j.answer, LinkTask)
}

// settleOperation gives a the best parent that is known when no RPC's answer
// names it.
func (e *Engine) settleOperation(a *activity) {
	defer func() {
		if !a.open {
			e.jobs.del(jobID{a.tgid, a.xenops})
		}
	}()
	if a.popped.tree != nil && e.join(a, a.popped, LinkQueue) {
		return
	}
	e.weaken(a)
	if a.context.IsValid() {
		e.remote(a, a.context)
		return
	}
	e.joinTask(a)
}

func (e *Engine) startAtom(ev *event.Event, n *logline.Anchor) {
	th := e.threadOf(ev.TGID, ev.TID)
	if th == nil {
		e.stats.NoRequest++
		return
	}
	op, depth := th.operation()
	if op == nil {
		for a := th.top(); a != nil && a.kind == atomActivity; a = th.top() {
			e.finish(a, ev.Time, endUnseen) // its operation was evicted
		}
		e.stats.NoRequest++
		return
	}
	e.endAtoms(th, depth, ev.Time, false)
	a := e.begin(atomActivity, ev.Component, ev.TGID, ev.Time, op, LinkThread)
	a.spanKind = trace.SpanKindInternal
	e.scratch, _ = logline.AppendName(e.scratch[:0], n.Operation)
	a.name = e.text(e.scratch, maxName)
	if vm := logline.Object(n.Operation); len(vm) > 0 {
		a.attrs = append(a.attrs, attribute.String("dt.vm.uuid", e.text(vm, maxValue)))
	}
	a.at(ev.TGID, ev.TID)
	e.worksAt(a, logline.Object(n.Operation))
	a.task = op.task
	e.enter(th, a)
}

// endAtoms ends the steps above the operation at depth. A step that did not
// fail ended when its task last said how far it is.
func (e *Engine) endAtoms(th *thread, depth int, end event.Time, failed bool) {
	for th.n > depth+1 {
		a := th.stack[th.n-1]
		at, cause := end, ""
		switch {
		case a.kind != atomActivity:
			cause = endUnseen
		case !failed && a.signal != 0:
			at = a.signal
		case failed:
			a.err = "failed"
		}
		e.finish(a, at, cause)
	}
}

func (e *Engine) endOperation(ev *event.Event, n uint64, failed bool, reason []byte) {
	id := jobID{ev.TGID, n}
	j := e.jobs.get(id)
	if j == nil {
		e.stats.NoRequest++
		return
	}
	a := j.op.get()
	if a == nil || !a.open {
		return
	}
	if failed {
		a.err = "failed"
		if len(reason) > 0 {
			a.err = e.unique(reason, maxValue)
		}
	}
	if th := a.thread; th != nil {
		depth, _ := th.operationAt(a)
		e.endAtoms(th, depth, ev.Time, failed)
	}
	done := a.parentID.IsValid() || a.tree.find().fixed
	e.finish(a, ev.Time, "")
	if done || j.answered {
		e.jobs.del(id)
	}
}
