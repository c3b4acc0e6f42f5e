// Package guest is how a test in dom0 tells a guest what to do with its disks, and
// how the guest tells what it did. They talk by the guest's console, a line each
// way.
package guest

import (
	"encoding/json"
	"strings"
)

// Order is what a guest is to do with a disk: Writes requests one behind the
// other from At on, then a flush, then Reads requests from At+ReadsFrom on, with as
// much of a gap between two as ReadGap: who reads ahead for the guest does not do so
// then. All go past the guest's page cache, one after the other.
type Order struct {
	Disk   string // "xvda"
	Writes int
	Reads  int
	Bytes  int   // of each request: whole pages, and no more than one request of blkfront holds
	At     int64 // nothing may have been written behind At+ReadsFrom: zeroes have to be read there
}

// Places of the requests of an order, and how much of a disk it takes.
const (
	ReadsFrom = 1 << 20
	ReadGap   = 16 << 10
	Span      = 4 << 20
)

// Done is what the guest did, by its own count and by its kernel's.
type Done struct {
	Ready  bool   `json:",omitempty"` // it takes orders
	Kernel Stat   // what /sys/block/DISK/stat grew by
	Error  string `json:",omitempty"`
}

// Stat counts the requests of a disk.
type Stat struct {
	Reads, ReadBytes   uint64
	Writes, WriteBytes uint64
}

// Sub returns how much s grew from before.
func (s Stat) Sub(before Stat) Stat {
	return Stat{s.Reads - before.Reads, s.ReadBytes - before.ReadBytes, s.Writes - before.Writes, s.WriteBytes - before.WriteBytes}
}

const prefix = "@@domu "

// String returns d as a line without its end.
func (d Done) String() string {
	b, _ := json.Marshal(d) // cannot fail: it has numbers and text only
	return prefix + string(b)
}

// ParseDone returns the Done in a line, if it is one.
func ParseDone(line string) (d Done, ok bool) {
	_, rest, ok := strings.Cut(line, prefix) // the kernel may have begun the line
	return d, ok && json.Unmarshal([]byte(rest), &d) == nil
}
