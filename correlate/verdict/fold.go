package verdict

import (
	"slices"
	"time"
)

// Fold makes one window of several that follow each other. What is a mean is weighted
// by how long the windows are, or by samples where there are some. It returns nil of
// none.
func Fold(windows []*Window) *Window {
	if len(windows) == 0 {
		return nil
	}
	all := &Window{Start: windows[0].Start}
	disks := map[string]*foldedDisk{}
	srs := map[string]*SR{}
	var order, srOrder []string
	hosts := 0.0
	for _, w := range windows {
		t := w.Duration.Seconds()
		all.Duration += w.Duration
		if h := w.Host; h != nil {
			if all.Host == nil {
				all.Host = &Host{}
			}
			all.Host.CPUs = h.CPUs
			all.Host.Idle += h.Idle * t
			all.Host.Steal += h.Steal * t
			hosts += t
		}
		for i := range w.Operations {
			o := w.Operations[i]
			at := slices.IndexFunc(all.Operations, func(a Operation) bool {
				return a.ID == o.ID && a.Kind == o.Kind && a.VM == o.VM && a.VDI == o.VDI && a.SR == o.SR && a.Start.Equal(o.Start)
			})
			if at < 0 {
				all.Operations = append(all.Operations, o)
			} else {
				all.Operations[at] = o
			}
		}
		for i := range w.Disks {
			d := &w.Disks[i]
			to := disks[d.ID]
			if to == nil {
				to = &foldedDisk{}
				disks[d.ID] = to
				order = append(order, d.ID)
			}
			to.add(d, t)
		}
		for i := range w.SRs {
			s := &w.SRs[i]
			to := srs[s.UUID]
			if to == nil {
				to = &SR{}
				srs[s.UUID] = to
				srOrder = append(srOrder, s.UUID)
			}
			addSR(to, s)
		}
	}
	if all.Host != nil && hosts > 0 {
		all.Host.Idle /= hosts
		all.Host.Steal /= hosts
	}
	for _, id := range order {
		all.Disks = append(all.Disks, disks[id].end())
	}
	for _, id := range srOrder {
		s := srs[id]
		if s.TCP != nil && s.TCP.Segments > 0 { // it was weighted by them
			s.TCP.RTT /= time.Duration(s.TCP.Segments)
		}
		all.SRs = append(all.SRs, *s)
	}
	return all
}

// foldedDisk is one while windows are added.
type foldedDisk struct {
	Disk
	seconds float64 // of Process
}

func (f *foldedDisk) add(d *Disk, seconds float64) {
	before := f.Disk
	f.Disk = *d // who it is as it was known last
	f.Requests, f.Own, f.Barriers, f.Lost = before.Requests, before.Own, before.Barriers+d.Barriers, before.Lost+d.Lost
	f.Ring, f.Shm, f.Process, f.Emulated = before.Ring, before.Shm, before.Process, before.Emulated
	for op := range d.Requests {
		to, r := &f.Requests[op], &d.Requests[op]
		to.Bytes += r.Bytes
		to.Failed += r.Failed
		to.Merged += r.Merged
		to.Unsplit += r.Unsplit
		for l := range r.Layers {
			to.Layers[l].Add(&r.Layers[l])
		}
	}
	if d.Own != nil {
		if f.Own == nil {
			f.Own = &Hist{}
		}
		f.Own.Add(d.Own)
	}
	if r := d.Ring; r != nil {
		if f.Ring == nil {
			f.Ring = &Ring{}
		}
		n := float64(r.Samples)
		f.Ring.Size = r.Size
		f.Ring.Occupied += n * r.Occupied
		f.Ring.Waiting += n * r.Waiting
		f.Ring.Full += n * r.Full
		f.Ring.Samples += r.Samples
	}
	if s := d.Shm; s != nil {
		if f.Shm == nil {
			f.Shm = &Shm{}
		}
		for op := range s.Done {
			f.Shm.Mean[op] += s.Mean[op] * time.Duration(s.Done[op])
			f.Shm.Done[op] += s.Done[op]
		}
		f.Shm.Outstanding += float64(s.Samples) * s.Outstanding
		f.Shm.Samples += s.Samples
	}
	if p := d.Process; p != nil {
		if f.Process == nil {
			f.Process = &Process{}
		}
		f.seconds += seconds
		f.Process.CPU += seconds * p.CPU
		f.Process.RunQueue += seconds * p.RunQueue
		f.Process.NoSlots += seconds * p.NoSlots
		f.Process.Paused += p.Paused
		f.Process.Polling = f.Process.Polling || p.Polling
	}
	if e := d.Emulated; e != nil {
		if f.Emulated == nil {
			f.Emulated = &Emulated{}
		}
		f.Emulated.Requests += e.Requests
		f.Emulated.CPU = max(f.Emulated.CPU, e.CPU)
	}
	if len(before.Chain) == len(d.Chain) {
		f.Chain = slices.Clone(d.Chain)
		for i := range before.Chain {
			for op := range before.Chain[i].Hits {
				f.Chain[i].Hits[op] += before.Chain[i].Hits[op]
			}
		}
	}
}

// end divides what was weighted.
func (f *foldedDisk) end() Disk {
	if r := f.Ring; r != nil && r.Samples > 0 {
		n := float64(r.Samples)
		r.Occupied, r.Waiting, r.Full = r.Occupied/n, r.Waiting/n, r.Full/n
	}
	if s := f.Shm; s != nil {
		for op, n := range s.Done {
			if n > 0 {
				s.Mean[op] /= time.Duration(n)
			}
		}
		if s.Samples > 0 {
			s.Outstanding /= float64(s.Samples)
		}
	}
	if p := f.Process; p != nil && f.seconds > 0 {
		p.CPU, p.RunQueue, p.NoSlots = p.CPU/f.seconds, p.RunQueue/f.seconds, p.NoSlots/f.seconds
	}
	return f.Disk
}

func addSR(to, s *SR) {
	nfs, tcp, paths := to.NFS, to.TCP, to.Paths
	*to = *s
	if n := s.NFS; n != nil {
		sum := *n
		if nfs != nil {
			sum.Ops += nfs.Ops
			sum.Backlog += nfs.Backlog
			sum.RTT += nfs.RTT
			sum.Retrans += nfs.Retrans
			sum.Timeouts += nfs.Timeouts
		}
		to.NFS = &sum
	} else {
		to.NFS = nfs
	}
	if t := s.TCP; t != nil {
		sum := *t
		sum.Segments = max(sum.Segments, 1)
		sum.RTT *= time.Duration(sum.Segments)
		if tcp != nil {
			sum.RTT += tcp.RTT
			sum.Segments += tcp.Segments
			sum.Retrans += tcp.Retrans
		}
		to.TCP = &sum
	} else {
		to.TCP = tcp
	}
	if p := s.Paths; p != nil {
		sum := *p
		if paths != nil {
			sum.Events += paths.Events
			sum.Active = min(sum.Active, paths.Active)
			if sum.Last == "" {
				sum.Last = paths.Last
			}
		}
		to.Paths = &sum
	} else {
		to.Paths = paths
	}
}
