package metrics

import (
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"regexp"
	"runtime"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/go-quicktest/qt"
	dto "github.com/prometheus/client_model/go"
	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/trace"
	colmetrics "go.opentelemetry.io/proto/otlp/collector/metrics/v1"
	metricspb "go.opentelemetry.io/proto/otlp/metrics/v1"
	"google.golang.org/protobuf/proto"

	"github.com/xenserver/dtagent/correlate"
	"github.com/xenserver/dtagent/observer/export"
)

var ring = Observer{UUID: "0b5e5f2a-0000-4000-8000-000000000001", Name: "ring", HostUUID: "h-uuid", HostName: "h1", PoolUUID: "p-uuid"}

func record(service, name string, kind trace.SpanKind, d time.Duration, failure string, id byte) *export.Record {
	const start = 1677671549043900_999
	return &export.Record{Span: &correlate.Span{TraceID: trace.TraceID{1, 15: id}, SpanID: trace.SpanID{2, 7: id}, Service: service, Name: name,
		Kind: kind, Start: start, End: start + int64(d), Error: failure}}
}

func open(t testing.TB, r *Registry, ob Observer, to OTLP) *exporter {
	t.Helper()
	e, err := r.Exporter(ob, to)
	qt.Assert(t, qt.IsNil(err))
	t.Cleanup(func() { _ = e.Close() })
	return e.(*exporter)
}

// scrape fetches the metrics over HTTP.
func scrape(t testing.TB, url, accept string) (string, http.Header) {
	t.Helper()
	req, err := http.NewRequest("GET", url, nil)
	qt.Assert(t, qt.IsNil(err))
	req.Header.Set("Accept", accept)
	resp, err := http.DefaultClient.Do(req)
	qt.Assert(t, qt.IsNil(err))
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	qt.Assert(t, qt.IsNil(err))
	qt.Assert(t, qt.Equals(resp.StatusCode, 200), qt.Commentf("%s", body))
	return string(body), resp.Header
}

const protoAccept = `application/vnd.google.protobuf;proto=io.prometheus.client.MetricFamily;encoding=delimited`

// families scrapes in the form that a Prometheus server asks for first and
// parses that.
func families(t testing.TB, url string) map[string]*dto.MetricFamily {
	t.Helper()
	body, header := scrape(t, url, protoAccept)
	dec := expfmt.NewDecoder(strings.NewReader(body), expfmt.ResponseFormat(header))
	out := map[string]*dto.MetricFamily{}
	for {
		var f dto.MetricFamily
		err := dec.Decode(&f)
		if errors.Is(err, io.EOF) {
			return out
		}
		qt.Assert(t, qt.IsNil(err))
		out[f.GetName()] = &f
	}
}

func labels(m *dto.Metric) map[string]string {
	out := map[string]string{}
	for _, l := range m.GetLabel() {
		out[l.GetName()] = l.GetValue()
	}
	return out
}

// find returns the one series with these labels among its own.
func find(t testing.TB, f *dto.MetricFamily, want map[string]string) *dto.Metric {
	t.Helper()
	var found []*dto.Metric
next:
	for _, m := range f.GetMetric() {
		have := labels(m)
		for k, v := range want {
			if have[k] != v {
				continue next
			}
		}
		found = append(found, m)
	}
	qt.Assert(t, qt.HasLen(found, 1), qt.Commentf("%v in %v", want, f))
	return found[0]
}

const (
	callsFamily    = "traces_span_metrics_calls_total"
	durationFamily = "traces_span_metrics_duration_seconds"
)

