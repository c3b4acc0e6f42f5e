package correlate

import (
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"github.com/go-quicktest/qt"
	"github.com/xenserver/dtagent/probes/event"
	"go.opentelemetry.io/otel/trace"
)

// waitSpans returns those of the given name.
func (s *script) waitSpans(name string) (out []*Span) {
	for _, sp := range s.spans {
		if sp.Wait != event.OnCPU && sp.Name == name {
			out = append(out, sp)
		}
	}
	return out
}

// blockedIn plays a long wait of 5 ms.
func (s *script) blockedIn(d daemon, tid uint32, class event.Spent, syscall int32, detail uint64) {
	ev := d.event(event.KindTime, tid)
	ev.First, ev.Wait, ev.Syscall, ev.Detail = s.now, class, syscall, detail
	s.now += event.Time(5 * ms)
	ev.Runnable, ev.Spent[class] = s.now, int64(5*ms)
	s.told(ev)
}

func TestWaitNames(t *testing.T) {
	const domctl = 36
	s := begun(t)
	s.queued(210, 220, start)
	s.started(220, 6, tagged, start)
	var want []string
	for _, w := range []struct {
		class   event.Spent
		syscall int32
		detail  uint64
		name    string
		attrs   string
	}{
		{event.Hypercall, 16, domctl | 1<<32, "hypercall domctl", "hypercall ioctl 36 1 createdomain"},
		{event.Hypercall, 16, domctl | 999<<32, "hypercall domctl", "hypercall ioctl 36 999 "},
		{event.Hypercall, 16, 41, "hypercall dm_op", "hypercall ioctl 41  "},
		{event.Hypercall, -1, 99, "hypercall 99", "hypercall  99  "},
		{event.Xenstore, 0, 0, "xenstore", "xenstore read   "},
		{event.EventChan, 7, 0, "event channel", "evtchn poll   "},
		{event.Lock, 202, 0, "lock", "lock futex   "},
		{event.Child, 61, 0, "wait child", "child wait4   "},
		{event.Fsync, 75, 0, "fsync", "fsync fdatasync   "},
		{event.Flock, 72, 0, "flock", "flock fcntl   "},
		{event.FileIO, 0, 0, "file read", "file read   "},
		{event.FileIO, 18, 0, "file write", "file pwrite64   "},
		{event.FileIO, 257, 0, "file open", "file openat   "},
		{event.FileIO, 12345, 0, "file", "file    "},
		{event.Connecting, 42, 0, "connect", "connect connect   "},
		{event.Network, 45, 0, "network read", "network recvfrom   "},
		{event.Sleeping, 230, 0, "sleep", "sleep clock_nanosleep   "},
		{event.Polling, 23, 0, "poll", "poll select   "},
		{event.Pipe, 1, 0, "pipe write", "pipe write   "},
		{event.OtherWait, 26, 0, "wait msync", "other msync   "},
		{event.OtherWait, -1, 0, "wait", "other    "},
	} {
		s.blockedIn(xenopsd, 220, w.class, w.syscall, w.detail)
		want = append(want, w.name+": "+w.attrs)
	}
	s.completed(220, 6)
	s.respond(64, 210, "null")
	s.drain()
	var got []string
	for _, sp := range s.spans {
		if sp.Wait == event.OnCPU {
			continue
		}
		got = append(got, fmt.Sprintf("%s: %s %s %s %s %s", sp.Name, attr(sp, "dt.wait.class"), attr(sp, "dt.wait.syscall"),
			attr(sp, "dt.hypercall.number"), attr(sp, "dt.domctl.command"), attr(sp, "dt.domctl.name")))
		qt.Check(t, qt.Equals(sp.ParentID, s.span("VM_start").SpanID))
		qt.Check(t, qt.Equals(sp.Kind, trace.SpanKindInternal))
		qt.Check(t, qt.Equals(sp.Link, LinkThread))
		qt.Check(t, qt.Equals(sp.Component, event.Xenopsd))
		qt.Check(t, qt.Equals(sp.Service, "xenopsd"))
		qt.Check(t, qt.Equals(attr(sp, "process.pid"), "200"))
		qt.Check(t, qt.Equals(attr(sp, "thread.id"), "220"))
		qt.Check(t, qt.Equals(sp.Incomplete, ""))
		qt.Check(t, qt.IsFalse(sp.Last))
	}
	qt.Check(t, qt.DeepEquals(got, want))
	accounted(t, s.span("VM_start"))
}

