package correlate

import (
	"bytes"
	"net/netip"
	"strconv"
	"strings"

	"github.com/xenserver/dtagent/correlate/tracecontext"
	"github.com/xenserver/dtagent/correlate/wire"
	"github.com/xenserver/dtagent/probes/event"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/trace"
)

// Longest strings that a span takes from a request.
const (
	maxName   = 256
	maxValue  = 256
	maxPairs  = 32 // of baggage
	peekBytes = 4096
)

// startCall begins the API call whose request head is complete.
func (e *Engine) startCall(c *conn, ev *event.Event, h *wire.Head, first event.Time) {
	if a := c.call.get(); a != nil {
		e.endCall(a, "no reply was seen before the next request")
	}
	th := e.useThread(ev.TGID, ev.TID)
	e.endSending(th, first)
	e.unwind(th, 0, e.now, endUnseen) // a connection's thread does one request at a time

	ctx, hasContext := tracecontext.ParseTraceparent(h.Traceparent)
	a := e.begin(callActivity, c.component, ev.TGID, first, nil, LinkNone)
	a.spanKind = trace.SpanKindServer
	if hasContext {
		t := a.tree
		t.state = e.unique(tracecontext.TrimTracestate(h.Tracestate), tracecontext.MaxTracestate)
	}
	if !e.joinCaller(c, a, ctx) && hasContext {
		e.remote(a, ctx)
	}
	if len(h.Baggage) > 0 {
		a.tree.baggage = e.baggage(h.Baggage)
	}
	if h.Task.Real() {
		a.task = h.Task // the caller's, on this or another host
		a.tree.isOf(h.Task)
		if !hasContext {
			e.joinTask(a)
		}
		if e.tasks.get(h.Task) == nil {
			e.tasks.put(h.Task, e.now).place = e.placeOf(a)
		}
	}
	e.enter(th, a)
	c.call, c.doubt = a.ref(), false
	c.tunnel = false
	c.rpc = isCall(h)
	c.inside = c.component != event.Xapi || isSocket(h.Path)
	c.agent = fromAgent(h)
	if c.component == event.Xapi && bytes.HasPrefix(h.Path, databasePath) {
		a.tree.find().out = true
		e.stats.DatabaseCalls++
	}
	c.hop = e.received(c, h)
	if c.unsure && !c.hop.known && fromXapi(h) && !strings.HasPrefix(c.listener, "/") {
		e.touch(a) // what told that it comes from another host may have been missed
	}
	if id := c.hop.subtaskOf; c.hop.known && h.Task.IsZero() {
		a.tree.find().isOf(id)
		if !hasContext {
			e.joinTaskOf(a, id)
		}
	}

	if !a.parentID.IsValid() && (c.peerTGID != 0 || c.how == 0) {
		e.weaken(a) // what the process at the other end is may have been missed
	}

	e.scratch = append(append(append(e.scratch[:0], h.Method...), ' '), h.Path...)
	name := e.scratch
	a.name = e.text(name, maxName)
	a.attrs = append(a.attrs,
		attribute.String("http.request.method", e.text(h.Method, maxValue)),
		attribute.String("url.path", e.text(h.Path, maxValue)))
	if len(h.UserAgent) > 0 {
		a.attrs = append(a.attrs, attribute.String("user_agent.original", e.text(h.UserAgent, maxValue)))
	}
	if h.ContentLength >= 0 {
		a.attrs = append(a.attrs, attribute.Int64("http.request.body.size", h.ContentLength))
	}
	e.network(c, a)
	a.at(ev.TGID, ev.TID)

	switch {
	case bytes.Equal(h.Path, []byte("/cli")):
	case !c.rpc:
		c.body.read = true
	}
}

// isRPC tells that requests for the path are calls: of the API, or between
// daemons.
func isRPC(path []byte) bool {
	switch string(path) {
	case "/", "/RPC2", "/json", "/jsonrpc":
		return true
	}
	return isSocket(path)
}

// isSocket tells whether the path is that of a daemon's socket, which is what
// daemons ask each other for where they do without message-switch.
func isSocket(path []byte) bool {
	return bytes.HasPrefix(path, []byte("/var/lib/xcp/")) || bytes.HasPrefix(path, []byte("/var/xapi/"))
}

