package verdict

import (
	"fmt"
	"math"
	"slices"
	"time"

	"github.com/xenserver/dtagent/probes/event"
)

// What is held to be more than chance. docs/verdict.md explains them.
const (
	floorOwn        = 100e3 // ns that are added at least, compared with the disk's own baseline
	ratioOwn        = 1.5
	ratioOwnSmall   = 2.0 // when there are fewer than manyRequests, or those of another size were learned
	manyRequests    = 200
	deviations      = 6.0  // of the means of the windows learned
	errorsOfMean    = 4.0  // of the window's own mean
	leastDeviation  = 0.05 // of the mean
	overHigh        = 1.2  // times the mean of the slowest tenth of the windows learned
	farOverHigh     = 2.0  // the same, where it is more than chance whatever the deviations are
	floorNeighbours = 1e6
	ratioNeighbours = 3.0
	ratioDefaults   = 2.0
	needNeighbours  = 2
	needOfNeighbour = 50 // requests

	defaultDevice = 20e6 // ns: more than that is felt
	defaultOther  = 1e6
	defaultDepth  = 4 // that a device serves at once within defaultDevice

	tailFloor    = 100e6 // ns: shorter ones are no long ones
	tailUnknown  = 1e9   // the same without a baseline
	tailOne      = 5e9   // one of that is enough then
	tailRatio    = 3.0   // times the longest that is usual
	tailRequests = 3
	tailPart     = 0.05 // of the time of all requests
	tailOneFloor = 1e9  // ns: so long that one is enough
	tailOneRatio = 10.0
	rateGrown    = 1.3
	depthGrown   = 1.3
	workRatio    = 1.3
	threadRatio  = 3.0 // that tapdisk's own work may take longer with more at once
	hadTime      = 0.8 // part of the time that a disk is busy
	servesMore   = 1.15
	busyMore     = 0.35 // of what it had left
)

// grows are the layers in which a request waits for those before it.
var grows = [event.NumLayers]bool{
	event.LayerTapdisk: true, event.LayerMetadata: true, event.LayerSubmit: true, event.LayerQueue: true, event.LayerDevice: true, event.LayerPickup: true,
}

type source uint8

// Where a usual is from.
const (
	fromOwn source = iota
	fromOtherSize
	fromNeighbours
	fromDefaults
)

// usual is what a request of some kind takes. Times are ns.
type usual struct {
	from    source
	windows int // or neighbours
	words   string

	mean      [event.NumLayers]float64
	deviation float64 // of the mean, between windows
	high      float64 // the mean in the slowest tenth of the windows
	longest   float64
	rate      float64 // a second, of the disk
	inside    float64 // of these at once, by Little's law
	depth     float64 // 0: not known
	work      float64
}

// ownUsual is what the disk's baseline says.
func (b *Baselines) ownUsual(id string, op Op, r *Requests, rate float64) (usual, bool) {
	base := b.disks[id]
	if base == nil {
		return usual{}, false
	}
	size := sizeOf(r)
	order := []int{size}
	for d := 1; d < numSizes; d++ {
		for _, s := range []int{size - d, size + d} {
			if s >= 0 && s < numSizes {
				order = append(order, s)
			}
		}
	}
	for _, s := range order {
		res := base.Ops[op][s]
		if res == nil || len(res.Kept) < needWindows {
			continue
		}
		u := usualOf(res.Kept, rate)
		if s != size {
			u.from = fromOtherSize
			if f := usualBytes[size] / usualBytes[s]; f > 1 {
				for _, l := range []event.Layer{event.LayerCopy, event.LayerSubmit, event.LayerQueue, event.LayerDevice} {
					u.mean[event.LayerTotal] += u.mean[l] * (f - 1)
					u.mean[l] *= f
				}
				u.high, u.deviation, u.longest = u.high*f, u.deviation*f, u.longest*f
			}
			u.words = fmt.Sprintf("its own baseline, of %d windows with requests of another size", u.windows)
		}
		return u, true
	}
	return usual{}, false
}

// usualOf is what windows of much the same rate say if there are enough, else all.
func usualOf(all []seen, rate float64) usual {
	near := slices.DeleteFunc(slices.Clone(all), func(s seen) bool { return float64(s.Rate) < rate/2 || float64(s.Rate) > rate*2 })
	use, load := near, " of a load like this"
	if len(near) < needWindows {
		use, load = all, ""
	}
	total := func(s *seen) float64 { return 1e3 * float64(s.Mean[event.LayerTotal]) }
	u := usual{
		windows: len(use), words: fmt.Sprintf("its own baseline, of %d windows%s", len(use), load),
		deviation: max(spread(use, total), (quantile(use, 0.9, total)-median(use, total))/1.28) * (1 + 4/float64(len(use))),
		high:      quantile(use, 0.9, total),
		longest:   1e3 * quantile(use, 0.9, func(s *seen) float64 { return float64(s.Max) }),
		rate:      median(use, func(s *seen) float64 { return float64(s.Rate) }),
		inside:    median(use, func(s *seen) float64 { return float64(s.Many) }),
		depth:     median(use, func(s *seen) float64 { return float64(s.Depth) }),
		work:      1e3 * median(use, func(s *seen) float64 { return float64(s.Work) }),
	}
	for l := range u.mean {
		u.mean[l] = median(use, func(s *seen) float64 { return 1e3 * float64(s.Mean[l]) })
	}
	return u
}