// A wait hangs under the innermost activity that was there for the whole of it.
func TestWaitParents(t *testing.T) {
	s := begun(t)
	s.blockedIn(xenopsd, 210, event.Lock, 202, 0) // in the RPC
	s.queued(210, 220, start)
	s.blockedIn(xenopsd, 220, event.FileIO, 1, 0) // of nobody
	s.started(220, 6, tagged, start)
	s.blockedIn(xenopsd, 220, event.Flock, 73, 0) // in the operation
	s.performing(220, tagged, `["VM_create",["`+vm+`",[],[],false]]`)
	s.blockedIn(xenopsd, 220, event.Hypercall, 16, 36) // in its step
	s.signal(220, 6)
	s.blockedIn(xenopsd, 220, event.Xenstore, 0, 0) // between two steps
	s.performing(220, tagged, `["VM_build",["`+vm+`",false]]`)
	s.fork(xenopsd, 220, 300)
	guest := daemon{event.Xenopsd, 300, "xenguest"}
	s.exec(xenopsd, 300, "xenguest", "")
	s.blockedIn(guest, 300, event.EventChan, 0, 0) // in the process
	s.blockedIn(guest, 301, event.Lock, 202, 0)    // of another thread of it
	s.exit(xenopsd, 300, 0)
	s.blockedIn(xenopsd, 220, event.Child, 61, 0) // in the step
	s.completed(220, 6)
	s.blockedIn(xenopsd, 220, event.FileIO, 1, 0) // of nobody
	s.respond(64, 210, "null")
	s.drain()
	for wait, parent := range map[string]string{
		"lock": "VM.start", "flock": "VM_start", "hypercall domctl": "VM_create", "xenstore": "VM_start",
		"event channel": "xenguest", "wait child": "VM_build",
	} {
		s.under(wait, parent, LinkThread)
	}
	qt.Check(t, qt.Equals(s.span("event channel").Also, event.Xenguest))
	qt.Check(t, qt.Equals(s.e.Stats().Waits, WaitStats{Spans: 6, Idle: 3}))
	qt.Check(t, qt.Equals(s.e.Stats().Stretches, 9))
}

// Who waits for the answer to a call does not wait for itself: the call's span
// says it. That the call was made may be told after the wait.
func TestWaitAnswered(t *testing.T) {
	s := newScript(t)
	s.openSwitch()
	s.accept("c", 18)
	s.request("c", 110, "VM.start")
	s.blockedIn(xapi, 110, event.Lock, 202, 0) // before the call
	first := s.now
	s.blockedIn(xapi, 110, event.Network, 45, 0) // for the call's number, told before the call is
	s.conns["ask"] = event.Conn{TGID: 100, FD: 9, Born: s.conns["ask"].Born}
	body := rpcBody("VM.exists", tagged)
	ev := xapi.event(event.KindData, 110)
	ev.Conn, ev.Dir, ev.First = s.conns["ask"], event.Out, first
	ev.Head = fmt.Appendf(nil, "POST /request/%s/xapi:100 HTTP/1.1\r\ncontent-length: %d\r\n\r\n%s", xenops, len(body), body)
	s.put(ev)
	s.number(110, 64)
	s.blockedIn(xapi, 110, event.FileIO, 1, 0)
	s.deliver(64, "VM.exists", tagged)
	s.thread(xenopsd, 201, 210)
	s.respond(64, 210, "null")
	from := s.now
	end := s.answered(64, "null")
	s.e.Advance(end)
	lock := xapi.event(event.KindTime, 110) // woken by it
	lock.First, lock.Runnable, lock.Wait, lock.Syscall, lock.Spent[event.Lock] = from, s.now, event.Lock, 202, int64(s.now-from)
	s.told(lock)
	s.blockedIn(xapi, 110, event.Lock, 202, 0) // after the call
	s.reply("c", 110, success, "")
	s.blockedIn(xapi, 110, event.Network, 0, 0) // for the next request
	s.drain()
	qt.Check(t, qt.HasLen(s.waitSpans("lock"), 2))
	qt.Check(t, qt.HasLen(s.waitSpans("file write"), 1))
	qt.Check(t, qt.Equals(s.e.Stats().Waits, WaitStats{Spans: 3, Answered: 2, Idle: 1}))
	accounted(t, s.span("VM.start"))
}

