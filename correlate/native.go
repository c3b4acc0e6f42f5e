package correlate

import (
	"bytes"

	"github.com/xenserver/dtagent/correlate/logline"
	"github.com/xenserver/dtagent/correlate/tracecontext"
	"github.com/xenserver/dtagent/correlate/wire"
)

// The toolstack can trace itself, too. Its spans are nobody's events; but what
// its daemons send each other names the span that sends it, and their log lines
// (since 26.8) the span that runs. So a tree of which no caller gave the trace
// joins the toolstack's, and its spans know which of the toolstack's they lie
// under. There can be a dozen of these between a call and what it sends.
//
// A span has one parent. It is dtagent's own where there is one, so that its
// spans are a whole tree wherever they go; the toolstack's stands beside it
// (Span.Native), for Observers whose spans go where the toolstack's go.

// keyNative is the attribute with Span.Native.
const keyNative = "dt.native.span_id"

// underNative says which span of the toolstack s lies under. One in another trace,
// which a daemon opened for itself, is none.
func (e *Engine) underNative(a *activity, s *Span) {
	n := a.native
	if !n.IsValid() || n.TraceID != s.TraceID || n.SpanID == s.ParentID || n.SpanID == s.SpanID {
		return
	}
	s.Native = n.SpanID
	a.attrs = append(a.attrs, e.spanID(keyNative, n.SpanID))
}

// wantsTrace tells whether the next log line of a can give its tree an id.
func (e *Engine) wantsTrace(a *activity) bool { return !a.logged && !a.tree.find().fixed }

// noteTrace takes the trace that a's thread logs to be that of its tree, if it
// has none. The field is no more than a hint: XAPI leaves in it what an inner
// piece of work, with a trace of its own, put there. So it counts only on the first line
// that is tagged as a's own, before it has had others work for it; and not on one
// that tells of an inner task.
func (e *Engine) noteTrace(a *activity, l *logline.Line, label []byte, id wire.TaskID) {
	if !e.wantsTrace(a) || id != a.task && id.Real() {
		return
	}
	label = bytes.TrimPrefix(label, []byte(a.prefix.String()))
	if a.method == "" || string(label) != a.method {
		return
	}
	a.logged = true
	if a.parent {
		return
	}
	if n, ok := l.Anchor(); ok && n.Kind == logline.TaskCreated {
		return
	}
	if c, ok := tracecontext.ParseTraceparent(l.Trace); ok {
		e.fix(a.tree.find(), c.TraceID)
	}
}
