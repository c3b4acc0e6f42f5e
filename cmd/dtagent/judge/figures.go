package judge

import (
	"strings"
	"time"

	"github.com/xenserver/dtagent/bpf"
	"github.com/xenserver/dtagent/correlate/verdict"
	"github.com/xenserver/dtagent/probes/event"
	"github.com/xenserver/dtagent/probes/guestio"
)

// Window returns what a sample says as verdict takes it. Disks that are not seen are
// left out.
func Window(s *guestio.Sample) *verdict.Window {
	d := time.Duration(s.Seconds * float64(time.Second))
	w := &verdict.Window{Start: s.Time.Add(-d), Duration: d}
	if h := s.Host; h != nil && h.Seconds > 0 {
		w.Host = &verdict.Host{CPUs: h.CPUs, Idle: h.Idle, Steal: h.Steal}
	}
	for i := range s.VBDs {
		if v := &s.VBDs[i]; seen(v) {
			w.Disks = append(w.Disks, diskOf(v))
		}
	}
	for i := range s.SRs {
		w.SRs = append(w.SRs, srOf(&s.SRs[i]))
	}
	return w
}

// seen tells whether the requests of a disk are counted anywhere.
func seen(v *guestio.VBD) bool { return v.Seen || v.Counted != nil }

func diskOf(v *guestio.VBD) verdict.Disk {
	d := verdict.Disk{
		ID: v.Backend, Backend: v.Kind,
		GuestDisk: event.GuestDisk{
			Domid: v.Domid, Devid: v.Devid, Device: v.Device, VM: v.VMUUID, Name: v.Domain, VDI: v.VDI, SR: v.SR, SRType: v.SRType,
			Type: v.ImageType, Images: v.Images, Devices: v.Devices, Server: v.Server,
		},
	}
	if v.VMUUID != "" { // a domain id does not outlive a reboot
		d.ID = v.Kind + " " + v.VMUUID + " " + v.Device
	}
	for _, name := range v.Images {
		d.Chain = append(d.Chain, verdict.Image{Name: name})
	}
	if c := v.Counted; c != nil {
		d.Layered = true
		for op := range c.Requests {
			d.Requests[op] = requestsOf(&c.Requests[op])
		}
		own := kernelHist(&c.OwnIO)
		d.Own = &own
	} else {
		for op, io := range []*guestio.IO{verdict.Read: &v.Read, verdict.Write: &v.Write} {
			d.Requests[op] = blockOf(&io.Interval)
		}
	}
	if v.Tapdisk == nil { // what a tapdisk flushes is no barrier of the guest
		d.Barriers = v.Flush.Interval.Ops
	}
	around(v, &d)
	return d
}

// around fills in what is known without eBPF.
func around(v *guestio.VBD, d *verdict.Disk) {
	if r := v.Ring; r != nil && r.Samples > 0 {
		d.Ring = &verdict.Ring{Size: r.Size, Occupied: r.Occupied, Waiting: r.Waiting, Full: float64(r.Full) / float64(r.Samples), Samples: uint32(r.Samples)}
	}
	if t := v.Tapdisk; t != nil && t.Seconds > 0 {
		d.Process = &verdict.Process{CPU: t.CPU, RunQueue: t.RunQueue, Paused: time.Duration(t.PausedSeconds * float64(time.Second)), Polling: t.Polling}
		d.Shm = &verdict.Shm{Outstanding: t.MeanInFlight, Samples: uint32(t.Busy)}
		for op, p := range []*guestio.Processed{verdict.Read: &t.Read, verdict.Write: &t.Write} {
			d.Shm.Mean[op], d.Shm.Done[op] = time.Duration(p.MeanUs*1e3), p.Done
		}
		if v.QEMU != nil {
			d.Emulated = &verdict.Emulated{Requests: t.Aside, CPU: v.QEMU.CPU}
		}
	}
}

func requestsOf(r *bpf.RequestStats) verdict.Requests {
	q := verdict.Requests{Bytes: r.Bytes, Failed: r.Failed, Merged: r.Merged, Unsplit: r.Unsplit}
	for l := range r.Layers {
		q.Layers[l] = kernelHist(&r.Layers[l])
	}
	return q
}

