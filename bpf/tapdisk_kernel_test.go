//go:build linux

package bpf

import (
	"errors"
	"maps"
	"testing"
	"time"

	"github.com/go-quicktest/qt"

	"github.com/xenserver/dtagent/testenv/fault"
	"github.com/xenserver/dtagent/testenv/tapdisk"
)

// tap is a tapdisk that stands in for one, on a loop device, and is watched.
type tapOf struct {
	*tapdisk.Disk
	c     *collector
	pid   uint32
	slots []uint32
}

// startTap starts one; every request that it serves is told of.
func startTap(t *testing.T, c *collector, o tapdisk.Options) *tapOf {
	t.Helper()
	if o.Image == "" && o.Device == nil {
		o.Image = newLoop(t, plainFile(t, t.TempDir(), diskSize)).Path
	}
	d, err := tapdisk.Start(t.Context(), o)
	qt.Assert(t, qt.IsNil(err))
	t.Cleanup(func() { qt.Check(t, qt.IsNil(d.Close())) })
	k := watchTap(t, c, d)
	t.Cleanup(k.forget)
	return k
}

func watchTap(t *testing.T, c *collector, d *tapdisk.Disk) *tapOf {
	t.Helper()
	k := &tapOf{Disk: d, c: c, pid: uint32(d.PID())}
	qt.Assert(t, qt.IsNil(c.s.Attach(Tapdisk)))
	for _, image := range append([]string{d.Image}, d.Chain...) {
		dev := deviceBehind(t, image)
		slot, err := c.s.AddDisk([]DiskSource{{TGID: k.pid, Dev: dev, Whole: dev}})
		if err != nil {
			qt.Assert(t, qt.ErrorIs(err, ErrDiskTaken)) // its parents are on the same
			continue
		}
		k.slots = append(k.slots, slot)
	}
	qt.Assert(t, qt.IsNil(c.s.AddTapdisk(k.pid, TapdiskConfig{Sample: 1})))
	return k
}

// forget ends the watching.
func (k *tapOf) forget() {
	for _, slot := range k.slots {
		qt.Check(k.c.t, qt.IsNil(k.c.s.RemoveDisk(slot)))
	}
	qt.Check(k.c.t, qt.IsNil(k.c.s.RemoveTapdisk(k.pid)))
}

// stats are the figures until now.
func (k *tapOf) stats() TapdiskStats {
	k.c.t.Helper()
	var out TapdiskStats
	qt.Assert(k.c.t, qt.IsNil(k.c.s.TapdiskStats(k.pid, &out)))
	return out
}

// serve has the guest do something, and returns what it saw and what was told of it.
func (k *tapOf) serve(l tapdisk.Load) (tapdisk.Result, []RequestRec) {
	k.c.t.Helper()
	k.c.reset(k.c.t)
	res, err := k.Guest().Run(k.c.t.(*testing.T).Context(), l)
	qt.Assert(k.c.t, qt.IsNil(err))
	k.round()
	k.c.settle()
	var recs []RequestRec
	for _, r := range k.c.all() {
		if r.Kind == KindRequest && r.TGID == k.pid {
			recs = append(recs, r.Request)
		}
	}
	return res, recs
}

// round waits until the tapdisk has begun another round, so that all is counted of the
// one in which its last request was done.
func (k *tapOf) round() {
	k.c.t.Helper()
	_, err := k.Guest().Run(k.c.t.(*testing.T).Context(), tapdisk.Load{Requests: 1, Barriers: 1})
	qt.Assert(k.c.t, qt.IsNil(err))
}

