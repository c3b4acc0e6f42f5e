package verdict

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/go-quicktest/qt"

	"github.com/xenserver/dtagent/probes/event"
)

// trouble is a cause in the matrix.
type trouble struct {
	name   string
	want   []Cause
	layers []event.Layer // that should hold what is added; nil: none of them
	at     []int         // of storages
	bring  func(w *world, size float64) map[string]*injected
	still  func(w *world) map[string]*injected // the circumstances without the trouble
}

// added has the requests of the first guest take size times as long by layers.
func added(w *world, size float64, parts map[event.Layer]float64, change func(*Window, *Disk)) map[string]*injected {
	in := &injected{change: change}
	for l, p := range parts {
		in.add[l] = p * (size - 1) * w.guests[0].total()
	}
	return map[string]*injected{w.guests[0].id: in}
}

func changed(w *world, change func(*Window, *Disk)) map[string]*injected {
	return map[string]*injected{w.guests[0].id: {change: change}}
}

func everyone(w *world, size float64, l event.Layer, change func(*Window, *Disk)) map[string]*injected {
	all := map[string]*injected{}
	for i, g := range w.guests {
		in := &injected{}
		in.add[l] = (size - 1) * g.total()
		if i == 0 {
			in.change = change
		}
		all[g.id] = in
	}
	return all
}

type parts = map[event.Layer]float64

