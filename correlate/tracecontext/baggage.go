package tracecontext

import "iter"

// Baggage is a baggage header's value, or several joined: "k=v;k2=v2".
type Baggage []byte

// SpanDepth is the baggage key in which XAPI keeps the nesting depth of its
// spans.
const SpanDepth = "span.depth"

// All yields the pairs in order. Items without '=' are left out. Keys and
// values are parts of b, not decoded.
func (b Baggage) All() iter.Seq2[[]byte, []byte] {
	return func(yield func(k, v []byte) bool) {}
}

// Depth returns the value of the key span.depth, false when there is none or
// it is not a number.
func (b Baggage) Depth() (int, bool) { return 0, false }
