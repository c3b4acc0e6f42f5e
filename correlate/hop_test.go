package correlate

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/go-quicktest/qt"
	"github.com/xenserver/dtagent/probes/event"
	"go.opentelemetry.io/otel/trace"
)

const (
	taskRef    = "OpaqueRef:07432559-b308-4d50-8d0a-b4b7b9f0a2c1"
	taskID     = "R:07432559b308"
	nativeSpan = "6f1a2b3c4d5e6f70" // XAPI's own span of the call
)

// pool is two hosts with an agent each: their engines know nothing of each
// other, and their clocks are 5 s apart.
type pool struct {
	coordinator, member *script
}

func newPool(t testing.TB) *pool {
	p := &pool{coordinator: newScript(t), member: newScript(t)}
	p.member.now += event.Time(5 * time.Second)
	p.member.random = 1 << 32
	for _, s := range []*script{p.coordinator, p.member} {
		s.open(xapi, "stunnel", 30, event.Paired, "")
		s.open(xapi, "tunnel", 31, event.Accepted, "[::]:80")
		s.in(xapi, "tunnel", 510, "PROXY TCP6 ::ffff:10.0.0.1 ::ffff:10.0.0.2 40000 443\r\n")
	}
	return p
}

// request is the bytes of a call from one host to another.
type request struct {
	method    string
	framed    bool
	userAgent string   // "": XAPI's own
	headers   []string // in place of those that XAPI puts there
	reply     string   // result; "": a string
}

func (r request) text() string {
	body := fmt.Sprintf(`{"method":%s,"params":["OpaqueRef:xxxxxxxx-xxxx-xxxx-xxxx-xxxxxxxxxxxx"],"id":7}`, quote(r.method))
	agent := r.userAgent
	if agent == "" {
		agent = "xen-api-libs/1.0"
	}
	head := fmt.Sprintf("POST /jsonrpc HTTP/1.1\r\ncontent-length: %d\r\nuser-agent: %s\r\nconnection: keep-alive\r\n", len(body), agent)
	for _, h := range r.headers {
		head += h + "\r\n"
	}
	head += "\r\n"
	if r.framed {
		head = fmt.Sprintf("FRAME %012d", len(head)) + head
	}
	return head + body
}

func (r request) answer() (head, body string) {
	result := r.reply
	if result == "" {
		result = `"ok"`
	}
	body = `{"result":` + result + `,"error":null,"id":7}`
	head = fmt.Sprintf("HTTP/1.1 200 OK\r\ncontent-length: %d\r\nconnection: keep-alive\r\n\r\n", len(body))
	if r.framed {
		head = fmt.Sprintf("FRAME %012d", len(head)) + head
	}
	return head, body
}

// send is the request as its sender writes it, in one go.
func (r request) send(s *script, conn string, tid uint32) (first event.Time) {
	return s.out(xapi, conn, tid, r.text()) - 5_000
}

// arrive is the request as its receiver reads it: head and body.
func (r request) arrive(s *script, conn string, tid uint32) {
	text := r.text()
	i := strings.Index(text, "\r\n\r\n") + 4
	s.in(xapi, conn, tid, text[:i])
	s.data(xapi, conn, tid, event.In, text[i:], event.FlagMore)
}

func (r request) answered(s *script, conn string, tid uint32) {
	head, body := r.answer()
	s.out(xapi, conn, tid, head)
	s.data(xapi, conn, tid, event.Out, body, event.FlagMore)
}

func (r request) returned(s *script, conn string, tid uint32) (last event.Time) {
	head, body := r.answer()
	s.in(xapi, conn, tid, head)
	return s.data(xapi, conn, tid, event.In, body, event.FlagMore) - 1_000
}

// call is the whole of it.
func (p *pool) call(from, to *script, tid uint32, r request) {
	r.send(from, "stunnel", tid)
	r.arrive(to, "tunnel", 510)
	r.answered(to, "tunnel", 510)
	r.returned(from, "stunnel", tid)
}

// all ends the hold and returns the spans of both hosts.
func (p *pool) all() []*Span {
	p.coordinator.wait(3 * time.Second)
	p.member.wait(3 * time.Second)
	return slices.Concat(p.coordinator.spans, p.member.spans)
}

