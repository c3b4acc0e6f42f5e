package zipkin

import (
	"context"
	"encoding/json"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"
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

// receiver answers with handle and keeps the spans of each request.
func receiver(t *testing.T, handle http.HandlerFunc) (*httptest.Server, chan []wireSpan) {
	got := make(chan []wireSpan, 16)
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		var spans []wireSpan
		if err := json.NewDecoder(r.Body).Decode(&spans); err != nil {
			t.Errorf("body: %v", err)
		}
		if r.Method != "POST" || r.Header.Get("Content-Type") != "application/json" || r.URL.Path != "/api/v2/spans" || r.ContentLength <= 0 {
			t.Errorf("%s %s %v", r.Method, r.URL, r.Header)
		}
		select {
		case got <- spans:
		default:
		}
		handle(w, r)
	}))
	t.Cleanup(srv.Close)
	return srv, got
}

func open(t *testing.T, url string, o Options) *Exporter {
	t.Helper()
	e, err := New(url+"/api/v2/spans", o)
	qt.Assert(t, qt.IsNil(err))
	t.Cleanup(func() { qt.Check(t, qt.IsNil(e.Close())) })
	return e
}

func TestWire(t *testing.T) {
	srv, got := receiver(t, func(w http.ResponseWriter, r *http.Request) { w.WriteHeader(http.StatusAccepted) })
	e := open(t, srv.URL, Options{})
	root := sample()
	sp := *root.Span
	sp.ParentID, sp.Kind, sp.Error, sp.Incomplete, sp.Link, sp.TraceState = trace.SpanID{}, trace.SpanKindInternal, "", "", correlate.LinkNone, ""
	sp.Name, sp.End = "Async.VM.start <ü>", sp.Start+10
	sp.Attributes = []attribute.KeyValue{attribute.String("name", "TAG"), attribute.String("id", "X")}
	root.Span = &sp
	qt.Assert(t, qt.IsNil(e.Export(context.Background(), []*export.Record{sample(), root})))
	spans := <-got
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
	srv, got := receiver(t, func(w http.ResponseWriter, r *http.Request) {})
	e := open(t, srv.URL, Options{})
	r := sample()
	r.Attributes = []attribute.KeyValue{attribute.String("service.name", "Mine")}
	qt.Assert(t, qt.IsNil(e.Export(context.Background(), []*export.Record{r})))
	s := (<-got)[0]
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

func TestAnswers(t *testing.T) {
	for _, c := range []struct {
		name   string
		handle http.HandlerFunc
		retry  bool
		after  time.Duration
		cause  export.Cause
		ok     bool
		says   string
	}{
		{name: "200", handle: func(w http.ResponseWriter, r *http.Request) { w.WriteHeader(200) }, ok: true},
		{name: "204", handle: func(w http.ResponseWriter, r *http.Request) { w.WriteHeader(204) }, ok: true},
		{name: "400", handle: func(w http.ResponseWriter, r *http.Request) { http.Error(w, "bad span", 400) }, cause: export.Rejected, says: `400 Bad Request: "bad span"`},
		{name: "404", handle: http.NotFound, cause: export.Rejected, says: "404"},
		{name: "408", handle: func(w http.ResponseWriter, r *http.Request) { w.WriteHeader(408) }, retry: true, says: "408"},
		{name: "429", handle: func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Retry-After", "7")
			w.WriteHeader(429)
		}, retry: true, after: 7 * time.Second},
		{name: "500", handle: func(w http.ResponseWriter, r *http.Request) { w.WriteHeader(500) }, retry: true},
		{name: "503", handle: func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Retry-After", "garbage")
			w.WriteHeader(503)
		}, retry: true},
		{name: "302", handle: func(w http.ResponseWriter, r *http.Request) {
			http.Redirect(w, r, "http://u:secret@other/login", http.StatusFound)
		}, cause: export.Redirected, says: `redirect to "http://u:xxxxx@other/login"`},
		{name: "307", handle: func(w http.ResponseWriter, r *http.Request) {
			http.Redirect(w, r, "/elsewhere", http.StatusTemporaryRedirect)
		}, cause: export.Redirected},
		{name: "closed before the answer", handle: func(w http.ResponseWriter, r *http.Request) { panic(http.ErrAbortHandler) }, retry: true},
		{name: "closed in the body of the answer", handle: func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Content-Length", "1000")
			w.WriteHeader(202)
			_, _ = io.WriteString(w, "half")
			w.(http.Flusher).Flush()
			panic(http.ErrAbortHandler)
		}, ok: true},
		{name: "endless answer", handle: func(w http.ResponseWriter, r *http.Request) {
			for range 100 {
				if _, err := io.WriteString(w, strings.Repeat("x", 1<<16)); err != nil {
					return
				}
			}
		}, ok: true},
		{name: "hangs", handle: func(w http.ResponseWriter, r *http.Request) { <-r.Context().Done() }, retry: true},
	} {
		t.Run(c.name, func(t *testing.T) {
			srv, _ := receiver(t, c.handle)
			srv.Config.ErrorLog = nil
			e := open(t, srv.URL, Options{Timeout: 300 * time.Millisecond})
			begin := time.Now()
			err := e.Export(context.Background(), []*export.Record{sample(), sample()})
			qt.Check(t, qt.IsTrue(time.Since(begin) < 3*time.Second))
			if c.ok {
				qt.Assert(t, qt.IsNil(err))
				return
			}
			qt.Assert(t, qt.IsNotNil(err))
			f := export.AsFailure(err, 2)
			qt.Check(t, qt.Equals(f.Retry, c.retry))
			qt.Check(t, qt.Equals(f.After, c.after))
			if !c.retry {
				qt.Check(t, qt.Equals(f.Cause, c.cause))
				qt.Check(t, qt.Equals(f.Lost, 2))
			}
			qt.Check(t, qt.StringContains(err.Error(), c.says))
		})
	}
}

