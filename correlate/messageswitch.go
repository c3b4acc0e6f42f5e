package correlate

import (
	"bytes"
	"strconv"

	"github.com/xenserver/dtagent/correlate/wire"
	"github.com/xenserver/dtagent/probes/event"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/trace"
)

// messageID is the queue key: a message of message-switch.
type messageID struct {
	queue string
	n     uint64
}

// message joins the call at its sender and at its receiver. Either may come
// first: the switch delivers a message before its sender has read its number.
type message struct {
	send     ref
	sent     place
	hasSend  bool
	rpc      ref
	hasRPC   bool
	relay    ref // at the switch itself
	hasRelay bool
	ended    event.Time // the answer reached the sender's process before its number did
	err      string     // of that answer
}

func (e *Engine) dropMessage(m *message) { e.release(&m.sent) }

// exchange is a request to message-switch and its reply, on one connection.
type exchange struct {
	action   wire.Action
	queue    string
	n        uint64 // Response: number of the message; Transfer: only those above it are asked for
	tid      uint32
	start    event.Time
	send     ref
	answered bool // send knows its number
}

// unknownNumber is above the number of any message.
const unknownNumber = 1<<64 - 1

func (e *Engine) startExchange(c *conn, ev *event.Event, h *wire.Head, first event.Time) {
	r := e.dec.SwitchRequest(h.Path)
	if a := c.exchange.send.get(); a != nil && !c.exchange.answered {
		e.finish(a, first, "its number was not seen")
	}
	c.exchange = exchange{
		action: r.Action, n: r.ID,
		tid: ev.TID, start: first,
	}
	switch r.Action {
	case wire.Request, wire.Response:
		c.exchange.queue = e.text(r.Queue, maxName)
	case wire.Transfer:
		if th := e.threadOf(ev.TGID, ev.TID); th != nil {
			e.dropDeliveries(th)
		}
		c.exchange.n = unknownNumber
	default:
		c.body.read = true
	}
}

// exchanged takes a complete message of a connection to message-switch.
func (e *Engine) exchanged(c *conn, s *side, ev *event.Event) {
	x := &c.exchange
	if ev.Dir == event.Out {
		switch x.action {
		case wire.Request:
			e.startSend(c, ev)
		case wire.Response:
			e.endRPC(c, ev)
		case wire.Transfer:
			if from, ok := e.dec.TransferFrom(c.body.buf); ok {
				x.n = from
			}
		}
		return
	}
	action := x.action
	x.action = wire.OtherAction
	if c.role == unknownRole {
		// the request was made before the probe was there
		if !bytes.HasPrefix(c.body.buf, []byte(`{"messages"`)) {
			return
		}
		c.role, action, x.n = switchRole, wire.Transfer, unknownNumber
	} else if ev.TID != x.tid {
		e.stats.Conflicts++ // the reply to another thread's request
		return
	}
	switch action {
	case wire.Request:
		a := x.send.get()
		if a == nil || !a.open {
			break
		}
		if id, ok := e.dec.SwitchSent(c.body.buf); ok {
			x.answered = true
			e.sent(a, messageID{e.text(id.Queue, maxName), id.N})
		} else {
			a.err = "no queue"
			e.finish(a, ev.Last, "")
		}
	case wire.Transfer:
		e.delivered(c, ev)
	}
}

// startSend begins the span of a call through the switch, at its caller.
func (e *Engine) startSend(c *conn, ev *event.Event) {
	x := &c.exchange
	call := e.dec.SwitchCall(c.body.buf, c.body.tail)
	info := &call.DebugInfo
	th := e.useThread(ev.TGID, x.tid)
	e.endSending(th, x.start)
	parent := e.current(ev.TGID, x.tid)
	if parent != nil && !info.Task.IsZero() && !info.Task.Real() && info.Context.IsValid() {
		// background work has a trace of its own
		if t := parent.tree.find(); t.fixed && t.id != info.Context.TraceID {
			e.stats.Conflicts++
			parent = nil
		}
	}
	a := e.begin(sendActivity, c.component, ev.TGID, x.start, parent, LinkThread)
	a.spanKind = trace.SpanKindProducer
	a.task = info.Task
	a.method = e.text(call.Method, maxName)
	e.scratch = append(append(append(append(e.scratch[:0], "send "...), x.queue...), ' '), a.method...)
	a.name = e.strings.String(e.scratch)
	e.messaging(a, "send", x.queue, &call)
	a.at(ev.TGID, x.tid)
	a.tree.find().isOf(a.task)
	a.tid = x.tid
	x.send = a.ref()
	th.sending = a.ref()
	switch {
	case parent == nil:
		e.adopt(a, info.Context)
	case info.Context.IsValid():
		a.native = info.Context
		e.fix(a.tree.find(), info.Context.TraceID)
	}
}

