package spanlog

import (
	"bufio"
	"bytes"
	"compress/gzip"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"io/fs"
	"math"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/go-quicktest/qt"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/trace"
	"golang.org/x/sys/unix"

	"github.com/xenserver/dtagent/correlate"
	"github.com/xenserver/dtagent/observer/export"
)

var ring = Observer{UUID: "0b5e5f2a-0000-4000-8000-000000000001", Name: "ring", HostUUID: "h-uuid", HostName: "h1", PoolUUID: "p-uuid"}

func record(i int) *export.Record {
	return &export.Record{
		Span: &correlate.Span{
			TraceID: trace.TraceID{0x31, 15: 0x8c}, SpanID: trace.SpanID{6: byte(i >> 8), 7: byte(i)}, ParentID: trace.SpanID{0: 0x34},
			Service: "xapi", Name: fmt.Sprintf("VM.start %d", i), Kind: trace.SpanKindServer,
			Start: 1677671549_043900_999, End: 1677671549_143947_998, Error: "VM_BAD_POWER_STATE", Link: correlate.LinkTask,
			Attributes: []attribute.KeyValue{attribute.Int("http.request.body.size", 312), attribute.Bool("b", true), attribute.Float64("f", 0.5),
				attribute.Float64("nan", math.NaN()), attribute.String("name", "tag")},
		},
		Attributes: export.SortTags([]attribute.KeyValue{attribute.String("xs.host.uuid", "h-uuid"), attribute.String("custom", "canary-value")}),
	}
}

func newLog(t testing.TB, o Options) (*Log, string) {
	if o.Path == "" {
		o.Path = filepath.Join(t.TempDir(), "dtagent", "spans.jsonl")
	}
	l := New(o)
	t.Cleanup(func() { _ = l.Close() })
	return l, o.Path
}

// lines parses a file, gzip or not; every line must be whole.
func lines(t testing.TB, path string) (out []map[string]any) {
	t.Helper()
	b, err := os.ReadFile(path)
	qt.Assert(t, qt.IsNil(err))
	if strings.HasSuffix(path, ".gz") {
		z, err := gzip.NewReader(bytes.NewReader(b))
		qt.Assert(t, qt.IsNil(err))
		b, err = io.ReadAll(z)
		qt.Assert(t, qt.IsNil(err))
	}
	qt.Assert(t, qt.IsTrue(len(b) == 0 || b[len(b)-1] == '\n'))
	sc := bufio.NewScanner(bytes.NewReader(b))
	sc.Buffer(nil, 16<<20)
	for sc.Scan() {
		var m map[string]any
		qt.Assert(t, qt.IsNil(json.Unmarshal(sc.Bytes(), &m)), qt.Commentf("%q", sc.Bytes()))
		out = append(out, m)
	}
	return out
}

