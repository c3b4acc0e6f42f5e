package judge

import (
	"context"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/go-quicktest/qt"

	"github.com/xenserver/dtagent/bpf"
	"github.com/xenserver/dtagent/correlate/verdict"
	"github.com/xenserver/dtagent/probes/event"
	"github.com/xenserver/dtagent/probes/guestio"
)

// disks are simulated: their time is that of their samples, not of the clock.
type disks struct {
	mu      sync.Mutex
	now     time.Time
	slow    time.Duration
	fail    error
	watched atomic.Int32
	samples atomic.Int32
}

func (d *disks) watch(context.Context) (Watch, error) {
	if d.fail != nil {
		return nil, d.fail
	}
	d.watched.Add(1)
	return &watcher{d}, nil
}

type watcher struct{ d *disks }

func (w *watcher) Close() { w.d.watched.Add(-1) }

// Sample is of 10 s each time.
func (w *watcher) Sample() *guestio.Sample {
	w.d.samples.Add(1)
	w.d.mu.Lock()
	defer w.d.mu.Unlock()
	w.d.now = w.d.now.Add(10 * time.Second)
	return &guestio.Sample{Time: w.d.now, Seconds: 10, VBDs: []guestio.VBD{
		{Domid: 1, Domain: "web", VMUUID: "u-1", Device: "xvda", Kind: "vbd", Seen: true, Read: guestio.IO{Interval: rates(1000, 400*time.Microsecond+w.d.slow, 300*time.Microsecond+w.d.slow)}},
		{Domid: 2, Domain: "new", Kind: "vbd3", Backend: "b"},
	}, Losses: []guestio.Loss{{Cause: "x", Count: uint64(w.d.samples.Load())}}}
}

func rates(n uint64, total, device time.Duration) guestio.Rates {
	latency := func(d time.Duration) *guestio.Latency {
		h := &bpf.Hist{Count: n, SumNs: n * uint64(d), MaxNs: 1 << 60}
		h.Bucket[verdict.BucketOf(d)] = uint32(n)
		return &guestio.Latency{Max: float64(d) / 1e3, Hist: h}
	}
	return guestio.Rates{Counts: guestio.Counts{Ops: n, Bytes: n * 4096, Done: n, Latency: latency(total), Device: latency(device)}}
}

// What is usual is learned while somebody watches, outlives the agent, and is what a
// verdict compares with.
func TestLearn(t *testing.T) {
	file := filepath.Join(t.TempDir(), "disks.json")
	d := &disks{now: time.Unix(1e9, 0)}
	j := New(Options{Watch: d.watch, File: file, Step: time.Millisecond})
	a, err := j.Watch(t.Context())
	qt.Assert(t, qt.IsNil(err))
	b, err := j.Watch(t.Context())
	qt.Assert(t, qt.IsNil(err))
	// A window that is learned has more samples than a test should wait for: it is taken by hand.
	w := d.learned(j, 12)
	qt.Check(t, qt.HasLen(w.Disks, 1))
	a.Close()
	a.Close()
	qt.Check(t, qt.Equals(d.watched.Load(), 2)) // b's, and who learns
	b.Close()
	qt.Check(t, qt.Equals(d.watched.Load(), 0))
	info, err := os.Stat(file)
	qt.Assert(t, qt.IsNil(err))
	qt.Check(t, qt.Equals(info.Mode().Perm(), 0o600))

	again := New(Options{Watch: d.watch, File: file, Step: time.Millisecond})
	d.mu.Lock()
	d.slow = 20 * time.Millisecond
	d.mu.Unlock()
	var told []time.Duration
	r, err := again.Verdict(t.Context(), 30*time.Second, func(d time.Duration) { told = append(told, d) })
	qt.Assert(t, qt.IsNil(err))
	qt.Check(t, qt.Equals(d.watched.Load(), 0))
	qt.Check(t, qt.DeepEquals(told, []time.Duration{10 * time.Second, 20 * time.Second, 30 * time.Second}))
	qt.Check(t, qt.Equals(r.Seconds, 30))
	qt.Assert(t, qt.HasLen(r.Findings, 1))
	f := &r.Findings[0]
	qt.Check(t, qt.Equals(f.Cause, verdict.Device), qt.Commentf("%s", f.Text()))
	qt.Check(t, qt.IsTrue(strings.HasPrefix(f.Against, "its own baseline")), qt.Commentf("%s", f.Against))
	qt.Check(t, qt.Equals(f.Requests, 3000))
	qt.Check(t, qt.HasLen(r.Unseen, 1))
	qt.Check(t, qt.Equals(r.Unseen[0].Why, "it is not watched yet"))
	qt.Check(t, qt.HasLen(r.Losses, 1))

	qt.Assert(t, qt.IsNil(os.WriteFile(file, []byte("{"), 0o600)))
	r, err = New(Options{Watch: d.watch, File: file, Step: time.Millisecond}).Verdict(t.Context(), 30*time.Second, nil)
	qt.Assert(t, qt.IsNil(err))
	qt.Check(t, qt.IsTrue(strings.HasPrefix(r.Findings[0].Against, "defaults")))
}

