//go:build linux

package bpf

import (
	"errors"
	"fmt"
	"math/bits"
	"slices"
	"time"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"
)

// DiskOp is a kind of block I/O: enum dt_disk_op.
type DiskOp uint8

// Kinds of block I/O.
const (
	DiskRead DiskOp = iota
	DiskWrite
	DiskFlush
	DiskDiscard // and zeroes that are written without data
	NumDiskOps
)

// Entries of an owner's counters and the shape of its histograms: include/dt_disk.h.
const (
	diskDevice    = int(NumDiskOps) // DT_DEVICE
	diskDeviceOps = 2               // reads and writes
	diskStats     = diskDevice + diskDeviceOps
	diskUnitShift = 8
	diskSubLog    = 4
	diskSub       = 1 << diskSubLog
	diskUnitsMax  = 1<<28 - 1
	diskBuckets   = (28-diskSubLog)*diskSub + diskSub
)

// DiskStat counts I/O of one kind since its disk was added.
type DiskStat struct {
	Begun  uint64 // queued
	Bytes  uint64 // of those; of a discard what it covers
	Done   uint64
	Failed uint64 // of those done
	SumNs  uint64 // of those done, from queued to done
	MaxNs  uint64
	Bucket [diskBuckets]uint32 // of their latencies, see DiskBucket
}

// add adds what another CPU counted.
func (d *DiskStat) add(o *DiskStat) {
	d.Begun += o.Begun
	d.Bytes += o.Bytes
	d.Done += o.Done
	d.Failed += o.Failed
	d.SumNs += o.SumNs
	d.MaxNs = max(d.MaxNs, o.MaxNs)
	for i, n := range o.Bucket {
		d.Bucket[i] += n
	}
}

// DiskBucket returns the shortest latency that bucket i is of and the shortest that
// is too long for it. The last holds all that are longer.
func DiskBucket(i int) (from, to time.Duration) {
	edge := func(i int) time.Duration {
		if i < diskSub {
			return time.Duration(i) << diskUnitShift
		}
		octave, sub := i/diskSub-1, i%diskSub
		return time.Duration(diskSub+sub) << (octave + diskUnitShift)
	}
	return edge(i), edge(i + 1)
}

// bucketOf is dt_bucket().
func bucketOf(d time.Duration) int {
	v := min(uint64(d)>>diskUnitShift, diskUnitsMax)
	if v < diskSub {
		return int(v)
	}
	log := bits.Len64(v) - 1
	return (log-diskSubLog+1)*diskSub + int(v>>(log-diskSubLog))&(diskSub-1)
}

// DiskStats is what is known of a disk's I/O.
type DiskStats struct {
	Ops [NumDiskOps]DiskStat
	// Device is of the requests that a driver was given for reads and writes, from then
	// until they were done: several of those of Ops that were merged, or a part of one
	// that was split. Of devices without requests it is empty. Begun and Bytes are 0.
	Device [diskDeviceOps]DiskStat
}

// DiskSource says whose I/O at a device is a disk's. Numbers of devices are the
// kernel's: DevNumber.
type DiskSource struct {
	TGID  uint32 // who queues it; 0: any process
	Dev   uint32 // for which device
	Whole uint32 // the disk of which Dev is a partition, else Dev itself
	Comm  string // with TGID 0: only threads whose name begins so; "": all
}

// DevNumber returns the number of a device as the kernel's tracepoints have it.
func DevNumber(major, minor uint32) uint32 { return major<<20 | minor }

// Devices and sources that there is room for, for each of Options.DisksMax disks: on
// LVM each image of a chain is a device.
const (
	devicesOfDisk = 8
	sourcesOfDisk = 16
)

// ErrDisks says that Options.DisksMax disks are there already, or too many devices for
// so many.
var ErrDisks = errors.New("table of disks full")

// ErrDiskTaken says that a source is that of another disk.
var ErrDiskTaken = errors.New("the same I/O is another disk's")

// ownerKey mirrors struct dt_owner_key.
type ownerKey struct{ TGID, Dev uint32 }

// owner mirrors struct dt_owner.
type owner struct {
	Slot uint32
	_    uint32
	Comm [2]uint64
	Mask [2]uint64
}

// bioKey mirrors struct dt_bio_key.
type bioKey struct {
	Sector uint64
	Disk   uint32
	Op     DiskOp
	At     uint8
	_      uint16
}

// bio mirrors struct dt_bio.
type bio struct {
	Start   uint64
	Issued  uint64
	Head    uint64
	Slot    uint32
	Len     uint32
	Left    uint32
	Younger uint32
	Failed  uint32
	HeadAt  uint32
	Iocb    uint64
	TGID    uint32
	_       uint32
}

