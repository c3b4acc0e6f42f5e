package correlate

import (
	"fmt"
	"math/rand/v2"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/go-quicktest/qt"
	"github.com/xenserver/dtagent/probes/event"
)

// stretch lets time pass that thread tid spends in the given ways.
func (s *script) stretch(d daemon, tid uint32, spent map[event.Spent]time.Duration) {
	ev := d.event(event.KindTime, tid)
	ev.First, ev.Syscall = s.now, -1
	for w, n := range spent {
		ev.Spent[w] = int64(n)
		s.now += event.Time(n)
	}
	s.told(ev)
}

// blocked is a long wait of thread tid, and the time that it waits for a CPU
// after that.
func (s *script) blocked(d daemon, tid uint32, class event.Spent, wait, queued time.Duration) event.Event {
	ev := d.event(event.KindTime, tid)
	ev.First, ev.Runnable, ev.Wait, ev.Syscall = s.now, s.now+event.Time(wait), class, -1
	ev.Spent[class], ev.Spent[event.RunQueue] = int64(wait), int64(queued)
	s.now = ev.Runnable + event.Time(queued)
	s.told(ev)
	return ev
}

// told plays a stretch that ends now.
func (s *script) told(ev event.Event) {
	ev.Time, ev.Last = s.now, s.now
	if s.e == nil {
		s.events = append(s.events, ev)
		return
	}
	s.e.Handle(&ev)
	s.e.check(s)
}

// split returns the time split of a span in the order of its attributes, as
// "cpu 5 rest 2".
func split(sp *Span) string {
	var b []string
	for _, kv := range sp.Attributes {
		if w, ok := strings.CutPrefix(string(kv.Key), "dt.time."); ok {
			b = append(b, strings.TrimSuffix(w, "_us")+" "+kv.Value.String())
		}
	}
	return strings.Join(b, " ")
}

// accounted asserts that the split and the rest add up to the duration.
func accounted(t testing.TB, sp *Span) {
	t.Helper()
	sum, rest := int64(0), int64(-1)
	for _, kv := range sp.Attributes {
		if !strings.HasPrefix(string(kv.Key), "dt.time.") || sp.Wait != event.OnCPU {
			continue
		}
		n := kv.Value.AsInt64()
		sum += n
		if kv.Key == "dt.time.rest_us" {
			rest = n
		} else if n <= 0 {
			t.Errorf("%s: %s is %d", sp.Name, kv.Key, n)
		}
	}
	if sum == 0 && rest < 0 {
		return // nothing is known
	}
	if rest < 0 {
		t.Errorf("%s: rest %d", sp.Name, rest)
	}
	if d := (sp.End - sp.Start) / 1000; sum != d {
		t.Errorf("%s takes %d µs, its split %d: %s", sp.Name, d, sum, split(sp))
	}
}

const ms = time.Millisecond

