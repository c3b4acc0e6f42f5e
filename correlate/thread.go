package correlate

import (
	"github.com/xenserver/dtagent/correlate/wire"
	"github.com/xenserver/dtagent/probes/event"
	"go.opentelemetry.io/otel/trace"
)

// thread is the thread key: the activities that run on one kernel thread,
// innermost last. It goes with the thread, and when its tid turns up as that of
// a new one.
type thread struct {
	tid, tgid  uint32
	stack      [8]*activity
	n          int
	stale      int     // so many at the bottom of the stack are of an older epoch: see gaps
	epoch      uint32  // of all that is said here beside these
	deliveries [32]ref // messages read for which a thread is still to be made, in order
	first, due int
	sending    ref  // the last call through message-switch
	popped     push // what xenopsd's worker took last from its queue
	prev, next *thread
}

func (th *thread) links() (prev, next **thread) { return &th.prev, &th.next }

type threadTable struct {
	byTID map[uint32]*thread
	lru   list[thread, *thread]
	free  *thread
}

func (t *threadTable) init() { t.byTID = make(map[uint32]*thread) }

// threadOf returns the thread, nil when nothing is known of it.
func (e *Engine) threadOf(tgid, tid uint32) *thread {
	if th := e.threads.byTID[tid]; th != nil && th.tgid == tgid {
		e.threads.lru.moveToEnd(th)
		e.refresh(th)
		return th
	}
	return nil
}

// useThread returns the thread, a new one when nothing is known of it.
func (e *Engine) useThread(tgid, tid uint32) *thread {
	if th := e.threadOf(tgid, tid); th != nil {
		return th
	}
	e.dropThread(tid, e.now, endUnseen)
	if e.threads.lru.len >= e.limits.Threads {
		e.stats.ThreadsEvicted++
		e.dropThread(e.threads.lru.head.tid, e.now, "thread evicted")
	}
	th := e.threads.free
	if th == nil {
		th = new(thread)
	} else {
		e.threads.free = th.next
		th.next = nil
	}
	th.tid, th.tgid, th.epoch = tid, tgid, e.gaps.epoch
	e.threads.byTID[tid] = th
	e.threads.lru.add(th)
	return th
}

const (
	endUnseen   = "its end was not seen"
	threadEnded = "its thread ended"
)

// dropThread forgets the thread. What still runs on it ends at end; cause is
// why, "" when the thread itself ended.
func (e *Engine) dropThread(tid uint32, end event.Time, cause string) {
	th := e.threads.byTID[tid]
	if th == nil {
		return
	}
	e.endSending(th, end)
	e.unwind(th, 0, end, cause)
	e.dropDeliveries(th)
	e.release(&th.popped.place)
	delete(e.threads.byTID, tid)
	e.threads.lru.del(th)
	*th = thread{next: e.threads.free}
	e.threads.free = th
}

// unwind ends what runs on th beyond the first n activities.
func (e *Engine) unwind(th *thread, n int, end event.Time, cause string) {
	for th.n > n {
		a := th.stack[th.n-1]
		switch {
		case cause != "":
			e.finish(a, end, cause)
		case a.kind == callActivity:
			e.endCall(a, threadEnded)
		case a.kind == taskActivity:
			e.finish(a, end, "")
		default:
			e.finish(a, end, threadEnded)
		}
	}
}

// push puts a on th, as its innermost activity.
func (th *thread) push(a *activity) {
	if th.n < len(th.stack) {
		th.stack[th.n] = a
		th.n++
		a.thread = th
	}
}

func (th *thread) remove(a *activity) {
	a.thread = nil
	for i := range th.n {
		if th.stack[i] == a {
			copy(th.stack[i:], th.stack[i+1:th.n])
			th.n--
			th.stack[th.n] = nil
			if i < th.stale {
				th.stale--
			}
			return
		}
	}
}

// top returns the innermost activity, nil when there is none.
func (th *thread) top() *activity {
	if th == nil || th.n <= th.stale {
		return nil
	}
	return th.stack[th.n-1]
}

// operation returns the innermost operation of th and its depth.
func (th *thread) operation() (a *activity, depth int) {
	for i := th.n - 1; i >= th.stale; i-- {
		if th.stack[i].kind == operationActivity {
			return th.stack[i], i
		}
	}
	return nil, -1
}

// current returns the innermost activity for which a thread works: its own, or
// the process it belongs to when that is an activity.
func (e *Engine) current(tgid, tid uint32) *activity {
	if a := e.threadOf(tgid, tid).top(); a != nil {
		return a
	}
	if a := e.processes.byTGID[tgid]; a != nil && a.epoch == e.gaps.epoch {
		return a
	}
	return nil
}

// deliver notes that the next thread that th makes is for a.
func (e *Engine) deliver(th *thread, a *activity) {
	if th.due == len(th.deliveries) {
		e.stats.DeliveriesDropped++
		return
	}
	th.deliveries[(th.first+th.due)%len(th.deliveries)] = a.ref()
	th.due++
}

func (th *thread) nextDelivery() (ref, bool) {
	if th.due == 0 {
		return ref{}, false
	}
	r := th.deliveries[th.first]
	th.first = (th.first + 1) % len(th.deliveries)
	th.due--
	return r, true
}

func (e *Engine) dropDeliveries(th *thread) {
	for th.due > 0 {
		if r, _ := th.nextDelivery(); r.get() != nil {
			e.stats.DeliveriesDropped++
		}
	}
}

func (e *Engine) handleFork(ev *event.Event) {
	e.dropThread(ev.ChildTID, ev.Time, endUnseen)
	e.dropTime(ev.ChildTID)
	if ev.Flags&event.FlagThread == 0 {
		e.processForked(ev)
		return
	}
	th := e.threadOf(ev.TGID, ev.TID)
	if th == nil {
		return
	}
	if r, ok := th.nextDelivery(); ok {
		if a := r.get(); a != nil && a.open && a.thread == nil {
			e.enter(e.useThread(ev.TGID, ev.ChildTID), a)
			a.set(threadID(ev.ChildTID))
		}
		return
	}
	if a := th.top(); a != nil && a.kind == callActivity && a.prefix != wire.NoPrefix && !a.cloned {
		a.cloned = true
		t := e.begin(taskActivity, a.component, ev.TGID, ev.Time, a, LinkClone)
		t.name, t.method, t.prefix, t.spanKind = a.method, a.method, a.prefix, trace.SpanKindInternal
		t.at(ev.TGID, ev.ChildTID)
		e.enter(e.useThread(ev.TGID, ev.ChildTID), t)
	}
}

func (e *Engine) handleExit(ev *event.Event) {
	if th := e.threads.byTID[ev.TID]; th != nil && th.tgid == ev.TGID {
		e.dropThread(ev.TID, ev.Time, "")
	}
	if ev.Flags&event.FlagLeader != 0 {
		e.processExited(ev)
		e.dropTimes(ev.TGID)
	}
	if tt := e.timeOf(ev.TGID, ev.TID); tt != nil {
		e.dropTime(ev.TID)
	}
}