// oneTree asserts that the spans are one tree and returns its root, which is
// nobody's child or has a parent that none of them is.
func oneTree(t testing.TB, spans []*Span) (root *Span) {
	t.Helper()
	byID := make(map[trace.SpanID]*Span)
	for _, sp := range spans {
		qt.Assert(t, qt.IsNil(byID[sp.SpanID]), qt.Commentf("%s has the id of another", sp.Name))
		byID[sp.SpanID] = sp
	}
	for _, sp := range spans {
		if byID[sp.ParentID] == nil {
			qt.Assert(t, qt.IsNil(root), qt.Commentf("%s is a root, too", sp.Name))
			root = sp
		}
	}
	qt.Assert(t, qt.IsNotNil(root))
	return root
}

func kinds(spans []*Span, kind trace.SpanKind) (out []*Span) {
	for _, sp := range spans {
		if sp.Kind == kind {
			out = append(out, sp)
		}
	}
	return out
}

// A call that the coordinator passes on to the host that has the VM.
func TestPool(t *testing.T) {
	for _, test := range []struct {
		name             string
		caller, native   bool
		link             Link
		coordinator, mem string // trace ids; "": of the task
	}{
		{"caller and native tracing", true, true, LinkTraceparent, callerID, callerID},
		{"caller", true, false, LinkTask, callerID, ""},
		{"native tracing", false, true, LinkTraceparent, nativeT, nativeT},
		{"neither", false, false, LinkTask, "", ""},
	} {
		t.Run(test.name, func(t *testing.T) {
			p := newPool(t)
			s := p.coordinator
			s.accept("c", 18)
			var headers []string
			if test.caller {
				headers = []string{"traceparent: " + caller}
			}
			s.request("c", 110, "VM.start", headers...)
			s.log(xapi, 110, "VM.start "+taskID, "audit", "VM.start")
			r := request{method: "VM.start", headers: []string{"task-id: " + taskRef}}
			if test.native {
				id := nativeT
				if test.caller {
					id = callerID
				}
				r.headers = append(r.headers, "traceparent: 00-"+id+"-"+nativeSpan+"-01", "baggage: span.depth=6")
			}
			first := r.send(s, "stunnel", 110)
			r.arrive(p.member, "tunnel", 510)
			p.member.fork(xapi, 510, 600)
			p.member.exec(xapi, 600, "LVMSR", "vdi_attach")
			p.member.wait(4 * time.Second) // it takes its time
			s.wait(4 * time.Second)
			p.member.exit(xapi, 600, 0)
			r.answered(p.member, "tunnel", 510)
			last := r.returned(s, "stunnel", 110)
			s.reply("c", 110, success, "")

			spans := p.all()
			qt.Assert(t, qt.HasLen(spans, 4))
			root := oneTree(t, spans)
			qt.Check(t, qt.Equals(root.Name, "VM.start"))
			clients := kinds(spans, trace.SpanKindClient)
			qt.Assert(t, qt.HasLen(clients, 1))
			client := clients[0]
			qt.Check(t, qt.Equals(client.Name, "VM.start"))
			qt.Check(t, qt.Equals(client.ParentID, root.SpanID))
			qt.Check(t, qt.Equals(client.Link, LinkThread))
			qt.Check(t, qt.Equals(client.Start, int64(first)))
			qt.Check(t, qt.Equals(client.End, int64(last)))
			qt.Check(t, qt.Equals(client.Incomplete, ""))
			for key, want := range map[string]string{
				"rpc.system": "jsonrpc", "rpc.method": "VM.start", "xs.xapi.task.id": taskID,
				"process.pid": "100", "thread.id": "110", "http.response.status_code": "200",
			} {
				qt.Check(t, qt.Equals(attr(client, key), want), qt.Commentf("%s", key))
			}
			server := p.member.span("VM.start")
			qt.Check(t, qt.Equals(server.ParentID, client.SpanID))
			qt.Check(t, qt.Equals(server.Link, test.link))
			qt.Check(t, qt.Equals(server.Kind, trace.SpanKindServer))
			qt.Check(t, qt.Equals(attr(server, "xs.xapi.task.id"), taskID))
			if test.native {
				qt.Check(t, qt.Equals(attr(server, "dt.remote.span_id"), nativeSpan))
			} else {
				qt.Check(t, qt.Equals(attr(server, "dt.remote.span_id"), ""))
			}
			task := s.e.taskTrace(p.member.e.dec.LogTag([]byte(taskID)).Task).String()
			id := func(want string) string {
				if want == "" {
					return task
				}
				return want
			}
			qt.Check(t, qt.Equals(root.TraceID.String(), id(test.coordinator)))
			qt.Check(t, qt.Equals(client.TraceID.String(), id(test.coordinator)))
			qt.Check(t, qt.Equals(server.TraceID.String(), id(test.mem)))
			p.member.under("LVMSR vdi_attach", "VM.start", LinkFork)
		})
	}
}