// However many waits there are, each has its span, up to the bound.
func TestWaitsOfOne(t *testing.T) {
	for _, n := range []int{1, 15, 16, 17, 40, waitsPerSpan, waitsPerSpan + 72} {
		s := newScript(t)
		s.openSwitch()
		s.ask(110, "VM.stat", tagged)
		s.number(110, 64)
		s.deliver(64, "VM.stat", tagged)
		s.thread(xenopsd, 201, 210)
		for range n {
			s.blockedIn(xenopsd, 210, event.FileIO, 0, 0)
		}
		s.respond(64, 210, "null")
		s.drain()
		spans := s.waitSpans("file read")
		qt.Check(t, qt.HasLen(spans, min(n, waitsPerSpan)))
		at := make(map[int64]bool)
		for _, sp := range spans {
			qt.Check(t, qt.Equals(sp.ParentID, s.span("VM.stat").SpanID))
			at[sp.Start] = true
		}
		qt.Check(t, qt.HasLen(at, len(spans)))
		more := ""
		if n > waitsPerSpan {
			more = fmt.Sprint(n - waitsPerSpan)
		}
		qt.Check(t, qt.Equals(attr(s.span("VM.stat"), "dt.wait.more"), more))
		qt.Check(t, qt.Equals(s.e.Stats().Waits, WaitStats{Spans: uint64(len(spans)), Dropped: uint64(n - len(spans))}))
		qt.Check(t, qt.Equals(s.e.waits, 0))
	}
}

// Wait spans never push work out: they take half of the room at most.
func TestWaitsOfAll(t *testing.T) {
	s := limitedScript(t, Limits{Activities: 20})
	s.openSwitch()
	s.deliver(64, "VM.stat", tagged)
	s.thread(xenopsd, 201, 210)
	for range 30 {
		s.blockedIn(xenopsd, 210, event.FileIO, 0, 0)
	}
	s.respond(64, 210, "null")
	s.drain()
	qt.Check(t, qt.HasLen(s.waitSpans("file read"), 10))
	qt.Check(t, qt.Equals(attr(s.span("VM.stat"), "dt.wait.more"), "20"))
	qt.Check(t, qt.Equals(s.e.Stats().Waits, WaitStats{Spans: 10, Dropped: 20}))
	qt.Check(t, qt.Equals(s.e.Stats().ActivitiesEvicted, 0))
}

// A process that stays for others' sake waits for its next work, and what is
// left out of the traces has no waits either.
func TestWaitsOfNobody(t *testing.T) {
	s := newScript(t)
	s.accept("c", 18)
	s.request("c", 110, "VM.start")
	s.fork(xapi, 110, 300)
	s.exec(xapi, 300, "stunnel", "")
	tunnel := daemon{event.Xapi, 300, "stunnel"}
	for range 40 {
		s.blockedIn(tunnel, 300, event.Polling, 7, 0)
	}
	s.reply("c", 110, success, "")
	s.exit(tunnel, 300, 0)
	s.drain()
	qt.Check(t, qt.HasLen(s.waitSpans("poll"), 0))
	qt.Check(t, qt.Equals(s.e.Stats().Waits, WaitStats{Idle: 40}))

	s = newScript(t)
	s.accept("c", 18)
	s.request("c", 110, "event.from", "User-Agent: dtagent/1")
	s.blockedIn(xapi, 110, event.Lock, 202, 0)
	s.reply("c", 110, success, "")
	s.drain()
	qt.Check(t, qt.Equals(s.e.Stats().OwnCalls, 1))
	qt.Check(t, qt.HasLen(s.spans, 0))
}

