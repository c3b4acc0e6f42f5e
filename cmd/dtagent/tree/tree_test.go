package tree

import (
	"bytes"
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/go-quicktest/qt"

	"github.com/xenserver/dtagent/cmd/dtagent/zipkin"
)

var update = flag.Bool("update", false, "rewrite the golden files")

const traceID = "3100a3ead5c4210a99c27e3e5578158c"

func span(id, parent, service, kind, name string, at, length int64, tags ...string) zipkin.Span {
	s := zipkin.Span{
		TraceID: traceID, ID: fmt.Sprintf("%016s", id), Kind: kind, Name: name,
		Timestamp: 1_767_225_600_000_000 + at, Duration: length,
		Local: zipkin.Endpoint{ServiceName: service}, Tags: map[string]string{},
	}
	if parent != "" {
		s.ParentID = fmt.Sprintf("%016s", parent)
	}
	for i := 0; i < len(tags); i += 2 {
		s.Tags[tags[i]] = tags[i+1]
	}
	return s
}

// shutdown is one trace as dtagent and a caller make it.
func shutdown() []zipkin.Span {
	return []zipkin.Span{
		span("e", "d", "xenopsd", "", "VM_shutdown_domain", 14_000, 90_000, "dt.link.method", "thread"),
		span("f", "d", "xenopsd", "", "VBD_unplug xvda", 104_000, 15_000, "dt.link.method", "thread",
			"dt.time.disk_us", "9000", "dt.time.cpu_us", "700"),
		span("d", "c", "xenopsd", "", "VM_shutdown", 12_000, 110_000, "dt.link.method", "task"),
		span("a", "34991b6261208b64", "xapi", "SERVER", "VM.shutdown", 0, 130_000, "dt.link.method", "traceparent", "error", "VM_BAD_POWER_STATE"),
		span("b", "a", "xapi", "PRODUCER", "send org.xen.xapi.xenops.classic VM.shutdown", 2_000, 8_000, "dt.link.method", "thread"),
		span("c", "b", "xenopsd", "CONSUMER", "VM.shutdown", 3_000, 4_000, "dt.link.method", "queue", "dt.incomplete", "3 events lost"),
		span("e", "d", "xenopsd", "", "VM_shutdown_domain", 14_000, 90_000, "dt.link.method", "thread", "xs.observer.name", "the second Observer's copy"),
	}
}

func golden(t *testing.T, name string, got []byte) {
	t.Helper()
	path := filepath.Join("testdata", name)
	if *update {
		qt.Assert(t, qt.IsNil(os.MkdirAll("testdata", 0o755)))
		qt.Assert(t, qt.IsNil(os.WriteFile(path, got, 0o644)))
	}
	want, err := os.ReadFile(path)
	qt.Assert(t, qt.IsNil(err))
	qt.Assert(t, qt.Equals(string(got), string(want)))
}

