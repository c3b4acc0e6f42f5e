package otlp

import (
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"github.com/go-quicktest/qt"
	"github.com/xenserver/dtagent/correlate"
	"github.com/xenserver/dtagent/observer/export"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/trace"
	collectorpb "go.opentelemetry.io/proto/otlp/collector/trace/v1"
	commonpb "go.opentelemetry.io/proto/otlp/common/v1"
	tracepb "go.opentelemetry.io/proto/otlp/trace/v1"
	"google.golang.org/protobuf/proto"
)

// decoded is a span as a receiver reads it.
type decoded struct {
	*tracepb.Span
	resource, attributes map[string]any
	scope                string
}

func read(t testing.TB, body []byte) []decoded {
	t.Helper()
	var req collectorpb.ExportTraceServiceRequest
	qt.Assert(t, qt.IsNil(proto.Unmarshal(body, &req)))
	var out []decoded
	for _, r := range req.ResourceSpans {
		for _, s := range r.ScopeSpans {
			for _, sp := range s.Spans {
				out = append(out, decoded{sp, values(t, r.Resource.GetAttributes()), values(t, sp.Attributes), s.Scope.GetName()})
			}
		}
	}
	return out
}

func values(t testing.TB, kvs []*commonpb.KeyValue) map[string]any {
	t.Helper()
	m := map[string]any{}
	for _, kv := range kvs {
		_, twice := m[kv.Key]
		qt.Check(t, qt.IsFalse(twice), qt.Commentf("%s twice", kv.Key))
		switch v := kv.Value.Value.(type) {
		case *commonpb.AnyValue_StringValue:
			m[kv.Key] = v.StringValue
		case *commonpb.AnyValue_IntValue:
			m[kv.Key] = v.IntValue
		case *commonpb.AnyValue_BoolValue:
			m[kv.Key] = v.BoolValue
		case *commonpb.AnyValue_DoubleValue:
			m[kv.Key] = v.DoubleValue
		default:
			m[kv.Key] = kv.Value.String()
		}
	}
	return m
}

func encoded(t testing.TB, records ...*export.Record) []decoded {
	t.Helper()
	body, lost, err := new(Encoder).Encode(nil, records)
	qt.Assert(t, qt.IsNil(err))
	qt.Assert(t, qt.Equals(lost, 0))
	return read(t, body)
}

var observerTags = export.SortTags([]attribute.KeyValue{
	attribute.String("xs.pool.uuid", "p"), attribute.String("xs.host.name", "h1"), attribute.String("xs.host.uuid", "h"),
	attribute.String("xs.observer.name", "dt"), attribute.String("xs.observer.uuid", "o"),
	export.KeyScopeName.String("dtagent"), attribute.String("custom.k", "v"), attribute.String("deployment.environment", "test"),
})

func sample() *export.Record {
	return &export.Record{
		Span: &correlate.Span{
			TraceID: trace.TraceID{0x31, 0x00, 15: 0x8c}, SpanID: trace.SpanID{7: 9}, ParentID: trace.SpanID{0: 0x34, 7: 4},
			TraceState: "vendor=1,b=2", Service: "Xapi", Name: "VM.start", Kind: trace.SpanKindServer,
			Start: 1677671549043900_999, End: 1677671549043900_999 + 46_999,
			Error: "VM_BAD_POWER_STATE", Link: correlate.LinkTraceparent, Incomplete: "lost 3 events",
			Attributes: []attribute.KeyValue{attribute.Int("http.request.body.size", 312), attribute.String("rpc.method", "VM.start"), attribute.Bool("b", true),
				attribute.Float64("f", 0.5), attribute.String("xs.host.uuid", "forged by baggage"), attribute.String("host.arch", "forged by baggage")},
		},
		Attributes: observerTags,
	}
}

