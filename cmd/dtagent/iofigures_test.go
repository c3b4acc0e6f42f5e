package main

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/go-quicktest/qt"

	"github.com/xenserver/dtagent/probes/guestio"
	"github.com/xenserver/dtagent/testenv/xenstored"
)

func TestPrintFigures(t *testing.T) {
	s := &guestio.Sample{
		Time: time.Date(2026, 1, 2, 3, 5, 5, 0, time.UTC), Seconds: 2, Trouble: "no block I/O and no layers: operation not permitted",
		Host: &guestio.Host{Seconds: 2, CPUs: 4, Idle: 0.61, Steal: 0.012},
		VBDs: []guestio.VBD{{
			Domid: 5, Domain: "web", Devid: 51728, Device: "xvdb", Kind: guestio.Tapdisk,
			Ring: &guestio.Ring{Size: 32, Occupied: 31.6, Waiting: 12, Samples: 1},
			Tapdisk: &guestio.Process{
				PID: 4711, Seconds: 2, CPU: 0.42, RunQueue: 0.07, InFlight: 19, PausedSeconds: 0.25,
				Read: guestio.Processed{Total: 9000, Done: 2000, Bytes: 2000 * 4096, MeanUs: 9876}, Write: guestio.Processed{Total: 3},
			},
		}, {
			Domid: 5, Domain: "web", Devid: 51744, Device: "xvdc", Kind: guestio.Tapdisk, Tapdisk: &guestio.Process{PID: 4712, Paused: true},
		}, {
			Domid: 6, Domain: "b\x1b[2J", Devid: 51712, Kind: guestio.Blkback, Device: "xvda", Seen: true,
		}, {
			Domid: 7, Devid: 51712, Kind: guestio.Tapdisk, Why: "its backend has no tapdisk yet (kthread-pid)",
		}},
		SRs: []guestio.SR{{UUID: "5f2a", Type: "ext", Disks: 1}, {
			UUID: "7c1d", Type: "nfs", Server: "10.0.0.7:/export", Disks: 2,
			NFS: &guestio.NFS{Mount: "/run/sr-mount/7c1d", Seconds: 2, Read: guestio.RPC{Ops: 1990, BacklogUs: 12, RTTUs: 9000, ExecuteUs: 9100, Retransmitted: 3, Timeouts: 1}},
			TCP: []guestio.TCP{{Server: "10.0.0.7:2049", Connections: 1, RTTUs: 180, Segments: 4000, Retransmitted: 2}},
		}},
	}
	var out bytes.Buffer
	qt.Assert(t, qt.IsNil(printFigures(&out, s, time.UTC, false)))
	golden := filepath.Join("testdata", "figures.txt")
	if *update {
		qt.Assert(t, qt.IsNil(os.WriteFile(golden, out.Bytes(), 0o644)))
	}
	want, err := os.ReadFile(golden)
	qt.Assert(t, qt.IsNil(err))
	qt.Check(t, qt.Equals(out.String(), string(want)))
	qt.Check(t, qt.IsFalse(strings.Contains(out.String(), "\x1b")))
}

// Without an agent.
func TestIODirect(t *testing.T) {
	dir := t.TempDir()
	socket := filepath.Join(dir, "xenstored")
	code, _, stderr := dtagent("io", "--direct", "--xenstore", socket, "--once")
	qt.Check(t, qt.Equals(code, exitFailed), qt.Commentf(stderr))
	qt.Check(t, qt.StringContains(stderr, "no xenstored answers"))
	store, err := xenstored.Start(socket)
	qt.Assert(t, qt.IsNil(err))
	defer store.Close()
	store.SetAll("/local/domain/0/backend/vbd3/4005/51728", map[string]string{"mode": "w"})
	code, out, stderr := dtagent("io", "--direct", "--xenstore", socket, "--interval", "100ms", "--count", "2")
	qt.Check(t, qt.Equals(code, 0), qt.Commentf(stderr))
	qt.Check(t, qt.Equals(strings.Count(out, "4005 xvdb: its backend has no tapdisk yet"), 2), qt.Commentf("%s", out))
	qt.Check(t, qt.StringContains(out, "trouble: no block I/O and no layers: eBPF is not used"))
	code, out, _ = dtagent("io", "--direct", "--xenstore", socket, "--interval", "100ms", "--once", "--json")
	qt.Check(t, qt.Equals(code, 0))
	qt.Check(t, qt.StringContains(out, `"device":"xvdb"`))
	for _, args := range [][]string{{"--direct", "--layers"}, {"--xenstore", socket}, {"--figures", "--totals"}, {"--direct", "--verdict", "all"}} {
		code, _, stderr := dtagent(append([]string{"io"}, args...)...)
		qt.Check(t, qt.Equals(code, exitUsage), qt.Commentf("%q: %s", args, stderr))
	}
}
