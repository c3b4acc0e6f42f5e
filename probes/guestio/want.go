//go:build linux

package guestio

import (
	"cmp"
	"context"
	"fmt"
	"time"

	"github.com/xenserver/dtagent/bpf"
)

// Want says which requests of guests are told one by one. Whoever wants fewer than
// others gets what those do, too.
type Want struct {
	// Slow are reads and writes that take so long; 0: none.
	Slow [2]time.Duration
	// Factor, if it is not 0, has those told that take so many times what is usual of
	// the disk (Probe.Usual), and at least Floor; until that is learned, Slow holds.
	Factor float64
	Floor  time.Duration // 0: DefaultFloor
	Sample uint32        // one of so many requests, however long they take; 0: none
}

// Follow has the requests of guests told by records until leave is called, which may be
// called twice. The error says why there will be none: it wraps xenstore.ErrNone where
// no xenstored answers.
func (p *Probe) Follow(ctx context.Context, w Want) (leave func(), err error) {
	if w.Factor < 0 || w.Floor < 0 || w.Slow[0] < 0 || w.Slow[1] < 0 {
		return nil, fmt.Errorf("requests to follow: %+v is less than nothing", w)
	}
	if err := p.join(ctx); err != nil {
		return nil, err
	}
	p.mu.Lock()
	err = cmp.Or(p.refused[bpf.Disk], p.refused[bpf.Tapdisk])
	if err == nil {
		p.wants[&w] = true
		p.configure()
	}
	p.mu.Unlock()
	if err != nil {
		p.leave()
		return nil, fmt.Errorf("requests of guests are not seen: %w", err)
	}
	var left bool // guarded by mu
	return func() {
		p.mu.Lock()
		again := left
		left = true
		delete(p.wants, &w)
		p.configure()
		p.mu.Unlock()
		if !again {
			p.leave()
		}
	}, nil
}

// configure has the kernel tell what is wanted now. It needs mu.
func (p *Probe) configure() {
	for _, d := range p.disks {
		p.applyLayers(d, false)
	}
}

// config is what the kernel is told of a disk's tapdisk: the least that anybody wants.
// It needs mu.
func (p *Probe) config(d *disk) bpf.TapdiskConfig {
	c := bpf.TapdiskConfig{NoDevice: len(d.devices) == 0}
	for w := range p.wants {
		for op := range c.SlowNs {
			if ns := uint64(w.slow(op, d.usual.ops[op].p99)); ns > 0 && (c.SlowNs[op] == 0 || ns < c.SlowNs[op]) {
				c.SlowNs[op] = ns
			}
		}
		if w.Sample > 0 && (c.Sample == 0 || w.Sample < c.Sample) {
			c.Sample = w.Sample
		}
	}
	return c
}

// slow returns from when on a request is slow; 0: none is.
func (w *Want) slow(op int, usual time.Duration) time.Duration {
	if w.Factor == 0 || usual == 0 {
		return w.Slow[op]
	}
	floor := w.Floor
	if floor == 0 {
		floor = DefaultFloor
	}
	const most = float64(24 * time.Hour)
	return max(time.Duration(min(w.Factor*float64(usual), most)), floor)
}
