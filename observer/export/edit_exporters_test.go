package export_test

import (
	"bytes"
	"encoding/json"
	"testing"

	"github.com/go-quicktest/qt"
	"github.com/xenserver/dtagent/correlate"
	"github.com/xenserver/dtagent/observer/bugtool"
	"github.com/xenserver/dtagent/observer/export"
	"github.com/xenserver/dtagent/observer/otlp"
	"github.com/xenserver/dtagent/observer/zipkin"
	"go.opentelemetry.io/otel/attribute"
	collectorpb "go.opentelemetry.io/proto/otlp/collector/trace/v1"
	"google.golang.org/protobuf/proto"
)

// TestEditExporters: bugtool files, zipkin and OTLP show the same edited tags,
// and what is redacted is nowhere in them, not even where a form has a field of
// its own for it.
func TestEditExporters(t *testing.T) {
	r := &export.Record{
		Span: &correlate.Span{TraceID: [16]byte{1}, SpanID: [8]byte{1}, Service: "xapi", Name: "VM.start", Start: 1e18, End: 1e18 + 5e6,
			TraceState: "vendor=secret", Error: "secret", Link: correlate.LinkTask, Incomplete: "lost", Attributes: []attribute.KeyValue{
				attribute.String("enduser.id", "secret"), attribute.Int("size", 7), attribute.String("baggage", "secret")}},
		Attributes: export.SortTags([]attribute.KeyValue{attribute.String("xs.host.name", "secret"), attribute.String("xs.host.uuid", "h"), attribute.String("custom", "secret"),
			attribute.String("otel.scope.name", "dtagent")}),
		Edit: export.NewEdit([]string{"enduser.*", "exception.*", "w3c.tracestate", "[bc]*", "host.name"},
			map[string]string{"xs.host.name": "host.name", "size": "http.request.body.size", "xs.host.uuid": "host.id"}),
	}
	want := map[string]string{
		"baggage": "[redacted]", "custom": "[redacted]", "enduser.id": "[redacted]", "exception.message": "[redacted]", "exception.type": "[redacted]", "w3c.tracestate": "[redacted]",
		"host.name": "[redacted]", "host.id": "h", "http.request.body.size": "7", "service.name": "xapi", "otel.scope.name": "dtagent",
		"error": "true", "dt.link.method": "task", "dt.incomplete": "lost",
	}
	type wire struct{ Tags map[string]string }

	body := bugtool.AppendSpan(nil, r.Span, r.ParentID(), r.AppendTags(nil))
	var one wire
	qt.Assert(t, qt.IsNil(json.Unmarshal(body, &one)))
	qt.Check(t, qt.DeepEquals(one.Tags, want))
	qt.Check(t, qt.IsFalse(bytes.Contains(body, []byte("secret"))))

	body, lost, err := new(zipkin.Encoder).Encode(nil, []*export.Record{r})
	qt.Assert(t, qt.IsNil(err))
	qt.Assert(t, qt.Equals(lost, 0))
	var many []wire
	qt.Assert(t, qt.IsNil(json.Unmarshal(body, &many)))
	qt.Assert(t, qt.HasLen(many, 1))
	got := many[0].Tags
	// The zipkin exporter's own tags for the scope and the status.
	for _, k := range []string{"otel.library.name", "otel.library.version", "otel.scope.version", "otel.status_code", "otel.scope.name"} {
		if _, ok := want[k]; !ok {
			delete(got, k)
		}
	}
	qt.Check(t, qt.DeepEquals(got, want))
	qt.Check(t, qt.IsFalse(bytes.Contains(body, []byte("secret"))))

	body, _, err = new(otlp.Encoder).Encode(nil, []*export.Record{r})
	qt.Assert(t, qt.IsNil(err))
	qt.Check(t, qt.IsFalse(bytes.Contains(body, []byte("secret"))))
	var req collectorpb.ExportTraceServiceRequest
	qt.Assert(t, qt.IsNil(proto.Unmarshal(body, &req)))
	rs := req.ResourceSpans[0]
	span := rs.ScopeSpans[0].Spans[0]
	tags := map[string]string{"otel.scope.name": rs.ScopeSpans[0].Scope.Name, "error": "true"} // both have fields of their own
	for _, kv := range append(rs.Resource.Attributes, span.Attributes...) {
		if tags[kv.Key] = kv.Value.GetStringValue(); tags[kv.Key] == "" {
			tags[kv.Key] = "7"
			qt.Check(t, qt.Equals(kv.Value.GetIntValue(), 7))
		}
	}
	qt.Check(t, qt.DeepEquals(tags, want))
	qt.Check(t, qt.Equals(span.TraceState, ""))
	qt.Check(t, qt.Equals(span.Status.Message, "[redacted]"))

	r.Edit = nil
	body, _, err = new(otlp.Encoder).Encode(nil, []*export.Record{r})
	qt.Assert(t, qt.IsNil(err))
	qt.Assert(t, qt.IsNil(proto.Unmarshal(body, &req)))
	qt.Check(t, qt.Equals(req.ResourceSpans[0].ScopeSpans[0].Spans[0].TraceState, "vendor=secret"))
}
