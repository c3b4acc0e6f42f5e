//go:build linux

package guestio

import (
	"cmp"
	"maps"
	"net/netip"
	"slices"
	"time"

	"github.com/xenserver/dtagent/probes/guestio/shm"
	"github.com/xenserver/dtagent/probes/guestio/stat"
)

// Ring is what was seen of the ring between a guest and its tapdisk, which writes it
// down at most each 5 seconds.
type Ring struct {
	Size     uint32  `json:"size"`     // requests that it holds
	Occupied float64 `json:"occupied"` // on it or being served; the mean of the samples
	Waiting  float64 `json:"waiting"`  // of those, not taken off it yet; the mean of the samples
	Full     uint64  `json:"full"`     // samples in which Occupied was Size
	Samples  uint64  `json:"samples"`  // in the interval; 0: the figures are the last that there were
}

// Process is what a tapdisk did, by its own figures and those of the kernel.
type Process struct {
	PID           uint32    `json:"pid"`
	Seconds       float64   `json:"seconds"` // that the figures are of
	CPU           float64   `json:"cpu"`     // part of the time that it ran: 1 is a whole CPU
	RunQueue      float64   `json:"runq"`    // part of the time that it could have run and had no CPU
	InFlight      uint64    `json:"in_flight"`
	MeanInFlight  float64   `json:"mean_in_flight"` // where it had any
	Busy          uint64    `json:"busy"`           // samples in which it had any
	Errors        uint64    `json:"errors"`
	LowMemory     bool      `json:"low_memory"`
	Paused        bool      `json:"paused"`
	PausedSeconds float64   `json:"paused_seconds"` // since the last sample
	Pauses        uint64    `json:"pauses"`         // since the disk is watched
	Polling       bool      `json:"polling"`        // it looks at the ring again and again after a request, which takes CPU by design
	Aside         uint64    `json:"aside"`          // requests that did not come by the ring
	Read          Processed `json:"read"`
	Write         Processed `json:"write"`
}

// Processed are requests of one kind that a tapdisk answered.
type Processed struct {
	Total    uint64  `json:"total"` // since the guest connected the disk
	Done     uint64  `json:"done"`
	Bytes    uint64  `json:"bytes"`
	MeanUs   float64 `json:"mean_us"`
	LongestU float64 `json:"max_us"` // since the guest connected the disk
}

// QEMU is the process that emulates devices for a guest.
type QEMU struct {
	PID uint32  `json:"pid"`
	CPU float64 `json:"cpu"`
}

// Host is dom0.
type Host struct {
	Seconds float64  `json:"seconds"`
	CPUs    int      `json:"cpus"`
	Idle    float64  `json:"idle"`  // part of the time of all CPUs
	Steal   float64  `json:"steal"` // the same: Xen ran others instead
	Cpumond *float64 `json:"cpumond_idle,omitempty"`
}

// SR is a storage repository that disks are in.
type SR struct {
	UUID   string `json:"uuid"`
	Type   string `json:"type,omitempty"`
	Server string `json:"server,omitempty"`
	Disks  int    `json:"disks"`
	NFS    *NFS   `json:"nfs,omitempty"`
	TCP    []TCP  `json:"tcp,omitempty"`
}

// NFS are the calls of a mount in the interval.
type NFS struct {
	Mount    string  `json:"mount"`
	Seconds  float64 `json:"seconds"`
	Connects uint64  `json:"connects"`
	Read     RPC     `json:"read"`
	Write    RPC     `json:"write"`
	Other    RPC     `json:"other"`
}

// RPC are calls of a kind. Times are means.
type RPC struct {
	Ops           uint64  `json:"ops"`
	Bytes         uint64  `json:"bytes"`
	BacklogUs     float64 `json:"backlog_us"`
	RTTUs         float64 `json:"rtt_us"`
	ExecuteUs     float64 `json:"execute_us"`
	Retransmitted uint64  `json:"retransmitted"`
	Timeouts      uint64  `json:"timeouts"`
	Errors        uint64  `json:"errors"`
}

