package correlate

import (
	"github.com/xenserver/dtagent/probes/event"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/trace"
)

// A long wait is a span below the innermost activity of its thread that was
// there for the whole of it. Which that is shows late, for the same reason as with
// time splits (spent.go): a wait is pending until an activity of its thread that
// encloses it ends, and is taken by the first that does, the innermost. Each wait
// becomes one of
//
//	a span
//	answered  waited for the answer to a call that has a span of its own
//	idle      of a thread that worked for nobody: for its next request, say
//	dropped   its activity has enough of them, or there are too many in all
//
// and is counted as that.

const (
	waitsKept    = 16  // pending waits of one thread; the oldest is decided early
	waitsPerSpan = 128 // wait spans of one activity
)

// longWait is a wait that is no part of an activity yet.
type longWait struct {
	first, last event.Time
	queued      int64 // ns for a CPU, of that time
	detail      uint64
	syscall     int32
	class       event.Spent
}

// pendingWaits are the long waits of a thread, oldest first, and its last call
// that has a span of its own and has ended.
type pendingWaits struct {
	waits              [waitsKept]longWait
	oldest, waiting    int
	asked, wasAnswered event.Time
}

func (p *pendingWaits) at(i int) *longWait { return &p.waits[(p.oldest+i)%waitsKept] }

// take removes the i-th wait.
func (p *pendingWaits) take(i int) longWait {
	w := *p.at(i)
	for ; i > 0; i-- {
		*p.at(i) = *p.at(i - 1)
	}
	p.oldest = (p.oldest + 1) % waitsKept
	p.waiting--
	return w
}

// WaitStats say what became of the long waits that were told.
type WaitStats struct {
	Spans    uint64 `json:"spans"`
	Idle     uint64 `json:"idle"`     // of threads that worked for nobody
	Answered uint64 `json:"answered"` // for the answers to calls that have spans of their own
	Dropped  uint64 `json:"dropped"`  // too many of one span, or in all, or told in a way that cannot be
}

// waited takes the long wait that ev tells and that is stretch s.
func (e *Engine) waited(tt *threadTime, ev *event.Event, s *stretch) {
	w := longWait{s.first, s.last, s.of(event.RunQueue), ev.Detail, ev.Syscall, ev.Wait}
	if e.isAnswer(tt, &w) {
		e.stats.Waits.Answered++
		return
	}
	if tt.waiting == waitsKept {
		e.decide(tt)
	}
	*tt.at(tt.waiting) = w
	tt.waiting++
}

// decide says what the oldest pending wait is while nothing that encloses it has
// ended: a part of the innermost activity that had begun before it.
func (e *Engine) decide(tt *threadTime) {
	w := tt.take(0)
	if e.isAnswer(tt, &w) {
		e.stats.Waits.Answered++
		return
	}
	if th := e.threads.byTID[tt.tid]; th != nil && th.tgid == tt.tgid {
		for i := th.n - 1; i >= 0; i-- {
			if a := th.stack[i]; a.start <= w.first {
				if a.reply != 0 && a.reply <= w.first {
					break // a late record may still say that it ended before
				}
				e.waitSpan(tt, a, &w)
				return
			}
		}
	}
	if tt.tid == tt.tgid {
		if a := e.processes.byTGID[tt.tgid]; a != nil && a.open && !a.resident && a.start <= w.first {
			e.waitSpan(tt, a, &w)
			return
		}
	}
	e.stats.Waits.Idle++
}

// takeWaits makes spans of the pending waits that a, which ends, encloses and
// nothing within it does.
func (e *Engine) takeWaits(tt *threadTime, a *activity) {
	if a.resident {
		return // it waits for work
	}
	for i := 0; i < tt.waiting; {
		w := tt.at(i)
		if w.first < a.start || w.last > a.end || e.within(a, w) {
			i++
			continue
		}
		took := tt.take(i)
		if e.isAnswer(tt, &took) {
			e.stats.Waits.Answered++
		} else {
			e.waitSpan(tt, a, &took)
		}
	}
}

// within tells whether an activity above a, which is still open, had begun
// before the wait.
func (e *Engine) within(a *activity, w *longWait) bool {
	th := a.thread
	if th == nil {
		return false
	}
	for i := th.n - 1; i >= 0 && th.stack[i] != a; i-- {
		if th.stack[i].start <= w.first {
			return true
		}
	}
	return false
}

// isAnswer tells whether w was a wait for the answer to a call that has a span
// of its own: it began while such a call of the thread was under way. An answer
// that another thread reads is waited for at a lock.
func (e *Engine) isAnswer(tt *threadTime, w *longWait) bool {
	switch w.class {
	case event.Network, event.Polling, event.Lock:
	default:
		return false
	}
	if w.first >= tt.asked && w.first < tt.wasAnswered {
		return true
	}
	th := e.threads.byTID[tt.tid]
	if th == nil || th.tgid != tt.tgid {
		return false
	}
	a := th.sending.get()
	return a != nil && a.open && w.first >= a.start
}

// callEnded notes that the thread's call a, which has a span of its own, has
// ended, and what of its waits was part of that.
func (e *Engine) callEnded(a *activity) {
	tt := e.timeOf(a.tgid, a.tid)
	if tt == nil {
		return
	}
	tt.asked, tt.wasAnswered = a.start, a.end
	for i := 0; i < tt.waiting; {
		if e.isAnswer(tt, tt.at(i)) {
			tt.take(i)
			e.stats.Waits.Answered++
		} else {
			i++
		}
	}
}

// waitSpan makes a span of w, below a, which is still open or just ending.
func (e *Engine) waitSpan(tt *threadTime, a *activity, w *longWait) {
	if a.waits >= waitsPerSpan || e.waits >= e.limits.Activities/2 || e.activities.live.len >= e.limits.Activities {
		a.moreWaits++
		e.stats.Waits.Dropped++
		return
	}
	a.waits++
	e.waits++
	e.stats.Waits.Spans++
	s := e.begin(waitActivity, a.component, tt.tgid, w.first, a, LinkThread)
	s.spanKind, s.service, s.also, s.wait = trace.SpanKindInternal, a.service, a.also, w.class
	e.nameWait(s, w)
	if us := w.queued / 1000; us > 0 {
		s.attrs = append(s.attrs, attribute.KeyValue{Key: timeKeys[event.RunQueue], Value: attribute.Int64Value(us)})
	}
	s.at(tt.tgid, tt.tid)
	e.finish(s, w.last, "")
}
