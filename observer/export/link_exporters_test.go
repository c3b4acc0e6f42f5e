package export_test

import (
	"slices"
	"strings"
	"testing"

	"github.com/go-quicktest/qt"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/trace"
	collectorpb "go.opentelemetry.io/proto/otlp/collector/trace/v1"
	"google.golang.org/protobuf/proto"

	"github.com/xenserver/dtagent/correlate"
	"github.com/xenserver/dtagent/observer/bugtool"
	"github.com/xenserver/dtagent/observer/export"
	"github.com/xenserver/dtagent/observer/otlp"
)

// linked is a span with two links.
func linked() *correlate.Span {
	return &correlate.Span{
		TraceID: trace.TraceID{1}, SpanID: trace.SpanID{2}, Name: "guest read xvdb", Service: "tapdisk", Start: 1e9, End: 2e9,
		Links: []correlate.SpanLink{
			{TraceID: trace.TraceID{3}, SpanID: trace.SpanID{4}, Name: "VM.snapshot", Object: "vm"},
			{TraceID: trace.TraceID{5}, SpanID: trace.SpanID{6}, Name: "SR.scan", Object: "sr"},
		},
		// What a caller sends as baggage cannot pass for a link.
		Attributes: []attribute.KeyValue{attribute.String("dt.link.1.trace_id", "forged"), attribute.String("disk.io.direction", "read")},
	}
}

// Zipkin has no links: tags carry them.
func TestLinksAsTags(t *testing.T) {
	r := &export.Record{Span: linked()}
	var got []string
	for _, kv := range r.AppendTags(nil) {
		got = append(got, string(kv.Key)+"="+kv.Value.String())
	}
	qt.Check(t, qt.DeepEquals(got, []string{
		"service.name=tapdisk", "dt.link.method=none",
		"dt.link.2.trace_id=05000000000000000000000000000000", "dt.link.2.span_id=0600000000000000", "dt.link.2.object=sr", "dt.link.2.name=SR.scan",
		"dt.link.1.trace_id=03000000000000000000000000000000", "dt.link.1.span_id=0400000000000000", "dt.link.1.object=vm", "dt.link.1.name=VM.snapshot",
		"disk.io.direction=read",
	}))
	line := bugtool.AppendSpan(nil, r.Span, r.ParentID(), r.AppendTags(nil))
	qt.Check(t, qt.StringContains(string(line), `"dt.link.1.trace_id":"03000000000000000000000000000000"`))
}

// There are tags for as many links as a span can have, and no more are written.
func TestManyLinks(t *testing.T) {
	s := linked()
	s.Links = slices.Repeat(s.Links, 20)
	n := 0
	for _, kv := range (&export.Record{Span: s}).AppendTags(nil) {
		if export.IsLinkTag(kv.Key) {
			n++
		}
	}
	qt.Check(t, qt.Equals(n, 4*len(export.Links(s))))
	qt.Check(t, qt.IsFalse(export.IsLinkTag(export.KeyLinkMethod)))
}

// OTLP has links, and then no such tags; what an Observer redacts is redacted there.
func TestLinksOfOTLP(t *testing.T) {
	for what, c := range map[string]struct {
		redact []string
		want   string
	}{
		"plain":          {nil, "03 04 VM.snapshot vm, 05 06 SR.scan sr"},
		"redacted names": {[]string{"dt.link.*.name"}, "03 04 [redacted] vm, 05 06 [redacted] sr"},
		"redacted id":    {[]string{"dt.link.2.trace_id"}, "03 04 VM.snapshot vm"},
	} {
		r := &export.Record{Span: linked(), Edit: export.NewEdit(c.redact, nil)}
		body, lost, err := new(otlp.Encoder).Encode(nil, []*export.Record{r})
		qt.Assert(t, qt.IsNil(err))
		qt.Assert(t, qt.Equals(lost, 0))
		var req collectorpb.ExportTraceServiceRequest
		qt.Assert(t, qt.IsNil(proto.Unmarshal(body, &req)))
		sp := req.ResourceSpans[0].ScopeSpans[0].Spans[0]
		var got []string
		for _, l := range sp.Links {
			words := []string{trace.TraceID(l.TraceId).String()[:2], trace.SpanID(l.SpanId).String()[:2]}
			for _, kv := range l.Attributes {
				words = append(words, kv.Value.GetStringValue())
			}
			got = append(got, strings.Join(words, " "))
		}
		qt.Check(t, qt.Equals(strings.Join(got, ", "), c.want), qt.Commentf("%s", what))
		for _, kv := range sp.Attributes {
			qt.Check(t, qt.IsFalse(export.IsLinkTag(attribute.Key(kv.Key))), qt.Commentf("%s", kv.Key))
		}
	}
}