func (e *Engine) network(c *conn, a *activity) {
	peer, transport := c.peer, ""
	switch {
	case peer.IsValid() || c.listener != "" && !strings.HasPrefix(c.listener, "/"):
		transport = "tcp"
	case c.listener != "":
		transport = "unix"
	}
	if transport != "" {
		a.attrs = append(a.attrs, attribute.String("network.transport", transport))
	}
	if transport == "unix" {
		a.attrs = append(a.attrs, attribute.String("network.local.address", c.listener))
	}
	if peer.IsValid() {
		a.attrs = append(a.attrs, e.address("network.peer.address", peer.Addr()), attribute.Int("network.peer.port", int(peer.Port())))
	}
	if client := c.side[0].reader.Client(); client.IsValid() {
		a.attrs = append(a.attrs, e.address("client.address", client.Addr()), attribute.Int("client.port", int(client.Port())))
	}
}

func (e *Engine) address(key string, addr netip.Addr) attribute.KeyValue {
	e.scratch = addr.Unmap().AppendTo(e.scratch[:0])
	return attribute.String(key, e.strings.String(e.scratch))
}

// baggage turns a baggage header into attributes, as xapi does; span.depth is
// left out, it counts xapi's own spans.
func (e *Engine) baggage(b []byte) []attribute.KeyValue {
	n := 0
	for k := range tracecontext.Baggage(b).All() {
		if n < maxPairs && len(k) > 0 && string(k) != tracecontext.SpanDepth {
			n++
		}
	}
	out := e.arena.attributes(n)
	i := 0
	for k, v := range tracecontext.Baggage(b).All() {
		if i < n && len(k) > 0 && string(k) != tracecontext.SpanDepth {
			out[i] = attribute.String(e.text(k, maxValue), e.unique(v, maxValue))
			i++
		}
	}
	return out
}

// peek reads what is there of the body in progress on a server's socket: the
// method of a request, the outcome in a reply.
func (e *Engine) peek(c *conn, ev *event.Event, whole bool) {
	b := &c.body
	a := c.call.get()
	reply := ev.Dir == c.role.replies()
	if a == nil && (reply || c.role != hostRole) || b.read || b.buf == nil {
		return
	}
	whole = whole || len(b.buf) >= peekBytes || b.tail != nil
	done := false
	switch {
	case reply:
		done = e.peekReply(c, a, b, whole)
	case c.role == serverRole:
		done = e.peekRequest(c, a, b, whole)
	default:
		done = e.peekOutgoing(c, b, whole)
	}
	if done {
		e.readBody(b)
	}
}

func (e *Engine) peekRequest(c *conn, a *activity, b *body, whole bool) bool {
	if strings.HasSuffix(a.name, " /cli") {
		line, rest, complete := bytes.Cut(b.buf, []byte("\n"))
		if !complete && !whole {
			return false
		}
		line = bytes.TrimSpace(line)
		if bytes.HasPrefix(line, []byte("session_id=")) {
			// a member of the pool passes the command on behind its session
			line, _, _ = bytes.Cut(rest, []byte("\n"))
			line = bytes.TrimSpace(line)
		}
		if len(line) > 0 && !bytes.ContainsAny(line, " =") {
			e.scratch = append(append(e.scratch[:0], "xe "...), line...)
			a.name = e.text(e.scratch, maxName)
			a.set(attribute.String("rpc.method", a.name[len("xe "):]))
		}
		return true
	}
	var call wire.Call
	if !c.inside {
		call = e.dec.Call(b.buf)
	} else {
		if !whole {
			return false // debug_info may be last
		}
		call = e.dec.SwitchCall(b.buf, b.tail)
	}
	if call.Method == nil {
		return whole
	}
	e.calls(a, &call)
	e.leaveOut(c, a, &call)
	e.joinHop(&c.hop, a, call.Method)
	if c.inside {
		e.inside(a, &call.DebugInfo)
		if a.task.Real() && a.tree.find().root.get() != a {
			e.joinTask(a) // daemons that are told no more than that
		}
	}
	return true
}

// calls says what a asks for.
func (e *Engine) calls(a *activity, call *wire.Call) {
	a.name = e.text(call.Method, maxName)
	a.prefix = call.Prefix
	a.method = strings.TrimPrefix(a.name, call.Prefix.String())
	switch call.Protocol {
	case wire.XMLRPC:
		a.set(attribute.String("rpc.system", "xmlrpc"))
	case wire.JSONRPC:
		a.set(attribute.String("rpc.system", "jsonrpc"))
	}
	a.set(attribute.String("rpc.method", a.name))
	e.worksAtObjects(a, call)
}

