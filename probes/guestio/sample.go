//go:build linux

package guestio

import (
	"cmp"
	"context"
	"maps"
	"math/bits"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/xenserver/dtagent/bpf"
)

// Sample is what the disks did. docs/io.md describes its JSON.
type Sample struct {
	Time    time.Time `json:"time"`
	Since   time.Time `json:"since"` // the watch began
	Seconds float64   `json:"seconds"`
	Domid   uint32    `json:"domid"` // of the backends
	VBDs    []VBD     `json:"vbds"`
	SRs     []SR      `json:"srs"`
	Host    *Host     `json:"host,omitempty"`
	Losses  []Loss    `json:"losses"`
	Trouble string    `json:"trouble,omitempty"`
}

// Loss counts latencies that are missing for one cause.
type Loss struct {
	Cause string `json:"cause"`
	Count uint64 `json:"count"`
}

// VBD is a disk and what it did.
type VBD struct {
	Domid   uint32    `json:"domid"`
	Domain  string    `json:"domain"`
	VMUUID  string    `json:"vm_uuid"`
	Devid   uint32    `json:"devid"`
	Device  string    `json:"device"`
	Kind    string    `json:"kind"`
	Backend string    `json:"backend"`
	Mode    string    `json:"mode"`
	Params  string    `json:"params"`
	Devices []string  `json:"devices"`
	PIDs    []uint32  `json:"pids,omitempty"`
	Since   time.Time `json:"since"`
	Seen    bool      `json:"seen"`
	Why     string    `json:"why,omitempty"`
	Read    IO        `json:"read"`
	Write   IO        `json:"write"`
	Flush   IO        `json:"flush"`
	Discard IO        `json:"discard"`

	VDI       string   `json:"vdi_uuid,omitempty"`
	SR        string   `json:"sr_uuid,omitempty"`
	SRType    string   `json:"sr_type,omitempty"`
	ImageType string   `json:"image_type,omitempty"`
	Images    []string `json:"images,omitempty"`
	Server    string   `json:"server,omitempty"`

	Layers    *Layers  `json:"layers,omitempty"`
	LayersWhy string   `json:"layers_why,omitempty"`
	OwnIO     *OwnIO   `json:"own_io,omitempty"`
	Ring      *Ring    `json:"ring,omitempty"`
	Tapdisk   *Process `json:"tapdisk,omitempty"`
	QEMU      *QEMU    `json:"qemu,omitempty"`

	// Counted is what Layers and OwnIO were made of, of the interval; nil without them.
	Counted *bpf.TapdiskStats `json:"-"`
}

// IO is what a disk did of one kind.
type IO struct {
	Total    Counts `json:"total"`
	Interval Rates  `json:"interval"`
}

// Counts are of some time.
type Counts struct {
	Ops     uint64   `json:"ops"`
	Bytes   uint64   `json:"bytes"`
	Done    uint64   `json:"done"`
	Errors  uint64   `json:"errors"`
	Latency *Latency `json:"latency,omitempty"`
	Device  *Latency `json:"device_latency,omitempty"`
}

// Rates are those of an interval.
type Rates struct {
	Counts
	OpsPerSecond   float64 `json:"ops_per_second"`
	BytesPerSecond float64 `json:"bytes_per_second"`
}

// Latency is how long things took, in microseconds.
type Latency struct {
	Mean float64 `json:"mean_us"`
	P50  float64 `json:"p50_us"`
	P99  float64 `json:"p99_us"`
	Max  float64 `json:"max_us"`
	// Octaves are how many were shorter than 4.096 µs, shorter than twice that, than four
	// times that and so on. Those at the end that would be 0 are left out.
	Octaves []uint64 `json:"octaves,omitempty"`

	Hist *bpf.Hist `json:"-"` // all that is known; MaxNs is that of all the time
}

func microseconds(d time.Duration) float64 { return float64(d.Nanoseconds()) / 1e3 }

