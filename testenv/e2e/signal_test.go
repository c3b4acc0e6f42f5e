package e2e

import (
	"bufio"
	"bytes"
	"context"
	"encoding/hex"
	"encoding/json"
	"errors"
	"io"
	"math"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/go-quicktest/qt"
	dto "github.com/prometheus/client_model/go"
	"github.com/prometheus/common/expfmt"
	collogs "go.opentelemetry.io/proto/otlp/collector/logs/v1"
	colmetrics "go.opentelemetry.io/proto/otlp/collector/metrics/v1"
	"google.golang.org/protobuf/proto"

	"github.com/xenserver/dtagent/cmd/dtagent/control"
	"github.com/xenserver/dtagent/cmd/dtagent/zipkin"
	"github.com/xenserver/dtagent/testenv"
	"github.com/xenserver/dtagent/testenv/client"
)

// signals is an OTLP receiver: it keeps the last counts and every log record of
// a span's end.
type signals struct {
	*httptest.Server
	mu     sync.Mutex
	counts []float64 // of all spans, in each export
	ends   map[string]int
}

func newSignals(t testing.TB) *signals {
	s := &signals{ends: map[string]int{}}
	s.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, err := readBody(r)
		if err != nil {
			return // the sender has given up
		}
		s.mu.Lock()
		defer s.mu.Unlock()
		switch r.URL.Path {
		case "/v1/traces":
		case "/v1/metrics":
			var m colmetrics.ExportMetricsServiceRequest
			qt.Check(t, qt.IsNil(proto.Unmarshal(body, &m)))
			n := 0.0
			for _, rm := range m.GetResourceMetrics() {
				for _, sm := range rm.GetScopeMetrics() {
					for _, x := range sm.GetMetrics() {
						for _, p := range x.GetSum().GetDataPoints() {
							n += float64(p.GetAsInt())
						}
					}
				}
			}
			s.counts = append(s.counts, n)
		case "/v1/logs":
			var m collogs.ExportLogsServiceRequest
			qt.Check(t, qt.IsNil(proto.Unmarshal(body, &m)))
			for _, rl := range m.GetResourceLogs() {
				for _, sl := range rl.GetScopeLogs() {
					for _, x := range sl.GetLogRecords() {
						if x.GetBody().GetStringValue() == "span end" {
							s.ends[hex.EncodeToString(x.GetSpanId())]++
						}
					}
				}
			}
		default:
			t.Errorf("a request for %s", r.URL.Path)
		}
	}))
	t.Cleanup(s.Close)
	return s
}

// scrape returns what the agent's page says now.
func scrape(t testing.TB, socket string) map[string]*dto.MetricFamily {
	t.Helper()
	c := &http.Client{Transport: &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", socket)
	}}}
	defer c.CloseIdleConnections()
	req, err := http.NewRequest("GET", "http://dtagent/metrics", nil)
	qt.Assert(t, qt.IsNil(err))
	req.Header.Set("Accept", "application/vnd.google.protobuf;proto=io.prometheus.client.MetricFamily;encoding=delimited")
	resp, err := c.Do(req)
	qt.Assert(t, qt.IsNil(err))
	defer resp.Body.Close()
	out := map[string]*dto.MetricFamily{}
	for dec := expfmt.NewDecoder(resp.Body, expfmt.ResponseFormat(resp.Header)); ; {
		var f dto.MetricFamily
		if err := dec.Decode(&f); errors.Is(err, io.EOF) {
			return out
		} else {
			qt.Assert(t, qt.IsNil(err))
		}
		out[f.GetName()] = &f
	}
}

