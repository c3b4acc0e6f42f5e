package push

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/exporters/otlp/otlptrace"
	"go.opentelemetry.io/otel/sdk/instrumentation"
	"go.opentelemetry.io/otel/sdk/resource"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"
	"go.opentelemetry.io/otel/trace"
	coltrace "go.opentelemetry.io/proto/otlp/collector/trace/v1"
	tracepb "go.opentelemetry.io/proto/otlp/trace/v1"
	"google.golang.org/protobuf/proto"

	"github.com/xenserver/dtagent/cmd/dtagent/zipkin"
	"github.com/xenserver/dtagent/observer/export"
)

// zipkinBody is the line as it is; a span alone becomes an array.
func zipkinBody(l line) ([]byte, error) {
	if len(l.raw) > 0 && l.raw[0] == '{' {
		return append(append([]byte{'['}, l.raw...), ']'), nil
	}
	return l.raw, nil
}

// otlpBody is the OTLP request of the line's spans.
func otlpBody(l line) ([]byte, error) {
	resources := map[string]*resource.Resource{}
	stubs := make(tracetest.SpanStubs, len(l.spans))
	for i := range l.spans {
		stubs[i] = stub(&l.spans[i], resources)
	}
	k := &keeper{}
	if err := otlptrace.NewUnstarted(k).ExportSpans(context.Background(), stubs.Snapshots()); err != nil {
		return nil, fmt.Errorf("OTLP: %w", err)
	}
	return k.body, nil
}

// keeper is a client of the OpenTelemetry exporter that keeps what is to be
// sent.
type keeper struct{ body []byte }

func (*keeper) Start(context.Context) error { return nil }
func (*keeper) Stop(context.Context) error  { return nil }

func (k *keeper) UploadTraces(_ context.Context, spans []*tracepb.ResourceSpans) (err error) {
	k.body, err = proto.Marshal(&coltrace.ExportTraceServiceRequest{ResourceSpans: spans})
	return err
}

// stub is the span in the SDK's form. As when dtagent sends OTLP itself, the
// tags that say where it comes from make its resource, otel.scope.name its scope,
// and the tag error its status.
func stub(s *zipkin.Span, resources map[string]*resource.Resource) tracetest.SpanStub {
	traceID, _ := trace.TraceIDFromHex(strings.Repeat("0", 32-len(s.TraceID)) + strings.ToLower(s.TraceID)) // checked by zipkin.Parse
	spanID, _ := trace.SpanIDFromHex(strings.ToLower(s.ID))
	parentID, _ := trace.SpanIDFromHex(strings.ToLower(s.ParentID)) // invalid, which is none, for ""
	state, _ := trace.ParseTraceState(s.Tags[string(export.KeyTraceState)])
	out := tracetest.SpanStub{
		Name:        valid(s.Name),
		SpanContext: trace.NewSpanContext(trace.SpanContextConfig{TraceID: traceID, SpanID: spanID, TraceFlags: trace.FlagsSampled, TraceState: state}),
		SpanKind:    kind(s.Kind),
		StartTime:   s.Start(),
		EndTime:     s.Start().Add(max(s.Length(), 0)),
	}
	if parentID.IsValid() {
		out.Parent = trace.NewSpanContext(trace.SpanContextConfig{TraceID: traceID, SpanID: parentID, TraceFlags: trace.FlagsSampled,
			Remote: s.Link() == "traceparent"})
	}
	if s.Error() != "" {
		out.Status = sdktrace.Status{Code: codes.Error, Description: valid(s.Error())}
	}
	from := []attribute.KeyValue{attribute.String("service.name", valid(s.Service()))}
	for _, k := range slices.Sorted(maps.Keys(s.Tags)) {
		a := attribute.String(valid(k), valid(s.Tags[k]))
		switch {
		case k == string(export.KeyScopeName):
			out.InstrumentationScope = instrumentation.Scope{Name: a.Value.AsString()}
		case k == string(export.KeyTraceState) && state.Len() > 0, k == string(export.KeyError): // have fields of their own
		case isSource(k):
			from = append(from, a)
		default:
			out.Attributes = append(out.Attributes, a)
		}
	}
	for tag, key := range map[string]string{"xs.host.name": "host.name", "xs.host.uuid": "host.id"} {
		if _, ok := s.Tags[key]; !ok && s.Tags[tag] != "" {
			from = append(from, attribute.String(key, valid(s.Tags[tag])))
		}
	}
	set := attribute.NewSet(from...) // of one key the last stays: a tag service.name
	key := set.Encoded(attribute.DefaultEncoder())
	if resources[key] == nil {
		resources[key] = resource.NewSchemaless(set.ToSlice()...)
	}
	out.Resource = resources[key]
	for _, a := range s.Annotations {
		out.Events = append(out.Events, sdktrace.Event{Name: valid(a.Value), Time: time.UnixMicro(a.Timestamp)})
	}
	return out
}

// isSource tells the tags that say where a span comes from.
func isSource(key string) bool {
	for _, prefix := range []string{"xs.host.", "xs.pool.", "xs.observer.", "host.", "service.", "deployment."} {
		if strings.HasPrefix(key, prefix) {
			return true
		}
	}
	return false
}

func kind(s string) trace.SpanKind {
	switch s {
	case "SERVER":
		return trace.SpanKindServer
	case "CLIENT":
		return trace.SpanKindClient
	case "PRODUCER":
		return trace.SpanKindProducer
	case "CONSUMER":
		return trace.SpanKindConsumer
	}
	return trace.SpanKindInternal
}

// valid makes s UTF-8: protobuf has no other strings.
func valid(s string) string { return strings.ToValidUTF8(s, "\uFFFD") }