func TestScrape(t *testing.T) {
	r := New(Options{})
	srv := httptest.NewServer(r.Handler())
	defer srv.Close()
	e := open(t, r, ring, OTLP{})
	batch := []*export.Record{
		record("xapi", "VM.start", trace.SpanKindServer, 3*time.Second, "", 1),
		record("xapi", "VM.start", trace.SpanKindServer, 700*time.Microsecond, "", 2),
		record("xapi", "VM.start", trace.SpanKindServer, 2*time.Minute, "VM_BAD_POWER_STATE", 3),
		record("xenopsd", "VM.start", trace.SpanKindInternal, 30*time.Minute, "", 4),
	}
	qt.Assert(t, qt.IsNil(e.Export(context.Background(), batch)))

	all := families(t, srv.URL)
	ok := map[string]string{"service_name": "xapi", "span_name": "VM.start", "span_kind": "SPAN_KIND_SERVER", "status_code": "STATUS_CODE_UNSET",
		"xs_observer_name": "ring", "xs_observer_uuid": ring.UUID, "xs_host_uuid": "h-uuid", "xs_host_name": "h1", "xs_pool_uuid": "p-uuid"}
	m := find(t, all[callsFamily], ok)
	qt.Check(t, qt.DeepEquals(labels(m), ok)) // these and no others
	qt.Check(t, qt.Equals(m.GetCounter().GetValue(), 2))
	failed := map[string]string{"service_name": "xapi", "status_code": "STATUS_CODE_ERROR"}
	qt.Check(t, qt.Equals(find(t, all[callsFamily], failed).GetCounter().GetValue(), 1))

	h := find(t, all[durationFamily], ok).GetHistogram()
	qt.Check(t, qt.Equals(h.GetSampleCount(), 2))
	qt.Check(t, qt.IsTrue(math.Abs(h.GetSampleSum()-3.0007) < 1e-9), qt.Commentf("%v", h.GetSampleSum()))
	for _, b := range h.GetBucket() {
		want := uint64(1)
		if b.GetUpperBound() >= 3 {
			want = 2
		}
		qt.Check(t, qt.Equals(b.GetCumulativeCount(), want), qt.Commentf("le %v", b.GetUpperBound()))
		if ex := b.GetExemplar(); ex != nil {
			traceID := map[bool]string{true: "01000000000000000000000000000001", false: "01000000000000000000000000000002"}[ex.GetValue() > 1]
			got := map[string]string{}
			for _, l := range ex.GetLabel() {
				got[l.GetName()] = l.GetValue()
			}
			qt.Check(t, qt.DeepEquals(got, map[string]string{"trace_id": traceID, "span_id": "02000000000000" + traceID[30:]}))
		}
	}
	qt.Check(t, qt.Equals(h.GetBucket()[0].GetExemplar().GetValue(), 0.0007))
	// Longer than the last bound: only the sum and the count know.
	long := find(t, all[durationFamily], map[string]string{"service_name": "xenopsd", "span_kind": "SPAN_KIND_INTERNAL"}).GetHistogram()
	qt.Check(t, qt.Equals(long.GetSampleSum(), 1800))

	text, header := scrape(t, srv.URL, "application/openmetrics-text; version=1.0.0")
	qt.Check(t, qt.StringContains(header.Get("Content-Type"), "application/openmetrics-text"))
	qt.Check(t, qt.IsTrue(strings.HasSuffix(text, "# EOF\n")))
	// The labels of an exemplar come in any order.
	exemplars := regexp.MustCompile(`(?m)^traces_span_metrics_duration_seconds_bucket\{.*status_code="STATUS_CODE_ERROR".*le="120.0"\} 1 # \{(span_id="0200000000000003"|,|trace_id="01000000000000000000000000000003"){3}\} 120.0 `)
	qt.Check(t, qt.IsTrue(exemplars.MatchString(text)))
	qt.Check(t, qt.IsTrue(regexp.MustCompile(`(?m)^traces_span_metrics_calls_total\{.*STATUS_CODE_ERROR.*\} 1.0 # \{.*span_id="0200000000000003"`).MatchString(text)))

	// The old text format has the same numbers, without exemplars.
	text, _ = scrape(t, srv.URL, "text/plain")
	parser := expfmt.NewTextParser(model.LegacyValidation)
	plain, err := parser.TextToMetricFamilies(strings.NewReader(text))
	qt.Assert(t, qt.IsNil(err))
	qt.Check(t, qt.Equals(find(t, plain[callsFamily], ok).GetCounter().GetValue(), 2))
	qt.Check(t, qt.Equals(find(t, plain[durationFamily], ok).GetHistogram().GetSampleCount(), 2))
}