// TCP are the connections to a server.
type TCP struct {
	Server        string  `json:"server"`
	Seconds       float64 `json:"seconds"`
	Connections   int     `json:"connections"`
	Opened        uint64  `json:"opened"`
	RTTUs         float64 `json:"rtt_us"`
	RTTVarUs      float64 `json:"rttvar_us"`
	MinRTTUs      float64 `json:"min_rtt_us"`
	Segments      uint64  `json:"segments"`
	Retransmitted uint64  `json:"retransmitted"`
	Unacked       uint64  `json:"unacked"`
	Lost          uint64  `json:"lost"`
}

// less returns a-b, 0 if that is negative: a counter may begin anew.
func less(a, b uint64) uint64 {
	if a < b {
		return 0
	}
	return a - b
}

func part(d, of time.Duration) float64 {
	if of <= 0 || d <= 0 {
		return 0
	}
	return float64(d) / float64(of)
}

// figures fills in what is known of a disk without eBPF.
func (v *VBD) figures(d *disk, l *last, host *figures, now time.Time) {
	f, b := &l.steps.now, &l.steps.before
	took := time.Duration(0)
	if !b.when.IsZero() {
		took = f.when.Sub(b.when)
	}
	if d.qemu != 0 {
		v.QEMU = &QEMU{PID: d.qemu, CPU: part(f.qemu.running-b.qemu.running, took)}
	}
	if d.tap == nil {
		return
	}
	paused := d.pauses.until(now)
	t := &Process{
		PID: d.tap.TGID, Seconds: took.Seconds(),
		CPU: part(f.process.running-b.process.running, took), RunQueue: part(f.process.runq-b.process.runq, took),
		Paused: !d.pauses.since.IsZero(), PausedSeconds: (paused - l.paused).Seconds(), Pauses: d.pauses.count,
	}
	l.paused = paused
	// As tapdisk decides it: without cpumond it takes dom0 for busy.
	t.Polling = d.polls > 0 && host.hasID && host.idle*100 > float64(d.idle)
	v.Tapdisk = t
	if took > 0 {
		t.Aside = less(f.aside, b.aside)
	}
	if f.counted {
		c := &f.counters
		t.InFlight, t.Errors, t.LowMemory = c.InFlight(), c.Errors, c.LowMemory
		if t.Busy = f.inflight.samples - b.inflight.samples; t.Busy > 0 {
			t.MeanInFlight = float64(f.inflight.requests-b.inflight.requests) / float64(t.Busy)
		}
		before := &b.counters
		if !b.counted {
			before = c
		}
		t.Read = processed(&c.Read, &before.Read, f.longest.ReadMax)
		t.Write = processed(&c.Write, &before.Write, f.longest.WriteMax)
	}
	if f.ring.Size > 0 {
		v.Ring = ringOf(f, b)
	}
}

func ringOf(f, b *figure) *Ring {
	r := &Ring{Size: f.ring.Size, Samples: f.rings.samples - b.rings.samples}
	sums := ringSum{1, uint64(f.ring.Occupied()), uint64(f.ring.Waiting()), 0}
	if f.ring.Occupied() == f.ring.Size {
		sums.full = 1
	}
	if r.Samples > 0 {
		sums = ringSum{r.Samples, f.rings.occupied - b.rings.occupied, f.rings.waiting - b.rings.waiting, f.rings.full - b.rings.full}
	}
	r.Occupied, r.Waiting, r.Full = float64(sums.occupied)/float64(sums.samples), float64(sums.waiting)/float64(sums.samples), sums.full
	return r
}

func processed(now, before *shm.Requests, longest time.Duration) Processed {
	const sector = 512
	r := Processed{
		Total: now.Completed, Done: less(now.Completed, before.Completed), Bytes: less(now.Sectors, before.Sectors) * sector,
		LongestU: microseconds(longest),
	}
	if r.Done > 0 {
		r.MeanUs = max(microseconds(now.Time-before.Time), 0) / float64(r.Done)
	}
	return r
}