func TestWire(t *testing.T) {
	root := sample()
	sp := *root.Span
	sp.ParentID, sp.Kind, sp.Error, sp.Incomplete, sp.Link, sp.TraceState = trace.SpanID{}, trace.SpanKindInternal, "", "", correlate.LinkNone, ""
	sp.Name, sp.Service, sp.Attributes = "Async.VM.start <ü>", "xenopsd", []attribute.KeyValue{attribute.String("error", "of baggage")}
	root.Span = &sp
	spans := encoded(t, sample(), root)
	qt.Assert(t, qt.HasLen(spans, 2))
	slices.SortFunc(spans, func(a, b decoded) int { return strings.Compare(b.Name, a.Name) })
	s, r := spans[0], spans[1]

	qt.Check(t, qt.DeepEquals(s.resource, map[string]any{"service.name": "Xapi", "xs.pool.uuid": "p", "xs.host.name": "h1", "xs.host.uuid": "h", "xs.observer.name": "dt",
		"xs.observer.uuid": "o", "host.name": "h1", "host.id": "h", "deployment.environment": "test"}))
	qt.Check(t, qt.DeepEquals(s.attributes, map[string]any{"custom.k": "v", "http.request.body.size": int64(312), "rpc.method": "VM.start", "b": true, "f": 0.5,
		"host.arch": "forged by baggage", "exception.message": "VM_BAD_POWER_STATE", "exception.type": "VM_BAD_POWER_STATE",
		"dt.link.method": "traceparent", "dt.incomplete": "lost 3 events"}))
	qt.Check(t, qt.Equals(s.scope, "dtagent"))
	qt.Check(t, qt.Equals(s.Name, "VM.start"))
	qt.Check(t, qt.Equals(fmt.Sprintf("%x %x %x", s.TraceId, s.SpanId, s.ParentSpanId), "3100000000000000000000000000008c 0000000000000009 3400000000000004"))
	qt.Check(t, qt.Equals(s.Span.TraceState, "vendor=1,b=2"))
	qt.Check(t, qt.Equals(s.StartTimeUnixNano, 1677671549043900_999))
	qt.Check(t, qt.Equals(s.EndTimeUnixNano, 1677671549043900_999+46_999))
	qt.Check(t, qt.Equals(s.Kind, tracepb.Span_SPAN_KIND_SERVER))
	qt.Check(t, qt.Equals(s.Status.Code, tracepb.Status_STATUS_CODE_ERROR))
	qt.Check(t, qt.Equals(s.Status.Message, "VM_BAD_POWER_STATE"))
	qt.Check(t, qt.Equals(s.Flags&0x3ff, 0x301)) // sampled; the parent is known to be remote

	qt.Check(t, qt.Equals(r.resource["service.name"], any("xenopsd")))
	qt.Check(t, qt.DeepEquals(r.attributes, map[string]any{"custom.k": "v", "dt.link.method": "none", "error": "of baggage"}))
	qt.Check(t, qt.Equals(r.Name, "Async.VM.start <ü>"))
	qt.Check(t, qt.HasLen(r.ParentSpanId, 0))
	qt.Check(t, qt.Equals(r.Kind, tracepb.Span_SPAN_KIND_INTERNAL))
	qt.Check(t, qt.Equals(r.Status.GetCode(), tracepb.Status_STATUS_CODE_UNSET))
	qt.Check(t, qt.Equals(r.Flags&0x300, 0x100))
}

// TestResources: spans are grouped by where they come from, also when there are
// more sources than are kept.
func TestResources(t *testing.T) {
	e := new(Encoder)
	var batch []*export.Record
	for i := range 200 {
		r := sample()
		r.Span.Service = fmt.Sprint("service-", i%(2*maxRecent))
		binary.BigEndian.PutUint64(r.Span.SpanID[:], uint64(i+1))
		batch = append(batch, r)
	}
	for range 2 {
		body, _, err := e.Encode(nil, batch)
		qt.Assert(t, qt.IsNil(err))
		var req collectorpb.ExportTraceServiceRequest
		qt.Assert(t, qt.IsNil(proto.Unmarshal(body, &req)))
		qt.Check(t, qt.HasLen(req.ResourceSpans, 2*maxRecent))
		seen := map[string]bool{}
		for _, s := range read(t, body) {
			id := binary.BigEndian.Uint64(s.SpanId) - 1
			qt.Check(t, qt.Equals(s.resource["service.name"], any(batch[id].Span.Service)))
			seen[string(s.SpanId)] = true
		}
		qt.Check(t, qt.HasLen(seen, 200))
	}
}

// TestOddSpans: strings that protobuf does not take, and times that cannot be,
// harm nothing.
func TestOddSpans(t *testing.T) {
	odd := sample()
	odd.Span = &correlate.Span{Name: "a\xffb", Service: "\xfe", Error: "\xfd", TraceState: "\xfc=,", Start: 5, End: -5,
		Attributes: []attribute.KeyValue{attribute.String("k\xff", "v\xff"), attribute.StringSlice("s", []string{"ok", "\xff"})}}
	odd.Attributes = []attribute.KeyValue{attribute.String("xs.host.name", "\xff")}
	spans := encoded(t, sample(), odd, sample())
	qt.Assert(t, qt.HasLen(spans, 3))
	for _, s := range spans {
		if s.Name == "VM.start" {
			continue
		}
		qt.Check(t, qt.Equals(s.Name, "a\uFFFDb"))
		qt.Check(t, qt.Equals(s.attributes["k\uFFFD"], any("v\uFFFD")))
		qt.Check(t, qt.Equals(s.resource["service.name"], any("\uFFFD")))
		qt.Check(t, qt.Equals(s.EndTimeUnixNano, 5))
		qt.Check(t, qt.Equals(s.Span.TraceState, ""))
		qt.Check(t, qt.Equals(s.attributes["w3c.tracestate"], any("\uFFFD=,")))
	}
}

