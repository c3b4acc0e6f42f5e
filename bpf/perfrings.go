//go:build linux

package bpf

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"os"
	"sync"
	"sync/atomic"
	"time"
	"unsafe"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"
)

// The perf buffers of several CPUs are read as one, in the order of the records'
// clock. A reader that empties one after the other would hand on what a CPU made
// in the last second before what another made at the beginning of it, when it
// gets no processor for so long; and that is when order matters, for then a
// reply is read before its request.
//
// So the oldest record of all buffers goes first, and a record waits in its
// buffer, where it costs nothing further, until no older one can come from
// another CPU: settleTime. Only when a buffer is half full its records do not
// wait.
const (
	settleTime = 20 * time.Millisecond // from a record's time until it is in its buffer, a processor's steal time included
	lookAgain  = 256                   // records after which the buffers are looked into again, so that the limit moves on
)

// perfRings are the perf buffers of all CPUs. One goroutine reads; flush and
// close may be called by others.
type perfRings struct {
	mu    sync.Mutex // held by read, and to free
	rings []*perfRing
	array *ebpf.Map // its entries go when the last reference goes
	epoll int

	until  time.Time
	looked bool   // the heads are those of the present look
	limit  uint64 // records up to this time go out
	end    error  // what read returns when those of this look are out
	taken  int    // records of this look
	last   uint64 // time of the latest record that went out
	raw    []byte

	kick   sync.Mutex // guards event
	event  int        // eventfd: flush, close; -1: closed
	closed atomic.Bool

	early atomic.Uint64 // records that went out before their time: a buffer was half full
	late  atomic.Uint64 // records that went out after a younger one
}

// perfRing is the buffer of one CPU.
type perfRing struct {
	fd   int
	mmap []byte
	meta *unix.PerfEventMmapPage
	data []byte // a power of two long

	tail, head uint64 // read up to; made up to, as of the last look
	has        bool   // there is a record at tail: the following are of it
	time       uint64
	raw, size  uint64 // where it is, and how long
	next       uint64 // tail of the record after it
}

// newPerfRings opens a buffer of at least size bytes on each CPU that is online.
// wakeup is how many bytes in one of them end a read's wait.
func newPerfRings(array *ebpf.Map, size, wakeup int) (_ *perfRings, err error) {
	b := &perfRings{epoll: -1, event: -1}
	defer func() {
		if err != nil {
			b.free()
		}
	}()
	if b.epoll, err = unix.EpollCreate1(unix.EPOLL_CLOEXEC); err != nil {
		return nil, fmt.Errorf("epoll: %w", err)
	}
	if b.event, err = unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK); err != nil {
		return nil, fmt.Errorf("eventfd: %w", err)
	}
	if err = b.watch(b.event); err != nil {
		return nil, err
	}
	if b.array, err = array.Clone(); err != nil {
		return nil, err
	}
	for cpu := range int(array.MaxEntries()) {
		r, err := openPerfRing(cpu, size, wakeup)
		if errors.Is(err, unix.ENODEV) {
			continue // offline
		}
		if err != nil {
			return nil, fmt.Errorf("CPU %d: %w", cpu, err)
		}
		b.rings = append(b.rings, r)
		if err := b.watch(r.fd); err != nil {
			return nil, err
		}
		if err := b.array.Put(uint32(cpu), uint32(r.fd)); err != nil {
			return nil, fmt.Errorf("CPU %d: %w", cpu, err)
		}
	}
	return b, nil
}

func (b *perfRings) watch(fd int) error {
	if err := unix.EpollCtl(b.epoll, unix.EPOLL_CTL_ADD, fd, &unix.EpollEvent{Events: unix.EPOLLIN, Fd: int32(fd)}); err != nil {
		return fmt.Errorf("epoll: %w", err)
	}
	return nil
}

