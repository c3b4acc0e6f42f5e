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
	for i := range s.VBDs {
		if v := &s.VBDs[i]; v.Seen {
			w.Disks = append(w.Disks, diskOf(v))
		}
	}
	return w
}

func diskOf(v *guestio.VBD) verdict.Disk {
	d := verdict.Disk{
		ID: v.Backend, Backend: v.Kind, Barriers: v.Flush.Interval.Ops,
		GuestDisk: event.GuestDisk{Domid: v.Domid, Devid: v.Devid, Device: v.Device, VM: v.VMUUID, Name: v.Domain, Devices: v.Devices},
	}
	if v.VMUUID != "" { // a domain id does not outlive a reboot
		d.ID = v.Kind + " " + v.VMUUID + " " + v.Device
	}
	for op, io := range []*guestio.IO{verdict.Read: &v.Read, verdict.Write: &v.Write} {
		d.Requests[op] = blockOf(&io.Interval)
	}
	return d
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
	h := verdict.Hist{Count: l.Hist.Count, Sum: time.Duration(l.Hist.SumNs), Max: time.Duration(l.Max * 1e3)}
	last := -1
	for i, n := range l.Hist.Bucket {
		if n > 0 {
			last = i
		}
	}
	h.Buckets = append(h.Buckets, l.Hist.Bucket[:last+1]...)
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
