//go:build linux

package tapdiskd

import (
	"fmt"

	"golang.org/x/sys/unix"

	"github.com/xenserver/dtagent/testenv/internal/blkif"
)

const bufferSize = 32 * blkif.Page // TD_REQ_BUFFER_SIZE

// vector is a part of a request whose data are contiguous in its buffer.
type vector struct {
	buf   uintptr
	count int // sectors
}

// request is one of the guest's: td_xenblkif_req and its td_vbd_request_t.
type request struct {
	msg       blkif.Request
	vma       uintptr // its buffer
	pieces    [blkif.MaxSegments]vector
	numPieces int
	copies    [blkif.MaxSegments]copySegment
	copyArg   copyArg

	sector     uint64
	sectors    int // that are not done
	submitting bool
	errno      int
	begin      int64 // when it was taken
	tried      int64
	truth      *blkif.Truth

	next, prev *request
}

func (r *request) write() bool { return r.msg.Operation != blkif.Read }

// list is a list of requests, the oldest first.
type list struct{ head, tail *request }

func (l *list) push(r *request) {
	r.next, r.prev = nil, l.tail
	if l.tail == nil {
		l.head = r
	} else {
		l.tail.next = r
	}
	l.tail = r
}

func (l *list) remove(r *request) {
	if r.prev == nil {
		l.head = r.next
	} else {
		r.prev.next = r.next
	}
	if r.next == nil {
		l.tail = r.prev
	} else {
		r.next.prev = r.prev
	}
	r.next, r.prev = nil, nil
}

func (l *list) pop() *request {
	r := l.head
	l.remove(r)
	return r
}

// ring is what td_xenblkif is.
type ring struct {
	s       *server
	i       *blkif.Indexes
	slots   int
	cons    uint32 // req_cons
	rsp     uint32 // rsp_prod_pvt
	free    []*request
	taken   []*request
	buffers []uintptr
	gntdev  int
	polling bool

	barrier      *request
	barrierDone  bool
	barrierErrno int

	port uint32
}

func (g *ring) connect(s *server) error {
	g.s, g.i, g.slots = s, s.mem.Indexes(), s.mem.Slots()
	for range g.slots {
		g.free = append(g.free, &request{})
	}
	g.taken = make([]*request, 0, g.slots)
	g.buffers = make([]uintptr, 0, g.slots)
	path := s.Gntdev
	if path == "" {
		path = "/dev/null"
	}
	var err error
	if g.gntdev, err = unix.Open(path, unix.O_RDWR|unix.O_NONBLOCK|unix.O_CLOEXEC, 0); err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	g.put(g.buffer())
	s.forget = never
	return nil
}

// buffer returns the buffer of a request, which may be one that another had before.
func (g *ring) buffer() uintptr {
	g.s.forget = never
	if n := len(g.buffers); n > 0 {
		b := g.buffers[n-1]
		g.buffers = g.buffers[:n-1]
		return b
	}
	b, e := call(unix.SYS_MMAP, 0, bufferSize, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED|unix.MAP_ANONYMOUS, ^uintptr(0), 0)
	if e != 0 {
		return 0
	}
	return b
}

func (g *ring) put(b uintptr) {
	g.buffers = append(g.buffers, b)
	if len(g.free) == g.slots {
		g.s.forget = nanotime() + forgetBuf
	}
}

// forget gives buffers back that nobody has needed for a while.
func (g *ring) forget() {
	for len(g.buffers) > 1 {
		n := len(g.buffers)
		call(unix.SYS_MUNMAP, g.buffers[n-1], bufferSize)
		g.buffers = g.buffers[:n-1]
	}
	g.s.forget = never
}

// event is what the event channel has: tapdisk_xenio_ctx_ring_event.
func (g *ring) event() {
	if n, e := call(unix.SYS_READ, EventFD, addr(&g.port), 4); e != 0 || n != 4 {
		g.s.control.ended = e == 0 && n == 0 // the guest is gone
		return
	}
	call(unix.SYS_WRITE, EventFD, addr(&g.port), 4)
	g.process(false)
}

