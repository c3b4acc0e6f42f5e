package correlate

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/go-quicktest/qt"
	"github.com/xenserver/dtagent/probes/event"
	"go.opentelemetry.io/otel/trace"
)

const (
	send    = "send " + xenops + " "
	native  = "00-abababababababababababababababab-cdcdcdcdcdcdcdcd-01"
	nativeT = "abababababababababababababababab"
	nativeS = "cdcdcdcdcdcdcdcd"
)

// debugInfo is what xapi sends along when it is traced.
func debugInfo(tag, traceparent string) string {
	return tag + "\n" + `{"traceparent":"` + traceparent + `","baggage":[["span.depth","11"]]}`
}

func TestSwitchCall(t *testing.T) {
	for _, order := range []string{"number first", "delivered first", "answered first", "all done first"} {
		t.Run(order, func(t *testing.T) {
			s := newScript(t)
			s.openSwitch()
			s.accept("c", 18)
			s.request("c", 110, "VM.start_on", "traceparent: "+caller)
			started := s.ask(110, "VM.exists", "VM.start_on R:07432559b308")
			number := func(when string) {
				if when == order {
					s.number(110, 64)
				}
			}
			number("number first")
			delivered := int64(s.deliver(64, "VM.exists", "VM.start_on R:07432559b308"))
			number("delivered first")
			s.thread(xenopsd, 201, 210)
			responded := s.respond(64, 210, "false")
			number("answered first")
			ended := s.answered(64, "false")
			number("all done first")
			s.reply("c", 110, success, "")
			s.under(send+"VM.exists", "VM.start_on", LinkThread)
			s.under("VM.exists", send+"VM.exists", LinkQueue)
			call, rpc := s.span(send+"VM.exists"), s.span("VM.exists")
			qt.Check(t, qt.Equals(call.Kind, trace.SpanKindProducer))
			qt.Check(t, qt.Equals(call.Service, "xapi"))
			qt.Check(t, qt.Equals(call.Start, int64(started)))
			qt.Check(t, qt.Equals(call.End, int64(ended-1_000)))
			qt.Check(t, qt.Equals(attr(call, "messaging.destination.name"), xenops))
			qt.Check(t, qt.Equals(attr(call, "messaging.message.id"), "64"))
			qt.Check(t, qt.Equals(rpc.Kind, trace.SpanKindConsumer))
			qt.Check(t, qt.Equals(rpc.Service, "xenopsd"))
			qt.Check(t, qt.Equals(rpc.Component, event.Xenopsd))
			qt.Check(t, qt.Equals(rpc.Start, delivered-1_000))
			qt.Check(t, qt.Equals(rpc.End, int64(responded)))
			qt.Check(t, qt.Equals(attr(rpc, "thread.id"), "210"))
			qt.Check(t, qt.Equals(rpc.TraceID.String(), callerID))
			s.wait(time.Minute)
			st := s.e.Stats()
			qt.Check(t, qt.Equals(st.Activities, 0))
			qt.Check(t, qt.Equals(st.Trees, 0))
			qt.Check(t, qt.Equals(st.Keys, 0))
		})
	}
}

// Requests of several threads take turns on the shared connection.
func TestSwitchCallsShareConnection(t *testing.T) {
	s := newScript(t)
	s.openSwitch()
	for i, c := range []string{"a", "b"} {
		s.accept(c, int32(18+i))
		s.request(c, uint32(110+i), "VM.start_"+c)
	}
	s.ask(110, "VM.one", "")
	s.number(110, 1)
	s.ask(111, "VM.two", "")
	s.number(111, 2)
	s.answered(2, "null")
	s.answered(1, "null")
	s.reply("a", 110, success, "")
	s.reply("b", 111, success, "")
	s.under(send+"VM.one", "VM.start_a", LinkThread)
	s.under(send+"VM.two", "VM.start_b", LinkThread)
	qt.Assert(t, qt.Not(qt.Equals(s.span("VM.start_a").TraceID, s.span("VM.start_b").TraceID)))
}

