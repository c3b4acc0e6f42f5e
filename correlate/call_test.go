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
	caller     = "00-3100a3ead5c4210a99c27e3e5578158c-34991b6261208b64-00"
	callerID   = "3100a3ead5c4210a99c27e3e5578158c"
	callerSpan = "34991b6261208b64"
)

func TestCall(t *testing.T) {
	s := newScript(t)
	s.accept("c", 18)
	first := s.request("c", 110, "VM.start", "User-Agent: Python-xmlrpc/3.11", "traceparent: "+caller)
	s.log(xapi, 110, "dispatch:VM.start D:f5a825ea2951", "dispatcher", "go")
	s.log(xapi, 110, "VM.start R:07432559b308", "audit", "VM.start")
	s.log(xapi, 110, "session.logout D:000000000000", "x", "a task within the task")
	last := s.reply("c", 110, success, "")
	sp := s.span("VM.start")
	qt.Check(t, qt.Equals(sp.Start, int64(first)))
	qt.Check(t, qt.Equals(sp.End, int64(last)))
	qt.Check(t, qt.Equals(sp.Service, "xapi"))
	qt.Check(t, qt.Equals(sp.Component, event.Xapi))
	qt.Check(t, qt.Equals(sp.Kind, trace.SpanKindServer))
	qt.Check(t, qt.Equals(sp.Link, LinkTraceparent))
	qt.Check(t, qt.Equals(sp.TraceID.String(), callerID))
	qt.Check(t, qt.Equals(sp.ParentID.String(), callerSpan))
	qt.Check(t, qt.Equals(sp.Incomplete, ""))
	qt.Check(t, qt.Equals(sp.Error, ""))
	for key, want := range map[string]string{
		"http.request.method": "POST", "url.path": "/", "network.transport": "unix", "rpc.method": "VM.start", "rpc.system": "xmlrpc",
		"http.response.status_code": "200", "user_agent.original": "Python-xmlrpc/3.11", "xs.xapi.task.id": "R:07432559b308",
		"process.pid": "100", "thread.id": "110",
	} {
		qt.Check(t, qt.Equals(attr(sp, key), want), qt.Commentf("%s", key))
	}
}

func TestCallContext(t *testing.T) {
	const other = "00-aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa-bbbbbbbbbbbbbbbb-01"
	for _, test := range []struct {
		name    string
		headers []string
		trace   string // "" is a trace of its own
	}{
		{"flags 01", []string{"traceparent: " + caller[:len(caller)-1] + "1"}, callerID},
		{"capitals", []string{"TraceParent: " + strings.ToUpper(caller)}, callerID},
		{"last wins", []string{"traceparent: " + other, "traceparent: " + caller}, callerID},
		{"last wins, though it is none", []string{"traceparent: " + caller, "traceparent: nonsense"}, ""},
		{"version 01", []string{"traceparent: 01" + caller[2:]}, ""},
		{"five parts", []string{"traceparent: " + caller + "-x"}, ""},
		{"zero ids", []string{"traceparent: 00-00000000000000000000000000000000-0000000000000000-01"}, ""},
		{"none", nil, ""},
	} {
		t.Run(test.name, func(t *testing.T) {
			s := newScript(t)
			s.accept("c", 18)
			s.call("c", 110, "VM.start", test.headers...)
			sp := s.span("VM.start")
			if test.trace == "" {
				s.root("VM.start")
				return
			}
			qt.Check(t, qt.Equals(sp.TraceID.String(), test.trace))
			qt.Check(t, qt.Equals(sp.Link, LinkTraceparent))
		})
	}
}

func TestCallTracestateAndBaggage(t *testing.T) {
	s := newScript(t)
	s.accept("c", 18)
	s.call("c", 110, "VM.start", "traceparent: "+caller, "tracestate: vendor=1", "baggage: a=1,b=2;c=3", "baggage: span.depth=3;d=4")
	sp := s.span("VM.start")
	qt.Check(t, qt.Equals(sp.TraceState, "vendor=1"))
	qt.Check(t, qt.Equals(attr(sp, "a"), "1,b=2"))
	qt.Check(t, qt.Equals(attr(sp, "c"), "3"))
	qt.Check(t, qt.Equals(attr(sp, "d"), "4"))
	qt.Check(t, qt.Equals(attr(sp, "span.depth"), ""))
}

