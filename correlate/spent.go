package correlate

import (
	"math/bits"

	"github.com/xenserver/dtagent/probes/event"
	"go.opentelemetry.io/otel/attribute"
)

// What a thread did with its time comes as stretches, and an activity's time
// split is what of them lies between its start and its end. Both are often told
// later than stretches that follow them: a request's first bytes are told when the
// request is complete, the end of a reply when its connection is used again. So
// nothing is added up as stretches come. A thread has the sum of all its
// stretches and the last few of them, by which the sum at an earlier moment is
// found; a split is the difference of two such sums. Where a start or an end lies
// within a stretch, it has its share of it. What no stretch tells is the rest:
// nothing is made up.

const (
	// stretchesKept is how many stretches of a thread are remembered: between the
	// first byte of a request or the last of a reply and the record of it lie few.
	stretchesKept = 16

	// maxStretch is the longest stretch that is believed, about 400 days.
	maxStretch = 1 << 55

	// maxAhead is how far the end of a stretch may lie beyond the time of the
	// event that tells it.
	maxAhead = event.Time(1e9)
)

// stretch is a part of a thread's time.
type stretch struct {
	first, last event.Time
	runnable    event.Time             // long wait: when it could run again
	spent       [event.NumSpent]uint32 // in units of 1 << shift ns
	shift       uint8
	wait        event.Spent // long wait: that is spent first, then RunQueue, and nothing else; else OnCPU
}

// stretchOf makes the stretch that ev tells. It is false for one that cannot be.
func stretchOf(ev *event.Event) (s stretch, ok bool) {
	if ev.First < 0 || ev.Last < ev.First || ev.Last-ev.First > maxStretch || ev.Last > ev.Time+maxAhead {
		return s, false
	}
	length := int64(ev.Last - ev.First)
	s.first, s.last = ev.First, ev.Last
	s.shift = uint8(max(0, bits.Len64(uint64(length))-32))
	var total int64
	for _, n := range ev.Spent {
		total += min(max(n, 0), length)
	}
	for i, n := range ev.Spent {
		n = min(max(n, 0), length)
		if total > length {
			n = share(n, length, total)
		}
		s.spent[i] = uint32(n >> s.shift)
	}
	if ev.Wait.Wait() {
		s.runnable = min(max(ev.Runnable, ev.First), ev.Last)
		waited, queued := s.of(ev.Wait), s.of(event.RunQueue)
		if waited <= int64(s.runnable-s.first) && queued <= int64(s.last-s.runnable) && waited+queued == s.total() {
			s.wait = ev.Wait
		}
	}
	return s, true
}

// share is n·part/whole for part <= whole.
func share(n, part, whole int64) int64 {
	hi, lo := bits.Mul64(uint64(n), uint64(part))
	q, _ := bits.Div64(hi, lo, uint64(whole))
	return int64(q)
}

// of returns the ns spent in one way.
func (s *stretch) of(w event.Spent) int64 { return int64(s.spent[w]) << s.shift }

func (s *stretch) total() (ns int64) {
	for _, n := range s.spent {
		ns += int64(n) << s.shift
	}
	return ns
}

// until adds to sum what of s was spent before t.
func (s *stretch) until(t event.Time, sum *event.Times) {
	switch {
	case t <= s.first:
	case t >= s.last:
		for i, n := range s.spent {
			sum[i] += int64(n) << s.shift
		}
	case s.wait != event.OnCPU:
		sum[s.wait] += min(int64(t-s.first), s.of(s.wait))
		sum[event.RunQueue] += min(max(int64(t-s.runnable), 0), s.of(event.RunQueue))
	default:
		for i, n := range s.spent {
			if n != 0 {
				sum[i] += share(int64(n)<<s.shift, int64(t-s.first), int64(s.last-s.first))
			}
		}
	}
}

// cut takes what lies before t from s.
func (s *stretch) cut(t event.Time) {
	var before event.Times
	s.until(t, &before)
	for i, n := range before {
		s.spent[i] -= uint32(n >> s.shift)
	}
	s.first = max(s.first, t)
	s.runnable = max(s.runnable, s.first)
}

// threadTime is what is known of how one thread spent its time. Like a thread it
// goes when the thread ends, and when its tid turns up as that of a new one; other than a
// thread it is kept for threads that work for nobody, too: what they will be asked
// for may have begun.
type threadTime struct {
	tid, tgid uint32
	number    uint64      // of those that were made
	sum       event.Times // of all stretches
	end       event.Time  // of the last one
	stretches [stretchesKept]stretch
	n         uint64 // stretches so far: the next is stretches[n%stretchesKept]
	pendingWaits
	prev, next *threadTime
}

func (tt *threadTime) links() (prev, next **threadTime) { return &tt.prev, &tt.next }

type timeTable struct {
	byTID map[uint32]*threadTime
	lru   list[threadTime, *threadTime]
	free  *threadTime
	made  uint64
}

func (t *timeTable) init() { t.byTID = make(map[uint32]*threadTime) }

// timeOf returns what is known of the thread's time, nil when nothing is.
func (e *Engine) timeOf(tgid, tid uint32) *threadTime {
	if tt := e.times.byTID[tid]; tt != nil && tt.tgid == tgid {
		return tt
	}
	return nil
}

