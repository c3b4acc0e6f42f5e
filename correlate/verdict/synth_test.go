package verdict

import (
	"cmp"
	"fmt"
	"math"
	"math/rand/v2"
	"time"

	"github.com/xenserver/dtagent/probes/event"
)

// A model of guests and their disks, of which the truth is known.

// storage is what an SR can be. Times are ns.
type storage struct {
	name    string
	srType  string
	device  float64 // a request alone
	queue   float64
	servers float64 // requests that it serves at once
	spread  float64 // sigma of the logarithm of what it takes
}

var storages = []storage{
	{"nvme", "lvm", 90e3, 4e3, 32, 0.3},
	{"flash", "lvmoiscsi", 450e3, 10e3, 16, 0.5},
	{"spinning", "ext", 6e6, 30e3, 2, 0.8},
	{"nfs", "nfs", 1.2e6, 20e3, 16, 0.6},
}

// guest is a disk and what its guest does.
type guest struct {
	id      string
	at      storage
	closed  bool // it keeps depth requests in flight; else it sends rate a second
	depth   float64
	rate    float64
	bytes   float64
	writes  float64 // part
	blind   bool    // how many are there at once is not known
	bare    bool    // only the block layer is seen
	barrier float64 // a second
	weather float64 // sigma of the logarithm of what the storage takes in a window; 0: 0.08
}

// injected is what goes wrong.
type injected struct {
	add      [event.NumLayers]float64 // ns to each request
	stuck    int                      // requests that take stuckFor more in stuckIn
	stuckIn  event.Layer
	stuckFor time.Duration
	change   func(w *Window, d *Disk) // what is around it
}

// layersOf are the means of the layers at a depth.
func (g *guest) layersOf(depth float64) (m [event.NumLayers]float64) {
	crowd := 1 + 0.15*(depth-1)
	copied := 4e3 + g.bytes/8 // 8 bytes a ns
	m[event.LayerRunQueue] = 4e3
	m[event.LayerTapdisk] = 25e3 * crowd
	m[event.LayerMetadata] = 2e3
	m[event.LayerCopy] = copied
	m[event.LayerSubmit] = 12e3
	m[event.LayerQueue] = g.at.queue
	m[event.LayerDevice] = g.at.device * max(1, depth/g.at.servers) * (0.75 + 0.25*g.bytes/16384)
	m[event.LayerPickup] = 6e3 * crowd
	if g.bare {
		for _, l := range []event.Layer{event.LayerRunQueue, event.LayerTapdisk, event.LayerMetadata, event.LayerCopy, event.LayerSubmit, event.LayerPickup} {
			m[l] = 0
		}
	}
	for l := event.LayerTotal + 1; l < event.NumLayers; l++ {
		m[event.LayerTotal] += m[l]
	}
	return m
}

// total is what its requests take when nothing is wrong.
func (g *guest) total() float64 {
	depth := g.depth
	if !g.closed {
		depth = 1
	}
	return g.layersOf(depth)[event.LayerTotal]
}

const samplesOfModel = 120 // requests that are drawn; a window has more, scaled

// disk is what the guest's disk does in a window.
func (g *guest) disk(rng *rand.Rand, w *Window, in *injected, exact bool) Disk {
	d := Disk{ID: g.id, Backend: "vbd3", Layered: !g.bare}
	d.VM, d.Name, d.Device, d.VBD, d.SR, d.SRType, d.Type = "vm-"+g.id, "guest "+g.id, "xvda", g.id, "sr", g.at.srType, "vhd"
	depth := g.depth
	if !g.closed {
		depth = 1
	}
	m := g.layersOf(depth)
	m[event.LayerTotal] = 0
	seconds := w.Duration.Seconds()
	weather := math.Exp(cmp.Or(g.weather, 0.08) * rng.NormFloat64()) // of the storage in this window
	crowd := 1.0
	if !g.closed { // those that come wait for those that are there
		crowd = 1 / (1 - min(0.9, g.rate/g.capacity()))
	}
	m[event.LayerDevice] *= weather * crowd
	waits := m[event.LayerDevice] * (1 - 1/crowd)
	for l := event.LayerTotal + 1; l < event.NumLayers; l++ {
		m[l] *= math.Exp(0.04 * rng.NormFloat64())
		if in != nil {
			m[l] += in.add[l]
		}
		m[event.LayerTotal] += m[l]
	}
	rate := g.rate * math.Exp(0.1*rng.NormFloat64())
	if g.closed {
		stuck := 0.0
		if in != nil && in.stuck > 0 {
			stuck = min(in.stuckFor.Seconds(), 0.9*seconds)
		}
		rate = depth / m[event.LayerTotal] * 1e9 * (seconds - stuck) / seconds
	}
	for op := range NumOps {
		part := g.writes
		if op == Read {
			part = 1 - g.writes
		}
		n := int(rate * seconds * part)
		if n == 0 {
			continue
		}
		f := (n + samplesOfModel - 1) / samplesOfModel
		if exact {
			f = 1 // so that none of a long tail is there many times
		}
		draw := n / f
		r := &d.Requests[op]
		for range draw {
			var total time.Duration
			for l := event.LayerTotal + 1; l < event.NumLayers; l++ {
				sigma := 0.4
				if l == event.LayerDevice || l == event.LayerQueue {
					sigma = g.at.spread
				}
				z := rng.NormFloat64()
				if f > 1 { // one that is there many times must be none of a kind
					z = min(z, 3)
				}
				v := time.Duration(m[l] * math.Exp(sigma*z-sigma*sigma/2))
				r.Layers[l].Observe(v)
				total += v
			}
			r.Layers[event.LayerTotal].Observe(total)
		}
		if f := uint64(f); f > 1 {
			for l := range r.Layers {
				h := &r.Layers[l]
				h.Count, h.Sum = h.Count*f, h.Sum*time.Duration(f)
				for i := range h.Buckets {
					h.Buckets[i] *= uint32(f)
				}
			}
		}
		if in != nil && op == Read {
			for range in.stuck {
				for l := event.LayerTotal + 1; l < event.NumLayers; l++ {
					v := time.Duration(m[l])
					if l == in.stuckIn {
						v += in.stuckFor
					}
					r.Layers[l].Observe(v)
				}
				r.Layers[event.LayerTotal].Observe(time.Duration(m[event.LayerTotal]) + in.stuckFor)
			}
		}
		r.Bytes = uint64(float64(r.Layers[event.LayerTotal].Count) * g.bytes)
	}
	inside := rate * m[event.LayerTotal] / 1e9
	occupied := inside / (1 - math.Exp(-rate*(m[event.LayerTotal]-waits)/1e9)) // while there is any
	if g.closed {
		occupied = depth
	}
	occupied *= math.Exp(0.05 * rng.NormFloat64())
	if !g.blind {
		d.Shm = &Shm{Outstanding: occupied, Samples: 10}
		d.Ring = &Ring{Size: 32, Occupied: min(occupied, 32), Waiting: 0.1 * rng.Float64(), Samples: 6}
	}
	if !g.bare {
		d.Process = &Process{CPU: min(0.6, rate*25e-6), RunQueue: 0.005}
		d.Own = &Hist{}
		for range 10 {
			d.Own.Observe(time.Duration(m[event.LayerDevice] * (0.8 + 0.4*rng.Float64())))
		}
		d.Chain = []Image{{Name: "leaf.vhd", Hits: [NumOps]uint64{1000, 1000}}}
	}
	d.Barriers = uint64(g.barrier * seconds)
	return d
}

