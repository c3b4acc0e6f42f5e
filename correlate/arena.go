package correlate

import (
	"unsafe"

	"go.opentelemetry.io/otel/attribute"
)

// arena cuts what a span keeps from larger blocks, so that a span costs a small
// part of an allocation. A block lives as long as any part of it; spans leave
// together, so that wastes little.
type arena struct {
	spans []Span
	attrs []attribute.KeyValue
	text  []byte
}

const (
	spanBlock = 64
	attrBlock = 1024
	textBlock = 8192
)

func (r *arena) span() *Span {
	if len(r.spans) == 0 {
		r.spans = make([]Span, spanBlock)
	}
	s := &r.spans[0]
	r.spans = r.spans[1:]
	return s
}

// attributes returns n attributes to be set.
func (r *arena) attributes(n int) []attribute.KeyValue {
	if n == 0 {
		return nil
	}
	if len(r.attrs) < n {
		r.attrs = make([]attribute.KeyValue, max(n, attrBlock))
	}
	kv := r.attrs[:n:n]
	r.attrs = r.attrs[n:]
	return kv
}

// string returns a copy of b.
func (r *arena) string(b []byte) string {
	n := len(b)
	if n == 0 {
		return ""
	}
	if n > textBlock/8 {
		return string(b)
	}
	if len(r.text) < n {
		r.text = make([]byte, textBlock)
	}
	copy(r.text, b)
	s := unsafe.String(&r.text[0], n) // these bytes are never written again
	r.text = r.text[n:]
	return s
}
