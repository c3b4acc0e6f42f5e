package correlate

import (
	"fmt"
	"testing"
	"time"

	"github.com/go-quicktest/qt"
	"go.opentelemetry.io/otel/trace"

	"github.com/xenserver/dtagent/probes/event"
)

// lose says that events were lost since the last one.
func (s *script) lose() { s.put(event.Event{Kind: event.KindLost, Count: 1}) }

// during says that events may be lost in the time that comes, until now + d.
func (s *script) during(d time.Duration) {
	s.put(event.Event{Kind: event.KindLost, Count: 1, First: s.now, Last: s.now + event.Time(d)})
}

// none asserts that the span hangs under nothing, and says that it may lack something.
func (s *script) none(name string) {
	s.Helper()
	s.root(name)
	qt.Check(s, qt.Not(qt.Equals(s.span(name).Incomplete, "")), qt.Commentf("%s", name))
}

const sendTo = "send " + xenops + " "

// The reply of one call and the request of the next, on a connection that is kept,
// are lost: what the thread does is the second call's.
func TestLostTurn(t *testing.T) {
	s := newScript(t)
	s.openSwitch()
	s.accept("a", 18)
	s.request("a", 110, "VM.first")
	s.lose() // reply, request VM.second
	s.rpc(7, 110, 220, "VM.exists", "", "true")
	s.fork(xapi, 110, 300)
	s.exec(xapi, 300, "helper", "")
	s.thread(xapi, 110, 111)
	s.reply("a", 110, success, "")
	s.drain()
	s.none(sendTo + "VM.exists")
	s.under("VM.exists", sendTo+"VM.exists", LinkQueue)
	qt.Check(t, qt.Equals(s.span("VM.first").Incomplete, eventsLost))
	qt.Check(t, qt.HasLen(s.spans, 3)) // and none of the child
}

// Exit and start of threads are lost: another thread has the number.
func TestLostThread(t *testing.T) {
	s := newScript(t)
	s.openSwitch()
	s.accept("a", 18)
	s.request("a", 110, "VM.first")
	s.lose()
	s.accept("b", 19)
	s.request("b", 110, "VM.second") // the same number
	s.rpc(7, 110, 220, "VM.exists", "", "true")
	s.reply("b", 110, success, "")
	s.reply("a", 111, success, "")
	s.drain()
	s.under(sendTo+"VM.exists", "VM.second", LinkThread)
	qt.Check(t, qt.Equals(s.span("VM.second").Incomplete, ""))
}

// A process ends and another gets its pid, unseen.
func TestLostProcess(t *testing.T) {
	s := newScript(t)
	s.accept("a", 18)
	s.request("a", 110, "VM.first")
	s.fork(xapi, 110, 300)
	s.exec(xapi, 300, "one", "")
	s.lose()
	s.exec(xapi, 300, "two", "")
	s.fork(daemon{event.Xapi, 300, ""}, 300, 301)
	s.exec(xapi, 301, "three", "")
	s.exit(xapi, 300, 0)
	s.reply("a", 110, success, "")
	s.drain()
	s.under("one", "VM.first", LinkFork)
	qt.Check(t, qt.Equals(s.span("one").Incomplete, eventsLost))
	qt.Check(t, qt.HasLen(s.spans, 2))
}

// The thread that a listener makes is for the message that was read before, or for
// one whose delivery was lost.
func TestLostDelivery(t *testing.T) {
	s := newScript(t)
	s.openSwitch()
	s.ask(110, "VM.one", "")
	s.number(110, 1)
	s.deliver(1, "VM.one", "")
	s.lose() // the first one's thread, and the second one's delivery
	s.thread(xenopsd, 201, 221)
	s.fork(xenopsd, 221, 300)
	s.exec(xenopsd, 300, "helper", "")
	s.respond(1, 220, "null")
	s.drain()
	qt.Check(t, qt.HasLen(s.spans, 2))
	s.under("VM.one", sendTo+"VM.one", LinkQueue)
}

// A number that the switch gave is that of the call whose request it answers, if it
// is sure that it does.
func TestLostNumber(t *testing.T) {
	s := newScript(t)
	s.openSwitch()
	s.ask(110, "VM.one", "")
	s.lose() // its number, and the request of VM.two
	s.number(110, 2)
	s.deliver(2, "VM.two", "")
	s.drain()
	s.none(sendTo + "VM.one")
	s.none("VM.two")
}