// One answer of the switch may hold several messages: their listener makes a
// thread for each, in order.
func TestSwitchMessagesAtOnce(t *testing.T) {
	s := newScript(t)
	s.openSwitch()
	message := func(n int, method string) string {
		return fmt.Sprintf(`[["%s",%d],{"payload":%s,"kind":["Request","xapi:100"]}]`, xenops, n, quote(rpcBody(method, "")))
	}
	s.answer(xenopsd, "listen", 201, `{"messages":[`+message(1, "VM.one")+`,`+message(2, "VM.two")+`],"next":"2"}`)
	s.thread(xenopsd, 201, 210)
	s.thread(xenopsd, 201, 211)
	s.thread(xenopsd, 201, 212) // for no message
	s.fork(xenopsd, 211, 300)
	s.exec(xenopsd, 300, "two", "")
	s.exit(xenopsd, 300, 0)
	s.fork(xenopsd, 210, 301)
	s.exec(xenopsd, 301, "one", "")
	s.exit(xenopsd, 301, 0)
	s.respond(2, 211, "null")
	s.respond(1, 210, "null")
	s.wait(3 * time.Second)
	s.under("one", "VM.one", LinkFork)
	s.under("two", "VM.two", LinkFork)
}

func TestSwitchCallerUnseen(t *testing.T) {
	t.Run("debug_info", func(t *testing.T) {
		s := newScript(t)
		s.openSwitch()
		s.deliver(64, "VM.exists", debugInfo("VM.start_on R:07432559b308", native))
		s.thread(xenopsd, 201, 210)
		s.respond(64, 210, "false")
		qt.Check(t, qt.HasLen(s.spans, 0)) // its caller's number may still come
		s.wait(3 * time.Second)
		sp := s.span("VM.exists")
		qt.Check(t, qt.Equals(sp.Link, LinkTraceparent))
		qt.Check(t, qt.Equals(sp.TraceID.String(), nativeT))
		qt.Check(t, qt.Equals(sp.ParentID.String(), nativeS))
	})
	t.Run("before 25.8", func(t *testing.T) {
		s := newScript(t)
		s.openSwitch()
		s.deliver(64, "VM.exists", "VM.start_on R:07432559b308\n"+native)
		s.respond(64, 210, "false")
		s.wait(3 * time.Second)
		qt.Check(t, qt.Equals(s.span("VM.exists").TraceID.String(), nativeT))
	})
	t.Run("tag", func(t *testing.T) {
		s := newScript(t)
		s.openSwitch()
		s.accept("c", 18)
		s.request("c", 110, "VM.start_on")
		s.log(xapi, 110, "VM.start_on R:07432559b308", "x", "y")
		s.deliver(64, "VM.exists", "VM.start_on R:07432559b308")
		s.respond(64, 210, "false")
		s.wait(3 * time.Second)
		s.reply("c", 110, success, "")
		s.under("VM.exists", "VM.start_on", LinkTask)
	})
	t.Run("nothing", func(t *testing.T) {
		s := newScript(t)
		s.openSwitch()
		s.deliver(64, "VM.exists", "")
		s.respond(64, 210, "false")
		s.wait(3 * time.Second)
		s.root("VM.exists")
	})
}

// xapi's own threads work under dummy tasks, in traces of their own.
func TestSwitchBackground(t *testing.T) {
	s := newScript(t)
	s.openSwitch()
	s.accept("c", 18)
	s.request("c", 110, "VM.start_on", "traceparent: "+caller)
	s.rpc(64, 120, 210, "UPDATES.get", debugInfo("xenops events D:8d0890bd8862", native), "null")
	s.rpc(65, 121, 210, "Task.stat", "xenops events D:8d0890bd8862", "null")
	// one that turns up on the thread of a call does not belong there either
	s.rpc(66, 110, 210, "VM.stat", debugInfo("xenops events D:8d0890bd8862", native), "null")
	s.reply("c", 110, success, "")
	for _, method := range []string{"UPDATES.get", "VM.stat"} {
		qt.Check(t, qt.Equals(s.span(send+method).TraceID.String(), nativeT))
		qt.Check(t, qt.Equals(s.span(send+method).Link, LinkTraceparent))
		s.under(method, send+method, LinkQueue)
	}
	s.root(send + "Task.stat")
}

func TestSwitchOutcome(t *testing.T) {
	s := newScript(t)
	s.openSwitch()
	s.ask(110, "VM.start", "")
	s.answer(xapi, "ask", 110, `[]`)
	qt.Check(t, qt.Equals(s.span(send+"VM.start").Error, "no queue"))
	s.ask(110, "VM.pause", "")
	s.number(110, 5)
	s.deliver(5, "VM.pause", "")
	s.thread(xenopsd, 201, 210)
	body := `{"result":null,"error":["Does_not_exist",["VM","x"]],"id":0}`
	s.post(xenopsd, "answer", 210, "/response/xapi:100/"+xenops+"/5", body)
	s.answer(xapi, "wait", 101, fmt.Sprintf(`{"messages":[[["xapi:100",76],{"payload":%s,"kind":["Response",["%s",5]]}]],"next":"76"}`, quote(body), xenops))
	qt.Check(t, qt.Equals(s.span("VM.pause").Error, "Does_not_exist"))
	qt.Check(t, qt.Equals(s.span(send+"VM.pause").Error, "Does_not_exist"))
}

