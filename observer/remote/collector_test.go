package remote

import (
	"bufio"
	"encoding/json"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/go-quicktest/qt"
	"github.com/xenserver/dtagent/observer/export"
)

// counting counts the requests that went out compressed.
type counting struct {
	http.RoundTripper
	compressed, all atomic.Int32
}

func (c *counting) RoundTrip(r *http.Request) (*http.Response, error) {
	c.all.Add(1)
	if r.Header.Get("Content-Encoding") == "gzip" {
		c.compressed.Add(1)
	}
	return c.RoundTripper.RoundTrip(r)
}

// TestCollector has the zipkin receiver of the OpenTelemetry Collector read what
// is sent: compressed, and several batches in one request.
func TestCollector(t *testing.T) {
	bin := filepath.Join(t.TempDir(), "zipkinreceiver")
	build := exec.Command("go", "build", "-o", bin, ".")
	build.Dir = filepath.Join("..", "..", "testenv", "zipkinreceiver")
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
	qt.Assert(t, qt.HasLen(f, 2))

	count := &counting{RoundTripper: &http.Transport{}}
	o := options("http://"+f[0]+"/api/v2/spans", t.TempDir())
	o.Transport = count
	e := open(t, o)
	for i := range 20 {
		give(t, e, records(uint64(100*i+1), 100))
	}
	flush(t, e)
	qt.Check(t, qt.Equals(e.o.Ledger.Counters(), export.Counters{Produced: 2000, Sent: 2000}))
	qt.Check(t, qt.Equals(count.compressed.Load(), count.all.Load()))
	qt.Check(t, qt.IsTrue(count.all.Load() < 20))

	res, err := http.Get("http://" + f[1])
	qt.Assert(t, qt.IsNil(err))
	defer res.Body.Close()
	var decoded struct {
		ResourceSpans []struct {
			ScopeSpans []struct {
				Spans []struct{ SpanID, ParentSpanID, Name string }
			}
		}
	}
	qt.Assert(t, qt.IsNil(json.NewDecoder(res.Body).Decode(&decoded)))
	got := map[string]bool{}
	for _, r := range decoded.ResourceSpans {
		for _, s := range r.ScopeSpans {
			for _, sp := range s.Spans {
				got[sp.SpanID] = true
				qt.Check(t, qt.Equals(sp.Name, "VM.start"))
				qt.Check(t, qt.Equals(sp.ParentSpanID, "3400000000000004"))
			}
		}
	}
	qt.Check(t, qt.HasLen(got, 2000))
}