// What a member's own calls say: of which task they are a part.
func TestPoolSubtask(t *testing.T) {
	p := newPool(t)
	s := p.member
	s.accept("c", 18)
	s.request("c", 110, "Async.VM.start")
	s.thread(xapi, 110, 120)
	s.reply("c", 110, success, taskRef)
	p.call(s, p.coordinator, 120, request{method: "VM.get_record", headers: []string{"subtask-of: " + taskRef}})
	p.call(s, p.coordinator, 120, request{method: "VM.set_power", headers: []string{"subtask-of: " + taskRef}})
	s.threadExit(xapi, 120)
	spans := p.all()
	qt.Assert(t, qt.HasLen(spans, 6))
	root := oneTree(t, spans)
	for _, sp := range spans {
		qt.Check(t, qt.Equals(sp.TraceID, root.TraceID))
	}
	for _, name := range []string{"VM.get_record", "VM.set_power"} {
		qt.Check(t, qt.Equals(p.coordinator.span(name).ParentID, s.span(name).SpanID))
		s.under(name, "VM.start", LinkThread)
	}
}

// The coordinator's task comes back to it by way of a member.
func TestPoolThereAndBack(t *testing.T) {
	p := newPool(t)
	s := p.coordinator
	s.accept("c", 18)
	s.request("c", 110, "VM.start", "traceparent: "+caller)
	there := request{method: "VM.start_on", headers: []string{"task-id: " + taskRef}}
	there.send(s, "stunnel", 110)
	there.arrive(p.member, "tunnel", 510)
	back := request{method: "VM.get_record", headers: []string{"task-id: " + taskRef}}
	back.send(p.member, "stunnel", 510)
	back.arrive(s, "tunnel", 511)
	back.answered(s, "tunnel", 511)
	back.returned(p.member, "stunnel", 510)
	there.answered(p.member, "tunnel", 510)
	there.returned(s, "stunnel", 110)
	s.reply("c", 110, success, "")
	spans := p.all()
	qt.Assert(t, qt.HasLen(spans, 5))
	qt.Check(t, qt.Equals(oneTree(t, spans).Name, "VM.start"))
	qt.Check(t, qt.Equals(s.span("VM.get_record").ParentID, p.member.span("VM.get_record").SpanID))
	qt.Check(t, qt.Equals(attr(s.span("VM.get_record"), "dt.remote.span_id"), "")) // the task is not known here by another span
}

// A call whose task this host knows tells the task's span, too.
func TestPoolTaskKnown(t *testing.T) {
	p := newPool(t)
	s := p.coordinator
	s.accept("c", 18)
	s.request("c", 110, "VM.start", "traceparent: "+caller)
	s.log(xapi, 110, "VM.start "+taskID, "audit", "VM.start")
	p.call(p.member, s, 110, request{method: "VM.get_record", headers: []string{"task-id: " + taskRef}})
	s.reply("c", 110, success, "")
	p.all()
	sp := s.span("VM.get_record")
	qt.Check(t, qt.Equals(sp.ParentID, p.member.span("VM.get_record").SpanID))
	qt.Check(t, qt.Equals(sp.TraceID.String(), callerID))
	qt.Check(t, qt.Equals(attr(sp, "dt.remote.span_id"), s.span("VM.start").SpanID.String()))
	qt.Check(t, qt.Equals(sp.Tree, s.span("VM.start").Tree))
}

