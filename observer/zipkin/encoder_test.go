package zipkin

import (
	"bytes"
	"encoding/json"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/go-quicktest/qt"
	"github.com/xenserver/dtagent/correlate"
	"github.com/xenserver/dtagent/observer/export"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/trace"
)

type wireSpan struct {
	TraceID, ID, ParentID, Name, Kind string
	Timestamp, Duration               int64
	LocalEndpoint                     struct{ ServiceName string }
	Tags                              map[string]string
}

func sample() *export.Record {
	return &export.Record{
		Span: &correlate.Span{
			TraceID: trace.TraceID{0x31, 0x00, 15: 0x8c}, SpanID: trace.SpanID{7: 9}, ParentID: trace.SpanID{0: 0x34, 7: 4},
			TraceState: "vendor=1", Service: "Xapi", Name: "VM.start", Kind: trace.SpanKindServer,
			Start: 1677671549043900_999, End: 1677671549043900_999 + 46_999,
			Error: "VM_BAD_POWER_STATE", Link: correlate.LinkTraceparent, Incomplete: "lost 3 events",
			Attributes: []attribute.KeyValue{attribute.Int("http.request.body.size", 312), attribute.String("rpc.method", "VM.start"),
				attribute.String("xs.host.uuid", "forged by baggage"), attribute.String("rpc.method", "VM.start twice")},
		},
		Attributes: export.SortTags([]attribute.KeyValue{attribute.String("xs.host.uuid", "h"), attribute.String("otel.scope.name", "dtagent"), attribute.String("custom.k", "v")}),
	}
}

// encoded returns what a receiver reads of records.
func encoded(t testing.TB, records ...*export.Record) []wireSpan {
	t.Helper()
	body, lost, err := new(Encoder).Encode(nil, records)
	qt.Assert(t, qt.IsNil(err))
	qt.Assert(t, qt.Equals(lost, 0))
	return decoded(t, body)
}

func decoded(t testing.TB, body []byte) (spans []wireSpan) {
	t.Helper()
	qt.Assert(t, qt.IsNil(json.Unmarshal(body, &spans)), qt.Commentf("%s", body))
	return spans
}

func TestWire(t *testing.T) {
	root := sample()
	sp := *root.Span
	sp.ParentID, sp.Kind, sp.Error, sp.Incomplete, sp.Link, sp.TraceState = trace.SpanID{}, trace.SpanKindInternal, "", "", correlate.LinkNone, ""
	sp.Name, sp.End = "Async.VM.start <ü>", sp.Start+10
	sp.Attributes = []attribute.KeyValue{attribute.String("name", "TAG"), attribute.String("id", "X")}
	root.Span = &sp
	spans := encoded(t, sample(), root)
	qt.Assert(t, qt.HasLen(spans, 2))
	want := wireSpan{TraceID: "3100000000000000000000000000008c", ID: "0000000000000009", ParentID: "3400000000000004", Name: "VM.start", Kind: "SERVER",
		Timestamp: 1677671549043900, Duration: 46, Tags: map[string]string{
			"service.name": "Xapi", "xs.host.uuid": "h", "otel.scope.name": "dtagent", "custom.k": "v", "http.request.body.size": "312",
			"rpc.method": "VM.start twice", "error": "true", "exception.message": "VM_BAD_POWER_STATE", "exception.type": "VM_BAD_POWER_STATE",
			"otel.status_code": "ERROR", "dt.link.method": "traceparent", "dt.incomplete": "lost 3 events", "w3c.tracestate": "vendor=1",
		}}
	want.LocalEndpoint.ServiceName = "Xapi"
	qt.Check(t, qt.DeepEquals(spans[0], want))
	qt.Check(t, qt.DeepEquals(spans[1].Tags, map[string]string{"service.name": "Xapi", "xs.host.uuid": "h", "otel.scope.name": "dtagent",
		"custom.k": "v", "dt.link.method": "none", "name": "TAG", "id": "X"}))
	qt.Check(t, qt.Equals(spans[1].Name, "Async.VM.start <ü>"))
	qt.Check(t, qt.Equals(spans[1].ParentID, ""))
	qt.Check(t, qt.Equals(spans[1].Kind, ""))
	qt.Check(t, qt.Equals(spans[1].Duration, 0))
}

