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
	collectorpb "go.opentelemetry.io/proto/otlp/collector/trace/v1"
	"google.golang.org/protobuf/proto"
)

// TestUnderNative: every form shows the same parent, the toolstack's own span when
// the Observer asks for it and there is one, and then the other stands in a tag.
func TestUnderNative(t *testing.T) {
	local, native := "0200000000000000", "0300000000000000"
	for _, c := range []struct {
		native bool // the span has one
		asked  bool
		parent string
		tag    string
	}{
		{false, false, local, ""}, {false, true, local, ""}, {true, false, local, ""}, {true, true, native, local},
	} {
		r := &export.Record{UnderNative: c.asked, Span: &correlate.Span{TraceID: [16]byte{1}, SpanID: [8]byte{1}, ParentID: [8]byte{2}, Service: "xapi", Name: "send",
			Start: 1e18, End: 1e18 + 5e6, Link: correlate.LinkThread}}
		if c.native {
			r.Span.Native = [8]byte{3}
		}
		type wire struct {
			ParentID string
			Tags     map[string]string
		}
		var one wire
		qt.Assert(t, qt.IsNil(json.Unmarshal(bugtool.AppendSpan(nil, r.Span, r.ParentID(), r.AppendTags(nil)), &one)))
		qt.Check(t, qt.Equals(one.ParentID, c.parent))
		qt.Check(t, qt.Equals(one.Tags["dt.local.span_id"], c.tag))

		body, _, err := new(zipkin.Encoder).Encode(nil, []*export.Record{r})
		qt.Assert(t, qt.IsNil(err))
		var many []wire
		qt.Assert(t, qt.IsNil(json.Unmarshal(body, &many)))
		qt.Check(t, qt.Equals(many[0].ParentID, c.parent))
		qt.Check(t, qt.Equals(many[0].Tags["dt.local.span_id"], c.tag))

		body, _, err = new(otlp.Encoder).Encode(nil, []*export.Record{r})
		qt.Assert(t, qt.IsNil(err))
		var req collectorpb.ExportTraceServiceRequest
		qt.Assert(t, qt.IsNil(proto.Unmarshal(body, &req)))
		parent := req.ResourceSpans[0].ScopeSpans[0].Spans[0].ParentSpanId
		qt.Check(t, qt.IsTrue(bytes.Equal(parent, r.Span.ParentID[:]) == (c.tag == "")))
		qt.Check(t, qt.IsTrue(bytes.Equal(parent, r.Span.Native[:]) == (c.tag != "")))
	}
}
