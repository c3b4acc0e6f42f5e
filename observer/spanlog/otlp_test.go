package spanlog

import (
	"compress/gzip"
	"context"
	"encoding/hex"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/go-quicktest/qt"
	"go.opentelemetry.io/otel/attribute"
	collogs "go.opentelemetry.io/proto/otlp/collector/logs/v1"
	logspb "go.opentelemetry.io/proto/otlp/logs/v1"
	"google.golang.org/protobuf/proto"

	"github.com/xenserver/dtagent/observer/export"
)

// receiver decodes OTLP logs and answers with handle.
func receiver(t testing.TB, handle http.HandlerFunc) (string, chan *collogs.ExportLogsServiceRequest) {
	got := make(chan *collogs.ExportLogsServiceRequest, 16)
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		var body io.Reader = r.Body
		if r.Header.Get("Content-Encoding") == "gzip" {
			z, err := gzip.NewReader(body)
			if err != nil {
				t.Errorf("gzip: %v", err)
				return
			}
			body = z
		}
		b, err := io.ReadAll(body)
		var m collogs.ExportLogsServiceRequest
		if err != nil || proto.Unmarshal(b, &m) != nil || r.URL.Path != "/v1/logs" {
			t.Errorf("%s: %v", r.URL, err)
		}
		select {
		case got <- &m:
		default:
		}
		if handle != nil {
			handle(w, r)
		}
	}))
	t.Cleanup(srv.Close)
	return "otlp+" + srv.URL + "/v1/traces", got
}

func openOTLP(t testing.TB, endpoint string, timeout time.Duration) export.Exporter {
	t.Helper()
	e, err := NewOTLP(ring, OTLP{Endpoint: endpoint, Timeout: timeout})
	qt.Assert(t, qt.IsNil(err))
	t.Cleanup(func() { _ = e.Close() })
	return e
}

func attrs(r *logspb.LogRecord) map[string]string {
	out := map[string]string{}
	for _, a := range r.GetAttributes() {
		v := a.GetValue()
		if s, ok := v.GetValue().(interface{ String() string }); ok && v.GetStringValue() == "" {
			out[a.GetKey()] = s.String()
			continue
		}
		out[a.GetKey()] = v.GetStringValue()
		if v.GetStringValue() == "" {
			out[a.GetKey()] = strings.TrimSpace(v.String())
		}
	}
	return out
}

func TestOTLP(t *testing.T) {
	url, got := receiver(t, nil)
	e := openOTLP(t, url, 0)
	first, second := record(1), record(2)
	first.Span.Attributes = append(first.Span.Attributes, attribute.String("span.name", "forged"), attribute.String("bad", "\xff"))
	second.Edit = export.NewEdit([]string{"custom", "exception.*"}, nil)
	for range 2 { // the second batch has nothing of the first
		qt.Assert(t, qt.IsNil(e.Export(context.Background(), []*export.Record{first, second})))
	}
	<-got
	m := <-got
	qt.Assert(t, qt.HasLen(m.GetResourceLogs(), 1))
	res := map[string]string{}
	for _, a := range m.GetResourceLogs()[0].GetResource().GetAttributes() {
		res[a.GetKey()] = a.GetValue().GetStringValue()
	}
	qt.Check(t, qt.DeepEquals(res, map[string]string{"service.name": "dtagent", "service.instance.id": "h-uuid/" + ring.UUID, "xs.observer.name": "ring",
		"xs.observer.uuid": ring.UUID, "xs.host.uuid": "h-uuid", "xs.host.name": "h1", "xs.pool.uuid": "p-uuid"}))
	logs := m.GetResourceLogs()[0].GetScopeLogs()[0].GetLogRecords()
	qt.Assert(t, qt.HasLen(logs, 4))
	begin, end := logs[0], logs[1]
	qt.Check(t, qt.Equals(begin.GetBody().GetStringValue(), "span begin"))
	qt.Check(t, qt.Equals(end.GetBody().GetStringValue(), "span end"))
	qt.Check(t, qt.Equals(int64(begin.GetTimeUnixNano()), first.Span.Start))
	qt.Check(t, qt.Equals(int64(end.GetTimeUnixNano()), first.Span.End))
	qt.Check(t, qt.Equals(hex.EncodeToString(begin.GetTraceId()), "3100000000000000000000000000008c"))
	qt.Check(t, qt.Equals(hex.EncodeToString(end.GetSpanId()), "0000000000000001"))
	qt.Check(t, qt.Equals(begin.GetSeverityNumber(), logspb.SeverityNumber_SEVERITY_NUMBER_INFO))
	qt.Check(t, qt.Equals(end.GetSeverityNumber(), logspb.SeverityNumber_SEVERITY_NUMBER_ERROR))
	qt.Check(t, qt.DeepEquals(attrs(begin), map[string]string{"service.name": "xapi", "span.name": "VM.start 1", "span.kind": "server", "parent_id": "3400000000000000"}))
	a := attrs(end)
	for k, v := range map[string]string{"service.name": "xapi", "span.name": "VM.start 1", "custom": "canary-value", "exception.message": "VM_BAD_POWER_STATE",
		"duration_us": "int_value:100046", "http.request.body.size": "int_value:312", "bad": "\uFFFD", "name": "tag", "parent_id": "3400000000000000"} {
		qt.Check(t, qt.Equals(a[k], v), qt.Commentf("%s", k))
	}
	a = attrs(logs[3])
	qt.Check(t, qt.Equals(a["custom"], export.Redacted))
	qt.Check(t, qt.IsFalse(strings.Contains(logs[3].String(), "VM_BAD_POWER_STATE")))
}

