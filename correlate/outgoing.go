package correlate

import (
	"bytes"
	"net/netip"
	"strings"

	"github.com/xenserver/dtagent/correlate/wire"
	"github.com/xenserver/dtagent/probes/event"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/trace"
)

// outgoing is a request that xapi writes to another host.
type outgoing struct {
	tid   uint32
	first event.Time
}

// local tells that the other end of the connection is on this host: a unix
// socket by its name, or loop-back. client is the address that a proxy told.
// xapi reaches other hosts through a socket pair that leads to stunnel, or by
// TCP. Of connections that were there before the probe little is known: those
// that last are the ones to other hosts.
func (c *conn) local(client netip.AddrPort) bool {
	switch {
	case client.IsValid():
		return client.Addr().Unmap().IsLoopback()
	case c.peer.IsValid():
		return c.peer.Addr().Unmap().IsLoopback()
	case strings.HasPrefix(c.listener, "/"):
		return true
	}
	return c.how == event.Accepted || c.how == event.Connected
}

// callsHosts tells whether the request that opens a connection is one that xapi
// makes to another host. Calls to itself are seen where they arrive.
func (c *conn) callsHosts(h *wire.Head) bool {
	return c.component == event.Xapi && isCall(h) && !c.local(netip.AddrPort{})
}

// isCall tells that the request is a call of the API.
func isCall(h *wire.Head) bool { return bytes.Equal(h.Method, []byte("POST")) && isRPC(h.Path) }

// startOutgoing takes the head of a request to another host. What it asks for
// stands in its body.
func (e *Engine) startOutgoing(c *conn, ev *event.Event, h *wire.Head, first event.Time) {
	if a := c.call.get(); a != nil {
		e.endCall(a, "no reply was seen before the next request")
	}
	c.call = ref{}
	if !isCall(h) {
		c.role = clientRole // from now on it is something else
		return
	}
	c.hop, c.doubt = hopOf(h), false
	c.agent = fromAgent(h)
	c.outgoing = outgoing{ev.TID, first}
}

// peekOutgoing begins the span when the method is known. Whether a cached
// connection still works is asked with a method of its own: that is not
// reported, and neither is what is no call.
func (e *Engine) peekOutgoing(c *conn, b *body, whole bool) bool {
	call := e.dec.Call(b.buf)
	switch {
	case call.Method == nil:
		return whole
	case call.Probe:
		e.stats.Probes++
		return true
	}
	p, x := &c.hop, &c.outgoing
	th := e.useThread(c.id.TGID, x.tid)
	e.endSending(th, x.first)
	parent := e.current(c.id.TGID, x.tid)
	a := e.begin(clientActivity, c.component, c.id.TGID, x.first, parent, LinkThread)
	a.spanKind = trace.SpanKindClient
	if p.known {
		if id, sure := e.hopSpan(&e.hopsOut, p, call.Method); sure {
			a.spanID = id // else the other host finds no parent
		}
	}
	a.task = p.task
	a.tree.find().isOf(p.inTask())
	switch {
	case !a.parentID.IsValid() && p.context.IsValid():
		e.remote(a, p.context)
	case !a.parentID.IsValid():
		e.joinTaskOf(a, p.inTask())
	case p.context.IsValid():
		if p.context.SpanID != parent.parentID { // else it is the client's, passed on as it came
			a.native = p.context
		}
		e.fix(a.tree.find(), p.context.TraceID)
	}
	e.calls(a, &call)
	if parent == nil {
		e.weaken(a)
		e.leaveOut(c, a, &call) // the call that is passed on may have been before the probe
	}
	if p.length >= 0 {
		a.attrs = append(a.attrs, attribute.Int64("http.request.body.size", p.length))
	}
	if c.peer.IsValid() {
		a.attrs = append(a.attrs, attribute.String("network.transport", "tcp"),
			e.address("network.peer.address", c.peer.Addr()), attribute.Int("network.peer.port", int(c.peer.Port())))
	}
	a.at(c.id.TGID, x.tid)
	a.tid = x.tid
	c.call = a.ref()
	th.sending = a.ref()
	return true
}
