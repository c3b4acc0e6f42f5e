package correlate

import (
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/go-quicktest/qt"
	"github.com/xenserver/dtagent/probes/event"
)

// job is one independent piece of work, as an event sequence of its own, that
// knows which spans must come out under which. Its names are its own.
type work struct {
	events []event.Event
	under  map[string]string // span → parent; "" is a root
	trace  string            // that its caller sent
}

// newWork makes the i-th: a call, Async or not, with a switch call that starts
// an operation on a worker, which starts a helper.
func newWork(t testing.TB, i int, rnd *rand.Rand) work {
	s := gather(t)
	w := work{under: make(map[string]string)}
	n := uint32(i)
	tid, rpcTID, worker, pid := 1000+n, 3000+n, 5000+n, 7000+n
	tag := fmt.Sprintf("VM.m%d R:%012x", i, i+1)
	root := fmt.Sprintf("VM.m%d", i)
	s.open(xapi, "c", int32(1000+i), event.Accepted, "/var/lib/xcp/xapi")
	var headers []string
	if rnd.IntN(2) == 0 {
		w.trace = fmt.Sprintf("%032x", i+1)
		headers = []string{fmt.Sprintf("traceparent: 00-%s-%016x-01", w.trace, i+1)}
	}
	async := rnd.IntN(2) == 0
	if async {
		root = "Async." + root
	}
	w.under[root] = ""
	s.request("c", tid, root, headers...)
	caller, doer := root, tid
	if async {
		doer = 2000 + n
		s.thread(xapi, tid, doer)
		s.reply("c", tid, success, "")
		task := fmt.Sprintf("VM.m%d", i)
		w.under[task] = root
		caller = task
	}
	// connections of its own stand for those under a lock
	for _, c := range []string{"ask", "wait"} {
		s.open(xapi, c, int32(len(s.conns)*1000+1000+i), event.Connected, "")
	}
	for _, c := range []string{"listen", "answer"} {
		s.open(xenopsd, c, int32(len(s.conns)*1000+1000+i), event.Connected, "")
	}
	method := fmt.Sprintf("RPC.m%d", i)
	w.under[send+method], w.under[method] = caller, send+method
	early := rnd.IntN(2) == 0
	listener := 4000 + n
	deliver := func() {
		s.post(xenopsd, "listen", listener, "/transfer", `{}`)
		s.answer(xenopsd, "listen", listener, fmt.Sprintf(`{"messages":[[["%s",%d],{"payload":%s,"kind":["Request","xapi:100"]}]],"next":"1"}`, xenops, i, quote(rpcBody(method, tag))))
		s.thread(xenopsd, listener, rpcTID)
	}
	s.ask(doer, method, tag)
	if early {
		deliver()
	}
	s.number(doer, i)
	if !early {
		deliver()
	}
	op := fmt.Sprintf(`["VM_op%d",["%s",false]]`, i, vm)
	s.queued(rpcTID, worker, op)
	answer := func() {
		s.respond(i, rpcTID, fmt.Sprintf(`"%d"`, i))
		s.threadExit(xenopsd, rpcTID)
		s.answered(i, fmt.Sprintf(`"%d"`, i))
	}
	early = rnd.IntN(2) == 0
	if early {
		answer()
	}
	s.started(worker, i, tag, op)
	s.performing(worker, tag, fmt.Sprintf(`["VM_atom%d",["%s"]]`, i, vm))
	program := fmt.Sprintf("helper%d", i)
	s.fork(xenopsd, worker, pid)
	s.exec(xenopsd, pid, "vfork_helper", "")
	s.exec(xenopsd, pid, program, "")
	s.exit(xenopsd, pid, 0)
	s.completed(worker, i)
	if !early {
		answer()
	}
	w.under[fmt.Sprintf("VM_op%d", i)] = method
	w.under[fmt.Sprintf("VM_atom%d", i)] = fmt.Sprintf("VM_op%d", i)
	w.under[program] = fmt.Sprintf("VM_atom%d", i)
	if async {
		s.threadExit(xapi, doer)
	} else {
		s.reply("c", tid, success, "")
	}
	s.close(xapi, "c")
	w.events = s.events
	return w
}

