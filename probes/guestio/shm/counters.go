//go:build linux

package shm

import (
	"encoding/binary"
	"errors"
	"fmt"
	"path/filepath"
	"time"
)

// ErrForm says that a file is not as tapdisk writes it.
var ErrForm = errors.New("not in the form that tapdisk writes")

// Requests counts requests of one kind.
type Requests struct {
	Submitted uint64
	Completed uint64
	Sectors   uint64        // of 512 bytes
	Time      time.Duration // of those completed, all together: from taken off the ring until answered
}

// Counters are what a tapdisk counts of a ring: struct stats of its
// drivers/tapdisk-metrics-stats.h.
type Counters struct {
	Outstanding uint64 // tapdisks do not all keep it: see InFlight
	Read        Requests
	Write       Requests
	Errors      uint64
	LowMemory   bool // it has little memory for requests, because dom0 has (blktap 3)
}

// Layout of struct stats.
const (
	countersVersion = 1
	countersSize    = 96
)

// InFlight returns how many requests it has.
func (c *Counters) InFlight() uint64 {
	var n uint64
	for _, r := range []*Requests{&c.Read, &c.Write} {
		if r.Submitted > r.Completed { // the two are not read at the same time
			n += r.Submitted - r.Completed
		}
	}
	return n
}

// ParseCounters parses a file in a tapdisk's directory.
func ParseCounters(b []byte) (c Counters, err error) {
	if len(b) < countersSize {
		return c, fmt.Errorf("%w: %d bytes of counters", ErrForm, len(b))
	}
	if v := binary.LittleEndian.Uint32(b); v > countersVersion { // only those of rings have one
		return c, fmt.Errorf("%w: counters of version %d", ErrForm, v)
	}
	at := func(offset int) uint64 { return binary.LittleEndian.Uint64(b[offset:]) }
	c.Outstanding = at(8)
	c.Read = Requests{at(16), at(24), at(32), microseconds(at(40))}
	c.Write = Requests{at(48), at(56), at(64), microseconds(at(72))}
	c.Errors = at(80)
	c.LowMemory = at(88)&1 != 0
	return c, nil
}

// microseconds converts what would be too long to the longest time.
func microseconds(us uint64) time.Duration {
	const longest = uint64(1<<63-1) / 1000
	return time.Duration(min(us, longest)) * time.Microsecond
}

// Counters reads those of a disk that a tapdisk serves.
func (d Dir) Counters(tgid uint32, v VBD) (Counters, error) {
	return d.counters(tgid, fmt.Sprintf("vbd-%d-%d", v.Domid, v.Devid))
}

// Aside reads counters of requests that come by another way: a name in Tapdisk.Aside.
func (d Dir) Aside(tgid uint32, name string) (Counters, error) {
	return d.counters(tgid, filepath.Base(name))
}

func (d Dir) counters(tgid uint32, name string) (Counters, error) {
	var b [page]byte
	n, _, err := read(filepath.Join(d.Of(tgid), name), &b)
	if err != nil {
		return Counters{}, err
	}
	return ParseCounters(b[:n])
}

// Statistics are what is counted of a ring for the toolstack: struct blkback_stats of
// blktap's include/blktap3.h.
type Statistics struct {
	Outstanding         uint64
	ReadMax, WriteMax   time.Duration // longest request so far
	ReadTime, WriteTime time.Duration
	Reads, Writes       uint64 // completed
	LowMemory           bool
}

// Entries of struct blkback_stats.
const (
	statOutstanding = 2
	statReads       = 4
	statReadTime    = 6
	statReadMax     = 7
	statWrites      = 9
	statWriteTime   = 11
	statWriteMax    = 12
	statFlags       = 13
	numStats        = 14
)

// ParseStatistics parses a file "statistics".
func ParseStatistics(b []byte) (s Statistics, err error) {
	if len(b) < 8*numStats {
		return s, fmt.Errorf("%w: %d bytes of statistics", ErrForm, len(b))
	}
	at := func(i int) uint64 { return binary.LittleEndian.Uint64(b[8*i:]) }
	signed := func(i int) uint64 { return uint64(max(int64(at(i)), 0)) }
	return Statistics{
		Outstanding: at(statOutstanding),
		Reads:       signed(statReads), Writes: signed(statWrites),
		ReadTime: microseconds(signed(statReadTime)), WriteTime: microseconds(signed(statWriteTime)),
		ReadMax: microseconds(signed(statReadMax)), WriteMax: microseconds(signed(statWriteMax)),
		LowMemory: at(statFlags)&1 != 0,
	}, nil
}

func (d Dir) ringFile(v VBD, name string) string {
	return filepath.Join(string(d), fmt.Sprintf("%s%d-%d", ringPrefix, v.Domid, v.Devid), name)
}

// Statistics reads those of a disk.
func (d Dir) Statistics(v VBD) (Statistics, error) {
	var b [page]byte
	n, _, err := read(d.ringFile(v, "statistics"), &b)
	if err != nil {
		return Statistics{}, err
	}
	return ParseStatistics(b[:n])
}