func TestLines(t *testing.T) {
	l, path := newLog(t, Options{})
	e := l.Exporter(ring)
	root := record(2)
	sp := *root.Span
	sp.ParentID, sp.Error, sp.Attributes, sp.Kind = trace.SpanID{}, "", nil, trace.SpanKindUnspecified
	root.Span = &sp
	qt.Assert(t, qt.IsNil(e.Export(context.Background(), []*export.Record{record(1), root})))
	got := lines(t, path)
	qt.Assert(t, qt.HasLen(got, 4))
	same := map[string]any{"level": "INFO", "xs.observer.name": "ring", "xs.observer.uuid": ring.UUID, "trace_id": "3100000000000000000000000000008c",
		"span_id": "0000000000000001", "parent_id": "3400000000000000", "service.name": "xapi", "name": "VM.start 1", "kind": "server"}
	with := func(more map[string]any) map[string]any {
		out := map[string]any{}
		for _, m := range []map[string]any{same, more} {
			for k, v := range m {
				out[k] = v
			}
		}
		return out
	}
	qt.Check(t, qt.DeepEquals(got[0], with(map[string]any{"msg": "span begin", "time": "2023-03-01T11:52:29.043900999Z"})))
	qt.Check(t, qt.DeepEquals(got[1], with(map[string]any{"msg": "span end", "time": "2023-03-01T11:52:29.143947998Z", "level": "ERROR",
		"duration_us": 100046., "error": "VM_BAD_POWER_STATE", "tags": map[string]any{
			"service.name": "xapi", "xs.host.uuid": "h-uuid", "custom": "canary-value", "dt.link.method": "task", "error": "true",
			"exception.message": "VM_BAD_POWER_STATE", "exception.type": "VM_BAD_POWER_STATE", "http.request.body.size": 312., "b": true, "f": 0.5, "nan": "NaN", "name": "tag"}})))
	qt.Check(t, qt.IsNil(got[2]["parent_id"]))
	qt.Check(t, qt.IsNil(got[3]["error"]))
	qt.Check(t, qt.Equals(got[3]["kind"], "internal"))
	qt.Check(t, qt.Equals(got[3]["level"], "INFO"))
	for p, mode := range map[string]fs.FileMode{path: 0o600, filepath.Dir(path): fs.ModeDir | 0o700} {
		info, err := os.Stat(p)
		qt.Assert(t, qt.IsNil(err))
		qt.Check(t, qt.Equals(info.Mode(), mode))
	}
}

// TestRedaction: what an Observer redacts or renames is so in the log.
func TestRedaction(t *testing.T) {
	l, path := newLog(t, Options{})
	r := record(1)
	r.Edit = export.NewEdit([]string{"custom", "exception.*"}, map[string]string{"http.request.body.size": "size"})
	qt.Assert(t, qt.IsNil(l.Exporter(ring).Export(context.Background(), []*export.Record{r})))
	text, err := os.ReadFile(path)
	qt.Assert(t, qt.IsNil(err))
	for _, canary := range []string{"canary", "VM_BAD_POWER_STATE", "http.request.body.size"} {
		qt.Check(t, qt.IsFalse(bytes.Contains(text, []byte(canary))), qt.Commentf("%s in %s", canary, text))
	}
	end := lines(t, path)[1]
	qt.Check(t, qt.Equals(end["tags"].(map[string]any)["custom"], any(export.Redacted)))
	qt.Check(t, qt.Equals(end["tags"].(map[string]any)["size"], any(312.)))
	qt.Check(t, qt.Equals(end["error"], any(export.Redacted)))
}

func TestHostile(t *testing.T) {
	l, path := newLog(t, Options{MaxMB: 1})
	r := record(1)
	r.Span.Name, r.Span.Service, r.Span.Error = "a\n{\"b\":\xff", strings.Repeat("ü", 4000), strings.Repeat("e", 1<<20)
	r.Span.Start, r.Span.End = 5, math.MinInt64
	r.Span.Attributes = []attribute.KeyValue{attribute.String("k\n\xff", strings.Repeat("v", 1<<20)), attribute.StringSlice("list", []string{"a", "b\n"})}
	qt.Assert(t, qt.IsNil(l.Exporter(ring).Export(context.Background(), []*export.Record{r, record(2)})))
	got := lines(t, path)
	qt.Assert(t, qt.HasLen(got, 4))
	qt.Check(t, qt.Equals(got[0]["name"], any("a\n{\"b\":\uFFFD")))
	qt.Check(t, qt.Equals(got[1]["duration_us"], any(0.)))
	info, err := os.Stat(path)
	qt.Assert(t, qt.IsNil(err))
	qt.Check(t, qt.IsTrue(info.Size() < 64<<10))
}