func TestCallFailure(t *testing.T) {
	for _, test := range []struct {
		name, status, body, want string
		json                     bool
	}{
		{"XML-RPC", "200 OK", fmt.Sprintf(failure, "VM_BAD_POWER_STATE"), "VM_BAD_POWER_STATE", false},
		{"JSON-RPC", "200 OK", `{"jsonrpc":"2.0","error":{"code":1,"message":"HANDLE_INVALID","data":["VM","OpaqueRef:nonsense"]},"id":999}`, "HANDLE_INVALID", true},
		{"HTTP", "500 Internal Server Error", "<html></html>", "HTTP 500", false},
	} {
		t.Run(test.name, func(t *testing.T) {
			s := newScript(t)
			s.accept("c", 18)
			if test.json {
				body := `{"jsonrpc":"2.0","id":999,"method":"VM.start","params":["OpaqueRef:x"]}`
				s.in(xapi, "c", 110, fmt.Sprintf("POST /jsonrpc HTTP/1.1\r\ncontent-length: %d\r\n\r\n%s", len(body), body))
			} else {
				s.request("c", 110, "VM.start")
			}
			s.out(xapi, "c", 110, fmt.Sprintf("HTTP/1.1 %s\r\ncontent-length: %d\r\n\r\n%s", test.status, len(test.body), test.body))
			qt.Check(t, qt.Equals(s.span("VM.start").Error, test.want))
		})
	}
}

// A header comes in any number of events, behind a PROXY line or a frame.
func TestCallHeadInPieces(t *testing.T) {
	body := "<methodCall><methodName>VM.start</methodName></methodCall>"
	head := fmt.Sprintf("POST / HTTP/1.1\r\nhost: x\r\ntraceparent: %s\r\ncontent-length: %d\r\n\r\n", caller, len(body))
	for _, prefix := range []string{"", "PROXY TCP6 ::ffff:10.0.0.9 ::1 40000 443\r\n", fmt.Sprintf("FRAME %012d", len(head))} {
		for _, size := range []int{1, 2, 4, 7, 50, 1000} {
			s := newScript(t)
			s.open(xapi, "c", 18, event.Accepted, "[::]:80")
			text := prefix + head + body
			first, flags := event.Time(0), event.Flags(0)
			for len(text) > 0 {
				n := min(size, len(text))
				at := s.data(xapi, "c", 110, event.In, text[:n], flags)
				if first == 0 {
					first = at - 5_000
				}
				text, flags = text[n:], event.FlagMore
			}
			s.reply("c", 110, success, "")
			sp := s.span("VM.start")
			qt.Check(t, qt.Equals(sp.TraceID.String(), callerID))
			qt.Check(t, qt.Equals(attr(sp, "network.transport"), "tcp"))
			if !strings.HasPrefix(prefix, "PROXY") {
				qt.Check(t, qt.Equals(sp.Start, int64(first)), qt.Commentf("%q %d", prefix, size))
			} else {
				qt.Check(t, qt.Equals(attr(sp, "client.address"), "10.0.0.9"))
			}
		}
	}
}

func TestCallKeepAlive(t *testing.T) {
	s := newScript(t)
	s.accept("c", 18)
	s.call("c", 110, "VM.start", "traceparent: "+caller)
	s.call("c", 110, "VM.shutdown")
	// a reply whose body is cut: the next request ends the call
	s.request("c", 110, "VM.pause")
	s.out(xapi, "c", 110, "HTTP/1.1 200 OK\r\ncontent-length: 300\r\n\r\n<?xml")
	s.call("c", 110, "VM.resume")
	s.close(xapi, "c")
	qt.Assert(t, qt.HasLen(s.spans, 4))
	qt.Check(t, qt.Equals(s.span("VM.start").TraceID.String(), callerID))
	s.root("VM.shutdown")
	s.root("VM.pause")
	s.root("VM.resume")
	qt.Check(t, qt.Equals(s.span("VM.pause").Incomplete, ""))
}

// The head of a reply was lost: the body alone is no protocol of its own, and
// the connection goes on with the next request.
func TestCallReplyHeadLost(t *testing.T) {
	s := newScript(t)
	s.accept("c", 18)
	s.request("c", 110, "VM.start", "traceparent: "+caller)
	last := s.out(xapi, "c", 110, fmt.Sprintf(success, "")) - 1_000
	s.call("c", 110, "VM.pause", "traceparent: "+caller)
	s.call("c", 110, "VM.resume")
	qt.Assert(t, qt.HasLen(s.spans, 3))
	qt.Check(t, qt.Equals(s.span("VM.start").Incomplete, "head of the reply not seen"))
	qt.Check(t, qt.Equals(s.span("VM.start").End, int64(last)))
	qt.Check(t, qt.Equals(s.span("VM.pause").TraceID.String(), callerID))
	qt.Check(t, qt.Equals(s.span("VM.pause").Incomplete, ""))
	s.root("VM.resume")
	qt.Check(t, qt.Equals(s.e.Stats().BadHeads, 1))
}