func (e *Engine) peekReply(c *conn, a *activity, b *body, whole bool) bool {
	if a.method == "" {
		return true
	}
	r := e.dec.Reply(b.buf)
	if r.Status == wire.Unknown && !whole {
		return false
	}
	if code := e.outcome(&r); code != "" {
		a.err = code
	}
	if c.role == serverRole && c.component == event.Xenopsd {
		if n, ok := jobNumber(r.Value); ok && r.Status == wire.Succeeded {
			e.answered(a, n)
		} else if r.Status == wire.Unknown {
			return whole
		} else {
			e.unanswered(a)
		}
	}
	if r.Status == wire.Succeeded && a.prefix != wire.NoPrefix {
		if r.Task.IsZero() && !whole {
			return false
		}
		if r.Task.Real() && !c.doubt {
			a.task = r.Task
			a.tree.find().isOf(r.Task)
		}
	}
	return true
}

// replyHead takes the head of the reply.
func (e *Engine) replyHead(c *conn, s *side, h *wire.Head) {
	a := c.call.get()
	if a == nil {
		if c.role == serverRole {
			e.stats.NoRequest++
		}
		c.body.read = true
		return
	}
	if h.Status >= 100 && h.Status < 200 && h.Status != 101 {
		s.busy = false // the real one follows
		return
	}
	a.set(attribute.Int("http.response.status_code", h.Status))
	if h.Status >= 400 && a.err == "" {
		a.err = e.strings.String(strconv.AppendInt(append(e.scratch[:0], "HTTP "...), int64(h.Status), 10))
	}
	if c.role == serverRole && s.reader.Left() < 0 && !h.Chunked {
		c.tunnel = true // until the socket closes
	}
}

// replied ends the call when its reply is complete.
func (e *Engine) replied(c *conn, s *side, ev *event.Event) {
	if h := s.reader.Head(); h.Status >= 100 && h.Status < 200 {
		return
	}
	a := c.call.get()
	if a == nil {
		return
	}
	if request := &c.side[2-ev.Dir]; request.busy && request.reader.Left() > 0 {
		return // answered before the request was read to its end
	}
	a.reply = max(a.reply, ev.Last)
	e.endCall(a, "")
}

// endCall ends a with the last byte of its reply; without one it is incomplete
// because of cause.
func (e *Engine) endCall(a *activity, cause string) {
	if !a.open {
		return
	}
	if a.reply != 0 {
		e.finish(a, a.reply, "")
		return
	}
	e.finish(a, e.now, cause)
}

// taskPlace is the task key: where work for one of XAPI's tasks belongs.
type taskPlace struct{ place place }

func (e *Engine) dropTaskPlace(p *taskPlace) { e.release(&p.place) }

// joinTask hangs a, a root, under the span of its task.
func (e *Engine) joinTask(a *activity) { e.joinTaskOf(a, a.task) }

func (e *Engine) joinTaskOf(a *activity, id wire.TaskID) {
	p := e.tasks.get(id)
	if p == nil {
		p = e.ended.get(id)
	}
	if p != nil {
		e.join(a, p.place, LinkTask)
	}
}

// endTask keeps the task key for a while beyond the end of its span.
func (e *Engine) endTask(a *activity) {
	if p := e.tasks.get(a.task); p != nil && p.place.span == a.spanID {
		*e.ended.put(a.task, e.now) = *p
		*p = taskPlace{}
		e.tasks.del(a.task)
	}
}

// noteTask says that the thread of a call or task logged under a task.
func (e *Engine) noteTask(a *activity, label []byte, id wire.TaskID) {
	if a.task.Real() || a.task == id {
		return
	}
	label = bytes.TrimPrefix(label, []byte("dispatch:"))
	label = bytes.TrimPrefix(label, []byte(a.prefix.String()))
	if a.method != "" && string(label) != a.method {
		return // a task within the task
	}
	if a.method == "" && !id.Real() || a.kind == callActivity && a.prefix != wire.NoPrefix && id.Real() {
		return // a real one is the async task's
	}
	a.task = id
	if id.Real() {
		a.tree.find().isOf(id)
		p := e.tasks.put(id, e.now)
		p.place = e.placeOf(a)
	}
}
