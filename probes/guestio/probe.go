//go:build linux

package guestio

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"os"
	"slices"
	"sync"
	"time"

	"github.com/xenserver/dtagent/bpf"
	"github.com/xenserver/dtagent/probes/xenstore"
)

// Kernel is the kernel side, a bpf.Session.
type Kernel interface {
	Attach(bpf.Probe) error
	Detach(bpf.Probe) error
	AddDisk([]bpf.DiskSource) (uint32, error)
	SetDisk(uint32, []bpf.DiskSource) error
	RemoveDisk(uint32) error
	DiskStats(uint32, *bpf.DiskStats) error
	Losses() []bpf.Loss
}

// Options of New. Only Kernel is needed.
type Options struct {
	Kernel   Kernel
	Xenstore []string     // where xenstored is looked for; nil: xenstore.Paths
	Proc     string       // "": /proc
	Sys      string       // "": /sys
	Log      *slog.Logger // nil: discarded
}

const (
	settle   = 20 * time.Millisecond // after an event, since a disk is many nodes
	again    = 5 * time.Second       // between looks at the processes that serve disks
	patience = 10 * time.Second      // for xenstored to tell all that is asked at a time
	retry    = 2 * time.Second       // between attempts to reach xenstored again
	listAll  = 12                    // looks after which all of xenstore is read anew: names may change without an event
)

// Probe watches the guests' disks while somebody is there to see them. Its methods
// may be called by several goroutines at once.
type Probe struct {
	o    Options
	host host

	turn sync.Mutex // held while the watchers begin and end, which takes a second; taken before mu

	mu      sync.Mutex
	readers int
	since   time.Time
	disks   map[key]*disk
	trouble error
	stop    context.CancelFunc
	ended   chan struct{}
}

// disk is one that is there.
type disk struct {
	vbd
	plan
	slot  uint32
	added bool // slot is its
	since time.Time
	err   error // why it is not counted
}

// New returns a Probe that watches nothing yet.
func New(o Options) *Probe {
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	return &Probe{o: o, host: host{proc: cmp.Or(o.Proc, "/proc"), sys: cmp.Or(o.Sys, "/sys")}, disks: map[key]*disk{}}
}

// join has the disks watched until leave is called as often. The error of the first
// says what is missing: it wraps xenstore.ErrNone where no xenstored answers.
func (p *Probe) join(ctx context.Context) error {
	p.turn.Lock()
	defer p.turn.Unlock()
	p.mu.Lock()
	first := p.readers == 0
	if !first {
		p.readers++
	}
	p.mu.Unlock()
	if !first {
		return nil
	}
	c, err := p.connect(ctx)
	if err != nil {
		return err
	}
	if err := p.o.Kernel.Attach(bpf.Disk); err != nil {
		return errors.Join(err, c.Close())
	}
	run, stop := context.WithCancel(context.Background())
	p.mu.Lock()
	p.since, p.trouble = time.Now(), nil
	p.mu.Unlock()
	if err := p.look(ctx, c, nil); err != nil {
		stop()
		return errors.Join(err, c.Close(), p.forget(), p.o.Kernel.Detach(bpf.Disk))
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.readers, p.stop, p.ended = 1, stop, make(chan struct{})
	go p.run(run, c, p.ended)
	return nil
}

// leave ends a join; the last detaches the probe and forgets the disks.
func (p *Probe) leave() {
	p.turn.Lock()
	defer p.turn.Unlock()
	p.mu.Lock()
	p.readers--
	last, stop, ended := p.readers == 0, p.stop, p.ended
	p.mu.Unlock()
	if !last {
		return
	}
	stop()
	<-ended
	if err := errors.Join(p.forget(), p.o.Kernel.Detach(bpf.Disk)); err != nil && !errors.Is(err, os.ErrClosed) {
		p.o.Log.Warn("disks are no longer watched, but not all is undone", "err", err)
	}
}

// forget ends the counting of all disks.
func (p *Probe) forget() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	var errs []error
	for k, d := range p.disks {
		errs = append(errs, p.remove(d))
		delete(p.disks, k)
	}
	return errors.Join(errs...)
}

// remove needs mu.
func (p *Probe) remove(d *disk) error {
	if !d.added {
		return nil
	}
	d.added = false
	return p.o.Kernel.RemoveDisk(d.slot)
}

// connect reaches xenstored and has it tell of disks.
func (p *Probe) connect(ctx context.Context) (*xenstore.Client, error) {
	c, err := xenstore.Dial(ctx, p.o.Xenstore...)
	if errors.Is(err, xenstore.ErrNone) {
		return nil, fmt.Errorf("%w: the disks of guests are seen in a Xen dom0 only, where xenstored runs", err)
	}
	if err != nil {
		return nil, err
	}
	for _, kind := range kinds {
		if err := c.Watch(ctx, backends+"/"+kind, kind); err != nil {
			return nil, errors.Join(err, c.Close())
		}
	}
	return c, nil
}

