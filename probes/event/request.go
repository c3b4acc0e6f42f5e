package event

// Layer is a part of the way of a guest's disk request through dom0. The numbers are
// those of enum dt_layer in bpf/include/dt_tapdisk.h. For each request the layers
// after LayerTotal add up to it.
type Layer uint8

// Layers, in the order in which a request is in them.
const (
	LayerTotal    Layer = iota // from when tapdisk begins to take it off the ring until it is answered
	LayerRunQueue              // tapdisk could go on with it, and has no CPU
	LayerTapdisk               // tapdisk works on it, or on others first
	LayerMetadata              // tapdisk sleeps and has not submitted it: it waits for the image's own tables, or for a free place
	LayerCopy                  // between the guest's memory and dom0's
	LayerSubmit                // in io_submit, before the block layer or file system has it
	LayerQueue                 // until the driver has it; NFS: until it is sent
	LayerDevice                // until the driver is done with it; NFS: until it is answered
	LayerPickup                // done, until tapdisk, which is at something else, sees that
	NumLayers
)

var layerNames = [NumLayers]string{"total", "runq", "tapdisk", "metadata", "copy", "submit", "queue", "device", "pickup"}

// String returns the word that stands in dt.io.<word>_us.
func (l Layer) String() string {
	if l < NumLayers {
		return layerNames[l]
	}
	return "unknown"
}

// Layers are times in ns, by Layer.
type Layers [NumLayers]int64

// Whole tells whether the layers add up to the total, and none is negative.
func (l *Layers) Whole() bool {
	left := l[LayerTotal]
	for _, ns := range l[LayerTotal+1:] {
		if ns < 0 || ns > left {
			return false
		}
		left -= ns
	}
	return left == 0
}

// Request is one request of a guest to a disk of its that tapdisk serves.
type Request struct {
	Layers  Layers
	Usual   int64  // ns that 99 of 100 such requests of the disk took, 0 if not learned; put in by who follows the disk
	Offset  uint64 // in the image, of the first I/O that was made of it
	Bytes   uint32
	IOs     uint16 // that were made of it
	Write   bool
	Slow    bool // took longer than was asked for; else it is a sample
	Merged  bool // shares its I/O with other requests
	Failed  bool
	Unsplit bool // no block request of it was seen: all that the kernel took is LayerQueue, without block device LayerDevice
}

// GuestDisk says whose a disk is and where its data are. It does not change: when
// something becomes known there is another. What is not known is zero.
type GuestDisk struct {
	Domid  uint32 // of the guest, until it reboots or migrates
	Devid  uint32 // of the disk in it
	Device string // its name there: xvda
	VM     string // uuid
	Name   string // of the VM
	VBD    string // uuid
	VDI    string // uuid
	SR     string // uuid
	SRType string // nfs, lvm, lvmoiscsi, ext, …
	Type   string // of the image: vhd, aio, qcow2

	Images  []string // files of the chain, the leaf first; paths as tapdisk has them open
	Devices []string // block devices below them, major:minor
	Server  string   // of a network file system: host:/path
}
