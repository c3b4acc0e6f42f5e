//go:build linux

package tapdiskd

import (
	"fmt"
	"sync/atomic"
	"syscall"

	"golang.org/x/sys/unix"
)

const (
	tiocbs     = 402 // TAPDISK_TIOCBS
	mostMerged = 8   // UIO_FASTIOV
)

// tiocb is one I/O on an image. Its iocb comes first: io_event.obj points to it.
type tiocb struct {
	io   iocb
	done func(*tiocb, int) // with 0 or an errno
	arg  any

	// While its iocb is the head of others, or one of those.
	orig   iocb
	vec    [mostMerged]iovec
	next   *tiocb // the one whose data come after it
	tail   *tiocb // of the head: the last one
	merged bool

	deferred *tiocb // the next in the queue's list
	req      *request
}

// queue is a context of asynchronous I/O: libaio_queue.
type queue struct {
	ctx     uintptr
	eventfd int
	limit   func() int

	queued  []*tiocb // for the next io_submit
	heads   []*tiocb // of them when merged
	iocbs   [tiocbs]uintptr
	pending int // of tiocbs in the kernel
	byAddr  map[uintptr]*tiocb

	deferredHead, deferredTail *tiocb // no place for them
	events                     [tiocbs]ioEvent
	done                       []*tiocb
	results                    []int64
	count                      uint64 // read from the eventfd
}

// noTime is on no stack, which could move while its address is used.
var noTime unix.Timespec

func newQueue(limit func() int) (*queue, error) {
	q := &queue{limit: limit, queued: make([]*tiocb, 0, tiocbs), heads: make([]*tiocb, 0, tiocbs),
		done: make([]*tiocb, 0, tiocbs), results: make([]int64, 0, tiocbs), byAddr: map[uintptr]*tiocb{}}
	if _, e := call(unix.SYS_IO_SETUP, tiocbs, addr(&q.ctx)); e != 0 {
		return nil, fmt.Errorf("io_setup: %w", e)
	}
	fd, e := call(unix.SYS_EVENTFD2, 0, 0)
	if e != 0 {
		return nil, fmt.Errorf("eventfd: %w", e)
	}
	q.eventfd = int(fd)
	return q, nil
}

// own tells the queue of a tiocb that will be given to it, so that it knows it by the
// address of its iocb.
func (q *queue) own(t *tiocb) { q.byAddr[addr(&t.io)] = t }

// io has t done at the next submit, or when there is a place for it.
func (q *queue) io(t *tiocb, fd int, write bool, buf uintptr, n int, offset int64) {
	op := uint16(cmdPread)
	if write {
		op = cmdPwrite
	}
	t.io = iocb{data: addr(t), opcode: op, fildes: uint32(fd), buf: buf, nbytes: uint64(n), offset: offset}
	t.next, t.tail, t.merged, t.deferred = nil, nil, false, nil
	if q.full() {
		if q.deferredTail == nil {
			q.deferredHead = t
		} else {
			q.deferredTail.deferred = t
		}
		q.deferredTail = t
		return
	}
	q.queued = append(q.queued, t)
}

func (q *queue) full() bool { return q.pending+len(q.queued) >= q.limit() }

// undefer queues what had no place before.
func (q *queue) undefer() {
	for q.deferredHead != nil && !q.full() {
		t := q.deferredHead
		q.deferredHead = t.deferred
		if q.deferredHead == nil {
			q.deferredTail = nil
		}
		t.deferred = nil
		q.queued = append(q.queued, t)
	}
}

