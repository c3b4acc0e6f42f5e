package verdict

import (
	"cmp"
	"fmt"
	"math"
	"slices"
	"time"

	"github.com/xenserver/dtagent/probes/event"
)

// What the figures around the requests must be to be taken for a cause.
const (
	busyThread     = 0.85 // of a CPU
	stealMuch      = 0.10
	idleLittle     = 0.10
	fullOften      = 0.2 // part of the samples
	pauseShort     = 100 * time.Millisecond
	pauseLong      = 500 * time.Millisecond
	retransMuch    = 0.01
	retransLeast   = 5
	tcpRatio       = 2.5
	tcpFloor       = 300 * time.Microsecond
	tcpAlone       = 2 * time.Millisecond // without a baseline
	rttRatio       = 2.0
	ownPerRequest  = 0.5
	chainDeep      = 8
	hitsDeep       = 3 // levels below the leaf
	neighbourGrown = 2.0
	neighbourPart  = 0.3
	srGrown        = 0.9
	barriersMany   = 5.0 // a second
	barriersPart   = 0.1 // of the requests
	waitingLeast   = 1.0 // requests on the ring
	waitingRatio   = 3.0
	emulatedMany   = 10.0 // requests a second
	emulatorWorks  = 0.02 // of a CPU; less, and it is others that read the disk in dom0
)

type judge struct {
	b     *Baselines
	w     *Window
	disks []*judged
}

// judged is a disk while it is judged.
type judged struct {
	d     *Disk
	ops   [NumOps]*measure
	main  *measure // that of the most added time; nil: nothing was added
	added [event.NumLayers]float64
	share [event.NumLayers]float64
	rate  float64
	bytes float64
}

// Judge says of each disk of w what holds its requests up. It learns nothing. The
// findings are in the order of the disks.
func (b *Baselines) Judge(w *Window) []Finding {
	if w.Duration <= 0 {
		return nil
	}
	j := &judge{b: b, w: w}
	for i := range w.Disks {
		g := &judged{d: &w.Disks[i]}
		for op := range NumOps {
			g.ops[op] = j.measure(g.d, op)
		}
		g.rate, g.bytes = load(g.d, w)
		g.sum()
		j.disks = append(j.disks, g)
	}
	for _, g := range j.disks {
		j.doubt(g)
	}
	found := make([]Finding, 0, len(j.disks))
	for _, g := range j.disks {
		found = append(found, j.find(g))
	}
	return found
}

// slow tells whether the disk's requests take longer than its load explains.
func (g *judged) slow() bool { return g.main != nil && (g.main.excess || g.main.tail) }

// sum adds up what the kinds of requests have.
func (g *judged) sum() {
	g.main, g.added, g.share = nil, [event.NumLayers]float64{}, [event.NumLayers]float64{}
	rank := func(m *measure) int { // what is wrong comes before what the load explains
		switch {
		case m == nil:
			return 0
		case m.excess || m.tail:
			return 2
		case m.grown:
			return 1
		}
		return 0
	}
	best := max(rank(g.ops[Read]), rank(g.ops[Write]))
	if best == 0 {
		return
	}
	for _, m := range g.ops {
		if rank(m) != best {
			continue
		}
		if g.main == nil || m.added[event.LayerTotal] > g.main.added[event.LayerTotal] {
			g.main = m
		}
		for l, v := range m.added {
			g.added[l] += v
		}
	}
	for l := range g.share {
		if g.added[event.LayerTotal] > 0 {
			g.share[l] = g.added[l] / g.added[event.LayerTotal]
		}
	}
}

// doubt takes a load's explanation back: as many requests as before are served, more
// are there at once, and a neighbour whose load has not grown finds the storage slow.
func (j *judge) doubt(g *judged) {
	m := g.main
	if m == nil || !m.grown || m.usual.rate == 0 || m.rate > 1.2*m.usual.rate || g.share[event.LayerDevice] < 0.5 {
		return
	}
	for _, o := range j.disks {
		if o != g && o.d.SR != "" && o.d.SR == g.d.SR && o.slow() && o.main.excess && o.share[event.LayerDevice] >= 0.5 {
			for _, m := range g.ops {
				if m != nil && m.grown {
					m.grown, m.excess = false, true
				}
			}
			g.sum()
			return
		}
	}
}