// check compares what was told of requests with what the guest and the tapdisk know of
// them: each is told of once, and the times of the two lie within each other.
func (k *tapOf) check(res tapdisk.Result, recs []RequestRec) {
	t := k.c.t
	t.Helper()
	reqs := res.Requests
	done := func(q *tapdisk.Request) int64 {
		if k.Type == tapdisk.VHD && q.Op == tapdisk.Write { // its bitmap may be written after its data, which is not seen
			return q.Submit
		}
		return q.Answered
	}
	qt.Check(t, qt.HasLen(recs, len(reqs)))
	fits := make([][]int, len(recs)) // the requests that each can be of
	for i := range recs {
		r := &recs[i]
		var sum uint64
		for _, ns := range r.Layer[1:] {
			sum += ns
		}
		qt.Check(t, qt.Equals(r.Layer[0], r.Last-r.First))
		qt.Check(t, qt.Equals(sum, r.Layer[0]), qt.Commentf("layers %v", r.Layer))
		for j := range reqs {
			q := &reqs[j]
			if (q.Op == tapdisk.Write) == (r.Flags&RequestWrite != 0) && uint32(q.Bytes) == r.Bytes &&
				(k.Type != tapdisk.Raw || r.Flags&RequestMerged != 0 || uint64(q.Offset) == r.Offset) &&
				int64(r.First) <= q.Taken && done(q) <= int64(r.Last) { // the guest may see the answer before it is told of it
				fits[i] = append(fits[i], j)
			}
		}
	}
	// One for each: who has none left takes another's that has a choice.
	of := make([]int, len(reqs))
	for j := range of {
		of[j] = -1
	}
	var find func(i int, seen []bool) bool
	find = func(i int, seen []bool) bool {
		for _, j := range fits[i] {
			if !seen[j] {
				seen[j] = true
				if of[j] < 0 || find(of[j], seen) {
					of[j] = i
					return true
				}
			}
		}
		return false
	}
	for i := range recs {
		if !find(i, make([]bool, len(reqs))) {
			t.Errorf("no request is %+v", recs[i])
		}
	}
	for j, i := range of {
		if i < 0 {
			t.Errorf("not told of: %+v", reqs[j])
		}
	}
}

func TestTapdiskKernel(t *testing.T) {
	inTiers(t, func(t *testing.T, c *collector) {
		k := startTap(t, c, tapdisk.Options{})
		for name, l := range map[string]tapdisk.Load{
			"reads, one by one":  {Requests: 200, Random: true},
			"writes, one by one": {Requests: 200, Random: true, Writes: 1, Reads: 1e-9},
			"both, deep":         {Requests: 1000, Random: true, Reads: 1, Writes: 1, Depth: 24},
			"both, large":        {Requests: 300, Random: true, Reads: 1, Writes: 1, Depth: 8, Size: 44 << 10},
			"one after another":  {Requests: 500, Reads: 1, Writes: 1, Depth: 16},
			"sectors":            {Requests: 300, Random: true, Reads: 1, Writes: 1, Depth: 8, Size: 1536, Align: 512},
		} {
			before := k.stats()
			res, recs := k.serve(l)
			k.check(res, recs)
			after := k.stats()
			for op := range after.Requests {
				a, b := &after.Requests[op], &before.Requests[op]
				want := uint64(len(res.Latency[op]))
				qt.Check(t, qt.Equals(a.Bytes-b.Bytes, want*uint64(max(l.Size, 4096*btoi(l.Size == 0)))), qt.Commentf(name))
				for layer := range a.Layers {
					qt.Check(t, qt.Equals(a.Layers[layer].Count-b.Layers[layer].Count, want), qt.Commentf("%s: layer %d", name, layer))
				}
				t.Logf("%s: op %d: %d requests, %d merged, %d unsplit", name, op, want, a.Merged-b.Merged, a.Unsplit-b.Unsplit)
			}
			c.noLosses()
		}
		qt.Check(t, qt.Equals(k.stats().OwnIO.Count, 0)) // a raw image has nothing but the guest's data
	})
}

func btoi(b bool) int {
	if b {
		return 1
	}
	return 0
}

// What a VHD's tables take is no guest's I/O, and who waits for it is told so.
func TestTapdiskMetadataKernel(t *testing.T) {
	inTiers(t, func(t *testing.T, c *collector) {
		const size = 64 << 20
		l := newLoop(t, plainFile(t, t.TempDir(), size+8<<20))
		qt.Assert(t, qt.IsNil(tapdisk.CreateVHD(l.Path, tapdisk.Content{Size: size, Blocks: 1, Sectors: 1})))
		for _, depth := range []int{1, 8} {
			d, err := tapdisk.Start(t.Context(), tapdisk.Options{Image: l.Path, Type: tapdisk.VHD})
			qt.Assert(t, qt.IsNil(err))
			k := watchTap(t, c, d)
			k.serve(tapdisk.Load{Requests: 8, Random: true, Span: 16 << 20}) // until here a buffer of its own might be a guest's
			before := k.stats()
			res, recs := k.serve(tapdisk.Load{Requests: 200, Random: true, Span: size, Depth: depth, Seed: uint64(depth)})
			k.check(res, recs)
			after := k.stats()
			var waited, alone uint64
			for _, q := range res.Requests {
				waited += uint64(q.Metadata)
			}
			for _, r := range recs {
				if r.Layer[layerMetadata] == 0 {
					alone++
				}
			}
			own := after.OwnIO.Count - before.OwnIO.Count
			t.Logf("depth %d: %d reads of tables, %d waits for one; %d of %d requests waited for none", depth, own, waited, alone, len(recs))
			qt.Check(t, qt.IsTrue(own > 0))
			qt.Check(t, qt.Equals(after.Requests[GuestRead].Layers[0].Count-before.Requests[GuestRead].Layers[0].Count, 200))
			if depth > 1 { // others may have waited for the same
				qt.Check(t, qt.IsTrue(own <= waited))
			} else {
				qt.Check(t, qt.Equals(own, waited))
				qt.Check(t, qt.Equals(alone, 200-waited))
			}
			c.noLosses()
			k.forget()
			qt.Check(t, qt.IsNil(d.Close()))
		}
	})
}