var troubles = []trouble{
	{name: "device, one disk", want: []Cause{Device}, layers: []event.Layer{event.LayerDevice}, at: []int{0, 1, 2},
		bring: func(w *world, size float64) map[string]*injected {
			return added(w, size, parts{event.LayerDevice: 1}, nil)
		}},
	{name: "device, whole SR", want: []Cause{Device}, layers: []event.Layer{event.LayerDevice}, at: []int{0, 1, 2},
		bring: func(w *world, size float64) map[string]*injected { return everyone(w, size, event.LayerDevice, nil) }},
	{name: "NFS server", want: []Cause{Server}, layers: []event.Layer{event.LayerDevice}, at: []int{3},
		bring: func(w *world, size float64) map[string]*injected { return everyone(w, size, event.LayerDevice, nil) }},
	{name: "network, far", want: []Cause{Network}, layers: []event.Layer{event.LayerDevice}, at: []int{1, 3},
		bring: func(w *world, size float64) map[string]*injected {
			return everyone(w, size, event.LayerDevice, func(win *Window, _ *Disk) {
				win.SRs[0].TCP.RTT += time.Duration(0.8 * (size - 1) * w.guests[0].total())
			})
		},
		still: func(w *world) map[string]*injected {
			return changed(w, func(win *Window, _ *Disk) { win.SRs[0].TCP.RTT += time.Millisecond })
		}},
	{name: "network, lossy", want: []Cause{Network}, layers: []event.Layer{event.LayerDevice}, at: []int{1, 3},
		bring: func(w *world, size float64) map[string]*injected {
			return everyone(w, size, event.LayerDevice, func(win *Window, _ *Disk) {
				win.SRs[0].TCP.Retrans = 900
				if n := win.SRs[0].NFS; n != nil {
					n.Retrans = 20
				}
			})
		},
		still: func(w *world) map[string]*injected {
			return changed(w, func(win *Window, _ *Disk) { win.SRs[0].TCP.Retrans = 900 })
		}},
	{name: "path failover", want: []Cause{PathFailover}, layers: []event.Layer{event.LayerDevice}, at: []int{1},
		bring: func(w *world, size float64) map[string]*injected {
			return map[string]*injected{w.guests[0].id: {stuck: int(max(w.guests[0].depth, 3)), stuckIn: event.LayerDevice, stuckFor: time.Duration(0.3 * size * 1e9),
				change: func(win *Window, _ *Disk) {
					win.SRs[0].Paths = &Paths{Total: 2, Active: 1, Events: 1, Last: "sdc failed"}
				}}}
		},
		still: func(w *world) map[string]*injected {
			return changed(w, func(win *Window, _ *Disk) { win.SRs[0].Paths = &Paths{Total: 2, Active: 1, Events: 1} })
		}},
	{name: "noisy neighbour", want: []Cause{NoisyNeighbour}, layers: []event.Layer{event.LayerDevice}, at: []int{0, 1, 2},
		bring: func(w *world, size float64) map[string]*injected {
			g := w.guests[1]
			g.closed, g.rate = false, 20*sumRate(w)
			g.blind = true // what the model has it wait for is not right for such a load
			return added(w, size, parts{event.LayerDevice: 1}, nil)
		},
		still: func(w *world) map[string]*injected {
			g := w.guests[1]
			g.closed, g.rate, g.blind = false, 20*sumRate(w), true
			return nil
		}},
	{name: "dom0 CPU", want: []Cause{Dom0CPU}, layers: []event.Layer{event.LayerRunQueue}, at: []int{0, 1, 2, 3},
		bring: func(w *world, size float64) map[string]*injected {
			return everyone(w, size, event.LayerRunQueue, func(win *Window, d *Disk) { win.Host.Idle = 0.02; d.Process.RunQueue = 0.7 })
		},
		still: func(w *world) map[string]*injected {
			return changed(w, func(win *Window, _ *Disk) { win.Host.Idle = 0.02 })
		}},
	{name: "steal", want: []Cause{Steal}, layers: []event.Layer{event.LayerRunQueue, event.LayerTapdisk, event.LayerCopy, event.LayerPickup}, at: []int{0, 1, 2, 3},
		bring: func(w *world, size float64) map[string]*injected {
			return added(w, size, parts{event.LayerRunQueue: 0.2, event.LayerTapdisk: 0.4, event.LayerCopy: 0.1, event.LayerPickup: 0.3}, func(win *Window, _ *Disk) { win.Host.Steal = 0.3 })
		},
		still: func(w *world) map[string]*injected {
			return changed(w, func(win *Window, _ *Disk) { win.Host.Steal = 0.3 })
		}},
	{name: "tapdisk CPU", want: []Cause{TapdiskCPU}, layers: []event.Layer{event.LayerTapdisk, event.LayerPickup}, at: []int{0, 1, 2, 3},
		bring: func(w *world, size float64) map[string]*injected {
			return added(w, size, parts{event.LayerTapdisk: 0.7, event.LayerPickup: 0.3}, func(_ *Window, d *Disk) { d.Process.CPU = 0.97 })
		},
		still: func(w *world) map[string]*injected {
			return changed(w, func(_ *Window, d *Disk) { d.Process.CPU = 0.97 })
		}},
	{name: "tapdisk, unknown", want: []Cause{Tapdisk}, layers: []event.Layer{event.LayerTapdisk, event.LayerPickup}, at: []int{0, 1, 2, 3},
		bring: func(w *world, size float64) map[string]*injected {
			return added(w, size, parts{event.LayerTapdisk: 0.7, event.LayerPickup: 0.3}, func(_ *Window, d *Disk) { d.Process.CPU = 0.3 })
		}},
	{name: "block queue", want: []Cause{QueueLimit}, layers: []event.Layer{event.LayerQueue}, at: []int{0, 1, 2, 3},
		bring: func(w *world, size float64) map[string]*injected {
			return added(w, size, parts{event.LayerQueue: 1}, nil)
		}},
	{name: "no free place", want: []Cause{QueueLimit}, layers: []event.Layer{event.LayerMetadata}, at: []int{0, 1, 2, 3},
		bring: func(w *world, size float64) map[string]*injected {
			return added(w, size, parts{event.LayerMetadata: 1}, func(_ *Window, d *Disk) { d.Process.NoSlots = 0.6 })
		},
		still: func(w *world) map[string]*injected {
			return changed(w, func(_ *Window, d *Disk) { d.Process.NoSlots = 0.6 })
		}},
	{name: "QoS", want: []Cause{QoS}, layers: []event.Layer{event.LayerQueue}, at: []int{0, 1, 2, 3},
		bring: func(w *world, size float64) map[string]*injected {
			return added(w, size, parts{event.LayerQueue: 1}, func(_ *Window, d *Disk) { d.QoS = "ionice idle" })
		},
		still: func(w *world) map[string]*injected {
			return changed(w, func(_ *Window, d *Disk) { d.QoS = "ionice idle" })
		}},
	{name: "pause", want: []Cause{Pause}, layers: []event.Layer{event.LayerTapdisk}, at: []int{0, 1, 2, 3},
		bring: func(w *world, size float64) map[string]*injected {
			long := time.Duration(0.2 * size * 1e9)
			return map[string]*injected{w.guests[0].id: {stuck: int(max(w.guests[0].depth, 3)), stuckIn: event.LayerTapdisk, stuckFor: long, change: func(win *Window, d *Disk) {
				d.Process.Paused = long
				win.Operations = []Operation{{Kind: "snapshot", Name: "VM.snapshot", ID: "R:1", VM: d.VM, Start: win.Start}}
			}}}
		},
		still: func(w *world) map[string]*injected {
			return changed(w, func(win *Window, d *Disk) {
				win.Operations = []Operation{{Kind: "snapshot", Name: "VM.snapshot", ID: "R:1", VM: d.VM, Start: win.Start}}
			})
		}},
	{name: "deep chain", want: []Cause{DeepChain}, layers: []event.Layer{event.LayerMetadata}, at: []int{0, 1, 2, 3},
		bring: func(w *world, size float64) map[string]*injected {
			return added(w, size, parts{event.LayerMetadata: 1}, deep)
		},
		still: func(w *world) map[string]*injected { return changed(w, deep) }},
	{name: "submission blocks", want: []Cause{SubmitBlocking}, layers: []event.Layer{event.LayerSubmit, event.LayerPickup}, at: []int{2},
		bring: func(w *world, size float64) map[string]*injected {
			return added(w, size, parts{event.LayerSubmit: 0.6, event.LayerPickup: 0.4}, nil)
		}},
	{name: "copy", want: []Cause{Copy}, layers: []event.Layer{event.LayerCopy}, at: []int{0, 1, 2, 3},
		bring: func(w *world, size float64) map[string]*injected {
			return added(w, size, parts{event.LayerCopy: 1}, nil)
		}},
	{name: "flush storm", want: []Cause{FlushStorm}, at: []int{0, 1, 2, 3},
		bring: func(w *world, size float64) map[string]*injected {
			return changed(w, func(win *Window, d *Disk) {
				rate, _ := load(d, win)
				d.Ring.Waiting = max(2, rate*(size-1)*w.guests[0].total()/1e9)
				d.Barriers = uint64(max(0.3*rate, 10) * win.Duration.Seconds())
			})
		},
		still: func(w *world) map[string]*injected {
			return changed(w, func(win *Window, d *Disk) {
				rate, _ := load(d, win)
				d.Barriers = uint64(0.3 * rate * win.Duration.Seconds())
			})
		}},
	{name: "barriers not seen", want: []Cause{FlushStorm}, at: []int{0, 1, 2, 3},
		bring: func(w *world, size float64) map[string]*injected {
			return changed(w, func(win *Window, d *Disk) {
				rate, _ := load(d, win)
				d.Ring.Waiting = max(4, rate*(size-1)*w.guests[0].total()/1e9)
				d.Process.CPU = min(d.Process.CPU, 0.3)
			})
		},
		still: func(w *world) map[string]*injected {
			return changed(w, func(_ *Window, d *Disk) { d.Ring.Waiting = 1.5 })
		}},
	{name: "emulated disk", want: []Cause{EmulatedDisk}, at: []int{0, 1, 2, 3},
		bring: func(w *world, size float64) map[string]*injected {
			return changed(w, func(win *Window, d *Disk) {
				d.Requests = [NumOps]Requests{}
				d.Emulated = &Emulated{Requests: uint64(100 * size), CPU: 0.7}
			})
		},
		still: func(w *world) map[string]*injected {
			return changed(w, func(_ *Window, d *Disk) { d.Emulated = &Emulated{Requests: 3} })
		}},
	{name: "own load", want: []Cause{OwnLoad}, at: []int{0, 1, 2, 3},
		bring: func(w *world, size float64) map[string]*injected {
			g := w.guests[0]
			g.depth *= size * g.at.servers
			return nil
		}},
}