// Whatever the order in which the events of independent calls mix, every span
// has its parent, and no trace holds two callers' spans.
func TestInterleaved(t *testing.T) {
	const calls = 40
	for seed := range uint64(20) {
		rnd := rand.New(rand.NewPCG(seed, 1))
		var works []work
		for i := range calls {
			works = append(works, newWork(t, i, rnd))
		}
		s := newScript(t)
		left := make([]int, 0, calls)
		next := make([]int, calls)
		for i := range works {
			left = append(left, i)
		}
		for len(left) > 0 {
			k := rnd.IntN(len(left))
			w := left[k]
			ev := works[w].events[next[w]]
			// the script's own times become those of the mix
			s.now += 10_000
			d := s.now - ev.Time
			ev.Time, ev.First, ev.Last = s.now, ev.First+d, ev.Last+d
			s.e.Handle(&ev)
			if rnd.IntN(50) == 0 {
				s.e.Advance(s.now)
				s.e.check(t)
			}
			if next[w]++; next[w] == len(works[w].events) {
				left = slices.Delete(left, k, k+1)
			}
		}
		s.wait(10 * time.Second)
		qt.Assert(t, qt.Equals(s.e.Stats().Activities, 0))
		byName := make(map[string]*Span)
		for _, sp := range s.spans {
			qt.Assert(t, qt.IsNil(byName[sp.Name]), qt.Commentf("%s twice", sp.Name))
			byName[sp.Name] = sp
		}
		traces := make(map[string]int)
		for i, w := range works {
			for name, parent := range w.under {
				sp := byName[name]
				qt.Assert(t, qt.IsNotNil(sp), qt.Commentf("seed %d: no span %s", seed, name))
				qt.Check(t, qt.Equals(sp.Incomplete, ""), qt.Commentf("seed %d: %s", seed, name))
				if parent != "" {
					qt.Check(t, qt.Equals(sp.ParentID, byName[parent].SpanID), qt.Commentf("seed %d: %s", seed, name))
				}
				id := sp.TraceID.String()
				if w.trace != "" {
					qt.Check(t, qt.Equals(id, w.trace))
				}
				if other, ok := traces[id]; ok && other != i {
					t.Errorf("seed %d: calls %d and %d are in one trace", seed, i, other)
				}
				traces[id] = i
			}
		}
		s.wait(time.Duration(2 * worksRemembered)) // what they worked at is forgotten
		st := s.e.Stats()
		qt.Check(t, qt.Equals(st.Conflicts+st.Reassigned, 0))
		qt.Check(t, qt.Equals(st.Trees, 0))
		qt.Check(t, qt.Equals(st.Objects.Known, 0))
	}
}

// The same events give the same spans.
func TestDeterministic(t *testing.T) {
	run := func() string {
		rnd := rand.New(rand.NewPCG(7, 7))
		s := newScript(t)
		for i := range 20 {
			for _, ev := range newWork(t, i, rnd).events {
				s.now += 1000
				ev.Time = s.now
				s.e.Handle(&ev)
				if i%3 == 0 {
					s.e.Advance(s.now)
				}
			}
		}
		s.drain()
		var b strings.Builder
		for _, sp := range s.spans {
			fmt.Fprintf(&b, "%+v\n", *sp)
		}
		return b.String()
	}
	qt.Assert(t, qt.Equals(run(), run()))
}

