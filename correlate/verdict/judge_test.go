package verdict

import (
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/go-quicktest/qt"

	"github.com/xenserver/dtagent/probes/event"
)

// What is compared with what, and what is said then.
func TestFindings(t *testing.T) {
	slow := func(l event.Layer, ms float64) func(*world) map[string]*injected {
		return func(w *world) map[string]*injected {
			in := &injected{}
			in.add[l] = ms * 1e6
			return map[string]*injected{"d0": in}
		}
	}
	all := func(l event.Layer, ms float64) func(*world) map[string]*injected {
		return func(w *world) map[string]*injected {
			m := map[string]*injected{}
			for _, g := range w.guests {
				in := &injected{}
				in.add[l] = ms * 1e6
				m[g.id] = in
			}
			return m
		}
	}
	change := func(fn func(*Window, *Disk)) func(*world) map[string]*injected {
		return func(w *world) map[string]*injected { return changed(w, fn) }
	}
	few := func(w *Window, d *Disk) {
		for op := range d.Requests {
			r := &d.Requests[op]
			r.Bytes = 0
			for l := range r.Layers {
				r.Layers[l] = Hist{}
			}
		}
	}
	for _, c := range []struct {
		name    string
		at      int
		learned int // windows, of all disks
		forget  bool
		in      func(*world) map[string]*injected
		before  func(*world) // the window that is judged
		cause   Cause
		layer   string
		against string
		says    string
	}{
		{name: "a new disk among known ones", at: 1, learned: 10, forget: true, in: slow(event.LayerDevice, 40), cause: Device, layer: "device", against: "3 other disks of the SR (3 by their baselines)"},
		{name: "new disks, one is slow", at: 1, in: slow(event.LayerRunQueue, 40), cause: Dom0CPU, layer: "runq", against: "3 other disks of the SR (0 by their baselines)"},
		{name: "new disks, all are slow", at: 1, in: all(event.LayerDevice, 300), cause: Device, layer: "device", against: "defaults", says: "3 of 3 other disks of the SR are slow there as well"},
		{name: "new disks, all wait for dom0", at: 1, in: all(event.LayerRunQueue, 300), cause: Dom0CPU, layer: "runq", against: "defaults"},
		{name: "new disks, all are fine", at: 1, cause: Healthy, against: "3 other disks"},
		{name: "too few windows", at: 1, learned: needWindows - 1, cause: Healthy, against: "3 other disks"},
		{name: "another size", at: 0, learned: 20, before: func(w *world) { w.guests[0].bytes = 44 << 10 }, in: slow(event.LayerDevice, 5), cause: Device, layer: "device", against: "another size"},
		{name: "too few requests", at: 1, learned: 20, in: change(few), cause: TooFew},
		{name: "one long request", at: 1, learned: 20, cause: Device, layer: "device", says: "1 of", in: func(w *world) map[string]*injected {
			return map[string]*injected{"d0": {stuck: 1, stuckIn: event.LayerDevice, stuckFor: 7 * time.Second}}
		}},
		{name: "as long as iSCSI waits for a path", at: 1, learned: 20, cause: PathFailover, layer: "device", says: "about the 15s after which", in: func(w *world) map[string]*injected {
			return map[string]*injected{"d0": {stuck: 4, stuckIn: event.LayerDevice, stuckFor: 15 * time.Second}}
		}},
		{name: "the image's own I/O waits for the device", at: 1, learned: 20, cause: Device, layer: "device", says: "the image's own I/O is as slow", in: func(w *world) map[string]*injected {
			in := &injected{}
			in.add[event.LayerDevice], in.add[event.LayerMetadata] = 4e6, 7e6
			return map[string]*injected{"d0": in}
		}},
		{name: "full ring", at: 1, learned: 20, cause: QueueLimit, layer: "ring", says: "the ring of 32 requests was full in 50 %", in: change(func(_ *Window, d *Disk) { d.Ring.Waiting, d.Ring.Full = 6, 0.5 })},
		{name: "paused while nothing was in dom0", at: 1, learned: 20, cause: Pause, layer: "ring", says: "paused for 2.00 s", in: change(func(_ *Window, d *Disk) { d.Process.Paused = 2 * time.Second })},
		{name: "NFS without TCP", at: 3, learned: 20, cause: Device, layer: "device", says: "whether it is the server or the network is not known", in: func(w *world) map[string]*injected {
			m := all(event.LayerDevice, 20)(w)
			m["d0"].change = func(win *Window, _ *Disk) { win.SRs[0].TCP = nil }
			return m
		}},
		{name: "block layer only", at: 0, learned: 20, before: nil, in: change(func(_ *Window, d *Disk) { d.Layered, d.Backend = false, "vbd" }), cause: Healthy, says: "only the block layer and below are seen"},
		{name: "spread over layers", at: 1, learned: 20, cause: Unknown, layer: "metadata", says: "the time is spread over layers", in: func(w *world) map[string]*injected {
			in := &injected{}
			for _, l := range []event.Layer{event.LayerRunQueue, event.LayerMetadata, event.LayerCopy, event.LayerSubmit} {
				in.add[l] = 2e6
			}
			in.add[event.LayerMetadata] *= 1.3
			return map[string]*injected{"d0": in}
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			w := newWorld(9, storages[c.at], 4)
			w.each(func(g *guest) { g.closed, g.depth, g.bytes = true, 4, 4096 })
			b := w.learned(c.learned)
			if c.forget {
				delete(b.disks, "d0")
			}
			if c.before != nil {
				c.before(w)
			}
			var in map[string]*injected
			if c.in != nil {
				in = c.in(w)
			}
			f := &b.Judge(w.window(30, in))[0]
			qt.Check(t, qt.Equals(f.Cause, c.cause), qt.Commentf("%s", f.Text()))
			qt.Check(t, qt.Equals(f.Layer, c.layer), qt.Commentf("%s", f.Text()))
			qt.Check(t, qt.StringContains(f.Against, c.against))
			qt.Check(t, qt.IsTrue(c.says == "" || slices.ContainsFunc(f.Evidence, func(e string) bool { return strings.Contains(e, c.says) })), qt.Commentf("%s", f.Text()))
		})
	}
}