// TestSignals: the files, the metrics page, the span log and what goes out by
// OTLP speak of the same spans, and push sends them all once more.
func TestSignals(t *testing.T) {
	dir := t.TempDir()
	socket, logFile := filepath.Join(dir, "run", "metrics.sock"), filepath.Join(dir, "log", "spans.jsonl")
	l := newLab(t, testenv.Options{VMs: 1}, "--metrics", "unix:"+socket, "--span-log", logFile)
	receiver := newSignals(t)
	id := l.observe("endpoints=bugtool", "attributes:dtagent.endpoints=otlp+"+receiver.URL+"/v1/traces", "attributes:dtagent.metrics=true", "attributes:dtagent.logs=true",
		"attributes:dtagent.redact=process.*")
	session := l.session()
	call := func(method string, params ...any) error {
		_, err := l.dial("unix", client.Options{Shape: client.Node}).Call(context.Background(), method, append([]any{session}, params...)...)
		return err
	}
	vm := l.dom0.VMs()[0].Ref
	qt.Assert(t, qt.IsNil(call("VM.start", vm, false, false)))
	qt.Assert(t, qt.IsNotNil(call("VM.start", vm, false, false))) // it runs already
	l.calls(30)
	_ = l.traces()
	l.wait("everything sent", func(s *control.Status) bool {
		for _, o := range s.Observers {
			for _, e := range o.Endpoints {
				if e.Queued > 0 {
					return false
				}
			}
		}
		return true
	})

	type key struct{ service, name, kind, status string }
	calls, seconds, ids, traces := map[key]float64{}, map[key]float64{}, map[string]int{}, map[string]bool{}
	for _, s := range l.spans() {
		k := key{s.Service(), s.Name, "SPAN_KIND_INTERNAL", "STATUS_CODE_UNSET"}
		if s.Kind != "" {
			k.kind = "SPAN_KIND_" + s.Kind
		}
		if s.Tags["error"] != "" {
			k.status = "STATUS_CODE_ERROR"
		}
		calls[k]++
		seconds[k] += s.Length().Seconds()
		ids[s.ID]++
		traces[s.TraceID] = true
	}
	page := scrape(t, socket)
	keyOf := func(m *dto.Metric) key {
		v := map[string]string{}
		for _, p := range m.GetLabel() {
			v[p.GetName()] = p.GetValue()
		}
		qt.Check(t, qt.Equals(v["xs_observer_uuid"], id))
		qt.Check(t, qt.Equals(v["xs_host_uuid"], l.dom0.HostUUID()))
		return key{v["service_name"], v["span_name"], v["span_kind"], v["status_code"]}
	}
	got := map[key]float64{}
	for _, m := range page["traces_span_metrics_calls_total"].GetMetric() {
		got[keyOf(m)] = m.GetCounter().GetValue()
	}
	qt.Assert(t, qt.DeepEquals(got, calls))
	exemplars := 0
	for _, m := range page["traces_span_metrics_duration_seconds"].GetMetric() {
		k, h := keyOf(m), m.GetHistogram()
		qt.Check(t, qt.Equals(float64(h.GetSampleCount()), calls[k]))
		// The files have whole microseconds.
		qt.Check(t, qt.IsTrue(math.Abs(h.GetSampleSum()-seconds[k]) <= calls[k]*1e-6), qt.Commentf("%v: %v, not %v", k, h.GetSampleSum(), seconds[k]))
		for _, b := range h.GetBucket() {
			for _, p := range b.GetExemplar().GetLabel() {
				if p.GetName() == "trace_id" {
					exemplars++
					qt.Check(t, qt.IsTrue(traces[p.GetValue()]))
				}
			}
		}
	}
	qt.Check(t, qt.IsTrue(exemplars >= len(calls)))
	qt.Check(t, qt.IsTrue(calls[key{"xapi", "VM.start", "SPAN_KIND_SERVER", "STATUS_CODE_ERROR"}] >= 1))

	text, err := os.ReadFile(logFile)
	qt.Assert(t, qt.IsNil(err))
	ends, begins := map[string]int{}, map[string]int{}
	for sc := bufio.NewScanner(bytes.NewReader(text)); sc.Scan(); {
		var r struct {
			Msg    string
			SpanID string `json:"span_id"`
			Tags   map[string]any
		}
		qt.Assert(t, qt.IsNil(json.Unmarshal(sc.Bytes(), &r)))
		if r.Msg == "span end" {
			ends[r.SpanID]++
			for k, v := range r.Tags {
				qt.Check(t, qt.IsTrue(!strings.HasPrefix(k, "process.") || v == "[redacted]"), qt.Commentf("%s=%v", k, v))
			}
		} else {
			begins[r.SpanID]++
		}
	}
	qt.Check(t, qt.DeepEquals(ends, ids))
	qt.Check(t, qt.DeepEquals(begins, ids))
	receiver.mu.Lock()
	qt.Check(t, qt.DeepEquals(receiver.ends, ids))
	receiver.mu.Unlock()

	// The files once more.
	again := newZipkinServer(t)
	out, err := l.agent.Run(context.Background(), "push", l.agent.SpansDir(), again.URL+"/api/v2/spans")
	qt.Assert(t, qt.IsNil(err))
	t.Log(strings.TrimSpace(out))
	pushed := map[string]int{}
	byID := map[string]zipkin.Span{}
	for _, s := range again.received() {
		pushed[s.ID]++
		byID[s.ID] = s
	}
	qt.Check(t, qt.DeepEquals(pushed, ids))
	for _, s := range l.spans() {
		qt.Assert(t, qt.DeepEquals(byID[s.ID], s))
	}

	// When the Observer ends its series do, after a last export.
	total := 0.0
	for _, n := range calls {
		total += n
	}
	_, err = l.agent.Run(context.Background(), "observer", "destroy", "uuid="+id)
	qt.Assert(t, qt.IsNil(err))
	// Its last spans are waited for, for some seconds.
	l.wait("no series", func(*control.Status) bool {
		return len(scrape(t, socket)["traces_span_metrics_calls_total"].GetMetric()) == 0
	})
	l.wait("the last counts", func(*control.Status) bool {
		receiver.mu.Lock()
		defer receiver.mu.Unlock()
		return len(receiver.counts) > 0 && receiver.counts[len(receiver.counts)-1] >= total
	})
	t.Logf("%.0f spans in %d series, %d exemplars", total, len(calls), exemplars)
}