// neighboursUsual is what disks of the same SR say, by their own baselines where they
// have them.
func (j *judge) neighboursUsual(d *Disk, op Op, r *Requests) (usual, bool) {
	if d.SR == "" {
		return usual{}, false
	}
	type one struct {
		mean                   [event.NumLayers]float64
		longest, inside, depth float64
	}
	var all []one
	learned := 0
	size := sizeOf(r)
	for i := range j.w.Disks {
		o := &j.w.Disks[i]
		if o.ID == d.ID || o.SR != d.SR || o.Layered != d.Layered {
			continue
		}
		if base := j.b.disks[o.ID]; base != nil && base.Ops[op][size] != nil && len(base.Ops[op][size].Kept) >= needWindows {
			u := usualOf(base.Ops[op][size].Kept, 0)
			all = append(all, one{u.mean, u.longest, u.inside, u.depth})
			learned++
			continue
		}
		or := &o.Requests[op]
		if t := &or.Layers[event.LayerTotal]; t.Count >= needOfNeighbour && sizeOf(or) == size {
			all = append(all, one{means(or), float64(t.Max), insideOf(o, j.w), depthOf(o)})
		}
	}
	if len(all) < needNeighbours {
		return usual{}, false
	}
	total := func(o *one) float64 { return o.mean[event.LayerTotal] }
	u := usual{
		from: fromNeighbours, windows: len(all),
		words:     fmt.Sprintf("%d other disks of the SR (%d by their baselines), since it has no baseline yet", len(all), learned),
		deviation: max(spread(all, total), 0.25*median(all, total)),
		high:      quantile(all, 1, total),
		longest:   quantile(all, 1, func(o *one) float64 { return o.longest }),
		inside:    median(all, func(o *one) float64 { return o.inside }),
		depth:     median(all, func(o *one) float64 { return o.depth }),
	}
	for l := range u.mean {
		u.mean[l] = median(all, func(o *one) float64 { return o.mean[l] })
	}
	return u, true
}

// defaults are for a disk of which nothing is known.
func defaults() usual {
	u := usual{from: fromDefaults, words: "defaults (20 ms at the storage, 1 ms elsewhere), since it has no baseline yet and the SR no other disks to compare with"}
	for l := range u.mean {
		u.mean[l] = defaultOther
	}
	u.mean[event.LayerTotal], u.mean[event.LayerDevice], u.high = defaultDevice, defaultDevice, defaultDevice/overHigh
	return u
}

// measure is how a disk's requests of one kind compare with what is usual. Times are ns.
type measure struct {
	op     Op
	n      uint64
	rate   float64 // a second, of both kinds: they are in each other's way
	mean   [event.NumLayers]float64
	usual  usual
	factor float64 // by which the load explains that requests wait longer

	excess bool                     // the mean is more than usual at this load
	grown  bool                     // only the load explains that it is more than usual
	tail   bool                     // some took very long
	long   uint64                   // how many
	from   float64                  // how long these took at least
	sum    float64                  // what they took
	added  [event.NumLayers]float64 // by layer, of all requests together; LayerTotal is their sum
}

// measure compares. Without requests it returns nil.
func (j *judge) measure(d *Disk, op Op) *measure {
	r := &d.Requests[op]
	t := &r.Layers[event.LayerTotal]
	if t.Count == 0 {
		return nil
	}
	m := &measure{op: op, n: t.Count, mean: means(r)}
	m.rate, _ = load(d, j.w)
	u, ok := j.b.ownUsual(d.ID, op, r, m.rate)
	if !ok {
		var known bool
		if u, known = j.neighboursUsual(d, op, r); known {
			j.compare(m, d, r, u)
			if m.excess || m.tail {
				return m
			}
		}
		if !known || m.mean[event.LayerTotal] > defaultDevice {
			usual := defaults()
			if known {
				usual.words = fmt.Sprintf("defaults (20 ms at the storage, 1 ms elsewhere), since it has no baseline yet; %d other disks of the SR are as slow", u.windows)
			}
			u = usual
		}
	}
	j.compare(m, d, r, u)
	return m
}