// All requests are told of also where writes need room in the image, and what it does
// not have is in its parent.
func TestTapdiskChainKernel(t *testing.T) {
	inTiers(t, func(t *testing.T, c *collector) {
		const size = 64 << 20
		image := func(o tapdisk.Content) string {
			l := newLoop(t, plainFile(t, t.TempDir(), size+8<<20))
			o.Size = size
			qt.Assert(t, qt.IsNil(tapdisk.CreateVHD(l.Path, o)))
			return l.Path
		}
		k := startTap(t, c, tapdisk.Options{
			Type:  tapdisk.VHD,
			Image: image(tapdisk.Content{Blocks: 0.5, Sectors: 0.3, Child: true}),
			Chain: []string{image(tapdisk.Content{Blocks: 1, Sectors: 1})},
		})
		for _, depth := range []int{1, 8} {
			res, recs := k.serve(tapdisk.Load{Requests: 200, Random: true, Reads: 1, Writes: 1, Span: size, Depth: depth, Seed: uint64(depth)})
			k.check(res, recs)
			c.noLosses()
		}
	})
}

// layerMetadata is DT_L_METADATA, and so on.
const (
	layerRunQueue = 1
	layerTapdisk  = 2
	layerMetadata = 3
	layerCopy     = 4
	layerSubmit   = 5
	layerQueue    = 6
	layerDevice   = 7
)

// The time of a slow device is told to be its, whatever makes it slow.
func TestTapdiskDeviceKernel(t *testing.T) {
	for _, kind := range slowDisks {
		t.Run(kind, func(t *testing.T) {
			openKernel(t, Legacy, Options{})
			d, err := fault.Open(t.Context(), kind, fault.Options{Delay: injectedDelay})
			if missing := (*fault.MissingError)(nil); errors.As(err, &missing) {
				t.Skip(err)
			}
			qt.Assert(t, qt.IsNil(err))
			t.Cleanup(func() { qt.Check(t, qt.IsNil(d.Close())) })
			inTiers(t, func(t *testing.T, c *collector) {
				k := startTap(t, c, tapdisk.Options{Image: d.Path()})
				_, recs := k.serve(tapdisk.Load{Requests: 10, Random: true, Reads: 1, Writes: 1, Span: 4 << 20})
				qt.Check(t, qt.HasLen(recs, 10))
				var unsplit uint64
				for _, r := range recs {
					if r.Flags&RequestUnsplit != 0 {
						unsplit++
						continue
					}
					// The clock of a driver's timer is not ours: half of the delay is surely its.
					took := r.Layer[layerDevice]
					if d.Layer() == fault.DeviceMapper { // from Linux 5.18 on it is seen when that hands it on
						took += r.Layer[layerQueue]
					}
					if r.First == 0 || took < uint64(injectedDelay/2) {
						t.Errorf("%+v", r)
					}
				}
				var unseen uint64 // ends that the legacy tier missed, see inFlight; the modern one misses none
				if c.s.tier == Legacy {
					for _, slot := range k.slots {
						unseen += c.inFlight(slot, DiskRead) + c.inFlight(slot, DiskWrite)
					}
				}
				if unsplit > unseen {
					t.Errorf("%d requests are not split, and the ends of %d pieces of I/O were missed", unsplit, unseen)
				}
				c.noLosses()
			})
		})
	}
}

// mean is the mean of a layer over the requests of both kinds, in ns.
func (k *tapOf) mean(recs []RequestRec, layer int) uint64 {
	var sum uint64
	for i := range recs {
		sum += recs[i].Layer[layer]
	}
	return sum / uint64(max(1, len(recs)))
}

