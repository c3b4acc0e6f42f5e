//go:build linux

package tapdisk_test

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"github.com/go-quicktest/qt"

	"github.com/xenserver/dtagent/testenv/tapdisk"
)

func TestMain(m *testing.M) {
	tapdisk.Main()
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

func TestRaw(t *testing.T) {
	for _, l := range []tapdisk.Load{
		{Requests: 200},
		{Requests: 2000, Depth: 16, Random: true, Reads: 2, Writes: 1},
		{Requests: 2000, Depth: 32, Size: 45056, Reads: 2, Writes: 1, Barriers: 0.1},
	} {
		d := start(t, tapdisk.Options{Image: rawFile(t, 64<<20)})
		res, err := d.Guest().Run(t.Context(), l)
		qt.Assert(t, qt.IsNil(err))
		qt.Check(t, qt.Equals(len(res.Requests), l.Requests))
		qt.Check(t, qt.Equals(res.Failed, 0))
		for _, op := range []tapdisk.Op{tapdisk.Read, tapdisk.Write, tapdisk.Barrier} {
			t.Logf("%v: %d, median %v, 99%% %v", op, len(res.Latency[op]), res.Latency[op].At(0.5), res.Latency[op].At(0.99))
		}
		t.Logf("%d kicks in %v", res.Kicks, res.Took)
	}
}