// A request's first part is told after the stretches that follow it, and the
// end of a reply after the wait for the next request.
func TestTimeSplit(t *testing.T) {
	s := newScript(t)
	s.accept("c", 18)
	s.stretch(xapi, 110, map[event.Spent]time.Duration{event.OnCPU: 3 * ms})
	s.blocked(xapi, 110, event.Network, 50*ms, 0) // for the request
	first := s.now
	s.stretch(xapi, 110, map[event.Spent]time.Duration{event.OnCPU: 2 * ms, event.Lock: ms})
	s.blocked(xapi, 110, event.Fsync, 20*ms, 4*ms)
	head := xapi.event(event.KindData, 110)
	head.Conn, head.Dir, head.Head, head.First = s.conns["c"], event.In, []byte("POST / HTTP/1.1\r\nContent-Length: 51\r\n\r\n<methodCall><methodName>VM.start</methodName></meth"), first
	s.put(head)
	s.stretch(xapi, 110, map[event.Spent]time.Duration{event.OnCPU: ms})
	s.now -= 10_000 // the reply is written at once, and told later
	last := s.now
	s.blocked(xapi, 110, event.Polling, 70*ms, 0)
	s.stretch(xapi, 110, map[event.Spent]time.Duration{event.OnCPU: 2 * ms})
	reply := xapi.event(event.KindData, 110)
	reply.Conn, reply.Dir, reply.Head = s.conns["c"], event.Out, []byte("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
	reply.Time, reply.First, reply.Last, reply.Bytes = s.now, last-10_000, last, uint64(len(reply.Head))
	s.e.Handle(&reply)
	s.e.check(t)

	sp := s.span("VM.start")
	qt.Check(t, qt.Equals(sp.End-sp.Start, int64(last-first)))
	accounted(t, sp)
	qt.Check(t, qt.Equals(split(sp), "cpu 2990 runq 4000 lock 1000 fsync 20000 rest 10"))
	fsync := s.span("fsync")
	s.under("fsync", "VM.start", LinkThread)
	qt.Check(t, qt.Equals(fsync.Wait, event.Fsync))
	qt.Check(t, qt.Equals(fsync.End-fsync.Start, int64(24*ms)))
	qt.Check(t, qt.Equals(split(fsync), "runq 4000"))
	qt.Check(t, qt.HasLen(s.spans, 2))
	s.drain()
	qt.Check(t, qt.Equals(s.e.Stats().Waits, WaitStats{Spans: 1, Idle: 2}))
}

// The activities of one thread each have their share: an operation that of its
// steps too.
func TestTimeSplitNested(t *testing.T) {
	s := begun(t)
	s.queued(210, 220, start)
	s.started(220, 6, tagged, start)
	s.performing(220, tagged, `["VM_create",["`+vm+`",[],[],false]]`)
	s.stretch(xenopsd, 220, map[event.Spent]time.Duration{event.Hypercall: 5 * ms})
	s.signal(220, 6)
	s.stretch(xenopsd, 220, map[event.Spent]time.Duration{event.OnCPU: ms})
	s.performing(220, tagged, `["VM_build",["`+vm+`",false]]`)
	s.stretch(xenopsd, 220, map[event.Spent]time.Duration{event.Xenstore: 7 * ms})
	s.fork(xenopsd, 220, 300)
	guest := daemon{event.Xenopsd, 300, "xenguest"}
	s.exec(xenopsd, 300, "xenguest", "")
	s.stretch(guest, 300, map[event.Spent]time.Duration{event.OnCPU: ms, event.Hypercall: ms})
	s.exit(xenopsd, 300, 0)
	s.completed(220, 6)
	s.respond(64, 210, "null")
	s.drain()
	for _, sp := range s.spans {
		accounted(t, sp)
	}
	qt.Check(t, qt.Equals(split(s.span("VM_create")), "hypercall 5000 rest 10"))
	qt.Check(t, qt.Equals(split(s.span("VM_build")), "xenstore 7000 rest 2040"))
	qt.Check(t, qt.Equals(split(s.span("VM_start")), "cpu 1000 hypercall 5000 xenstore 7000 rest 2070"))
	qt.Check(t, qt.Equals(split(s.span("xenguest")), "cpu 1000 hypercall 1000 rest 20"))
	qt.Check(t, qt.Equals(attr(s.span("xenguest"), "dt.process.cpu_us"), "1500"))
	qt.Check(t, qt.Equals(split(s.span("VM.start")), "")) // nothing was told of its thread
}

// What a thread did is not that of the next one with its tid.
func TestTimeOfReusedThread(t *testing.T) {
	s := newScript(t)
	s.accept("a", 18)
	s.stretch(xapi, 110, map[event.Spent]time.Duration{event.OnCPU: 9 * ms})
	s.request("a", 110, "VM.a")
	s.stretch(xapi, 110, map[event.Spent]time.Duration{event.OnCPU: ms})
	s.thread(xapi, 105, 110)
	s.accept("b", 19)
	s.request("b", 110, "VM.b")
	s.stretch(xapi, 110, map[event.Spent]time.Duration{event.Lock: 2 * ms})
	s.reply("b", 110, success, "")
	s.threadExit(xapi, 110)
	qt.Check(t, qt.Equals(s.e.Stats().Times, 0))
	s.drain()
	accounted(t, s.span("VM.b"))
	qt.Check(t, qt.IsTrue(strings.HasPrefix(split(s.span("VM.a")), "cpu 1000 rest ")))
	qt.Check(t, qt.IsTrue(strings.HasPrefix(split(s.span("VM.b")), "lock 2000 rest ")))
}

// account is a plain model of one thread's time: all of it is remembered.
type account []event.Event

// between returns what was spent how from a to b.
func (m account) between(a, b event.Time) (sum [event.NumSpent]float64) {
	for _, ev := range m {
		if ev.Wait.Wait() {
			sum[ev.Wait] += max(0, float64(min(b, ev.Runnable)-max(a, ev.First)))
			sum[event.RunQueue] += max(0, float64(min(b, ev.Last)-max(a, ev.Runnable)))
			continue
		}
		part := max(0, float64(min(b, ev.Last)-max(a, ev.First)))
		for w, n := range ev.Spent {
			sum[w] += float64(n) * part / float64(ev.Last-ev.First)
		}
	}
	return sum
}

// Whatever the stretches and the activities: a split never exceeds its span,
// split and rest are the whole, and each part is what a model that remembers
// everything finds.
func TestTimeSplitRandom(t *testing.T) {
	for seed := range uint64(50) {
		rnd := rand.New(rand.NewPCG(seed, 11))
		s := newScript(t)
		s.now += event.Time(rnd.IntN(1e6))
		var m account
		told := s.now
		type open struct {
			n    int
			from event.Time
		}
		spans := make(map[string][2]event.Time)
		var op open
		tag := "x R:07432559b308"
		next := 0
		// gap is time of which nothing is told; else a stretch ends now.
		end := func(gap bool) {
			s.now += event.Time(rnd.IntN(5e6)) + 1
			if gap {
				told = s.now
				return
			}
			ev := xenopsd.event(event.KindTime, 220)
			ev.First, ev.Syscall = told, -1
			length := int64(s.now - told)
			if rnd.IntN(3) == 0 {
				ev.Wait = event.Hypercall + event.Spent(rnd.IntN(int(event.NumSpent-event.Hypercall)))
				ev.Runnable = told + event.Time(rnd.Int64N(length+1))
				ev.Spent[ev.Wait], ev.Spent[event.RunQueue] = int64(ev.Runnable-told), int64(s.now-ev.Runnable)
			} else {
				for left := length; left > 0 && rnd.IntN(8) > 0; {
					n := rnd.Int64N(left) + 1
					ev.Spent[rnd.IntN(int(event.NumSpent))] += n
					left -= n
				}
			}
			told = s.now
			s.told(ev)
			ev.Last = s.now
			m = append(m, ev)
		}
		for range 60 {
			end(rnd.IntN(10) == 0)
			if rnd.IntN(2) == 0 {
				// a little before the next stretch ends: within it
				s.now += event.Time(rnd.IntN(1e5))
			}
			if op.from == 0 {
				next++
				op = open{next, s.started(220, next, tag, fmt.Sprintf(`["VM_op%d",["%s",false]]`, next, vm))}
			} else {
				spans[fmt.Sprintf("VM_op%d", op.n)] = [2]event.Time{op.from, s.completed(220, op.n)}
				op = open{}
			}
		}
		end(false)
		s.drain()
		checked := 0
		for _, sp := range s.spans {
			accounted(t, sp)
			at, ok := spans[sp.Name]
			if !ok {
				continue
			}
			checked++
			want := m.between(at[0], at[1])
			known := attr(sp, "dt.time.rest_us") != ""
			for w, ns := range want {
				got, _ := strconv.ParseFloat(attr(sp, "dt.time."+event.Spent(w).String()+"_us"), 64)
				// the end of a span lies within a stretch that is not told yet: that part is rest
				if got > ns/1000+1 {
					t.Errorf("seed %d: %s: %s is %v µs of %v", seed, sp.Name, event.Spent(w), got, ns/1000)
				}
				last := m.until(at[1])
				if least := m.between(at[0], last)[w]; known && got < least/1000-2 {
					t.Errorf("seed %d: %s: %s is %v µs, not %v", seed, sp.Name, event.Spent(w), got, least/1000)
				}
			}
		}
		qt.Assert(t, qt.Equals(checked, len(spans)))
	}
}

// until is the end of the last stretch that was told before t.
func (m account) until(t event.Time) (last event.Time) {
	for _, ev := range m {
		if ev.Last <= t {
			last = ev.Last
		}
	}
	return last
}

// The sum at a moment in the past is found as far back as it is remembered, and
// further back nothing is made up.
func TestTimeUntil(t *testing.T) {
	for seed := range uint64(200) {
		rnd := rand.New(rand.NewPCG(seed, 12))
		e := New(Config{})
		var m account
		now := event.Time(1e9)
		for range 1 + rnd.IntN(40) {
			if rnd.IntN(4) == 0 {
				now += event.Time(rnd.IntN(1e6))
			}
			ev := event.Event{Kind: event.KindTime, TGID: 1, TID: 2, First: now, Syscall: -1}
			length := rnd.Int64N(1<<uint(rnd.IntN(40))) + 1
			now += event.Time(length)
			ev.Last, ev.Time = now, now
			if rnd.IntN(2) == 0 {
				ev.Wait, ev.Runnable = event.Fsync, ev.First+event.Time(rnd.Int64N(length+1))
				ev.Spent[event.Fsync], ev.Spent[event.RunQueue] = int64(ev.Runnable-ev.First), int64(ev.Last-ev.Runnable)
			} else {
				ev.Spent[rnd.IntN(16)] = length / 3
				ev.Spent[rnd.IntN(16)] += length / 2
			}
			e.Handle(&ev)
			m = append(m, ev)
		}
		rounding := 0.0 // the longer a stretch the coarser it is kept
		for _, ev := range m {
			rounding += 1 + float64(ev.Last-ev.First)/(1<<31)
		}
		tt := e.timeOf(1, 2)
		from := max(0, len(m)-stretchesKept)
		for range 100 {
			at := event.Time(rnd.Int64N(int64(now + 1e6)))
			sum, known := tt.until(at)
			if known != (from == 0 || at > m[from].First) {
				t.Fatalf("seed %d: %d is known: %v", seed, at, known)
			}
			if !known {
				at = m[from].First
			}
			for w, want := range m.between(0, at) {
				if got := float64(sum[w]); got > want+1 || got < want-rounding {
					t.Fatalf("seed %d: at %d %s is %v, not %v", seed, at, event.Spent(w), got, want)
				}
			}
		}
	}
}

// What cannot be is not believed, and what overlaps counts once.
func TestBadStretches(t *testing.T) {
	e := New(Config{})
	tell := func(ev event.Event) *threadTime {
		ev.Kind, ev.TGID, ev.TID = event.KindTime, 1, 2
		e.Handle(&ev)
		return e.timeOf(1, 2)
	}
	for _, ev := range []event.Event{
		{Time: 100, First: 100, Last: 50, Wait: event.Lock},
		{Time: 100, First: -100, Last: 50},
		{Time: 100, First: 1, Last: 1 << 60},
		{Time: 1 << 62, First: 1, Last: 1 << 62, Wait: event.Lock},
	} {
		qt.Check(t, qt.IsNil(tell(ev)))
	}
	qt.Check(t, qt.Equals(e.Stats().BadStretches, 4))
	qt.Check(t, qt.Equals(e.Stats().Waits, WaitStats{Dropped: 2}))

	tt := tell(event.Event{Time: 2000, First: 1000, Last: 2000, Spent: event.Times{-5, 1 << 62, 1 << 62}, Wait: 77, Runnable: -9})
	qt.Check(t, qt.Equals(tt.sum, event.Times{0, 500, 500}))
	tell(event.Event{Time: 3000, First: 1500, Last: 2500, Spent: event.Times{1000}})
	qt.Check(t, qt.Equals(tt.sum, event.Times{500, 500, 500}))
	tell(event.Event{Time: 3000, First: 1500, Last: 3000, Spent: event.Times{event.RunQueue: 500, event.Lock: 1000}, Wait: event.Lock, Runnable: 2500})
	qt.Check(t, qt.Equals(tt.sum, event.Times{500, 1000, 500}))
	tell(event.Event{Time: 3000, First: 1500, Last: 2900, Spent: event.Times{1000}})
	qt.Check(t, qt.Equals(tt.sum, event.Times{500, 1000, 500}))
	qt.Check(t, qt.Equals(e.Stats().Stretches, 3))
	qt.Check(t, qt.Equals(e.Stats().BadStretches, 5))
}

// Parts that are each rounded do not become more than the whole.
func TestTimeSplitRounding(t *testing.T) {
	e := New(Config{})
	ev := event.Event{Kind: event.KindTime, TGID: 1, TID: 2, Time: 16e6, Last: 16e6}
	for w := range ev.Spent {
		ev.Spent[w] = 1e6
	}
	e.Handle(&ev)
	a := &activity{tgid: 1, start: 15, end: 16_000}
	e.clock(a, 2)
	qt.Assert(t, qt.IsTrue(a.timeSplit(e.timeOf(1, 2))))
	sum := int64(0)
	for _, kv := range a.attrs {
		sum += kv.Value.AsInt64()
	}
	qt.Check(t, qt.Equals(sum, 15))
	qt.Check(t, qt.HasLen(a.attrs, 16)) // 15 ways and no rest
}

// A process has no share of what the last one with its pid did, whose end was
// lost.
func TestTimeOfReusedPid(t *testing.T) {
	s := newScript(t)
	guest := daemon{event.Xapi, 300, "x"}
	s.accept("c", 18)
	s.request("c", 110, "VM.start")
	s.stretch(guest, 300, map[event.Spent]time.Duration{event.OnCPU: ms})
	s.fork(xapi, 110, 300)
	s.stretch(guest, 300, map[event.Spent]time.Duration{event.Lock: ms})
	s.exit(guest, 300, 0)
	s.drain()
	accounted(t, s.span("xapi"))
	qt.Check(t, qt.IsTrue(strings.HasPrefix(split(s.span("xapi")), "lock 1000 rest ")), qt.Commentf(split(s.span("xapi"))))
}
