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

	"github.com/xenserver/dtagent/bpf"
	"github.com/xenserver/dtagent/cmd/dtagent/control"
	"github.com/xenserver/dtagent/cmd/dtagent/judge"
	"github.com/xenserver/dtagent/probes/guestio"
	"github.com/xenserver/dtagent/testenv/xenstored"
)

// ioSample is two disks, one of which is not seen.
func ioSample() *guestio.Sample {
	counts := func(n, bytes uint64, us float64) guestio.Counts {
		return guestio.Counts{Ops: n, Bytes: bytes, Done: n, Latency: &guestio.Latency{Mean: us, P50: us, P99: 8 * us, Max: 90 * us}}
	}
	at := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	return &guestio.Sample{
		Time: at.Add(time.Minute), Since: at, Seconds: 2,
		VBDs: []guestio.VBD{{
			Domid: 5, Domain: "a very long name of a guest", VMUUID: "u-5", Devid: 51712, Device: "xvda", Kind: "vbd", Seen: true,
			Read:  guestio.IO{Total: counts(20000, 80<<20, 250), Interval: guestio.Rates{Counts: counts(400, 4<<20, 1234), OpsPerSecond: 200, BytesPerSecond: 2 << 20}},
			Write: guestio.IO{Total: counts(7, 7*4096, 20000)},
			Flush: guestio.IO{Total: counts(3, 0, 90)},
		}, {
			Domid: 17, Domain: "b\x1b[2J", Devid: 51728, Kind: "vbd3", Why: "its backend has no tapdisk yet\n(kthread-pid)",
		}},
		Losses:  []guestio.Loss{{Cause: "table of block I/O full", Count: 3}},
		Trouble: "xenstored has gone",
	}
}

func TestPrintIO(t *testing.T) {
	var out bytes.Buffer
	for _, totals := range []bool{false, true} {
		qt.Assert(t, qt.IsNil(printIO(&out, ioSample(), time.UTC, totals, false)))
	}
	golden := filepath.Join("testdata", "io.txt")
	if *update {
		qt.Assert(t, qt.IsNil(os.WriteFile(golden, out.Bytes(), 0o644)))
	}
	want, err := os.ReadFile(golden)
	qt.Assert(t, qt.IsNil(err))
	qt.Check(t, qt.Equals(out.String(), string(want)))
	qt.Check(t, qt.IsFalse(strings.Contains(out.String(), "\x1b")))
}

// The JSON's names are what docs/io.md says.
func TestIOPage(t *testing.T) {
	page, err := os.ReadFile("../../docs/io.md")
	qt.Assert(t, qt.IsNil(err))
	b, err := json.Marshal(ioSample())
	qt.Assert(t, qt.IsNil(err))
	var v any
	qt.Assert(t, qt.IsNil(json.Unmarshal(b, &v)))
	var walk func(v any)
	walk = func(v any) {
		switch v := v.(type) {
		case map[string]any:
			for name, inner := range v {
				qt.Check(t, qt.IsTrue(strings.Contains(string(page), "`"+name+"`") || strings.Contains(string(page), "`"+name+"[]`")), qt.Commentf("%s is not in docs/io.md", name))
				walk(inner)
			}
		case []any:
			for _, inner := range v {
				walk(inner)
			}
		}
	}
	walk(v)
}

// noKernel is a kernel side without disks.
type noKernel struct{}

func (noKernel) Attach(bpf.Probe) error                       { return nil }
func (noKernel) Detach(bpf.Probe) error                       { return nil }
func (noKernel) AddDisk([]bpf.DiskSource) (uint32, error)     { return 0, bpf.ErrDisks }
func (noKernel) SetDisk(uint32, []bpf.DiskSource) error       { return nil }
func (noKernel) RemoveDisk(uint32) error                      { return nil }
func (noKernel) DiskStats(uint32, *bpf.DiskStats) error       { return nil }
func (noKernel) AddTapdisk(uint32, bpf.TapdiskConfig) error   { return bpf.ErrDisks }
func (noKernel) RemoveTapdisk(uint32) error                   { return nil }
func (noKernel) TapdiskStats(uint32, *bpf.TapdiskStats) error { return nil }
func (noKernel) Losses() []bpf.Loss                           { return nil }

