package otlp

import (
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/xenserver/dtagent/correlate"
	"github.com/xenserver/dtagent/observer/export"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/sdk/instrumentation"
	"go.opentelemetry.io/otel/sdk/resource"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/trace"
)

// Keys of OpenTelemetry's semantic conventions for what XAPI calls
// xs.host.name and xs.host.uuid.
const (
	keyHostName attribute.Key = "host.name"
	keyHostID   attribute.Key = "host.id"
)

// snapshot shows a record as the SDK's finished span. The interface is embedded
// because the SDK keeps others from implementing it; every exported method is
// given here.
type snapshot struct {
	sdktrace.ReadOnlySpan
	span     *correlate.Span
	parent   trace.SpanID
	name     string
	state    trace.TraceState
	tags     []attribute.KeyValue
	links    []sdktrace.Link
	resource *resource.Resource
	scope    string
	status   sdktrace.Status
}

// resources makes the resources of spans, and keeps the last few: the spans of
// an Observer have one for each service.
type resources struct {
	recent []*kept
	tags   []attribute.KeyValue // scratch
}

type kept struct {
	tags     []attribute.KeyValue
	resource *resource.Resource
}

// maxRecent is about the number of services of a host.
const maxRecent = 16

func (rs *resources) of(tags []attribute.KeyValue) *resource.Resource {
	for _, k := range rs.recent {
		if slices.Equal(k.tags, tags) {
			return k.resource
		}
	}
	if len(rs.recent) == maxRecent {
		rs.recent = slices.Delete(rs.recent, 0, 1)
	}
	k := &kept{tags: slices.Clone(tags), resource: resource.NewSchemaless(tags...)}
	rs.recent = append(rs.recent, k)
	return k.resource
}

// source tells the tags that say where a span comes from: in OpenTelemetry
// those of its resource. An attribute that is not the Observer's is not among
// them, whatever its name: it may be baggage that a caller sent.
func source(k attribute.Key, r *export.Record) bool {
	if k == export.KeyServiceName {
		return true
	}
	for _, prefix := range []string{"xs.host.", "xs.pool.", "xs.observer.", "host.", "service.", "deployment."} {
		if strings.HasPrefix(string(k), prefix) {
			_, ok := slices.BinarySearchFunc(r.Attributes, k, func(t attribute.KeyValue, k attribute.Key) int {
				return strings.Compare(string(k), string(t.Key)) // descending
			})
			return ok
		}
	}
	return false
}

func (rs *resources) snapshot(r *export.Record) *snapshot {
	s := &snapshot{span: r.Span, parent: r.ParentID(), name: valid(r.Span.Name)}
	state, stateErr := trace.ParseTraceState(r.Span.TraceState)
	s.tags = r.AppendTags(make([]attribute.KeyValue, 0, len(r.Attributes)+len(r.Span.Attributes)+8))
	if r.Span.Error != "" {
		s.status.Code = codes.Error
	}
	s.links = links(r.Span, s.tags)
	spanTags := s.tags[:0]
	rs.tags = rs.tags[:0]
	hostName, hostID := "", ""
	for _, t := range s.tags {
		t = validTag(t)
		if t.Key == export.KeyExceptionMessage && r.Span.Error != "" {
			s.status.Description = t.Value.String()
		}
		switch {
		case t.Key == export.KeyScopeName:
			s.scope = t.Value.String()
		case t.Key == export.KeyTraceState && t.Value.AsString() == r.Span.TraceState && stateErr == nil:
			s.state = state // has a field of its own, unless an Edit was at it
		case t.Key == export.KeyError && r.Span.Error != "": // is the status
		case len(s.links) > 0 && export.IsLinkTag(t.Key): // is in a link
		case source(t.Key, r):
			rs.tags = append(rs.tags, t)
			switch t.Key {
			case "xs.host.name":
				hostName = t.Value.String()
			case "xs.host.uuid":
				hostID = t.Value.String()
			}
		default:
			spanTags = append(spanTags, t)
		}
	}
	s.tags = spanTags
	rs.add(keyHostName, hostName)
	rs.add(keyHostID, hostID)
	s.resource = rs.of(rs.tags)
	clear(rs.tags)
	return s
}