func deep(_ *Window, d *Disk) {
	d.Own.Count, d.Own.Sum = d.Own.Count*400, d.Own.Sum*400
	if n := d.Requests[Read].Layers[event.LayerTotal].Count; d.Own.Count < 2*n {
		d.Own.Sum = d.Own.Mean() * time.Duration(2*n)
		d.Own.Count = 2 * n
	}
	d.Chain = slices.Repeat([]Image{{Hits: [NumOps]uint64{100, 10}}}, 20)
}

func sumRate(w *world) (rate float64) {
	for _, g := range w.guests {
		if g.closed {
			rate += g.depth / g.total() * 1e9
		} else {
			rate += g.rate
		}
	}
	return rate
}

// The right cause is found at each size, the time is given to the right layer, and
// without trouble nothing is blamed, even when what often goes with it is there.
func TestMatrix(t *testing.T) {
	seeds := max(*drawsFlag/slower, 1)
	if testing.Short() {
		seeds = 2
	}
	sizes := []float64{1, 5, 50}
	rng := rand.New(rand.NewPCG(*seedFlag, 2))
	var table strings.Builder
	fmt.Fprintf(&table, "%-18s %12s %12s %12s   %s\n", "cause", "none", "5 times", "50 times", "added time at the right layer (mean, least)")
	all, right := 0, 0
	for _, tr := range troubles {
		fmt.Fprintf(&table, "%-18s", tr.name)
		sum, least, n := 0.0, 1.0, 0
		for _, size := range sizes {
			ok, of := 0, 0
			for range seeds {
				w := newWorld(rng.Uint64(), storages[tr.at[rng.IntN(len(tr.at))]], 4)
				if tr.name == "own load" {
					w.guests[0].closed, w.guests[0].depth = true, 1
				}
				b := w.learned(needWindows + rng.IntN(20))
				var in map[string]*injected
				switch {
				case size > 1:
					in = tr.bring(w, size)
				case tr.still != nil:
					in = tr.still(w)
				}
				win := w.window(30, in)
				f := b.Judge(win)
				of++
				if size == 1 {
					if i := slices.IndexFunc(f, func(f Finding) bool { return f.Cause.Fault() }); i < 0 {
						ok++
					} else {
						t.Errorf("%s, without it: %s", tr.name, f[i].Text())
					}
					continue
				}
				if slices.Contains(tr.want, f[0].Cause) {
					ok++
				} else if testing.Verbose() {
					t.Logf("%s, %.0f times, %s: %s", tr.name, size, w.guests[0].at.name, f[0].Text())
				}
				if tr.layers != nil && f[0].Shares != nil {
					at := 0.0
					for _, l := range tr.layers {
						at += f[0].Shares[l.String()]
					}
					sum += at
					least = min(least, at)
					n++
				}
			}
			fmt.Fprintf(&table, " %8d/%-3d", ok, of)
			all += of
			right += ok
			qt.Check(t, qt.IsTrue(float64(ok) >= 0.95*float64(of)-1), qt.Commentf("%s, %.0f times: %d of %d", tr.name, size, ok, of))
		}
		if n > 0 {
			fmt.Fprintf(&table, "   %.1f %%, %.1f %%", 100*sum/float64(n), 100*least)
			qt.Check(t, qt.IsTrue(sum/float64(n) >= 0.9), qt.Commentf("%s: %.3f at the right layer", tr.name, sum/float64(n)))
		}
		table.WriteByte('\n')
	}
	qt.Check(t, qt.IsTrue(float64(right) >= 0.98*float64(all)))
	t.Logf("right: %d of %d\n%s", right, all, &table)
}