func srOf(s *guestio.SR) verdict.SR {
	r := verdict.SR{UUID: s.UUID, Type: s.Type}
	if n := s.NFS; n != nil {
		r.NFS = &verdict.NFS{Server: s.Server}
		for _, c := range []*guestio.RPC{&n.Read, &n.Write} {
			r.NFS.Ops += c.Ops
			r.NFS.Backlog += time.Duration(float64(c.Ops) * c.BacklogUs * 1e3)
			r.NFS.RTT += time.Duration(float64(c.Ops) * c.RTTUs * 1e3)
			r.NFS.Retrans += c.Retransmitted
			r.NFS.Timeouts += c.Timeouts
		}
	}
	if len(s.TCP) > 0 {
		r.TCP = &verdict.TCP{}
		var sum, n float64
		var peers []string
		for _, t := range s.TCP {
			peers = append(peers, t.Server)
			sum += t.RTTUs * float64(t.Connections)
			n += float64(t.Connections)
			r.TCP.Segments += t.Segments
			r.TCP.Retrans += t.Retransmitted
		}
		r.TCP.Peer = strings.Join(peers, ", ")
		r.TCP.RTT = time.Duration(sum / max(n, 1) * 1e3)
	}
	return r
}

// blockOf is of I/O that is seen from the block layer on only.
func blockOf(r *guestio.Rates) (q verdict.Requests) {
	q.Bytes, q.Failed = r.Bytes, r.Errors
	if r.Latency == nil {
		return q
	}
	total := histOf(r.Latency)
	q.Layers[event.LayerTotal] = total
	if r.Device == nil { // a device without requests, such as the device mapper's: what is queue and what device is not known
		q.Layers[event.LayerDevice], q.Unsplit = total, total.Count
		return q
	}
	device := histOf(r.Device)
	// Its requests are other ones, merged or split: only their mean is of use.
	device.Sum = min(device.Mean()*time.Duration(total.Count), total.Sum)
	device.Count = total.Count
	q.Layers[event.LayerDevice] = device
	q.Layers[event.LayerQueue] = verdict.Hist{Count: total.Count, Sum: total.Sum - device.Sum}
	return q
}

// histOf is of an interval, of which the exact maximum is not known.
func histOf(l *guestio.Latency) verdict.Hist {
	if l.Hist == nil {
		return verdict.Hist{}
	}
	h := kernelHist(l.Hist)
	h.Max = time.Duration(l.Max * 1e3)
	return h
}

func kernelHist(k *bpf.Hist) verdict.Hist {
	h := verdict.Hist{Count: k.Count, Sum: time.Duration(k.SumNs), Max: time.Duration(k.MaxNs)}
	last := -1
	for i, n := range k.Bucket {
		if n > 0 {
			last = i
		}
	}
	h.Buckets = append(h.Buckets, k.Bucket[:last+1]...)
	return h
}

var _ = [1]struct{}{}[len(bpf.Hist{}.Bucket)-verdict.Buckets] // they have the same buckets

// WhoOf says whose disk it is.
func WhoOf(v *guestio.VBD) verdict.Who {
	d := diskOf(v)
	return verdict.Who{ID: d.ID, VM: d.VM, Name: d.Name, Domid: d.Domid, Device: d.Device, VBD: d.VBD, VDI: d.VDI, SR: d.SR, SRType: d.SRType}
}

// isID tells whether an operator named a uuid; its first 8 characters are enough.
func isID(id, what string) bool {
	return id != "" && (id == what || len(what) >= 8 && strings.HasPrefix(id, what))
}

// IsVM tells whether what is the uuid or the name of the disk's VM.
func IsVM(w *verdict.Who, what string) bool { return isID(w.VM, what) || w.Name == what }

// IsSR tells whether what is the uuid of the disk's SR.
func IsSR(w *verdict.Who, what string) bool { return isID(w.SR, what) }

// IsVBD tells whether what is the disk: the uuid of its VBD or VDI, or VM/device.
func IsVBD(w *verdict.Who, what string) bool {
	if isID(w.VBD, what) || isID(w.VDI, what) || w.ID == what {
		return true
	}
	vm, device, both := cutLast(what, "/")
	return both && device == w.Device && IsVM(w, vm)
}

func cutLast(s, sep string) (before, after string, found bool) {
	if i := strings.LastIndex(s, sep); i >= 0 {
		return s[:i], s[i+len(sep):], true
	}
	return s, "", false
}