func (j *judge) compare(m *measure, d *Disk, r *Requests, u usual) {
	t := &r.Layers[event.LayerTotal]
	m.usual, m.factor = u, loadFactor(m.rate, insideOf(d, j.w), depthOf(d), workOf(d, j.w), &u)
	scaled := u
	for l := range scaled.mean {
		if grows[l] {
			scaled.mean[l] *= m.factor
			scaled.mean[event.LayerTotal] += u.mean[l] * (m.factor - 1)
		}
	}
	if u.from == fromDefaults { // the allowances of the layers are no parts of that of the whole
		scaled.mean[event.LayerTotal] = max(scaled.mean[event.LayerDevice], defaultDevice)
	}
	scaled.high *= m.factor
	scaled.deviation *= m.factor
	scaled.longest *= m.factor
	failed := t.deviation() / math.Sqrt(float64(t.Count))
	m.excess = isMore(m.mean[event.LayerTotal], &scaled, m.n, failed)
	m.grown = !m.excess && m.factor > 1 && isMore(m.mean[event.LayerTotal], &u, m.n, failed)
	if m.grown && m.elsewhere(d) {
		m.grown, m.excess = false, true
	}

	long := max(tailRatio*scaled.longest, tailFloor)
	one := max(tailOneRatio*scaled.longest, tailOneFloor)
	if u.from == fromDefaults {
		long, one = tailUnknown*m.factor, tailOne*m.factor
	}
	m.tail, m.from = false, long
	n, sum := t.over(time.Duration(long))
	if n >= tailRequests && float64(sum) >= tailPart*float64(t.Sum) {
		m.tail, m.long, m.sum = true, n, float64(sum)
	} else if n, sum = t.over(time.Duration(one)); n > 0 {
		m.tail, m.long, m.sum, m.from = true, n, float64(sum), one
	}

	reference := &scaled
	if m.grown || m.excess && m.mean[event.LayerTotal] < scaled.mean[event.LayerTotal] {
		reference = &u
	}
	m.added = [event.NumLayers]float64{}
	for part := 2.0; part <= 8 && m.added[event.LayerTotal] == 0; part *= 2 { // of long requests one layer has most
		for l := event.LayerTotal + 1; l < event.NumLayers; l++ {
			if m.excess || m.grown {
				m.added[l] = max(m.mean[l]-reference.mean[l], 0) * float64(m.n)
			} else if m.tail {
				_, sum := r.Layers[l].over(time.Duration(m.from / part))
				m.added[l] = float64(sum)
			}
			m.added[event.LayerTotal] += m.added[l]
		}
	}
}

// elsewhere tells whether most of what the load could explain is where requests do not
// wait for those before them at the storage.
func (m *measure) elsewhere(d *Disk) bool {
	u := &m.usual.mean
	added := func(usual float64, layers ...event.Layer) float64 {
		sum := 0.0
		for _, l := range layers {
			sum += m.mean[l]
		}
		return max(sum-usual, 0)
	}
	// In tapdisk they wait for what it does for the others.
	work := u[event.LayerTapdisk] + u[event.LayerCopy] + u[event.LayerSubmit] + u[event.LayerPickup]
	sum := added(u[event.LayerRunQueue], event.LayerRunQueue) + added(u[event.LayerCopy], event.LayerCopy)
	if !threadBusy(d) {
		sum += added(threadRatio*m.factor*work, event.LayerTapdisk, event.LayerPickup)
	}
	return sum >= 0.5*(m.mean[event.LayerTotal]-u[event.LayerTotal])
}

// isMore tells whether a mean is more than usual, and not by chance.
func isMore(mean float64, u *usual, n uint64, errorOfMean float64) bool {
	if n < fewRequests {
		return false
	}
	expected := u.mean[event.LayerTotal]
	added := mean - expected
	floor, ratio := floorOwn, ratioOwn
	switch u.from {
	case fromOwn:
		if n < manyRequests {
			ratio = ratioOwnSmall
		}
	case fromOtherSize:
		ratio = ratioOwnSmall
	case fromNeighbours:
		floor, ratio = floorNeighbours, ratioNeighbours
	case fromDefaults:
		ratio = ratioDefaults
	}
	return added >= floor && mean >= ratio*expected && mean >= overHigh*u.high &&
		(added >= deviations*max(u.deviation, leastDeviation*expected) || u.from == fromOwn && mean >= farOverHigh*u.high) && added >= errorsOfMean*errorOfMean
}

// loadFactor says how many times longer a request may wait since more are there at
// once, with a device that is as fast as before. Little's law gives how many there
// are on average from how many come and how long they take.
func loadFactor(rate, inside, depth, work float64, u *usual) float64 {
	switch {
	case u.from == fromDefaults:
		return max(1, max(depth, inside)/defaultDepth)
	case u.from == fromNeighbours: // these do something else: all that the load could explain
		if depth > 0 && u.depth > 0 {
			return max(1, depth/u.depth)
		}
		return max(1, inside/max(u.inside, 1))
	case depth > 0 && u.depth > 0:
		// It explains nothing when fewer are served than usual, nor when the disk is
		// busy for longer with each. Nor when it had time left and serves no more all the
		// same, unless the requests come together and leave it as much time as before.
		if depth <= depthGrown*u.depth || rate < 0.8*u.rate || work > workRatio*u.work {
			return 1
		}
		busy, usual := work*rate/1e9, u.work*u.rate/1e9
		if usual < hadTime && rate < servesMore*u.rate && busy > usual+busyMore*(1-usual) {
			return 1
		}
		return depth / u.depth
	case rate > rateGrown*u.rate && u.inside > 0:
		return max(1, inside/u.inside)
	}
	return 1
}
