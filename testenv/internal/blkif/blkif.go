//go:build linux

// Package blkif is the memory that a simulated guest shares with the stand-in of its
// tapdisk: a ring of disk requests as Xen's block interface has it, the guest's pages,
// knobs to make the tapdisk slow, and what it says of each request.
package blkif

import (
	"fmt"
	"sync/atomic"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Page is the size of one, of the guest and of dom0.
const Page = 4096

// MaxSegments is how many pages a request can have.
const MaxSegments = 11

// Operations of a request, and what became of it: xen/include/public/io/blkif.h.
const (
	Read         = 0
	Write        = 1
	WriteBarrier = 2

	OK          = 0
	Failed      = -1
	Unsupported = -2
)

// Segment is a part of a page of the guest's: struct blkif_request_segment.
type Segment struct {
	Gref        uint32
	First, Last uint8 // sectors of the page, the last one included
	_           uint16
}

// Request is what the guest asks for: struct blkif_request of 64-bit x86.
type Request struct {
	Operation   uint8
	NumSegments uint8
	Handle      uint16
	ID          uint64
	Sector      uint64
	Segments    [MaxSegments]Segment
}

// Response takes the place of a request: struct blkif_response.
type Response struct {
	ID        uint64
	Operation uint8
	Status    int16
}

// Indexes of a ring: the beginning of struct blkif_sring. They count without end.
type Indexes struct {
	ReqProd, ReqEvent, RspProd, RspEvent atomic.Uint32
}

// ringHead is how many bytes of the first page the requests leave to the indexes.
const ringHead = 64

// Slots returns how many requests a ring of so many pages has: a power of two.
func Slots(pages int) int {
	n := 1
	for ; (2*n)*int(unsafe.Sizeof(Request{})) <= pages*Page-ringHead; n *= 2 {
	}
	return n
}

// Knobs make the tapdisk slow. They may be changed at any time.
type Knobs struct {
	BusyNs   atomic.Int64  // of work that it does for each request before it issues it
	Tiocbs   atomic.Int64  // it has no more I/O under way at once; 0: as many as a tapdisk
	Uncached atomic.Uint32 // 1: it reads the bitmap of a block anew for each request
	PollUs   atomic.Int64  // it looks at the ring for so long after it found something there
	GrantNs  atomic.Int64  // what it takes to copy for a request where the device of grants is a simulated one
}

// Truth is what the tapdisk knows of a request: times of CLOCK_MONOTONIC in ns.
type Truth struct {
	Woke     int64 // its loop begins the round in which it takes this one; the guest may enqueue it later
	Taken    int64 // it takes requests off the ring, this among them
	Queued   int64 // this one is taken and, when it is a write, copied
	Submit   int64 // io_submit of its first I/O on data begins; 0: it needs none
	Returned int64 // that io_submit has returned
	Picked   int64 // its last I/O was seen to be done
	Answered int64 // the guest can see the response
	CopyNs   int64 // the GRANT_COPY took
	BusyNs   int64 // of work that a knob made it do
	IOs      int32 // on data
	Metadata int32 // reads of a bitmap that it waited for
	Merged   int32 // of its I/O, how many shared their iocb with others
	Retried  int32 // how often it was given up for the time being
}

// header is the first page.
type header struct {
	Knobs Knobs
}

// Memory is what the two share. What belongs to whom follows from the ring.
type Memory struct {
	b     []byte
	pages int // of the ring
	slots int
}

// parts of the memory, in bytes.
func parts(ringPages int) (truth, data, size int) {
	slots := Slots(ringPages)
	truth = Page * (1 + ringPages)
	data = truth + (slots*int(unsafe.Sizeof(Truth{}))+Page-1)/Page*Page
	return truth, data, data + slots*MaxSegments*Page
}

// Create makes the memory of a guest, and the descriptor to hand to the tapdisk.
func Create(ringPages int) (*Memory, int, error) {
	fd, err := unix.MemfdCreate("guest", unix.MFD_CLOEXEC)
	if err != nil {
		return nil, -1, fmt.Errorf("guest memory: %w", err)
	}
	_, _, size := parts(ringPages)
	if err := unix.Ftruncate(fd, int64(size)); err != nil {
		unix.Close(fd)
		return nil, -1, fmt.Errorf("guest memory: %w", err)
	}
	m, err := Map(fd, ringPages)
	if err != nil {
		unix.Close(fd)
		return nil, -1, err
	}
	m.Indexes().ReqEvent.Store(1)
	m.Indexes().RspEvent.Store(1)
	return m, fd, nil
}

// Map maps the memory of that descriptor.
func Map(fd, ringPages int) (*Memory, error) {
	_, _, size := parts(ringPages)
	b, err := unix.Mmap(fd, 0, size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED|unix.MAP_POPULATE)
	if err != nil {
		return nil, fmt.Errorf("guest memory: %w", err)
	}
	return &Memory{b: b, pages: ringPages, slots: Slots(ringPages)}, nil
}

// Close unmaps it.
func (m *Memory) Close() error { return unix.Munmap(m.b) }

// Slots returns how many requests fit in the ring.
func (m *Memory) Slots() int { return m.slots }

// Knobs returns the knobs.
func (m *Memory) Knobs() *Knobs { return &(*header)(unsafe.Pointer(&m.b[0])).Knobs }

// Indexes returns those of the ring.
func (m *Memory) Indexes() *Indexes { return (*Indexes)(unsafe.Pointer(&m.b[Page])) }

func (m *Memory) slot(index uint32) unsafe.Pointer {
	at := Page + ringHead + int(index&uint32(m.slots-1))*int(unsafe.Sizeof(Request{}))
	return unsafe.Pointer(&m.b[at])
}

// Request returns the place of the request of that index.
func (m *Memory) Request(index uint32) *Request { return (*Request)(m.slot(index)) }

// Response returns the place of the response of that index.
func (m *Memory) Response(index uint32) *Response { return (*Response)(m.slot(index)) }

// Truth returns what is said of the request of that ID, which is below Slots.
func (m *Memory) Truth(id uint64) *Truth {
	at, _, _ := parts(m.pages)
	return (*Truth)(unsafe.Pointer(&m.b[at+int(id%uint64(m.slots))*int(unsafe.Sizeof(Truth{}))]))
}

// Granted returns the page of a grant reference.
func (m *Memory) Granted(gref uint32) ([]byte, bool) {
	_, data, _ := parts(m.pages)
	if gref < FirstGref || gref >= FirstGref+uint32(m.slots*MaxSegments) {
		return nil, false
	}
	at := data + int(gref-FirstGref)*Page
	return m.b[at : at+Page : at+Page], true
}

// FirstGref is the reference of the first page: Xen has some of its own below.
const FirstGref = 8

// Gref returns the reference of a page of the request of that ID.
func Gref(id uint64, page int) uint32 { return FirstGref + uint32(id)*MaxSegments + uint32(page) }
