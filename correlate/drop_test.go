package correlate

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"github.com/go-quicktest/qt"
	"go.opentelemetry.io/otel/trace"

	"github.com/xenserver/dtagent/probes/event"
)

// bustle is a toolstack with many callers at once, for which numbers of threads,
// processes and sockets are few and used again at once. It plays its events to a
// script and knows what each of them is part of.
type bustle struct {
	*script
	rand   *rand.Rand
	actors []*actor
	locked map[string]bool
	free   map[string][]uint32 // numbers that can be given out, by sort

	calls    int
	messages int
	jobs     int

	up     map[string]string     // what hangs under what, by name
	starts map[event.Time]string // names of API calls and processes, by the start of their spans
	sent   map[string]string     // span ids of traceparents, by name of the call
}

// actor does one thing after another; of several actors any may be next.
type actor struct{ steps []step }

// step is a part of an actor's work during which nobody else's comes in between.
type step struct {
	lock, unlock string
	do           func()
}

func (a *actor) then(f func())       { a.steps = append(a.steps, step{do: f}) }
func (a *actor) acquire(lock string) { a.steps = append(a.steps, step{lock: lock}) }
func (a *actor) release(lock string) { a.steps = append(a.steps, step{unlock: lock}) }

func newBustle(t testing.TB, seed uint64) *bustle {
	b := &bustle{script: gather(t), rand: rand.New(rand.NewPCG(seed, 7)), locked: map[string]bool{}, free: map[string][]uint32{},
		up: map[string]string{}, starts: map[event.Time]string{}, sent: map[string]string{}}
	for i := range uint32(6) {
		b.free["tid"] = append(b.free["tid"], 110+i)
		b.free["rpc"] = append(b.free["rpc"], 220+i)
		b.free["fd"] = append(b.free["fd"], 20+i)
		b.free["pid"] = append(b.free["pid"], 300+i)
	}
	b.openSwitch()
	return b
}

// take and give hand out the numbers of a sort, the one given back last first.
func (b *bustle) take(sort string) uint32 {
	all := b.free[sort]
	if len(all) == 0 {
		b.Fatalf("no %s is free", sort)
	}
	b.free[sort] = all[:len(all)-1]
	return all[len(all)-1]
}

func (b *bustle) give(sort string, n uint32) { b.free[sort] = append(b.free[sort], n) }

// run lets the actors work, in any order, until all is done.
func (b *bustle) run() {
	for {
		var ready []*actor
		for _, a := range b.actors {
			if len(a.steps) > 0 && !b.locked[a.steps[0].lock] {
				ready = append(ready, a)
			}
		}
		if len(ready) == 0 {
			break
		}
		a := ready[b.rand.IntN(len(ready))]
		s := a.steps[0]
		a.steps = a.steps[1:]
		if s.lock != "" {
			b.locked[s.lock] = true
		}
		delete(b.locked, s.unlock)
		if s.do != nil {
			s.do()
		}
	}
	for _, a := range b.actors {
		if len(a.steps) > 0 {
			b.Fatal("actors wait for each other")
		}
	}
}

// connection is the life of a connection with its thread and some calls.
func (b *bustle) connection() {
	a := &actor{}
	b.actors = append(b.actors, a)
	var tid, fd uint32
	conn := fmt.Sprint("conn", len(b.actors))
	slot := fmt.Sprint("connection", b.rand.IntN(5)) // so many at once
	a.acquire(slot)
	a.then(func() {
		tid, fd = b.take("tid"), b.take("fd")
		b.accept(conn, int32(fd))
	})
	a.then(func() { b.thread(xapi, 105, tid) })
	for range 1 + b.rand.IntN(3) {
		b.call(a, conn, &tid)
	}
	a.then(func() { b.close(xapi, conn); b.give("fd", fd) })
	a.then(func() { b.threadExit(xapi, tid); b.give("tid", tid) })
	a.release(slot)
}

func (b *bustle) call(a *actor, conn string, tid *uint32) {
	b.calls++
	name := fmt.Sprint("VM.call", b.calls)
	task := fmt.Sprintf("%012x", 0xabc000+b.calls)
	var headers []string
	if b.rand.IntN(2) == 0 {
		span := fmt.Sprintf("%016x", 0xd00+b.calls)
		b.sent[name] = span
		headers = append(headers, fmt.Sprintf("traceparent: 00-%032x-%s-01", 0xe00+b.calls, span))
	}
	a.then(func() {
		// The head; its body is a step of its own.
		at := b.in(xapi, conn, *tid, b.head(name, headers))
		b.starts[at-5_000] = name
	})
	a.then(func() { b.data(xapi, conn, *tid, event.In, b.body(name), event.FlagMore) })
	if b.rand.IntN(2) == 0 {
		a.then(func() { b.log(xapi, *tid, name+" R:"+task, "audit", name) })
	}
	for i := range b.rand.IntN(4) {
		b.work(a, name, fmt.Sprint(b.calls, "_", i), task, tid)
	}
	a.then(func() {
		b.out(xapi, conn, *tid, fmt.Sprintf("HTTP/1.1 200 OK\r\ncontent-length: %d\r\nconnection: keep-alive\r\n\r\n", len(success)))
	})
	a.then(func() { b.data(xapi, conn, *tid, event.Out, success, event.FlagMore) })
}