// What could not be written, since the disk was full, say, is written the next time.
func TestSaveAgain(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "state")
	d := &disks{now: time.Unix(1e9, 0)}
	j := New(Options{Watch: d.watch, File: filepath.Join(dir, "disks.json")})
	d.learned(j, 1)
	qt.Assert(t, qt.ErrorIs(j.save(), os.ErrNotExist))
	qt.Assert(t, qt.IsNil(os.Mkdir(dir, 0o700)))
	qt.Assert(t, qt.IsNil(j.save()))
	again := New(Options{Watch: d.watch, File: j.o.File})
	a, err := json.Marshal(&j.base)
	qt.Assert(t, qt.IsNil(err))
	b, err := json.Marshal(&again.base)
	qt.Assert(t, qt.IsNil(err))
	qt.Check(t, qt.Equals(string(b), string(a)))
}

func (d *disks) learned(j *Judge, windows int) *verdict.Window {
	var w *verdict.Window
	for range windows {
		w = Window((&watcher{d}).Sample())
		j.take(w)
	}
	return w
}

func TestVerdictFails(t *testing.T) {
	d := &disks{fail: errors.New("no xenstored")}
	j := New(Options{Watch: d.watch})
	_, err := j.Verdict(t.Context(), 10*time.Second, nil)
	qt.Check(t, qt.ErrorMatches(err, "no xenstored"))
	_, err = j.Verdict(t.Context(), time.Hour, nil)
	qt.Check(t, qt.ErrorMatches(err, "watch for 1h0m0s: a time from 1s to 10m0s"))
	d.fail = nil
	ended, stop := context.WithCancel(t.Context())
	stop()
	_, err = j.Verdict(ended, 10*time.Second, nil)
	qt.Check(t, qt.ErrorIs(err, context.Canceled))
	qt.Check(t, qt.Equals(d.watched.Load(), 0))
}

// Of the block layer's figures the layers add up to the total.
func TestWindow(t *testing.T) {
	s := (&watcher{&disks{now: time.Unix(1e9, 0)}}).Sample()
	w := Window(s)
	qt.Check(t, qt.Equals(w.Duration, 10*time.Second))
	qt.Check(t, qt.Equals(w.Start, time.Unix(1e9, 0)))
	l := &w.Disks[0].Requests[verdict.Read].Layers
	qt.Check(t, qt.Equals(l[event.LayerTotal].Sum, l[event.LayerQueue].Sum+l[event.LayerDevice].Sum))
	qt.Check(t, qt.Equals(l[event.LayerTotal].Max, 400*time.Microsecond))
	qt.Check(t, qt.Equals(w.Disks[0].ID, "vbd u-1 xvda"))
	s.VBDs[0].Read.Interval.Device = nil
	q := Window(s).Disks[0].Requests[verdict.Read]
	qt.Check(t, qt.Equals(q.Unsplit, 1000))
	qt.Check(t, qt.Equals(q.Layers[event.LayerDevice].Sum, q.Layers[event.LayerTotal].Sum))
	for i := range verdict.Buckets {
		from, to := bpf.DiskBucket(i)
		f, u := verdict.Bucket(i)
		qt.Check(t, qt.Equals(from, f))
		qt.Check(t, qt.Equals(to, u))
	}
}

func TestNames(t *testing.T) {
	w := verdict.Who{ID: "id", VM: "1f1c0000-1111", Name: "a/b", Device: "xvda", VBD: "7bd00000-1", SR: "5e000000-1"}
	for what, want := range map[string][3]bool{
		"1f1c0000": {true, false, false}, "1f1c000": {}, "a/b": {true, false, false}, "a/b/xvda": {false, true, false},
		"1f1c0000-1111/xvda": {false, true, false}, "7bd00000-1": {false, true, false}, "5e000000": {false, false, true}, "": {}, "a": {},
	} {
		qt.Check(t, qt.Equals([3]bool{IsVM(&w, what), IsVBD(&w, what), IsSR(&w, what)}, want), qt.Commentf("%q", what))
	}
}

