package zipkin

import (
	"time"

	"github.com/xenserver/dtagent/observer/export"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/sdk/instrumentation"
	"go.opentelemetry.io/otel/sdk/resource"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/trace"
)

// snapshot shows a record as the SDK's finished span. The interface is embedded
// because the SDK keeps others from implementing it; every exported method is
// given here.
type snapshot struct {
	sdktrace.ReadOnlySpan
	rec      *export.Record
	tags     []attribute.KeyValue
	service  string
	resource *resource.Resource // of service
	status   sdktrace.Status
}

// newSnapshot returns the snapshot of r. before is that of another record, whose
// resource it shares if that is the same; it may be nil.
func newSnapshot(r *export.Record, before *snapshot) *snapshot {
	s := &snapshot{rec: r, resource: resource.Empty()}
	s.tags = r.AppendTags(make([]attribute.KeyValue, 0, len(r.Attributes)+len(r.Span.Attributes)+8))
	kept := s.tags[:0]
	for _, t := range s.tags {
		switch {
		case t.Key == export.KeyServiceName:
			// The exporter takes it from the resource, as the span's service and
			// as a tag.
			s.service = t.Value.AsString()
			if before != nil && before.service == s.service && s.service != "" {
				s.resource = before.resource
			} else {
				s.resource = resource.NewSchemaless(t.Key.String(shield(s.service)))
			}
		case t.Key == export.KeyError && r.Span.Error != "":
			// The exporter writes the description as the tag error.
			s.status = sdktrace.Status{Code: codes.Error, Description: t.Value.AsString()}
		default:
			kept = append(kept, t)
		}
	}
	s.tags = kept
	return s
}

func (s *snapshot) Name() string { return shield(s.rec.Span.Name) }

func (s *snapshot) SpanContext() trace.SpanContext {
	state, _ := trace.ParseTraceState(s.rec.Span.TraceState) // empty when it is not well-formed
	return trace.NewSpanContext(trace.SpanContextConfig{
		TraceID: s.rec.Span.TraceID, SpanID: s.rec.Span.SpanID, TraceFlags: trace.FlagsSampled, TraceState: state,
	})
}

func (s *snapshot) Parent() trace.SpanContext {
	return trace.NewSpanContext(trace.SpanContextConfig{TraceID: s.rec.Span.TraceID, SpanID: s.rec.ParentID(), TraceFlags: trace.FlagsSampled})
}

func (s *snapshot) SpanKind() trace.SpanKind { return s.rec.Span.Kind }

// StartTime and EndTime are such that the exporter, which rounds, writes the
// same microseconds as the bugtool files, where they are truncated. A time that
// zipkin's model refuses, and with it the whole batch, is left out.
func (s *snapshot) StartTime() time.Time {
	if s.rec.Span.Start < int64(time.Second) {
		return time.Time{}
	}
	return time.UnixMicro(s.rec.Span.Start / 1000)
}

func (s *snapshot) EndTime() time.Time {
	d := time.Duration(max(s.rec.Span.End-s.rec.Span.Start, 0))
	return s.StartTime().Add(d.Truncate(time.Microsecond))
}

func (s *snapshot) Attributes() []attribute.KeyValue { return s.tags }
func (s *snapshot) Links() []sdktrace.Link           { return nil }
func (s *snapshot) Events() []sdktrace.Event         { return nil }
func (s *snapshot) Status() sdktrace.Status          { return s.status }
func (s *snapshot) Resource() *resource.Resource     { return s.resource }
func (s *snapshot) DroppedAttributes() int           { return 0 }
func (s *snapshot) DroppedLinks() int                { return 0 }
func (s *snapshot) DroppedEvents() int               { return 0 }
func (s *snapshot) ChildSpanCount() int              { return 0 }

// InstrumentationScope is empty: otel.scope.name is among the tags already,
// where the user's attributes may override it.
func (s *snapshot) InstrumentationScope() instrumentation.Scope { return instrumentation.Scope{} }

// InstrumentationLibrary is InstrumentationScope by its old name.
func (s *snapshot) InstrumentationLibrary() instrumentation.Scope { return instrumentation.Scope{} }