func TestLimits(t *testing.T) {
	l := Limits{Activities: 8, Conns: 4, Threads: 4, Keys: 4, Buffers: 1, BodyBytes: 64, Age: time.Minute}
	t.Run("activities", func(t *testing.T) {
		s := limitedScript(t, Limits{Activities: 8})
		for i := range 20 {
			s.accept("c", int32(100+i))
			s.request("c", uint32(1000+i), "VM.start")
		}
		qt.Check(t, qt.Equals(s.e.Stats().Activities, 8))
		qt.Check(t, qt.Equals(s.e.Stats().ActivitiesEvicted, 12))
		qt.Check(t, qt.HasLen(s.spans, 12))
		qt.Check(t, qt.Equals(s.spans[0].Incomplete, "evicted"))
	})
	t.Run("connections and threads", func(t *testing.T) {
		s := limitedScript(t, l)
		for i := range 20 {
			s.accept("c", int32(100+i))
			s.request("c", uint32(1000+i), "VM.start")
		}
		st := s.e.Stats()
		qt.Check(t, qt.Equals(st.Conns, 4))
		qt.Check(t, qt.Equals(st.ConnsEvicted, 16))
		qt.Check(t, qt.Equals(st.ThreadsEvicted+uint64(st.Threads), 20))
		qt.Check(t, qt.Equals(s.spans[0].Incomplete, "connection evicted"))
	})
	t.Run("age", func(t *testing.T) {
		s := limitedScript(t, l)
		s.accept("c", 100)
		s.request("c", 1000, "VM.start")
		s.wait(59 * time.Second)
		qt.Check(t, qt.HasLen(s.spans, 0))
		s.wait(2 * time.Second)
		qt.Check(t, qt.Equals(s.span("VM.start").Incomplete, "open too long"))
		qt.Check(t, qt.Equals(s.e.Stats().ActivitiesAged, 1))
		s.reply("c", 1000, success, "") // too late
		qt.Check(t, qt.HasLen(s.spans, 1))
	})
	t.Run("keys", func(t *testing.T) {
		s := limitedScript(t, Limits{Keys: 4, Age: time.Minute})
		s.openSwitch()
		for i := range 10 {
			s.ask(110, "VM.start", "")
			s.number(110, i)
		}
		qt.Check(t, qt.Equals(s.e.Stats().Keys, 4))
		qt.Check(t, qt.Equals(s.e.Stats().MessagesEvicted, 6))
		for i := range 3000 {
			s.log(xenopsd, 210, "queue", "q", fmt.Sprintf("Queue.push [%d] onto x:[ ]", i))
		}
		qt.Check(t, qt.Equals(s.e.Stats().PushesEvicted, 3000-1024))
		s.wait(2 * time.Minute)
		qt.Check(t, qt.Equals(s.e.Stats().Keys, 0))
	})
	t.Run("bodies", func(t *testing.T) {
		s := limitedScript(t, l)
		for i := range 3 {
			s.accept("c", int32(100+i))
			s.in(xapi, "c", uint32(1000+i), "POST / HTTP/1.1\r\ncontent-length: 100000\r\n\r\n")
			s.data(xapi, "c", uint32(1000+i), event.In, strings.Repeat("x", 1000), event.FlagMore)
		}
		qt.Check(t, qt.Equals(s.e.Stats().UnreadBodies, 2))
		s.call("c", 1002, "VM.start") // those that come whole are read
		s.span("VM.start")
	})
}