// All that a sample says of a tapdisk, its host and its SR comes to the verdict.
func TestWindowOfTapdisk(t *testing.T) {
	c := &bpf.TapdiskStats{OwnIO: bpf.Hist{Count: 3, SumNs: 3e6}}
	r := &c.Requests[bpf.GuestWrite]
	r.Bytes, r.Failed, r.Merged, r.Unsplit = 4096, 1, 2, 3
	for l := range r.Layers {
		r.Layers[l] = bpf.Hist{Count: 9, SumNs: uint64(l) * 9000, MaxNs: 77}
		r.Layers[l].Bucket[5] = 9
	}
	s := &guestio.Sample{Time: time.Unix(1e9, 0), Seconds: 2, Host: &guestio.Host{Seconds: 2, CPUs: 4, Idle: 0.25, Steal: 0.125}, VBDs: []guestio.VBD{{
		Backend: "/b", Kind: "vbd3", Device: "xvda", VDI: "vdi", SR: "sr", SRType: "nfs", ImageType: "vhd", Images: []string{"leaf", "root"}, Server: "h:/p", Counted: c,
		Flush:   guestio.IO{Interval: guestio.Rates{Counts: guestio.Counts{Ops: 5}}},
		Ring:    &guestio.Ring{Size: 32, Occupied: 4, Waiting: 2, Full: 1, Samples: 4},
		Tapdisk: &guestio.Process{Seconds: 2, CPU: 0.5, RunQueue: 0.25, PausedSeconds: 1.5, Aside: 8, Busy: 7, MeanInFlight: 3, Write: guestio.Processed{Done: 9, MeanUs: 12}},
		QEMU:    &guestio.QEMU{CPU: 0.75},
	}}, SRs: []guestio.SR{{UUID: "sr", Type: "nfs", Server: "h:/p",
		NFS: &guestio.NFS{Read: guestio.RPC{Ops: 2, RTTUs: 10, BacklogUs: 1, Timeouts: 1}, Write: guestio.RPC{Ops: 1, RTTUs: 40, Retransmitted: 3}, Other: guestio.RPC{Ops: 99, RTTUs: 1e6}},
		TCP: []guestio.TCP{{Server: "192.0.2.1:2049", Connections: 1, RTTUs: 100, Segments: 5}, {Server: "192.0.2.2:2049", Connections: 3, RTTUs: 200, Segments: 6, Retransmitted: 2}},
	}}}
	w := Window(s)
	d := &w.Disks[0]
	qt.Check(t, qt.IsTrue(d.Layered))
	qt.Check(t, qt.Equals(d.ID, "/b"))
	qt.Check(t, qt.Equals(d.SR, "sr"))
	qt.Check(t, qt.Equals(d.Barriers, 0))
	qt.Check(t, qt.HasLen(d.Chain, 2))
	q := &d.Requests[verdict.Write]
	qt.Check(t, qt.DeepEquals([]uint64{q.Bytes, q.Failed, q.Merged, q.Unsplit}, []uint64{4096, 1, 2, 3}))
	qt.Check(t, qt.DeepEquals(q.Layers[event.LayerDevice], verdict.Hist{Count: 9, Sum: 9000 * time.Duration(event.LayerDevice), Max: 77, Buckets: []uint32{5: 9}}))
	qt.Check(t, qt.Equals(d.Own.Mean(), time.Millisecond))
	qt.Check(t, qt.DeepEquals(d.Ring, &verdict.Ring{Size: 32, Occupied: 4, Waiting: 2, Full: 0.25, Samples: 4}))
	qt.Check(t, qt.DeepEquals(d.Process, &verdict.Process{CPU: 0.5, RunQueue: 0.25, Paused: 1500 * time.Millisecond}))
	qt.Check(t, qt.DeepEquals(d.Shm, &verdict.Shm{Mean: [2]time.Duration{verdict.Write: 12 * time.Microsecond}, Done: [2]uint64{verdict.Write: 9}, Outstanding: 3, Samples: 7}))
	qt.Check(t, qt.DeepEquals(d.Emulated, &verdict.Emulated{Requests: 8, CPU: 0.75}))
	qt.Check(t, qt.DeepEquals(w.Host, &verdict.Host{CPUs: 4, Idle: 0.25, Steal: 0.125}))
	qt.Check(t, qt.DeepEquals(w.SRs[0].NFS, &verdict.NFS{Server: "h:/p", Ops: 3, RTT: 60 * time.Microsecond, Backlog: 2 * time.Microsecond, Retrans: 3, Timeouts: 1}))
	qt.Check(t, qt.DeepEquals(w.SRs[0].TCP, &verdict.TCP{Peer: "192.0.2.1:2049, 192.0.2.2:2049", RTT: 175 * time.Microsecond, Segments: 11, Retrans: 2}))
}