// A client's request that a member passes on as it is.
func TestPoolForwarded(t *testing.T) {
	for _, test := range []struct {
		name, agent string
		headers     []string
		parent      string // of the coordinator's call; "client": the member's CLIENT span
		link        Link
	}{
		{"traceparent", "Python-xmlrpc/3.11", []string{"traceparent: " + caller}, "client", LinkTraceparent},
		{"traceparent, XAPI's library", "xen-api-libs/1.0", []string{"traceparent: " + caller}, "client", LinkTraceparent},
		{"task", "Python-xmlrpc/3.11", []string{"task-id: " + taskRef}, "client", LinkTask},
		{"nothing", "Python-xmlrpc/3.11", nil, "0000000000000000", LinkNone},
	} {
		t.Run(test.name, func(t *testing.T) {
			p := newPool(t)
			s := p.member
			s.accept("c", 18)
			r := request{method: "VM.start", framed: true, userAgent: test.agent, headers: test.headers}
			direct := r
			direct.framed = false
			direct.arrive(s, "c", 110)
			p.call(s, p.coordinator, 110, r)
			direct.answered(s, "c", 110)
			p.all()
			client, at := kinds(s.spans, trace.SpanKindClient), p.coordinator.span("VM.start")
			qt.Assert(t, qt.HasLen(client, 1))
			qt.Assert(t, qt.HasLen(s.spans, 2))
			servers := kinds(s.spans, trace.SpanKindServer)
			qt.Check(t, qt.Equals(client[0].ParentID, servers[0].SpanID))
			parent := test.parent
			if parent == "client" {
				parent = client[0].SpanID.String()
			}
			qt.Check(t, qt.Equals(at.ParentID.String(), parent))
			qt.Check(t, qt.Equals(at.Link, test.link))
			if len(test.headers) > 0 {
				qt.Check(t, qt.Equals(at.TraceID, client[0].TraceID))
			}
			if test.link == LinkTraceparent {
				qt.Check(t, qt.Equals(servers[0].ParentID.String(), callerSpan))
				qt.Check(t, qt.Equals(attr(at, "dt.remote.span_id"), callerSpan))
			}
		})
	}
}

// Cached connections are asked whether they work before they are used again;
// and a task may ask for the same several times.
func TestPoolKeepAlive(t *testing.T) {
	p := newPool(t)
	s := p.coordinator
	s.accept("c", 18)
	s.request("c", 110, "VM.start")
	const n = 3
	for range n {
		p.call(s, p.member, 110, request{method: "system.isAlive:91b928e6-5e4c-9f1a-6147-fb162417c0e0"})
		p.call(s, p.member, 110, request{method: "VM.poll", headers: []string{"task-id: " + taskRef}})
	}
	s.reply("c", 110, success, "")
	p.all()
	qt.Check(t, qt.Equals(s.e.Stats().Probes, n))
	clients, servers := kinds(s.spans, trace.SpanKindClient), kinds(p.member.spans, trace.SpanKindServer)
	qt.Check(t, qt.Equals(p.member.e.Stats().Probes, n))
	qt.Assert(t, qt.HasLen(clients, n))
	qt.Assert(t, qt.HasLen(servers, n))
	seen := make(map[trace.SpanID]bool)
	for i := range n {
		qt.Check(t, qt.Equals(servers[i].ParentID, clients[i].SpanID))
		qt.Check(t, qt.IsFalse(seen[clients[i].SpanID]))
		seen[clients[i].SpanID] = true
	}
}

// Heads come in pieces, and in any case.
func TestPoolPieces(t *testing.T) {
	for _, framed := range []bool{false, true} {
		for _, size := range []int{1, 3, 50, 1000} {
			p := newPool(t)
			s := p.coordinator
			r := request{method: "VM.start", framed: framed, headers: []string{"Task-ID: " + taskRef}}
			pieces := func(s *script, conn string, tid uint32, dir event.Dir, text string) {
				flags := event.Flags(0)
				for piece := range slices.Chunk([]byte(text), size) {
					s.data(xapi, conn, tid, dir, string(piece), flags)
					flags = event.FlagMore
				}
			}
			s.accept("c", 18)
			s.request("c", 110, "VM.start")
			head, body := r.answer()
			pieces(s, "stunnel", 110, event.Out, r.text())
			pieces(p.member, "tunnel", 510, event.In, r.text())
			pieces(p.member, "tunnel", 510, event.Out, head+body)
			pieces(s, "stunnel", 110, event.In, head+body)
			s.reply("c", 110, success, "")
			spans := p.all()
			qt.Assert(t, qt.HasLen(spans, 3))
			qt.Check(t, qt.Equals(oneTree(t, spans), kinds(s.spans, trace.SpanKindServer)[0]))
			for _, sp := range spans {
				qt.Check(t, qt.Equals(sp.Incomplete, ""))
			}
		}
	}
}

