// Package tracecontext reads W3C trace context as XAPI reads it.
//
// XAPI's rules differ from the W3C's: flags are ignored, ids are read
// leniently, baggage is split on ';' and nothing is percent-decoded. A span of
// dtagent must hang where XAPI's own span would, so OpenTelemetry's
// propagators, which keep to the W3C's rules, cannot be used.
//
// Nothing here allocates; results are values or parts of the input.
package tracecontext

import (
	"bytes"
	"encoding/binary"

	"go.opentelemetry.io/otel/trace"
)

// Context is the identity of a remote parent span. The zero value is none.
type Context struct {
	TraceID trace.TraceID
	SpanID  trace.SpanID
}

// IsValid tells whether neither id is zero. XAPI records spans below zero ids
// too; to dtagent such ids are no context.
func (c Context) IsValid() bool { return c.TraceID.IsValid() && c.SpanID.IsValid() }

// ParseTraceparent reads the value of a traceparent header: exactly four parts
// between dashes, of which the first is 00 and the last can be anything. The
// second result is false, and the first zero, when XAPI would ignore the value
// or read a zero id from it.
//
// The ids are read as OCaml's Scanf does (tracing.ml: "%016Lx%016Lx" and
// "%Lx"): either case, '_' skipped, digits beyond what is wanted ignored in the
// trace id, too large a span id zero.
func ParseTraceparent(b []byte) (Context, bool) {
	b = bytes.TrimSpace(b)
	version, b, ok1 := bytes.Cut(b, dash)
	traceID, b, ok2 := bytes.Cut(b, dash)
	spanID, flags, ok3 := bytes.Cut(b, dash)
	if !ok1 || !ok2 || !ok3 || string(version) != "00" || bytes.IndexByte(flags, '-') >= 0 {
		return Context{}, false
	}
	high, n, ok1 := scanHex(traceID, 16)
	low, _, ok2 := scanHex(traceID[n:], 16)
	span, _, ok3 := scanHex(spanID, len(spanID))
	if !ok1 || !ok2 || !ok3 {
		return Context{}, false
	}
	var c Context
	binary.BigEndian.PutUint64(c.TraceID[:8], high)
	binary.BigEndian.PutUint64(c.TraceID[8:], low)
	binary.BigEndian.PutUint64(c.SpanID[:], span)
	if !c.IsValid() {
		return Context{}, false
	}
	return c, true
}

var dash = []byte{'-'}

// scanHex reads hex digits as Scanf's %x with that width: at least one digit,
// then digits and '_', up to width bytes or the first other byte. It is false
// for no digit and for a value above 64 bits.
func scanHex(b []byte, width int) (v uint64, n int, ok bool) {
	for n < len(b) && n < width {
		c := b[n]
		switch {
		case c >= '0' && c <= '9':
			c -= '0'
		case c|0x20 >= 'a' && c|0x20 <= 'f':
			c = (c | 0x20) - 'a' + 10
		case c == '_' && n > 0:
			n++
			continue
		default:
			return v, n, n > 0
		}
		if v>>60 != 0 {
			return 0, n, false
		}
		v = v<<4 | uint64(c)
		n++
	}
	return v, n, n > 0
}
