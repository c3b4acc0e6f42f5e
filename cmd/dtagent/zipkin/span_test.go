package zipkin

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/go-quicktest/qt"
	"github.com/klauspost/compress/zstd"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/trace"

	"github.com/xenserver/dtagent/correlate"
)

// The first is in the toolstack's order of today; the second as older
// releases wrote it, without annotations.
const (
	newLine = `[{"tags":{"xs.host.name":"h1","span.depth":"2","span.depth":"2"},"annotations":[],"localEndpoint":{"serviceName":"xapi"},"kind":"SERVER","duration":46,"timestamp":1677671549043900,"name":"VM.start","parentId":"00f067aa0ba902b7","traceId":"9dda2bd691624f9e2fce578f3a941b87","id":"d3ee4b91c27d703a"}]`
	oldLine = `[{"tags":{},"localEndpoint":{"serviceName":"xenopsd"},"duration":0,"timestamp":1677671549043901,"name":"VM_start","traceId":"9dda2bd691624f9e2fce578f3a941b87","id":"d3ee4b91c27d703b"},{"tags":{"error":"true","exception.message":"boom"},"localEndpoint":{"serviceName":"xenopsd"},"duration":1,"timestamp":1677671549043902,"name":"VM_create","traceId":"9dda2bd691624f9e2fce578f3a941b87","id":"d3ee4b91c27d703c"}]`
)

func TestReadPath(t *testing.T) {
	dir := t.TempDir()
	qt.Assert(t, qt.IsNil(os.WriteFile(filepath.Join(dir, "xapi-h-2026-08-21T02:00:23.123456-00:00.ndjson"), []byte(newLine+"\n[]\n\n"), 0o600)))
	w, err := zstd.NewWriter(nil)
	qt.Assert(t, qt.IsNil(err))
	qt.Assert(t, qt.IsNil(os.WriteFile(filepath.Join(dir, "xenopsd.ndjson.zst"), w.EncodeAll([]byte(oldLine+"\n"), nil), 0o400)))
	qt.Assert(t, qt.IsNil(os.WriteFile(filepath.Join(dir, "README"), []byte("not a span file"), 0o600)))

	var names []string
	errs := map[string]string{}
	qt.Assert(t, qt.IsNil(ReadPath(dir, func(s Span) {
		names = append(names, s.Service()+" "+s.Name)
		errs[s.Name] = s.Error()
	})))
	qt.Assert(t, qt.DeepEquals(names, []string{"xapi VM.start", "xenopsd VM_start", "xenopsd VM_create"}))
	qt.Assert(t, qt.Equals(errs["VM_create"], "boom"))
	qt.Assert(t, qt.Equals(errs["VM.start"], ""))
}

func TestReadGoesOnAfterBadLines(t *testing.T) {
	half := newLine[:200] // a reader can catch half a line
	in := strings.Join([]string{"garbage", newLine, half, `[{"traceId":"xyz"}]`, `[{"traceId":"9dda2bd691624f9e2fce578f3a941b87","id":"d3ee4b91c27d703a","timestamp":1.5}]`, oldLine}, "\n")
	n := 0
	err := Read(strings.NewReader(in), func(Span) { n++ })
	qt.Assert(t, qt.Equals(n, 3))
	qt.Assert(t, qt.IsTrue(errors.Is(err, ErrLine)))
	qt.Assert(t, qt.ErrorMatches(err, `not zipkin-v2: 4 line\(s\); line 1: .*`))
}

func TestReadPathErrors(t *testing.T) {
	dir := t.TempDir()
	qt.Assert(t, qt.ErrorMatches(ReadPath(dir, nil), `.* holds no \.ndjson or \.zst file`))
	qt.Assert(t, qt.ErrorIs(ReadPath(filepath.Join(dir, "absent"), nil), os.ErrNotExist))
	bad := filepath.Join(dir, "a.ndjson.zst")
	qt.Assert(t, qt.IsNil(os.WriteFile(bad, []byte("no zstd frame"), 0o600)))
	qt.Assert(t, qt.ErrorMatches(ReadPath(bad, nil), `.*a\.ndjson\.zst: reading spans: .*`))
}

func TestFromSpan(t *testing.T) {
	s := &correlate.Span{
		TraceID: trace.TraceID{1}, SpanID: trace.SpanID{2}, ParentID: trace.SpanID{3},
		Service: "xapi", Name: "VM.start", Kind: trace.SpanKindServer, Start: 1_677_671_549_043_900_999, End: 1_677_671_549_043_946_001,
		Error: "VM_BAD_POWER_STATE", Link: correlate.LinkTraceparent, Incomplete: "end not seen",
		Attributes: []attribute.KeyValue{attribute.String("rpc.method", "VM.start"), attribute.Int64("process.pid", 7)},
	}
	z := FromSpan(s)
	qt.Assert(t, qt.DeepEquals(z, Span{
		TraceID: "01000000000000000000000000000000", ID: "0200000000000000", ParentID: "0300000000000000",
		Kind: "SERVER", Name: "VM.start", Timestamp: 1_677_671_549_043_900, Duration: 46, Local: Endpoint{"xapi"},
		Tags: map[string]string{
			"rpc.method": "VM.start", "process.pid": "7",
			"error": "true", "exception.message": "VM_BAD_POWER_STATE", "exception.type": "VM_BAD_POWER_STATE",
			"dt.link.method": "traceparent", "dt.incomplete": "end not seen",
			"service.name": "xapi",
		},
	}))
	qt.Assert(t, qt.Equals(z.Error(), "VM_BAD_POWER_STATE"))
	qt.Assert(t, qt.IsNil(z.check()))
	s.Kind, s.ParentID = trace.SpanKindInternal, trace.SpanID{}
	z = FromSpan(s)
	qt.Assert(t, qt.Equals(z.Kind+z.ParentID, ""))
}

func FuzzRead(f *testing.F) {
	f.Add([]byte(newLine + "\n" + oldLine))
	f.Add([]byte(`{"traceId":"9dda2bd691624f9e2fce578f3a941b87","id":"d3ee4b91c27d703a","timestamp":9223372036854775807}`))
	f.Add([]byte("[[]]\n[null]\n{\n\xff\x00"))
	f.Fuzz(func(t *testing.T, in []byte) {
		err := Read(bytes.NewReader(in), func(s Span) {
			if !hex(s.TraceID, 16, 32) || !hex(s.ID, 16, 16) {
				t.Fatalf("bad ids got through: %+v", s)
			}
			if s.End() < s.Timestamp && s.Duration > 0 || s.Error() == "" && s.Tags["error"] != "" {
				t.Fatalf("%+v", s)
			}
		})
		if err != nil && !errors.Is(err, ErrLine) {
			t.Fatal(err)
		}
	})
}
