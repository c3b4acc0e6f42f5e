//go:build linux

package guestio

import (
	"context"
	"net/netip"
	"time"

	"github.com/xenserver/dtagent/probes/guestio/shm"
	"github.com/xenserver/dtagent/probes/guestio/stat"
)

// every is how often figures are read that need no eBPF, while a Watcher is there.
const every = time.Second

// figures are those of the host.
type figures struct {
	when  time.Time // of the reading; zero: none yet
	cpu   stat.CPU
	idle  float64 // what cpumond says
	hasID bool    // idle is known
	nfs   map[string]stat.NFS
	tcp   map[netip.AddrPort]stat.TCP
	meter *stat.Meter // guarded by Probe.reading
	err   error       // what could not be read
}

// figure is what a disk did by figures without eBPF, since it is watched.
type figure struct {
	when     time.Time // of the reading; zero: none yet
	counters shm.Counters
	counted  bool // counters are known
	longest  shm.Statistics
	aside    uint64 // requests that did not come by the ring
	ring     shm.Ring
	written  int64 // when ring was
	rings    ringSum
	inflight inflightSum
	process  spent
	qemu     spent
}

// ringSum sums up the states of a ring that were seen.
type ringSum struct{ samples, occupied, waiting, full uint64 }

// inflightSum sums up how many requests a tapdisk had, where it had any.
type inflightSum struct{ samples, requests uint64 }

// spent sums up the time of a process's threads.
type spent struct {
	running, runq time.Duration
	threads       map[uint32]stat.Sched
}

// add takes what the threads have done up to now. What they did before the first time
// is not counted.
func (s *spent) add(now map[uint32]stat.Sched) {
	for tid, t := range now {
		before, ok := s.threads[tid]
		if s.threads == nil || ok && (t.Running < before.Running || t.RunQueue < before.RunQueue) {
			continue
		}
		s.running += t.Running - before.Running
		s.runq += t.RunQueue - before.RunQueue
	}
	if now != nil {
		s.threads = now
	}
}

// reading is what is read of a disk.
type reading struct {
	k    key
	tap  *tapdisk
	qemu uint32
	fig  figure
}

// poll reads the figures now and then until ctx ends.
func (p *Probe) poll(ctx context.Context) {
	tick := time.NewTicker(every)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		p.mu.Lock()
		wanted := p.watchers > 0
		p.mu.Unlock()
		if wanted {
			p.read()
		}
	}
}

// read reads all figures.
func (p *Probe) read() {
	p.reading.Lock()
	defer p.reading.Unlock()
	p.mu.Lock()
	all := make([]reading, 0, len(p.disks))
	servers := map[netip.AddrPort]bool{}
	network := false
	for k, d := range p.disks {
		r := reading{k: k, tap: d.tap, qemu: d.qemu, fig: d.done}
		all = append(all, r)
		for _, s := range d.whose.servers {
			servers[s] = true
		}
		network = network || d.whose.mount != ""
	}
	host := p.figures
	p.mu.Unlock()

	qemus := map[uint32]map[uint32]stat.Sched{}
	for i := range all {
		p.host.read(&all[i], qemus)
	}
	p.host.readHost(&host, network, servers)
	p.leaveOut("connections to storage", host.meter.LeftOut)

	p.mu.Lock()
	defer p.mu.Unlock()
	p.figures = host
	for i := range all {
		r := &all[i]
		if d := p.disks[r.k]; d != nil && (r.tap == nil && d.tap == nil || d.tap.same(r.tap)) {
			d.done = r.fig
		}
	}
}

// read reads what there is of a disk.
func (h host) read(r *reading, qemus map[uint32]map[uint32]stat.Sched) {
	f, now := &r.fig, time.Now()
	if r.qemu != 0 {
		threads, ok := qemus[r.qemu]
		if !ok {
			threads, _ = stat.ReadSched(h.proc, r.qemu)
			qemus[r.qemu] = threads
		}
		f.qemu.add(threads)
	}
	f.when = now
	if r.tap == nil {
		return
	}
	v := shm.VBD{Domid: r.k.domid, Devid: r.k.devid}
	if c, err := h.shm.Counters(r.tap.TGID, v); err == nil {
		f.counters, f.counted = c, true
		if n := c.InFlight(); n > 0 {
			f.inflight.samples++
			f.inflight.requests += n
		}
	}
	if s, err := h.shm.Statistics(v); err == nil {
		f.longest = s
	}
	f.aside = 0
	for _, name := range r.tap.Aside {
		if c, err := h.shm.Aside(r.tap.TGID, name); err == nil {
			f.aside += c.Read.Completed + c.Write.Completed
		}
	}
	if ring, when, err := h.shm.Ring(v); err == nil {
		if when != f.written || ring != f.ring {
			f.rings.add(&ring)
		}
		f.ring, f.written = ring, when
	}
	if threads, err := stat.ReadSched(h.proc, r.tap.TGID); err == nil {
		f.process.add(threads)
	}
}

func (s *ringSum) add(r *shm.Ring) {
	s.samples++
	s.occupied += uint64(r.Occupied())
	s.waiting += uint64(r.Waiting())
	if r.Occupied() == r.Size {
		s.full++
	}
}

// readHost reads what there is of the host.
func (h host) readHost(f *figures, network bool, servers map[netip.AddrPort]bool) {
	f.when, f.err = time.Now(), nil
	keep := func(err error) {
		if f.err == nil {
			f.err = err
		}
	}
	cpu, err := stat.ReadCPU(h.proc)
	if err == nil {
		f.cpu = cpu
	}
	keep(err)
	f.idle, err = h.shm.Idle()
	f.hasID = err == nil // cpumond need not run
	f.nfs = nil
	if network {
		f.nfs, err = stat.ReadNFS(h.proc)
		keep(err)
	}
	f.tcp, err = f.meter.Read(servers)
	keep(err)
}
