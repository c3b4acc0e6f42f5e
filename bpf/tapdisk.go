//go:build linux

package bpf

import (
	"encoding/binary"
	"errors"
	"fmt"
	"time"

	"github.com/cilium/ebpf"
)

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

// The structs below mirror those of include/dt_tap.h and tapdisk.bpf.c.

// ioKey mirrors struct dt_io_key.
type ioKey struct {
	At    uint64
	TGID  uint32
	Write uint32
}

// Where in struct dt_iocb and struct dt_part it is since when they are there; a test
// compares them with the objects.
const (
	iocbSubmitted = 0 // t.submitted.at
	partBegun     = 0 // begun.at
)

// tapConf mirrors struct dt_tap_conf.
type tapConf struct {
	Slow   [numGuestOps]uint64
	Sample uint32
	Slot   uint32
	Nodev  uint32
	_      uint32
}

// tapCounts mirrors struct dt_counts.
type tapCounts struct{ Bytes, Failed, Merged, Unsplit uint64 }

// tap is one tapdisk that was added.
type tap struct {
	hists *ebpf.Map
	slot  uint32
}

// taps are those of a Session.
type taps struct {
	byTGID map[uint32]*tap
	slots  map[uint32]bool
	next   uint32        // slot to be tried first: none is used again soon
	inner  *ebpf.MapSpec // of a tapdisk's histograms
	max    uint32
	state  int // size of struct dt_tap
}

// describeTapdisks keeps what tapdisks are counted in.
func (s *Session) describeTapdisks(spec *ebpf.CollectionSpec) error {
	m := spec.Maps["dt_tap_hists"]
	s.taps = taps{byTGID: map[uint32]*tap{}, slots: map[uint32]bool{}, inner: m.InnerMap, max: m.MaxEntries, state: int(spec.Maps["dt_taps"].ValueSize)}
	if s.taps.state < tapCountsSize {
		return fmt.Errorf("map dt_taps: %d bytes", s.taps.state)
	}
	return nil
}

// beginTapdisks forgets what was in flight when the probe was attached last.
func (s *Session) beginTapdisks() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.progs[Tapdisk] == nil {
		return nil
	}
	for _, name := range []string{"dt_iocbs", "dt_parts"} {
		if err := clearMap(s.maps[name]); err != nil {
			return fmt.Errorf("probe %s: map %s: %w", Tapdisk, name, err)
		}
	}
	for tgid := range s.taps.byTGID {
		var counts [numGuestOps]tapCounts
		if err := s.tapCounts(tgid, &counts); err != nil {
			return err
		}
		if err := s.putTap(tgid, &counts); err != nil {
			return err
		}
	}
	return nil
}

// tapCountsSize is the size of what struct dt_tap ends with.
const tapCountsSize = numGuestOps * 4 * 8

// putTap begins the account of a tapdisk anew, but for its counters. It needs mu.
func (s *Session) putTap(tgid uint32, counts *[numGuestOps]tapCounts) error {
	v := make([]byte, s.taps.state)
	if counts != nil {
		if _, err := binary.Encode(v[len(v)-tapCountsSize:], binary.LittleEndian, counts); err != nil {
			return err
		}
	}
	if err := s.maps["dt_taps"].Put(tgid, v); err != nil {
		return fmt.Errorf("map dt_taps: %w", err)
	}
	return nil
}

// tapCounts reads the counters of a tapdisk. It needs mu.
func (s *Session) tapCounts(tgid uint32, out *[numGuestOps]tapCounts) error {
	v := make([]byte, s.taps.state)
	if err := s.maps["dt_taps"].Lookup(tgid, v); err != nil {
		return fmt.Errorf("map dt_taps: %w", err)
	}
	_, err := binary.Decode(v[len(v)-tapCountsSize:], binary.LittleEndian, out)
	return err
}

