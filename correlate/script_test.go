package correlate

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/go-quicktest/qt"
	"github.com/xenserver/dtagent/correlate/wire"
	"github.com/xenserver/dtagent/probes/event"
	"go.opentelemetry.io/otel/trace"
)

// daemon is a process of the toolstack in a test.
type daemon struct {
	component event.Component
	tgid      uint32
	name      string
}

var (
	xapi    = daemon{event.Xapi, 100, "xapi"}
	xenopsd = daemon{event.Xenopsd, 200, "xenopsd-xc"}
)

const xenops = "org.xen.xapi.xenops.classic"

// script plays events to an Engine, or gathers them, and looks at the spans
// that come out. Its clock goes on by 10 µs an event.
type script struct {
	testing.TB
	e      *Engine
	now    event.Time
	spans  []*Span
	events []event.Event // gathered when e is nil
	conns  map[string]event.Conn
	random uint64
}

func config(s *script, l Limits) Config {
	return Config{
		Emit:   func(sp *Span) { s.spans = append(s.spans, sp) },
		Rand:   func() uint64 { s.random++; return s.random },
		Limits: l,
	}
}

func newScript(t testing.TB) *script { return limitedScript(t, Limits{}) }

func limitedScript(t testing.TB, l Limits) *script {
	s := &script{TB: t, now: 1e9, conns: make(map[string]event.Conn)}
	s.e = New(config(s, l))
	return s
}

// gather returns a script that keeps its events.
func gather(t testing.TB) *script {
	return &script{TB: t, now: 1e9, conns: make(map[string]event.Conn)}
}

func (s *script) put(ev event.Event) event.Time {
	s.now += 10_000
	ev.Time = s.now
	if ev.Kind == event.KindData {
		if ev.First == 0 {
			ev.First = s.now - 5_000
		}
		ev.Last = s.now - 1_000
		if ev.Bytes == 0 {
			ev.Bytes = uint64(len(ev.Head) + len(ev.Tail))
		}
	}
	if s.e == nil {
		s.events = append(s.events, ev)
	} else {
		s.e.Handle(&ev)
		s.e.check(s)
	}
	return s.now
}

// wait lets time pass.
func (s *script) wait(d time.Duration) {
	s.now += event.Time(d)
	if s.e != nil {
		s.e.Advance(s.now)
		s.e.check(s)
	}
}

func (d daemon) event(k event.Kind, tid uint32) event.Event {
	return event.Event{Kind: k, Component: d.component, TGID: d.tgid, TID: tid}
}

// open makes a socket known; conn is its name in the test and fd its number.
func (s *script) open(d daemon, conn string, fd int32, how event.How, listener string) {
	s.now += 10_000
	s.conns[conn] = event.Conn{TGID: d.tgid, FD: fd, Born: s.now}
	ev := d.event(event.KindOpen, d.tgid)
	ev.Conn, ev.How, ev.Listener = s.conns[conn], how, listener
	s.put(ev)
}

func (s *script) accept(conn string, fd int32) {
	s.open(xapi, conn, fd, event.Accepted, "/var/lib/xcp/xapi")
}

func (s *script) close(d daemon, conn string) {
	ev := d.event(event.KindClose, d.tgid)
	ev.Conn = s.conns[conn]
	s.put(ev)
}

func (s *script) data(d daemon, conn string, tid uint32, dir event.Dir, text string, flags event.Flags) event.Time {
	ev := d.event(event.KindData, tid)
	ev.Conn, ev.Dir, ev.Head, ev.Flags = s.conns[conn], dir, []byte(text), flags
	return s.put(ev)
}

func (s *script) in(d daemon, conn string, tid uint32, text string) event.Time {
	return s.data(d, conn, tid, event.In, text, 0)
}

func (s *script) out(d daemon, conn string, tid uint32, text string) event.Time {
	return s.data(d, conn, tid, event.Out, text, 0)
}

// request is an XML-RPC request as xapi reads it: head, then body.
func (s *script) request(conn string, tid uint32, method string, headers ...string) (first event.Time) {
	body := "<?xml version='1.0'?>\n<methodCall>\n<methodName>" + method + "</methodName>\n<params>\n</params>\n</methodCall>\n"
	head := fmt.Sprintf("POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n", len(body))
	for _, h := range headers {
		head += h + "\r\n"
	}
	at := s.in(xapi, conn, tid, head+"\r\n")
	s.data(xapi, conn, tid, event.In, body, event.FlagMore)
	return at - 5_000
}

const (
	success = `<?xml version="1.0"?><methodResponse><params><param><value><struct><member><name>Status</name><value>Success</value></member><member><name>Value</name><value>%s</value></member></struct></value></param></params></methodResponse>`
	failure = `<?xml version="1.0"?><methodResponse><params><param><value><struct><member><name>Status</name><value>Failure</value></member><member><name>ErrorDescription</name><value><array><data><value>%s</value><value>VM</value></data></array></value></member></struct></value></param></params></methodResponse>`
)