// What is missed of a call leaves the rest as it is.
func TestPoolLost(t *testing.T) {
	r := request{method: "VM.start", headers: []string{"task-id: " + taskRef}}
	begin := func(t *testing.T) *pool {
		p := newPool(t)
		p.coordinator.accept("c", 18)
		p.coordinator.request("c", 110, "VM.start")
		return p
	}
	t.Run("reply", func(t *testing.T) {
		p := begin(t)
		r.send(p.coordinator, "stunnel", 110)
		r.arrive(p.member, "tunnel", 510)
		r.answered(p.member, "tunnel", 510)
		p.coordinator.reply("c", 110, success, "")
		p.call(p.coordinator, p.member, 111, request{method: "VM.next", headers: r.headers})
		spans := p.all()
		qt.Check(t, qt.Equals(kinds(p.coordinator.spans, trace.SpanKindClient)[0].Incomplete, "its answer was not seen"))
		qt.Check(t, qt.Equals(p.coordinator.span("VM.next").Incomplete, ""))
		qt.Check(t, qt.HasLen(spans, 5))
		qt.Check(t, qt.Equals(p.member.span("VM.next").ParentID, p.coordinator.span("VM.next").SpanID))
	})
	t.Run("reply, at no call", func(t *testing.T) {
		p := newPool(t)
		r.send(p.coordinator, "stunnel", 110)
		p.call(p.coordinator, p.member, 111, request{method: "VM.next", headers: r.headers})
		qt.Check(t, qt.Equals(p.coordinator.span("VM.start").Incomplete, "no reply was seen before the next request"))
	})
	t.Run("thread goes on", func(t *testing.T) {
		p := begin(t)
		r.send(p.coordinator, "stunnel", 110)
		p.coordinator.reply("c", 110, success, "")
		p.coordinator.call("c", 110, "VM.stop")
		qt.Check(t, qt.Equals(kinds(p.coordinator.spans, trace.SpanKindClient)[0].Incomplete, "its answer was not seen"))
	})
	t.Run("connection ends", func(t *testing.T) {
		p := begin(t)
		r.send(p.coordinator, "stunnel", 110)
		p.coordinator.close(xapi, "stunnel")
		p.coordinator.reply("c", 110, success, "")
		qt.Check(t, qt.Equals(kinds(p.coordinator.spans, trace.SpanKindClient)[0].Incomplete, "closed before the reply"))
	})
	t.Run("request at the sender", func(t *testing.T) {
		p := begin(t)
		r.returned(p.coordinator, "stunnel", 110)
		r.arrive(p.member, "tunnel", 510)
		r.answered(p.member, "tunnel", 510)
		p.coordinator.reply("c", 110, success, "")
		qt.Check(t, qt.HasLen(p.all(), 2))
		qt.Check(t, qt.Equals(p.coordinator.e.Stats().NoRequest, 0))
	})
	t.Run("opening of the connections", func(t *testing.T) {
		p := begin(t)
		for _, s := range []*script{p.coordinator, p.member} {
			s.conns["stunnel"] = event.Conn{TGID: xapi.tgid, FD: 40, Born: s.now}
			s.conns["tunnel"] = event.Conn{TGID: xapi.tgid, FD: 41, Born: s.now}
		}
		p.call(p.coordinator, p.member, 110, r)
		p.coordinator.reply("c", 110, success, "")
		oneTree(t, p.all())
	})
	t.Run("some", func(t *testing.T) {
		p := begin(t)
		r.send(p.coordinator, "stunnel", 110)
		p.coordinator.put(event.Event{Kind: event.KindLost, Count: 3})
		r.arrive(p.member, "tunnel", 510)
		r.answered(p.member, "tunnel", 510)
		r.returned(p.coordinator, "stunnel", 110)
		p.coordinator.reply("c", 110, success, "")
		oneTree(t, p.all())
		qt.Check(t, qt.Equals(kinds(p.coordinator.spans, trace.SpanKindClient)[0].Incomplete, "events lost"))
	})
	t.Run("short body comes late", func(t *testing.T) {
		p := begin(t)
		r.send(p.coordinator, "stunnel", 110)
		head, body := r.answer()
		last := p.coordinator.in(xapi, "stunnel", 110, head) - 1_000
		p.coordinator.reply("c", 110, success, "")
		qt.Assert(t, qt.HasLen(p.coordinator.spans, 2))
		client := kinds(p.coordinator.spans, trace.SpanKindClient)[0]
		qt.Check(t, qt.Equals(client.Incomplete, ""))
		qt.Check(t, qt.Equals(client.End, int64(last)))
		p.coordinator.wait(time.Minute)
		p.coordinator.data(xapi, "stunnel", 110, event.In, body, event.FlagMore)
		r.send(p.coordinator, "stunnel", 111)
		r.returned(p.coordinator, "stunnel", 111)
		qt.Check(t, qt.HasLen(p.coordinator.spans, 3))
		qt.Check(t, qt.Equals(p.coordinator.spans[2].Incomplete, ""))
	})
	t.Run("failure", func(t *testing.T) {
		p := begin(t)
		r.send(p.coordinator, "stunnel", 110)
		body := `{"result":null,"error":["VM_BAD_POWER_STATE","OpaqueRef:x"],"id":7}`
		p.coordinator.in(xapi, "stunnel", 110, fmt.Sprintf("HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%s", len(body), body))
		p.coordinator.reply("c", 110, success, "")
		qt.Check(t, qt.Equals(kinds(p.coordinator.spans, trace.SpanKindClient)[0].Error, "VM_BAD_POWER_STATE"))
	})
}