// verdict is what a disk's Finding is made of.
type verdict struct {
	cause     Cause
	place     string
	share     float64 // of the added time that the cause explains
	confirmed int     // 1: figures of something else say the same; -1: they should, and do not
	say       []string
	near      []Neighbour
}

func (v *verdict) add(format string, args ...any) {
	v.say = append(v.say, fmt.Sprintf(format, args...))
}

func (j *judge) find(g *judged) Finding {
	d := g.d
	f := Finding{Disk: whoOf(d), Start: j.w.Start, Duration: j.w.Duration, Seconds: j.w.Duration.Seconds(), Evidence: []string{}}
	for _, m := range g.ops {
		if m != nil {
			f.Requests += m.n
		}
	}
	var v verdict
	switch {
	case g.slow():
		v = j.blame(g)
	case g.main != nil:
		v = j.loaded(g)
	default:
		v = j.beside(g, f.Requests)
	}
	f.Cause, f.Layer, f.Neighbours = v.cause, v.place, v.near
	if m := g.main; m != nil {
		f.Op = m.op.String()
		if m.excess || m.grown {
			f.Latency = time.Duration(m.mean[event.LayerTotal])
			f.Usual = f.Latency - time.Duration(m.added[event.LayerTotal]/float64(m.n))
			if u := m.usual; u.from != fromDefaults {
				f.Usual = time.Duration(u.mean[event.LayerTotal])
				if !m.grown {
					for l, v := range u.mean {
						if grows[l] {
							f.Usual += time.Duration(v * (m.factor - 1))
						}
					}
				}
			}
		} else {
			f.Latency, f.Usual = time.Duration(m.sum/float64(m.long)), time.Duration(m.usual.mean[event.LayerTotal])
		}
		f.Added = f.Latency - f.Usual
		f.Ratio = math.Round(100*float64(f.Latency)/float64(max(f.Usual, 1))) / 100
		f.Against = m.usual.words
		f.Shares = map[string]float64{}
		for l := event.LayerTotal + 1; l < event.NumLayers; l++ {
			if s := math.Round(1000*g.share[l]) / 1000; s > 0 {
				f.Shares[l.String()] = s
			}
		}
		f.Evidence = append(f.Evidence, j.figures(g)...)
	} else {
		f.Against = against(g)
		f.Confidence = 0
	}
	f.Evidence = append(f.Evidence, v.say...)
	f.Evidence = append(f.Evidence, j.meanwhile(d)...)
	f.Confidence = j.confidence(g, &v)
	f.Advice, f.Team = sayings[v.cause].advice, sayings[v.cause].team
	return f
}

func whoOf(d *Disk) Who {
	return Who{ID: d.ID, VM: d.VM, Name: d.Name, Domid: d.Domid, Device: d.Device, VBD: d.VBD, VDI: d.VDI, SR: d.SR, SRType: d.SRType}
}

func against(g *judged) string {
	var best *measure
	for _, m := range g.ops {
		if m != nil && (best == nil || m.n > best.n) {
			best = m
		}
	}
	if best == nil {
		return ""
	}
	return best.usual.words
}

// confidence is made of what the disk is compared with, how clear the layer is, and
// whether figures from elsewhere agree.
func (j *judge) confidence(g *judged, v *verdict) float64 {
	m := g.main
	if m == nil { // what was counted or seen as such
		for _, o := range g.ops {
			if o != nil && (m == nil || o.n > m.n) {
				m = o
			}
		}
		if v.cause == TooFew {
			return 0
		}
		if v.cause.fault() {
			return 0.7 + 0.15*float64(v.confirmed)
		}
	}
	c := 0.3
	switch {
	case m.usual.from == fromOwn && m.usual.windows >= 3*needWindows:
		c = 0.7
	case m.usual.from == fromOwn:
		c = 0.6
	case m.usual.from == fromOtherSize:
		c = 0.5
	case m.usual.from == fromNeighbours:
		c = 0.45
	}
	if g.main != nil {
		c += 0.2 * (v.share - 0.5)
	}
	c += 0.1 * float64(v.confirmed)
	if m.n >= manyRequests {
		c += 0.05
	}
	r := &g.d.Requests[m.op]
	if g.main != nil && float64(r.Unsplit) > 0.2*float64(m.n) && g.share[event.LayerQueue]+g.share[event.LayerDevice] > 0.5 {
		c -= 0.15
	}
	if float64(g.d.Lost) > 0.05*float64(m.n) {
		c -= 0.15
	}
	if depthOf(g.d) == 0 && m.usual.from != fromNeighbours && g.main != nil {
		c -= 0.1
	}
	if v.cause == OwnLoad && depthOf(g.d) == 0 {
		c -= 0.2
	}
	return math.Round(100*min(max(c, 0.05), 0.98)) / 100
}