// TestOTLPAnswers: what became of a batch is told as for any exporter.
func TestOTLPAnswers(t *testing.T) {
	partial := func(n int64) http.HandlerFunc {
		return func(w http.ResponseWriter, _ *http.Request) {
			b, _ := proto.Marshal(&collogs.ExportLogsServiceResponse{PartialSuccess: &collogs.ExportLogsPartialSuccess{RejectedLogRecords: n, ErrorMessage: "too old"}})
			w.Header().Set("Content-Type", "application/x-protobuf")
			_, _ = w.Write(b)
		}
	}
	status := func(code int) http.HandlerFunc {
		return func(w http.ResponseWriter, _ *http.Request) { w.Header().Set("Retry-After", "7"); w.WriteHeader(code) }
	}
	for _, c := range []struct {
		name   string
		handle http.HandlerFunc
		want   export.Failure
		ok     bool
	}{
		{name: "200", handle: status(200), ok: true},
		{name: "202", handle: status(202), ok: true},
		{name: "partial", handle: partial(3), want: export.Failure{Cause: export.Rejected, Lost: 2}},
		{name: "all refused", handle: partial(99), want: export.Failure{Cause: export.Rejected, Lost: 3}},
		{name: "400", handle: status(400), want: export.Failure{Cause: export.Rejected, Lost: 3}},
		{name: "http.StatusTemporaryRedirect", handle: func(w http.ResponseWriter, r *http.Request) {
			http.Redirect(w, r, "/v1/logs", http.StatusTemporaryRedirect)
		}, want: export.Failure{Cause: export.Redirected, Lost: 3}},
		{name: "429", handle: status(429), want: export.Failure{Retry: true, After: 7 * time.Second}},
		{name: "500", handle: status(500), want: export.Failure{Retry: true, After: 7 * time.Second}},
		{name: "503", handle: status(503), want: export.Failure{Retry: true, After: 7 * time.Second}},
		{name: "closed", handle: func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) }, want: export.Failure{Retry: true}},
		{name: "hangs", handle: func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() }, want: export.Failure{Retry: true}},
	} {
		t.Run(c.name, func(t *testing.T) {
			url, _ := receiver(t, c.handle)
			e := openOTLP(t, url, 300*time.Millisecond)
			err := e.Export(context.Background(), []*export.Record{record(1), record(2), record(3)})
			if c.ok {
				qt.Assert(t, qt.IsNil(err))
				return
			}
			qt.Assert(t, qt.IsNotNil(err))
			f := *export.AsFailure(err, 99)
			f.Err = nil
			qt.Check(t, qt.Equals(f, c.want), qt.Commentf("%v", err))
		})
	}
	// Nobody there, and words that hold no password.
	e := openOTLP(t, "otlp+http://user:secret@127.0.0.1:1", 0)
	err := e.Export(context.Background(), []*export.Record{record(1)})
	qt.Check(t, qt.IsTrue(export.AsFailure(err, 1).Retry))
	qt.Check(t, qt.StringContains(err.Error(), "refused"))
	qt.Check(t, qt.IsFalse(strings.Contains(err.Error(), "secret")))
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	qt.Check(t, qt.IsTrue(export.AsFailure(e.Export(ctx, []*export.Record{record(1)}), 1).Retry))
}

func BenchmarkOTLP(b *testing.B) {
	srv := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { _, _ = io.Copy(io.Discard, r.Body) }))
	defer srv.Close()
	e := openOTLP(b, "otlp+"+srv.URL, 0)
	batch := make([]*export.Record, 512)
	for i := range batch {
		batch[i] = record(i)
	}
	b.ReportAllocs()
	n := 0
	for b.Loop() {
		if err := e.Export(context.Background(), batch); err != nil {
			b.Fatal(err)
		}
		n += len(batch)
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(n), "ns/span")
}
