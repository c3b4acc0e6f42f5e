package verdict

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/xenserver/dtagent/probes/event"
)

// Cause is why the requests of a disk take longer than is usual.
type Cause string

// Causes. docs/verdict.md explains each.
const (
	Healthy        Cause = "healthy"         // nothing is wrong in dom0 and below
	TooFew         Cause = "too-few"         // too few requests to say anything
	OwnLoad        Cause = "own-load"        // the guest asks for more than is usual, and waits for that
	Device         Cause = "device"          // the storage is slow
	Server         Cause = "server"          // the NFS server is slow, the network to it is not
	Network        Cause = "network"         // the network to the storage is
	PathFailover   Cause = "path-failover"   // a path to the storage failed
	NoisyNeighbour Cause = "noisy-neighbour" // another disk's load takes the storage
	Dom0CPU        Cause = "dom0-cpu"        // tapdisk waits for a CPU in dom0
	Steal          Cause = "steal"           // dom0's CPUs wait for Xen
	TapdiskCPU     Cause = "tapdisk-cpu"     // tapdisk needs a whole CPU
	Tapdisk        Cause = "tapdisk"         // tapdisk holds requests up, and it is not seen why
	QueueLimit     Cause = "queue-limit"     // all places for requests are taken
	QoS            Cause = "qos"             // a limit is set, and reached
	Pause          Cause = "pause"           // tapdisk was paused: snapshot, coalesce, resize
	DeepChain      Cause = "deep-chain"      // the image's tables and parents cost I/O of their own
	SubmitBlocking Cause = "submit-blocking" // handing I/O to the kernel blocks
	Copy           Cause = "copy"            // copying between guest and dom0 is slow
	FlushStorm     Cause = "flush-storm"     // the guest's barriers make it wait for itself
	EmulatedDisk   Cause = "emulated"        // the guest uses the emulated disk
	Unknown        Cause = "unknown"         // it is slower, and no layer stands out
)

// fault tells whether something holds requests up.
func (c Cause) fault() bool { return c != Healthy && c != TooFew && c != OwnLoad }

// Fault tells whether something holds requests up that should not.
func (c Cause) Fault() bool { return c.fault() }

// Places outside the layers of event.Layer.
const (
	placeRing     = "ring"     // on the ring, not taken off it yet
	placeEmulator = "emulator" // in QEMU
)

// Who says whose disk a Finding is of.
type Who struct {
	ID     string `json:"id"`
	VM     string `json:"vm_uuid"`
	Name   string `json:"vm_name"`
	Domid  uint32 `json:"domid"`
	Device string `json:"device"`
	VBD    string `json:"vbd_uuid,omitempty"`
	VDI    string `json:"vdi_uuid,omitempty"`
	SR     string `json:"sr_uuid,omitempty"`
	SRType string `json:"sr_type,omitempty"`
}

func (w Who) String() string {
	name := cmp.Or(w.Name, w.VM, fmt.Sprintf("domain %d", w.Domid))
	return strings.TrimSpace(name + " " + cmp.Or(w.Device, w.VBD, w.ID))
}

// Neighbour is another disk of the SR that says something of this one.
type Neighbour struct {
	Who
	Says string `json:"says"` // in words, with figures
}

// Finding is what is held of a disk in a window.
type Finding struct {
	Disk       Who           `json:"disk"`
	Start      time.Time     `json:"start"`
	Duration   time.Duration `json:"-"`
	Seconds    float64       `json:"seconds"`
	Cause      Cause         `json:"cause"`
	Layer      string        `json:"layer,omitempty"` // as event.Layer names it, or ring, or emulator; "": none
	Confidence float64       `json:"confidence"`      // 0 to 1
	Op         string        `json:"op,omitempty"`    // read or write, that of which Latency is
	Requests   uint64        `json:"requests"`        // of both kinds

	Latency time.Duration `json:"latency_ns"` // of Op: mean, of a finding about few long ones that of these
	Usual   time.Duration `json:"usual_ns"`   // at this load
	Added   time.Duration `json:"added_ns"`
	Ratio   float64       `json:"ratio,omitempty"` // of Latency to Usual

	Shares     map[string]float64 `json:"shares,omitempty"` // of the added time, by layer: 1 in all
	Against    string             `json:"against"`          // what Usual is from
	Evidence   []string           `json:"evidence"`
	Neighbours []Neighbour        `json:"neighbours,omitempty"`
	Advice     string             `json:"advice,omitempty"`
	Team       string             `json:"team,omitempty"` // whose it is
}