// reply is xapi's answer: head and body are two writes.
func (s *script) reply(conn string, tid uint32, form, value string) (last event.Time) {
	body := fmt.Sprintf(form, value)
	s.out(xapi, conn, tid, fmt.Sprintf("HTTP/1.1 200 OK\r\ncontent-length: %d\r\nconnection: keep-alive\r\n\r\n", len(body)))
	return s.data(xapi, conn, tid, event.Out, body, event.FlagMore) - 1_000
}

func (s *script) call(conn string, tid uint32, method string, headers ...string) {
	s.request(conn, tid, method, headers...)
	s.reply(conn, tid, success, "")
}

func (s *script) fork(d daemon, tid, child uint32) event.Time {
	ev := d.event(event.KindFork, tid)
	ev.ChildTGID, ev.ChildTID = child, child
	return s.put(ev)
}

func (s *script) thread(d daemon, tid, child uint32) event.Time {
	ev := d.event(event.KindFork, tid)
	ev.ChildTGID, ev.ChildTID, ev.Flags = d.tgid, child, event.FlagThread
	return s.put(ev)
}

func (s *script) exec(d daemon, pid uint32, program, operation string) {
	ev := d.event(event.KindExec, pid)
	ev.TGID, ev.Program, ev.Operation = pid, program, operation
	s.put(ev)
}

func (s *script) threadExit(d daemon, tid uint32) event.Time {
	return s.put(d.event(event.KindExit, tid))
}

func (s *script) exit(d daemon, pid uint32, code int32) event.Time {
	ev := d.event(event.KindExit, pid)
	ev.TGID, ev.Flags, ev.Code, ev.CPUTime = pid, event.FlagLeader, code, 1_500_000
	return s.put(ev)
}

func (s *script) log(d daemon, tid uint32, tag, module, message string) event.Time {
	ev := d.event(event.KindLog, tid)
	ev.Head = []byte(fmt.Sprintf("<175>Nov 22 12:23:14 %s: [debug||6 |%s|%s] %s", d.name, tag, module, message))
	ev.Bytes = uint64(len(ev.Head))
	return s.put(ev)
}

// post is a request to message-switch: head, then body.
func (s *script) post(d daemon, conn string, tid uint32, path, body string) (first, last event.Time) {
	head := fmt.Sprintf("POST %s HTTP/1.1\r\nuser-agent: cohttp\r\ncontent-length: %d\r\nconnection: keep-alive\r\nhost: localhost\r\n\r\n", path, len(body))
	first = s.out(d, conn, tid, head) - 5_000
	return first, s.data(d, conn, tid, event.Out, body, event.FlagMore) - 1_000
}

func (s *script) answer(d daemon, conn string, tid uint32, body string) event.Time {
	return s.in(d, conn, tid, fmt.Sprintf("HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%s", len(body), body))
}