// TestSums: whatever the spans, what the histograms and counters say in all is
// what the spans were.
func TestSums(t *testing.T) {
	r := New(Options{MaxSeries: 40})
	srv := httptest.NewServer(r.Handler())
	defer srv.Close()
	e := open(t, r, ring, OTLP{})
	rng := rand.New(rand.NewPCG(3, 4))
	var sum float64
	failures, n := 0, 5000
	for i := range n {
		d := time.Duration(math.Exp(rng.Float64()*27)) * time.Nanosecond // up to 9 min
		rec := record("xapi", fmt.Sprintf("m%d", rng.IntN(30)), trace.SpanKind(rng.IntN(6)), d, []string{"", "E"}[rng.IntN(2)], byte(i))
		if rec.Span.Error != "" {
			failures++
		}
		sum += d.Seconds()
		qt.Assert(t, qt.IsNil(e.Export(context.Background(), []*export.Record{rec})))
	}
	all := families(t, srv.URL)
	var calls, failed, overflow, total float64
	var count uint64
	for _, m := range all[callsFamily].GetMetric() {
		v := m.GetCounter().GetValue()
		calls += v
		switch l := labels(m); {
		case l["otel_metric_overflow"] == "true":
			overflow += v
			qt.Check(t, qt.Equals(l["xs_observer_uuid"], ring.UUID))
		case l["status_code"] == "STATUS_CODE_ERROR":
			failed += v
		}
	}
	for _, m := range all[durationFamily].GetMetric() {
		h := m.GetHistogram()
		total += h.GetSampleSum()
		count += h.GetSampleCount()
	}
	qt.Check(t, qt.Equals(int(calls), n))
	qt.Check(t, qt.Equals(int(count), n))
	qt.Check(t, qt.IsTrue(math.Abs(total-sum) < 1e-6*sum), qt.Commentf("%v, not %v", total, sum))
	// 300 combinations do not fit into 40 series; the others are not lost.
	qt.Check(t, qt.HasLen(all[callsFamily].GetMetric(), 41))
	qt.Check(t, qt.HasLen(all[durationFamily].GetMetric(), 41))
	qt.Check(t, qt.IsTrue(overflow > 0 && failed > 0 && failed < float64(failures)))
	qt.Check(t, qt.HasLen(e.series.points, 40))
}

// TestTotal: all Observers together have a bound as well, and give back what
// they had.
func TestTotal(t *testing.T) {
	r := New(Options{MaxTotal: 5})
	srv := httptest.NewServer(r.Handler())
	defer srv.Close()
	overflow := func(id string) (n float64) {
		for _, m := range families(t, srv.URL)[callsFamily].GetMetric() {
			if l := labels(m); l["xs_observer_uuid"] == id && l["otel_metric_overflow"] == "true" {
				n += m.GetCounter().GetValue()
			}
		}
		return n
	}
	fill := func(e *exporter) {
		for i := range 4 {
			_ = e.Export(context.Background(), []*export.Record{record("xapi", fmt.Sprint(i), trace.SpanKindServer, 1, "", 1)})
		}
	}
	a, b := open(t, r, Observer{UUID: "a"}, OTLP{}), open(t, r, Observer{UUID: "b"}, OTLP{})
	fill(a)
	fill(b)
	qt.Check(t, qt.Equals(overflow("a"), 0))
	qt.Check(t, qt.Equals(overflow("b"), 3))
	qt.Assert(t, qt.IsNil(a.Close()))
	_ = a.Close()
	c := open(t, r, Observer{UUID: "c"}, OTLP{})
	fill(c)
	qt.Check(t, qt.Equals(overflow("c"), 0))
	qt.Check(t, qt.Equals(r.series, 5))
}

// TestErrorRate: without overflow the failures are exact.
func TestErrorRate(t *testing.T) {
	r := New(Options{})
	srv := httptest.NewServer(r.Handler())
	defer srv.Close()
	e := open(t, r, ring, OTLP{})
	for i := range 100 {
		failure := ""
		if i%4 == 0 {
			failure = "SESSION_INVALID"
		}
		_ = e.Export(context.Background(), []*export.Record{record("xapi", "host.get_all", trace.SpanKindServer, time.Millisecond, failure, 1)})
	}
	f := families(t, srv.URL)[callsFamily]
	qt.Check(t, qt.Equals(find(t, f, map[string]string{"status_code": "STATUS_CODE_ERROR"}).GetCounter().GetValue(), 25))
	qt.Check(t, qt.Equals(find(t, f, map[string]string{"status_code": "STATUS_CODE_UNSET"}).GetCounter().GetValue(), 75))
}

