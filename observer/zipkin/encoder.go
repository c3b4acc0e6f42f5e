// Package zipkin puts spans into the form of zipkin-v2 receivers: JSON.
//
// The OpenTelemetry exporter makes it. That is deprecated upstream and stays
// therefore behind Encoder. One of its ways does not fit and is mended: it
// lower-cases names, so that VM.start would be another span here than in the
// bugtool files.
package zipkin

import (
	"bytes"
	"encoding/json"

	"github.com/xenserver/dtagent/observer/export"
	//lint:ignore SA1019 deprecated upstream; Encoder keeps it replaceable
	otelzipkin "go.opentelemetry.io/otel/exporters/zipkin"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
)

// Encoder makes bodies that are one array of zipkin-v2 spans. It implements
// remote.Encoder; the zero value is ready.
type Encoder struct {
	spans []sdktrace.ReadOnlySpan // scratch
}

// Name returns "zipkin".
func (*Encoder) Name() string { return "zipkin" }

// ContentType returns that of JSON.
func (*Encoder) ContentType() string { return "application/json" }

// Encode appends the array of the batch to dst. A span that zipkin's model
// refuses is left out.
func (e *Encoder) Encode(dst []byte, batch []*export.Record) (body []byte, lost int, err error) {
	e.spans = e.spans[:0]
	var s *snapshot
	for _, r := range batch {
		s = newSnapshot(r, s)
		e.spans = append(e.spans, s)
	}
	defer func() { clear(e.spans) }()
	start := len(dst)
	for _, m := range otelzipkin.SpanModels(e.spans) {
		b, merr := m.MarshalJSON()
		if merr != nil {
			lost, err = lost+1, merr
			continue
		}
		if len(dst) == start {
			dst = append(dst, '[')
		} else {
			dst = append(dst, ',')
		}
		dst = append(dst, unshield(b)...)
	}
	if len(dst) > start {
		dst = append(dst, ']')
	}
	return dst, lost, err
}

// Join makes one array of several.
func (*Encoder) Join(dst []byte, bodies ...[]byte) []byte {
	dst = append(dst, '[')
	empty := true
	for _, b := range bodies {
		b = bytes.TrimSpace(b)
		if len(b) < 2 {
			continue
		}
		if b = bytes.TrimSpace(b[1 : len(b)-1]); len(b) == 0 {
			continue
		}
		if !empty {
			dst = append(dst, ',')
		}
		dst = append(dst, b...)
		empty = false
	}
	return append(dst, ']')
}

// Split cuts an array in two.
func (e *Encoder) Split(body []byte) (first, second []byte, n int, ok bool) {
	var spans []json.RawMessage
	if err := json.Unmarshal(body, &spans); err != nil || len(spans) < 2 {
		return nil, nil, 0, false
	}
	n = len(spans) / 2
	return array(spans[:n]), array(spans[n:]), n, true
}

func array(spans []json.RawMessage) []byte {
	b := []byte{'['}
	for i, s := range spans {
		if i > 0 {
			b = append(b, ',')
		}
		b = append(b, s...)
	}
	return append(b, ']')
}

// Check returns 0: zipkin receivers take a body or refuse it.
func (*Encoder) Check([]byte) (rejected int, message string) { return 0, "" }