// What goes out and is no call to another host has no span.
func TestNoCallToHost(t *testing.T) {
	plain := request{method: "VM.start", headers: []string{"task-id: " + taskRef}}
	for _, test := range []struct {
		name string
		open func(*script)
		text string
		by   daemon
	}{
		{"to itself", func(s *script) { s.open(xapi, "x", 40, event.Connected, "") }, plain.text(), xapi},
		{"by another daemon", func(s *script) { s.open(xenopsd, "x", 40, event.Paired, "") }, plain.text(), xenopsd},
		{"database", nil, "POST /remote_db_access_v2 HTTP/1.1\r\ncontent-length: 5\r\n\r\nhello", xapi},
		{"import", nil, "PUT /import_raw_vdi?task_id=" + taskRef + " HTTP/1.1\r\n\r\n" + plain.text(), xapi},
		{"no call", nil, "POST /jsonrpc HTTP/1.1\r\ncontent-length: 5\r\n\r\nhello", xapi},
		{"no HTTP", nil, "XenSource thin CLI protocol", xapi},
	} {
		t.Run(test.name, func(t *testing.T) {
			s := newScript(t)
			if test.open == nil {
				s.open(xapi, "x", 40, event.Paired, "")
			} else {
				test.open(s)
			}
			s.accept("c", 18)
			s.request("c", 110, "VM.start")
			s.out(test.by, "x", 110, test.text)
			s.in(test.by, "x", 110, "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok")
			s.reply("c", 110, success, "")
			s.drain()
			qt.Check(t, qt.HasLen(s.spans, 1))
		})
	}
}

// Whoever makes up what another host would send hangs only their own call, and
// under nobody.
func TestForgedHop(t *testing.T) {
	s := newScript(t)
	s.accept("local", 17)
	s.open(xapi, "tcp", 19, event.Accepted, "[::]:80")
	s.accept("c", 18)
	s.request("c", 110, "VM.start", "traceparent: "+caller)
	s.log(xapi, 110, "VM.start "+taskID, "audit", "VM.start")
	s.in(xapi, "tcp", 111, "PROXY TCP6 ::ffff:10.0.0.9 ::ffff:10.0.0.2 40000 443\r\n")
	for i, headers := range [][]string{
		{"task-id: OpaqueRef:00000000-0000-4d50-8d0a-b4b7b9f0a2c1"},
		{"task-id: OpaqueRef:zzz"},
		{"traceparent: nonsense"},
		{"subtask-of: DummyRef:|07432559-b308-4d50-8d0a-b4b7b9f0a2c1|x"},
		{"task-id: " + strings.Repeat("x", 3000)},
		nil,
	} {
		r := request{method: fmt.Sprintf("VM.forged%d", i), headers: headers}
		r.arrive(s, "tcp", 111)
		r.answered(s, "tcp", 111)
	}
	s.reply("c", 110, success, "")
	s.wait(3 * time.Second)
	for _, sp := range s.spans {
		if sp.Name == "VM.start" {
			continue
		}
		qt.Check(t, qt.Not(qt.Equals(sp.TraceID.String(), callerID)))
		for _, other := range s.spans {
			qt.Check(t, qt.Not(qt.Equals(sp.ParentID, other.SpanID)))
		}
	}

	// A process of this host is no other host, whatever it says.
	r := request{method: "VM.local", headers: []string{"traceparent: " + caller}}
	r.arrive(s, "local", 112)
	r.answered(s, "local", 112)
	qt.Check(t, qt.Equals(s.span("VM.local").ParentID.String(), callerSpan))
	qt.Check(t, qt.Equals(attr(s.span("VM.local"), "dt.remote.span_id"), ""))
}