func TestCallOver(t *testing.T) {
	for _, test := range []struct {
		name string
		end  func(s *script)
		want string
	}{
		{"closed", func(s *script) { s.close(xapi, "c") }, "closed before the reply"},
		{"thread ended", func(s *script) { s.threadExit(xapi, 110) }, threadEnded},
		{"process ended", func(s *script) { s.exit(xapi, xapi.tgid, 9) }, "process ended"},
		{"next request", func(s *script) { s.in(xapi, "c", 110, "POST / HTTP/1.1\r\ncontent-length: 0\r\n\r\n") }, "no reply was seen before the next request"},
		{"fd reused", func(s *script) { s.accept("d", 18) }, endUnseen},
		{"tid reused", func(s *script) { s.thread(xapi, 105, 110) }, endUnseen},
	} {
		t.Run(test.name, func(t *testing.T) {
			s := newScript(t)
			s.accept("c", 18)
			s.request("c", 110, "VM.start")
			test.end(s)
			qt.Check(t, qt.Equals(s.span("VM.start").Incomplete, test.want))
		})
	}
}

func TestCallNames(t *testing.T) {
	for _, test := range []struct{ request, want string }{
		{"PUT /import?session_id=x&task_id=y HTTP/1.0\r\n\r\n", "PUT /import"},
		{"GET /rrd_updates?start=1 HTTP/1.1\r\n\r\n", "GET /rrd_updates"},
		{"CONNECT /console?ref=x HTTP/1.1\r\n\r\n", "CONNECT /console"},
		{"POST / HTTP/1.1\r\ncontent-length: 5\r\n\r\nhello", "POST /"},
		{"POST /jsonrpc HTTP/1.1\r\ncontent-length: 36\r\n\r\n" + `{"id":0,"params":[],"method":"a.b"} `, "a.b"},
		{"POST /cli HTTP/1.0\r\ncontent-length: 40\r\n\r\nvm-start\nuuid=x\nusername=root\npassword=x\n", "xe vm-start"},
		{"POST /cli HTTP/1.0\r\ncontent-length: 37\r\n\r\nsession_id=OpaqueRef:x\r\nvm-list\r\nx=y\r\n", "xe vm-list"},
	} {
		s := newScript(t)
		s.accept("c", 18)
		s.in(xapi, "c", 110, test.request)
		s.out(xapi, "c", 110, "HTTP/1.1 200 OK\r\nconnection: close\r\n\r\n")
		s.in(xapi, "c", 110, "\x00\x01some bytes")
		last := s.out(xapi, "c", 110, "more")
		s.wait(time.Second)
		qt.Check(t, qt.HasLen(s.spans, 0), qt.Commentf("%s is over too early", test.want))
		s.close(xapi, "c")
		sp := s.span(test.want)
		qt.Check(t, qt.Equals(sp.End, int64(last-1_000)))
		qt.Check(t, qt.Equals(sp.Incomplete, ""))
		for _, kv := range sp.Attributes {
			qt.Check(t, qt.IsFalse(strings.Contains(kv.Value.String(), "session_id")))
		}
	}
}

// xapi's own calls, and what it says to message-switch, are no API calls.
func TestNotCalls(t *testing.T) {
	s := newScript(t)
	s.open(xapi, "out", 20, event.Connected, "")
	s.out(xapi, "out", 110, "POST /jsonrpc HTTP/1.1\r\ncontent-length: 2\r\n\r\n{}")
	s.in(xapi, "out", 110, "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}")
	s.openSwitch()
	for _, path := range []string{"/login/xapi:100", "/persistent/q", "/transient/q", "/ack/q/3"} {
		s.out(xapi, "ask", 110, "GET "+path+" HTTP/1.1\r\ncontent-length: 0\r\n\r\n")
		s.answer(xapi, "ask", 110, "q")
	}
	s.answered(7, "null")
	s.drain()
	qt.Assert(t, qt.HasLen(s.spans, 0))
}