func TestObserversApart(t *testing.T) {
	r := New(Options{MaxSeries: 1})
	srv := httptest.NewServer(r.Handler())
	defer srv.Close()
	other := ring
	other.UUID, other.Name = "0b5e5f2a-0000-4000-8000-000000000002", "other"
	a, b := open(t, r, ring, OTLP{}), open(t, r, other, OTLP{})
	for range 3 { // overflow of both, too
		_ = a.Export(context.Background(), []*export.Record{record("xapi", "A", trace.SpanKindServer, 1, "", 1), record("xapi", "A2", trace.SpanKindServer, 1, "", 1)})
	}
	_ = b.Export(context.Background(), []*export.Record{record("xapi", "A", trace.SpanKindServer, 1, "", 1), record("xapi", "B", trace.SpanKindServer, 1, "", 1)})
	f := families(t, srv.URL)[callsFamily]
	for _, c := range []struct {
		observer, overflow string
		calls              float64
	}{{ring.UUID, "", 3}, {ring.UUID, "true", 3}, {other.UUID, "", 1}, {other.UUID, "true", 1}} {
		qt.Check(t, qt.Equals(find(t, f, map[string]string{"xs_observer_uuid": c.observer, "otel_metric_overflow": c.overflow}).GetCounter().GetValue(), c.calls))
	}

	qt.Assert(t, qt.IsNil(a.Close()))
	all := families(t, srv.URL)
	qt.Check(t, qt.HasLen(all[callsFamily].GetMetric(), 2))
	qt.Check(t, qt.HasLen(all[durationFamily].GetMetric(), 2))
	for _, m := range append(all[callsFamily].GetMetric(), all[durationFamily].GetMetric()...) {
		qt.Check(t, qt.Equals(labels(m)["xs_observer_uuid"], other.UUID))
	}
	// The Observer again, before its old exporter is closed: the new one is
	// shown, and closing the old one does not change that.
	b2 := open(t, r, other, OTLP{})
	_ = b2.Export(context.Background(), []*export.Record{record("xapi", "new", trace.SpanKindServer, 1, "", 1)})
	qt.Assert(t, qt.IsNil(b.Close()))
	f = families(t, srv.URL)[callsFamily]
	qt.Check(t, qt.HasLen(f.GetMetric(), 1))
	qt.Check(t, qt.Equals(labels(f.GetMetric()[0])["span_name"], "new"))
	qt.Assert(t, qt.IsNil(b2.Close()))
	qt.Check(t, qt.HasLen(families(t, srv.URL), 0))
}

// TestService: the service is the one that the traces of the Observer show.
func TestService(t *testing.T) {
	r := New(Options{})
	srv := httptest.NewServer(r.Handler())
	defer srv.Close()
	e := open(t, r, ring, OTLP{})
	rec := record("xapi", "n", trace.SpanKindServer, 1, "", 1)
	rec.Attributes = []attribute.KeyValue{attribute.String("xs.host.name", "h"), attribute.String("service.name", "Mine")}
	_ = e.Export(context.Background(), []*export.Record{rec})
	rec = record("xapi", "edited", trace.SpanKindServer, 1, "", 1)
	rec.Edit = &export.Edit{}
	_ = e.Export(context.Background(), []*export.Record{rec})
	f := families(t, srv.URL)[callsFamily]
	find(t, f, map[string]string{"service_name": "Mine", "span_name": "n"})
	find(t, f, map[string]string{"service_name": "xapi", "span_name": "edited"})
}