// Time that is lost in a layer is told to be lost there.
func TestTapdiskLayersKernel(t *testing.T) {
	const vhdSize = 48 << 20
	for _, inject := range []struct {
		what   tapdisk.Layer
		size   time.Duration
		device string // kind of fault.Device; "": none
		layer  int
		least  time.Duration // mean of it, or most when the CPU is taken away now and then
		load   tapdisk.Load
		o      tapdisk.Options
	}{
		{what: tapdisk.Device, size: injectedDelay, device: "loop-fuse", layer: layerDevice, least: injectedDelay / 2, load: tapdisk.Load{Requests: 40, Depth: 4}},
		{what: tapdisk.Queue, size: injectedDelay, device: "throttle", layer: layerQueue, least: injectedDelay / 2, load: tapdisk.Load{Requests: 40, Depth: 4}},
		{what: tapdisk.Submit, size: injectedDelay, device: "loop-fuse", layer: layerSubmit, least: injectedDelay, load: tapdisk.Load{Requests: 96, Depth: 32}},
		{what: tapdisk.RunQueue, size: injectedDelay, layer: layerRunQueue, least: injectedDelay / 4, load: tapdisk.Load{Time: 30 * injectedDelay}},
		{what: tapdisk.Busy, size: injectedDelay / 10, layer: layerTapdisk, least: injectedDelay / 10, load: tapdisk.Load{Requests: 100, Depth: 4}},
		{what: tapdisk.Copy, size: injectedDelay, layer: layerCopy, least: injectedDelay, load: tapdisk.Load{Requests: 40}, o: tapdisk.Options{SlowCopy: true}},
		{what: tapdisk.Metadata, size: 1, device: "loop-fuse", layer: layerMetadata, least: injectedDelay / 2, load: tapdisk.Load{Requests: 40}, o: tapdisk.Options{Type: tapdisk.VHD}},
	} {
		t.Run(string(inject.what), func(t *testing.T) {
			openKernel(t, Legacy, Options{})
			o := inject.o
			if inject.device != "" {
				d, err := fault.Open(t.Context(), inject.device, fault.Options{Size: 64 << 20})
				if missing := (*fault.MissingError)(nil); errors.As(err, &missing) {
					t.Skip(err)
				}
				qt.Assert(t, qt.IsNil(err))
				t.Cleanup(func() { qt.Check(t, qt.IsNil(d.Close())) })
				if o.Type == tapdisk.VHD {
					qt.Assert(t, qt.IsNil(tapdisk.CreateVHD(d.Path(), tapdisk.Content{Size: vhdSize, Blocks: 1, Sectors: 1})))
				}
				o.Device = d
			}
			inTiers(t, func(t *testing.T, c *collector) {
				k := startTap(t, c, o)
				inject.load.Random, inject.load.Span = true, 40<<20
				if o.Type != tapdisk.VHD {
					inject.load.Reads, inject.load.Writes = 1, 1
				}
				warm := inject.load
				warm.Requests, warm.Time, warm.Depth = 64, 0, 4
				_, healthy := k.serve(warm)
				if inject.what == tapdisk.Metadata { // takes what the device does
					qt.Assert(t, qt.IsNil(k.Inject(tapdisk.Device, injectedDelay)))
				}
				qt.Assert(t, qt.IsNil(k.Inject(inject.what, inject.size)))
				_, slow := k.serve(inject.load)
				qt.Assert(t, qt.IsNil(k.Inject(inject.what, 0)))
				if inject.what == tapdisk.Metadata {
					qt.Assert(t, qt.IsNil(k.Inject(tapdisk.Device, 0)))
				}
				qt.Assert(t, qt.IsTrue(len(slow) > 0))
				var before, after [NumLayers]time.Duration
				for l := range NumLayers {
					before[l], after[l] = time.Duration(k.mean(healthy, l)), time.Duration(k.mean(slow, l))
				}
				t.Logf("without: %v", before)
				t.Logf("with:    %v", after)
				got := after[inject.layer]
				if inject.what == tapdisk.RunQueue {
					got = 0
					for i := range slow {
						got = max(got, time.Duration(slow[i].Layer[inject.layer]))
					}
				}
				if got < inject.least {
					t.Errorf("layer %d: %v, at least %v was injected", inject.layer, got, inject.least)
				}
				c.noLosses()
			})
		})
	}
}

// A probe that is loaded again since it could not be the first time counts its runs
// where it would have.
func TestChosenAgainKernel(t *testing.T) {
	c := collect(t, openKernel(t, Legacy, Options{}))
	spec, err := specOf(Legacy, Tapdisk)
	qt.Assert(t, qt.IsNil(err))
	c.s.chosen(Tapdisk, spec.Programs)
	before := maps.Clone(c.s.runs)
	c.s.chosen(Tapdisk, spec.Programs)
	qt.Check(t, qt.DeepEquals(c.s.runs, before))
	entries := map[uint32]bool{}
	for _, entry := range c.s.runs {
		qt.Check(t, qt.IsFalse(entries[entry]))
		entries[entry] = true
	}
}