// endSending ends the call of a thread that goes on to something else: its
// answer was missed, for a thread waits for that.
func (e *Engine) endSending(th *thread, at event.Time) {
	a := th.sending.get()
	th.sending = ref{}
	switch {
	case a == nil || !a.open:
	case a.kind == clientActivity && a.reply != 0:
		// the few bytes of a short body are told when the connection is used again
		e.finish(a, a.reply, "")
	default:
		e.finish(a, at, "its answer was not seen")
	}
}

func (e *Engine) messaging(a *activity, operation, queue string, call *wire.Call) {
	a.attrs = append(a.attrs,
		attribute.String("messaging.system", "message-switch"),
		attribute.String("messaging.operation.name", operation),
		attribute.String("messaging.destination.name", queue))
	if a.method != "" {
		a.attrs = append(a.attrs, attribute.String("rpc.method", a.method))
	}
	if len(call.Object) > 0 {
		a.attrs = append(a.attrs, attribute.String("dt.vm.uuid", e.text(call.Object, maxValue)))
	}
	e.worksAtObjects(a, call)
}

func (e *Engine) messageNumber(a *activity, id messageID) {
	e.scratch = strconv.AppendUint(e.scratch[:0], id.n, 10)
	a.attrs = append(a.attrs, attribute.String("messaging.message.id", e.arena.string(e.scratch)))
}

// sent says which message a is.
func (e *Engine) sent(a *activity, id messageID) {
	e.messageNumber(a, id)
	m := e.messages.get(id)
	if m == nil || m.hasSend || m.ended != 0 && m.ended+e.hold < e.now {
		m = e.messages.put(id, e.now)
	}
	m.send, m.sent, m.hasSend = a.ref(), e.placeOf(a), true
	a.message = id
	if relay := m.relay.get(); relay != nil {
		e.joinRelay(m, a, relay)
	}
	rpc := m.rpc.get()
	if rpc != nil {
		e.joinMessage(m, a, rpc)
	}
	if m.ended != 0 {
		a.err = m.err
		end := m.ended
		if rpc == nil || !rpc.open {
			e.messages.del(id)
		}
		e.finish(a, end, "")
	}
}

func (e *Engine) joinMessage(m *message, send, rpc *activity) {
	if send.method != rpc.method || !send.task.IsZero() && !rpc.task.IsZero() && send.task != rpc.task {
		e.stats.Conflicts++
		return
	}
	e.join(rpc, m.sent, LinkQueue)
}

// delivered takes the messages that the switch gave a process.
func (e *Engine) delivered(c *conn, ev *event.Event) {
	if th := e.threadOf(ev.TGID, ev.TID); th != nil {
		e.dropDeliveries(th)
	}
	inOrder := true // none before this one was missed
	all := e.dec.SwitchMessagesAfter(c.exchange.n, c.body.buf, c.body.tail, func(m *wire.SwitchMessage) {
		switch {
		case m.Kind == wire.Request, m.Kind == wire.OtherAction && m.Call.Method != nil:
			e.startRPC(c, ev, m, inOrder)
		case m.Kind == wire.Response:
			e.endSend(ev, m)
		}
		inOrder = inOrder && !m.Cut
	})
	if !all {
		e.stats.BadMessages++
	}
}