func TestBadHeads(t *testing.T) {
	s := newScript(t)
	s.accept("c", 18)
	s.in(xapi, "c", 110, "\x16\x03\x01\x02\x00binary garbage")
	s.data(xapi, "c", 110, event.In, "and more of it", event.FlagMore)
	qt.Check(t, qt.Equals(s.e.Stats().BadHeads, 1))
	s.out(xapi, "c", 110, "HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\n\r\n")
	s.call("c", 110, "VM.start") // sane again

	s.accept("long", 19)
	flags := event.Flags(0)
	s.in(xapi, "long", 111, "GET / HTTP/1.1\r\n")
	for range 100 {
		s.data(xapi, "long", 111, event.In, "x: "+strings.Repeat("y", 1000)+"\r\n", flags|event.FlagMore)
	}
	qt.Check(t, qt.Equals(s.e.Stats().BadHeads, 2))
	s.close(xapi, "long")
	s.drain()
	qt.Check(t, qt.HasLen(s.spans, 1))
}

func TestAsyncCall(t *testing.T) {
	s := newScript(t)
	s.openSwitch()
	s.accept("c", 18)
	s.request("c", 110, "Async.VM.start", "traceparent: "+caller)
	forked := s.thread(xapi, 110, 111)
	s.thread(xapi, 110, 112) // another thread is no second task
	s.reply("c", 110, success, "OpaqueRef:8ae06e1e-a3d1-1111-2222-333333333333")
	s.log(xapi, 111, "Async.VM.start R:8ae06e1ea3d1", "xenops", "VM.start")
	s.rpc(51, 111, 210, "VM.exists", "Async.VM.start R:8ae06e1ea3d1", "null")
	s.rpc(52, 112, 211, "VM.unrelated", "x D:000000000001", "null")
	ended := s.threadExit(xapi, 111)
	s.under("VM.start", "Async.VM.start", LinkClone)
	s.under("send "+xenops+" VM.exists", "VM.start", LinkThread)
	s.under("VM.exists", "send "+xenops+" VM.exists", LinkQueue)
	s.root("send " + xenops + " VM.unrelated")
	task := s.span("VM.start")
	qt.Check(t, qt.Equals(task.Kind, trace.SpanKindInternal))
	qt.Check(t, qt.Equals(task.Start, int64(forked)))
	qt.Check(t, qt.Equals(task.End, int64(ended)))
	qt.Check(t, qt.Equals(attr(task, "xs.xapi.task.id"), "R:8ae06e1ea3d1"))
	qt.Check(t, qt.Equals(attr(s.span("Async.VM.start"), "xs.xapi.task.id"), "R:8ae06e1ea3d1"))
}

// The thread of a call that is not Async may make threads, too: of those
// nothing is known.
func TestThreadOfSyncCall(t *testing.T) {
	s := newScript(t)
	s.openSwitch()
	s.accept("c", 18)
	s.request("c", 110, "VM.start", "traceparent: "+caller)
	s.thread(xapi, 110, 111)
	s.rpc(51, 111, 210, "VM.exists", "", "null")
	s.reply("c", 110, success, "")
	s.root("send " + xenops + " VM.exists")
}

// Without message-switch xenopsd is called by HTTP on a socket of its own.
func TestCallOfXenopsd(t *testing.T) {
	s := newScript(t)
	s.open(xenopsd, "c", 18, event.Accepted, "/var/lib/xcp/xenopsd")
	body := "<methodCall><methodName>VM.start</methodName><params><param><value><struct><member><name>debug_info</name><value>VM.start R:07432559b308&#x0a;" + native + "</value></member></struct></value></param></params></methodCall>"
	s.in(xenopsd, "c", 210, fmt.Sprintf("POST / HTTP/1.1\r\ncontent-length: %d\r\n\r\n%s", len(body), body))
	s.started(210, 6, tagged, start)
	s.completed(210, 6)
	s.out(xenopsd, "c", 210, "HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\n<xml>")
	sp := s.span("VM.start")
	qt.Check(t, qt.Equals(sp.Service, "xenopsd"))
	qt.Check(t, qt.Equals(sp.Component, event.Xenopsd))
	qt.Check(t, qt.Equals(attr(sp, "xs.xapi.task.id"), "R:07432559b308"))
	s.under("VM_start", "VM.start", LinkThread)
}