// blockConf mirrors struct dt_block_conf.
type blockConf struct{ Issue, Done uint32 }

// describeDisks tells the kernel side what it cannot know, and keeps what disks are
// counted in.
func (s *Session) describeDisks(spec *ebpf.CollectionSpec) error {
	if err := s.maps["dt_block_conf"].Put(uint32(0), s.kernel.block); err != nil {
		return fmt.Errorf("map dt_block_conf: %w", err)
	}
	m := spec.Maps["dt_disk_stats"]
	s.disks = disks{bySlot: map[uint32]*disk{}, inner: m.InnerMap, max: m.MaxEntries}
	return nil
}

// beginDisks forgets I/O in flight when the probe was attached last.
func (s *Session) beginDisks() error {
	if len(s.kernel.hooks[Disk]) == 0 {
		return fmt.Errorf("probe %s: this kernel lacks its tracepoints; `dtagent check` says which", Disk)
	}
	if err := clearMap(s.maps["dt_bios"]); err != nil {
		return fmt.Errorf("probe %s: map dt_bios: %w", Disk, err)
	}
	return nil
}

// disk is one that was added.
type disk struct {
	stats   *ebpf.Map
	sources []DiskSource
}

// disks are those of a Session.
type disks struct {
	bySlot map[uint32]*disk
	next   uint32        // slot to be tried first: none is used again soon
	inner  *ebpf.MapSpec // of a disk's counters
	max    uint32
	perCPU []DiskStat
}

// AddDisk begins to count the I/O of a disk and returns its number. The counters
// take some 10 KiB for each CPU. The error wraps ErrDisks or ErrDiskTaken. I/O is
// seen while the probe Disk is attached.
func (s *Session) AddDisk(sources []DiskSource) (slot uint32, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return 0, errClosed
	}
	if len(s.disks.bySlot) >= int(s.disks.max) {
		s.userLost[Disk-1][lossDisks].Add(1)
		return 0, fmt.Errorf("%w: %d are watched", ErrDisks, len(s.disks.bySlot))
	}
	slot = s.disks.next
	for s.disks.bySlot[slot] != nil {
		slot = (slot + 1) % s.disks.max
	}
	m, err := ebpf.NewMap(s.disks.inner)
	if err != nil {
		return 0, fmt.Errorf("counters of a disk: %w", err)
	}
	if err := s.maps["dt_disk_stats"].Put(slot, m); err != nil {
		return 0, errors.Join(fmt.Errorf("map dt_disk_stats: %w", err), m.Close())
	}
	s.disks.bySlot[slot] = &disk{stats: m}
	s.disks.next = (slot + 1) % s.disks.max
	if err := s.setSources(slot, sources); err != nil {
		return 0, errors.Join(err, s.removeDisk(slot))
	}
	return slot, nil
}

// SetDisk changes the sources of a disk. Its counters go on. After an error its
// sources are what they were, as far as the kernel has taken them.
func (s *Session) SetDisk(slot uint32, sources []DiskSource) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return errClosed
	}
	if s.disks.bySlot[slot] == nil {
		return fmt.Errorf("disk %d: %w", slot, ebpf.ErrKeyNotExist)
	}
	return s.setSources(slot, sources)
}

// RemoveDisk forgets a disk and its counters. Its number is not used again soon.
func (s *Session) RemoveDisk(slot uint32) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed || s.disks.bySlot[slot] == nil {
		return nil
	}
	return s.removeDisk(slot)
}

// DiskStats reads the counters of a disk into out.
func (s *Session) DiskStats(slot uint32, out *DiskStats) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return errClosed
	}
	d := s.disks.bySlot[slot]
	if d == nil {
		return fmt.Errorf("disk %d: %w", slot, ebpf.ErrKeyNotExist)
	}
	*out = DiskStats{}
	for i := range diskStats {
		if err := d.stats.Lookup(uint32(i), &s.disks.perCPU); err != nil {
			return fmt.Errorf("disk %d: %w", slot, err)
		}
		to := &out.Ops[min(i, int(NumDiskOps)-1)]
		if i >= diskDevice {
			to = &out.Device[i-diskDevice]
		}
		for c := range s.disks.perCPU {
			to.add(&s.disks.perCPU[c])
		}
	}
	return nil
}