// run follows xenstore until ctx ends, and reaches for it again when it goes.
func (p *Probe) run(ctx context.Context, c *xenstore.Client, ended chan struct{}) {
	defer close(ended)
	for {
		err := p.follow(ctx, c)
		c.Close()
		if ctx.Err() != nil {
			return
		}
		p.o.Log.Warn("xenstore is not followed: disks that come and go are not seen", "err", err)
		for {
			p.mu.Lock()
			p.trouble = err
			p.mu.Unlock()
			select {
			case <-ctx.Done():
				return
			case <-time.After(retry):
			}
			if c, err = p.connect(ctx); err == nil {
				break
			}
		}
		p.o.Log.Info("xenstore is followed again")
	}
}

// follow keeps the disks up to date until ctx or the connection ends.
func (p *Probe) follow(ctx context.Context, c *xenstore.Client) error {
	events := make(chan xenstore.Event)
	listening, stop := context.WithCancel(ctx)
	var wg sync.WaitGroup
	defer wg.Wait()
	defer stop()
	wg.Go(func() {
		defer close(events)
		for {
			e, err := c.Next(listening)
			if err != nil {
				return
			}
			select {
			case events <- e:
			case <-listening.Done():
				return
			}
		}
	})
	settled := time.NewTimer(0) // all is looked at first
	defer settled.Stop()
	tick := time.NewTicker(again)
	defer tick.Stop()
	dirty, all := map[key]bool{}, true
	for n := 1; ; {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case e, ok := <-events:
			if !ok {
				return cmp.Or(ctx.Err(), errors.New("the connection to xenstored has ended"))
			}
			if k, ok := parseKey(e.Path); ok && !e.Missed {
				dirty[k] = true
			} else {
				all = true
			}
			settled.Reset(settle)
			continue
		case <-settled.C:
		case <-tick.C:
			if n++; n%listAll == 0 {
				all = true
			}
		}
		changed := dirty
		if all {
			changed = nil
		}
		if err := p.look(ctx, c, changed); err != nil {
			return err
		}
		all = false
		dirty = map[key]bool{}
	}
}

// look reads the disks that changed, nil for all, and has the kernel count what
// there is now.
func (p *Probe) look(ctx context.Context, c *xenstore.Client, changed map[key]bool) error {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	now := map[key]*vbd{}
	if changed == nil {
		keys, err := listVBDs(ctx, c)
		if err != nil {
			return err
		}
		changed = map[key]bool{}
		for _, k := range keys {
			changed[k] = true
		}
	} else {
		p.mu.Lock()
		for k, d := range p.disks {
			now[k] = &d.vbd
		}
		p.mu.Unlock()
	}
	for k := range changed {
		v, ok, err := readVBD(ctx, c, k)
		if err != nil {
			return err
		}
		delete(now, k)
		if ok && len(now) < maxVBDs {
			now[k] = &v
		}
	}
	order := slices.SortedFunc(maps.Values(now), func(a, b *vbd) int {
		return cmp.Or(cmp.Compare(a.domid, b.domid), cmp.Compare(a.devid, b.devid), cmp.Compare(a.kind, b.kind))
	})
	plans := p.host.plans(order)
	p.mu.Lock()
	defer p.mu.Unlock()
	p.trouble = nil
	p.apply(order, plans)
	return nil
}

// apply makes the disks those of order. What goes makes place for what comes. It
// needs mu.
func (p *Probe) apply(order []*vbd, plans map[key]plan) {
	here := make(map[key]*vbd, len(order))
	for _, v := range order {
		here[v.key] = v
	}
	freed := false
	for k, d := range p.disks {
		// Another VM with the number of one before it begins anew.
		if v := here[k]; v != nil && (v.uuid == d.uuid || d.uuid == "") {
			continue
		}
		if err := p.remove(d); err != nil {
			p.o.Log.Warn("a disk is still counted", "disk", k.path(), "err", err)
		}
		freed = true
		delete(p.disks, k)
	}
	// A source that moves from one disk to another has to leave the first before.
	for k, d := range p.disks {
		if d.added && !slices.Equal(d.sources, plans[k].sources) {
			keep := slices.DeleteFunc(slices.Clone(d.sources), func(s bpf.DiskSource) bool { return !slices.Contains(plans[k].sources, s) })
			d.err = p.o.Kernel.SetDisk(d.slot, keep)
			d.sources = keep
		}
	}
	for _, v := range order {
		d := p.disks[v.key]
		if d == nil {
			d = &disk{since: time.Now()}
			p.disks[v.key] = d
		}
		before := d.sources
		d.vbd, d.plan = *v, plans[v.key]
		switch {
		case d.added && (!slices.Equal(before, d.sources) || d.err != nil):
			d.err = p.o.Kernel.SetDisk(d.slot, d.sources)
		case !d.added && len(d.sources) > 0 && (freed || !errors.Is(d.err, bpf.ErrDisks)):
			if d.slot, d.err = p.o.Kernel.AddDisk(d.sources); d.err == nil {
				d.added, d.since = true, time.Now()
			}
		}
	}
}