// The key of a hop is what the documentation says, on every version.
func TestHopSpanIsStable(t *testing.T) {
	s := newScript(t)
	p := hop{length: 100}
	copy(p.task[:], taskID)
	for _, want := range []struct {
		seen *table[hopKey, alike]
		id   string
	}{{&s.e.hopsOut, "8597e1ecf0891e08"}, {&s.e.hopsOut, "6ad9724b8212b706"}, {&s.e.hopsIn, "8597e1ecf0891e08"}} {
		id, sure := s.e.hopSpan(want.seen, &p, []byte("VM.start"))
		qt.Check(t, qt.Equals(id.String(), want.id))
		qt.Check(t, qt.IsTrue(sure))
	}
	qt.Check(t, qt.Equals(s.e.taskTrace(p.task).String(), "1a2eef90e706329d4c49dad3a05853e0"))
}

// Many tasks cannot make the engine remember more than it may.
func TestHopsBounded(t *testing.T) {
	s := limitedScript(t, Limits{Keys: 4, Age: time.Minute})
	s.open(xapi, "stunnel", 30, event.Paired, "")
	for i := range 10 {
		r := request{method: "VM.x", headers: []string{fmt.Sprintf("task-id: OpaqueRef:%08x-b308-4d50-8d0a-b4b7b9f0a2c1", i)}}
		r.send(s, "stunnel", 110)
		r.returned(s, "stunnel", 110)
	}
	qt.Check(t, qt.Equals(s.e.hopsOut.len(), 4))
	qt.Check(t, qt.Equals(s.e.Stats().HopsEvicted, 6))
	s.wait(2 * time.Minute)
	qt.Check(t, qt.Equals(s.e.Stats().Keys, 0))
}

func hopEvents(t testing.TB) []event.Event {
	s := gather(t)
	s.open(xapi, "stunnel", 30, event.Paired, "")
	s.open(xapi, "tunnel", 31, event.Accepted, "[::]:80")
	s.events[1].Peer = netip.MustParseAddrPort("10.0.0.1:40000") // a PROXY line costs an allocation
	r := request{method: "VM.start", headers: []string{"task-id: " + taskRef, "traceparent: " + caller}}
	r.send(s, "stunnel", 110)
	r.arrive(s, "tunnel", 510)
	r.answered(s, "tunnel", 510)
	r.returned(s, "stunnel", 110)
	s.close(xapi, "stunnel")
	s.close(xapi, "tunnel")
	return s.events
}

// BenchmarkHop is a call between hosts, seen at both.
func BenchmarkHop(b *testing.B) { benchmark(b, hopEvents(b)) }