func (b *bustle) body(name string) string {
	return "<?xml version='1.0'?>\n<methodCall>\n<methodName>" + name + "</methodName>\n<params>\n</params>\n</methodCall>\n"
}

func (b *bustle) head(name string, headers []string) string {
	return "POST / HTTP/1.1\r\nHost: localhost\r\n" + strings.Join(append(headers, fmt.Sprintf("Content-Length: %d\r\n\r\n", len(b.body(name)))), "\r\n")
}

// work is something that a call has done: by a child, or by xenopsd, which may do it
// at once or have a worker do it.
func (b *bustle) work(a *actor, of, id, task string, tid *uint32) {
	if b.rand.IntN(4) == 0 {
		b.child(a, xapi, of, "p"+id, tid)
		return
	}
	method, info := "M"+id, of+" R:"+task
	send, rpc := "send "+xenops+" "+method, method
	b.up[send], b.up[rpc] = of, send
	b.messages++
	n := b.messages
	a.acquire("ask")
	path, text := "/request/"+xenops+"/xapi:100", rpcBody(method, info)
	a.then(func() { b.out(xapi, "ask", *tid, postHead(path, len(text))) })
	a.then(func() { b.data(xapi, "ask", *tid, event.Out, text, event.FlagMore) })
	a.then(func() { b.number(*tid, n) })
	a.release("ask")

	// xenopsd's listener, and the thread that it makes
	var thread uint32
	a.acquire("listen")
	a.then(func() {
		b.post(xenopsd, "listen", 201, "/transfer", `{"from":"64","timeout":30.0,"queues":["`+xenops+`"]}`)
	})
	a.then(func() {
		b.answer(xenopsd, "listen", 201, fmt.Sprintf(`{"messages":[[["%s",%d],{"payload":%s,"kind":["Request","xapi:100"]}]],"next":"%d"}`, xenops, n, quote(text), n))
	})
	a.then(func() { thread = b.take("rpc"); b.thread(xenopsd, 201, thread) })
	a.release("listen")

	result := "null"
	var worker *actor
	switch b.rand.IntN(3) {
	case 0: // a worker does it
		job := b.jobs
		b.jobs++
		result = fmt.Sprintf(`"%d"`, job)
		vm := fmt.Sprint("vm", b.rand.IntN(3))
		done := fmt.Sprint("job", job)
		a.acquire(vm) // one operation of a VM at a time
		a.acquire(done)
		op := `["VM_start",["` + vm + `",false]]`
		a.then(func() {
			b.log(xenopsd, thread, "queue", "Xapi_work_queues", "Queue.push "+op+" onto "+vm+":[  ]")
			worker = &actor{}
			b.operation(worker, rpc, op, id, info, job)
			worker.release(vm)
			worker.release(done)
			b.actors = append(b.actors, worker)
		})
		defer func() { a.acquire(done); a.release(done) }()
	case 1: // its own thread starts a child
		b.child(a, xenopsd, rpc, "q"+id, &thread)
	}

	a.acquire("answer")
	reply := `{"result":` + result + `,"error":null,"id":0}`
	a.then(func() {
		b.out(xenopsd, "answer", thread, postHead(fmt.Sprintf("/response/xapi:100/%s/%d", xenops, n), len(reply)))
	})
	a.then(func() { b.data(xenopsd, "answer", thread, event.Out, reply, event.FlagMore) })
	a.then(func() { b.answer(xenopsd, "answer", thread, `[["xapi:100",76]]`) })
	a.release("answer")
	a.then(func() { b.threadExit(xenopsd, thread); b.give("rpc", thread) })

	a.acquire("wait")
	a.then(func() { b.post(xapi, "wait", 101, "/transfer", `{"from":"76","timeout":30.0,"queues":["xapi:100"]}`) })
	a.then(func() {
		b.answer(xapi, "wait", 101, fmt.Sprintf(`{"messages":[[["xapi:100",%d],{"payload":%s,"kind":["Response",["%s",%d]]}]],"next":"76"}`, 1000+n, quote(reply), xenops, n))
	})
	a.release("wait")
}

