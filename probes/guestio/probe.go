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
	"reflect"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/xenserver/dtagent/bpf"
	"github.com/xenserver/dtagent/probes/guestio/shm"
	"github.com/xenserver/dtagent/probes/guestio/stat"
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
	AddTapdisk(uint32, bpf.TapdiskConfig) error
	RemoveTapdisk(uint32) error
	TapdiskStats(uint32, *bpf.TapdiskStats) error
	Losses() []bpf.Loss
}

// Options of New. The zero value has figures without eBPF only.
type Options struct {
	Kernel   Kernel       // nil: there is no eBPF
	Xenstore []string     // where xenstored is looked for; nil: xenstore.Paths
	Proc     string       // "": /proc
	Sys      string       // "": /sys
	Shm      string       // "": shm.Root
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

	known atomic.Pointer[map[uint32]served] // by tapdisk; nil: none

	mu       sync.Mutex
	joined   int // watchers and followers
	watchers int
	since    time.Time
	disks    map[key]*disk
	wants    map[*Want]bool
	trouble  error               // with xenstore
	refused  map[bpf.Probe]error // why a probe is not attached; no entry: it is
	figures  figures
	leftOut  map[string]int // now, of what
	stop     context.CancelFunc
	ended    chan struct{}
	wake     chan struct{} // has what is there looked at anew

	reading sync.Mutex // held while figures are read; taken before mu
}

// disk is one that is there.
type disk struct {
	vbd
	plan
	slot  uint32
	added bool // slot is its
	since time.Time
	err   error // why it is not counted

	layers layered
	whose  whose
	pauses pauses
	usual  usual
	done   figure // what it did by figures without eBPF
}

// layered is what is known of the counting of a disk's requests by layer.
type layered struct {
	tap   *tapdisk // that was added; nil: none
	conf  bpf.TapdiskConfig
	since time.Time
	err   error
}

// New returns a Probe that watches nothing yet.
func New(o Options) *Probe {
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	return &Probe{
		o:     o,
		host:  host{proc: cmp.Or(o.Proc, "/proc"), sys: cmp.Or(o.Sys, "/sys"), shm: shm.Dir(cmp.Or(o.Shm, shm.Root))},
		disks: map[key]*disk{}, wants: map[*Want]bool{}, leftOut: map[string]int{}, wake: make(chan struct{}, 1),
	}
}