// hostile fills ev with the next of an endless run of events that begin things
// and do not end them.
func hostile(ev *event.Event, i uint64, rnd *rand.Rand) {
	*ev = event.Event{Time: event.Time(i) * 10_000, Component: event.Component(1 + i%2), TGID: 100, TID: uint32(1000 + rnd.IntN(1e6))}
	ev.First, ev.Last = ev.Time, ev.Time
	ev.Conn = event.Conn{TGID: 100, FD: int32(rnd.IntN(1e5)), Born: ev.Time}
	n := rnd.Uint64()
	switch rnd.IntN(13) {
	case 0:
		ev.Kind, ev.Dir = event.KindData, event.In
		ev.Head = fmt.Appendf(nil, "POST / HTTP/1.1\r\ncontent-length: 100000\r\n\r\n<methodCall><methodName>Async.x%d</methodName>", n)
	case 1:
		ev.Kind, ev.Dir = event.KindData, event.In
		ev.Head = []byte(strings.Repeat("GET /", 100))
	case 2:
		ev.Kind, ev.Dir = event.KindData, event.Out
		ev.Head = fmt.Appendf(nil, "POST /request/q%d/x HTTP/1.1\r\ncontent-length: 50\r\n\r\n%-50s", n, `{"method":"x","params":[{"dbg":"x R:000000000000"}]}`)
	case 3:
		ev.Kind, ev.Dir, ev.TID = event.KindData, event.In, 201
		body := fmt.Sprintf(`{"messages":[[["q",%d],{"payload":"{\"method\":\"x\"}","kind":["Request","xapi:100"]}]],"next":"1"}`, n>>1)
		ev.Head = fmt.Appendf(nil, "HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%s", len(body), body)
	case 4:
		ev.Kind = event.KindLog
		ev.Head = fmt.Appendf(nil, "<175>Nov 22 12:23:14 xenopsd-xc: [debug||6 |x R:%012x|y] Task %d reference x R:000000000000: [\"VM_start\",[]]", n&0xffffffffffff, n>>1)
	case 5:
		ev.Kind = event.KindLog
		ev.Head = fmt.Appendf(nil, "<175>Nov 22 12:23:14 xenopsd-xc: [debug||6 |queue|y] Queue.push [%d] onto x:[ ]", n)
	case 6:
		ev.Kind, ev.ChildTGID, ev.ChildTID = event.KindFork, uint32(n), uint32(n)
	case 7:
		ev.Kind, ev.ChildTGID, ev.ChildTID, ev.Flags = event.KindFork, 100, uint32(n), event.FlagThread
	case 8: // calls that message-switch takes and numbers
		ev.Kind, ev.Dir, ev.Component, ev.Conn.FD = event.KindData, event.In, event.MessageSwitch, 7
		ev.Head = fmt.Appendf(nil, "POST /request/q%d/x HTTP/1.1\r\ncontent-length: 14\r\n\r\n{\"method\":\"x\"}", n)
		ev.Conn.Born = 1
		if n&1 == 0 {
			ev.Dir = event.Out
			body := fmt.Sprintf(`[["q",%d]]`, n>>1)
			ev.Head = fmt.Appendf(nil, "HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%s", len(body), body)
		}
	case 9: // children whose makers are unknown
		ev.Kind, ev.TGID, ev.TID, ev.Program = event.KindExec, uint32(n), uint32(n), "xenguest"
	case 10: // how threads spent their time, those of nobody and those with work
		ev.Kind, ev.First, ev.Runnable, ev.Syscall, ev.Detail = event.KindTime, ev.Time-5000, ev.Time-1000, int32(n), n
		ev.Wait, ev.Spent[n%4], ev.Spent[n%16] = event.Spent(n%18), 1000, 3000
		if n&1 == 0 {
			ev.TID = 201
		}
	case 11: // requests of many disks, those that cannot be among them
		ev.Kind, ev.TGID, ev.First, ev.Last = event.KindRequest, uint32(n), ev.Time-5000, ev.Time
		ev.Request.Layers = event.Layers{event.LayerTotal: 5000, event.LayerDevice: 5000 - int64(n&1)}
		ev.Disk = &event.GuestDisk{VM: fmt.Sprintf("%08x-5e4c-9f1a-6147-fb162417c0e0", n)}
	case 12: // calls at many objects
		ev.Kind, ev.Dir, ev.Component = event.KindData, event.In, event.Xapi
		ev.Conn.Born, ev.Listener = 1, "/var/lib/xcp/storage"
		body := fmt.Sprintf(`{"method":"SR.scan","params":[{"sr":"%08x-5e4c-9f1a-6147-fb162417c0e0","vdi":"%08x-5e4c-9f1a-6147-fb162417c0e1"}]}`, n, n%7)
		ev.Head = fmt.Appendf(nil, "POST /var/lib/xcp/storage HTTP/1.1\r\ncontent-length: %d\r\n\r\n%s", len(body), body)
	}
	ev.Bytes = uint64(len(ev.Head))
}