// The switch may count from 1 again.
func TestSwitchNumbersReused(t *testing.T) {
	s := newScript(t)
	s.openSwitch()
	s.ask(110, "VM.old", "")
	s.number(110, 5) // never answered
	s.deliver(5, "VM.old", "")
	s.thread(xenopsd, 201, 210)
	s.ask(111, "VM.new", "")
	s.number(111, 5)
	s.deliver(5, "VM.new", "")
	s.thread(xenopsd, 201, 211)
	s.respond(5, 211, "null")
	s.answered(5, "null")
	s.under("VM.new", send+"VM.new", LinkQueue)
	s.threadExit(xenopsd, 210)
	s.wait(3 * time.Second)
	s.drain()
	qt.Check(t, qt.Equals(s.span(send+"VM.old").Incomplete, "still open"))
	qt.Check(t, qt.Equals(s.span("VM.old").Incomplete, threadEnded))
}

// A message answered by another thread than the one made for it.
func TestSwitchReassigned(t *testing.T) {
	s := newScript(t)
	s.openSwitch()
	s.deliver(5, "VM.start", "")
	s.thread(xenopsd, 201, 210)
	s.respond(5, 211, "null")
	qt.Check(t, qt.Equals(s.e.Stats().Reassigned, 1))
	s.wait(3 * time.Second)
	qt.Check(t, qt.Equals(s.span("VM.start").Incomplete, ""))
}

// Storage calls go from xenopsd through the switch to xapi.
func TestSwitchToXapi(t *testing.T) {
	s := newScript(t)
	s.openSwitch()
	s.deliver(5, "VM.start", "VM.start R:07432559b308")
	s.thread(xenopsd, 201, 210)
	s.post(xenopsd, "answer", 210, "/request/org.xen.xapi.storage/xenopsd-xc:200", `{"method":"VDI.attach3","params":[{"dbg":"VM.start R:07432559b308"}],"id":3}`)
	s.answer(xenopsd, "answer", 210, `[["org.xen.xapi.storage",9]]`)
	s.open(xapi, "storage", 30, event.Seeded, "")
	s.post(xapi, "storage", 130, "/transfer", `{}`)
	s.answer(xapi, "storage", 130, `{"messages":[[["org.xen.xapi.storage",9],{"payload":`+quote(`{"method":"VDI.attach3","params":[{"dbg":"VM.start R:07432559b308"}],"id":3}`)+`,"kind":["Request","xenopsd-xc:200"]}]],"next":"9"}`)
	s.thread(xapi, 130, 131)
	s.fork(xapi, 131, 300)
	s.exec(daemon{event.SMAPI, 300, ""}, 300, "LVMSR", "vdi_attach")
	s.exit(xapi, 300, 0)
	s.post(xapi, "storage", 131, "/response/xenopsd-xc:200/org.xen.xapi.storage/9", `{"result":null,"error":null,"id":0}`)
	s.answer(xapi, "storage", 131, `[["xenopsd-xc:200",1]]`)
	s.drain()
	s.under("send org.xen.xapi.storage VDI.attach3", "VM.start", LinkThread)
	s.under("VDI.attach3", "send org.xen.xapi.storage VDI.attach3", LinkQueue)
	s.under("LVMSR vdi_attach", "VDI.attach3", LinkFork)
	qt.Check(t, qt.Equals(s.span("VDI.attach3").Service, "xapi"))
	qt.Check(t, qt.Equals(s.span("LVMSR vdi_attach").Service, "smapi"))
	qt.Check(t, qt.Equals(s.span("LVMSR vdi_attach").Component, event.SMAPI))
}

