//go:build linux

package bpf

// Hist is a histogram of latencies: struct dt_hist. The buckets are those of
// DiskBucket.
type Hist struct {
	Count  uint64
	SumNs  uint64
	MaxNs  uint64
	Bucket [diskBuckets]uint32
}

// NumLayers is DT_LAYERS: they are numbered as event.Layer, which says what they are.
const NumLayers = 9

// Entries of TapdiskStats.Requests.
const (
	GuestRead = iota
	GuestWrite
	numGuestOps
)

// RequestStats count a guest's requests of one kind since its tapdisk was added.
type RequestStats struct {
	Bytes   uint64
	Failed  uint64
	Merged  uint64 // that shared their I/O with others
	Unsplit uint64 // of whose I/O no block request was seen
	Layers  [NumLayers]Hist
}

// TapdiskStats is what is known of the requests that a tapdisk served.
type TapdiskStats struct {
	Requests [numGuestOps]RequestStats
	OwnIO    Hist // I/O that is no guest's, such as that of the image's tables: from io_submit until it was picked up
}

// TapdiskConfig says which requests of a tapdisk are told by records of their own.
type TapdiskConfig struct {
	SlowNs   [numGuestOps]uint64 // that took so long; 0: none
	Sample   uint32              // one of so many; 0: none
	NoDevice bool                // its images are on no block device
}