// TestHostileNames: names that callers make do not break a scrape or an export.
func TestHostileNames(t *testing.T) {
	r := New(Options{})
	srv := httptest.NewServer(r.Handler())
	defer srv.Close()
	rcv := newSink(t)
	e := open(t, r, Observer{UUID: "u", Name: "\xff\n\"" + strings.Repeat("ä", 200)}, OTLP{Endpoints: []string{"otlp+" + rcv.URL}})
	names := []string{"", "\xff\xfe", "a\nb{le=\"1\"} 5 # EOF", strings.Repeat("x", 1<<20), strings.Repeat("ü", 1000), strings.Repeat("\xff", 300)}
	for i, n := range names {
		_ = e.Export(context.Background(), []*export.Record{record(n, n, trace.SpanKindServer, -1, n, byte(i))})
	}
	f := families(t, srv.URL)[callsFamily]
	qt.Check(t, qt.HasLen(f.GetMetric(), len(names)))
	for _, m := range f.GetMetric() {
		qt.Check(t, qt.IsTrue(len(labels(m)["span_name"]) <= maxLabel))
	}
	text, _ := scrape(t, srv.URL, "application/openmetrics-text; version=1.0.0")
	qt.Check(t, qt.IsTrue(utf8.ValidString(text)))
	qt.Check(t, qt.Equals(strings.Count(text, "\n# EOF"), 1))
	qt.Assert(t, qt.IsNil(e.Close()))
	qt.Check(t, qt.Equals(sumOf(rcv.next(t)), float64(len(names))))
}

func FuzzLabel(f *testing.F) {
	f.Add("VM.start")
	f.Add(strings.Repeat("ä", 65) + "\xff")
	f.Add(strings.Repeat("\xf0\x9f", 100))
	f.Fuzz(func(t *testing.T, s string) {
		got := label(s)
		if len(got) > maxLabel || !utf8.ValidString(got) {
			t.Fatalf("%q became %q", s, got)
		}
		if utf8.ValidString(s) && len(s) <= maxLabel && got != s {
			t.Fatalf("%q became %q", s, got)
		}
		if utf8.ValidString(s) && len(s) > maxLabel && (!strings.HasPrefix(s, strings.TrimSuffix(got, "…")) || len(got) < maxLabel-6) {
			t.Fatalf("%q became %q", s, got)
		}
	})
}

// sink takes OTLP metrics.
type sink struct {
	*httptest.Server
	got    chan *colmetrics.ExportMetricsServiceRequest
	answer http.HandlerFunc
	req    chan *http.Request
}

func newSink(t testing.TB) *sink {
	r := &sink{got: make(chan *colmetrics.ExportMetricsServiceRequest, 16), req: make(chan *http.Request, 16)}
	r.Server = httptest.NewServer(http.HandlerFunc(r.serve(t)))
	t.Cleanup(r.Close)
	return r
}

func (r *sink) serve(t testing.TB) http.HandlerFunc {
	return func(w http.ResponseWriter, req *http.Request) {
		var body io.Reader = req.Body
		if req.Header.Get("Content-Encoding") == "gzip" {
			z, err := gzip.NewReader(body)
			if err != nil {
				t.Errorf("gzip: %v", err)
				return
			}
			body = z
		}
		b, err := io.ReadAll(body)
		if err != nil {
			return // the sender has given up
		}
		var m colmetrics.ExportMetricsServiceRequest
		if err := proto.Unmarshal(b, &m); err != nil {
			t.Errorf("body: %v", err)
		}
		if r.answer != nil {
			r.answer(w, req)
		}
		r.req <- req
		r.got <- &m
	}
}

func (r *sink) next(t testing.TB) *colmetrics.ExportMetricsServiceRequest {
	t.Helper()
	select {
	case m := <-r.got:
		return m
	case <-time.After(2 * time.Minute):
		t.Fatal("nothing was sent")
		return nil
	}
}

func metricOf(m *colmetrics.ExportMetricsServiceRequest, name string) *metricspb.Metric {
	for _, rm := range m.GetResourceMetrics() {
		for _, sm := range rm.GetScopeMetrics() {
			for _, x := range sm.GetMetrics() {
				if x.GetName() == name {
					return x
				}
			}
		}
	}
	return nil
}

func sumOf(m *colmetrics.ExportMetricsServiceRequest) (n float64) {
	for _, p := range metricOf(m, CallsName).GetSum().GetDataPoints() {
		n += float64(p.GetAsInt())
	}
	return n
}