func openPerfRing(cpu, size, wakeup int) (*perfRing, error) {
	attr := unix.PerfEventAttr{
		Type: unix.PERF_TYPE_SOFTWARE, Config: unix.PERF_COUNT_SW_BPF_OUTPUT, Sample_type: unix.PERF_SAMPLE_RAW,
		Bits: unix.PerfBitWatermark, Wakeup: uint32(wakeup),
	}
	attr.Size = uint32(unsafe.Sizeof(attr))
	fd, err := unix.PerfEventOpen(&attr, -1, cpu, -1, unix.PERF_FLAG_FD_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("perf event: %w", err)
	}
	page := os.Getpagesize()
	n := page
	for n < size {
		n *= 2
	}
	mmap, err := unix.Mmap(fd, 0, page+n, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("perf buffer: %w", err)
	}
	meta := (*unix.PerfEventMmapPage)(unsafe.Pointer(&mmap[0])) // a page is larger, and aligned
	return &perfRing{fd: fd, mmap: mmap, meta: meta, data: mmap[page:]}, nil
}

func (b *perfRings) read() ([]byte, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for {
		if b.closed.Load() {
			return nil, os.ErrClosed
		}
		if b.looked {
			if b.taken >= lookAgain && b.end != errFlushed {
				b.look()
			}
			if raw, ok := b.take(); ok {
				return raw, nil
			}
			b.looked = false
			if err := b.end; err != nil {
				b.end = nil
				return nil, err
			}
		}
		err := b.wait()
		if err != nil && err != errFlushed && !errors.Is(err, os.ErrDeadlineExceeded) {
			return nil, err
		}
		b.end = err
		b.look()
	}
}

// wait waits until a buffer holds much, read was told to stop, or it is time to
// look again.
func (b *perfRings) wait() error {
	timeout := -1
	if !b.until.IsZero() {
		timeout = wholeMilliseconds(time.Until(b.until))
	}
	for _, r := range b.rings {
		if r.has { // its time will come
			if soon := wholeMilliseconds(pollEvery); timeout < 0 || timeout > soon {
				timeout = soon
			}
			break
		}
	}
	var events [8]unix.EpollEvent
	n, err := unix.EpollWait(b.epoll, events[:], timeout)
	if err != nil && err != unix.EINTR {
		return fmt.Errorf("epoll: %w", err)
	}
	for _, e := range events[:max(n, 0)] {
		if int(e.Fd) == b.event {
			var count [8]byte
			_, _ = unix.Read(b.event, count[:]) // only this goroutine reads
			return errFlushed
		}
	}
	if !b.until.IsZero() && !time.Now().Before(b.until) {
		return os.ErrDeadlineExceeded
	}
	return nil
}

func wholeMilliseconds(d time.Duration) int {
	return int(min(max((d+time.Millisecond-1)/time.Millisecond, 0), math.MaxInt32))
}

// look finds out what is in all buffers. What was made settleTime ago is in
// them by now.
func (b *perfRings) look() {
	b.lookAt(ktime())
}

func (b *perfRings) lookAt(now uint64) {
	b.looked, b.taken = true, 0
	b.limit = now - uint64(settleTime)
	if b.end == errFlushed {
		b.limit = math.MaxUint64
	}
	for _, r := range b.rings {
		r.head = atomic.LoadUint64(&r.meta.Data_head)
		if !r.has {
			r.peek()
		}
	}
}

// take takes out the oldest record if it may go.
func (b *perfRings) take() ([]byte, bool) {
	var oldest *perfRing
	full := false
	for _, r := range b.rings {
		if !r.has {
			continue
		}
		full = full || r.head-r.tail > uint64(len(r.data)/2)
		if oldest == nil || r.time < oldest.time {
			oldest = r
		}
	}
	if oldest == nil {
		return nil, false
	}
	if oldest.time > b.limit {
		if !full {
			return nil, false
		}
		b.early.Add(1)
	}
	if oldest.time < b.last {
		b.late.Add(1)
	}
	b.last = max(b.last, oldest.time)
	b.taken++
	b.raw = oldest.take(b.raw)
	return b.raw, true
}

