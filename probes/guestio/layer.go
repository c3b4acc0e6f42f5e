//go:build linux

package guestio

import (
	"time"

	"github.com/xenserver/dtagent/bpf"
	"github.com/xenserver/dtagent/probes/event"
)

// Layers is where the time of the guest's requests went.
type Layers struct {
	Since time.Time `json:"since"` // counted since then
	Read  GuestIO   `json:"read"`
	Write GuestIO   `json:"write"`
}

// GuestIO are a guest's requests of one kind.
type GuestIO struct {
	Total    Requests `json:"total"`
	Interval Requests `json:"interval"`
	UsualUs  float64  `json:"usual_us,omitempty"` // see Probe.Usual
	SlowUs   float64  `json:"slow_us,omitempty"`  // those are told one by one that take so long
}

// Requests are those of some time. Of each layer there are as many figures as there
// were requests; the means of all but the total add up to that of the total.
type Requests struct {
	Requests uint64           `json:"requests"`
	Bytes    uint64           `json:"bytes"`
	Failed   uint64           `json:"failed"`
	Merged   uint64           `json:"merged"`
	Unsplit  uint64           `json:"unsplit"`
	Layers   map[string]Layer `json:"layers,omitempty"` // by the names of event.Layer
}

// Layer is how long requests were in a layer.
type Layer struct {
	Count uint64 `json:"count"`
	Latency
}

// OwnIO is the I/O of tapdisk that is no guest's.
type OwnIO struct {
	Total    Layer `json:"total"`
	Interval Layer `json:"interval"`
}

// layerOf keeps h.
func layerOf(h *bpf.Hist) Layer {
	l := Layer{Count: h.Count}
	if h.Count > 0 {
		l.Latency = Latency{
			Mean: float64(h.SumNs) / 1e3 / float64(h.Count), Max: float64(h.MaxNs) / 1e3,
			P50: microseconds(quantile(h, 0.5)), P99: microseconds(quantile(h, 0.99)), Octaves: octaves(h.Bucket[:]), Hist: h,
		}
	}
	return l
}

func requestsOf(s *bpf.RequestStats) Requests {
	r := Requests{Requests: s.Layers[event.LayerTotal].Count, Bytes: s.Bytes, Failed: s.Failed, Merged: s.Merged, Unsplit: s.Unsplit}
	if r.Requests > 0 {
		r.Layers = make(map[string]Layer, len(s.Layers))
		for l := range s.Layers {
			r.Layers[event.Layer(l).String()] = layerOf(&s.Layers[l])
		}
	}
	return r
}

// countedSince takes from now what before was already.
func countedSince(now, before *bpf.TapdiskStats) *bpf.TapdiskStats {
	d := *now
	for op := range d.Requests {
		r, b := &d.Requests[op], &before.Requests[op]
		r.Bytes -= b.Bytes
		r.Failed -= b.Failed
		r.Merged -= b.Merged
		r.Unsplit -= b.Unsplit
		for l := range r.Layers {
			r.Layers[l] = histSince(&now.Requests[op].Layers[l], &b.Layers[l])
		}
	}
	d.OwnIO = histSince(&now.OwnIO, &before.OwnIO)
	return &d
}

// layers fills in what is counted by layer. It needs the Probe's mu.
func (w *Watcher) layers(v *VBD, d *disk, before *last) {
	l := &d.layers
	if l.err != nil {
		v.LayersWhy = l.err.Error()
	}
	if l.tap == nil {
		return
	}
	if !before.layers.Equal(l.since) {
		before.layers, before.counts = l.since, bpf.TapdiskStats{}
	}
	now := new(bpf.TapdiskStats) // the sample keeps it
	if err := w.p.o.Kernel.TapdiskStats(l.tap.TGID, now); err != nil {
		v.LayersWhy = err.Error()
		return
	}
	step := countedSince(now, &before.counts)
	before.counts = *now
	v.Layers = &Layers{Since: l.since}
	for op, io := range []*GuestIO{bpf.GuestRead: &v.Layers.Read, bpf.GuestWrite: &v.Layers.Write} {
		*io = GuestIO{
			Total: requestsOf(&now.Requests[op]), Interval: requestsOf(&step.Requests[op]),
			UsualUs: microseconds(d.usual.ops[op].p99), SlowUs: float64(l.conf.SlowNs[op]) / 1e3,
		}
	}
	v.OwnIO = &OwnIO{Total: layerOf(&now.OwnIO), Interval: layerOf(&step.OwnIO)}
	v.Counted = step
}