// latency returns what s holds; nil for nothing. An exact maximum is not known of an
// interval.
func latency(s *bpf.DiskStat, exact bool) *Latency {
	if s.Done == 0 {
		return nil
	}
	l := &Latency{
		Mean: float64(s.SumNs) / 1e3 / float64(s.Done), Octaves: octaves(s.Bucket[:]),
		Hist: &bpf.Hist{Count: s.Done, SumNs: s.SumNs, MaxNs: s.MaxNs, Bucket: s.Bucket},
	}
	last := 0
	for i, c := range s.Bucket {
		if c > 0 {
			last = i
		}
	}
	_, to := bpf.DiskBucket(last)
	l.Max = microseconds(to)
	if exact || last == len(s.Bucket)-1 {
		l.Max = float64(s.MaxNs) / 1e3
	}
	longest := time.Duration(l.Max * 1e3)
	l.P50 = microseconds(bucketQuantile(s.Bucket[:], 0.5, longest))
	l.P99 = microseconds(bucketQuantile(s.Bucket[:], 0.99, longest))
	return l
}

// octaves returns Latency.Octaves.
func octaves(buckets []uint32) []uint64 {
	var o []uint64
	for i, n := range buckets {
		if n == 0 {
			continue
		}
		from, _ := bpf.DiskBucket(i)
		at := bits.Len64(uint64(from) >> 12)
		for len(o) <= at {
			o = append(o, 0)
		}
		o[at] += uint64(n)
	}
	return o
}

// since takes from now what before was already. MaxNs stays that of all the time.
func since(now, before *bpf.DiskStat) bpf.DiskStat {
	d := *now
	d.Begun -= before.Begun
	d.Bytes -= before.Bytes
	d.Done -= before.Done
	d.Failed -= before.Failed
	d.SumNs -= before.SumNs
	for i := range d.Bucket {
		d.Bucket[i] -= before.Bucket[i]
	}
	return d
}

// Watcher takes samples. It is for one goroutine.
type Watcher struct {
	p      *Probe
	before time.Time
	last   map[key]*last
	host   steps[figures]
	left   sync.Once
}

// last is what a disk had done at the last sample.
type last struct {
	slot   uint32
	since  time.Time
	stats  bpf.DiskStats
	tap    *tapdisk // whose what follows is
	layers time.Time
	counts bpf.TapdiskStats
	paused time.Duration
	steps  steps[figure]
}

// steps are the last two readings of figures.
type steps[T any] struct{ before, now T }

// Watch has the disks watched until Close. It fails with the reason why there is
// nothing to be seen.
func (p *Probe) Watch(ctx context.Context) (*Watcher, error) {
	if err := p.join(ctx); err != nil {
		return nil, err
	}
	p.mu.Lock()
	p.watchers++
	p.mu.Unlock()
	p.read()
	w := &Watcher{p: p, last: map[key]*last{}}
	w.Sample() // what was before is no part of the first interval
	return w, nil
}

// Close ends the watch. It may be called twice, and takes a second when nobody else
// watches.
func (w *Watcher) Close() {
	w.left.Do(func() {
		w.p.mu.Lock()
		w.p.watchers--
		w.p.mu.Unlock()
		w.p.leave()
	})
}

// Sample returns what the disks did since the last one.
func (w *Watcher) Sample() *Sample {
	p := w.p
	p.mu.Lock()
	defer p.mu.Unlock()
	now := time.Now()
	s := &Sample{Time: now, Since: p.since, VBDs: []VBD{}, SRs: []SR{}, Losses: []Loss{}, Trouble: p.troubles()}
	if !w.before.IsZero() {
		s.Seconds = now.Sub(w.before).Seconds()
	}
	w.before = now
	if p.o.Kernel != nil {
		for _, l := range p.o.Kernel.Losses() {
			if l.Probe == bpf.Disk || l.Probe == bpf.Tapdisk {
				s.Losses = append(s.Losses, Loss{l.Cause, l.Count})
			}
		}
	}
	for _, what := range slices.Sorted(maps.Keys(p.leftOut)) {
		s.Losses = append(s.Losses, Loss{"left out now, too many: " + what, uint64(p.leftOut[what])})
	}
	if !p.figures.when.Equal(w.host.now.when) {
		w.host.before, w.host.now = w.host.now, p.figures
	}
	s.Host = hostOf(&w.host.before, &w.host.now)
	for k := range w.last {
		if p.disks[k] == nil {
			delete(w.last, k)
		}
	}
	for k, d := range p.disks {
		s.VBDs = append(s.VBDs, w.vbd(k, d, s.Seconds, now))
	}
	slices.SortFunc(s.VBDs, func(a, b VBD) int {
		return cmp.Or(cmp.Compare(a.Domid, b.Domid), cmp.Compare(a.Devid, b.Devid), cmp.Compare(a.Kind, b.Kind))
	})
	s.SRs = w.repositories()
	return s
}

