package e2e

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/go-quicktest/qt"
	"github.com/klauspost/compress/zstd"

	"github.com/xenserver/dtagent/testenv"
	"github.com/xenserver/dtagent/testenv/client"
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

// otlp is what is read of OTLP's JSON form.
type otlp struct {
	ResourceSpans []struct {
		Resource   struct{ Attributes []otlpAttribute }
		ScopeSpans []struct {
			Spans []struct {
				TraceID           string `json:"traceId"`
				SpanID            string `json:"spanId"`
				ParentSpanID      string `json:"parentSpanId"`
				TraceState        string `json:"traceState"`
				Name              string
				Kind              int
				StartTimeUnixNano string
				EndTimeUnixNano   string
				Attributes        []otlpAttribute
				Status            struct{ Code int }
			}
		}
	}
}

type otlpAttribute struct {
	Key   string
	Value struct {
		StringValue *string `json:"stringValue"`
		IntValue    *string `json:"intValue"`
	}
}

// flat is a span in a form in which both readings can be compared.
type flat struct {
	trace, parent, name, service, kind string
	start, end                         int64
	failed                             bool
}

// TestFilesReadBack has every line of the bugtool files, compressed ones too,
// read by the OpenTelemetry Collector's zipkin receiver: it takes each line, and
// what it decoded is what was written.
func TestFilesReadBack(t *testing.T) {
	l := newLab(t, testenv.Options{VMs: 2, Knobs: testenv.Knobs{Fail: map[string]string{"VM_build": "CANNOT_BUILD"}}})
	l.observe(`attributes=quote:"\ü/<&>,empty:`)
	session := l.session()
	ctx := context.Background()
	o := client.Options{Traceparent: "00-3100a3ead5c4210a99c27e3e5578158c-34991b6261208b64-00", Tracestate: "vendor=x,other=y"}
	_, err := l.dial("unix", o).Call(ctx, "VM.start", session, l.dom0.VMs()[0].Ref, false, false)
	qt.Assert(t, qt.ErrorMatches(err, "(?s).*CANNOT_BUILD.*"))
	qt.Assert(t, qt.IsNil(l.dom0.Set(testenv.Knobs{})))
	_, err = l.dial("tcp", client.Options{Shape: client.Node}).Call(ctx, "VM.start", session, l.dom0.VMs()[1].Ref, false, false)
	qt.Assert(t, qt.IsNil(err))
	// Enough for a file to be full, and so compressed.
	_, err = l.dial("unix", client.Options{Shape: client.Node, KeepAlive: true}).Load(ctx, client.LoadOptions{Connections: 4, Count: 3000})
	qt.Assert(t, qt.IsNil(err))
	l.traces()
	qt.Assert(t, qt.IsNil(l.agent.Stop()))

	receiver := startCollector(t)
	files, err := filepath.Glob(filepath.Join(l.agent.SpansDir(), "*"))
	qt.Assert(t, qt.IsNil(err))
	lines, compressed := 0, 0
	for _, f := range files {
		b, err := os.ReadFile(f)
		qt.Assert(t, qt.IsNil(err))
		if strings.HasSuffix(f, ".zst") {
			compressed++
			d, err := zstd.NewReader(nil)
			qt.Assert(t, qt.IsNil(err))
			b, err = d.DecodeAll(b, nil)
			qt.Assert(t, qt.IsNil(err))
			d.Close()
		}
		for line := range bytes.Lines(b) {
			qt.Assert(t, qt.IsTrue(bytes.HasSuffix(line, []byte("\n"))), qt.Commentf("%s ends in half a line", f))
			res, err := http.Post("http://"+receiver.zipkin+"/api/v2/spans", "application/json", bytes.NewReader(line))
			qt.Assert(t, qt.IsNil(err))
			said, _ := io.ReadAll(res.Body)
			res.Body.Close()
			qt.Assert(t, qt.Equals(res.StatusCode, http.StatusAccepted), qt.Commentf("%s\n%s", said, line))
			lines++
		}
	}
	qt.Assert(t, qt.Not(qt.Equals(compressed, 0)), qt.Commentf("no file was compressed: %v", files))

	want := map[string]flat{}
	tags := map[string]map[string]string{}
	for _, s := range l.spans() {
		want[s.ID] = flat{s.TraceID, s.ParentID, s.Name, s.Service(), s.Kind, s.Timestamp, s.End(), s.Error() != ""}
		tags[s.ID] = s.Tags
	}
	var decoded otlp
	receiver.decoded(t, "traces", &decoded)
	got := map[string]flat{}
	for _, r := range decoded.ResourceSpans {
		service := ""
		for _, a := range r.Resource.Attributes {
			if a.Key == "service.name" && a.Value.StringValue != nil {
				service = *a.Value.StringValue
			}
		}
		for _, scope := range r.ScopeSpans {
			for _, s := range scope.Spans {
				got[s.SpanID] = flat{s.TraceID, s.ParentSpanID, s.Name, service, kindName(s.Kind), micros(t, s.StartTimeUnixNano), micros(t, s.EndTimeUnixNano), s.Status.Code == 2}
				seen := map[string]string{}
				for _, a := range s.Attributes {
					switch {
					case a.Value.StringValue != nil:
						seen[a.Key] = *a.Value.StringValue
					case a.Value.IntValue != nil:
						seen[a.Key] = *a.Value.IntValue
					}
				}
				for _, k := range []string{"dt.link.method", "quote", "xs.host.uuid", "xs.observer.name"} {
					v, ok := seen[k]
					for _, a := range r.Resource.Attributes {
						if a.Key == k && a.Value.StringValue != nil {
							v, ok = *a.Value.StringValue, true
						}
					}
					qt.Check(t, qt.IsTrue(ok && v == tags[s.SpanID][k]), qt.Commentf("%s: %s is %q, not %q", s.Name, k, v, tags[s.SpanID][k]))
				}
			}
		}
	}
	qt.Assert(t, qt.Equals(len(got), len(want)))
	for id, w := range want {
		qt.Check(t, qt.Equals(got[id], w))
	}
	t.Logf("%d spans in %d lines of %d files (%d compressed) were read back", len(got), lines, len(files), compressed)
}

// kindName is zipkin's word for OTLP's number.
func kindName(k int) string {
	return map[int]string{2: "SERVER", 3: "CLIENT", 4: "PRODUCER", 5: "CONSUMER"}[k]
}

func micros(t *testing.T, ns string) int64 {
	t.Helper()
	n, err := strconv.ParseInt(ns, 10, 64)
	qt.Assert(t, qt.IsNil(err))
	return n / 1000
}