// Of two bodies of answers the first is lost, with the head of the second: xenopsd's
// task would seem to be the first one's.
func TestLostAnswer(t *testing.T) {
	s := newScript(t)
	s.openSwitch()
	for n, method := range []string{"VM.start", "VM.unpause"} {
		s.ask(110, method, "")
		s.number(110, n)
		s.deliver(n, method, "")
		s.thread(xenopsd, 201, uint32(220+n))
	}
	body := `{"result":"9","error":null,"id":0}`
	s.out(xenopsd, "answer", 220, fmt.Sprintf("POST /response/xapi:100/%s/0 HTTP/1.1\r\ncontent-length: %d\r\n\r\n", xenops, len(body)))
	s.lose()
	s.data(xenopsd, "answer", 221, event.Out, body, event.FlagMore)
	s.log(xenopsd, 210, "", "xenops_server", `Task 9 reference R:8ae06e1ea3d1: ["VM_unpause","vm"]`)
	s.log(xenopsd, 210, "", "task_server", "Task 9 completed; duration = 0")
	s.wait(3 * time.Second)
	s.drain()
	s.none("VM_unpause")
}

// Of the lines of a worker some are lost: atoms are those of the operation that is
// under way now, and what was taken from the queue last is.
func TestLostLines(t *testing.T) {
	s := newScript(t)
	s.openSwitch()
	s.deliver(1, "VM.start", "")
	s.thread(xenopsd, 201, 220)
	op := `["VM_start",["vm",false]]`
	s.log(xenopsd, 220, "queue", "Xapi_work_queues", "Queue.push "+op+" onto vm:[  ]")
	s.log(xenopsd, 210, "", "Xapi_work_queues", "Queue.pop returned "+op)
	s.lose() // the first task from its beginning, the second one's Queue.pop
	s.log(xenopsd, 210, "", "xenops_server", "Task 5 reference : "+op)
	s.lose() // its end, and the beginning of a third one
	s.log(xenopsd, 210, "", "xenops_server", `Performing: ["VM_build","vm"]`)
	s.log(xenopsd, 210, "", "task_server", "Task 5 completed; duration = 0") // after all
	s.respond(1, 220, "null")
	s.wait(3 * time.Second)
	s.drain()
	s.none("VM_start")
	qt.Check(t, qt.HasLen(s.spans, 2))
}

// The pop of an operation was lost: the next one of the same text is another.
func TestLostPop(t *testing.T) {
	s := newScript(t)
	s.openSwitch()
	op := `["VM_unpause","vm"]`
	s.deliver(1, "VM.one", "")
	s.thread(xenopsd, 201, 220)
	s.log(xenopsd, 220, "queue", "Xapi_work_queues", "Queue.push "+op+" onto vm:[  ]")
	s.lose()
	s.deliver(2, "VM.two", "")
	s.thread(xenopsd, 201, 221)
	s.log(xenopsd, 221, "queue", "Xapi_work_queues", "Queue.push "+op+" onto vm:[  ]")
	s.log(xenopsd, 210, "", "Xapi_work_queues", "Queue.pop returned "+op)
	s.log(xenopsd, 210, "", "xenops_server", "Task 5 reference : "+op)
	s.log(xenopsd, 210, "", "task_server", "Task 5 completed; duration = 0")
	s.respond(2, 221, "null")
	s.wait(3 * time.Second)
	s.drain()
	s.under("VM_unpause", "VM.two", LinkQueue)
}

// In a gap of which no more is known than when it was, an event serves itself alone;
// afterwards all is well again.
func TestGap(t *testing.T) {
	s := newScript(t)
	s.openSwitch()
	s.accept("a", 18)
	s.during(time.Millisecond)
	s.request("a", 110, "VM.within")
	s.ask(110, "VM.exists", "")
	s.number(110, 1)
	s.wait(2 * time.Millisecond)
	s.reply("a", 110, success, "")
	s.request("a", 110, "VM.after")
	s.rpc(2, 110, 220, "VM.stat", "", "null")
	s.reply("a", 110, success, "")
	s.drain()
	s.under(sendTo+"VM.stat", "VM.after", LinkThread)
	s.under("VM.stat", sendTo+"VM.stat", LinkQueue)
	qt.Check(t, qt.Equals(s.span("VM.after").Incomplete, ""))
	s.none("POST /")
}

