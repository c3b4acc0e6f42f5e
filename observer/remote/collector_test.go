package remote

import (
	"bufio"
	"encoding/json"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/go-quicktest/qt"
	"github.com/xenserver/dtagent/observer/export"
	"github.com/xenserver/dtagent/observer/otlp"
	"github.com/xenserver/dtagent/observer/zipkin"
)

// startCollector builds and starts the receivers of the OpenTelemetry Collector.
// It returns the addresses for zipkin, for OTLP, and to read back.
func startCollector(t *testing.T) (zipkin, otlp, back string) {
	t.Helper()
	bin := filepath.Join(t.TempDir(), "otelreceiver")
	build := exec.Command("go", "build", "-o", bin, ".")
	build.Dir = filepath.Join("..", "..", "testenv", "otelreceiver")
	out, err := build.CombinedOutput()
	qt.Assert(t, qt.IsNil(err), qt.Commentf("%s", out))
	cmd := exec.Command(bin)
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
	return f[0], f[1], f[2]
}

// TestCollector has the receivers of the OpenTelemetry Collector read what is
// sent: compressed, and several batches in one request.
func TestCollector(t *testing.T) {
	zipkinAddr, otlpAddr, back := startCollector(t)
	first := uint64(1)
	for _, o := range []Options{
		{Endpoint: "http://" + zipkinAddr + "/api/v2/spans", Encoder: &zipkin.Encoder{}},
		{Endpoint: "otlp+http://" + otlpAddr, Encoder: &otlp.Encoder{}},
	} {
		o.Dir, o.Ledger = t.TempDir(), &export.Ledger{}
		e := open(t, o)
		for range 10 {
			give(t, e, records(first, 100))
			first += 100
		}
		flush(t, e)
		qt.Check(t, qt.Equals(e.o.Ledger.Counters(), export.Counters{Produced: 1000, Sent: 1000}))
		qt.Check(t, qt.Equals(e.o.Ledger.Health().LastError, ""))
	}

	var encodings map[string]map[string]int
	readBack(t, "http://"+back+"/encodings", &encodings)
	traces := encodings["traces"]
	qt.Check(t, qt.HasLen(traces, 1), qt.Commentf("%v", traces))
	qt.Check(t, qt.IsTrue(traces["gzip"] >= 2 && traces["gzip"] < 10), qt.Commentf("%v", traces))

	var decoded struct {
		ResourceSpans []struct {
			ScopeSpans []struct {
				Spans []struct{ SpanID, ParentSpanID, Name, EndTimeUnixNano string }
			}
		}
	}
	readBack(t, "http://"+back+"/traces", &decoded)
	got := map[string]bool{}
	for _, r := range decoded.ResourceSpans {
		for _, s := range r.ScopeSpans {
			for _, sp := range s.Spans {
				got[sp.SpanID] = true
				qt.Check(t, qt.Equals(sp.Name, "VM.start"))
				qt.Check(t, qt.Equals(sp.ParentSpanID, "3400000000000004"))
				end := "1677671549043946000" // zipkin has microseconds
				if sp.SpanID > "00000000000003e8" {
					end = "1677671549043947998"
				}
				qt.Check(t, qt.Equals(sp.EndTimeUnixNano, end))
			}
		}
	}
	qt.Check(t, qt.HasLen(got, 2000))
}

func readBack(t *testing.T, url string, into any) {
	t.Helper()
	res, err := http.Get(url)
	qt.Assert(t, qt.IsNil(err))
	defer res.Body.Close()
	qt.Assert(t, qt.IsNil(json.NewDecoder(res.Body).Decode(into)))
}