// hostOf is nil until there are two readings.
func hostOf(b, f *figures) *Host {
	if b.when.IsZero() || b.cpu.CPUs == 0 {
		return nil
	}
	took := f.cpu.Total - b.cpu.Total
	h := &Host{Seconds: f.when.Sub(b.when).Seconds(), CPUs: f.cpu.CPUs, Idle: part(f.cpu.Idle-b.cpu.Idle, took), Steal: part(f.cpu.Steal-b.cpu.Steal, took)}
	if f.hasID {
		idle := f.idle
		h.Cpumond = &idle
	}
	return h
}

// repositories returns those that disks are in. It needs the Probe's mu.
func (w *Watcher) repositories() []SR {
	f, b := &w.host.now, &w.host.before
	seconds := 0.
	if !b.when.IsZero() {
		seconds = f.when.Sub(b.when).Seconds()
	}
	by := map[string]*SR{}
	servers := map[string]map[netip.AddrPort]bool{}
	for _, d := range w.p.disks {
		g := d.whose.guest
		if g == nil || g.SR == "" {
			continue
		}
		s := by[g.SR]
		if s == nil {
			s = &SR{UUID: g.SR}
			by[g.SR], servers[g.SR] = s, map[netip.AddrPort]bool{}
		}
		s.Disks++
		s.Type, s.Server = cmp.Or(s.Type, g.SRType), cmp.Or(s.Server, g.Server)
		if now, ok := f.nfs[d.whose.mount]; ok && s.NFS == nil {
			s.NFS = nfsOf(d.whose.mount, now, b.nfs, seconds)
		}
		for _, a := range d.whose.servers {
			servers[g.SR][a] = true
		}
	}
	out := make([]SR, 0, len(by))
	for uuid, s := range by {
		for _, a := range slices.SortedFunc(maps.Keys(servers[uuid]), netip.AddrPort.Compare) {
			if now, ok := f.tcp[a]; ok {
				s.TCP = append(s.TCP, tcpOf(a, now, b.tcp, seconds))
			}
		}
		out = append(out, *s)
	}
	slices.SortFunc(out, func(a, b SR) int { return cmp.Compare(a.UUID, b.UUID) })
	return out
}

func nfsOf(mount string, now stat.NFS, all map[string]stat.NFS, seconds float64) *NFS {
	before, ok := all[mount]
	if !ok || before.Source != now.Source {
		before = now // nothing is known of the interval
	}
	return &NFS{
		Mount: mount, Seconds: seconds, Connects: less(now.Connects, before.Connects),
		Read: rpcOf(&now.Read, &before.Read), Write: rpcOf(&now.Write, &before.Write), Other: rpcOf(&now.Other, &before.Other),
	}
}

func rpcOf(now, before *stat.RPC) RPC {
	r := RPC{
		Ops: less(now.Ops, before.Ops), Bytes: less(now.Bytes, before.Bytes), Retransmitted: less(now.Retransmitted(), before.Retransmitted()),
		Timeouts: less(now.Major, before.Major), Errors: less(now.Errors, before.Errors),
	}
	mean := func(d time.Duration) float64 {
		if r.Ops == 0 {
			return 0
		}
		return max(microseconds(d), 0) / float64(r.Ops)
	}
	r.BacklogUs, r.RTTUs, r.ExecuteUs = mean(now.Queue-before.Queue), mean(now.RTT-before.RTT), mean(now.Execute-before.Execute)
	return r
}

func tcpOf(server netip.AddrPort, now stat.TCP, all map[netip.AddrPort]stat.TCP, seconds float64) TCP {
	before, ok := all[server]
	if !ok {
		before = now
	}
	return TCP{
		Server: server.String(), Seconds: seconds, Connections: now.Connections, Opened: less(now.Opened, before.Opened),
		RTTUs: microseconds(now.RTT), RTTVarUs: microseconds(now.RTTVar), MinRTTUs: microseconds(now.MinRTT),
		Segments: less(now.Segments, before.Segments), Retransmitted: less(now.Retrans, before.Retrans), Unacked: now.Unacked, Lost: now.Lost,
	}
}
