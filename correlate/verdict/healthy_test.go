package verdict

import (
	"encoding/json"
	"flag"
	"fmt"
	"math"
	"math/rand/v2"
	"reflect"
	"slices"
	"testing"
	"time"

	"github.com/go-quicktest/qt"
	"pgregory.net/rapid"

	"github.com/xenserver/dtagent/probes/event"
)

// How much is drawn: the tests draw the same each time unless they are asked for more.
var (
	seedFlag   = flag.Uint64("seed", 3, "of what the model draws")
	worldsFlag = flag.Int("worlds", 117, "that TestHealthy draws, of 24 windows of disks each")
	drawsFlag  = flag.Int("draws", 6, "that TestMatrix makes of each cause and size")
)

// Windows in which nothing is wrong, of guests that change what they do: nothing is
// blamed in any.
func TestHealthy(t *testing.T) {
	worlds := *worldsFlag / slower
	if testing.Short() {
		worlds /= 5
	}
	const each = 6 // windows that are judged, of 4 disks
	kinds := []struct {
		name   string
		begin  func(w *world)
		change func(w *world, win *Window) // before a window; win is nil, and after it
	}{
		{name: "steady"},
		{name: "deeper", begin: func(w *world) { w.each(func(g *guest) { g.closed, g.depth = true, 1+float64(w.rng.IntN(3)) }) },
			change: before(func(w *world) { w.each(func(g *guest) { g.depth = math.Ceil(64 * w.rng.Float64()) }) })},
		{name: "busier", begin: func(w *world) { w.each(func(g *guest) { g.closed = false; g.rate = 0.1 * g.capacity() }) },
			change: before(func(w *world) { w.each(func(g *guest) { g.rate = (0.02 + 0.9*w.rng.Float64()) * g.capacity() }) })},
		{name: "busier, depth not known", begin: func(w *world) {
			w.each(func(g *guest) { g.closed, g.blind = false, true; g.rate = 0.1 * g.capacity() })
		}, change: before(func(w *world) { w.each(func(g *guest) { g.rate = (0.02 + 0.9*w.rng.Float64()) * g.capacity() }) })},
		{name: "other sizes", change: before(func(w *world) { w.each(func(g *guest) { g.bytes = 512 * math.Exp2(7*w.rng.Float64()) }) })},
		{name: "other mix", change: before(func(w *world) { w.each(func(g *guest) { g.writes = w.rng.Float64() }) })},
		{name: "nearly idle", begin: func(w *world) { w.each(func(g *guest) { g.closed = false; g.rate = 0.2 + 3*w.rng.Float64() }) }},
		{name: "day and night", begin: func(w *world) {
			w.each(func(g *guest) { g.closed, g.depth = true, []float64{1, 24}[w.rng.IntN(2)] })
		}, change: before(func(w *world) { w.each(func(g *guest) { g.depth = []float64{1, 24}[w.rng.IntN(2)] }) })},
		{name: "long tails", begin: func(w *world) { w.each(func(g *guest) { g.at.spread = max(1, min(1.6, 1.6-g.at.device/10e6)) }) }},
		{name: "rough weather", begin: func(w *world) { w.each(func(g *guest) { g.weather = 0.3 }) }},
		{name: "block layer only", begin: func(w *world) { w.each(func(g *guest) { g.bare = true }) }},
		{name: "barriers", begin: func(w *world) { w.each(func(g *guest) { g.barrier = 100 }) }},
		{name: "busy polling, operations", change: func(w *world, win *Window) {
			if win == nil {
				return
			}
			win.Operations = []Operation{{Kind: "snapshot", VM: win.Disks[0].VM, Start: win.Start}, {Kind: "backup", SR: "sr", Start: win.Start}}
			win.Host.Idle = 0.05
			for i := range win.Disks {
				if p := win.Disks[i].Process; p != nil {
					p.CPU, p.Polling = 1, true
				}
			}
		}},
	}
	rng := rand.New(rand.NewPCG(*seedFlag, 4))
	windows := 0
	for _, k := range kinds {
		t.Run(k.name, func(t *testing.T) {
			blamed, load, judged := 0, 0, 0
			for range worlds / len(kinds) {
				w := newWorld(rng.Uint64(), storages[rng.IntN(len(storages))], 4)
				w.exact = true
				if k.begin != nil {
					k.begin(w)
				}
				b := &Baselines{}
				// From nothing known to much: what is judged is learned, too.
				learn := []int{0, 0, 3, needWindows, 20, 60}[rng.IntN(6)]
				for range learn {
					win := w.window(10, nil)
					b.Learn(win, b.Judge(win))
				}
				for range each {
					if k.change != nil {
						k.change(w, nil)
					}
					win := w.window([]int{10, 30}[rng.IntN(2)], nil)
					if k.change != nil {
						k.change(w, win)
					}
					found := b.Judge(win)
					for i := range found {
						judged++
						switch {
						case found[i].Cause.Fault():
							blamed++
							t.Errorf("%s, %d windows learned, %s: %s", k.name, learn, w.guests[i].at.name, found[i].Text())
						case found[i].Cause == OwnLoad:
							load++
						}
					}
					b.Learn(win, found)
				}
			}
			windows += judged
			t.Logf("%d windows of disks, %d blamed, %d explained by load", judged, blamed, load)
		})
	}
	t.Logf("%d windows of disks in all", windows)
}