// check is the event that looks at the ring without having been asked to.
func (g *ring) check() {
	if !g.polling {
		g.s.checkRing = never
	}
	g.process(!g.polling)
}

// stop ends the polling, unless there is something.
func (g *ring) stop() {
	g.s.stopPolling = never
	if g.process(true) == 0 {
		g.polling = false
		g.s.checkRing = never
	}
}

// process is tapdisk_xenio_ctx_process_ring.
func (g *ring) process(final bool) int {
	if g.barrier != nil {
		return 0
	}
	g.taken = g.taken[:0]
	for {
		n := g.take(final)
		if n == 0 {
			break
		}
		final = true
		if r := g.taken[len(g.taken)-1]; r.msg.Operation == blkif.WriteBarrier {
			g.barrier, g.barrierDone, g.barrierErrno = r, false, 0
			break
		}
	}
	if len(g.taken) == 0 {
		return 0
	}
	if us := g.s.knobs.PollUs.Load(); us > 0 {
		if !g.polling {
			g.polling = true
			g.s.checkRing = nanotime()
		}
		g.s.stopPolling = nanotime() + us*1000
	}
	for _, r := range g.taken {
		g.queue(r)
	}
	return len(g.taken)
}

// take copies requests off the ring, up to a barrier: xenio_blkif_get_requests.
func (g *ring) take(final bool) (n int) {
	for {
		prod := g.i.ReqProd.Load()
		work := prod != g.cons
		if !work && final {
			g.i.ReqEvent.Store(g.cons + 1)
			prod = g.i.ReqProd.Load()
			work = prod != g.cons
		}
		if !work || len(g.free) == 0 {
			return n
		}
		now := nanotime()
		for ; g.cons != prod && len(g.free) > 0; g.cons++ {
			r := g.free[len(g.free)-1]
			g.free = g.free[:len(g.free)-1]
			r.msg = *g.s.mem.Request(g.cons)
			r.truth = g.s.mem.Truth(r.msg.ID)
			*r.truth = blkif.Truth{Woke: g.s.woke, Taken: now}
			g.taken = append(g.taken, r)
			n++
			if r.msg.Operation == blkif.WriteBarrier {
				g.cons++
				return n
			}
		}
	}
}

// queue is tapdisk_xenblkif_queue_request.
func (g *ring) queue(r *request) {
	s := g.s
	r.errno, r.sectors, r.numPieces, r.vma = 0, 0, 0, 0
	switch r.msg.Operation {
	case blkif.Read:
		s.shm.blkback.readRequests++
		s.shm.vbd.reads++
	case blkif.Write, blkif.WriteBarrier:
		s.shm.blkback.writeRequests++
		s.shm.vbd.writes++
	default:
		g.complete(r, int(unix.EOPNOTSUPP), true)
		return
	}
	r.begin = nanotime()
	if r.msg.NumSegments == 0 && r.msg.Operation != blkif.WriteBarrier || r.msg.NumSegments > blkif.MaxSegments {
		g.complete(r, int(unix.EINVAL), true)
		return
	}
	if r.msg.NumSegments == 0 {
		r.truth.Queued, r.truth.Picked = r.begin, r.begin
		if g.drained() {
			g.complete(r, 0, true)
		}
		return
	}
	if errno := g.parse(r); errno != 0 {
		g.complete(r, errno, true)
		return
	}
	r.truth.Queued = nanotime()
	s.fresh.push(r)
}

// parse gives the request its buffer, and that the data when it is a write.
func (g *ring) parse(r *request) (errno int) {
	if r.vma = g.buffer(); r.vma == 0 {
		return int(unix.ENOMEM)
	}
	var end uintptr
	sectors := 0
	for i, seg := range r.msg.Segments[:r.msg.NumSegments] {
		if seg.Last < seg.First || seg.Last >= blkif.Page/sector {
			return int(unix.EINVAL)
		}
		begin := r.vma + uintptr(i*blkif.Page) + uintptr(seg.First)*sector
		n := int(seg.Last-seg.First) + 1
		if begin == end {
			r.pieces[r.numPieces-1].count += n
		} else {
			r.pieces[r.numPieces] = vector{begin, n}
			r.numPieces++
		}
		end = begin + uintptr(n*sector)
		sectors += n
	}
	r.sector = r.msg.Sector
	if !r.write() {
		g.s.shm.blkback.readSectors += uint64(sectors)
		g.s.shm.vbd.readSectors += uint64(sectors)
		return 0
	}
	errno = g.copy(r)
	g.s.shm.blkback.writeSectors += uint64(sectors)
	g.s.shm.vbd.writeSectors += uint64(sectors)
	return errno
}