func TestPrint(t *testing.T) {
	ring := []zipkin.Span{
		span("1", "2", "x", "", "one of a ring", 0, 5),
		span("2", "1", "x", "", "other of a ring", 1, 5),
		span("3", "3", "x", "", "its own parent", 2, 5),
	}
	hostile := []zipkin.Span{
		span("1", "", "xapi\x1b]0;title\a", "", "VM.start\x1b[2J\r\nsecond line", 0, 3_000_000),
		span("2", "1", "xapi", "", strings.Repeat("long ", 40), 0, 180_000_000, "error", "E\x00\u202e", "dt.incomplete", "\xff\xfe"),
		span("3", "1", "xapi", "", "before its parent", -1_000, 0),
	}
	deep := []zipkin.Span{span("1", "", "x", "", "n1", 0, 100)}
	for i := 2; i < 40; i++ {
		deep = append(deep, span(fmt.Sprint(i), fmt.Sprint(i-1), "x", "", fmt.Sprintf("n%d", i), int64(i), 100-int64(i)))
	}
	polled := []zipkin.Span{
		span("1", "", "xapi", "SERVER", "VM.start", 0, 100_000, "dt.link.method", "none"),
		span("9", "1", "xapi", "PRODUCER", "send q VM.start", 1_000, 2_000, "dt.link.method", "thread"),
	}
	for i := range 5 {
		at := int64(10_000 + 10_000*i)
		a, b := fmt.Sprint(20+2*i), fmt.Sprint(21+2*i)
		polled = append(polled,
			span(a, "1", "xapi", "PRODUCER", "send q Task.stat", at, 1_000+int64(i), "dt.link.method", "thread"),
			span(b, a, "xenopsd", "CONSUMER", "Task.stat", at+100, 500, "dt.link.method", "queue"))
	}
	polled[8].Tags["error"] = "Does_not_exist" // stands for itself
	two := []zipkin.Span{
		span("1", "34991b6261208b64", "xapi", "SERVER", "VM.start", 0, 10, "dt.link.method", "traceparent"),
		span("2", "34991b6261208b64", "xapi", "SERVER", "VM.unpause", 20, 10, "dt.link.method", "traceparent"),
		span("3", "", "xapi", "SERVER", "host.get_all", 40, 10, "dt.link.method", "none"),
	}
	waits := []zipkin.Span{
		span("1", "", "xapi", "SERVER", "VM.start", 0, 100_000, "dt.link.method", "none",
			"dt.time.cpu_us", "5000", "dt.time.lock_us", "60000", "dt.time.fsync_us", "22000", "dt.time.rest_us", "13000"),
		span("2", "1", "xapi", "PRODUCER", "send q VM.start", 1_000, 60_000, "dt.link.method", "thread"), // waited for at a lock
		span("3", "1", "xapi", "", "fsync", 70_000, 22_000, "dt.link.method", "thread", "dt.wait.class", "fsync", "dt.time.runq_us", "2000"),
		span("4", "2", "xenopsd", "", "VM_start", 2_000, 50_000, "dt.link.method", "queue",
			"dt.time.cpu_us", "1000", "dt.time.hypercall_us", "30000", "dt.time.runq_us", "9000", "dt.time.xenstore_us", "8000", "dt.time.rest_us", "2000"),
		span("5", "4", "xenopsd", "", "hypercall domctl", 3_000, 20_000, "dt.link.method", "thread", "dt.wait.class", "hypercall", "dt.time.runq_us", "9000"),
	}
	for i := range 4 {
		waits = append(waits, span(fmt.Sprint(10+i), "4", "xenopsd", "", "xenstore", 25_000+int64(i)*3_000, 2_000, "dt.link.method", "thread", "dt.wait.class", "xenstore"))
	}
	for name, spans := range map[string][]zipkin.Span{"waits": waits, "shutdown": shutdown(), "ring": ring, "hostile": hostile, "deep": deep, "two": two, "polled": polled} {
		t.Run(name, func(t *testing.T) {
			for _, st := range []struct {
				file  string
				style Style
			}{{name + ".txt", Style{}}, {name + ".colour.txt", Style{Colour: true}}} {
				var b bytes.Buffer
				for _, tr := range Build(spans) {
					qt.Assert(t, qt.IsNil(Print(&b, tr, st.style)))
				}
				golden(t, st.file, b.Bytes())
			}
		})
	}
	t.Run("all", func(t *testing.T) {
		var b bytes.Buffer
		qt.Assert(t, qt.IsNil(Print(&b, Build(polled)[0], Style{All: true})))
		golden(t, "polled.all.txt", b.Bytes())
	})
	t.Run("json", func(t *testing.T) {
		b, err := json.MarshalIndent(Build(shutdown()), "", "  ")
		qt.Assert(t, qt.IsNil(err))
		golden(t, "shutdown.json", append(b, '\n'))
	})
}

func TestBuildKeepsEverySpan(t *testing.T) {
	// Parents that form rings with tails: each span is in the tree once.
	var spans []zipkin.Span
	for i := range 200 {
		spans = append(spans, span(fmt.Sprintf("%x", i+1), fmt.Sprintf("%x", (i*i*7+3)%200+1), "s", "", "n", int64(i%13), 1))
	}
	seen := map[string]int{}
	for _, tr := range Build(spans) {
		qt.Check(t, qt.Equals(tr.Spans, 200))
		tr.All(func(n *Node) { seen[n.ID]++ })
	}
	qt.Assert(t, qt.HasLen(seen, 200))
	for id, n := range seen {
		qt.Check(t, qt.Equals(n, 1), qt.Commentf("%s", id))
	}
}

