package e2e

import (
	"bufio"
	"encoding/json"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/go-quicktest/qt"
)

// collector is a running receiver of the OpenTelemetry Collector.
type collector struct {
	zipkin, otlp string // addresses
	back         string // URL of what it decoded
}

// startCollector builds and starts the OpenTelemetry Collector's receivers.
func startCollector(t *testing.T, args ...string) *collector {
	t.Helper()
	bin := filepath.Join(t.TempDir(), "otelreceiver")
	build := exec.Command("go", "build", "-o", bin, ".")
	build.Dir = filepath.Join("..", "otelreceiver")
	out, err := build.CombinedOutput()
	qt.Assert(t, qt.IsNil(err), qt.Commentf("%s", out))
	cmd := exec.Command(bin, args...)
	stdin, err := cmd.StdinPipe()
	qt.Assert(t, qt.IsNil(err))
	stdout, err := cmd.StdoutPipe()
	qt.Assert(t, qt.IsNil(err))
	cmd.Stderr = os.Stderr
	qt.Assert(t, qt.IsNil(cmd.Start()))
	t.Cleanup(func() {
		stdin.Close() // it ends with its standard input
		qt.Check(t, qt.IsNil(cmd.Wait()))
	})
	line, err := bufio.NewReader(stdout).ReadString('\n')
	qt.Assert(t, qt.IsNil(err))
	f := strings.Fields(line)
	qt.Assert(t, qt.HasLen(f, 3))
	return &collector{zipkin: f[0], otlp: f[1], back: "http://" + f[2]}
}

// decoded reads into v what the receivers have decoded: "traces", "metrics",
// "logs", or the "encodings" of their requests.
func (c *collector) decoded(t *testing.T, what string, v any) {
	t.Helper()
	res, err := http.Get(c.back + "/" + what)
	qt.Assert(t, qt.IsNil(err))
	defer res.Body.Close()
	qt.Assert(t, qt.Equals(res.StatusCode, http.StatusOK))
	qt.Assert(t, qt.IsNil(json.NewDecoder(res.Body).Decode(v)))
}

// otlpTraces, otlpLogs and otlpMetrics are what is read of OTLP's JSON form.
type (
	otlpTraces struct {
		ResourceSpans []struct {
			Resource   otlpResource
			ScopeSpans []struct {
				Scope struct{ Name string }
				Spans []otlpSpan
			}
		}
	}
	otlpLogs struct {
		ResourceLogs []struct {
			Resource  otlpResource
			ScopeLogs []struct{ LogRecords []otlpLogRecord }
		}
	}
	otlpMetrics struct {
		ResourceMetrics []struct {
			Resource     otlpResource
			ScopeMetrics []struct {
				Metrics []struct {
					Name, Unit string
					Sum        struct {
						AggregationTemporality int
						IsMonotonic            bool
						DataPoints             []otlpPoint
					}
					Histogram struct {
						AggregationTemporality int
						DataPoints             []otlpPoint
					}
				}
			}
		}
	}
)

type otlpResource struct{ Attributes []otlpAttribute }

type otlpSpan struct {
	TraceID       string `json:"traceId"`
	SpanID        string `json:"spanId"`
	ParentSpanID  string `json:"parentSpanId"`
	TraceState    string `json:"traceState"`
	Flags         uint32
	Name          string
	Kind          int
	Start         int64 `json:"startTimeUnixNano,string"`
	End           int64 `json:"endTimeUnixNano,string"`
	Attributes    []otlpAttribute
	Events, Links []json.RawMessage
	Status        struct {
		Code    int
		Message string
	}
}

type otlpLogRecord struct {
	Time           int64 `json:"timeUnixNano,string"`
	SeverityNumber int
	SeverityText   string
	Body           struct{ StringValue string }
	Attributes     []otlpAttribute
	TraceID        string `json:"traceId"`
	SpanID         string `json:"spanId"`
}

// otlpPoint is a data point of a sum or a histogram.
type otlpPoint struct {
	Attributes     []otlpAttribute
	Time           int64 `json:"timeUnixNano,string"`
	AsInt          int64 `json:",string"`
	Count          int64 `json:",string"`
	Sum            float64
	BucketCounts   []string
	ExplicitBounds []float64
	Exemplars      []struct {
		TraceID  string `json:"traceId"`
		SpanID   string `json:"spanId"`
		AsDouble float64
	}
}

type otlpAttribute struct {
	Key   string
	Value struct {
		StringValue *string
		IntValue    *string
		BoolValue   *bool
	}
}

// Numbers of OTLP.
const (
	otlpFailed     = 2     // STATUS_CODE_ERROR
	otlpCumulative = 2     // AGGREGATION_TEMPORALITY_CUMULATIVE
	otlpInfo       = 9     // SEVERITY_NUMBER_INFO
	otlpError      = 17    // SEVERITY_NUMBER_ERROR
	otlpSampled    = 0x1   // of a span's flags: that of traceparent
	otlpHasRemote  = 0x100 // otlpRemote is known
	otlpRemote     = 0x200 // the parent is another process's
)

// kindName is zipkin's word for OTLP's number.
func kindName(k int) string {
	return map[int]string{2: "SERVER", 3: "CLIENT", 4: "PRODUCER", 5: "CONSUMER"}[k]
}

// texts returns attributes with their values as zipkin has them. Each key must
// be there once.
func texts(t *testing.T, attributes []otlpAttribute) map[string]string {
	t.Helper()
	out := make(map[string]string, len(attributes))
	for _, a := range attributes {
		_, twice := out[a.Key]
		qt.Check(t, qt.IsFalse(twice), qt.Commentf("two attributes %q", a.Key))
		switch v := a.Value; {
		case v.StringValue != nil:
			out[a.Key] = *v.StringValue
		case v.IntValue != nil:
			out[a.Key] = *v.IntValue
		case v.BoolValue != nil:
			out[a.Key] = strconv.FormatBool(*v.BoolValue)
		default:
			t.Errorf("attribute %q is of another type", a.Key)
		}
	}
	return out
}