func TestOTLP(t *testing.T) {
	rcv, dead := newSink(t), httptest.NewServer(nil)
	dead.Close()
	r := New(Options{Interval: time.Hour, Timeout: 5 * time.Second})
	with := strings.Replace(rcv.URL, "http://", "otlp+http://user:secret@", 1)
	e := open(t, r, ring, OTLP{Endpoints: []string{"bugtool", "http://zipkin:9411/api/v2/spans", "otlp+" + dead.URL, with + "/base/v1/traces?tenant=7"}})
	_ = e.Export(context.Background(), []*export.Record{
		record("xapi", "VM.start", trace.SpanKindServer, 3*time.Second, "", 9),
		record("xapi", "VM.start", trace.SpanKindServer, 5*time.Second, "", 9),
	})
	qt.Assert(t, qt.IsNil(e.Close())) // sends the last state, an hour early
	m, req := rcv.next(t), <-rcv.req
	qt.Check(t, qt.Equals(req.URL.RequestURI(), "/base/v1/metrics?tenant=7"))
	user, password, _ := req.BasicAuth()
	qt.Check(t, qt.Equals(user+":"+password, "user:secret"))
	res := map[string]string{}
	for _, a := range m.GetResourceMetrics()[0].GetResource().GetAttributes() {
		res[a.GetKey()] = a.GetValue().GetStringValue()
	}
	qt.Check(t, qt.DeepEquals(res, map[string]string{"service.name": "dtagent", "service.instance.id": "h-uuid/" + ring.UUID, "xs.observer.name": "ring",
		"xs.observer.uuid": ring.UUID, "xs.host.uuid": "h-uuid", "xs.host.name": "h1", "xs.pool.uuid": "p-uuid"}))
	qt.Check(t, qt.Equals(sumOf(m), 2))
	d := metricOf(m, DurationName)
	qt.Check(t, qt.Equals(d.GetUnit(), "s"))
	qt.Check(t, qt.Equals(d.GetHistogram().GetAggregationTemporality(), metricspb.AggregationTemporality_AGGREGATION_TEMPORALITY_CUMULATIVE))
	p := d.GetHistogram().GetDataPoints()[0]
	qt.Check(t, qt.Equals(p.GetSum(), 8))
	qt.Check(t, qt.Equals(p.GetCount(), 2))
	qt.Check(t, qt.DeepEquals(p.GetExplicitBounds(), buckets[:]))
	qt.Assert(t, qt.HasLen(p.GetExemplars(), 1)) // one of the two of that bucket
	qt.Check(t, qt.DeepEquals(p.GetExemplars()[0].GetTraceId(), []byte{1, 15: 9}))
	qt.Check(t, qt.DeepEquals(p.GetExemplars()[0].GetSpanId(), []byte{2, 7: 9}))
	attrs := map[string]string{}
	for _, a := range p.GetAttributes() {
		attrs[a.GetKey()] = a.GetValue().GetStringValue()
	}
	qt.Check(t, qt.DeepEquals(attrs, map[string]string{"service.name": "xapi", "span.name": "VM.start", "span.kind": "SPAN_KIND_SERVER", "status.code": "STATUS_CODE_UNSET"}))
}

