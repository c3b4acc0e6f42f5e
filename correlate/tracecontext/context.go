// Package tracecontext reads W3C trace context as XAPI reads it.
//
// XAPI's rules differ from the W3C's: flags are ignored, ids are read
// leniently, baggage is split on ';' and nothing is percent-decoded. A span of
// dtagent must hang where XAPI's own span would, so OpenTelemetry's
// propagators, which keep to the W3C's rules, cannot be used.
//
// Nothing here allocates; results are values or parts of the input.
package tracecontext

import "go.opentelemetry.io/otel/trace"

// Context is the identity of a remote parent span. The zero value is none.
type Context struct {
	TraceID trace.TraceID
	SpanID  trace.SpanID
}

// IsValid tells whether both ids are not zero. XAPI records spans below zero
// ids too; to dtagent such ids are no context.
func (c Context) IsValid() bool { return c.TraceID.IsValid() && c.SpanID.IsValid() }

// ParseTraceparent reads the value of a traceparent header. The second result
// is false when XAPI would ignore the value or read a zero id from it.
func ParseTraceparent(b []byte) (Context, bool) { return Context{}, false }