func before(fn func(*world)) func(*world, *Window) {
	return func(w *world, win *Window) {
		if win == nil {
			fn(w)
		}
	}
}

func (w *world) each(fn func(*guest)) {
	for _, g := range w.guests {
		fn(g)
	}
}

// capacity is how many requests a second its storage can serve.
func (g *guest) capacity() float64 {
	return min(g.at.servers/g.layersOf(1)[event.LayerDevice], 1/40e3) * 1e9
}

// Whatever the figures are, findings are whole: nothing panics, the shares add up, no
// number is none, the same figures give the same finding, and what is learned
// survives being written down.
func TestAnyWindow(t *testing.T) {
	hist := rapid.Custom(func(t *rapid.T) Hist {
		var h Hist
		for range rapid.IntRange(0, 60).Draw(t, "n") {
			h.Observe(time.Duration(rapid.Int64Range(0, 200e9).Draw(t, "ns")))
		}
		return h
	})
	part := rapid.Float64Range(0, 1)
	disk := rapid.Custom(func(t *rapid.T) Disk {
		d := Disk{ID: rapid.SampledFrom([]string{"a", "b", "c"}).Draw(t, "id"), Layered: rapid.Bool().Draw(t, "layered"), QoS: rapid.SampledFrom([]string{"", "", "limit"}).Draw(t, "qos")}
		d.SR, d.VM = rapid.SampledFrom([]string{"", "s"}).Draw(t, "sr"), "v"
		d.SRType = rapid.SampledFrom([]string{"", "ext", "nfs", "lvmoiscsi"}).Draw(t, "type")
		for op := range d.Requests {
			for l := range d.Requests[op].Layers {
				d.Requests[op].Layers[l] = hist.Draw(t, "hist")
			}
			d.Requests[op].Bytes = rapid.Uint64Range(0, 1<<40).Draw(t, "bytes")
		}
		if rapid.Bool().Draw(t, "more") {
			h := hist.Draw(t, "own")
			d.Own = &h
			d.Process = &Process{CPU: part.Draw(t, "cpu"), RunQueue: part.Draw(t, "runq"), Paused: time.Duration(rapid.Int64Range(0, 1e10).Draw(t, "paused")), NoSlots: part.Draw(t, "slots")}
			d.Ring = &Ring{Size: 32, Occupied: 32 * part.Draw(t, "occupied"), Waiting: 32 * part.Draw(t, "waiting"), Full: part.Draw(t, "full"), Samples: 9}
			d.Chain = make([]Image, rapid.IntRange(0, 9).Draw(t, "chain"))
			d.Barriers = rapid.Uint64Range(0, 1000).Draw(t, "barriers")
			d.Emulated = &Emulated{Requests: rapid.Uint64Range(0, 1000).Draw(t, "emulated"), CPU: part.Draw(t, "qemu")}
		}
		return d
	})
	window := rapid.Custom(func(t *rapid.T) *Window {
		w := &Window{Start: time.Unix(1e9, 0).UTC(), Duration: time.Duration(rapid.Int64Range(0, 1e11).Draw(t, "ns"))}
		w.Disks = rapid.SliceOfN(disk, 0, 4).Draw(t, "disks")
		if rapid.Bool().Draw(t, "around") {
			w.Host = &Host{CPUs: 4, Idle: part.Draw(t, "idle"), Steal: part.Draw(t, "steal")}
			w.SRs = []SR{{UUID: "s", NFS: &NFS{Ops: rapid.Uint64Range(0, 9).Draw(t, "ops"), RTT: time.Second, Retrans: 1}, TCP: &TCP{RTT: time.Duration(rapid.Int64Range(0, 1e9).Draw(t, "rtt")), Retrans: rapid.Uint64Range(0, 99).Draw(t, "retrans")}}}
			w.Operations = []Operation{{Kind: rapid.SampledFrom([]string{"snapshot", "scan"}).Draw(t, "kind"), VM: "v", Start: w.Start}}
		}
		return w
	})
	rapid.Check(t, func(t *rapid.T) {
		b := &Baselines{}
		for _, w := range rapid.SliceOfN(window, 1, 4).Draw(t, "windows") {
			for range needWindows {
				b.Learn(w, b.Judge(w))
			}
			found := b.Judge(w)
			if !reflect.DeepEqual(b.Judge(w), found) {
				t.Fatal("the same window gives other findings")
			}
			text, err := json.Marshal(b)
			var again Baselines
			if err == nil {
				err = json.Unmarshal(text, &again)
			}
			if err != nil || !reflect.DeepEqual(again.Judge(w), found) {
				t.Fatalf("baselines that were written down give other findings (%v)", err)
			}
			if w.Duration > 0 && len(found) != len(w.Disks) {
				t.Fatalf("%d findings of %d disks", len(found), len(w.Disks))
			}
			for i := range found {
				f := &found[i]
				if _, err := json.Marshal(f); err != nil { // refuses NaN and infinity
					t.Fatal(err)
				}
				sum := 0.0
				for _, s := range f.Shares {
					sum += s
				}
				if !(f.Confidence >= 0 && f.Confidence <= 1) || !slices.Contains(Causes(), f.Cause) || f.Text() == "" || len(f.Shares) > 0 && math.Abs(sum-1) > 0.01 {
					t.Fatalf("%+v", f)
				}
			}
		}
	})
}