// A thread that ends, or whose end was lost, leaves no wait behind.
func TestWaitsOfThreadEnd(t *testing.T) {
	s := newScript(t)
	s.accept("c", 18)
	s.request("c", 110, "Async.VM.start")
	s.thread(xapi, 110, 120)
	s.blockedIn(xapi, 120, event.Fsync, 74, 0)
	s.put(event.Event{Kind: event.KindLost, Count: 3})
	s.blockedIn(xapi, 120, event.Flock, 73, 0)
	s.threadExit(xapi, 120)
	s.reply("c", 110, success, "OpaqueRef:x")
	s.under("fsync", "VM.start", LinkThread)
	s.under("flock", "VM.start", LinkThread)
	qt.Check(t, qt.Equals(s.span("VM.start").Incomplete, "events lost"))
	qt.Check(t, qt.Equals(s.span("flock").Incomplete, ""))

	s.request("c", 110, "VM.stop")
	s.blockedIn(xapi, 110, event.Fsync, 74, 0)
	s.thread(xapi, 105, 110) // the exit of the old one was lost
	s.blockedIn(xapi, 110, event.Lock, 202, 0)
	s.drain()
	qt.Check(t, qt.HasLen(s.waitSpans("fsync"), 2))
	qt.Check(t, qt.HasLen(s.waitSpans("lock"), 0))
	qt.Check(t, qt.Equals(s.e.Stats().Waits, WaitStats{Spans: 3, Idle: 1}))
}

// toldWait is a wait that was played.
type toldWait struct {
	event.Event
	tid uint32
}

// Whatever threads do: every wait is one span, or one counter says why not; and
// the span is below the innermost activity of its thread that encloses it.
func TestWaitsRandom(t *testing.T) {
	classes := []event.Spent{event.Hypercall, event.Lock, event.FileIO, event.Network, event.Polling, event.Fsync}
	for seed := range uint64(60) {
		rnd := rand.New(rand.NewPCG(seed, 13))
		s := newScript(t)
		s.openSwitch()
		var waits []toldWait
		wait := func(d daemon, tid uint32) {
			for range rnd.IntN(4) {
				if rnd.IntN(2) == 0 {
					s.stretch(d, tid, map[event.Spent]time.Duration{event.OnCPU: time.Duration(rnd.IntN(1e6)) + 1})
				}
				ev := s.blocked(d, tid, classes[rnd.IntN(len(classes))], time.Duration(rnd.IntN(9e6))+1, time.Duration(rnd.IntN(1e6)))
				ev.Last = s.now
				waits = append(waits, toldWait{ev, tid})
			}
		}
		tag := "x R:07432559b308"
		operation := func(n int, worker uint32) {
			wait(xenopsd, worker)
			s.started(worker, n, tag, fmt.Sprintf(`["VM_op%d",["%s",false]]`, n, vm))
			wait(xenopsd, worker)
			for i := range rnd.IntN(4) {
				s.performing(worker, tag, fmt.Sprintf(`["VM_atom%d.%d",["%s"]]`, n, i, vm))
				for range rnd.IntN(4) {
					wait(xenopsd, worker)
				}
				if rnd.IntN(2) == 0 {
					s.log(xenopsd, worker, tag, "xenops_server", fmt.Sprintf(`TASK.signal %d = ["Pending",0.2]`, n))
					wait(xenopsd, worker)
				}
			}
			s.completed(worker, n)
			wait(xenopsd, worker)
		}
		switched := 0
		call := func(n int) {
			wait(xapi, 110)
			s.request("c", 110, fmt.Sprintf("VM.m%d", n))
			wait(xapi, 110)
			for range rnd.IntN(3) {
				switched++
				method := fmt.Sprintf("RPC.m%d", switched)
				s.ask(110, method, "")
				wait(xapi, 110)
				s.number(110, switched)
				s.deliver(switched, method, "")
				rpc := uint32(3000 + switched)
				s.thread(xenopsd, 201, rpc)
				wait(xenopsd, rpc)
				wait(xapi, 110)
				s.respond(switched, rpc, "null")
				wait(xenopsd, rpc)
				s.threadExit(xenopsd, rpc)
				s.answered(switched, "null")
				wait(xapi, 110)
			}
			head := "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"
			ev := xapi.event(event.KindData, 110)
			ev.Conn, ev.Dir, ev.Head, ev.Bytes = s.conns["c"], event.Out, []byte(head), uint64(len(head))
			ev.First, ev.Last = s.now-5_000, s.now
			if rnd.IntN(2) == 0 {
				wait(xapi, 110) // told late
			}
			ev.Time = s.now
			s.e.Handle(&ev)
			s.e.check(t)
		}
		s.accept("c", 18)
		for n := range 6 {
			if rnd.IntN(2) == 0 {
				call(n)
			} else {
				operation(n, 220)
			}
		}
		s.wait(3 * time.Second)
		s.drain()

		starts := make(map[int64]*Span)
		byID := make(map[trace.SpanID]*Span)
		made := uint64(0)
		for _, sp := range s.spans {
			byID[sp.SpanID] = sp
			accounted(t, sp)
			if sp.Wait != event.OnCPU {
				made++
				qt.Assert(t, qt.IsNil(starts[sp.Start]), qt.Commentf("seed %d: two spans of a wait", seed))
				starts[sp.Start] = sp
			}
		}
		st := s.e.Stats().Waits
		qt.Check(t, qt.Equals(st.Spans, made))
		qt.Check(t, qt.Equals(st.Spans+st.Idle+st.Answered+st.Dropped, uint64(len(waits))), qt.Commentf("seed %d: %+v", seed, st))
		qt.Check(t, qt.Equals(st.Dropped, 0))
		for _, w := range waits {
			tid := fmt.Sprint(w.tid)
			var parent *Span
			answered := false
			for _, sp := range s.spans {
				if sp.Wait != event.OnCPU || attr(sp, "thread.id") != tid {
					continue
				}
				if strings.HasPrefix(sp.Name, "send ") {
					answered = answered || (w.Wait == event.Lock || w.Wait == event.Network || w.Wait == event.Polling) &&
						sp.Start <= int64(w.First) && int64(w.First) < sp.End
					continue
				}
				if sp.Start <= int64(w.First) && int64(w.Last) <= sp.End && (parent == nil || sp.Start > parent.Start) {
					parent = sp
				}
			}
			sp := starts[int64(w.First)]
			switch {
			case answered, parent == nil:
				qt.Check(t, qt.IsNil(sp), qt.Commentf("seed %d: %s at %d", seed, w.Wait, w.First))
			case sp == nil:
				t.Errorf("seed %d: %s at %d has no span below %s", seed, w.Wait, w.First, parent.Name)
			default:
				qt.Check(t, qt.Equals(byID[sp.ParentID].Name, parent.Name), qt.Commentf("seed %d: %s at %d", seed, w.Wait, w.First))
				qt.Check(t, qt.Equals(sp.End, int64(w.Last)))
				qt.Check(t, qt.Equals(sp.Wait, w.Wait))
			}
		}
	}
}