// TestRotation: the files are bounded, whole and of mode 0600, and no span is in
// two of them.
func TestRotation(t *testing.T) {
	l, path := newLog(t, Options{MaxMB: 1, Backups: 2})
	exporters := []export.Exporter{l.Exporter(ring), l.Exporter(Observer{UUID: "u2", Name: "two"})}
	var all sync.WaitGroup
	for _, e := range exporters {
		all.Go(func() {
			for i := range 30 {
				batch := make([]*export.Record, 100)
				for j := range batch {
					batch[j] = record(i*100 + j)
				}
				qt.Check(t, qt.IsNil(e.Export(context.Background(), batch)))
			}
		})
	}
	all.Wait()
	var names []string
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		// Rotated files are compressed and trimmed beside the writing.
		names, _ = filepath.Glob(filepath.Join(filepath.Dir(path), "*"))
		done := len(names) == 3
		for _, n := range names {
			done = done && (n == path || strings.HasSuffix(n, ".jsonl.gz"))
		}
		if done {
			break
		}
		qt.Assert(t, qt.IsTrue(time.Now().Before(deadline)), qt.Commentf("%v", names))
	}
	for _, n := range names {
		info, err := os.Stat(n)
		qt.Assert(t, qt.IsNil(err))
		qt.Check(t, qt.Equals(info.Mode(), 0o600))
		qt.Check(t, qt.IsTrue(info.Size() <= 1<<20))
		got := lines(t, n)
		qt.Check(t, qt.IsTrue(len(got) > 500 && len(got)%2 == 0))
		for i := 0; i < len(got); i += 2 {
			qt.Assert(t, qt.Equals(got[i]["msg"], any(Begin)))
			qt.Assert(t, qt.Equals(got[i+1]["msg"], any(End)))
			qt.Assert(t, qt.Equals(got[i]["span_id"], got[i+1]["span_id"]))
			qt.Assert(t, qt.Equals(got[i]["xs.observer.name"], got[i+1]["xs.observer.name"]))
		}
	}
}

// TestDiskFull: on a real full file system every span is in the file whole or
// counted, no line is half, and writing goes on when there is room again.
func TestDiskFull(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("needs root to mount a tmpfs")
	}
	dir := t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size=256k"); err != nil {
		t.Skip("needs the right to mount a tmpfs: ", err)
	}
	t.Cleanup(func() { _ = unix.Unmount(dir, unix.MNT_DETACH) })
	l, path := newLog(t, Options{Path: filepath.Join(dir, "spans.jsonl")})
	e := l.Exporter(ring)
	sent, lost := 0, 0
	put := func(n int) {
		batch := make([]*export.Record, n)
		for i := range batch {
			batch[i] = record(i)
		}
		sent += n
		if err := e.Export(context.Background(), batch); err != nil {
			f := export.AsFailure(err, n)
			qt.Assert(t, qt.ErrorIs(err, syscall.ENOSPC))
			qt.Assert(t, qt.Equals(f.Cause, export.DiskFull))
			qt.Assert(t, qt.IsFalse(f.Retry))
			lost += f.Lost
		}
		qt.Assert(t, qt.Equals(len(lines(t, path)), 2*(sent-lost)))
	}
	for range 20 {
		put(37)
	}
	qt.Assert(t, qt.IsTrue(lost > 0 && lost < sent), qt.Commentf("%d of %d", lost, sent))
	qt.Assert(t, qt.IsNil(unix.Mount("tmpfs", dir, "tmpfs", unix.MS_REMOUNT, "size=4m")))
	before := lost
	put(100)
	qt.Assert(t, qt.Equals(lost, before))
	t.Logf("%d spans, %d lost", sent, lost)
}

