package main

import (
	"bytes"
	"context"
	"encoding/json"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/go-quicktest/qt"

	"github.com/xenserver/dtagent/cmd/dtagent/control"
	"github.com/xenserver/dtagent/cmd/dtagent/judge"
	"github.com/xenserver/dtagent/correlate/verdict"
	"github.com/xenserver/dtagent/probes/event"
	"github.com/xenserver/dtagent/probes/guestio"
)

// ioReport is what the agent could answer.
func ioReport() *judge.Report {
	at := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	disk := func(id, ms string, slow time.Duration) verdict.Disk {
		d := verdict.Disk{ID: id, Layered: true, GuestDisk: event.GuestDisk{VM: "1f1c0000-" + id, Name: ms, Device: "xvda", SR: "5e000000-aa", VBD: "7bd00000-" + id, Devices: []string{"8:16"}}}
		for range 400 {
			d.Requests[verdict.Read].Layers[event.LayerTotal].Observe(200*time.Microsecond + slow)
			d.Requests[verdict.Read].Layers[event.LayerDevice].Observe(150*time.Microsecond + slow)
			d.Requests[verdict.Read].Bytes += 4096
		}
		return d
	}
	var b verdict.Baselines
	window := func(slow time.Duration) *verdict.Window {
		return &verdict.Window{Start: at, Duration: 30 * time.Second, Disks: []verdict.Disk{disk("a", "web\x1b[2J", 0), disk("b", "db", slow), disk("c", "new", 0)}}
	}
	for range 12 {
		w := window(0)
		b.Learn(w, b.Judge(w))
	}
	return &judge.Report{
		Start: at, Seconds: 30, Findings: b.Judge(window(9 * time.Millisecond)),
		Unseen: []judge.Unseen{{Who: verdict.Who{ID: "backend", Name: "late", Device: "xvdb"}, Why: "its backend has no tapdisk yet"}},
		Losses: []guestio.Loss{{Cause: "table of block I/O full", Count: 3}},
	}
}

func TestPrintVerdict(t *testing.T) {
	var out bytes.Buffer
	for _, what := range []string{"all", "web\x1b[2J", "5e000000-aa", "db/xvda", "7bd00000-b"} {
		r := ioReport()
		qt.Assert(t, qt.IsNil((&ioFlags{verdict: what}).chooseFindings(r)))
		out.WriteString("== " + plain(what) + "\n")
		qt.Assert(t, qt.IsNil(printVerdict(&out, r, what == "all")))
	}
	golden := filepath.Join("testdata", "verdict.txt")
	if *update {
		qt.Assert(t, qt.IsNil(os.WriteFile(golden, out.Bytes(), 0o644)))
	}
	want, err := os.ReadFile(golden)
	qt.Assert(t, qt.IsNil(err))
	qt.Check(t, qt.Equals(out.String(), string(want)))
	qt.Check(t, qt.IsFalse(strings.Contains(out.String(), "\x1b")))
	err = (&ioFlags{verdict: "nobody"}).chooseFindings(ioReport())
	qt.Check(t, qt.ErrorMatches(err, `no such disk on this host: there are web\?\[2J/xvda, db/xvda, new/xvda, late/xvdb\. .*`))
}

// Its exit code says whether something was found; the JSON's names are what
// docs/verdict.md says.
func TestVerdictVerb(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "run", "control.sock")
	ln, err := control.Listen(socket)
	qt.Assert(t, qt.IsNil(err))
	s := control.NewServer(control.Sources{Verdict: func(_ context.Context, d time.Duration, tell func(time.Duration)) (*judge.Report, error) {
		qt.Check(t, qt.Equals(d, 7*time.Second))
		tell(time.Second)
		tell(7 * time.Second)
		return ioReport(), nil
	}}, slog.New(slog.DiscardHandler))
	done := make(chan error, 1)
	go func() { done <- s.Serve(ln) }()
	defer func() {
		qt.Check(t, qt.IsNil(s.Close()))
		qt.Check(t, qt.IsNil(<-done))
	}()
	for what, code := range map[string]int{"all": exitFound, "db": exitFound, "new": 0, "5e000000": exitFound, "late": 0, "nobody": exitFailed} {
		got, out, stderr := dtagent("io", "--control", socket, "--verdict", what, "--for", "7s")
		qt.Check(t, qt.Equals(got, code), qt.Commentf("%s: %s%s", what, out, stderr))
	}
	_, out, stderr := dtagent("io", "--control", socket, "--verdict", "all", "--for", "7s", "--json")
	qt.Check(t, qt.Equals(stderr, ""))
	var r judge.Report
	qt.Assert(t, qt.IsNil(json.Unmarshal([]byte(out), &r)))
	qt.Check(t, qt.Equals(r.Findings[0].Cause, verdict.Device))

	page, err := os.ReadFile("../../docs/verdict.md")
	qt.Assert(t, qt.IsNil(err))
	var v map[string]any
	qt.Assert(t, qt.IsNil(json.Unmarshal([]byte(out), &v)))
	var walk func(v any)
	walk = func(v any) {
		switch v := v.(type) {
		case map[string]any:
			for name, inner := range v {
				qt.Check(t, qt.IsTrue(strings.Contains(string(page), "`"+name+"`") || strings.Contains(string(page), "`"+name+"[]`")), qt.Commentf("%s is not in docs/verdict.md", name))
				walk(inner)
			}
		case []any:
			for _, inner := range v {
				walk(inner)
			}
		}
	}
	walk(v)
	for _, c := range verdict.Causes() {
		qt.Check(t, qt.IsTrue(strings.Contains(string(page), "`"+string(c)+"`")), qt.Commentf("%s is not in docs/verdict.md", c))
	}
}

