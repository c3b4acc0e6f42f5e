//go:build linux

package guestio

import (
	"slices"
	"time"

	"github.com/xenserver/dtagent/bpf"
	"github.com/xenserver/dtagent/probes/event"
)

// What is usual of a disk is the median of the 99th percentiles of the last periods. A
// period lasts learnEvery looks, and longer until it has so many requests. So a disk
// has to be slow for half of usualOver before that is what is usual of it, however
// many requests it takes meanwhile.
const (
	learnEvery     = 4                    // looks: 20 seconds
	periodRequests = 100                  // below, a 99th percentile says little
	usualPeriods   = 90                   // that count: half an hour and more
	usualFrom      = 3                    // periods after which it is learned
	usualAge       = 2 * time.Hour        // after which a period counts no more
	usualStep      = 1. / 16              // of its value: less of a change is none, it is as fine as the histograms are
	DefaultFloor   = 1 * time.Millisecond // see Want.Floor
)

// usual learns what is usual of a disk. Its parts are for reads and for writes.
type usual struct{ ops [2]usualOf }

type usualOf struct {
	before  bpf.Hist // when the period began
	begun   bool     // before is known
	periods []period // the last ones, oldest first
	p99     time.Duration
}

type period struct {
	p99 time.Duration
	end time.Time
}

// restart is called when the counting begins anew: what was learned stays.
func (u *usual) restart() {
	for i := range u.ops {
		u.ops[i].before, u.ops[i].begun = bpf.Hist{}, true
	}
}

// learn takes what was counted up to now, and tells whether what is usual has changed.
func (u *usual) learn(s *bpf.TapdiskStats, now time.Time) (changed bool) {
	for op := range u.ops {
		if u.ops[op].learn(&s.Requests[op].Layers[event.LayerTotal], now) {
			changed = true
		}
	}
	return changed
}

func (u *usualOf) learn(h *bpf.Hist, now time.Time) (changed bool) {
	if !u.begun || h.Count < u.before.Count {
		u.before, u.begun = *h, true
		return false
	}
	step := histSince(h, &u.before)
	if step.Count >= periodRequests {
		u.before = *h
		if len(u.periods) >= usualPeriods {
			u.periods = slices.Delete(u.periods, 0, len(u.periods)-usualPeriods+1)
		}
		u.periods = append(u.periods, period{quantile(&step, 0.99), now})
	}
	u.periods = slices.DeleteFunc(u.periods, func(p period) bool { return now.Sub(p.end) > usualAge })
	before := u.p99
	u.p99 = u.median()
	diff := u.p99 - before
	return max(diff, -diff) > time.Duration(float64(before)*usualStep)
}

// median is 0 of too few periods.
func (u *usualOf) median() time.Duration {
	if len(u.periods) < usualFrom {
		return 0
	}
	all := make([]time.Duration, len(u.periods))
	for i, p := range u.periods {
		all[i] = p.p99
	}
	slices.Sort(all)
	return all[(len(all)-1)/2]
}

// learn has what is usual learned of all disks, and the thresholds in the kernel
// follow.
func (p *Probe) learn(now time.Time) {
	p.mu.Lock()
	defer p.mu.Unlock()
	var s bpf.TapdiskStats
	changed := false
	for _, d := range p.disks {
		t := d.layers.tap
		if t == nil || p.o.Kernel.TapdiskStats(t.TGID, &s) != nil {
			continue
		}
		if d.usual.learn(&s, now) {
			changed = true
			p.applyLayers(d, false)
		}
	}
	if changed {
		p.publish()
	}
}
