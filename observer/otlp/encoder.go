// Package otlp puts spans into the form of OTLP/HTTP receivers: protobuf.
//
// The OpenTelemetry exporter makes it, by way of a Client that keeps the bytes
// instead of sending them, which is the seam that the exporter offers for that. What
// it says of a span more than the bugtool files do: who sent it is a resource,
// times are in nanoseconds, failures are a status, and tags keep their types.
package otlp

import (
	"context"
	"fmt"

	"github.com/xenserver/dtagent/observer/export"
	"go.opentelemetry.io/otel/exporters/otlp/otlptrace"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	collectorpb "go.opentelemetry.io/proto/otlp/collector/trace/v1"
	tracepb "go.opentelemetry.io/proto/otlp/trace/v1"
	"google.golang.org/protobuf/proto"
)

// Encoder makes bodies that are one ExportTraceServiceRequest. It implements
// remote.Encoder; the zero value is ready.
type Encoder struct {
	resources resources
	spans     []sdktrace.ReadOnlySpan // scratch
}

// Name returns "otlp".
func (*Encoder) Name() string { return "otlp" }

// ContentType returns that of protobuf.
func (*Encoder) ContentType() string { return "application/x-protobuf" }

// Encode appends the request of the batch to dst. If one of the batch cannot be
// put into the form the others still are.
func (e *Encoder) Encode(dst []byte, batch []*export.Record) (body []byte, lost int, err error) {
	e.spans = e.spans[:0]
	for _, r := range batch {
		e.spans = append(e.spans, e.resources.snapshot(r))
	}
	defer func() { clear(e.spans) }()
	if body, err = encode(dst, e.spans); err == nil {
		return body, 0, nil
	}
	body = dst
	for i := range e.spans {
		b, serr := encode(body, e.spans[i:i+1])
		if serr != nil {
			lost, err = lost+1, serr
			continue
		}
		body = b
	}
	return body, lost, err
}

func encode(dst []byte, spans []sdktrace.ReadOnlySpan) ([]byte, error) {
	k := &keeper{body: dst}
	if err := otlptrace.NewUnstarted(k).ExportSpans(context.Background(), spans); err != nil {
		return dst, fmt.Errorf("OTLP: %w", err)
	}
	return k.body, nil
}

// keeper is the client of the exporter that appends what is to be sent to body.
type keeper struct{ body []byte }

func (*keeper) Start(context.Context) error { return nil }
func (*keeper) Stop(context.Context) error  { return nil }

func (k *keeper) UploadTraces(_ context.Context, spans []*tracepb.ResourceSpans) (err error) {
	k.body, err = proto.MarshalOptions{}.MarshalAppend(k.body, &collectorpb.ExportTraceServiceRequest{ResourceSpans: spans})
	return err
}

// Join makes one request of several: protobuf messages with only repeated
// fields are joined by their bytes.
func (*Encoder) Join(dst []byte, bodies ...[]byte) []byte {
	for _, b := range bodies {
		dst = append(dst, b...)
	}
	return dst
}

// Split cuts a request in two.
func (*Encoder) Split(body []byte) (first, second []byte, n int, ok bool) {
	var all collectorpb.ExportTraceServiceRequest
	if err := proto.Unmarshal(body, &all); err != nil {
		return nil, nil, 0, false
	}
	total := 0
	for _, r := range all.ResourceSpans {
		for _, s := range r.ScopeSpans {
			total += len(s.Spans)
		}
	}
	if total < 2 {
		return nil, nil, 0, false
	}
	n = total / 2
	first, err1 := proto.Marshal(part(&all, 0, n))
	second, err2 := proto.Marshal(part(&all, n, total))
	return first, second, n, err1 == nil && err2 == nil
}

// part returns the spans from to to of a request, with what is around them.
func part(all *collectorpb.ExportTraceServiceRequest, from, to int) *collectorpb.ExportTraceServiceRequest {
	out := &collectorpb.ExportTraceServiceRequest{}
	at := 0
	for _, r := range all.ResourceSpans {
		res := &tracepb.ResourceSpans{Resource: r.Resource, SchemaUrl: r.SchemaUrl}
		for _, s := range r.ScopeSpans {
			lo, hi := max(from-at, 0), min(to-at, len(s.Spans))
			at += len(s.Spans)
			if lo < hi {
				res.ScopeSpans = append(res.ScopeSpans, &tracepb.ScopeSpans{Scope: s.Scope, SchemaUrl: s.SchemaUrl, Spans: s.Spans[lo:hi]})
			}
		}
		if len(res.ScopeSpans) > 0 {
			out.ResourceSpans = append(out.ResourceSpans, res)
		}
	}
	return out
}

// Check reads partial_success. An answer that is none, as JSON would be, counts
// as full success.
func (*Encoder) Check(answer []byte) (rejected int, message string) {
	var r collectorpb.ExportTraceServiceResponse
	if err := proto.Unmarshal(answer, &r); err != nil {
		return 0, ""
	}
	p := r.GetPartialSuccess()
	return int(min(max(p.GetRejectedSpans(), 0), 1<<30)), p.GetErrorMessage()
}