// AddTapdisk begins to count the requests that a tapdisk serves; of one that was added
// it changes c. The error wraps ErrDisks when Options.DisksMax are there already.
// Requests are seen while the probes Tapdisk and Disk are attached, their I/O at
// the devices of the disk that AddDisk has added for the same process.
func (s *Session) AddTapdisk(tgid uint32, c TapdiskConfig) error {
	if err := s.needTapdisk(); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return errClosed
	}
	t := s.taps.byTGID[tgid]
	fresh := t == nil
	if fresh {
		if len(s.taps.byTGID) >= int(s.taps.max) {
			s.userLost[Tapdisk-1][lossDisks].Add(1)
			return fmt.Errorf("%w: %d tapdisks are watched", ErrDisks, len(s.taps.byTGID))
		}
		slot := s.taps.next
		for s.taps.slots[slot] {
			slot = (slot + 1) % s.taps.max
		}
		m, err := ebpf.NewMap(s.taps.inner)
		if err != nil {
			return fmt.Errorf("histograms of a tapdisk: %w", err)
		}
		if err := s.maps["dt_tap_hists"].Put(slot, m); err != nil {
			return errors.Join(fmt.Errorf("map dt_tap_hists: %w", err), m.Close())
		}
		t = &tap{hists: m, slot: slot}
		s.taps.byTGID[tgid], s.taps.slots[slot], s.taps.next = t, true, (slot+1)%s.taps.max
	}
	conf := tapConf{Slow: c.SlowNs, Sample: c.Sample, Slot: t.slot}
	if c.NoDevice {
		conf.Nodev = 1
	}
	err := s.maps["dt_tap_confs"].Put(tgid, conf)
	if err != nil {
		err = fmt.Errorf("map dt_tap_confs: %w", err)
	} else if fresh {
		err = s.putTap(tgid, nil)
	}
	if err != nil && fresh {
		err = errors.Join(err, s.removeTap(tgid))
	}
	return err
}

// needTapdisk loads the probe.
func (s *Session) needTapdisk() error {
	s.attach.Lock()
	defer s.attach.Unlock()
	return s.loadLate(Tapdisk)
}

// RemoveTapdisk forgets a tapdisk and its histograms. Forgetting what is not known is no
// error.
func (s *Session) RemoveTapdisk(tgid uint32) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed || s.taps.byTGID[tgid] == nil {
		return nil
	}
	return s.removeTap(tgid)
}

// sweepTapdisks forgets I/O that was submitted so long ago and never picked up, and
// requests of which nothing was. It needs mu.
func (s *Session) sweepTapdisks(after time.Duration) error {
	if len(s.links[Tapdisk]) == 0 {
		return nil
	}
	now := ktime()
	var errs []error
	for name, at := range map[string]int{"dt_iocbs": iocbSubmitted, "dt_parts": partBegun} {
		m := s.maps[name]
		v := make([]byte, m.ValueSize())
		errs = append(errs, forgetIO(m, func(k ioKey) bool {
			if m.Lookup(k, v) != nil {
				return false
			}
			since := binary.LittleEndian.Uint64(v[at:])
			if since == 0 || since+uint64(after) >= now { // 0: of a read, which its iocb is there for
				return false
			}
			s.userLost[Tapdisk-1][lossUnended].Add(1)
			return true
		}))
	}
	return errors.Join(errs...)
}

// removeTap needs mu.
func (s *Session) removeTap(tgid uint32) error {
	t := s.taps.byTGID[tgid]
	delete(s.taps.byTGID, tgid)
	delete(s.taps.slots, t.slot)
	errs := []error{gone(s.maps["dt_taps"].Delete(tgid)), gone(s.maps["dt_tap_confs"].Delete(tgid)), gone(s.maps["dt_tap_hists"].Delete(t.slot)), t.hists.Close()}
	for _, name := range []string{"dt_iocbs", "dt_parts"} {
		errs = append(errs, forgetIO(s.maps[name], func(k ioKey) bool { return k.TGID == tgid }))
	}
	return errors.Join(errs...)
}

// forgetIO deletes entries of dt_iocbs or dt_parts.
func forgetIO(m *ebpf.Map, which func(ioKey) bool) error {
	keys, err := mapKeys[ioKey](m)
	if err != nil {
		return err
	}
	var errs []error
	for _, k := range keys {
		if which(k) {
			errs = append(errs, gone(m.Delete(k)))
		}
	}
	return errors.Join(errs...)
}

// TapdiskStats reads what is known of a tapdisk's requests since it was added.
func (s *Session) TapdiskStats(tgid uint32, out *TapdiskStats) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return errClosed
	}
	t := s.taps.byTGID[tgid]
	if t == nil {
		return fmt.Errorf("tapdisk %d: %w", tgid, ebpf.ErrKeyNotExist)
	}
	*out = TapdiskStats{}
	for op := range numGuestOps {
		for l := range NumLayers {
			if err := t.hists.Lookup(uint32(op*NumLayers+l), &out.Requests[op].Layers[l]); err != nil {
				return fmt.Errorf("tapdisk %d: %w", tgid, err)
			}
		}
	}
	if err := t.hists.Lookup(uint32(numGuestOps*NumLayers), &out.OwnIO); err != nil {
		return fmt.Errorf("tapdisk %d: %w", tgid, err)
	}
	var counts [numGuestOps]tapCounts
	if err := s.tapCounts(tgid, &counts); err != nil {
		return err
	}
	for op, c := range counts {
		r := &out.Requests[op]
		r.Bytes, r.Failed, r.Merged, r.Unsplit = c.Bytes, c.Failed, c.Merged, c.Unsplit
	}
	return nil
}
