//go:build linux

package tapdisk_test

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/go-quicktest/qt"

	"github.com/xenserver/dtagent/testenv/tapdisk"
)

// orphanEnv is the variable that makes a test's process start a disk of that image, and
// wait to be killed.
const orphanEnv = "DTAGENT_TAPDISK_ORPHAN"

func TestMain(m *testing.M) {
	tapdisk.Main()
	if pid := os.Getenv(tracerEnv); pid != "" {
		traceMain(pid)
		return
	}
	if image := os.Getenv(orphanEnv); image != "" {
		d, err := tapdisk.Start(context.Background(), tapdisk.Options{Image: image})
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		fmt.Println(d.PID())
		select {}
	}
	os.Exit(m.Run())
}

// rawFile makes an image of type aio.
func rawFile(t testing.TB, size int64) string {
	t.Helper()
	name := filepath.Join(t.TempDir(), "disk")
	qt.Assert(t, qt.IsNil(os.WriteFile(name, nil, 0o600)))
	qt.Assert(t, qt.IsNil(os.Truncate(name, size)))
	return name
}

func start(t testing.TB, o tapdisk.Options) *tapdisk.Disk {
	t.Helper()
	d, err := tapdisk.Start(t.Context(), o)
	qt.Assert(t, qt.IsNil(err))
	t.Cleanup(func() { qt.Check(t, qt.IsNil(d.Close())) })
	return d
}

func TestProcess(t *testing.T) {
	d := start(t, tapdisk.Options{Image: rawFile(t, 64<<20)})
	comm, err := os.ReadFile(fmt.Sprintf("/proc/%d/comm", d.PID()))
	qt.Assert(t, qt.IsNil(err))
	qt.Check(t, qt.Equals(string(comm), "tapdisk\n"))
	argv, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", d.PID()))
	qt.Assert(t, qt.IsNil(err))
	qt.Check(t, qt.Equals(string(argv), "tapdisk\x00"))
}

// loads are of all kinds.
var loads = map[string]tapdisk.Load{
	"one":   {Requests: 200, Reads: 2, Writes: 1, Random: true, Check: true},
	"many":  {Requests: 1000, Depth: 32, Random: true, Reads: 2, Writes: 1, Check: true},
	"large": {Requests: 500, Depth: 32, Size: 45056, Reads: 2, Writes: 1, Random: true, Align: 4096, Check: true},
	"mixed": {Requests: 500, Depth: 16, Size: 8192, Reads: 1, Writes: 1, Barriers: 0.1, Check: true},
}

func TestLoads(t *testing.T) {
	for name, l := range loads {
		for kind, o := range map[string]tapdisk.Options{
			"raw": {}, "select": {Select: true}, "ring": {RingPages: 8}, "polling": {Polling: time.Millisecond},
			"crowded": {Type: tapdisk.VHD, RingPages: 8}, // more requests than bitmaps that can be cached
			"vhd":     {Type: tapdisk.VHD}, "chain": {Type: tapdisk.VHD, Chain: []string{"1", "2"}},
		} {
			t.Run(kind+"/"+name, func(t *testing.T) {
				l, o := l, o
				if o.Type == tapdisk.VHD {
					dir := t.TempDir()
					o.Image = filepath.Join(dir, "leaf")
					qt.Assert(t, qt.IsNil(tapdisk.CreateVHD(o.Image, tapdisk.Content{Size: 128 << 20, Blocks: 0.5, Batmap: true, Child: len(o.Chain) > 0})))
					chain := o.Chain
					o.Chain = nil
					for i := range chain {
						parent := filepath.Join(dir, fmt.Sprintf("parent%d", i))
						qt.Assert(t, qt.IsNil(tapdisk.CreateVHD(parent, tapdisk.Content{Size: 128 << 20, Blocks: 0.5, Sectors: 0.5, Seed: uint64(i + 1), Child: i+1 < len(chain)})))
						o.Chain = append(o.Chain, parent)
					}
				} else {
					o.Image = rawFile(t, 128<<20)
				}
				if o.RingPages == 8 {
					l.Depth *= 8
				}
				l.Span = 128 << 20
				d := start(t, o)
				for range 2 {
					l.Seed++
					res, err := d.Guest().Run(t.Context(), l)
					qt.Assert(t, qt.IsNil(err))
					qt.Check(t, qt.Equals(len(res.Requests), l.Requests))
					qt.Check(t, qt.Equals(res.Failed, 0))
					qt.Check(t, qt.Equals(res.Wrong, 0))
					for _, r := range res.Requests {
						if r.Enqueued > r.Taken || r.Taken > r.Queued || r.Queued > r.Picked || r.Picked > r.Answered || r.Answered > r.Seen {
							t.Fatalf("times do not go on: %+v", r)
						}
						if r.IOs > 0 && (r.Queued > r.Submit || r.Submit > r.Returned || r.Returned > r.Picked) {
							t.Fatalf("times of I/O do not go on: %+v", r)
						}
					}
				}
			})
		}
	}
}
