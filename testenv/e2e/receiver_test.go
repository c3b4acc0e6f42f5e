package e2e

import (
	"bytes"
	"context"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/go-quicktest/qt"
	"github.com/klauspost/compress/zstd"

	"github.com/xenserver/dtagent/testenv"
	"github.com/xenserver/dtagent/testenv/client"
)

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
	var decoded otlpTraces
	receiver.decoded(t, "traces", &decoded)
	got := map[string]flat{}
	for _, r := range decoded.ResourceSpans {
		resource := texts(t, r.Resource.Attributes)
		for _, scope := range r.ScopeSpans {
			for _, s := range scope.Spans {
				got[s.SpanID] = flat{s.TraceID, s.ParentSpanID, s.Name, resource["service.name"], kindName(s.Kind), s.Start / 1000, s.End / 1000, s.Status.Code == otlpFailed}
				seen := texts(t, s.Attributes)
				for _, k := range []string{"dt.link.method", "quote", "xs.host.uuid", "xs.observer.name"} {
					v, ok := seen[k]
					if r, has := resource[k]; has {
						v, ok = r, true
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