// troubles says what is not seen at all, "" if there is nothing. It needs mu.
func (p *Probe) troubles() string {
	var all []string
	if p.trouble != nil {
		all = append(all, p.trouble.Error())
	}
	if err := p.refused[bpf.Disk]; err != nil {
		all = append(all, "no block I/O and no layers: "+err.Error())
	} else if err := p.refused[bpf.Tapdisk]; err != nil {
		all = append(all, "no layers: "+err.Error())
	}
	if p.figures.err != nil {
		all = append(all, p.figures.err.Error())
	}
	return strings.Join(all, "; ")
}

// vbd returns the row of a disk. It needs the Probe's mu.
func (w *Watcher) vbd(k key, d *disk, seconds float64, now time.Time) VBD {
	v := VBD{
		Domid: d.domid, Domain: d.domain, VMUUID: d.uuid, Devid: d.devid, Device: d.guestName(), Kind: d.kind, Backend: k.path(),
		Mode: d.mode, Params: d.params, Devices: []string{}, PIDs: d.pids, Since: d.since, Seen: d.added && len(d.sources) > 0, Why: d.why,
	}
	for _, dev := range d.devices {
		v.Devices = append(v.Devices, dev.String())
	}
	if d.err != nil {
		v.Seen, v.Why = false, d.err.Error()
	}
	if g := d.whose.guest; g != nil {
		v.VDI, v.SR, v.SRType, v.ImageType, v.Images, v.Server = g.VDI, g.SR, g.SRType, g.Type, g.Images, g.Server
	}
	before := w.last[k]
	if before == nil {
		before = &last{}
		w.last[k] = before
	}
	if !before.tap.same(d.tap) {
		before.tap, before.steps, before.paused = d.tap, steps[figure]{}, 0
	}
	if !d.done.when.Equal(before.steps.now.when) {
		before.steps.before, before.steps.now = before.steps.now, d.done
	}
	v.figures(d, before, &w.host.now, now)
	w.layers(&v, d, before)
	if !d.added {
		before.slot, before.since, before.stats = 0, time.Time{}, bpf.DiskStats{}
		return v
	}
	var stats bpf.DiskStats
	if err := w.p.o.Kernel.DiskStats(d.slot, &stats); err != nil {
		v.Seen, v.Why = false, err.Error()
		return v
	}
	if before.slot != d.slot || !before.since.Equal(d.since) {
		before.slot, before.since, before.stats = d.slot, d.since, bpf.DiskStats{}
	}
	for op, io := range []*IO{bpf.DiskRead: &v.Read, bpf.DiskWrite: &v.Write, bpf.DiskFlush: &v.Flush, bpf.DiskDiscard: &v.Discard} {
		var device, deviceBefore *bpf.DiskStat
		if op < len(stats.Device) {
			device, deviceBefore = &stats.Device[op], &before.stats.Device[op]
		}
		*io = ioOf(&stats.Ops[op], &before.stats.Ops[op], device, deviceBefore, seconds)
	}
	before.stats = stats
	return v
}

func ioOf(now, before, device, deviceBefore *bpf.DiskStat, seconds float64) IO {
	count := func(s, device *bpf.DiskStat, exact bool) Counts {
		c := Counts{Ops: s.Begun, Bytes: s.Bytes, Done: s.Done, Errors: s.Failed, Latency: latency(s, exact)}
		if device != nil {
			c.Device = latency(device, exact)
		}
		return c
	}
	io := IO{Total: count(now, device, true)}
	step := since(now, before)
	var deviceStep *bpf.DiskStat
	if device != nil {
		d := since(device, deviceBefore)
		deviceStep = &d
	}
	io.Interval.Counts = count(&step, deviceStep, false)
	if seconds > 0 {
		io.Interval.OpsPerSecond = float64(step.Begun) / seconds
		io.Interval.BytesPerSecond = float64(step.Bytes) / seconds
	}
	return io
}