// TestBounded drives the engine with events that never end anything.
func TestBounded(t *testing.T) {
	events := uint64(4e5) // each table overflows several times
	if testing.Short() {
		events = 1e5
	}
	rnd := rand.New(rand.NewPCG(3, 3))
	spans := uint64(0)
	e := New(Config{Rand: rnd.Uint64, Emit: func(*Span) { spans++ }})
	heap := func() uint64 {
		var m runtime.MemStats
		runtime.GC()
		runtime.ReadMemStats(&m)
		return m.HeapAlloc
	}
	var ev event.Event
	var half uint64
	for i := range events {
		hostile(&ev, i, rnd)
		e.Handle(&ev)
		if i%100 == 0 {
			e.Advance(ev.Time)
		}
		if i == events/2 {
			half = heap()
		}
	}
	full := heap()
	st := e.Stats()
	t.Logf("%d events, %d spans, heap %d KiB at half, %d KiB at the end, %+v", events, spans, half>>10, full>>10, st)
	l := Limits{}.withDefaults()
	qt.Check(t, qt.IsTrue(st.Activities <= l.Activities))
	qt.Check(t, qt.IsTrue(st.Conns <= l.Conns))
	qt.Check(t, qt.IsTrue(st.Threads <= l.Threads))
	qt.Check(t, qt.IsTrue(st.Keys <= 3*l.Keys+1024))
	if !testing.Short() {
		qt.Check(t, qt.IsTrue(full < half+half/10+1<<20), qt.Commentf("the heap grows"))
	}
	e.check(t)
	e.Drain()
	e.check(t)
	qt.Check(t, qt.Equals(e.Stats().Activities, 0))
	qt.Check(t, qt.Equals(e.Stats().Spans, spans))
}

// replayer plays the same events again and again at later times.
type replayer struct {
	e      *Engine
	events []event.Event
	ev     event.Event
	shift  event.Time
	length event.Time
}

func newReplayer(e *Engine, events []event.Event) *replayer {
	return &replayer{e: e, events: events, length: events[len(events)-1].Time}
}

func (r *replayer) run() {
	r.shift += r.length
	for i := range r.events {
		r.ev = r.events[i]
		r.ev.Time += r.shift
		r.ev.First += r.shift
		r.ev.Last += r.shift
		r.ev.Runnable += r.shift
		r.ev.Conn.Born += r.shift
		r.e.Handle(&r.ev)
	}
	r.e.Advance(r.ev.Time)
}

func callEvents(t testing.TB) []event.Event {
	s := gather(t)
	s.accept("c", 18)
	s.thread(xapi, 105, 110)
	s.request("c", 110, "VM.start", "User-Agent: Python-xmlrpc/3.11", "traceparent: "+caller, "tracestate: a=b")
	for range 5 {
		s.log(xapi, 110, "VM.start R:07432559b308", "audit", "something that is no anchor")
	}
	s.reply("c", 110, success, "")
	s.close(xapi, "c")
	s.threadExit(xapi, 110)
	return s.events
}

func TestAllocatesNothing(t *testing.T) {
	for _, test := range []struct {
		name   string
		events []event.Event
	}{
		{"call", callEvents(t)},
		{"everything", newWorkSeed(t)},
		{"hop", hopEvents(t)},
		{"times", timeEvents(t)},
	} {
		t.Run(test.name, func(t *testing.T) {
			rnd := rand.New(rand.NewPCG(3, 3))
			spans := 0
			r := newReplayer(New(Config{Rand: rnd.Uint64, Emit: func(*Span) { spans++ }}), test.events)
			for range 100 {
				r.run()
			}
			qt.Check(t, qt.Equals(testing.AllocsPerRun(1000, r.run), 0))
			qt.Check(t, qt.Not(qt.Equals(spans, 0)))
		})
	}
}

// timeEvents is a call with stretches, more waits than are kept pending, one of
// each way among them, and a call through message-switch.
func timeEvents(t testing.TB) []event.Event {
	s := gather(t)
	s.openSwitch()
	s.accept("c", 18)
	s.thread(xapi, 105, 110)
	s.blockedIn(xapi, 110, event.Network, 45, 0)
	s.request("c", 110, "VM.start", "traceparent: "+caller)
	for w := event.Hypercall; w < event.NumSpent; w++ {
		s.stretch(xapi, 110, map[event.Spent]time.Duration{event.OnCPU: ms, w: ms})
		s.blockedIn(xapi, 110, w, int32(w), 36|11<<32)
		s.blockedIn(xapi, 110, w, 1000, 77)
	}
	s.ask(110, "VM.exists", "")
	s.blockedIn(xapi, 110, event.Network, 45, 0)
	s.number(110, 1)
	s.answered(1, "null")
	s.reply("c", 110, success, "")
	s.close(xapi, "c")
	s.threadExit(xapi, 110)
	return s.events
}

func newWorkSeed(t *testing.T) []event.Event {
	return newWork(t, 1, rand.New(rand.NewPCG(1, 1))).events
}