func TestIOExitCodes(t *testing.T) {
	dir := t.TempDir()
	socket := filepath.Join(dir, "run", "control.sock")
	ln, err := control.Listen(socket)
	qt.Assert(t, qt.IsNil(err))
	disks := guestio.New(guestio.Options{Kernel: noKernel{}, Xenstore: []string{filepath.Join(dir, "xenstored")}})
	j := judge.New(judge.Options{Watch: func(ctx context.Context) (judge.Watch, error) {
		w, err := disks.Watch(ctx)
		if err != nil {
			return nil, err
		}
		return w, nil
	}})
	s := control.NewServer(control.Sources{Status: func() control.Status { return control.Status{} }, IO: j.Watch, Verdict: j.Verdict}, slog.New(slog.DiscardHandler))
	done := make(chan error, 1)
	go func() { done <- s.Serve(ln) }()
	defer func() {
		qt.Check(t, qt.IsNil(s.Close()))
		qt.Check(t, qt.IsNil(<-done))
	}()
	absent := filepath.Join(dir, "absent.sock")
	for _, c := range []struct {
		args   []string
		code   int
		stderr string
	}{
		{[]string{"--control", absent}, exitNotRunning, "not running"},
		{[]string{"--interval", "1ms"}, exitUsage, "--interval 1ms: from 100ms to 1h0m0s"},
		{[]string{"--count", "-1"}, exitUsage, "--count -1"},
		{[]string{"--count", "2", "--once"}, exitUsage, "exclude each other"},
		{[]string{"more"}, exitUsage, "unknown command"},
		{[]string{"--sort", "colour"}, exitUsage, "--sort colour: one of copy, device, flushes, max"},
		{[]string{"--heatmap=flush"}, exitUsage, "--heatmap=flush: all, read or write"},
		{[]string{"--layers=p90"}, exitUsage, "--layers=p90: mean, p50, p99 or max"},
		{[]string{"--layers", "--heatmap"}, exitUsage, "exclude each other"},
		{[]string{"--heatmap", "--totals"}, exitUsage, "one of them"},
		{[]string{"--verdict", "all", "--heatmap"}, exitUsage, "goes with none"},
		{[]string{"--verdict", "all", "--interval", "1s"}, exitUsage, "goes with none"},
		{[]string{"--verdict", "all", "--sort", "p99"}, exitUsage, "goes with none"},
		{[]string{"--heatmap", "--sort", "p99"}, exitUsage, "has no effect"},
		{[]string{"--for", "5s"}, exitUsage, "--verdict all"},
		{[]string{"--verdict", "all", "--for", "1h"}, exitUsage, "--for 1h0m0s: from 1s to 10m0s"},
		{[]string{"--verdict", "all", "--control", absent}, exitNotRunning, "not running"},
		{[]string{"--verdict", "all", "--for", "1s", "--control", socket}, exitFailed, "no xenstored answers"},
		{[]string{"--control", socket}, exitFailed, "no xenstored answers"},
	} {
		code, _, stderr := dtagent(append([]string{"io"}, c.args...)...)
		qt.Check(t, qt.Equals(code, c.code), qt.Commentf("%q: %s", c.args, stderr))
		qt.Check(t, qt.StringContains(stderr, c.stderr), qt.Commentf("%q", c.args))
	}

	store, err := xenstored.Start(filepath.Join(dir, "xenstored"))
	qt.Assert(t, qt.IsNil(err))
	defer store.Close()
	code, out, stderr := dtagent("io", "--control", socket, "--interval", "100ms", "--count", "3", "--json")
	qt.Check(t, qt.Equals(code, 0), qt.Commentf(stderr))
	qt.Check(t, qt.Equals(strings.Count(out, "\n"), 3))
	code, out, stderr = dtagent("io", "--control", socket, "--interval", "100ms", "--once")
	qt.Check(t, qt.Equals(code, 0), qt.Commentf(stderr))
	qt.Check(t, qt.StringContains(out, "no guest has a disk"))
	code, out, stderr = dtagent("io", "--control", socket, "--verdict", "all", "--for", "1s")
	qt.Check(t, qt.Equals(code, 0), qt.Commentf(stderr))
	qt.Check(t, qt.Equals(out, "no guest has a disk\n"))
	code, _, stderr = dtagent("io", "--control", socket, "--verdict", "web", "--for", "1s")
	qt.Check(t, qt.Equals(code, exitFailed))
	qt.Check(t, qt.StringContains(stderr, "no such disk: no guest of this host has one"))
	code, _, stderr = dtagent("io", "--control", socket, "--vm", "web", "--interval", "100ms")
	qt.Check(t, qt.Equals(code, exitFailed))
	qt.Check(t, qt.StringContains(stderr, "no such disk"))

	// Ctrl-C is no failure, nor is an agent that stops in the middle.
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	var ended bytes.Buffer
	seen := writerFunc(func(b []byte) (int, error) { stop(); return len(b), nil })
	qt.Check(t, qt.Equals(execute(ctx, []string{"io", "--control", socket, "--interval", "100ms"}, seen, &ended), 0), qt.Commentf("%s", &ended))
	closing := writerFunc(func(b []byte) (int, error) { go s.Close(); return len(b), nil })
	qt.Check(t, qt.Equals(execute(t.Context(), []string{"io", "--control", socket, "--interval", "100ms"}, closing, &ended), 0), qt.Commentf("%s", &ended))
	qt.Check(t, qt.StringContains(ended.String(), "the agent stops"))
}

type writerFunc func([]byte) (int, error)

func (f writerFunc) Write(b []byte) (int, error) { return f(b) }
