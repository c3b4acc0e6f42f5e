//go:build linux

package bpf

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"time"
	"unsafe"

	"github.com/cilium/ebpf/ringbuf"
)

// Record is one record of the wire contract.
type Record struct {
	CPU  int
	Raw  []byte // starts with a Hdr and is Hdr.Size long; valid until the next Read
	Lost uint64 // records that this CPU and probe made before this one and that did not fit

	Since uint64 // ktime of the record that this CPU and probe made before these, 0 if there was none
}

// buffer is the way out of the kernel: a ring buffer, or a perf buffer for each
// CPU.
type buffer interface {
	read() ([]byte, error) // os.ErrDeadlineExceeded only when nothing may go yet, errFlushed only when empty
	deadline(time.Time)
	flush() error // makes read return what is there, then errFlushed
	close() error // makes read return os.ErrClosed
}

var errFlushed = ringbuf.ErrFlushed

type ringBuffer struct {
	r   *ringbuf.Reader
	rec ringbuf.Record
}

func (b *ringBuffer) read() ([]byte, error) {
	err := b.r.ReadInto(&b.rec)
	return b.rec.RawSample, err
}
func (b *ringBuffer) deadline(t time.Time) { b.r.SetDeadline(t) }
func (b *ringBuffer) flush() error         { return b.r.Flush() }
func (b *ringBuffer) close() error         { return b.r.Close() }

const hdrSize = int(unsafe.Sizeof(Hdr{}))

// sequence finds gaps in the records of each CPU and probe.
type sequence struct {
	next map[uint32]*[numProbes]place // by CPU
}

// place is where the records of a CPU and probe are.
type place struct {
	seq   uint32 // of the next
	ktime uint64 // of the last
}

func newSequence() *sequence { return &sequence{next: map[uint32]*[numProbes]place{}} }

// lost returns how many records are missing before record seq, which was made at
// ktime, and when the last before these was made.
func (s *sequence) lost(cpu uint32, p Probe, seq uint32, ktime uint64) (gap uint32, since uint64) {
	n := s.next[cpu]
	if n == nil {
		n = new([numProbes]place)
		s.next[cpu] = n
	}
	old := n[p-1]
	n[p-1] = place{seq + 1, ktime}
	return seq - old.seq, old.ktime
}

// Read waits for the next record. One goroutine may call it. After Close it
// returns what is left in the buffers, then os.ErrClosed.
//
// A record arrives here some 10 ms after it was made, earlier when much is
// going on, and 20 ms later in the legacy tier. Records of one CPU come in their
// order, those of several CPUs nearly so: see Order.
func (s *Session) Read(r *Record) error {
	if s.reading.CompareAndSwap(false, true) {
		s.nextLook()
	}
	for {
		raw, err := s.buffer.read()
		s.rounds.Add(1)
		switch {
		case err == nil:
			if s.take(r, raw) {
				return nil
			}
		case errors.Is(err, errFlushed):
			if s.closing.Load() {
				s.drained()
				return fmt.Errorf("read records: %w", os.ErrClosed)
			}
			s.flushed.Add(1)
			s.nextLook()
		case errors.Is(err, os.ErrDeadlineExceeded):
			s.nextLook()
		default:
			return fmt.Errorf("read records: %w", err)
		}
	}
}

// Rounds is how often Read came back from the buffers, with a record or without. It
// grows once a second at least while Read is called.
func (s *Session) Rounds() uint64 { return s.rounds.Load() }

// nextLook sets the time at which Read looks into all buffers.
func (s *Session) nextLook() { s.buffer.deadline(time.Now().Add(s.pollInterval())) }

// Order returns how well records are in the order of their clock: how many went
// out before all older ones were surely read, because a buffer was half full,
// and how many went out after a younger one. A ring buffer, which is one for all
// CPUs, has its order by itself; nothing is counted there.
func (s *Session) Order() (early, late uint64) {
	if b, ok := s.buffer.(*perfRings); ok {
		return b.order()
	}
	return 0, 0
}

// pollInterval returns how long records may wait to be looked for.
func (s *Session) pollInterval() time.Duration {
	if s.active.Load() > 0 || ktime()-s.detached.Load() < uint64(pollIdle) {
		return pollEvery
	}
	return pollIdle
}

// take makes a Record of raw; false if it is none.
func (s *Session) take(r *Record, raw []byte) bool {
	if len(raw) < hdrSize {
		s.userLost[Stream-1][lossRecord].Add(1)
		return false
	}
	var (
		size = binary.LittleEndian.Uint32(raw[unsafe.Offsetof(Hdr{}.Size):])
		time = binary.LittleEndian.Uint64(raw[unsafe.Offsetof(Hdr{}.Ktime):])
		seq  = binary.LittleEndian.Uint32(raw[unsafe.Offsetof(Hdr{}.Seq):])
		kind = Kind(binary.LittleEndian.Uint16(raw[unsafe.Offsetof(Hdr{}.Kind):]))
		cpu  = binary.LittleEndian.Uint16(raw[unsafe.Offsetof(Hdr{}.CPU):])
	)
	if int(size) < hdrSize || int(size) > len(raw) {
		s.userLost[Stream-1][lossRecord].Add(1)
		return false
	}
	probe := probeOf(kind)
	r.CPU = int(cpu)
	r.Raw = raw[:size] // perf buffers pad
	gap, since := s.seq.lost(uint32(cpu), probe, seq, time)
	r.Lost, r.Since = uint64(gap), since
	if s.tier == Legacy && r.Lost > 0 {
		s.userLost[probe-1][lossOutput].Add(r.Lost)
	}
	return true
}