// What goes on within an activity when that ends keeps its waits.
func TestWaitsWithin(t *testing.T) {
	s := begun(t)
	s.started(210, 5, tagged, start)
	s.blockedIn(xenopsd, 210, event.Fsync, 74, 0)
	s.respond(64, 210, `"5"`) // the line that ends the operation comes late
	s.completed(210, 5)
	s.drain()
	s.under("fsync", "VM_start", LinkThread)
}

// While the rest of a reply may be told late, the waits that follow what is
// known of it are those for the next request.
func TestWaitsAfterReply(t *testing.T) {
	s := newScript(t)
	s.accept("c", 18)
	s.request("c", 110, "VM.start")
	s.out(xapi, "c", 110, "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n")
	last := s.now
	for range 2 * waitsKept {
		s.blockedIn(xapi, 110, event.Network, 0, 0)
	}
	ev := xapi.event(event.KindData, 110)
	ev.Conn, ev.Dir, ev.Head, ev.Bytes, ev.Flags = s.conns["c"], event.Out, []byte("hello"), 5, event.FlagMore
	ev.Time, ev.First, ev.Last = s.now, last, last
	s.e.Handle(&ev)
	s.drain()
	qt.Check(t, qt.Equals(s.span("VM.start").End, int64(last)))
	qt.Check(t, qt.Equals(s.e.Stats().Waits, WaitStats{Idle: 2 * waitsKept}))
}

// The answer to a call may never be seen.
func TestWaitUnanswered(t *testing.T) {
	s := newScript(t)
	s.openSwitch()
	s.accept("c", 18)
	s.request("c", 110, "VM.start")
	s.ask(110, "VM.exists", tagged)
	s.number(110, 64)
	for range waitsKept + 5 {
		s.blockedIn(xapi, 110, event.Lock, 202, 0)
		s.blockedIn(xapi, 110, event.FileIO, 0, 0)
	}
	s.reply("c", 110, success, "")
	s.drain()
	qt.Check(t, qt.HasLen(s.waitSpans("lock"), 0))
	qt.Check(t, qt.Equals(s.e.Stats().Waits, WaitStats{Spans: waitsKept + 5, Answered: waitsKept + 5}))
}
