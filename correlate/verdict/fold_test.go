package verdict

import (
	"math"
	"testing"
	"time"

	"github.com/go-quicktest/qt"

	"github.com/xenserver/dtagent/probes/event"
)

// Windows that are folded say the same as one that is as long.
func TestFold(t *testing.T) {
	qt.Check(t, qt.IsNil(Fold(nil)))
	w := newWorld(5, storages[3], 3)
	b := w.learned(20)
	in := added(w, 5, parts{event.LayerRunQueue: 1}, func(win *Window, d *Disk) {
		win.Host.Idle, d.Process.CPU = 0.02, 0.25
		win.Operations = []Operation{{Kind: "scan", ID: "R:1", SR: "sr", Start: time.Unix(1e9, 0)}}
		win.SRs[0].Paths = &Paths{Total: 2, Active: 2, Events: 1, Last: "sdb"}
		d.Emulated = &Emulated{Requests: 1}
	})
	var windows []*Window
	var n, ops uint64
	for range 30 {
		win := w.window(1, in)
		windows = append(windows, win)
		n += win.Disks[0].Requests[Read].Layers[event.LayerTotal].Count
		ops += win.SRs[0].NFS.Ops
	}
	all := Fold(windows)
	d := &all.Disks[0]
	qt.Check(t, qt.Equals(all.Duration, 30*time.Second))
	qt.Check(t, qt.HasLen(all.Disks, 3))
	qt.Check(t, qt.HasLen(all.Operations, 1))
	qt.Check(t, qt.Equals(d.Requests[Read].Layers[event.LayerTotal].Count, n))
	qt.Check(t, qt.IsTrue(math.Abs(d.Process.CPU-0.25) < 1e-9))
	qt.Check(t, qt.IsTrue(math.Abs(all.Host.Idle-0.02) < 1e-9))
	qt.Check(t, qt.Equals(all.SRs[0].NFS.Ops, ops))
	qt.Check(t, qt.Equals(all.SRs[0].Paths.Events, 30))
	qt.Check(t, qt.IsTrue(all.SRs[0].TCP.RTT > 50*time.Microsecond && all.SRs[0].TCP.RTT < time.Millisecond))
	qt.Check(t, qt.Equals(d.Emulated.Requests, 30))
	qt.Check(t, qt.Equals(d.Shm.Samples, 300))
	qt.Check(t, qt.Equals(d.Chain[0].Hits[Read], 30000))
	qt.Check(t, qt.Equals(windows[0].Disks[0].Chain[0].Hits[Read], 1000))
	qt.Check(t, qt.Equals(windows[0].SRs[0].NFS.Ops < ops, true))
	qt.Check(t, qt.Equals(b.Judge(all)[0].Cause, Dom0CPU))
}

// The buckets are those of the kernel side; cmd/dtagent/agent compares them with bpf's.
func TestBuckets(t *testing.T) {
	for i := range Buckets {
		from, to := Bucket(i)
		qt.Check(t, qt.Equals(BucketOf(from), i))
		qt.Check(t, qt.Equals(BucketOf(to-1), i))
	}
	qt.Check(t, qt.Equals(BucketOf(-1), 0))
	qt.Check(t, qt.Equals(BucketOf(time.Hour), Buckets-1))
	var h Hist
	for i := range 1000 {
		h.Observe(time.Duration(i) * time.Millisecond)
	}
	qt.Check(t, qt.Equals(h.Mean(), 499500*time.Microsecond))
	for _, q := range []float64{0.1, 0.5, 0.99, 1} {
		got, want := float64(h.Quantile(q)), 1e9*q
		qt.Check(t, qt.IsTrue(got > 0.93*want && got < 1.07*want), qt.Commentf("%v: %v", q, got))
	}
	n, sum := h.over(500 * time.Millisecond)
	qt.Check(t, qt.IsTrue(n > 450 && n <= 500), qt.Commentf("%d", n))
	qt.Check(t, qt.IsTrue(sum > 320*time.Second && sum < 400*time.Second), qt.Commentf("%s", sum))
}
