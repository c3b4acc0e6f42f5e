package correlate

import (
	"github.com/xenserver/dtagent/probes/event"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/trace"
)

// Link says by which key a span found its parent: the value of its attribute
// dt.link.method.
type Link string

// Link methods, strongest first. A span without a parent has LinkNone.
const (
	LinkTraceparent Link = "traceparent" // trace id and span id that the caller sent
	LinkSocket      Link = "socket"      // who is at the other end of a connection, or had it before
	LinkThread      Link = "thread"      // work of the thread that holds the parent
	LinkTask        Link = "task"        // XAPI or xenopsd task id
	LinkClone       Link = "clone"       // thread made by the parent's thread
	LinkFork        Link = "fork"        // process made by the parent's thread
	LinkQueue       Link = "queue"       // message-switch queue and message number
	LinkNone        Link = "none"
)

// Span is one finished operation. It is immutable once emitted and is shared
// by all receivers.
type Span struct {
	TraceID    trace.TraceID
	SpanID     trace.SpanID
	ParentID   trace.SpanID // zero for a root
	TraceState string       // as the caller sent it, for the spans of its trace

	// Native is the span of the toolstack's own tracing that the span lies under: the
	// one that its message named as its caller's. Zero where that is the parent
	// already, the parent lies under it too, or none was named.
	Native trace.SpanID

	// Tree numbers the local tree: the spans that this engine joined by its
	// keys. Several calls of one trace are trees of their own. Last is set when, as
	// far as is known, no span of the tree is open or waiting any more; a late
	// one can still follow.
	Tree uint64
	Last bool

	Component event.Component // decides which Observers get it
	Also      event.Component // decides it too: the component of its program, when that is another
	Service   string          // service.name
	Name      string
	Kind      trace.SpanKind
	Start     int64 // ns since 1970
	End       int64 // ns since 1970, not before Start

	Wait event.Spent // the class of the wait that the span is, OnCPU if it is none

	Error      string // XAPI failure code or another short reason; "" when it did not fail
	Link       Link
	Incomplete string // cause, "" when every event of it was seen

	// Guest is set for a request of a guest to its disk, and for the layers below it.
	Guest *GuestRequest
	// Links to other spans that have to do with it, and are no parents of it.
	Links []SpanLink

	// Attributes in the order in which they became known, without those that
	// belong to an Observer and without dt.link.method, dt.incomplete and error,
	// which exporters add from the fields above.
	Attributes []attribute.KeyValue
}

// SpanLink says that a span has to do with another, in this trace or another.
type SpanLink struct {
	TraceID trace.TraceID
	SpanID  trace.SpanID
	Name    string // of that span
	Object  string // what both work at: vm, vdi, sr, or chain for another image of the disk's chain
}

// GuestRequest is what an Observer decides by which requests of guests it gets.
type GuestRequest struct {
	Took  int64 // ns
	Usual int64 // ns that 99 of 100 such requests of the disk took, 0 if not learned
	Slow  bool  // told because it took so long; else as a sample
}

// Size estimates the bytes that the span keeps alive.
func (s *Span) Size() int {
	n := 256 + len(s.Name) + len(s.TraceState) + len(s.Error)
	for i := range s.Attributes {
		a := &s.Attributes[i]
		n += 64 + len(a.Key)
		if a.Value.Type() == attribute.STRING {
			n += len(a.Value.AsString())
		}
	}
	return n + 80*len(s.Links)
}
