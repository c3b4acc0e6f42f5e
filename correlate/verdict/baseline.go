package verdict

import (
	"cmp"
	"encoding/json"
	"fmt"
	"maps"
	"math"
	"slices"
	"time"

	"github.com/xenserver/dtagent/probes/event"
)

// Bounds of what is kept, and from how much on it counts.
const (
	keepWindows = 48  // of a disk, by kind and size of requests
	needWindows = 8   // before they are a baseline
	renewOneIn  = 8   // of the windows after the first keepWindows one is kept, in the place of any other
	maxDisks    = 512 // those that were seen longest ago are forgotten
	maxSRs      = 256
	fewRequests = 30 // of one kind in a window: fewer say nothing of a mean
)

// sizes are the classes of requests, by the mean of their bytes: below the first,
// below the second, the rest. A request on the ring has 44 KiB at most.
var sizes = [...]uint64{8<<10 + 1, 24 << 10}

const numSizes = len(sizes) + 1

func sizeOf(r *Requests) int {
	n := r.Layers[event.LayerTotal].Count
	if n == 0 {
		return 0
	}
	for i, most := range sizes {
		if r.Bytes/n < most {
			return i
		}
	}
	return numSizes - 1
}

// usualBytes is what a request of a class has, about.
var usualBytes = [numSizes]float64{4 << 10, 16 << 10, 44 << 10}

// seen is one window's requests of a kind and size. Times are µs.
type seen struct {
	Rate  float32                  `json:"r"` // per second, of the disk as a whole
	Many  float32                  `json:"n"` // of these that were there at once, by Little's law
	Depth float32                  `json:"d"` // that are there at once while there are any; 0: not known
	Work  float32                  `json:"w"` // that the disk is busy for each; 0: not known
	Max   float32                  `json:"x"`
	Mean  [event.NumLayers]float32 `json:"m"`
}

// around is what else a disk did in a window.
type around struct {
	Rate     float32 `json:"r"`
	Bytes    float32 `json:"b"` // per second
	Waiting  float32 `json:"w"` // on the ring
	Barriers float32 `json:"f"` // per second
	Own      float32 `json:"o"` // mean latency of the backend's own I/O, µs
}

// srSeen is what an SR did in a window. Times are µs.
type srSeen struct {
	Rate    float32 `json:"r"`
	Bytes   float32 `json:"b"`
	RTT     float32 `json:"n"` // NFS
	TCP     float32 `json:"t"`
	Retrans float32 `json:"x"` // part of the segments
}

// reservoir keeps some of what it was given: the first ones, later ones in the
// place of any. So it forgets slowly.
type reservoir[T any] struct {
	N    uint64 `json:"n"` // given
	Kept []T    `json:"k"`
}

func (r *reservoir[T]) add(v T) {
	r.N++
	if len(r.Kept) < keepWindows {
		r.Kept = append(r.Kept, v)
		return
	}
	// A number that has no pattern and is the same each time: a replay is exact.
	x := r.N * 0x9e3779b97f4a7c15
	x ^= x >> 29
	x *= 0xbf58476d1ce4e5b9
	x ^= x >> 32
	if x%renewOneIn == 0 {
		r.Kept[x/renewOneIn%keepWindows] = v
	}
}

type diskBase struct {
	Used   uint64                             `json:"used"` // Baselines.Windows when it was learned from last
	Ops    [NumOps][numSizes]*reservoir[seen] `json:"ops"`
	Around reservoir[around]                  `json:"around"`
}

type srBase struct {
	Used uint64            `json:"used"`
	Seen reservoir[srSeen] `json:"seen"`
}

// Baselines are what is usual for disks and SRs. The zero value knows nothing. It is
// for one goroutine at a time.
type Baselines struct {
	windows uint64
	disks   map[string]*diskBase
	srs     map[string]*srBase
}

// baselinesFile is the form of Baselines outside.
type baselinesFile struct {
	Version int                  `json:"version"`
	Windows uint64               `json:"windows"`
	Disks   map[string]*diskBase `json:"disks"`
	SRs     map[string]*srBase   `json:"srs"`
}

const baselinesVersion = 1