func postHead(path string, n int) string {
	return fmt.Sprintf("POST %s HTTP/1.1\r\nuser-agent: cohttp\r\ncontent-length: %d\r\nconnection: keep-alive\r\nhost: localhost\r\n\r\n", path, n)
}

// operation is a job in one of xenopsd's workers, with atoms.
func (b *bustle) operation(a *actor, rpc, op, id, info string, job int) {
	tid := uint32(210 + b.rand.IntN(3))
	lock := fmt.Sprint("worker", tid)
	name := fmt.Sprint("job ", job)
	b.up[name] = rpc
	a.acquire(lock)
	a.then(func() { b.log(xenopsd, tid, "", "Xapi_work_queues", "Queue.pop returned "+op) })
	a.then(func() {
		b.log(xenopsd, tid, info, "xenops_server", fmt.Sprintf("Task %d reference %s: %s", job, info, op))
	})
	for i := range b.rand.IntN(3) {
		atom := fmt.Sprint("A", id, "_", i)
		b.up[atom] = name
		a.then(func() { b.log(xenopsd, tid, info, "xenops_server", `Performing: ["`+atom+`","vm"]`) })
		if b.rand.IntN(2) == 0 {
			b.child(a, xenopsd, atom, fmt.Sprint("r", id, "_", i), &tid)
		}
	}
	a.then(func() { b.log(xenopsd, tid, info, "task_server", fmt.Sprintf("Task %d completed; duration = 0", job)) })
	a.release(lock)
}

// child is a process that a thread starts and waits for; it may start another.
func (b *bustle) child(a *actor, d daemon, of, program string, tid *uint32) {
	b.up[program] = of
	var pid uint32
	a.acquire("children") // there are few pids
	a.then(func() { pid = b.take("pid"); b.starts[b.fork(d, *tid, pid)] = program })
	exec := func(pid uint32, program string) {
		b.exec(d, pid, program, "")
		b.starts[b.now] = program // where its fork was lost
	}
	a.then(func() { exec(pid, program) })
	if b.rand.IntN(2) == 0 {
		inner := program + "i"
		b.up[inner] = program
		var pid2 uint32
		a.then(func() {
			pid2 = b.take("pid")
			ev := d.event(event.KindFork, pid)
			ev.TGID, ev.ChildTGID, ev.ChildTID = pid, pid2, pid2
			b.starts[b.put(ev)] = inner
		})
		a.then(func() { exec(pid2, inner) })
		a.then(func() { b.exit(d, pid2, 0); b.give("pid", pid2) })
	}
	a.then(func() { b.exit(d, pid, 0); b.give("pid", pid) })
	a.release("children")
}

// nameOf is the name by which the bustle knows what a span is of, "" if the span does
// not say enough.
func (b *bustle) nameOf(sp *Span) string {
	if n := attr(sp, "dt.xenopsd.task.id"); n != "" {
		return "job " + n
	}
	if sp.Kind == trace.SpanKindServer || attr(sp, "thread.id") == "" && sp.Kind == trace.SpanKindInternal {
		return b.starts[event.Time(sp.Start)]
	}
	if _, ok := b.up[sp.Name]; ok {
		return sp.Name
	}
	return ""
}

// caller is the API call that all of it is for.
func (b *bustle) caller(name string) string {
	for b.up[name] != "" {
		name = b.up[name]
	}
	return name
}

// judge asserts that no span hangs under another than one of its ancestors, and that
// no trace has spans of two callers. It returns how many hang where they should.
func (b *bustle) judge(t testing.TB, spans []*Span) (right int) {
	t.Helper()
	byID := make(map[trace.SpanID]*Span)
	for _, sp := range spans {
		byID[sp.SpanID] = sp
	}
	callers := make(map[trace.TraceID]string)
	for _, sp := range spans {
		name := b.nameOf(sp)
		if name == "" {
			if sp.Incomplete == "" {
				t.Errorf("span %q is nobody's and complete", sp.Name)
			}
			continue
		}
		caller := b.caller(name)
		if old, ok := callers[sp.TraceID]; ok && old != caller {
			t.Errorf("trace %s has spans of %s and %s", sp.TraceID, old, caller)
		}
		callers[sp.TraceID] = caller
		if !sp.ParentID.IsValid() {
			if b.up[name] != "" && sp.Incomplete == "" {
				t.Errorf("%s has no parent, should have %s, and is not incomplete", name, b.up[name])
			}
			continue
		}
		if sp.ParentID.String() == b.sent[caller] {
			if name == caller {
				right++
			}
			continue
		}
		p := byID[sp.ParentID]
		if p == nil {
			t.Errorf("%s has a parent that there is not", name)
			continue
		}
		parent := b.nameOf(p)
		switch {
		case parent == "":
			t.Errorf("%s (%s) has a parent of which is not known what it is: %q", name, sp.Link, p.Name)
		case parent == b.up[name]:
			right++
		case !b.isAbove(parent, name):
			t.Errorf("%s (%s) has the parent %s, should have %s", name, sp.Link, parent, b.up[name])
		case sp.Incomplete == "":
			t.Errorf("%s (%s) has the parent %s, should have %s, and is not incomplete", name, sp.Link, parent, b.up[name])
		}
	}
	return right
}