// quote escapes a string for JSON.
func quote(text string) string {
	return `"` + strings.NewReplacer(`\`, `\\`, `"`, `\"`, "\n", `\n`).Replace(text) + `"`
}

func rpcBody(method, debugInfo string) string {
	return `{"method":` + quote(method) + `,"params":[{"id":"91b928e6-5e4c-9f1a-6147-fb162417c0e0","debug_info":` + quote(debugInfo) + `}],"id":78}`
}

// ask is a call through message-switch by a thread of xapi: to the write of the
// call.
func (s *script) ask(tid uint32, method, debugInfo string) (first event.Time) {
	first, _ = s.post(xapi, "ask", tid, "/request/"+xenops+"/xapi:100", rpcBody(method, debugInfo))
	return first
}

// number is the switch's answer to ask.
func (s *script) number(tid uint32, n int) {
	s.answer(xapi, "ask", tid, fmt.Sprintf(`[["%s",%d]]`, xenops, n))
}

// deliver gives xenopsd's listener the message.
func (s *script) deliver(n int, method, debugInfo string) event.Time {
	s.post(xenopsd, "listen", 201, "/transfer", `{"from":"64","timeout":30.0,"queues":["`+xenops+`"]}`)
	return s.answer(xenopsd, "listen", 201, fmt.Sprintf(`{"messages":[[["%s",%d],{"payload":%s,"kind":["Request","xapi:100"]}]],"next":"%d"}`,
		xenops, n, quote(rpcBody(method, debugInfo)), n))
}

// respond is xenopsd's answer, and its delivery to xapi's listener.
func (s *script) respond(n int, tid uint32, result string) (last event.Time) {
	body := `{"result":` + result + `,"error":null,"id":0}`
	_, last = s.post(xenopsd, "answer", tid, fmt.Sprintf("/response/xapi:100/%s/%d", xenops, n), body)
	s.answer(xenopsd, "answer", tid, `[["xapi:100",76]]`)
	return last
}

func (s *script) answered(n int, result string) event.Time {
	body := `{"result":` + result + `,"error":null,"id":0}`
	s.post(xapi, "wait", 101, "/transfer", `{"from":"76","timeout":30.0,"queues":["xapi:100"]}`)
	return s.answer(xapi, "wait", 101, fmt.Sprintf(`{"messages":[[["xapi:100",76],{"payload":%s,"kind":["Response",["%s",%d]]}]],"next":"76"}`,
		quote(body), xenops, n))
}

// openSwitch makes the connections to message-switch known.
func (s *script) openSwitch() {
	s.open(xapi, "ask", 9, event.Seeded, "")
	s.open(xapi, "wait", 11, event.Seeded, "")
	s.open(xenopsd, "listen", 6, event.Seeded, "")
	s.open(xenopsd, "answer", 8, event.Seeded, "")
}

// rpc is a whole call through the switch, done by xenopsd's thread.
func (s *script) rpc(n int, tid, thread uint32, method, debugInfo, result string) {
	s.ask(tid, method, debugInfo)
	s.number(tid, n)
	s.deliver(n, method, debugInfo)
	s.thread(xenopsd, 201, thread)
	s.respond(n, thread, result)
	s.threadExit(xenopsd, thread)
	s.answered(n, result)
}

func (s *script) drain() {
	if s.e != nil {
		s.e.Drain()
		s.e.check(s)
	}
}

// span returns the only span of that name.
func (s *script) span(name string) *Span {
	s.Helper()
	var found *Span
	for _, sp := range s.spans {
		if sp.Name == name {
			if found != nil {
				s.Fatalf("two spans %q", name)
			}
			found = sp
		}
	}
	if found == nil {
		s.Fatalf("no span %q; there are %s", name, names(s.spans))
	}
	return found
}

func names(spans []*Span) string {
	var b strings.Builder
	for _, sp := range spans {
		fmt.Fprintf(&b, " %q", sp.Name)
	}
	return b.String()
}

// under asserts that the span hangs under the other by that key.
func (s *script) under(child, parent string, link Link) {
	s.Helper()
	c, p := s.span(child), s.span(parent)
	qt.Assert(s, qt.Equals(c.ParentID, p.SpanID))
	qt.Assert(s, qt.Equals(c.TraceID, p.TraceID))
	qt.Assert(s, qt.Equals(c.Link, link))
}

func (s *script) root(name string) {
	s.Helper()
	sp := s.span(name)
	qt.Assert(s, qt.Equals(sp.ParentID, trace.SpanID{}))
	qt.Assert(s, qt.Equals(sp.Link, LinkNone))
}

func attr(sp *Span, key string) string {
	for _, kv := range sp.Attributes {
		if string(kv.Key) == key {
			return kv.Value.String()
		}
	}
	return ""
}

// check asserts what must hold after every event.
func (e *Engine) check(t testing.TB) {
	t.Helper()
	trees := make(map[*tree]int)
	open := make(map[*tree]int)
	n := 0
	for a := e.activities.live.head; a != nil; a = a.next {
		n++
		trees[a.tree]++
		if a.open && !a.resident {
			open[a.tree.find()]++
		}
		if a.popped.tree != nil {
			trees[a.popped.tree]++
		}
		if a.thread != nil && e.threads.byTID[a.thread.tid] != a.thread {
			t.Fatalf("%s is on a thread that is gone", a.name)
		}
	}
	if n != e.activities.live.len {
		t.Fatalf("%d activities, counted as %d", n, e.activities.live.len)
	}
	e.messages.each(func(_ messageID, m *message) bool {
		if m.sent.tree != nil {
			trees[m.sent.tree]++
		}
		return true
	})
	e.jobs.each(func(_ jobID, j *job) bool {
		if j.answer.tree != nil {
			trees[j.answer.tree]++
		}
		return true
	})
	for _, tasks := range []*table[wire.TaskID, taskPlace]{&e.tasks, &e.ended} {
		tasks.each(func(_ wire.TaskID, p *taskPlace) bool {
			if p.place.tree != nil {
				trees[p.place.tree]++
			}
			return true
		})
	}
	e.objects.each(func(_ uuid, o *object) bool {
		for i := range o.n {
			trees[o.visits[i].place.tree]++
		}
		return true
	})
	for i := range e.pushes.n {
		if p := e.pushes.at(i); p.place.tree != nil {
			trees[p.place.tree]++
		}
	}
	for th := e.threads.lru.head; th != nil; th = th.next {
		if th.popped.place.tree != nil {
			trees[th.popped.place.tree]++
		}
	}
	into := make(map[*tree]int)
	for tr := range trees {
		for ; tr.into != nil; tr = tr.into {
			if _, ok := trees[tr.into]; !ok {
				trees[tr.into] = 0
			}
		}
	}
	for tr := range trees {
		if tr.into != nil {
			into[tr.into]++
		}
	}
	for tr, n := range trees {
		if tr.refs != n+into[tr] {
			t.Fatalf("tree has %d references, counted as %d", n+into[tr], tr.refs)
		}
		if tr.into == nil && tr.open != open[tr] {
			t.Fatalf("tree has %d open activities, counted as %d", open[tr], tr.open)
		}
	}
	if len(trees) != e.trees.len {
		t.Fatalf("%d trees are in use, counted as %d", len(trees), e.trees.len)
	}
}