// MarshalJSON returns what UnmarshalJSON takes.
func (b *Baselines) MarshalJSON() ([]byte, error) {
	return json.Marshal(baselinesFile{baselinesVersion, b.windows, b.disks, b.srs})
}

// UnmarshalJSON replaces what is known. Of more than can be kept it drops some. After
// an error nothing has changed.
func (b *Baselines) UnmarshalJSON(text []byte) error {
	var f baselinesFile
	if err := json.Unmarshal(text, &f); err != nil {
		return fmt.Errorf("baselines: %w", err)
	}
	if f.Version != baselinesVersion {
		return fmt.Errorf("baselines: version %d, this is %d", f.Version, baselinesVersion)
	}
	for id, d := range f.Disks {
		if d == nil {
			delete(f.Disks, id)
			continue
		}
		trim(&d.Around)
		for op := range d.Ops {
			for _, r := range d.Ops[op] {
				if r != nil {
					trim(r)
				}
			}
		}
	}
	maps.DeleteFunc(f.SRs, func(_ string, s *srBase) bool { return s == nil })
	for _, s := range f.SRs {
		trim(&s.Seen)
	}
	b.windows, b.disks, b.srs = f.Windows, f.Disks, f.SRs
	b.forget()
	return nil
}

func trim[T any](r *reservoir[T]) {
	if len(r.Kept) > keepWindows {
		r.Kept = r.Kept[:keepWindows]
	}
}

// Disks is of how many disks something is known.
func (b *Baselines) Disks() int { return len(b.disks) }

// forget keeps within bounds.
func (b *Baselines) forget() {
	drop(b.disks, maxDisks, func(d *diskBase) uint64 { return d.Used })
	drop(b.srs, maxSRs, func(s *srBase) uint64 { return s.Used })
}

func drop[T any](m map[string]T, most int, used func(T) uint64) {
	if len(m) <= most {
		return
	}
	ids := slices.SortedFunc(maps.Keys(m), func(a, b string) int {
		return cmp.Or(cmp.Compare(used(m[a]), used(m[b])), cmp.Compare(a, b))
	})
	for _, id := range ids[:len(ids)-most] {
		delete(m, id)
	}
}

// Learn takes what a window shows for usual, where Judge found nothing wrong in it.
// Found is what Judge returned for w.
func (b *Baselines) Learn(w *Window, found []Finding) {
	if w.Duration <= 0 {
		return
	}
	if b.disks == nil {
		b.disks = map[string]*diskBase{}
	}
	if b.srs == nil {
		b.srs = map[string]*srBase{}
	}
	b.windows++
	cause := map[string]Cause{}
	wrong := map[string]bool{} // SRs
	for i := range found {
		f := &found[i]
		cause[f.Disk.ID] = f.Cause
		if f.Cause.fault() {
			wrong[f.Disk.SR] = true
		}
	}
	for i := range w.Disks {
		d := &w.Disks[i]
		c, judged := cause[d.ID]
		if d.ID == "" || !judged || c.fault() || (c == OwnLoad && depthOf(d) == 0) {
			continue
		}
		base := b.disks[d.ID]
		rate, _ := load(d, w)
		inside := insideOf(d, w)
		for op := range d.Requests {
			r := &d.Requests[op]
			n := r.Layers[event.LayerTotal].Count
			if n < fewRequests {
				continue
			}
			if base == nil {
				base = &diskBase{}
				b.disks[d.ID] = base
			}
			size := sizeOf(r)
			if base.Ops[op][size] == nil {
				base.Ops[op][size] = &reservoir[seen]{}
			}
			s := seen{Rate: float32(rate), Many: float32(inside), Depth: float32(depthOf(d)), Work: us(workOf(d, w)), Max: us(r.Layers[event.LayerTotal].Max.Seconds() * 1e9)}
			for l, m := range means(r) {
				s.Mean[l] = us(m)
			}
			base.Ops[op][size].add(s)
		}
		if base != nil {
			base.Used = b.windows
			base.Around.add(aroundOf(d, w))
		}
	}
	for i := range w.SRs {
		s := &w.SRs[i]
		if s.UUID == "" || wrong[s.UUID] {
			continue
		}
		base := b.srs[s.UUID]
		if base == nil {
			base = &srBase{}
			b.srs[s.UUID] = base
		}
		base.Used = b.windows
		base.Seen.add(srSeenOf(s, w))
	}
	b.forget()
}

