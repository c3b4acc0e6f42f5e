package correlate

import (
	"github.com/xenserver/dtagent/correlate/wire"
	"github.com/xenserver/dtagent/probes/event"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/trace"
)

// startRelay begins what message-switch does with a call: it puts it into its
// queue and answers with the number that it gave it. Its other requests are no
// work for anybody: who waits for messages waits all the time.
func (e *Engine) startRelay(c *conn, ev *event.Event, h *wire.Head, first event.Time) {
	if a := c.call.get(); a != nil {
		e.endCall(a, "no reply was seen before the next request")
	}
	r := e.dec.SwitchRequest(h.Path)
	if r.Action != wire.Request {
		c.call = ref{}
		c.body.read = true
		return
	}
	queue := e.text(r.Queue, maxName)
	a := e.begin(relayActivity, c.component, ev.TGID, first, nil, LinkNone)
	a.spanKind = trace.SpanKindServer
	a.tree.root = a.ref() // its caller reads the number later
	e.scratch = append(append(e.scratch[:0], "relay "...), queue...)
	a.name = e.strings.String(e.scratch)
	a.attrs = append(a.attrs,
		attribute.String("messaging.system", "message-switch"),
		attribute.String("messaging.destination.name", queue))
	if h.ContentLength >= 0 {
		a.attrs = append(a.attrs, attribute.Int64("messaging.message.body.size", h.ContentLength))
	}
	a.at(ev.TGID, ev.TID)
	c.call = a.ref()
}

// relayed takes a complete message of a connection that message-switch serves.
func (e *Engine) relayed(c *conn, ev *event.Event) {
	a := c.call.get()
	if a == nil {
		return
	}
	if ev.Dir == event.In {
		call := e.dec.SwitchCall(c.body.buf, c.body.tail)
		a.method = e.text(call.Method, maxName)
		a.task, a.context = call.DebugInfo.Task, call.DebugInfo.Context
		if a.method != "" {
			e.scratch = append(append(append(e.scratch[:0], a.name...), ' '), a.method...)
			a.name = e.strings.String(e.scratch)
			a.attrs = append(a.attrs, attribute.String("rpc.method", a.method))
		}
		return
	}
	if id, ok := e.dec.SwitchSent(c.body.buf); ok {
		e.relayedAs(a, messageID{e.text(id.Queue, maxName), id.N})
	} else {
		a.err = "no queue"
	}
	e.finish(a, ev.Last, "")
	c.call = ref{}
}

// relayedAs says which message a is: its caller is told the same.
func (e *Engine) relayedAs(a *activity, id messageID) {
	e.messageNumber(a, id)
	m := e.messages.get(id)
	if m == nil || m.hasRelay {
		m = e.messages.put(id, e.now)
	}
	m.relay, m.hasRelay = a.ref(), true
	a.message = id
	if send := m.send.get(); send != nil {
		e.joinRelay(m, send, a)
	}
}

func (e *Engine) joinRelay(m *message, send, relay *activity) {
	if send.method != relay.method {
		e.stats.Conflicts++
		return
	}
	e.join(relay, m.sent, LinkQueue)
}

// settleRelay gives a the best parent that is known when its caller stays
// unseen: as one whose component nobody wants does.
func (e *Engine) settleRelay(a *activity) {
	if m := e.messages.get(a.message); m != nil && m.relay.get() == a && !m.hasSend && !m.hasRPC && m.ended == 0 {
		e.messages.del(a.message)
	}
	e.settleRPC(a)
}
