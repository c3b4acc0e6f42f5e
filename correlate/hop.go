package correlate

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"

	"github.com/xenserver/dtagent/correlate/tracecontext"
	"github.com/xenserver/dtagent/correlate/wire"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/trace"
)

// A call from one host's xapi to another's is a hop: a CLIENT span at its
// sender, a SERVER span at its receiver. The agents of the two hosts do not
// talk to each other, and their clocks differ; but both see the same bytes. So
// the id of the CLIENT span is made of these, and the receiver knows it without
// being told:
//
//	hop  = SHA-256("dtagent hop" 00 trace-id span-id task subtask length method)[:16]
//	id   = SHA-256(hop n)[:8]
//
// trace-id (16 bytes) and span-id (8) are those of the request's traceparent;
// task and subtask (14) the short forms, R:…, of its task-id and subtask-of;
// zeros stand for what is not there. length (8, big-endian) is its
// content-length, -1 if it has none; method is that of the call, with its
// prefix. n (4, big-endian) counts the requests before that look the same to
// this host: a task may ask for the same twice. Where one of these is missed by
// one of the hosts, or they go to several hosts, a span can hang under a
// sibling of its parent: the same call of the same task.
//
// Without traceparent, task-id and subtask-of nothing tells one request from
// those of others: there is no key, and no parent. Who makes up such headers
// hangs their own span under a parent that nobody has, unless they know the
// trace or the task already.
type hop struct {
	remote    bool // the request is one between hosts
	known     bool // and has a key
	context   tracecontext.Context
	task      wire.TaskID
	subtaskOf wire.TaskID
	length    int64
}

// hopKey tells requests between hosts apart.
type hopKey [16]byte

func hopOf(h *wire.Head) hop {
	p := hop{length: h.ContentLength}
	p.context, _ = tracecontext.ParseTraceparent(h.Traceparent)
	if h.Task.Real() {
		p.task = h.Task
	}
	if h.SubtaskOf.Real() {
		p.subtaskOf = h.SubtaskOf
	}
	p.known = p.context.IsValid() || !p.task.IsZero() || !p.subtaskOf.IsZero()
	return p
}

// inTask is the task that the call is part of.
func (p *hop) inTask() wire.TaskID {
	if p.task.IsZero() {
		return p.subtaskOf
	}
	return p.task
}

// hopSpan returns the id of the hop's CLIENT span. seen holds what went the same
// way before. It is not sure when one of these may have been lost.
func (e *Engine) hopSpan(seen *table[hopKey, alike], p *hop, method []byte) (id trace.SpanID, sure bool) {
	b := append(e.scratch[:0], "dtagent hop\x00"...)
	b = append(append(b, p.context.TraceID[:]...), p.context.SpanID[:]...)
	b = append(append(b, p.task[:]...), p.subtaskOf[:]...)
	b = binary.BigEndian.AppendUint64(b, uint64(p.length))
	b = append(b, method...)
	e.scratch = b
	sum := sha256.Sum256(b)
	key := hopKey(sum[:])
	n, sure := seen.renew(key, e.now).another(&e.gaps, e.now)
	e.scratch = binary.BigEndian.AppendUint32(append(e.scratch[:0], key[:]...), n)
	sum = sha256.Sum256(e.scratch)
	copy(id[:], sum[:])
	if !id.IsValid() {
		id[len(id)-1] = 1
	}
	return id, sure
}

// taskTrace is the trace id of a tree of which only the XAPI task is known, on
// every host of the pool: SHA-256("dtagent task" 00 "R:…")[:16].
func (e *Engine) taskTrace(task wire.TaskID) (id trace.TraceID) {
	e.scratch = append(append(e.scratch[:0], "dtagent task\x00"...), task[:]...)
	sum := sha256.Sum256(e.scratch)
	copy(id[:], sum[:])
	return id
}

// libraries is how the user agent of XAPI's own calls begins.
var libraries = []byte("xen-api-libs/")

// fromXapi tells whether the request can be one of a xapi.
func fromXapi(h *wire.Head) bool { return h.Framed || bytes.HasPrefix(h.UserAgent, libraries) }

// received looks whether the request comes from another host's xapi: from
// outside, and made by XAPI's own library or behind a frame, which is how a
// member of the pool passes a client's request on.
func (e *Engine) received(c *conn, h *wire.Head) hop {
	if !c.rpc || c.unsure && c.how == 0 || !fromXapi(h) || c.local(c.side[0].reader.Client()) {
		return hop{}
	}
	p := hopOf(h)
	p.remote = true
	return p
}

// joinHop hangs the call under the CLIENT span that its caller's host made for
// it. The span under which it would hang without stays on it as an attribute: that
// of the traceparent, which is XAPI's own or, when a member of the pool passed a
// client's request on, that of the client; or that of its task on this host. Who
// does not find the CLIENT span, because nobody observes that host, finds the
// call's place by it.
func (e *Engine) joinHop(p *hop, a *activity, method []byte) {
	if !p.known {
		return
	}
	p.known = false
	id, sure := e.hopSpan(&e.hopsIn, p, method)
	if a.parentID.IsValid() {
		a.attrs = append(a.attrs, e.spanID("dt.remote.span_id", a.parentID))
	}
	if !sure {
		e.touch(a)
		a.parentID, a.link = trace.SpanID{}, LinkNone
		return
	}
	a.parentID, a.link = id, LinkTask
	if p.context.IsValid() {
		a.link = LinkTraceparent
	}
}

func (e *Engine) spanID(key string, id trace.SpanID) attribute.KeyValue {
	const digits = "0123456789abcdef"
	b := e.scratch[:0]
	for _, x := range id {
		b = append(b, digits[x>>4], digits[x&15])
	}
	e.scratch = b
	return attribute.String(key, e.arena.string(b))
}