// figures are those of the requests themselves, in words.
func (j *judge) figures(g *judged) (say []string) {
	for _, m := range g.ops {
		if m == nil {
			continue
		}
		t := &g.d.Requests[m.op].Layers[event.LayerTotal]
		switch {
		case m.excess || m.grown:
			s := fmt.Sprintf("%d %ss took %s on average (p99 %s); %s is usual", m.n, m.op, span(m.mean[event.LayerTotal]), Span(t.Quantile(0.99)), span(m.usual.mean[event.LayerTotal]))
			if m.factor > 1 {
				s += fmt.Sprintf(", %s times that with so many at once", times(m.factor))
			}
			say = append(say, s)
			for _, l := range g.top() {
				if l.share >= 0.1 {
					say = append(say, fmt.Sprintf("%s: %s a %s %s (usual %s)", l.layer, span(m.mean[l.layer]), m.op, layerWords[l.layer], span(m.usual.mean[l.layer])))
				}
			}
		case m.tail:
			say = append(say, fmt.Sprintf("%d of %d %ss took %s or longer, %s together; the longest %s; most are as usual", m.long, m.n, m.op, span(m.from), span(m.sum), Span(t.Max)))
		}
	}
	if d := g.d; float64(d.Lost) > 0 {
		say = append(say, fmt.Sprintf("of %d requests the events were lost: they are missing in these figures", d.Lost))
	}
	for op, r := range g.d.Requests {
		if r.Failed > 0 {
			say = append(say, fmt.Sprintf("%d %ss failed", r.Failed, Op(op)))
		}
	}
	return say
}

func span(ns float64) string { return Span(time.Duration(ns)) }

type layerShare struct {
	layer event.Layer
	share float64
}

// top are the layers, that of the most added time first.
func (g *judged) top() []layerShare {
	var s []layerShare
	for l := event.LayerTotal + 1; l < event.NumLayers; l++ {
		s = append(s, layerShare{l, g.share[l]})
	}
	slices.SortStableFunc(s, func(a, b layerShare) int { return cmp.Compare(b.share, a.share) })
	return s
}

// meanwhile says what the toolstack did to the disk, its VM or its SR.
func (j *judge) meanwhile(d *Disk) (say []string) {
	const most = 5
	for i := range j.w.Operations {
		o := &j.w.Operations[i]
		of := j.concerns(o, d)
		if of == "" {
			continue
		}
		if len(say) == most {
			return append(say, "more operations ran at the same time")
		}
		say = append(say, fmt.Sprintf("meanwhile: %s of %s%s", cmp.Or(o.Name, o.Kind), of, inBrackets(o.ID)))
	}
	return say
}

func inBrackets(s string) string {
	if s == "" {
		return ""
	}
	return " (" + s + ")"
}

// concerns says what of the disk an operation is done to; "" for nothing.
func (j *judge) concerns(o *Operation, d *Disk) string {
	if end := j.w.Start.Add(j.w.Duration); o.Start.After(end) || (!o.End.IsZero() && o.End.Before(j.w.Start)) {
		return ""
	}
	switch {
	case o.VDI != "" && o.VDI == d.VDI:
		return "this disk"
	case o.VM != "" && o.VM == d.VM:
		return "this VM"
	case o.SR != "" && o.SR == d.SR:
		return "the SR"
	}
	return ""
}

func (j *judge) sr(d *Disk) (*SR, *srBase) {
	if d.SR == "" {
		return nil, nil
	}
	for i := range j.w.SRs {
		if j.w.SRs[i].UUID == d.SR {
			return &j.w.SRs[i], j.b.srs[d.SR]
		}
	}
	return nil, j.b.srs[d.SR]
}