// What was lost ends when its thread goes on, and leads to no wrong parent.
func TestSwitchLosses(t *testing.T) {
	t.Run("answer", func(t *testing.T) {
		s := newScript(t)
		s.openSwitch()
		s.accept("c", 18)
		s.request("c", 110, "VM.start", "traceparent: "+caller)
		s.ask(110, "VM.one", "")
		s.number(110, 1)
		at := s.ask(110, "VM.two", "")
		qt.Check(t, qt.Equals(s.span(send+"VM.one").Incomplete, "its answer was not seen"))
		qt.Check(t, qt.Equals(s.span(send+"VM.one").End, int64(at)))
		s.number(110, 2)
		s.reply("c", 110, success, "")
		s.threadExit(xapi, 110)
		qt.Check(t, qt.Equals(s.span(send+"VM.two").Incomplete, "its answer was not seen"))
	})
	t.Run("number", func(t *testing.T) {
		s := newScript(t)
		s.openSwitch()
		s.ask(110, "VM.one", "")
		s.ask(111, "VM.two", "")
		s.number(111, 2)
		qt.Check(t, qt.Equals(s.span(send+"VM.one").Incomplete, "its number was not seen"))
	})
	t.Run("number and the next request", func(t *testing.T) {
		s := newScript(t)
		s.openSwitch()
		s.ask(110, "VM.same", "")
		s.deliver(2, "VM.same", "")
		s.respond(2, 210, "null")
		s.number(111, 2) // of another thread's request
		s.wait(3 * time.Second)
		s.root("VM.same")
		qt.Check(t, qt.Equals(s.e.Stats().Conflicts, 1))
	})
	t.Run("new thread and the next request", func(t *testing.T) {
		s := newScript(t)
		s.openSwitch()
		s.deliver(1, "VM.one", "")
		ev := xenopsd.event(event.KindData, 201)
		body := fmt.Sprintf(`{"messages":[[["%s",2],{"payload":%s,"kind":["Request","xapi:100"]}]],"next":"2"}`, xenops, quote(rpcBody("VM.two", "")))
		s.open(xenopsd, "other", 60, event.Seeded, "")
		ev.Conn, ev.Dir = s.conns["other"], event.In
		ev.Head = fmt.Appendf(nil, "HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%s", len(body), body)
		s.put(ev)
		s.thread(xenopsd, 201, 211)
		s.fork(xenopsd, 211, 300)
		s.exec(xenopsd, 300, "two", "")
		s.exit(xenopsd, 300, 0)
		s.respond(2, 211, "null")
		s.wait(3 * time.Second)
		s.under("two", "VM.two", LinkFork)
	})
	t.Run("one of several new threads", func(t *testing.T) {
		s := newScript(t)
		s.openSwitch()
		message := func(n int, method string) string {
			return fmt.Sprintf(`[["%s",%d],{"payload":%s,"kind":["Request","xapi:100"]}]`, xenops, n, quote(rpcBody(method, "")))
		}
		s.answer(xenopsd, "listen", 201, `{"messages":[`+message(1, "VM.one")+`,`+message(2, "VM.two")+`],"next":"2"}`)
		s.put(event.Event{Kind: event.KindLost, Count: 1}) // the first one's thread
		s.thread(xenopsd, 201, 211)
		s.fork(xenopsd, 211, 300)
		s.exec(xenopsd, 300, "two", "")
		s.exit(xenopsd, 300, 0)
		s.respond(2, 211, "null")
		s.respond(1, 210, "null")
		s.wait(3 * time.Second)
		qt.Check(t, qt.HasLen(s.spans, 2)) // rather none than the wrong one
	})
	t.Run("new thread", func(t *testing.T) {
		s := newScript(t)
		s.openSwitch()
		s.deliver(1, "VM.one", "")
		s.deliver(2, "VM.two", "")
		s.thread(xenopsd, 201, 211)
		s.fork(xenopsd, 211, 300)
		s.exec(xenopsd, 300, "two", "")
		s.exit(xenopsd, 300, 0)
		s.respond(2, 211, "null")
		s.wait(3 * time.Second)
		s.under("two", "VM.two", LinkFork)
		qt.Check(t, qt.Equals(s.e.Stats().DeliveriesDropped, 1))
	})
}