func us(ns float64) float32 { return float32(ns / 1e3) }

func perSecond(n uint64, w *Window) float32 { return float32(float64(n) / w.Duration.Seconds()) }

// means are the parts of the mean of a request's time, in ns.
func means(r *Requests) (m [event.NumLayers]float64) {
	n := r.Layers[event.LayerTotal].Count
	if n == 0 {
		return m
	}
	for l := range r.Layers {
		m[l] = float64(r.Layers[l].Sum) / float64(n)
	}
	return m
}

// depthOf is how many requests a disk has at once while it has any; 0: not known.
func depthOf(d *Disk) float64 {
	switch {
	case d.Shm != nil && d.Shm.Samples >= 3:
		return max(d.Shm.Outstanding, 1)
	case d.Ring != nil && d.Ring.Samples >= 3 && d.Ring.Occupied > 0:
		return max(d.Ring.Occupied, 1)
	}
	return 0
}

// insideOf is how many requests a disk has at once on average, by Little's law.
func insideOf(d *Disk, w *Window) float64 {
	var sum time.Duration
	for op := range d.Requests {
		sum += d.Requests[op].Layers[event.LayerTotal].Sum
	}
	return float64(sum) / float64(w.Duration)
}

// workOf is for how long a disk has a request, one or several, for each request; ns.
// It does not change when the same requests come more at a time, and gets less when a
// device serves several at once. 0: not known.
func workOf(d *Disk, w *Window) float64 {
	depth := depthOf(d)
	var n, sum float64
	for op := range d.Requests {
		t := &d.Requests[op].Layers[event.LayerTotal]
		n += float64(t.Count)
		sum += float64(t.Sum)
	}
	if depth == 0 || n == 0 {
		return 0
	}
	return min(sum/depth, float64(w.Duration)) / n
}

// load is how many requests and bytes a disk had answered a second.
func load(d *Disk, w *Window) (rate, bytes float64) {
	for op := range d.Requests {
		rate += float64(d.Requests[op].Layers[event.LayerTotal].Count)
		bytes += float64(d.Requests[op].Bytes)
	}
	t := max(w.Duration.Seconds(), 1e-9)
	return rate / t, bytes / t
}

func aroundOf(d *Disk, w *Window) around {
	rate, bytes := load(d, w)
	a := around{Rate: float32(rate), Bytes: float32(bytes), Barriers: perSecond(d.Barriers, w)}
	if d.Ring != nil {
		a.Waiting = float32(d.Ring.Waiting)
	}
	if d.Own != nil {
		a.Own = us(float64(d.Own.Mean()))
	}
	return a
}

func srSeenOf(s *SR, w *Window) srSeen {
	var v srSeen
	for i := range w.Disks {
		if w.Disks[i].SR == s.UUID {
			rate, bytes := load(&w.Disks[i], w)
			v.Rate += float32(rate)
			v.Bytes += float32(bytes)
		}
	}
	if s.NFS != nil && s.NFS.Ops > 0 {
		v.RTT = us(float64(s.NFS.RTT) / float64(s.NFS.Ops))
	}
	if s.TCP != nil {
		v.TCP = us(float64(s.TCP.RTT))
		v.Retrans = float32(retransPart(s.TCP))
	}
	return v
}

func retransPart(t *TCP) float64 {
	return float64(t.Retrans) / float64(max(t.Segments, t.Retrans, 1))
}

// quantile of what of returns for the elements of s; 0 of none.
func quantile[T any](s []T, q float64, of func(*T) float64) float64 {
	if len(s) == 0 {
		return 0
	}
	v := make([]float64, len(s))
	for i := range s {
		v[i] = of(&s[i])
	}
	slices.Sort(v)
	return v[min(int(math.Ceil(q*float64(len(v)))), len(v))-min(1, len(v))]
}

func median[T any](s []T, of func(*T) float64) float64 { return quantile(s, 0.5, of) }

// spread is the standard deviation that the median of the distances from the median
// stands for.
func spread[T any](s []T, of func(*T) float64) float64 {
	m := median(s, of)
	return 1.4826 * median(s, func(v *T) float64 { return math.Abs(of(v) - m) })
}