func benchmark(b *testing.B, events []event.Event) {
	rnd := rand.New(rand.NewPCG(3, 3))
	spans := 0
	r := newReplayer(New(Config{Rand: rnd.Uint64, Emit: func(*Span) { spans++ }}), events)
	r.run()
	spans = 0
	b.ReportAllocs()
	before := cpuTime(b)
	for b.Loop() {
		r.run()
	}
	cpu := float64(cpuTime(b) - before)
	b.ReportMetric(cpu/float64(b.N*len(events)), "cpu-ns/event")
	b.ReportMetric(cpu/float64(spans), "cpu-ns/span")
}

// cpuTime is what the process has used, the garbage collector's share included,
// in ns: wall time says little on a machine that others use.
func cpuTime(b *testing.B) int64 {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return u.Utime.Nano() + u.Stime.Nano()
}

// BenchmarkTime is a call with 50 stretches: 28 spans of waits.
func BenchmarkTime(b *testing.B) { benchmark(b, timeEvents(b)) }

func BenchmarkCall(b *testing.B) { benchmark(b, callEvents(b)) }

// BenchmarkOperation is a call with all that it makes xenopsd do: 7 spans.
func BenchmarkOperation(b *testing.B) {
	benchmark(b, newWork(b, 1, rand.New(rand.NewPCG(1, 1))).events)
}