// What is kept does not grow without end, and what comes from outside is bounded, too.
func TestBounds(t *testing.T) {
	b := &Baselines{}
	w := newWorld(1, storages[0], 1)
	win := w.window(10, nil)
	for i := range maxDisks + 50 {
		win.Disks[0].ID = fmt.Sprint("disk", i)
		win.SRs[0].UUID = fmt.Sprint("sr", i)
		b.Learn(win, b.Judge(win))
	}
	qt.Check(t, qt.Equals(b.Disks(), maxDisks))
	qt.Check(t, qt.HasLen(b.srs, maxSRs))
	qt.Check(t, qt.IsNil(b.disks["disk0"]))
	qt.Check(t, qt.IsNotNil(b.disks[fmt.Sprint("disk", maxDisks+49)]))
	win.Disks[0].ID = "one"
	for range 50 * keepWindows {
		b.Learn(win, b.Judge(win))
	}
	size := sizeOf(&win.Disks[0].Requests[Read])
	qt.Check(t, qt.HasLen(b.disks["one"].Ops[Read][size].Kept, keepWindows))
	qt.Check(t, qt.HasLen(b.disks["one"].Around.Kept, keepWindows))

	big := reservoir[seen]{Kept: make([]seen, 10*keepWindows)}
	text, err := json.Marshal(baselinesFile{Version: baselinesVersion, Disks: map[string]*diskBase{"a": {Ops: [NumOps][numSizes]*reservoir[seen]{{&big}}}, "b": nil}, SRs: map[string]*srBase{"c": nil}})
	qt.Assert(t, qt.IsNil(err))
	var read Baselines
	qt.Assert(t, qt.IsNil(json.Unmarshal(text, &read)))
	qt.Check(t, qt.HasLen(read.disks["a"].Ops[Read][0].Kept, keepWindows))
	qt.Check(t, qt.Equals(read.Disks(), 1))
	qt.Check(t, qt.ErrorMatches(json.Unmarshal([]byte(`{"version":9}`), &read), "baselines: version 9, this is 1"))
	qt.Check(t, qt.Equals(read.Disks(), 1))
}