// A call that goes on another host's task, or on one of this host, carries its
// reference.
func TestCallTaskID(t *testing.T) {
	s := newScript(t)
	s.accept("a", 18)
	s.accept("b", 19)
	s.request("a", 110, "VM.start")
	s.log(xapi, 110, "VM.start R:8ae06e1ea3d1", "x", "y")
	s.call("b", 111, "VM.forwarded", "task-id: OpaqueRef:8ae06e1e-a3d1-1111-2222-333333333333")
	s.reply("a", 110, success, "")
	s.call("b", 111, "VM.other", "task-id: OpaqueRef:ffffffff-a3d1-1111-2222-333333333333")
	s.under("VM.forwarded", "VM.start", LinkTask)
	s.root("VM.other")
	qt.Check(t, qt.Equals(attr(s.span("VM.other"), "xs.xapi.task.id"), "R:ffffffffa3d1"))
	s.wait(time.Minute)
	qt.Check(t, qt.Equals(s.e.Stats().Keys, 0))
}

// Names and values from a request are printable, whatever was sent.
func TestCallUnprintable(t *testing.T) {
	s := newScript(t)
	s.accept("c", 18)
	s.in(xapi, "c", 110, "GET /a\x1b[31m\xff HTTP/1.1\r\nuser-agent: \x07bell "+strings.Repeat("x", 1000)+"\r\n\r\n")
	s.out(xapi, "c", 110, "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n")
	for _, sp := range s.spans {
		qt.Check(t, qt.IsTrue(strings.HasPrefix(sp.Name, "GET /a")))
		qt.Check(t, qt.Equals(sp.Error, "HTTP 404"))
		for _, text := range []string{sp.Name, attr(sp, "user_agent.original")} {
			qt.Check(t, qt.IsFalse(strings.ContainsFunc(text, func(r rune) bool { return r < ' ' || r > '~' })), qt.Commentf("%q", text))
			qt.Check(t, qt.IsTrue(len(text) <= 256))
		}
	}
}

// A reply that comes before the request's body is read to its end, and one in
// a protocol of its own.
func TestCallEarlyReply(t *testing.T) {
	s := newScript(t)
	s.accept("c", 18)
	s.in(xapi, "c", 110, "PUT /import_raw_vdi HTTP/1.1\r\ncontent-length: 1000\r\n\r\n")
	s.out(xapi, "c", 110, "HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n")
	qt.Check(t, qt.HasLen(s.spans, 0))
	s.in(xapi, "c", 110, strings.Repeat("x", 1000))
	s.close(xapi, "c")
	qt.Check(t, qt.Equals(s.span("PUT /import_raw_vdi").Incomplete, ""))

	s.accept("own", 18)
	s.in(xapi, "own", 110, "POST /cli HTTP/1.0\r\ncontent-length: 8\r\n\r\nvm-list\n")
	s.out(xapi, "own", 110, "XenSource thin CLI protocol\x00\x00\x00\x00\x02\x00\x00\x00")
	s.in(xapi, "own", 110, "XenSource thin CLI protocol\x00\x00\x00\x00\x02\x00\x00\x00")
	last := s.out(xapi, "own", 110, "\x05\x00\x00\x00hello")
	s.close(xapi, "own")
	qt.Check(t, qt.Equals(s.span("xe vm-list").End, int64(last-1_000)))
	qt.Check(t, qt.Equals(s.e.Stats().BadHeads, 0))
}

// A thread that reads a request has done with whatever it did before.
func TestCallOnBusyThread(t *testing.T) {
	s := newScript(t)
	s.accept("a", 18)
	s.accept("b", 19)
	s.request("a", 110, "VM.a")
	s.call("b", 110, "VM.b")
	s.fork(xapi, 110, 300)
	s.exec(xapi, 300, "later", "")
	s.exit(xapi, 300, 0)
	s.close(xapi, "a")
	qt.Check(t, qt.HasLen(s.spans, 2))
	qt.Check(t, qt.Equals(s.span("VM.a").Incomplete, endUnseen))
}

// A connection on which something else is spoken is given up after a while.
func TestNoHTTP(t *testing.T) {
	s := newScript(t)
	squeezed := daemon{event.Squeezed, 300, "squeezed"}
	s.open(squeezed, "xenstore", 5, event.Connected, "")
	for range 4 * maxBad {
		s.out(squeezed, "xenstore", 300, "\x02\x00\x00\x00\x00\x00\x00\x00memory/target\x00")
		s.in(squeezed, "xenstore", 300, "\x02\x00\x00\x00\x00\x00\x00\x00524288")
	}
	qt.Check(t, qt.Equals(s.e.Stats().BadHeads, maxBad))
	// One that began before the probe did comes back with the next request.
	s.open(xapi, "late", 6, event.Seeded, "")
	for range maxBad - 1 {
		s.in(xapi, "late", 110, "the middle of a body\x00")
	}
	s.call("late", 110, "VM.start")
	s.drain()
	s.root("VM.start")
}