// TestAfterKill: half a line that a killed agent left is cut off, and the file
// is made private.
func TestAfterKill(t *testing.T) {
	for _, c := range []struct{ left, keeps string }{
		{"", ""}, {"{\"a\":1}\n", "{\"a\":1}\n"}, {"{\"a\":1}\n{\"b\"", "{\"a\":1}\n"}, {"{\"half", ""},
		{"{\"a\":1}\n" + strings.Repeat("x", 10_000), "{\"a\":1}\n"}, {strings.Repeat("x", 4095) + "\n" + strings.Repeat("y", 4096), strings.Repeat("x", 4095) + "\n"},
	} {
		l, path := newLog(t, Options{})
		qt.Assert(t, qt.IsNil(os.MkdirAll(filepath.Dir(path), 0o700)))
		qt.Assert(t, qt.IsNil(os.WriteFile(path, []byte(c.left), 0o644)))
		qt.Assert(t, qt.IsNil(l.Exporter(ring).Export(context.Background(), []*export.Record{record(1)})))
		text, err := os.ReadFile(path)
		qt.Assert(t, qt.IsNil(err))
		rest, ok := strings.CutPrefix(string(text), c.keeps)
		qt.Check(t, qt.IsTrue(ok && strings.HasPrefix(rest, `{"time"`)), qt.Commentf("%.40q: %.80q", c.left, text))
		info, err := os.Stat(path)
		qt.Assert(t, qt.IsNil(err))
		qt.Check(t, qt.Equals(info.Mode(), 0o600))
	}
}

func TestDeletedAndNoFile(t *testing.T) {
	l, path := newLog(t, Options{})
	e := l.Exporter(ring)
	for range 3 {
		qt.Assert(t, qt.IsNil(e.Export(context.Background(), []*export.Record{record(1)})))
		qt.Assert(t, qt.HasLen(lines(t, path), 2))
		qt.Assert(t, qt.IsNil(os.RemoveAll(filepath.Dir(path))))
	}
	qt.Assert(t, qt.IsNil(os.MkdirAll(path, 0o700)))
	err := e.Export(context.Background(), []*export.Record{record(1), record(2)})
	f := export.AsFailure(err, 0)
	qt.Check(t, qt.Equals(f.Cause, export.WriteError))
	qt.Check(t, qt.Equals(f.Lost, 2))
	qt.Check(t, qt.StringContains(err.Error(), path))
	qt.Assert(t, qt.IsNil(os.Remove(path)))
	// A link could lead the writer to any file.
	target := filepath.Join(t.TempDir(), "target")
	qt.Assert(t, qt.IsNil(os.WriteFile(target, nil, 0o644)))
	qt.Assert(t, qt.IsNil(os.Symlink(target, path)))
	qt.Check(t, qt.IsNotNil(e.Export(context.Background(), []*export.Record{record(1)})))
	b, err := os.ReadFile(target)
	qt.Check(t, qt.IsNil(err))
	qt.Check(t, qt.HasLen(b, 0))
}

// FuzzLine: whatever a span holds, its records are two lines of JSON.
func FuzzLine(f *testing.F) {
	f.Add("VM.start", "key", "value", int64(1), int64(2))
	f.Add("a\n\xff\"", "tags", strings.Repeat("\u2028", maxValue), int64(-1), int64(math.MaxInt64))
	f.Fuzz(func(t *testing.T, name, key, value string, start, end int64) {
		r := record(1)
		r.Span.Name, r.Span.Service, r.Span.Error, r.Span.Start, r.Span.End = name, value, value, start, end
		r.Span.Attributes = []attribute.KeyValue{attribute.String(key, value), attribute.String(value, key)}
		e := New(Options{Path: "/dev/null/never"}).Exporter(Observer{Name: name, UUID: key}).(*fileExporter)
		e.span.set(r)
		_ = e.json.Handle(context.Background(), e.span.begin())
		_ = e.json.Handle(context.Background(), e.span.end())
		got := bytes.SplitAfter(e.chunk.Bytes(), []byte("\n"))
		if len(got) != 3 || len(got[2]) != 0 {
			t.Fatalf("%q", e.chunk.Bytes())
		}
		for _, l := range got[:2] {
			var m map[string]any
			if err := json.Unmarshal(l, &m); err != nil {
				t.Fatalf("%v: %q", err, l)
			}
		}
	})
}

func BenchmarkFile(b *testing.B) {
	l, _ := newLog(b, Options{})
	e := l.Exporter(ring)
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