func (b *bustle) isAbove(parent, name string) bool {
	for name = b.up[name]; name != ""; name = b.up[name] {
		if name == parent {
			return true
		}
	}
	return false
}

// handleAll hands the events to a new engine.
func handleAll(t testing.TB, events []event.Event) (spans []*Span, stats Stats) {
	s := &script{TB: t, now: 1e9}
	e := New(config(s, Limits{}))
	for i := range events {
		e.Handle(&events[i])
		if i%500 == 0 {
			e.check(t)
			e.Advance(events[i].Time)
		}
	}
	e.Drain()
	e.check(t)
	return s.spans, e.Stats()
}

// dropped loses events, and tells of it as the agent does: of a gap it is known that it
// lies between two times.
func dropped(r *rand.Rand, all []event.Event, share float64, wide int) (left []event.Event, lost int) {
	type gap struct{ first, last event.Time }
	var gaps []gap
	keep := make([]bool, len(all))
	for i := range all {
		if keep[i] = r.Float64() >= share; !keep[i] {
			lost++
			first, last := max(i-r.IntN(wide+1), 0), min(i+r.IntN(wide+1), len(all)-1)
			gaps = append(gaps, gap{all[first].Time, all[last].Time})
		}
	}
	slices.SortFunc(gaps, func(a, b gap) int { return int(a.first - b.first) })
	for i := range all {
		for len(gaps) > 0 && gaps[0].first <= all[i].Time {
			left = append(left, event.Event{Kind: event.KindLost, Count: 1, Time: gaps[0].first, First: gaps[0].first, Last: gaps[0].last})
			gaps = gaps[1:]
		}
		if keep[i] {
			left = append(left, all[i])
		}
	}
	return left, lost
}

func bustleOf(t testing.TB, seed uint64) *bustle {
	b := newBustle(t, seed)
	for range 25 {
		b.connection()
	}
	b.run()
	return b
}

// TestBustle: with nothing lost every span hangs where it should, whatever order
// the events come in and whatever numbers are used again.
func TestBustle(t *testing.T) {
	for seed := range uint64(20) {
		b := bustleOf(t, seed)
		spans, stats := handleAll(t, b.events)
		if right, want := b.judge(t, spans), len(b.up)+len(b.sent); right != want {
			t.Errorf("seed %d: %d links are right of %d", seed, right, want)
		}
		qt.Check(t, qt.Equals(stats.Incomplete, 0))
		qt.Check(t, qt.Equals(len(spans), len(b.up)+b.calls))
		if t.Failed() {
			return
		}
	}
}

// TestDropped: whatever gets lost, no span hangs under another's work, and what may
// lack something says so.
func TestDropped(t *testing.T) {
	right, lost := 0, 0
	for seed := range uint64(20) {
		b := bustleOf(t, seed)
		r := rand.New(rand.NewPCG(seed, 9))
		for _, share := range []float64{0.001, 0.01, 0.1, 0.4} {
			for _, wide := range []int{0, 3, 100} {
				events, n := dropped(r, b.events, share, wide)
				spans, stats := handleAll(t, events)
				right += b.judge(t, spans)
				lost += n
				qt.Check(t, qt.Equals(stats.EventsLost, uint64(n)))
				if t.Failed() {
					t.Fatalf("seed %d, %v of the events lost, told %d around", seed, share, wide)
				}
			}
		}
	}
	t.Logf("%d events lost; %d links right all the same", lost, right)
	qt.Check(t, qt.IsTrue(lost > 1000 && right > 1000))
}

// TestDroppedUntold shows that TestDropped can fail: without being told of the
// losses the engine takes work for another's.
func TestDroppedUntold(t *testing.T) {
	failed := 0
	for seed := range uint64(10) {
		b := bustleOf(t, seed)
		events, _ := dropped(rand.New(rand.NewPCG(seed, 9)), b.events, 0.1, 0)
		events = slices.DeleteFunc(events, func(ev event.Event) bool { return ev.Kind == event.KindLost })
		spans, _ := handleAll(t, events)
		var f counted
		b.judge(&f, spans)
		failed += f.errors
	}
	qt.Check(t, qt.IsTrue(failed > 0))
}

// counted takes what is asserted and only counts it.
type counted struct {
	testing.TB
	errors int
}

func (c *counted) Helper()               {}
func (c *counted) Errorf(string, ...any) { c.errors++ }