// The task tells whose work a call is when nobody knows the thread any more.
func TestTaskAcrossAGap(t *testing.T) {
	s := newScript(t)
	s.openSwitch()
	s.accept("a", 18)
	s.request("a", 110, "VM.start")
	s.log(xapi, 110, "VM.start R:8ae06e1ea3d1", "audit", "VM.start")
	s.lose()
	s.rpc(1, 110, 220, "VM.exists", "VM.start R:8ae06e1ea3d1", "true")
	s.reply("a", 110, success, "")
	s.drain()
	s.under(sendTo+"VM.exists", "VM.start", LinkTask)
	qt.Check(t, qt.Equals(s.span(sendTo+"VM.exists").Incomplete, eventsLost))
}

// Calls between hosts that look the same are told apart by how many came before.
// Who may have missed one does not count on that: either end, for a while.
func TestLostHop(t *testing.T) {
	r := request{method: "VM.x", headers: []string{"task-id: OpaqueRef:8ae06e1e-a3d1-4d50-8d0a-b4b7b9f0a2c1"}}
	for _, loser := range []string{"sender", "receiver"} {
		t.Run(loser, func(t *testing.T) {
			r := r
			from, to := newScript(t), newScript(t)
			from.open(xapi, "stunnel", 30, event.Paired, "")
			to.open(xapi, "tunnel", 41, event.Seeded, "")
			call := func(lost bool) {
				sent, got := from, to
				switch {
				case lost && loser == "sender":
					sent = newScript(t) // who sees nothing of importance
					sent.open(xapi, "stunnel", 30, event.Paired, "")
					from.lose()
				case lost:
					got = newScript(t)
					got.open(xapi, "tunnel", 41, event.Seeded, "")
					to.lose()
				}
				r.send(sent, "stunnel", 110)
				r.arrive(got, "tunnel", 510)
				r.answered(got, "tunnel", 510)
				r.returned(sent, "stunnel", 110)
			}
			parents := func() (hang int) {
				clients := make(map[trace.SpanID]int)
				for i, sp := range from.spans {
					clients[sp.SpanID] = i
				}
				for i, sp := range to.spans {
					if j, ok := clients[sp.ParentID]; ok {
						hang++
						// the second one was lost on one side
						want := i
						if loser == "sender" && i > 1 {
							want = i - 1
						} else if loser == "receiver" && i > 0 {
							want = i + 1
						}
						qt.Check(t, qt.Equals(j, want))
					}
				}
				return hang
			}
			call(false)
			call(true)
			call(false)
			call(false)
			from.wait(3 * time.Second)
			to.wait(3 * time.Second)
			qt.Check(t, qt.Equals(parents(), 1))
			last := to.spans[len(to.spans)-1]
			if loser == "receiver" {
				qt.Check(t, qt.Equals(last.Link, LinkNone))
				qt.Check(t, qt.Equals(last.Incomplete, eventsLost))
			}
			// Another task, when the gap is long ago.
			from.wait(time.Duration(hopShadow))
			to.wait(time.Duration(hopShadow))
			r.headers = []string{"task-id: OpaqueRef:9ae06e1e-a3d1-4d50-8d0a-b4b7b9f0a2c1"}
			call(false)
			from.drain()
			to.drain()
			qt.Check(t, qt.Equals(parents(), 2))
			qt.Check(t, qt.Equals(to.spans[len(to.spans)-1].Incomplete, ""))
		})
	}
}

// What was counted before a gap is not sure for good; what begins long after one is.
func TestAlike(t *testing.T) {
	var g gaps
	var old, young alike
	check := func(a *alike, now event.Time, before uint32, sure bool) {
		t.Helper()
		n, ok := a.another(&g, now)
		qt.Check(t, qt.Equals(n, before))
		qt.Check(t, qt.Equals(ok, sure))
	}
	check(&old, 10, 0, true)
	check(&old, 20, 1, true)
	g.any, g.last = true, 30
	check(&old, 30+2*hopShadow, 2, false)
	check(&old, 31+2*hopShadow, 3, false)
	check(&young, 30+2*hopShadow, 0, true)
	check(&young, 31+2*hopShadow, 1, true)
	g.last = 32 + 2*hopShadow
	check(&young, g.last+1, 2, false)
	var fresh alike
	check(&fresh, g.last+1, 0, false) // one like it may have been in the gap
}