// submit gives all that is queued to the kernel, with one call. Neighbours in the queue
// whose data are neighbours in a file, too, become one iocb.
func (q *queue) submit() {
	if len(q.queued) == 0 {
		return
	}
	q.heads = q.heads[:0]
	for _, t := range q.queued {
		if n := len(q.heads); n > 0 && merge(q.heads[n-1], t) {
			continue
		}
		q.heads = append(q.heads, t)
	}
	now := nanotime()
	for i, t := range q.heads {
		t.io.flags, t.io.resfd = flagResfd, uint32(q.eventfd)
		q.iocbs[i] = addr(&t.io)
	}
	for _, t := range q.queued {
		if t.req != nil && t.req.truth.Submit == 0 {
			t.req.truth.Submit = now
		}
		if t.req != nil && t.merged {
			t.req.truth.Merged++
		}
	}
	n, e := call(unix.SYS_IO_SUBMIT, q.ctx, uintptr(len(q.heads)), addr(&q.iocbs[0]))
	now = nanotime()
	if e != 0 {
		n = 0
	} else if int(n) < len(q.heads) {
		e = unix.EIO
	}
	for _, t := range q.queued {
		if t.req != nil && t.req.truth.Returned == 0 {
			t.req.truth.Returned = now
		}
	}
	q.pending += len(q.queued)
	q.queued = q.queued[:0]
	failed := q.done[:0]
	failed = append(failed, q.heads[n:]...)
	for _, t := range failed {
		q.pending -= q.finish(t, -int64(e))
	}
}

// merge adds t to the iocb of head when its data come right after in the same file.
func merge(head, t *tiocb) bool {
	end, vectors := head.io.offset, 1
	switch head.io.opcode {
	case cmdPread, cmdPwrite:
		if head.io.opcode != t.io.opcode {
			return false
		}
		end += int64(head.io.nbytes)
	default:
		if head.io.opcode != t.io.opcode+cmdPreadv {
			return false
		}
		vectors = int(head.io.nbytes)
		for _, v := range head.vec[:vectors] {
			end += int64(v.len)
		}
	}
	if head.io.fildes != t.io.fildes || end != t.io.offset || vectors == mostMerged {
		return false
	}
	t.orig, t.merged = t.io, true
	if head.tail == nil {
		head.orig, head.merged = head.io, true
		head.vec[0] = iovec{head.io.buf, head.io.nbytes}
		head.io.opcode += cmdPreadv
		head.io.buf, head.io.nbytes = addr(&head.vec[0]), 1
		head.tail = head
	}
	head.vec[vectors] = iovec{t.io.buf, t.io.nbytes}
	head.io.nbytes++
	head.tail.next = t
	head.tail = t
	return true
}

// event takes what is done from the ring that the kernel shares, and finishes it.
func (q *queue) event() {
	call(unix.SYS_READ, uintptr(q.eventfd), addr(&q.count), 8)
	n := q.reap()
	q.done, q.results = q.done[:0], q.results[:0]
	for _, e := range q.events[:n] {
		q.done, q.results = append(q.done, q.byAddr[e.obj]), append(q.results, e.res)
	}
	// As the tapdisk counts them: all places are free before the first is finished.
	for _, t := range q.done {
		for ; t != nil; t = t.next {
			q.pending--
		}
	}
	for i, t := range q.done {
		q.finish(t, q.results[i])
	}
	q.undefer()
}

// reap copies the events in the ring, and takes them off it.
func (q *queue) reap() int {
	r := at[aioRing](q.ctx)
	if r.magic != aioMagic || r.incompat != 0 {
		n, e := call(unix.SYS_IO_GETEVENTS, q.ctx, 0, tiocbs, addr(&q.events[0]), addr(&noTime))
		if e != 0 {
			return 0
		}
		return int(n)
	}
	head, tail := atomic.LoadUint32(&r.head), atomic.LoadUint32(&r.tail)
	n := 0
	for ; head != tail && n < tiocbs; n++ {
		q.events[n] = *at[ioEvent](q.ctx + uintptr(r.headLen) + uintptr(head)*32)
		if head++; head == r.nr {
			head = 0
		}
	}
	atomic.StoreUint32(&r.head, head)
	return n
}

// finish ends a tiocb and those that were merged with it. It returns how many.
func (q *queue) finish(t *tiocb, res int64) (n int) {
	whole := int64(t.io.nbytes)
	if t.io.opcode >= cmdPreadv {
		whole = 0
		for _, v := range t.vec[:t.io.nbytes] {
			whole += int64(v.len)
		}
	}
	errno := 0
	switch {
	case res < 0:
		errno = int(-res)
	case res != whole:
		errno = int(syscall.EIO)
	}
	for t != nil {
		next := t.next
		if t.merged {
			t.io = t.orig
		}
		t.next, t.tail = nil, nil
		n++
		t.done(t, errno)
		t = next
	}
	return n
}
