package verdict

import (
	"time"

	"github.com/xenserver/dtagent/probes/event"
)

// Window is what the disks of a host did in some time, and what was so around them.
// Counts and sums are of this time alone, not since something began. What is not
// known is nil, or zero where zero says nothing.
type Window struct {
	Start      time.Time
	Duration   time.Duration
	Host       *Host
	SRs        []SR
	Disks      []Disk
	Operations []Operation // that ran in this time, whole or in part
}

// Op is a kind of a guest's requests.
type Op uint8

// Ops.
const (
	Read Op = iota
	Write
	NumOps
)

func (o Op) String() string {
	if o == Read {
		return "read"
	}
	return "write"
}

// Disk is a guest's disk.
type Disk struct {
	ID string // tells it from all others, also after the guest's reboot when it can: the VBD's uuid, else the path of its backend
	event.GuestDisk
	Backend string // vbd (blkback), vbd3 (tapdisk), qdisk

	Requests [NumOps]Requests
	// Layered says that Requests tell all layers. Else only LayerTotal, LayerQueue and
	// LayerDevice are told, and LayerTotal is from when the request was queued for the
	// block device: nothing is known of the backend itself.
	Layered bool

	Own *Hist // I/O of the backend's own, such as that of the image's tables

	Barriers uint64 // barrier or flush requests of the guest
	Ring     *Ring
	Shm      *Shm
	Process  *Process // that serves the disk: tapdisk
	Chain    []Image  // of its image, the leaf first
	QoS      string   // what limits it by configuration, in words; "": nothing that is known
	Emulated *Emulated
	Lost     uint64 // requests that are missing in Requests, because their events were lost
}

// Requests are those of a guest of one kind that were answered.
type Requests struct {
	Bytes   uint64
	Failed  uint64
	Merged  uint64 // that shared their I/O with others
	Unsplit uint64 // of whose I/O no block request was seen
	Layers  [event.NumLayers]Hist
}

// Ring is the ring between the guest and the backend, by samples taken in the window.
type Ring struct {
	Size     uint32  // requests that it holds
	Occupied float64 // requests on it or being served: mean of the samples
	Waiting  float64 // of those, not taken off it yet: mean of the samples
	Full     float64 // part of the samples in which Occupied was Size
	Samples  uint32
}

// Shm is what tapdisk itself counted.
type Shm struct {
	Mean        [NumOps]time.Duration // from taken off the ring until answered
	Done        [NumOps]uint64
	Outstanding float64 // requests that it has, mean of the samples in which there was one
	Samples     uint32  // in which there was one
}

// Process is how the process that serves a disk spent the window.
type Process struct {
	CPU      float64       // part of the time that it ran: 1 is a whole CPU
	RunQueue float64       // part of the time that it could have run and did not
	Paused   time.Duration // that it served nothing because it was told so: snapshot, coalesce, resize
	Polling  bool          // it looks at the ring all the time, which takes CPU by design
	NoSlots  float64       // part of the samples in which it had no place for a further request; 0 also when not known
}

// Image is one of a chain.
type Image struct {
	Name string
	Hits [NumOps]uint64 // requests that it served
}

// Emulated is the guest's use of the disk without its own drivers for it.
type Emulated struct {
	Requests uint64  // that came by the emulated device
	CPU      float64 // part of the time that the emulator ran
}

// Host is dom0.
type Host struct {
	CPUs  int
	Idle  float64 // part of the time of all its CPUs, 0 to 1
	Steal float64 // the same: in which Xen ran others instead
}

// SR is a storage repository.
type SR struct {
	UUID  string
	Name  string
	Type  string // nfs, lvm, lvmoiscsi, ext, …
	NFS   *NFS
	TCP   *TCP
	Paths *Paths
}

// NFS are the RPCs of a mount.
type NFS struct {
	Server   string        // host:/path
	Ops      uint64        // answered
	Backlog  time.Duration // sum over Ops: until they were sent
	RTT      time.Duration // sum over Ops: from then until they were answered
	Retrans  uint64        // requests sent again
	Timeouts uint64        // major ones
}

// TCP are the connections to the server or target of an SR.
type TCP struct {
	Peer     string
	RTT      time.Duration // smoothed, the mean of the samples
	Segments uint64        // sent
	Retrans  uint64        // of those, sent again
}

// Paths are those of a multipath device.
type Paths struct {
	Total  int
	Active int
	Events uint64 // failures and changes
	Last   string // one of those, in words
}

// Operation is something that the toolstack does to a VM, a disk or an SR.
type Operation struct {
	Kind  string // snapshot, coalesce, migrate, backup, scan, …
	Name  string // as the toolstack calls it: VM.snapshot
	ID    string // of the task
	VM    string // uuid
	VDI   string // uuid
	SR    string // uuid
	Start time.Time
	End   time.Time // zero: it goes on
}
