package correlate

import (
	"bytes"
	"strings"

	"github.com/xenserver/dtagent/correlate/tracecontext"
	"github.com/xenserver/dtagent/correlate/wire"
	"github.com/xenserver/dtagent/probes/event"
	"go.opentelemetry.io/otel/trace"
)

// The socket key beyond one connection: who is at its other end, and who goes on
// with it.
//
// The kernel says of an accepted unix socket which process connected it, and with
// which socket. A process that was started for somebody's work and calls back, as
// SM scripts do, calls for that work. A daemon has many threads: its call is work
// of the thread that connected, which calls once on that connection.
//
// XAPI passes the sockets of some requests on to other daemons (those for metrics
// to xcp-rrdd, migration to xenopsd), whose answer goes out on them. A socket
// keeps its inode on the way. The daemon may get it before or after xapi has
// closed its own descriptor.

// connector is a socket that a daemon connected, and the thread's work, or the
// request that came by it before that was known.
type connector struct {
	work    ref
	known   bool
	waiting ref
}

func (e *Engine) dropConnector(*connector) {}

// connected notes whose work a new connection is.
func (e *Engine) connected(c *conn, ev *event.Event) {
	if c.ino == 0 || c.peer.IsValid() {
		return
	}
	work := e.current(ev.TGID, ev.TID)
	if p := e.callers.get(c.ino); p != nil && !p.known {
		if a := p.waiting.get(); a != nil && work != nil && a.tree.root.get() == a {
			a.native = a.context
			e.joinWork(a, work)
			if a.parentID.IsValid() {
				e.maybeFix(a.tree.find())
			}
		}
		e.callers.del(c.ino)
		return
	}
	p := e.callers.put(c.ino, e.now)
	if p.known = true; work != nil {
		p.work = work.ref()
	}
}

// joinCaller hangs a, the call that begins on c, under the work that it is made
// for, as far as the other end of the connection tells. It is false when that is
// not known, or when the call's context says that it belongs elsewhere.
func (e *Engine) joinCaller(c *conn, a *activity, context tracecontext.Context) bool {
	c.requests++
	work := e.processes.byTGID[c.peerTGID]
	if c.peerTGID == 0 || work != nil && (work.epoch != e.gaps.epoch || !serves(work)) {
		return false // or its pid may be another's by now
	}
	if work == nil {
		if c.requests > 1 || c.peerIno == 0 {
			return false
		}
		p := e.callers.get(c.peerIno)
		switch {
		case p != nil && p.known:
			work = p.work.get()
			e.callers.del(c.peerIno)
		case !context.IsValid() && e.processes.conns[c.peerTGID] > 0:
			// the caller's thread comes back from connecting later
			e.callers.put(c.peerIno, e.now).waiting = a.ref()
			a.tree.root = a.ref()
		}
	}
	if work == nil || !work.open {
		return false
	}
	if context.IsValid() {
		t := work.tree.find()
		if !t.fixed || t.id != context.TraceID {
			return false // a trace of its own, as most programs get
		}
		a.native = context
	}
	return e.joinWork(a, work)
}

func (e *Engine) joinWork(a, work *activity) bool {
	p := e.placeOf(work)
	defer e.release(&p)
	if !e.join(a, p, LinkSocket) {
		return false
	}
	work.parent = true
	return true
}

// serves tells whether a process still works for what it was started for: some go
// on, as a device model does.
func serves(a *activity) bool {
	for a != nil && a.kind == processActivity {
		if !a.open || a.resident {
			return false
		}
		a = a.maker.get()
	}
	return a != nil && a.open
}

// settleCall ends the waiting for a call's caller.
func (e *Engine) settleCall(a *activity) {
	if a.context.IsValid() {
		e.remote(a, a.context)
		return
	}
	e.joinTask(a)
}

// handover is a request whose socket was closed without an answer: it may have
// been passed on.
type handover struct {
	call ref
	at   event.Time
}

// dropHandover ends a request whose socket nobody went on with.
func (e *Engine) dropHandover(h *handover) {
	if a := h.call.get(); a != nil {
		e.finish(a, h.at, "closed before the reply")
	}
}

// handedOver closes the connection of a request that may have been passed on. It
// is false, and does nothing, for others.
func (e *Engine) handedOver(c *conn, ev *event.Event) bool {
	a := c.call.get()
	if a == nil || !a.open || a.reply != 0 || c.role != serverRole || c.rpc || c.ino == 0 {
		return false
	}
	c.call = ref{}
	if a.thread != nil {
		a.thread.remove(a) // which ends before anybody goes on
	}
	ino := c.ino
	e.dropConn(c, "")
	if a.passed {
		e.finish(a, ev.Time, "")
		return true
	}
	*e.handed.put(ino, e.now) = handover{a.ref(), ev.Time}
	return true
}

// passed begins the work of a process that goes on with another one's request.
func (e *Engine) passed(c *conn, ev *event.Event) {
	c.passed, c.role = true, clientRole
	if c.ino == 0 {
		return
	}
	var call *activity
	h := e.handed.get(c.ino)
	if h != nil {
		call = h.call.get()
	} else {
		for o := e.conns.lru.head; o != nil; o = o.next {
			if o.ino == c.ino && o != c && o.role == serverRole {
				call = o.call.get()
			}
		}
	}
	if call == nil || !call.open {
		return
	}
	a := e.begin(callActivity, c.component, ev.TGID, ev.Time, call, LinkSocket)
	a.spanKind, a.name = trace.SpanKindServer, call.name
	for _, kv := range call.attrs {
		switch kv.Key {
		case "http.request.method", "url.path", "user_agent.original", "network.transport", "network.local.address", "network.peer.address",
			"network.peer.port", "client.address", "client.port":
			a.attrs = append(a.attrs, kv)
		}
	}
	a.at(ev.TGID, ev.TID)
	a.task = call.task
	c.role, c.call = serverRole, a.ref()
	if th := e.useThread(ev.TGID, ev.TID); th.top() == nil {
		th.push(a)
	}
	if h != nil {
		at := h.at
		h.call = ref{}
		e.handed.del(c.ino)
		e.finish(call, at, "")
	} else {
		call.passed = true
	}
}

// isForwarded tells that a listener is one on which sockets are passed on: what is
// said there is no HTTP.
func isForwarded(listener string) bool { return strings.HasSuffix(listener, ".forwarded") }

// forwards tells that a process begins to pass a request on: with the socket goes
// what it has read of it, as JSON. Or it asks forkexecd for a program.
func forwards(c *conn, ev *event.Event) bool {
	return c.role == unknownRole && c.how == event.Connected && ev.Dir == event.Out &&
		(bytes.HasPrefix(ev.Head, []byte("{")) || asksForkexecd(ev.Head))
}

// context of a daemon's request, which stands in its body. It says which trace the
// caller is in when nothing better does.
func (e *Engine) inside(a *activity, info *wire.DebugInfo) {
	a.task = info.Task
	if !info.Context.IsValid() {
		return
	}
	switch {
	case a.parentID.IsValid():
		a.native = info.Context
		e.fix(a.tree.find(), info.Context.TraceID)
	case a.tree.root.get() == a: // its caller may still be found
		a.context = info.Context
	default:
		e.remote(a, info.Context)
	}
}