// TestPoolRandom mixes many calls between hosts at random, on each host in an
// order of its own: each finds its parent and nobody else's.
func TestPoolRandom(t *testing.T) {
	for seed := range uint64(20) {
		rnd := rand.New(rand.NewPCG(seed, 11))
		const n = 30
		p := newPool(t)
		hosts := []*script{p.coordinator, p.member}
		var events [2][][]event.Event
		traces := make(map[string]string) // of the callers, by method
		for i := range n {
			from := rnd.IntN(2)
			side := [2]*script{gather(t), gather(t)}
			a, b := side[from], side[1-from]
			fd, tid := int32(1000+i), uint32(1000+i)
			r := request{method: fmt.Sprintf("VM.m%d", i), framed: rnd.IntN(2) == 0}
			caller := fmt.Sprintf("%032x", i+1)
			var headers []string
			if rnd.IntN(2) == 0 {
				headers = []string{fmt.Sprintf("traceparent: 00-%s-%016x-00", caller, i+1)}
			}
			native := rnd.IntN(2) == 0
			if native {
				r.headers = append(r.headers, fmt.Sprintf("traceparent: 00-%s-%016x-01", caller, 1000+i))
			}
			if !native || rnd.IntN(2) == 0 {
				r.headers = append(r.headers, fmt.Sprintf("%s: OpaqueRef:%08x-b308-4d50-8d0a-b4b7b9f0a2c1", []string{"task-id", "subtask-of"}[rnd.IntN(2)], i))
			}
			if headers != nil && !native {
				caller = "" // the other host is not told
			}
			traces[r.method] = caller
			a.open(xapi, "c", fd, event.Accepted, "/var/lib/xcp/xapi")
			a.open(xapi, "out", fd+1000, event.Paired, "")
			b.open(xapi, "in", fd, event.Accepted, "[::]:80")
			b.in(xapi, "in", tid, "PROXY TCP6 ::ffff:10.0.0.1 ::ffff:10.0.0.2 40000 443\r\n")
			a.request("c", tid, "call of "+r.method, headers...)
			for range 1 + rnd.IntN(3) {
				r.send(a, "out", tid)
				r.arrive(b, "in", tid)
				b.fork(xapi, tid, 5000+tid)
				b.exec(xapi, 5000+tid, "helper", "")
				b.exit(xapi, 5000+tid, 0)
				r.answered(b, "in", tid)
				r.returned(a, "out", tid)
			}
			a.reply("c", tid, success, "")
			for h := range side {
				events[h] = append(events[h], side[h].events)
			}
		}
		for h, s := range hosts {
			left := make([]int, n) // next event of each
			for left := left; ; {
				w := rnd.IntN(n)
				for k := 0; k < n && left[w] == len(events[h][w]); k++ {
					w = (w + 1) % n
				}
				if left[w] == len(events[h][w]) {
					break
				}
				ev := events[h][w][left[w]]
				left[w]++
				s.now += 10_000
				d := s.now - ev.Time
				ev.Time, ev.First, ev.Last = s.now, ev.First+d, ev.Last+d
				s.e.Handle(&ev)
			}
			s.e.check(t)
		}
		spans := p.all()
		byID := make(map[trace.SpanID]*Span)
		for _, sp := range spans {
			qt.Assert(t, qt.IsNil(byID[sp.SpanID]), qt.Commentf("seed %d: %s has the id of another", seed, sp.Name))
			byID[sp.SpanID] = sp
		}
		children := make(map[trace.SpanID]int)
		for _, sp := range spans {
			qt.Check(t, qt.Equals(sp.Incomplete, ""))
			if sp.Name == "helper" || strings.HasPrefix(sp.Name, "call of ") {
				continue
			}
			parent := byID[sp.ParentID]
			qt.Assert(t, qt.IsNotNil(parent), qt.Commentf("seed %d: %s has no parent", seed, sp.Name))
			if sp.Kind == trace.SpanKindClient {
				qt.Check(t, qt.Equals(parent.Name, "call of "+sp.Name), qt.Commentf("seed %d", seed))
			} else {
				qt.Check(t, qt.Equals(parent.Name, sp.Name), qt.Commentf("seed %d", seed))
				qt.Check(t, qt.Equals(parent.Kind, trace.SpanKindClient), qt.Commentf("seed %d", seed))
				children[parent.SpanID]++
				qt.Check(t, qt.Equals(children[parent.SpanID], 1))
				if traces[sp.Name] != "" {
					qt.Check(t, qt.Equals(sp.TraceID, parent.TraceID), qt.Commentf("seed %d: %s", seed, sp.Name))
				}
			}
		}
		for _, s := range hosts {
			s.wait(10 * time.Second) // as long as tasks are remembered
			st := s.e.Stats()
			qt.Check(t, qt.Equals(st.Activities, 0))
			qt.Check(t, qt.Equals(st.Trees, 0))
			qt.Check(t, qt.Equals(st.Conflicts, 0))
		}
	}
}