func TestWhere(t *testing.T) {
	at := func(spans ...zipkin.Span) Where { return Build(spans)[0].Roots[0].Where() }
	root := span("1", "", "s", "", "root", 0, 100)
	qt.Check(t, qt.Equals(at(root), Where{Self, 1}))
	qt.Check(t, qt.Equals(at(root, span("2", "1", "s", "", "a", 10, 60)), Where{"a", 0.6}))
	// Overlapping children do not hide the span's own time twice.
	qt.Check(t, qt.Equals(at(root, span("2", "1", "s", "", "a", 10, 30), span("3", "1", "s", "", "b", 20, 30)), Where{Self, 0.6}))
	// A task that outlives its call took none of the call's time.
	qt.Check(t, qt.Equals(at(root, span("2", "1", "s", "", "a", 95, 5_000)), Where{Self, 0.95}))
	// Work that a child left behind did.
	qt.Check(t, qt.Equals(at(root, span("2", "1", "s", "", "rpc", 1, 4), span("3", "2", "s", "", "VM_start", 6, 90), span("4", "3", "s", "", "atom", 6, 80)), Where{"VM_start", 0.9}))
	qt.Check(t, qt.Equals(at(span("1", "", "s", "", "root", 0, 100, "dt.time.disk_us", "50", "dt.time.cpu_us", "20", "dt.time.x_us", "junk")), Where{"disk", 0.5}))
	qt.Check(t, qt.Equals(at(span("1", "", "s", "", "root", 0, 100, "dt.time.cpu_us", "6")), Where{Self, 0.94}))
	qt.Check(t, qt.Equals(at(span("1", "", "s", "", "root", 0, 100, "dt.time.cpu_us", "300")), Where{"cpu", 1}))
	qt.Check(t, qt.Equals(at(span("1", "", "s", "", "root", 0, 100, "dt.time.cpu_us", "20"), span("2", "1", "s", "", "a", 0, 50)), Where{"a", 0.5}))
	qt.Check(t, qt.Equals(at(span("1", "", "s", "", "root", 0, 0)), Where{}))
}

func TestCollector(t *testing.T) {
	now := time.Unix(1_767_225_600, 0)
	var got []*Trace
	c := NewCollector(Options{}, func(tr *Trace) { got = append(got, tr) })
	pass := func(d time.Duration) { now = now.Add(d); c.Advance(now) }

	spans := shutdown()
	for _, s := range spans[:3] { // parts without their root
		c.Add(now, s)
	}
	pass(time.Minute)
	qt.Assert(t, qt.HasLen(got, 0))
	for _, s := range spans[3:6] {
		c.Add(now, s)
	}
	pass(time.Second)
	qt.Assert(t, qt.HasLen(got, 0))
	pass(time.Second)
	qt.Assert(t, qt.HasLen(got, 1))
	qt.Assert(t, qt.Equals(got[0].Spans, 6))
	qt.Assert(t, qt.IsFalse(got[0].Continued))

	// A late span of the same trace says that it goes on.
	c.Add(now, span("99", "d", "xenopsd", "", "late", 200_000, 1))
	pass(5 * time.Minute)
	qt.Assert(t, qt.HasLen(got, 2))
	qt.Assert(t, qt.IsTrue(got[1].Continued))

	// An Async call waits for its task.
	got = nil
	pass(10 * time.Minute)
	c.Add(now, span("1", "", "xapi", "SERVER", "Async.VM.start", 0, 10))
	pass(time.Minute)
	qt.Assert(t, qt.HasLen(got, 0))
	c.Add(now, span("2", "1", "xapi", "", "Async.VM.start", 5, 1000))
	pass(2 * time.Second)
	qt.Assert(t, qt.HasLen(got, 1))
	qt.Assert(t, qt.Equals(got[0].Spans, 2))
}

func TestCollectorIsBounded(t *testing.T) {
	now := time.Unix(1_767_225_600, 0)
	spans, traces := 0, 0
	c := NewCollector(Options{MaxSpans: 10}, func(tr *Trace) { spans += tr.Spans; traces++ })
	for i := range 100 {
		s := span("1", "5", "xapi", "", "part", 0, 1)
		s.TraceID = fmt.Sprintf("%032x", i+1)
		c.Add(now.Add(time.Duration(i)), s)
		qt.Assert(t, qt.IsTrue(c.spans <= 10))
	}
	qt.Assert(t, qt.Equals(traces, 90))
	c.Drain(now)
	qt.Assert(t, qt.Equals(spans, 100))
}