// TestOTLPFailure: a receiver that is away or hangs costs nothing but the
// exports meanwhile, and stops neither the other receivers nor Close.
func TestOTLPFailure(t *testing.T) {
	rcv, good := newSink(t), newSink(t)
	hang := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { _, _ = io.ReadAll(r.Body); <-r.Context().Done() }))
	defer hang.Close()
	calls := 0
	rcv.answer = func(w http.ResponseWriter, _ *http.Request) {
		if calls++; calls == 1 {
			http.Error(w, "no", 500)
		}
	}
	r := New(Options{Interval: 200 * time.Millisecond, Timeout: time.Second})
	e := open(t, r, ring, OTLP{Endpoints: []string{"otlp+" + rcv.URL, "otlp+" + hang.URL, "otlp+" + good.URL + "/v1/traces"}})
	_ = e.Export(context.Background(), []*export.Record{record("xapi", "a", trace.SpanKindServer, 1, "", 1)})
	qt.Check(t, qt.Equals(sumOf(rcv.next(t)), 1))
	qt.Check(t, qt.Equals(sumOf(good.next(t)), 1))
	_ = e.Export(context.Background(), []*export.Record{record("xapi", "a", trace.SpanKindServer, 1, "", 1)})
	for sumOf(rcv.next(t)) != 2 {
	}
	scraped := page(t, r)
	exports := func(outcome string) float64 { // the receiver knows of one before it is counted
		sum := 0.0
		for _, m := range families(t, scraped)["dtagent_otlp_metric_exports_total"].GetMetric() {
			labels := map[string]string{}
			for _, l := range m.GetLabel() {
				labels[l.GetName()] = l.GetValue()
			}
			if labels["xs_observer_uuid"] == ring.UUID && labels["receiver"] == host(rcv.URL) && labels["outcome"] == outcome {
				sum += m.GetCounter().GetValue()
			}
		}
		return sum
	}
	for exports("sent") == 0 {
		time.Sleep(10 * time.Millisecond)
	}
	qt.Check(t, qt.Equals(exports("failed"), 1))
	_ = e.Close() // one that waits for the receiver that hangs does not return
	qt.Check(t, qt.HasLen(families(t, page(t, r)), 0))
}

func host(url string) string { return strings.TrimPrefix(url, "http://") }

// page serves the metrics.
func page(t testing.TB, r *Registry) string {
	srv := httptest.NewServer(r.Handler())
	t.Cleanup(srv.Close)
	return srv.URL
}

// TestComeAndGo: Observers that come and go leave nothing behind.
func TestComeAndGo(t *testing.T) {
	dead := httptest.NewServer(nil)
	dead.Close()
	r := New(Options{Timeout: time.Second})
	before := 0
	for i := range 60 {
		e, err := r.Exporter(Observer{UUID: fmt.Sprint(i)}, OTLP{Endpoints: []string{"otlp+" + dead.URL}})
		qt.Assert(t, qt.IsNil(err))
		_ = e.Export(context.Background(), []*export.Record{record("xapi", "a", trace.SpanKindServer, 1, "", 1)})
		_ = e.Close()
		if i == 9 {
			before = runtime.NumGoroutine()
		}
	}
	for deadline := time.Now().Add(5 * time.Second); runtime.NumGoroutine() > before+3; time.Sleep(10 * time.Millisecond) {
		qt.Assert(t, qt.IsTrue(time.Now().Before(deadline)), qt.Commentf("%d goroutines, %d before", runtime.NumGoroutine(), before))
	}
	qt.Check(t, qt.HasLen(r.observers, 0))
	qt.Check(t, qt.Equals(r.series, 0))
}

func TestBadEndpoint(t *testing.T) {
	r := New(Options{})
	for _, u := range []string{"otlp+http://", "otlp+http://user:secret@h:bad/v1/traces"} {
		_, err := r.Exporter(ring, OTLP{Endpoints: []string{u}})
		qt.Assert(t, qt.IsNotNil(err))
		qt.Check(t, qt.IsFalse(strings.Contains(err.Error(), "secret")))
	}
	qt.Check(t, qt.HasLen(r.observers, 0))
}

func BenchmarkExport(b *testing.B) {
	for _, otlp := range []bool{false, true} {
		b.Run(fmt.Sprintf("otlp=%v", otlp), func(b *testing.B) {
			r, to := New(Options{Interval: time.Hour, Timeout: time.Second}), OTLP{}
			if otlp {
				to.Endpoints = []string{"otlp+http://127.0.0.1:1"}
			}
			e := open(b, r, ring, to)
			batch := make([]*export.Record, 512)
			for i := range batch {
				batch[i] = record("xapi", fmt.Sprintf("VM.call%d", i%64), trace.SpanKindServer, time.Duration(i)*time.Millisecond, "", byte(i))
			}
			b.ReportAllocs()
			n := 0
			for b.Loop() {
				_ = e.Export(context.Background(), batch)
				n += len(batch)
			}
			b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(n), "ns/span")
		})
	}
}