// debug_info stands at the end of a body of which the middle was not seen.
func TestSwitchLongBody(t *testing.T) {
	s := newScript(t)
	s.openSwitch()
	body := rpcBody("VM.import_metadata", debugInfo(tagged, native))
	front := `{"method":"VM.import_metadata","params":[{"metadata":"`
	whole := front + strings.Repeat("x", 40000) + `",` + body[strings.Index(body, `"id"`):]
	s.out(xapi, "ask", 110, fmt.Sprintf("POST /request/%s/xapi:100 HTTP/1.1\r\ncontent-length: %d\r\n\r\n", xenops, len(whole)))
	ev := xapi.event(event.KindData, 110)
	ev.Conn, ev.Dir, ev.Flags, ev.Bytes = s.conns["ask"], event.Out, event.FlagMore|event.FlagCut, uint64(len(whole))
	ev.Head, ev.Tail = []byte(whole[:16384]), []byte(whole[len(whole)-1024:])
	s.put(ev)
	s.number(110, 1)
	payload := quote(whole)
	message := fmt.Sprintf(`{"messages":[[["%s",1],{"payload":%s,"kind":["Request","xapi:100"]}]],"next":"1"}`, xenops, payload)
	head := fmt.Sprintf("HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n", len(message))
	s.post(xenopsd, "listen", 201, "/transfer", `{"from":"0","timeout":30.0,"queues":["`+xenops+`"]}`)
	ev = xenopsd.event(event.KindData, 201)
	ev.Conn, ev.Dir, ev.Flags, ev.Bytes = s.conns["listen"], event.In, event.FlagCut, uint64(len(head)+len(message))
	ev.Head, ev.Tail = []byte((head + message)[:16384]), []byte(message[len(message)-1024:])
	s.put(ev)
	s.thread(xenopsd, 201, 210)
	s.respond(1, 210, "null")
	s.answered(1, "null")
	sp := s.span(send + "VM.import_metadata")
	qt.Check(t, qt.Equals(sp.TraceID.String(), nativeT))
	qt.Check(t, qt.Equals(attr(sp, "xs.xapi.task.id"), "R:07432559b308"))
	s.under("VM.import_metadata", send+"VM.import_metadata", LinkQueue)
	qt.Check(t, qt.Equals(attr(s.span("VM.import_metadata"), "xs.xapi.task.id"), "R:07432559b308"))
}

// A number that is seen too late does not move spans to another trace.
func TestSwitchNumberLate(t *testing.T) {
	s := newScript(t)
	s.openSwitch()
	s.accept("c", 18)
	s.request("c", 110, "VM.start", "traceparent: "+caller)
	s.ask(110, "VM.exists", "")
	s.deliver(5, "VM.exists", "")
	s.thread(xenopsd, 201, 210)
	s.fork(xenopsd, 210, 300)
	s.exec(xenopsd, 300, "early", "")
	s.exit(xenopsd, 300, 0)
	s.wait(3 * time.Second)
	s.number(110, 5)
	s.respond(5, 210, "null")
	s.answered(5, "null")
	s.reply("c", 110, success, "")
	s.root("VM.exists")
	s.under("early", "VM.exists", LinkFork)
	s.under(send+"VM.exists", "VM.start", LinkThread)
	qt.Check(t, qt.Equals(s.e.Stats().Conflicts, 1))
}

// A message that is another call than the one of its number is not its child.
func TestSwitchConflict(t *testing.T) {
	s := newScript(t)
	s.openSwitch()
	s.ask(110, "VM.one", "")
	s.number(110, 5)
	s.deliver(5, "VM.two", "")
	s.thread(xenopsd, 201, 210)
	s.respond(5, 210, "null")
	s.wait(3 * time.Second)
	s.root("VM.two")
	qt.Check(t, qt.Equals(s.e.Stats().Conflicts, 1))
}

func TestSwitchManyMessages(t *testing.T) {
	s := newScript(t)
	s.openSwitch()
	var list []string
	for i := range 40 {
		list = append(list, fmt.Sprintf(`[["%s",%d],{"payload":%s,"kind":["Request","xapi:100"]}]`, xenops, i, quote(rpcBody(fmt.Sprintf("VM.m%d", i), ""))))
	}
	s.answer(xenopsd, "listen", 201, `{"messages":[`+strings.Join(list, ",")+`],"next":"2"}`)
	qt.Check(t, qt.Equals(s.e.Stats().DeliveriesDropped, 8))
	for i := range 40 {
		s.thread(xenopsd, 201, uint32(300+i))
	}
	for i := range 40 {
		s.respond(i, uint32(300+i), "null")
	}
	s.wait(3 * time.Second)
	qt.Check(t, qt.HasLen(s.spans, 40))
	qt.Check(t, qt.Equals(s.e.Stats().Reassigned, 0))
	s.put(event.Event{Kind: event.KindLost, Count: 1})
}