// A slow time is not learned, and what is learned from one that was not known for it
// does no harm while it is a small part.
func TestLearnsHealth(t *testing.T) {
	w := newWorld(2, storages[1], 3)
	w.each(func(g *guest) { g.closed, g.depth = true, 2 })
	in := func() map[string]*injected {
		in := &injected{}
		in.add[event.LayerDevice] = 8e6
		return map[string]*injected{"d0": in, "d1": in, "d2": in}
	}
	b := &Baselines{}
	for i := range 30 { // 8 ms more pass for fine where nothing is known
		var what map[string]*injected
		if i%12 == 0 {
			what = in()
		}
		win := w.window(10, what)
		found := b.Judge(win)
		b.Learn(win, found)
	}
	slow := w.window(10, in())
	before := usualOf(b.disks["d0"].Ops[Read][sizeOf(&slow.Disks[0].Requests[Read])].Kept, 0)
	for range 200 {
		win := w.window(10, in())
		found := b.Judge(win)
		qt.Assert(t, qt.Equals(found[0].Cause, Device), qt.Commentf("%s", found[0].Text()))
		b.Learn(win, found)
	}
	qt.Check(t, qt.Equals(usualOf(b.disks["d0"].Ops[Read][sizeOf(&slow.Disks[0].Requests[Read])].Kept, 0), before))
}

// Who is less sure says so.
func TestConfidence(t *testing.T) {
	w := newWorld(4, storages[0], 2)
	w.each(func(g *guest) { g.closed, g.depth, g.bytes = true, 2, 4096 })
	b := w.learned(30)
	in := &injected{}
	in.add[event.LayerDevice] = 3e6
	judge := func(change func(*Disk)) float64 {
		win := w.window(30, map[string]*injected{"d0": in})
		change(&win.Disks[0])
		f := &b.Judge(win)[0]
		qt.Assert(t, qt.Equals(f.Cause, Device))
		return f.Confidence
	}
	sure := judge(func(*Disk) {})
	qt.Check(t, qt.IsTrue(sure >= 0.8), qt.Commentf("%v", sure))
	qt.Check(t, qt.IsTrue(judge(func(d *Disk) { d.Lost = 1 << 20 }) < sure))
	qt.Check(t, qt.IsTrue(judge(func(d *Disk) {
		d.Requests[Read].Unsplit = d.Requests[Read].Layers[0].Count
		d.Requests[Write].Unsplit = 1 << 20
	}) < sure))
	qt.Check(t, qt.IsTrue(judge(func(d *Disk) { d.Shm, d.Ring = nil, nil }) < sure))
}

// A few windows in which a busy host was in the way do not hide what is slower than
// any of them by far.
func TestNoisyBaseline(t *testing.T) {
	windows := make([]seen, 15)
	for i := range windows {
		windows[i].Mean[event.LayerTotal] = 1400
	}
	windows[3].Mean[event.LayerTotal], windows[7].Mean[event.LayerTotal] = 3000, 3400
	u := usualOf(windows, 0)
	for _, c := range []struct {
		mean float64
		want bool
	}{{1.5e6, false}, {3.6e6, false}, {5.9e6, false}, {7.4e6, true}} {
		qt.Check(t, qt.Equals(isMore(c.mean, &u, 300, 1e4), c.want), qt.Commentf("%v", time.Duration(c.mean)))
	}
}

// Requests that a calm guest leaves on the ring for the first time are seen there, too.
func TestRingOnceCalm(t *testing.T) {
	base := &diskBase{}
	for range needWindows {
		base.Around.add(around{Rate: 80})
	}
	d := &Disk{ID: "d", Layered: true, Ring: &Ring{Size: 32, Occupied: 8, Waiting: 6, Samples: 6}, Process: &Process{CPU: 0.1}}
	j := &judge{b: &Baselines{disks: map[string]*diskBase{"d": base}}, w: &Window{Duration: 30 * time.Second, Disks: []Disk{*d}}}
	v := verdict{cause: Healthy}
	qt.Check(t, qt.IsTrue(j.waits(&judged{d: d, rate: 80}, &v)))
	qt.Check(t, qt.Equals(v.cause, FlushStorm))
}

// While tapdisk copies for one request the others wait in tapdisk: the copies are slow.
func TestCopiesOfSeveral(t *testing.T) {
	g := &judged{d: &Disk{Layered: true, Process: &Process{CPU: 0.01}}, main: &measure{}}
	g.added[event.LayerTotal] = 1
	g.share[event.LayerTapdisk], g.share[event.LayerCopy], g.share[event.LayerPickup] = 0.47, 0.27, 0.2
	j := &judge{b: &Baselines{}, w: &Window{}}
	v := j.blame(g)
	qt.Check(t, qt.Equals(v.cause, Copy))
	qt.Check(t, qt.Equals(v.place, "copy"))
	g.share[event.LayerCopy], g.share[event.LayerDevice] = 0.05, 0.22
	v = j.blame(g)
	qt.Check(t, qt.Equals(v.cause, Tapdisk))
}