func TestRefused(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	qt.Assert(t, qt.IsNil(err))
	addr := l.Addr().String()
	l.Close()
	e := open(t, "http://user:secret@"+addr, Options{})
	err = e.Export(context.Background(), []*export.Record{sample()})
	qt.Assert(t, qt.IsTrue(export.AsFailure(err, 1).Retry))
	qt.Assert(t, qt.StringContains(err.Error(), "connection refused"))
	qt.Assert(t, qt.IsFalse(strings.Contains(err.Error(), "secret")))
}

// TestCancel: a done context ends a request that hangs.
func TestCancel(t *testing.T) {
	srv, got := receiver(t, func(w http.ResponseWriter, r *http.Request) { <-r.Context().Done() })
	e := open(t, srv.URL, Options{})
	ctx, cancel := context.WithCancel(context.Background())
	go func() { <-got; cancel() }()
	begin := time.Now()
	qt.Assert(t, qt.IsTrue(export.AsFailure(e.Export(ctx, []*export.Record{sample()}), 1).Retry))
	qt.Assert(t, qt.IsTrue(time.Since(begin) < 5*time.Second))
}

// TestOneConnection: requests follow one another on one connection.
func TestOneConnection(t *testing.T) {
	var conns atomic.Int32
	srv := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { http.Error(w, "no", 500) }))
	srv.Config.ConnState = func(_ net.Conn, s http.ConnState) {
		if s == http.StateNew {
			conns.Add(1)
		}
	}
	srv.Start()
	defer srv.Close()
	e := open(t, srv.URL, Options{})
	for range 5 {
		qt.Assert(t, qt.IsTrue(export.AsFailure(e.Export(context.Background(), []*export.Record{sample()}), 1).Retry))
	}
	qt.Assert(t, qt.Equals(conns.Load(), 1))
}

// TestOddSpans: times that zipkin's model refuses for a whole batch do not harm
// the spans beside them.
func TestOddSpans(t *testing.T) {
	srv, got := receiver(t, func(w http.ResponseWriter, r *http.Request) {})
	e := open(t, srv.URL, Options{})
	odd := sample()
	odd.Span = &correlate.Span{Name: "\xff", Start: 0, End: -5}
	qt.Assert(t, qt.IsNil(e.Export(context.Background(), []*export.Record{sample(), odd, sample()})))
	qt.Assert(t, qt.HasLen(<-got, 3))
}

func TestBadURL(t *testing.T) {
	for _, u := range []string{"://", "nothing", "http://"} {
		_, err := New(u, Options{})
		qt.Check(t, qt.IsNotNil(err))
	}
}

func BenchmarkExport(b *testing.B) {
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
		w.WriteHeader(202)
	}))
	defer srv.Close()
	e, err := New(srv.URL, Options{})
	if err != nil {
		b.Fatal(err)
	}
	defer e.Close()
	batch := make([]*export.Record, 512)
	for i := range batch {
		batch[i] = sample()
	}
	n := 0
	for b.Loop() {
		if err := e.Export(context.Background(), batch); err != nil {
			b.Fatal(err)
		}
		n += len(batch)
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(n), "ns/span")
}
