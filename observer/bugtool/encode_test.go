package bugtool

import (
	"encoding/hex"
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

// sample is a line as the toolstack writes it.
const sample = `[{"tags":{"xs.pool.uuid":"p","xs.observer.uuid":"u","xs.observer.name":"dt","xs.host.uuid":"h","xs.host.name":"h1","service.name":"xapi","span.depth":"2"},"annotations":[],"localEndpoint":{"serviceName":"xapi"},"kind":"SERVER","duration":46,"timestamp":1677671549043900,"name":"VM.start","parentId":"00f067aa0ba902b7","traceId":"9dda2bd691624f9e2fce578f3a941b87","id":"d3ee4b91c27d703a"}]`

func TestAppendSpanSample(t *testing.T) {
	s := &correlate.Span{
		TraceID: traceID("9dda2bd691624f9e2fce578f3a941b87"), SpanID: spanID("d3ee4b91c27d703a"), ParentID: spanID("00f067aa0ba902b7"),
		Service: "xapi", Name: "VM.start", Kind: trace.SpanKindServer,
		Start: 1677671549043900_999, End: 1677671549043900_999 + 46_999,
	}
	tags := []attribute.KeyValue{}
	for _, kv := range [][2]string{{"xs.pool.uuid", "p"}, {"xs.observer.uuid", "u"}, {"xs.observer.name", "dt"}, {"xs.host.uuid", "h"}, {"xs.host.name", "h1"}, {"service.name", "xapi"}, {"span.depth", "2"}} {
		tags = append(tags, attribute.String(kv[0], kv[1]))
	}
	qt.Assert(t, qt.Equals("["+string(AppendSpan(nil, s, s.ParentID, tags))+"]", sample))

	s.Kind, s.ParentID, s.End = trace.SpanKindInternal, trace.SpanID{}, s.Start-5
	qt.Assert(t, qt.Equals(string(AppendSpan(nil, s, s.ParentID, nil)),
		`{"tags":{},"annotations":[],"localEndpoint":{"serviceName":"xapi"},"duration":0,"timestamp":1677671549043900,"name":"VM.start","traceId":"9dda2bd691624f9e2fce578f3a941b87","id":"d3ee4b91c27d703a"}`))
}

func TestAppendString(t *testing.T) {
	for _, c := range []struct{ in, want string }{
		{"", `""`},
		{`a"b\c/d<e>&f`, `"a\"b\\c/d<e>&f"`},
		{"\b\f\n\r\t\x00\x1f\x7f", `"\b\f\n\r\t\u0000\u001f\u007f"`},
		{"grün 日本 \U0001F600", `"grün 日本 ` + "\U0001F600" + `"`},
		{"a\xffb\xc3", "\"a\uFFFDb\uFFFD\""},
		{"\u2028", "\"\u2028\""},
	} {
		qt.Check(t, qt.Equals(string(appendString(nil, c.in, MaxValue)), c.want))
	}
}

func TestAppendStringCut(t *testing.T) {
	for _, s := range []string{strings.Repeat("a", 100), strings.Repeat("é", 100), "x" + strings.Repeat("日", 100), strings.Repeat("\U0001F600", 50), strings.Repeat("\x80", 100)} {
		out := appendString(nil, s, 32)
		var got string
		qt.Assert(t, qt.IsNil(json.Unmarshal(out, &got)))
		qt.Check(t, qt.IsTrue(strings.HasSuffix(got, "…")))
		if utf8.ValidString(s) {
			qt.Check(t, qt.IsTrue(strings.HasPrefix(s, strings.TrimSuffix(got, "…"))))
			qt.Check(t, qt.IsFalse(strings.ContainsRune(got, utf8.RuneError)))
		}
		if s[0] == 'a' {
			qt.Check(t, qt.HasLen(got, 32))
		}
	}
}

func TestAppendValue(t *testing.T) {
	for _, c := range []struct {
		v    attribute.Value
		want string
	}{
		{attribute.Int64Value(-7), `"-7"`},
		{attribute.BoolValue(true), `"true"`},
		{attribute.Float64Value(1.5), `"1.5"`},
		{attribute.StringSliceValue([]string{"a", `"`}), `"[\"a\",\"\\\"\"]"`},
	} {
		qt.Check(t, qt.Equals(string(appendValue(nil, c.v)), c.want))
	}
}

func FuzzAppendSpan(f *testing.F) {
	f.Add("VM.start", "key", "value", int64(1), int64(2))
	f.Add("\x00\xff\"\\", "\u2028", strings.Repeat("é", MaxValue), int64(-1), int64(1<<62))
	f.Fuzz(func(t *testing.T, name, key, value string, start, end int64) {
		s := &correlate.Span{Service: name, Name: name, Start: start, End: end, Kind: trace.SpanKind(len(name) % 6)}
		line := AppendSpan(nil, s, s.ParentID, []attribute.KeyValue{attribute.String(key, value)})
		var got struct {
			Tags      map[string]string
			Name      string
			Timestamp int64
			Duration  int64
		}
		if err := json.Unmarshal(line, &got); err != nil {
			t.Fatalf("%v: %q", err, line)
		}
		if want := strings.ToValidUTF8(name, "\uFFFD"); len(name) <= MaxName && utf8.ValidString(name) && got.Name != want {
			t.Fatalf("name %q became %q", name, got.Name)
		}
		if utf8.ValidString(key+value) && len(key) <= MaxName && len(value) <= MaxValue && got.Tags[key] != value {
			t.Fatalf("%q: %q became %q", key, value, got.Tags[key])
		}
		if len(got.Name) > 3*MaxName || got.Timestamp != start/1000 || got.Duration < 0 {
			t.Fatalf("%+v", got)
		}
		if strings.ContainsAny(string(line), "\n\r\x00") {
			t.Fatalf("more than one line: %q", line)
		}
	})
}

// example returns a record as an API call makes it.
func example() *export.Record {
	return &export.Record{
		Span: &correlate.Span{
			TraceID: traceID("9dda2bd691624f9e2fce578f3a941b87"), SpanID: spanID("d3ee4b91c27d703a"), ParentID: spanID("00f067aa0ba902b7"),
			Service: "xapi", Name: "VM.start", Kind: trace.SpanKindServer, Start: 1677671549043900000, End: 1677671549043946000, Link: correlate.LinkTraceparent,
			Attributes: []attribute.KeyValue{
				attribute.String("http.request.method", "POST"), attribute.String("url.path", "/jsonrpc"), attribute.Int("http.request.body.size", 312),
				attribute.String("rpc.method", "VM.start"), attribute.String("xs.xapi.task.id", "R:8ae06e1ea3d1"), attribute.Int("thread.id", 4711),
				attribute.Int("dt.time.cpu_us", 312), attribute.String("user_agent.original", "xen-api/4.7.6"),
			},
		},
		Attributes: export.SortTags([]attribute.KeyValue{
			attribute.String("xs.pool.uuid", "83f4215d-5cb3-9c5b-c305-56ba90dafef5"), attribute.String("xs.observer.uuid", "b5b0c690-cc0d-11a2-7da0-64b3ecad94bf"),
			attribute.String("xs.observer.name", "capture"), attribute.String("xs.host.uuid", "6f1b3a0c-1111-4222-8333-444455556666"),
			attribute.String("xs.host.name", "vm"), attribute.String("otel.scope.name", "dtagent"), attribute.String("custom.k", "v1"),
		}),
	}
}

func TestAppendSpanAllocs(t *testing.T) {
	r := example()
	buf, tags := make([]byte, 0, 4096), make([]attribute.KeyValue, 0, 64)
	n := testing.AllocsPerRun(1000, func() {
		tags = r.AppendTags(tags[:0])
		buf = AppendSpan(buf[:0], r.Span, r.ParentID(), tags)
	})
	qt.Assert(t, qt.Equals(n, 0))
}

func BenchmarkEncode(b *testing.B) {
	r := example()
	buf, tags := make([]byte, 0, 4096), make([]attribute.KeyValue, 0, 64)
	b.Run("tags", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			tags = r.AppendTags(tags[:0])
		}
	})
	tags = r.AppendTags(tags[:0])
	b.Run("span", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			buf = AppendSpan(buf[:0], r.Span, r.ParentID(), tags)
		}
		b.SetBytes(int64(len(buf)))
	})
	b.Run("encoding_json", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			m := map[string]string{}
			for _, kv := range tags {
				m[string(kv.Key)] = kv.Value.String()
			}
			_, err := json.Marshal(struct {
				Tags          map[string]string `json:"tags"`
				Annotations   []string          `json:"annotations"`
				LocalEndpoint map[string]string `json:"localEndpoint"`
				Kind          string            `json:"kind,omitempty"`
				Duration      int64             `json:"duration"`
				Timestamp     int64             `json:"timestamp"`
				Name          string            `json:"name"`
				ParentID      string            `json:"parentId,omitempty"`
				TraceID       string            `json:"traceId"`
				ID            string            `json:"id"`
			}{m, []string{}, map[string]string{"serviceName": r.Span.Service}, kindName(r.Span.Kind), 46, 1677671549043900, r.Span.Name,
				r.Span.ParentID.String(), r.Span.TraceID.String(), r.Span.SpanID.String()})
			if err != nil {
				b.Fatal(err)
			}
		}
	})
}

func traceID(s string) (id trace.TraceID) {
	if n, err := hex.Decode(id[:], []byte(s)); err != nil || n != 16 {
		panic(s)
	}
	return id
}

func spanID(s string) (id trace.SpanID) {
	if n, err := hex.Decode(id[:], []byte(s)); err != nil || n != 8 {
		panic(s)
	}
	return id
}