// add adds a tag of the resource that the Observer does not give.
func (rs *resources) add(k attribute.Key, v string) {
	if v != "" && !slices.ContainsFunc(rs.tags, func(t attribute.KeyValue) bool { return t.Key == k }) {
		rs.tags = append(rs.tags, k.String(v))
	}
}

// valid returns s as UTF-8: protobuf has no other strings.
func valid(s string) string {
	if utf8.ValidString(s) {
		return s
	}
	return strings.ToValidUTF8(s, "\uFFFD")
}

func validTag(t attribute.KeyValue) attribute.KeyValue {
	if k := string(t.Key); !utf8.ValidString(k) {
		t.Key = attribute.Key(valid(k))
	}
	switch t.Value.Type() {
	case attribute.STRING:
		if v := t.Value.AsString(); !utf8.ValidString(v) {
			t.Value = attribute.StringValue(valid(v))
		}
	case attribute.STRINGSLICE:
		vs := t.Value.AsStringSlice()
		if slices.ContainsFunc(vs, func(v string) bool { return !utf8.ValidString(v) }) {
			for i := range vs {
				vs[i] = valid(vs[i])
			}
			t.Value = attribute.StringSliceValue(vs)
		}
	}
	return t
}

// links returns the span's links, with what their tags have become: one whose trace id
// the Observer has redacted is none.
func links(s *correlate.Span, tags []attribute.KeyValue) (out []sdktrace.Link) {
	tag := func(k attribute.Key) string {
		for _, t := range tags {
			if t.Key == k {
				return valid(t.Value.String())
			}
		}
		return ""
	}
	for i, l := range export.Links(s) {
		k := export.LinkKeysOf(i)
		if tag(k.TraceID) != l.TraceID.String() || tag(k.SpanID) != l.SpanID.String() {
			continue
		}
		out = append(out, sdktrace.Link{
			SpanContext: trace.NewSpanContext(trace.SpanContextConfig{TraceID: l.TraceID, SpanID: l.SpanID, TraceFlags: trace.FlagsSampled}),
			Attributes:  []attribute.KeyValue{export.KeyLinkName.String(tag(k.Name)), export.KeyLinkObject.String(tag(k.Object))},
		})
	}
	return out
}

func (s *snapshot) Name() string { return s.name }

func (s *snapshot) SpanContext() trace.SpanContext {
	return trace.NewSpanContext(trace.SpanContextConfig{
		TraceID: s.span.TraceID, SpanID: s.span.SpanID, TraceFlags: trace.FlagsSampled, TraceState: s.state,
	})
}

// Parent is remote when it is the caller's own span, or one of the toolstack's.
func (s *snapshot) Parent() trace.SpanContext {
	return trace.NewSpanContext(trace.SpanContextConfig{TraceID: s.span.TraceID, SpanID: s.parent, TraceFlags: trace.FlagsSampled,
		Remote: s.span.Link == correlate.LinkTraceparent || s.parent != s.span.ParentID})
}

func (s *snapshot) SpanKind() trace.SpanKind         { return s.span.Kind }
func (s *snapshot) StartTime() time.Time             { return time.Unix(0, s.span.Start) }
func (s *snapshot) EndTime() time.Time               { return time.Unix(0, max(s.span.End, s.span.Start)) }
func (s *snapshot) Attributes() []attribute.KeyValue { return s.tags }
func (s *snapshot) Links() []sdktrace.Link           { return s.links }
func (s *snapshot) Events() []sdktrace.Event         { return nil }
func (s *snapshot) Status() sdktrace.Status          { return s.status }
func (s *snapshot) Resource() *resource.Resource     { return s.resource }
func (s *snapshot) DroppedAttributes() int           { return 0 }
func (s *snapshot) DroppedLinks() int                { return 0 }
func (s *snapshot) DroppedEvents() int               { return 0 }
func (s *snapshot) ChildSpanCount() int              { return 0 }

// InstrumentationScope is what otel.scope.name says.
func (s *snapshot) InstrumentationScope() instrumentation.Scope {
	return instrumentation.Scope{Name: s.scope}
}

// InstrumentationLibrary is InstrumentationScope by its old name.
func (s *snapshot) InstrumentationLibrary() instrumentation.Scope { return s.InstrumentationScope() }