// order returns how many records went out before it was sure that no older one
// could come, and how many of all went out after a younger one.
func (b *perfRings) order() (early, late uint64) { return b.early.Load(), b.late.Load() }

// Layout of what the kernel writes: struct perf_event_header { u32 type; u16
// misc; u16 size; }, and for a PERF_RECORD_SAMPLE a u32 size and the record. All
// is padded to 8 bytes.
const (
	perfHeader = 8
	perfRaw    = 12
)

// peek finds the next record. What is none is passed over: a
// PERF_RECORD_LOST says no more than the gap in the records' numbers does.
func (r *perfRing) peek() {
	for r.tail < r.head {
		left := r.head - r.tail
		if left < perfHeader {
			break
		}
		h := r.data[r.tail&r.mask():] // never wraps: it is aligned
		kind, size := binary.NativeEndian.Uint32(h), uint64(binary.NativeEndian.Uint16(h[6:]))
		if size < perfHeader || size%8 != 0 || size > left {
			break
		}
		if kind == unix.PERF_RECORD_SAMPLE && size >= perfRaw {
			n := uint64(r.uint32(r.tail + perfHeader))
			if n <= size-perfRaw {
				r.has, r.raw, r.size, r.next = true, r.tail+perfRaw, n, r.tail+size
				r.time = 0 // what is too short to be a record goes at once
				if n >= uint64(hdrSize) {
					r.time = uint64(r.uint32(r.raw)) | uint64(r.uint32(r.raw+4))<<32
				}
				return
			}
		}
		r.pass(r.tail + size)
	}
	r.pass(r.head) // all, or something that is not what the kernel writes
}

// take copies the record to buf and gives its place back to the kernel.
func (r *perfRing) take(buf []byte) []byte {
	start := r.raw & r.mask()
	first := r.data[start:min(start+r.size, uint64(len(r.data)))]
	buf = append(buf[:0], first...)
	buf = append(buf, r.data[:r.size-uint64(len(first))]...)
	r.has = false
	r.pass(r.next)
	r.peek()
	return buf
}

func (r *perfRing) pass(tail uint64) {
	r.tail = tail
	atomic.StoreUint64(&r.meta.Data_tail, tail)
}

func (r *perfRing) mask() uint64 { return uint64(len(r.data) - 1) }

// uint32 reads 4 bytes at a multiple of 4: they never wrap.
func (r *perfRing) uint32(at uint64) uint32 { return binary.NativeEndian.Uint32(r.data[at&r.mask():]) }

func (b *perfRings) deadline(t time.Time) { b.until = t }

func (b *perfRings) flush() error {
	b.kick.Lock()
	defer b.kick.Unlock()
	if b.event < 0 {
		return os.ErrClosed
	}
	one := binary.NativeEndian.AppendUint64(nil, 1)
	if _, err := unix.Write(b.event, one); err != nil && err != unix.EAGAIN { // EAGAIN: it was told very often
		return fmt.Errorf("eventfd: %w", err)
	}
	return nil
}

func (b *perfRings) close() error {
	if b.closed.Swap(true) {
		return nil
	}
	err := b.flush()
	b.mu.Lock()
	defer b.mu.Unlock()
	return errors.Join(err, b.free())
}

func (b *perfRings) free() error {
	var errs []error
	if b.array != nil {
		errs = append(errs, b.array.Close())
	}
	for _, r := range b.rings {
		errs = append(errs, unix.Munmap(r.mmap), unix.Close(r.fd))
	}
	b.rings = nil
	b.kick.Lock()
	defer b.kick.Unlock()
	for _, fd := range []int{b.epoll, b.event} {
		if fd >= 0 {
			errs = append(errs, unix.Close(fd))
		}
	}
	b.epoll, b.event = -1, -1
	return errors.Join(errs...)
}