// FuzzEngine makes events of any bytes: nothing panics, and what is counted is
// there.
func FuzzEngine(f *testing.F) {
	f.Add([]byte("\x01\x01\x01POST / HTTP/1.1\r\ncontent-length: 5\r\n\r\nhello"))
	rnd := rand.New(rand.NewPCG(1, 1))
	for range 3 {
		var seed []byte
		var ev event.Event
		for i := range uint64(20) {
			hostile(&ev, i, rnd)
			seed = append(seed, byte(ev.Kind), byte(ev.Dir)|byte(min(ev.Component, 3))<<2|byte(ev.Flags)<<4, byte(ev.Conn.FD)|byte(ev.TID)<<4)
			seed = binary.LittleEndian.AppendUint16(seed, uint16(len(ev.Head)))
			seed = append(seed, ev.Head...)
		}
		f.Add(seed)
	}
	var relay []byte
	for i, text := range []string{
		"POST /request/q/x HTTP/1.1\r\ncontent-length: 14\r\n\r\n{\"method\":\"x\"}",
		"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\n[[\"q\",1]]",
		"POST /response/x/q/1 HTTP/1.1\r\ncontent-length: 2\r\n\r\n{}",
	} {
		relay = append(relay, byte(event.KindData), byte(event.In)+byte(i&1)|3<<2, 1)
		relay = binary.LittleEndian.AppendUint16(relay, uint16(len(text)))
		relay = append(relay, text...)
	}
	f.Add(relay)
	for i, r := range []request{
		{method: "VM.start", headers: []string{"task-id: " + taskRef, "traceparent: " + caller}},
		{method: "VM.start", framed: true, headers: []string{"subtask-of: " + taskRef}},
		{method: "event.from", userAgent: "dtagent"},
	} {
		var seed []byte
		head, body := r.answer()
		for _, dir := range []event.Dir{event.Out, event.In} {
			conn := byte(dir) | 2*byte(i)<<2
			for j, text := range []string{r.text(), head + body} {
				seed = append(seed, byte(event.KindOpen), byte(event.Xapi)<<2, conn, 0, 0)
				seed = append(seed, byte(event.KindData), byte(dir)^3*byte(j)|byte(event.Xapi)<<2, conn)
				seed = binary.LittleEndian.AppendUint16(seed, uint16(len(text)))
				seed = append(seed, text...)
			}
		}
		f.Add(seed)
	}
	var times []byte
	for i := range 20 { // stretches within a request, most of them nonsense
		text := []byte("GET /x HTTP/1.1\r\n\r\n")
		if i > 0 {
			text = binary.LittleEndian.AppendUint64(nil, uint64(i)*0x0101010101010101)
		}
		kind := byte(event.KindData)
		if i > 0 {
			kind = byte(event.KindTime)
		}
		times = append(times, kind, byte(event.In)|byte(event.Xapi)<<2, 0x11)
		times = binary.LittleEndian.AppendUint16(times, uint16(len(text)))
		times = append(times, text...)
	}
	f.Add(times)
	f.Fuzz(func(t *testing.T, data []byte) {
		spans := uint64(0)
		e := New(Config{Emit: func(s *Span) {
			spans++
			if !s.TraceID.IsValid() || !s.SpanID.IsValid() || s.End < s.Start || s.Name == "" {
				t.Fatalf("bad span %+v", s)
			}
			accounted(t, s)
		}, Limits: Limits{Activities: 16, Conns: 8, Threads: 8, Keys: 8, Buffers: 2, BodyBytes: 512, Age: time.Minute}})
		now := event.Time(1)
		for len(data) >= 5 {
			kind, bits, ids, n := data[0], data[1], data[2], int(binary.LittleEndian.Uint16(data[3:]))
			data = data[5:]
			n = min(n, len(data))
			head := data[:n]
			data = data[n:]
			now += event.Time(ids) * 1e6
			ev := event.Event{
				Kind: event.Kind(kind % 11), Dir: event.Dir(bits & 3), Component: [...]event.Component{event.NoComponent, event.Xapi, event.Xenopsd, event.MessageSwitch}[bits>>2&3], Flags: event.Flags(bits >> 4),
				TGID: uint32(ids & 1), TID: uint32(ids >> 4), Time: now, First: now - 1, Last: now,
				Conn:      event.Conn{TGID: uint32(ids & 1), FD: int32(ids & 7), Born: event.Time(kind / 11 % 3)},
				How:       event.How(ids % 6),
				Ino:       uint64(ids >> 3 & 3),
				PeerIno:   uint64(bits >> 5 & 3),
				PeerTGID:  uint32(ids >> 5 & 3),
				ChildTGID: uint32(ids&1) + uint32(kind>>7)*3, ChildTID: uint32(bits >> 4),
				Program: string(head[:min(len(head), 8)]), Head: head, Bytes: uint64(n) + uint64(kind>>6)*100, Count: 1,
			}
			for i, b := range head[:min(len(head), 24)] {
				switch i {
				case 0, 1, 2: // moments around now, or far off
					d := event.Time(int8(b)) * 1e6
					if b&7 == 7 {
						d = event.Time(int8(b)) << 56
					}
					*[...]*event.Time{&ev.First, &ev.Last, &ev.Runnable}[i] += d
				case 3:
					ev.Wait = event.Spent(b % 20)
				case 4:
					ev.Syscall = int32(int8(b))
				default:
					ev.Spent[(int(b)+i)%len(ev.Spent)] += int64(int8(b)) << (b & 63)
					ev.Detail = ev.Detail<<5 ^ uint64(b)
				}
			}
			if ev.Kind == event.KindRequest {
				for i, b := range head[:min(len(head), len(ev.Request.Layers))] {
					ev.Request.Layers[i] = int64(int8(b)) << (bits & 31)
				}
				if bits&1 == 0 { // that can be
					ev.Request.Layers[event.LayerTotal] = 0
					for l, ns := range ev.Request.Layers {
						ev.Request.Layers[l] = max(ns, -ns)
						ev.Request.Layers[event.LayerTotal] += max(ns, -ns)
					}
					ev.First, ev.Last = now, now+event.Time(ev.Request.Layers[event.LayerTotal])
				}
				ev.Disk = &event.GuestDisk{VM: vmID, Name: string(head), Images: []string{string(head)}, Server: string(head)}
			}
			if ev.Kind == event.KindLost {
				ev.Last = now + event.Time(bits)*1e6 // it goes on
			}
			if kind >= 128 {
				ev.Head, ev.Tail = head[:n/2], head[n/2:]
			}
			e.Handle(&ev)
			if ids&3 == 0 {
				e.Advance(now)
			}
		}
		e.check(t)
		e.Drain()
		e.check(t)
		if st := e.Stats(); st.Activities != 0 || st.Times != 0 || e.waits != 0 || st.Spans != spans {
			t.Fatalf("%d spans, %+v", spans, st)
		}
	})
}