func (e *Engine) useTime(tgid, tid uint32) *threadTime {
	if tt := e.timeOf(tgid, tid); tt != nil {
		e.times.lru.moveToEnd(tt)
		return tt
	}
	e.dropTime(tid)
	if e.times.lru.len >= e.limits.Threads {
		e.stats.TimesEvicted++
		e.dropTime(e.times.lru.head.tid)
	}
	tt := e.times.free
	if tt == nil {
		tt = new(threadTime)
	} else {
		e.times.free = tt.next
		tt.next = nil
	}
	e.times.made++
	tt.tid, tt.tgid, tt.number = tid, tgid, e.times.made
	e.times.byTID[tid] = tt
	e.times.lru.add(tt)
	return tt
}

// dropTime forgets how the thread spent its time.
func (e *Engine) dropTime(tid uint32) {
	tt := e.times.byTID[tid]
	if tt == nil {
		return
	}
	for tt.waiting > 0 {
		e.decide(tt)
	}
	delete(e.times.byTID, tid)
	e.times.lru.del(tt)
	*tt = threadTime{next: e.times.free}
	e.times.free = tt
}

// dropTimes forgets it of all threads of the process: those whose exit was not
// seen.
func (e *Engine) dropTimes(tgid uint32) {
	for tt := e.times.lru.head; tt != nil; {
		next := tt.next
		if tt.tgid == tgid {
			e.dropTime(tt.tid)
		}
		tt = next
	}
}

// handleTime takes a stretch.
func (e *Engine) handleTime(ev *event.Event) {
	s, ok := stretchOf(ev)
	if !ok {
		e.badStretch(ev)
		return
	}
	tt := e.useTime(ev.TGID, ev.TID)
	if s.last <= tt.end {
		e.badStretch(ev) // told already, or too late
		return
	}
	if s.first < tt.end {
		s.cut(tt.end)
	}
	e.stats.Stretches++
	if th := e.threadOf(ev.TGID, ev.TID); th != nil {
		for _, a := range th.stack[:th.n] {
			a.begins(tt, &s)
		}
	}
	if ev.TID == ev.TGID {
		if a := e.processes.byTGID[ev.TGID]; a != nil {
			a.begins(tt, &s)
		}
	}
	s.until(s.last, &tt.sum)
	tt.end = s.last
	tt.stretches[tt.n%stretchesKept] = s
	tt.n++
	if ev.Wait.Wait() {
		e.waited(tt, ev, &s)
	}
}

func (e *Engine) badStretch(ev *event.Event) {
	e.stats.BadStretches++
	if ev.Wait.Wait() {
		e.stats.Waits.Dropped++
	}
}

// until returns the sum at t. known is false if t is further back than what is
// remembered; then it is the sum before that.
func (tt *threadTime) until(t event.Time) (sum event.Times, known bool) {
	sum = tt.sum
	kept := min(tt.n, stretchesKept)
	for i := range kept {
		s := &tt.stretches[(tt.n-1-i)%stretchesKept]
		if t >= s.last {
			return sum, true
		}
		for w, n := range s.spent {
			sum[w] -= int64(n) << s.shift
		}
		if t > s.first {
			s.until(t, &sum)
			return sum, true
		}
	}
	return sum, kept == tt.n
}

// enter puts a on th, as its innermost activity.
func (e *Engine) enter(th *thread, a *activity) {
	th.push(a)
	e.clock(a, th.tid)
}

// clock notes what thread tid, on which a runs, had spent before a began. Of a
// start that is further back than what is remembered, what lies between becomes
// part of the rest.
func (e *Engine) clock(a *activity, tid uint32) {
	if tt := e.timeOf(a.tgid, tid); tt != nil {
		a.clock = tt.number
		a.before, _ = tt.until(a.start)
	}
}

// begins sees to it that of s what lies before a's start is not counted as a's.
// What is known of the thread may be new: of an activity that began before, the
// time until then is part of the rest.
func (a *activity) begins(tt *threadTime, s *stretch) {
	if a.clock != tt.number {
		a.clock, a.before = tt.number, event.Times{}
	}
	s.until(a.start, &a.before)
}

// timeSplit says on a, which has ended, how its thread spent the time of it.
// It is false when nothing of that is known.
func (a *activity) timeSplit(tt *threadTime) bool {
	spent, known := tt.until(a.end)
	if !known {
		return false
	}
	if a.clock == tt.number {
		for i, n := range a.before {
			spent[i] = max(spent[i]-n, 0)
		}
	}
	if spent.Total() == 0 {
		return false
	}
	rest := int64(a.end-a.start) / 1000
	for i := range spent {
		spent[i] /= 1000
		rest -= spent[i]
	}
	for rest < 0 { // by rounding
		most := 0
		for i, n := range spent {
			if n > spent[most] {
				most = i
			}
		}
		over := min(-rest, spent[most])
		spent[most] -= over
		rest += over
	}
	for i, us := range spent {
		if us > 0 {
			a.attrs = append(a.attrs, attribute.KeyValue{Key: timeKeys[i], Value: attribute.Int64Value(us)})
		}
	}
	a.attrs = append(a.attrs, attribute.Int64("dt.time.rest_us", rest))
	return true
}

var timeKeys = func() (keys [event.NumSpent]attribute.Key) {
	for i := range keys {
		keys[i] = attribute.Key("dt.time." + event.Spent(i).String() + "_us")
	}
	return keys
}()
