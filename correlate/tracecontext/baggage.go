package tracecontext

import (
	"bytes"
	"iter"
)

// Baggage is a baggage header's value, or several joined: "k=v;k2=v2".
type Baggage []byte

// SpanDepth is the baggage key in which XAPI keeps the nesting depth of its
// spans.
const SpanDepth = "span.depth"

// All yields the pairs in order, without blanks around key and value, repeated
// keys as often as they stand there. An item without '=' is left out. Keys and
// values are parts of b, not decoded.
func (b Baggage) All() iter.Seq2[[]byte, []byte] {
	return func(yield func(k, v []byte) bool) {
		for rest := []byte(b); len(rest) > 0; {
			var item []byte
			item, rest, _ = bytes.Cut(rest, semicolon)
			k, v, ok := bytes.Cut(item, equals)
			if ok && !yield(bytes.TrimSpace(k), bytes.TrimSpace(v)) {
				return
			}
		}
	}
}

// Depth returns the value of the first key span.depth, false when there is none
// or it is no decimal number. XAPI answers a request with HTTP 500 when it has
// a usable traceparent and a span.depth that is no number.
func (b Baggage) Depth() (depth int, ok bool) {
	for k, v := range b.All() {
		if string(k) != SpanDepth {
			continue
		}
		if len(v) == 0 || len(v) > 9 {
			return 0, false
		}
		for _, c := range v {
			if c < '0' || c > '9' {
				return 0, false
			}
			depth = depth*10 + int(c-'0')
		}
		return depth, true
	}
	return 0, false
}

var (
	semicolon = []byte{';'}
	equals    = []byte{'='}
)