// join has the disks watched until leave is called as often. The error of the first
// says what is missing: it wraps xenstore.ErrNone where no xenstored answers. That
// the kernel refuses a probe is none.
func (p *Probe) join(ctx context.Context) error {
	p.turn.Lock()
	defer p.turn.Unlock()
	p.mu.Lock()
	first := p.joined == 0
	if !first {
		p.joined++
	}
	p.mu.Unlock()
	if !first {
		p.attach() // what was refused may have been for want of something that is there now
		return nil
	}
	c, err := p.connect(ctx)
	if err != nil {
		return err
	}
	p.mu.Lock()
	p.since, p.trouble, p.refused = time.Now(), nil, nil
	p.figures = figures{meter: stat.NewMeter()}
	p.mu.Unlock()
	p.attach()
	run, stop := context.WithCancel(context.Background())
	if err := p.look(ctx, c, nil); err != nil {
		stop()
		return errors.Join(err, c.Close(), p.forget(), p.detach())
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.joined, p.stop, p.ended = 1, stop, make(chan struct{})
	go p.run(run, c, p.ended)
	return nil
}

// leave ends a join; the last detaches the probes and forgets the disks.
func (p *Probe) leave() {
	p.turn.Lock()
	defer p.turn.Unlock()
	p.mu.Lock()
	p.joined--
	last, stop, ended := p.joined == 0, p.stop, p.ended
	p.mu.Unlock()
	if !last {
		return
	}
	stop()
	<-ended
	if err := errors.Join(p.forget(), p.detach()); err != nil && !errors.Is(err, os.ErrClosed) {
		p.o.Log.Warn("disks are no longer watched, but not all is undone", "err", err)
	}
}

// uses are the probes that disks are counted with; the second needs the first.
var uses = []bpf.Probe{bpf.Disk, bpf.Tapdisk}

var errNoKernel = errors.New("eBPF is not used")

// attach attaches the probes that are not. It needs turn.
func (p *Probe) attach() {
	p.mu.Lock()
	missing, begun := maps.Clone(p.refused), p.refused != nil
	p.mu.Unlock()
	refused := map[bpf.Probe]error{}
	for _, probe := range uses {
		if _, ok := missing[probe]; begun && !ok {
			continue
		}
		err := errNoKernel
		switch {
		case len(refused) > 0:
			err = refused[bpf.Disk]
		case p.o.Kernel != nil:
			err = p.o.Kernel.Attach(probe)
		}
		if err != nil {
			refused[probe] = err
			p.o.Log.Warn("disks are not counted by a probe", "probe", probe, "err", err)
		}
	}
	p.mu.Lock()
	changed := begun && len(refused) != len(p.refused)
	p.refused = refused
	p.mu.Unlock()
	if changed {
		p.lookAgain()
	}
}

// detach needs turn.
func (p *Probe) detach() error {
	p.mu.Lock()
	refused := p.refused
	p.refused = nil
	p.mu.Unlock()
	var errs []error
	for _, probe := range slices.Backward(uses) {
		if refused[probe] == nil {
			errs = append(errs, p.o.Kernel.Detach(probe))
		}
	}
	return errors.Join(errs...)
}

// attached tells whether a probe is. It needs mu.
func (p *Probe) attached(probe bpf.Probe) bool { return p.refused != nil && p.refused[probe] == nil }

// lookAgain has what is there looked at soon.
func (p *Probe) lookAgain() {
	select {
	case p.wake <- struct{}{}:
	default:
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
	p.known.Store(nil)
	return errors.Join(errs...)
}

// remove needs mu.
func (p *Probe) remove(d *disk) error {
	err := p.removeLayers(d)
	if !d.added {
		return err
	}
	d.added = false
	return errors.Join(err, p.o.Kernel.RemoveDisk(d.slot))
}

// removeLayers needs mu.
func (p *Probe) removeLayers(d *disk) error {
	t := d.layers.tap
	if t == nil {
		return nil
	}
	d.layers.tap = nil
	return p.o.Kernel.RemoveTapdisk(t.TGID)
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

// run follows xenstore and shared memory until ctx ends, and reaches for xenstore
// again when it goes.
func (p *Probe) run(ctx context.Context, c *xenstore.Client, ended chan struct{}) {
	defer close(ended)
	var wg sync.WaitGroup
	defer wg.Wait()
	wg.Go(func() { p.poll(ctx) })
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
	files := tapdiskFiles{dir: p.host.shm}
	defer files.close()
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
		case <-files.changed():
			settled.Reset(settle)
			continue
		case <-p.wake:
		case <-settled.C:
		case <-tick.C:
			if n++; n%listAll == 0 {
				all = true
			}
			if n%learnEvery == 0 {
				p.learn(time.Now())
			}
		}
		changed := dirty
		if all {
			changed = nil
		}
		if err := p.look(ctx, c, changed); err != nil {
			return err
		}
		files.follow(p.tapdisks())
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
		keys, more, err := listVBDs(ctx, c)
		if err != nil {
			return err
		}
		p.leaveOut("disks in xenstore", more)
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
	taps, more, err := p.host.tapdisks() // without them there is still what xenstore says
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		p.o.Log.Debug("tapdisks are known by xenstore only", "err", err)
	}
	p.leaveOut("tapdisks in shared memory", more)
	mounts, _ := stat.Mounts(p.host.proc) // what it says is left out then
	plans := p.host.plans(order, taps, mounts)
	more = 0
	for _, pl := range plans {
		more += pl.more
	}
	p.leaveOut("images of tapdisks", more)
	places := p.host.places(order, plans, mounts)
	p.mu.Lock()
	defer p.mu.Unlock()
	p.trouble = nil
	p.apply(order, plans, places)
	return nil
}

// leaveOut notes how many there are now that are not looked at, for being too many.
func (p *Probe) leaveOut(what string, n int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if n == 0 {
		delete(p.leftOut, what)
		return
	}
	if p.leftOut[what] == 0 {
		p.o.Log.Warn("too many to look at all", "what", what, "left out", n)
	}
	p.leftOut[what] = n
}

// apply makes the disks those of order. What goes makes place for what comes. It
// needs mu.
func (p *Probe) apply(order []*vbd, plans map[key]plan, places map[key]whose) {
	here := make(map[key]*vbd, len(order))
	for _, v := range order {
		here[v.key] = v
	}
	// A tapdisk that is paused has closed its images, and will open them again.
	looked := time.Now()
	for k, d := range p.disks {
		pl, ok := plans[k]
		if !ok || !pl.tap.same(d.tap) {
			continue
		}
		if d.pauses.look(pl.tap.Open, len(pl.images) > 0, looked); !d.pauses.since.IsZero() {
			now := pl.tap
			pl = d.plan
			pl.tap, pl.why = now, fmt.Sprintf("tapdisk %d is paused", now.TGID)
			plans[k], places[k] = pl, d.whose
		}
	}
	freed := false
	for k, d := range p.disks {
		// Another VM with the number of one before it begins anew.
		if v := here[k]; v != nil && (v.uuid == d.uuid || d.uuid == "") {
			if t := d.layers.tap; t != nil && !t.same(plans[k].tap) {
				freed = true
				if err := p.removeLayers(d); err != nil {
					p.o.Log.Warn("a tapdisk is still counted", "tgid", t.TGID, "err", err)
				}
			}
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
	sources := make(map[key][]bpf.DiskSource, len(order)) // as they were
	for _, v := range order {
		d := p.disks[v.key]
		if d == nil {
			d = &disk{since: time.Now()}
			p.disks[v.key] = d
		}
		tap := d.tap
		sources[v.key] = d.sources
		whose := places[v.key]
		if d.whose.guest != nil && reflect.DeepEqual(d.whose.guest, whose.guest) {
			whose.guest = d.whose.guest // who has it may tell by the pointer that nothing is new
		}
		d.vbd, d.plan, d.whose = *v, plans[v.key], whose
		if d.tap != nil && !d.tap.same(tap) {
			d.pauses, d.done = pauses{}, figure{}
			d.pauses.look(d.tap.Open, len(d.images) > 0, looked)
		}
	}
	p.publish() // the first record of a tapdisk finds its disk
	for _, v := range order {
		d := p.disks[v.key]
		switch {
		case !p.attached(bpf.Disk):
			if d.err = nil; len(d.sources) > 0 {
				d.err = p.refused[bpf.Disk]
			}
		case d.added && (!slices.Equal(sources[v.key], d.sources) || d.err != nil):
			d.err = p.o.Kernel.SetDisk(d.slot, d.sources)
		case !d.added && len(d.sources) > 0 && (freed || !errors.Is(d.err, bpf.ErrDisks)):
			if d.slot, d.err = p.o.Kernel.AddDisk(d.sources); d.err == nil {
				d.added, d.since = true, time.Now()
			}
		case !d.added && len(d.sources) == 0:
			d.err = nil
		}
		p.applyLayers(d, freed)
	}
}

// applyLayers has the kernel count the requests of a disk's tapdisk. It needs mu.
func (p *Probe) applyLayers(d *disk, freed bool) {
	l := &d.layers
	switch {
	case d.tap == nil:
		l.err = nil
		return
	case !p.attached(bpf.Tapdisk):
		l.err = p.refused[bpf.Tapdisk]
		return
	}
	conf := p.config(d)
	switch {
	case l.tap != nil && l.err == nil && l.conf == conf:
	case l.tap == nil && errors.Is(l.err, bpf.ErrDisks) && !freed:
	default:
		fresh := l.tap == nil
		if l.err = p.o.Kernel.AddTapdisk(d.tap.TGID, conf); l.err == nil {
			l.conf = conf
			if l.tap = d.tap; fresh {
				l.since = time.Now()
				d.usual.restart()
			}
		}
	}
}

// tapdisks returns those that serve disks now.
func (p *Probe) tapdisks() (out []uint32) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, d := range p.disks {
		if d.tap != nil {
			out = append(out, d.tap.TGID)
		}
	}
	return out
}