func TestChoose(t *testing.T) {
	for _, c := range []struct {
		f    ioFlags
		want int
	}{
		{ioFlags{}, 2},
		{ioFlags{vm: "u-5"}, 1},
		{ioFlags{vm: "a very long name of a guest"}, 1},
		{ioFlags{vbd: "u-5/xvda"}, 1},
		{ioFlags{vbd: "u-5/xvdb"}, 0},
		{ioFlags{sr: "x"}, 0},
	} {
		s := ioSample()
		s.Trouble = ""
		err := c.f.choose(s)
		qt.Check(t, qt.HasLen(s.VBDs, c.want), qt.Commentf("%+v", c.f))
		qt.Check(t, qt.Equals(err != nil, c.want == 0))
	}
	s := ioSample()
	s.VBDs[1].Write.Interval.OpsPerSecond = 7
	qt.Assert(t, qt.IsNil((&ioFlags{sort: "writes"}).choose(s)))
	qt.Check(t, qt.Equals(s.VBDs[0].Domid, 17))
	qt.Assert(t, qt.IsNil((&ioFlags{sort: "p99"}).choose(s)))
	qt.Check(t, qt.Equals(s.VBDs[0].Domid, 5))
}

func TestHeatmap(t *testing.T) {
	var out bytes.Buffer
	line := &heatLine{Time: time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC), Seconds: 2, Octaves: []uint64{1, 0, 0, 0, 3, 40, 900, 2000, 300, 50, 0, 0, 0, 0, 0, 0, 0, 1}}
	for _, c := range []struct {
		width          int
		colours, plain bool
	}{{100, false, false}, {80, false, true}, {45, false, false}, {30, false, false}, {3, false, false}, {60, true, false}} {
		h := &heatmap{out: &out, zone: time.UTC, colours: c.colours, plain: c.plain, width: func() int { return c.width }}
		from := out.Len()
		for range 2 {
			qt.Assert(t, qt.IsNil(h.print(line)))
		}
		qt.Assert(t, qt.IsNil(h.print(&heatLine{Time: line.Time, Seconds: 2})))
		if !c.colours && c.width > 20 {
			for l := range strings.Lines(out.String()[from:]) {
				qt.Check(t, qt.IsTrue(len([]rune(strings.TrimSuffix(l, "\n"))) <= c.width), qt.Commentf("%d: %q", c.width, l))
			}
		}
	}
	golden := filepath.Join("testdata", "heatmap.txt")
	if *update {
		qt.Assert(t, qt.IsNil(os.WriteFile(golden, out.Bytes(), 0o644)))
	}
	want, err := os.ReadFile(golden)
	qt.Assert(t, qt.IsNil(err))
	qt.Check(t, qt.Equals(out.String(), string(want)))

	s := ioSample()
	s.VBDs[0].Read.Interval.Latency.Octaves = []uint64{1, 2}
	s.VBDs[0].Write.Interval.Latency = &guestio.Latency{Octaves: make([]uint64, 99)}
	s.VBDs[0].Write.Interval.Latency.Octaves[98] = 5
	qt.Check(t, qt.DeepEquals(heatOf(s, "read").Octaves, []uint64{1, 2}))
	qt.Check(t, qt.HasLen(heatOf(s, "all").Octaves, heatOctaves))
	qt.Check(t, qt.Equals(heatOf(s, "write").Octaves[heatOctaves-1], 5))
	qt.Check(t, qt.Equals(heatOf(s, "all").Disks, 1))
	qt.Check(t, qt.IsTrue(utf8Locale(func(n string) string { return map[string]string{"LANG": "en_US.utf8"}[n] })))
	qt.Check(t, qt.IsFalse(utf8Locale(func(n string) string { return map[string]string{"LANG": "en_US.utf8", "LC_ALL": "C"}[n] })))
}

func TestPrintLayers(t *testing.T) {
	s := ioSample()
	layers := map[string]guestio.Layer{}
	for l := event.LayerTotal; l < event.NumLayers; l++ {
		us := 100 * float64(l)
		if l == event.LayerTotal {
			us = 3600
		}
		layers[l.String()] = guestio.Layer{Count: 7, Latency: guestio.Latency{Mean: us, P50: us, P99: 10 * us, Max: 100 * us, Octaves: []uint64{0, 7}}}
	}
	s.VBDs[0].Layers = &guestio.Layers{Read: guestio.GuestIO{Total: guestio.Requests{Requests: 700, Layers: layers}, Interval: guestio.Requests{Requests: 7, Layers: layers}}}
	var out bytes.Buffer
	qt.Assert(t, qt.IsNil(printLayers(&out, s, time.UTC, "p99", false, false)))
	qt.Assert(t, qt.IsNil(printLayers(&out, s, time.UTC, "mean", true, false)))
	golden := filepath.Join("testdata", "layers.txt")
	if *update {
		qt.Assert(t, qt.IsNil(os.WriteFile(golden, out.Bytes(), 0o644)))
	}
	want, err := os.ReadFile(golden)
	qt.Assert(t, qt.IsNil(err))
	qt.Check(t, qt.Equals(out.String(), string(want)))
	qt.Check(t, qt.DeepEquals(heatOf(s, "read").Octaves, []uint64{0, 7}))
	qt.Check(t, qt.Equals(sorts["device"](&s.VBDs[0]), 700))
	qt.Check(t, qt.Equals(sorts["device"](&s.VBDs[1]), 0))
}