// setSources needs mu.
func (s *Session) setSources(slot uint32, sources []DiskSource) error {
	for other, d := range s.disks.bySlot {
		if other == slot {
			continue
		}
		for _, have := range d.sources {
			if slices.ContainsFunc(sources, func(o DiskSource) bool { return o.TGID == have.TGID && o.Dev == have.Dev }) {
				return fmt.Errorf("%w: device %d:%d, process %d", ErrDiskTaken, have.Dev>>20, have.Dev&(1<<20-1), have.TGID)
			}
		}
	}
	d := s.disks.bySlot[slot]
	before := d.sources
	d.sources = slices.Clone(sources)
	var errs []error
	// A device that is looked at costs the others a little, one that is not hides
	// its owners: so first it is looked at, and then it has owners.
	for _, o := range sources {
		v := owner{Slot: slot}
		v.Comm, v.Mask = commWords(o.Comm)
		errs = append(errs, s.putDisk("dt_disks", o.Dev, o.Whole), s.putDisk("dt_disks", o.Whole, o.Whole), s.putDisk("dt_owners", ownerKey{o.TGID, o.Dev}, v))
	}
	for _, o := range before {
		if !slices.ContainsFunc(sources, func(n DiskSource) bool { return n.TGID == o.TGID && n.Dev == o.Dev }) {
			errs = append(errs, gone(s.maps["dt_owners"].Delete(ownerKey{o.TGID, o.Dev})))
		}
		for _, dev := range []uint32{o.Dev, o.Whole} {
			if !s.lookedAt(dev) {
				errs = append(errs, gone(s.maps["dt_disks"].Delete(dev)))
			}
		}
	}
	return errors.Join(errs...)
}

// putDisk needs mu.
func (s *Session) putDisk(name string, key, value any) error {
	err := s.maps[name].Put(key, value)
	if errors.Is(err, unix.E2BIG) {
		return fmt.Errorf("%w: all %d entries of map %s are taken by the devices of disks: some of its I/O is not counted", ErrDisks, s.maps[name].MaxEntries(), name)
	}
	if err != nil {
		return fmt.Errorf("map %s: %w", name, err)
	}
	return nil
}

// lookedAt tells whether some disk has the device. It needs mu.
func (s *Session) lookedAt(dev uint32) bool {
	for _, d := range s.disks.bySlot {
		if slices.ContainsFunc(d.sources, func(o DiskSource) bool { return o.Dev == dev || o.Whole == dev }) {
			return true
		}
	}
	return false
}

// removeDisk needs mu.
func (s *Session) removeDisk(slot uint32) error {
	d := s.disks.bySlot[slot]
	err := s.setSources(slot, nil)
	delete(s.disks.bySlot, slot)
	return errors.Join(err, gone(s.maps["dt_disk_stats"].Delete(slot)), d.stats.Close(), s.forgetBios(func(b *bio) bool { return b.Slot == slot }, nil))
}

// gone takes it for no error that what is deleted is not there.
func gone(err error) error {
	if errors.Is(err, ebpf.ErrKeyNotExist) {
		return nil
	}
	return err
}

// commWords returns a prefix of a thread's name as the programs compare it.
func commWords(prefix string) (comm, mask [2]uint64) {
	for i := range min(len(prefix), 15) { // the kernel cuts names to 15 bytes
		shift := i % 8 * 8
		comm[i/8] |= uint64(prefix[i]) << shift
		mask[i/8] |= 0xff << shift
	}
	return comm, mask
}

// unendedAfter is how long a piece of I/O is taken to be in flight: longer than the
// longest time-outs of iSCSI and NFS, after which it has failed.
const unendedAfter = 10 * time.Minute

// sweepBios forgets I/O whose end was not seen for so long, and counts it. It needs mu.
func (s *Session) sweepBios(after time.Duration) error {
	if len(s.links[Disk]) == 0 {
		return nil
	}
	now := ktime()
	return s.forgetBios(func(b *bio) bool { return b.Start+uint64(after) < now }, func(b *bio) {
		if b.Left > 0 { // the rest are parts of such
			s.userLost[Disk-1][lossUnended].Add(1)
		}
	})
}

// forgetBios takes out I/O in flight. It needs mu.
func (s *Session) forgetBios(which func(*bio) bool, each func(*bio)) error {
	keys, err := mapKeys[bioKey](s.maps["dt_bios"])
	if err != nil {
		return fmt.Errorf("map dt_bios: %w", err)
	}
	for _, k := range keys {
		var b bio
		if s.maps["dt_bios"].Lookup(k, &b) != nil || !which(&b) {
			continue
		}
		if s.maps["dt_bios"].Delete(k) == nil && each != nil {
			each(&b)
		}
	}
	return nil
}