// copy has Xen copy between the guest's pages and the buffer. There is no such guest, or
// no Xen, so whatever comes of that the data are copied here.
func (g *ring) copy(r *request) (errno int) {
	domid := uint16(g.s.Domid)
	for i, seg := range r.msg.Segments[:r.msg.NumSegments] {
		offset := uint16(seg.First) * sector
		c := copySegment{len: (uint16(seg.Last-seg.First) + 1) * sector}
		local := uint64(r.vma) + uint64(i*blkif.Page) + uint64(offset)
		if r.write() {
			c.source, c.dest, c.flags = foreign(seg.Gref, offset, domid), local, sourceGref
		} else {
			c.source, c.dest, c.flags = local, foreign(seg.Gref, offset, domid), destGref
		}
		r.copies[i] = c
	}
	r.copyArg = copyArg{count: uint32(r.msg.NumSegments), segments: addr(&r.copies[0])}
	begin := nanotime()
	call(unix.SYS_IOCTL, uintptr(g.gntdev), grantCopy, addr(&r.copyArg))
	r.truth.CopyNs += nanotime() - begin
	for i, seg := range r.msg.Segments[:r.msg.NumSegments] {
		page, ok := g.s.mem.Granted(seg.Gref)
		if !ok {
			return int(unix.EIO)
		}
		offset, n := int(seg.First)*sector, int(r.copies[i].len)
		theirs, ours := page[offset:offset+n], bytesAt(r.vma+uintptr(i*blkif.Page+offset), n)
		if r.write() {
			copy(ours, theirs)
		} else {
			copy(theirs, ours)
		}
	}
	return 0
}

// drained tells whether the barrier can be answered.
func (g *ring) drained() bool {
	return g.barrier != nil && len(g.free) == g.slots-1 && (g.barrier.msg.NumSegments == 0 || g.barrierDone)
}

// complete is tapdisk_xenblkif_complete_request: final has the guest told.
func (g *ring) complete(r *request, errno int, final bool) {
	s := g.s
	barrier := r.msg.Operation == blkif.WriteBarrier
	if barrier {
		if r.msg.NumSegments > 0 && !g.barrierDone {
			g.barrierErrno, g.barrierDone = errno, true
		}
		if !g.drained() {
			return
		}
		errno = max(errno, g.barrierErrno)
	}
	if !r.write() && errno == 0 {
		errno = g.copy(r)
	}
	if r.begin != 0 {
		s.shm.count(r.write(), uint64(nanotime()-r.begin)/1000, errno != 0)
	}
	rsp := s.mem.Response(g.rsp)
	status := int16(blkif.OK)
	switch errno {
	case 0:
	case int(unix.EOPNOTSUPP):
		status = blkif.Unsupported
	default:
		status = blkif.Failed
	}
	r.truth.Answered = nanotime()
	*rsp = blkif.Response{ID: r.msg.ID, Operation: r.msg.Operation, Status: status}
	g.rsp++
	if final {
		g.push()
	}
	if g.free = append(g.free, r); r.vma != 0 {
		g.put(r.vma)
	}
	if barrier {
		g.barrier = nil
	}
	if g.barrier == nil {
		s.checkRing = nanotime()
	} else if g.drained() {
		g.complete(g.barrier, 0, true)
	}
}

// push shows the guest the responses, and wakes it if it asked for that.
func (g *ring) push() {
	old := g.i.RspProd.Load()
	g.i.RspProd.Store(g.rsp)
	if g.rsp-g.i.RspEvent.Load() < g.rsp-old {
		call(unix.SYS_IOCTL, uintptr(EventFD), evtchnNotify, addr(&g.port))
		call(unix.SYS_WRITE, NotifyFD, addr(&g.port), 4)
	}
}