// Sure is Confidence in a word.
func (f *Finding) Sure() string {
	switch {
	case f.Confidence >= 0.8:
		return "high"
	case f.Confidence >= 0.55:
		return "medium"
	}
	return "low"
}

// Headline is a Finding in a line.
func (f *Finding) Headline() string {
	s := f.Disk.String() + ": " + f.Cause.Title()
	if f.Cause.fault() {
		s += fmt.Sprintf(" (confidence %s, %.0f %%)", f.Sure(), 100*f.Confidence)
	}
	return s
}

// Text returns a Finding in lines.
func (f *Finding) Text() string {
	var b strings.Builder
	fmt.Fprintln(&b, f.Headline())
	if f.Added > 0 && f.Op != "" {
		fmt.Fprintf(&b, "  %ss: %s, usual %s: +%s, %s times\n", f.Op, Span(f.Latency), Span(f.Usual), Span(f.Added), times(f.Ratio))
	}
	if len(f.Shares) > 0 {
		var parts []string
		for _, s := range f.ranked() {
			if s.share >= 0.005 {
				parts = append(parts, fmt.Sprintf("%s %.0f %%", s.layer, 100*s.share))
			}
		}
		fmt.Fprintf(&b, "  added time by layer: %s\n", strings.Join(parts, ", "))
	}
	for _, e := range f.Evidence {
		fmt.Fprintf(&b, "  - %s\n", e)
	}
	for _, n := range f.Neighbours {
		fmt.Fprintf(&b, "  neighbour %s: %s\n", n.Who, n.Says)
	}
	if f.Against != "" {
		fmt.Fprintf(&b, "  compared with: %s\n", f.Against)
	}
	if f.Advice != "" {
		fmt.Fprintf(&b, "  do: %s", f.Advice)
		if f.Team != "" {
			fmt.Fprintf(&b, " [%s]", f.Team)
		}
		b.WriteByte('\n')
	}
	return b.String()
}

type share struct {
	layer string
	share float64
}

// ranked are the shares, the largest first.
func (f *Finding) ranked() []share {
	s := make([]share, 0, len(f.Shares))
	for l, v := range f.Shares {
		s = append(s, share{l, v})
	}
	slices.SortFunc(s, func(a, b share) int { return cmp.Or(cmp.Compare(b.share, a.share), cmp.Compare(a.layer, b.layer)) })
	return s
}

// Span prints three digits of a time.
func Span(d time.Duration) string {
	f := float64(d)
	for _, u := range []struct {
		ns   float64
		name string
	}{{1e9, "s"}, {1e6, "ms"}, {1e3, "µs"}} {
		if f >= u.ns || u.ns == 1e3 {
			v := f / u.ns
			switch {
			case v < 10:
				return fmt.Sprintf("%.2f %s", v, u.name)
			case v < 100:
				return fmt.Sprintf("%.1f %s", v, u.name)
			}
			return fmt.Sprintf("%.0f %s", v, u.name)
		}
	}
	return d.String()
}

func times(r float64) string {
	if r < 10 {
		return fmt.Sprintf("%.1f", r)
	}
	return fmt.Sprintf("%.0f", r)
}

// layerWords say in a few words what a layer is.
var layerWords = [event.NumLayers]string{
	event.LayerTotal:    "in all",
	event.LayerRunQueue: "waiting for a CPU of dom0",
	event.LayerTapdisk:  "in tapdisk",
	event.LayerMetadata: "waiting in tapdisk for the image's tables or for a free place",
	event.LayerCopy:     "being copied between guest and dom0",
	event.LayerSubmit:   "in io_submit",
	event.LayerQueue:    "in the queue of the block layer or of the NFS client",
	event.LayerDevice:   "at the device or server",
	event.LayerPickup:   "done, until tapdisk saw it",
}