// TestServiceNameOverride: as in OpenTelemetry the service of the span is what
// the user made service.name.
func TestServiceNameOverride(t *testing.T) {
	r := sample()
	r.Attributes = []attribute.KeyValue{attribute.String("service.name", "Mine")}
	s := encoded(t, r)[0]
	qt.Check(t, qt.Equals(s.Tags["service.name"], "Mine"))
	qt.Check(t, qt.Equals(s.LocalEndpoint.ServiceName, "Mine"))
}

func FuzzShield(f *testing.F) {
	f.Add("VM.start", "ÄÖÜ ǅ Ω \U0010FFFD\U00100041\U00100022\xf4\x90\xf4")
	f.Fuzz(func(t *testing.T, name, value string) {
		body, err := json.Marshal(map[string]string{"name": strings.ToLower(shield(name)), "value": value})
		if err != nil {
			t.Fatal(err)
		}
		var got map[string]string
		if err := json.Unmarshal(unshield(body), &got); err != nil {
			t.Fatal(err)
		}
		if utf8.ValidString(name) && !strings.ContainsFunc(name, func(r rune) bool { return r >= 0x10000 }) && got["name"] != name {
			t.Fatalf("%q became %q", name, got["name"])
		}
		if utf8.ValidString(value) && !strings.ContainsFunc(value, func(r rune) bool { return r >= plane }) && got["value"] != value {
			t.Fatalf("%q became %q", value, got["value"])
		}
	})
}

// TestOddSpans: times that zipkin's model refuses for a whole batch do not harm
// the spans beside them.
func TestOddSpans(t *testing.T) {
	odd := sample()
	odd.Span = &correlate.Span{Name: "\xff", Start: 0, End: -5}
	qt.Assert(t, qt.HasLen(encoded(t, sample(), odd, sample()), 3))
}

// TestJoinSplit: bodies are joined and cut by their bytes.
func TestJoinSplit(t *testing.T) {
	e := new(Encoder)
	var bodies [][]byte
	var want []wireSpan
	for i := range 5 {
		r := sample()
		sp := *r.Span
		sp.SpanID[0] = byte(i)
		r.Span = &sp
		records := []*export.Record{r, r, r}[:i%3+1]
		body, _, err := e.Encode([]byte("before"), records)
		qt.Assert(t, qt.IsNil(err))
		body, ok := bytes.CutPrefix(body, []byte("before"))
		qt.Assert(t, qt.IsTrue(ok))
		bodies = append(bodies, body)
		want = append(want, encoded(t, records...)...)
	}
	bodies = append(bodies, []byte("[]"), []byte(" [ ]\n"), nil)
	joined := e.Join(nil, bodies...)
	qt.Check(t, qt.DeepEquals(decoded(t, joined), want))
	first, second, n, ok := e.Split(joined)
	qt.Assert(t, qt.IsTrue(ok))
	qt.Check(t, qt.Equals(n, len(want)/2))
	qt.Check(t, qt.DeepEquals(decoded(t, first), want[:n]))
	qt.Check(t, qt.DeepEquals(decoded(t, second), want[n:]))
	one, _, _ := e.Encode(nil, []*export.Record{sample()})
	for _, body := range []string{string(one), "", "[", "null", "{}", "[1", "x"} {
		_, _, _, ok := e.Split([]byte(body))
		qt.Check(t, qt.IsFalse(ok))
	}
}

func FuzzSplit(f *testing.F) {
	f.Add([]byte(`[{"a":1},{"b":[2]}, 3]`))
	f.Add([]byte("[[],[]"))
	f.Fuzz(func(t *testing.T, body []byte) {
		e := new(Encoder)
		e.Join(nil, body, body)
		first, second, n, ok := e.Split(body)
		if !ok {
			return
		}
		var all, a, b []json.RawMessage
		if json.Unmarshal(body, &all) != nil || json.Unmarshal(first, &a) != nil || json.Unmarshal(second, &b) != nil || len(a) != n || len(a)+len(b) != len(all) {
			t.Fatalf("%s became %s and %s", body, first, second)
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