// startRPC begins the work for a message. Its thread is the next one that its
// reader makes; if that is not sure, the one that answers it.
func (e *Engine) startRPC(c *conn, ev *event.Event, d *wire.SwitchMessage, inOrder bool) {
	id := messageID{e.text(d.ID.Queue, maxName), d.ID.N}
	a := e.begin(rpcActivity, c.component, ev.TGID, ev.Last, nil, LinkNone)
	a.spanKind = trace.SpanKindConsumer
	a.message = id
	a.method = e.text(d.Call.Method, maxName)
	a.name = a.method
	if a.name == "" {
		a.name = "process " + id.queue
	}
	a.task, a.context = d.Call.DebugInfo.Task, d.Call.DebugInfo.Context
	a.tree.isOf(a.task)
	e.messaging(a, "process", id.queue, &d.Call)
	e.messageNumber(a, id)
	a.attrs = append(a.attrs, attribute.Int64("process.pid", int64(ev.TGID)))
	a.tree.root = a.ref()
	if inOrder {
		e.deliver(e.useThread(ev.TGID, ev.TID), a)
	}

	m := e.messages.get(id)
	var send *activity
	if m != nil {
		send = m.send.get()
	}
	if m == nil || m.hasRPC || m.hasSend && (send == nil || !send.open) {
		m = e.messages.put(id, e.now)
		send = nil
	}
	m.rpc, m.hasRPC = a.ref(), true
	if send != nil {
		e.joinMessage(m, send, a)
	}
}

// endRPC ends the work for a message: its answer was written.
func (e *Engine) endRPC(c *conn, ev *event.Event) {
	x := &c.exchange
	id := messageID{x.queue, x.n}
	m := e.messages.get(id)
	if m == nil {
		e.stats.NoRequest++
		return
	}
	a := m.rpc.get()
	if a == nil || !a.open || a.tgid != ev.TGID {
		return
	}
	if a.thread != nil && a.thread.tid != x.tid {
		e.stats.Reassigned++
	}
	if a.thread == nil {
		a.set(threadID(x.tid))
	}
	r := e.dec.Reply(c.body.buf)
	a.err = e.outcome(&r)
	if n, ok := jobNumber(r.Value); ok && r.Status == wire.Succeeded {
		e.answered(a, n)
	} else {
		e.unanswered(a)
	}
	if send := m.send.get(); m.hasSend && (send == nil || !send.open) {
		e.messages.del(id)
	}
	e.finish(a, ev.Last, "")
}

// endSend ends a call: its answer reached its process.
func (e *Engine) endSend(ev *event.Event, d *wire.SwitchMessage) {
	id := messageID{e.text(d.Request.Queue, maxName), d.Request.N}
	m := e.messages.get(id)
	if m == nil {
		m = e.messages.put(id, e.now)
	}
	if !m.hasSend {
		m.ended, m.err = ev.Last, e.outcome(&d.Reply)
		return
	}
	a := m.send.get()
	if a == nil || !a.open || a.tgid != ev.TGID {
		return
	}
	a.err = e.outcome(&d.Reply)
	if rpc := m.rpc.get(); rpc == nil || !rpc.open {
		e.messages.del(id)
	}
	e.finish(a, ev.Last, "")
}

// outcome is the error that a reply tells, "" if none.
func (e *Engine) outcome(r *wire.Reply) string {
	switch {
	case r.Status != wire.Failed:
		return ""
	case len(r.Code) == 0:
		return "FAILED"
	}
	return e.text(r.Code, maxName)
}

// switchGone forgets the messages of a process whose wait for further ones ended
// with its connection: the switch that gave them their numbers is gone, and the
// next one may give the same numbers.
func (e *Engine) switchGone(tgid uint32) {
	e.messages.each(func(_ messageID, m *message) bool {
		send, rpc := m.send.get(), m.rpc.get()
		return (send == nil || send.tgid != tgid) && (rpc == nil || rpc.tgid != tgid)
	})
}

// settleRPC gives a the best parent that is known when its sender stays unseen.
func (e *Engine) settleRPC(a *activity) {
	e.weaken(a)
	if a.context.IsValid() {
		e.remote(a, a.context)
		return
	}
	e.joinTask(a)
}