func TestJoinSplit(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	e := new(Encoder)
	var bodies [][]byte
	total := 0
	for range 20 {
		var batch []*export.Record
		for range 1 + rng.IntN(9) {
			r := sample()
			total++
			binary.BigEndian.PutUint64(r.Span.SpanID[:], uint64(total))
			r.Span.Service = []string{"xapi", "xenopsd", "xenopsd-xc"}[rng.IntN(3)]
			batch = append(batch, r)
		}
		body, _, err := e.Encode(nil, batch)
		qt.Assert(t, qt.IsNil(err))
		bodies = append(bodies, body)
	}
	ids := func(body []byte) map[uint64]string {
		m := map[uint64]string{}
		for _, s := range read(t, body) {
			m[binary.BigEndian.Uint64(s.SpanId)] = s.resource["service.name"].(string)
			qt.Check(t, qt.Equals(s.scope, "dtagent"))
		}
		return m
	}
	body := e.Join([]byte{}, bodies...)
	all := ids(body)
	qt.Assert(t, qt.HasLen(all, total))
	first, second, n, ok := e.Split(body)
	qt.Assert(t, qt.IsTrue(ok))
	qt.Check(t, qt.Equals(n, total/2))
	a, b := ids(first), ids(second)
	qt.Check(t, qt.HasLen(a, n))
	qt.Check(t, qt.HasLen(b, total-n))
	for id, service := range all {
		qt.Check(t, qt.Equals(a[id]+b[id], service))
	}
	one, _, _ := e.Encode(nil, []*export.Record{sample()})
	for _, body := range [][]byte{one, nil, []byte("garbage"), one[:len(one)-1]} {
		_, _, _, ok := e.Split(body)
		qt.Check(t, qt.IsFalse(ok))
	}
}

func TestCheck(t *testing.T) {
	check := func(p *collectorpb.ExportTracePartialSuccess) (int, string) {
		b, err := proto.Marshal(&collectorpb.ExportTraceServiceResponse{PartialSuccess: p})
		qt.Assert(t, qt.IsNil(err))
		return new(Encoder).Check(b)
	}
	for _, c := range []struct {
		p    *collectorpb.ExportTracePartialSuccess
		n    int
		says string
	}{
		{nil, 0, ""},
		{&collectorpb.ExportTracePartialSuccess{ErrorMessage: "a warning"}, 0, "a warning"},
		{&collectorpb.ExportTracePartialSuccess{RejectedSpans: 7, ErrorMessage: "old"}, 7, "old"},
		{&collectorpb.ExportTracePartialSuccess{RejectedSpans: -7}, 0, ""},
		{&collectorpb.ExportTracePartialSuccess{RejectedSpans: 1 << 60}, 1 << 30, ""},
	} {
		n, says := check(c.p)
		qt.Check(t, qt.Equals(n, c.n))
		qt.Check(t, qt.Equals(says, c.says))
	}
	n, _ := new(Encoder).Check([]byte(`{"partialSuccess":{}}`))
	qt.Check(t, qt.Equals(n, 0))
}

// FuzzAnswer: whatever a receiver answers, and whatever the queue holds, is
// read without harm.
func FuzzAnswer(f *testing.F) {
	body, _, _ := new(Encoder).Encode(nil, []*export.Record{sample(), sample()})
	f.Add(body)
	f.Add([]byte{0x0a, 0x02, 0x08, 0x03})
	f.Fuzz(func(t *testing.T, b []byte) {
		e := new(Encoder)
		if n, _ := e.Check(b); n < 0 {
			t.Fatal(n)
		}
		if first, second, n, ok := e.Split(b); ok && (n <= 0 || len(first) == 0 || len(second) == 0) {
			t.Fatal(n, first, second)
		}
	})
}

func BenchmarkEncode(b *testing.B) {
	batch := make([]*export.Record, 512)
	for i := range batch {
		batch[i] = sample()
	}
	e := new(Encoder)
	var body []byte
	b.ReportAllocs()
	n := 0
	for b.Loop() {
		body, _, _ = e.Encode(body[:0], batch)
		n += len(batch)
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(n), "ns/span")
	b.ReportMetric(float64(len(body))/float64(len(batch)), "B/span")
}