// world is some guests on an SR.
type world struct {
	rng    *rand.Rand
	guests []*guest
	n      int
	exact  bool // all requests of a window are drawn; windows are shorter for that
}

func newWorld(seed uint64, at storage, guests int) *world {
	w := &world{rng: rand.New(rand.NewPCG(seed, 7))}
	for i := range guests {
		g := &guest{id: fmt.Sprint("d", i), at: at, writes: 0.3, bytes: []float64{4096, 16384, 44 << 10}[w.rng.IntN(3)]}
		if g.closed = w.rng.IntN(2) == 0; g.closed {
			g.depth = []float64{1, 2, 4, 8}[w.rng.IntN(4)]
		} else {
			g.rate = min(0.5*at.servers/(g.total()/1e9), []float64{20, 100, 500}[w.rng.IntN(3)])
		}
		w.guests = append(w.guests, g)
	}
	return w
}

// window is what happens in the next seconds.
func (w *world) window(seconds int, in map[string]*injected) *Window {
	start := time.Unix(1e9, 0).UTC().Add(time.Duration(w.n) * time.Minute)
	w.n++
	win := &Window{Start: start, Duration: time.Duration(seconds) * time.Second, Host: &Host{CPUs: 8, Idle: 0.6 + 0.3*w.rng.Float64(), Steal: 0.01 * w.rng.Float64()}}
	if w.exact {
		most := 1.0
		for _, g := range w.guests {
			if g.closed {
				most = max(most, g.depth/g.total()*1e9)
			} else {
				most = max(most, g.rate)
			}
		}
		win.Duration = min(win.Duration, time.Duration(1200/most*1e9))
	}
	for _, g := range w.guests {
		win.Disks = append(win.Disks, g.disk(w.rng, win, in[g.id], w.exact))
	}
	sr := SR{UUID: "sr", Type: w.guests[0].at.srType}
	if sr.Type == "nfs" || sr.Type == "lvmoiscsi" {
		sr.TCP = &TCP{Peer: "192.0.2.1:2049", RTT: time.Duration(150e3 * math.Exp(0.2*w.rng.NormFloat64())), Segments: 20000, Retrans: uint64(w.rng.IntN(4))}
	}
	if sr.Type == "nfs" {
		var n uint64
		var device, queue time.Duration
		for i := range win.Disks {
			for op := range win.Disks[i].Requests {
				l := &win.Disks[i].Requests[op].Layers
				n += l[event.LayerTotal].Count
				device += l[event.LayerDevice].Sum
				queue += l[event.LayerQueue].Sum
			}
		}
		sr.NFS = &NFS{Server: "192.0.2.1:/export", Ops: n, RTT: device, Backlog: queue}
	}
	win.SRs = []SR{sr}
	for i, g := range w.guests {
		if in := in[g.id]; in != nil && in.change != nil {
			in.change(win, &win.Disks[i])
		}
	}
	return win
}

// learned returns baselines of so many windows in which nothing is wrong.
func (w *world) learned(windows int) *Baselines {
	b := &Baselines{}
	for range windows {
		win := w.window(10, nil)
		b.Learn(win, b.Judge(win))
	}
	return b
}
