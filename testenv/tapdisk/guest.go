//go:build linux

package tapdisk

import (
	"cmp"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/xenserver/dtagent/testenv/internal/blkif"
)

// Op is what a request does.
type Op uint8

// Operations.
const (
	Read Op = iota
	Write
	Barrier // an empty write that is answered when all before it are
	numOps
)

func (o Op) String() string { return [...]string{"read", "write", "barrier"}[o] }

// Load is what a guest does to its disk. The zero value of a field is what its comment
// says.
type Load struct {
	Requests int           // how many; as many as there is time for
	Time     time.Duration // how long; without end

	Depth    int     // requests under way at once, not more than the ring has; 1
	Size     int     // bytes of a request, a multiple of 512, up to 44 KiB; 4096
	Reads    float64 // share of reads; with Writes 0 all
	Writes   float64 // share of writes
	Barriers float64 // share of barriers, which hold no data

	Random bool    // where they go; one after the other
	Begin  int64   // in bytes, of the part of the disk that is used; 0
	Span   int64   // bytes of that part; 16 MiB
	Rate   float64 // requests a second at most; as many as can be
	Align  int     // in bytes, of random places; Size, or 4096 when that is more
	Seed   uint64  // of what happens and where: the n-th write goes to the same place, whatever is between

	// Check has the data of reads compared with what this guest wrote before to the same
	// places: Result.Wrong. They have to be on pages, of a disk that was empty.
	Check bool

	Keep int // how many requests are kept in Result.Requests; all
}

// Request is one, as the guest saw it and as the tapdisk tells. The times are those of
// CLOCK_MONOTONIC in ns.
type Request struct {
	Op     Op
	ID     uint64 // of the slot, as it is in the ring
	Offset int64
	Bytes  int
	Status int16 // of the response: 0 is good

	Enqueued int64 // the guest puts it in the ring
	Seen     int64 // the guest has seen the response

	must uint16 // pages, as bits, that had been written before it was enqueued

	blkif.Truth
}

// Latency returns what the guest measured.
func (r *Request) Latency() time.Duration { return time.Duration(r.Seen - r.Enqueued) }

// Ring returns how long it was in the ring before the tapdisk began to take it.
func (r *Request) Ring() time.Duration { return time.Duration(r.Taken - r.Enqueued) }

// Served returns how long the tapdisk had it.
func (r *Request) Served() time.Duration { return time.Duration(r.Answered - r.Taken) }

// Latencies are those of one operation, in order.
type Latencies []time.Duration

// At returns the latency that a share p of the requests did not exceed.
func (l Latencies) At(p float64) time.Duration {
	if len(l) == 0 {
		return 0
	}
	return l[min(len(l)-1, max(0, int(p*float64(len(l))+0.5)-1))]
}

// Mean returns the mean.
func (l Latencies) Mean() time.Duration {
	var sum time.Duration
	for _, d := range l {
		sum += d
	}
	return sum / time.Duration(max(1, len(l)))
}

// Result is what came of a load.
type Result struct {
	Requests []Request // in the order in which they were answered
	Latency  [numOps]Latencies
	Kicks    uint64 // of the event channel
	Failed   int    // requests, by their status
	Wrong    int    // pages that Load.Check did not find as they were written
	Took     time.Duration
}

// Guest is one. It has one disk.
type Guest struct {
	d       *Disk
	channel int // the event channel, towards the tapdisk
	notify  *os.File
	mu      sync.Mutex // held while there is a load
	wg      sync.WaitGroup

	// The event channel is as Xen's: while it is masked, a kick waits.
	masked  atomic.Bool
	waiting atomic.Bool
	kicks   atomic.Uint64

	prod, cons uint32
	written    map[int64]bool // pages, by their place: false while the request is under way
}

func newGuest(d *Disk, channel int, notify *os.File) *Guest {
	return &Guest{d: d, channel: channel, notify: notify, written: map[int64]bool{}}
}

// run obeys the tapdisk's unmasking.
func (g *Guest) run() {
	g.wg.Go(func() {
		var b [4]byte
		for {
			n, err := unix.Read(g.channel, b[:])
			if err == unix.EINTR {
				continue
			}
			if err != nil || n == 0 {
				return
			}
			g.masked.Store(false)
			if g.waiting.Swap(false) {
				g.kick()
			}
		}
	})
}

// kick is what happens on a notification of the event channel.
func (g *Guest) kick() {
	for g.masked.Swap(true) {
		g.waiting.Store(true)
		if g.masked.Load() || !g.waiting.Swap(false) {
			return // whoever unmasks it does so
		}
	}
	g.kicks.Add(1)
	_, _ = unix.Write(g.channel, []byte{1, 0, 0, 0}) // fails when the tapdisk is gone: requests are not answered then
}

func (g *Guest) close() error {
	_ = unix.Shutdown(g.channel, unix.SHUT_RDWR) // ends run
	g.wg.Wait()
	return errors.Join(unix.Close(g.channel), g.notify.Close())
}

func monotonic() int64 {
	var ts unix.Timespec
	_ = unix.ClockGettime(unix.CLOCK_MONOTONIC, &ts)
	return ts.Nano()
}

func (l *Load) complete(slots int) error {
	l.Depth = cmp.Or(l.Depth, 1)
	l.Size = cmp.Or(l.Size, blkif.Page)
	l.Span = cmp.Or(l.Span, 16<<20)
	l.Align = cmp.Or(l.Align, max(l.Size/blkif.Page*blkif.Page, min(l.Size, blkif.Page)))
	if l.Reads == 0 && l.Writes == 0 && l.Barriers == 0 {
		l.Reads = 1
	}
	switch {
	case l.Depth < 1 || l.Depth > slots:
		return fmt.Errorf("depth %d: the ring has %d", l.Depth, slots)
	case l.Size < 512 || l.Size%512 != 0 || l.Size > blkif.MaxSegments*blkif.Page:
		return fmt.Errorf("requests of %d bytes", l.Size)
	case l.Span < int64(l.Size):
		return fmt.Errorf("requests of %d bytes in a part of %d", l.Size, l.Span)
	case l.Check && (l.Align|int(l.Begin)|l.Size)%blkif.Page != 0:
		return errors.New("only data on pages can be checked")
	case l.Align%512 != 0 || l.Begin%512 != 0:
		return errors.New("requests that begin within a sector")
	}
	return nil
}

// Run puts a load on the disk, and returns what came of it when the last request has
// been answered. One at a time. When ctx ends, requests are left in the ring: the disk
// is of no more use.
func (g *Guest) Run(ctx context.Context, l Load) (Result, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	slots := g.d.mem.Slots()
	if err := l.complete(slots); err != nil {
		return Result{}, fmt.Errorf("tapdisk: load: %w", err)
	}
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	w := worker{g: g, l: l, mem: g.d.mem, under: make([]Request, slots), rng: rand.New(rand.NewPCG(l.Seed, 0))}
	for op := range w.places {
		w.places[op] = rand.New(rand.NewPCG(l.Seed, 1+uint64(op)))
	}
	for id := range l.Depth {
		w.free = append(w.free, uint64(l.Depth-1-id))
	}
	err := w.run(ctx)
	for _, v := range w.res.Latency {
		slices.Sort(v)
	}
	if err != nil {
		return w.res, fmt.Errorf("tapdisk: guest: %w", err)
	}
	return w.res, nil
}

// worker is a load under way.
type worker struct {
	g   *Guest
	l   Load
	mem *blkif.Memory
	rng *rand.Rand
	// The places of one operation are the same in each load of the same seed.
	places [numOps]*rand.Rand
	free   []uint64  // IDs
	under  []Request // by ID
	sent   int
	next   int64 // place
	res    Result
}

func (w *worker) run(ctx context.Context) error {
	begin := monotonic()
	kicks := w.g.kicks.Load()
	defer func() {
		w.res.Took = time.Duration(monotonic() - begin)
		w.res.Kicks = w.g.kicks.Load() - kicks
	}()
	under := 0
	for {
		now := monotonic()
		more := (w.l.Requests == 0 || w.sent < w.l.Requests) &&
			(w.l.Time == 0 || now-begin < int64(w.l.Time))
		var due int64
		put := 0
		for more && len(w.free) > 0 {
			if w.l.Rate > 0 {
				if due = begin + int64(float64(w.sent)/w.l.Rate*1e9); due > now {
					break
				}
				due = 0
			}
			w.put()
			put++
			more = w.l.Requests == 0 || w.sent < w.l.Requests
		}
		under += put
		if put > 0 {
			w.push()
		}
		if n := w.take(); n > 0 {
			under -= n
			continue
		}
		if !more && under == 0 {
			return nil
		}
		until := due
		if w.l.Time > 0 && more && (until == 0 || until > begin+int64(w.l.Time)) {
			until = begin + int64(w.l.Time)
		}
		if err := w.sleep(ctx, until); err != nil {
			return err
		}
	}
}

// put makes a request in the ring, which the tapdisk does not see yet.
func (w *worker) put() {
	id := w.free[len(w.free)-1]
	w.free = w.free[:len(w.free)-1]
	l := &w.l
	r := Request{ID: id, Bytes: l.Size}
	switch p := w.rng.Float64() * (l.Reads + l.Writes + l.Barriers); {
	case p < l.Reads:
		r.Op = Read
	case p < l.Reads+l.Writes:
		r.Op = Write
	default:
		r.Op, r.Bytes = Barrier, 0
	}
	if l.Random {
		r.Offset = l.Begin + w.places[r.Op].Int64N((l.Span-int64(l.Size))/int64(l.Align)+1)*int64(l.Align)
	} else {
		if w.next+int64(l.Size) > l.Span {
			w.next = 0
		}
		r.Offset = l.Begin + w.next
		w.next += int64(l.Size)
	}
	q := blkif.Request{Operation: [...]uint8{blkif.Read, blkif.Write, blkif.WriteBarrier}[r.Op], Handle: 0, ID: id, Sector: uint64(r.Offset / 512)}
	for left := r.Bytes; left > 0; left -= blkif.Page {
		n := min(left, blkif.Page)
		q.Segments[q.NumSegments] = blkif.Segment{Gref: blkif.Gref(id, int(q.NumSegments)), Last: uint8(n/512 - 1)}
		if r.Op == Write {
			page, _ := w.mem.Granted(q.Segments[q.NumSegments].Gref)
			at := r.Offset + int64(r.Bytes-left)
			binary.LittleEndian.PutUint64(page, mark(at))
			if w.l.Check && !w.g.written[at] {
				w.g.written[at] = false
			}
		}
		if r.Op == Read && w.l.Check && w.g.written[r.Offset+int64(r.Bytes-left)] {
			r.must |= 1 << q.NumSegments
		}
		q.NumSegments++
	}
	*w.mem.Request(w.g.prod) = q
	w.g.prod++
	w.sent++
	r.Enqueued = monotonic()
	w.under[id] = r
}

// push shows the tapdisk the requests, and kicks it if it asked for that.
func (w *worker) push() {
	i := w.mem.Indexes()
	old := i.ReqProd.Load()
	i.ReqProd.Store(w.g.prod)
	if w.g.prod-i.ReqEvent.Load() < w.g.prod-old {
		w.g.kick()
	}
}

// take takes responses off the ring, and asks to be told of the next one when there
// are no more.
func (w *worker) take() (n int) {
	i := w.mem.Indexes()
	for {
		for prod := i.RspProd.Load(); w.g.cons != prod; w.g.cons++ {
			rsp := *w.mem.Response(w.g.cons)
			r := w.under[rsp.ID]
			r.Status, r.Truth, r.Seen = rsp.Status, *w.mem.Truth(rsp.ID), monotonic()
			w.free = append(w.free, rsp.ID)
			if w.l.Check && rsp.Status == blkif.OK {
				w.check(&r)
			}
			if rsp.Status != blkif.OK {
				w.res.Failed++
			}
			w.res.Latency[r.Op] = append(w.res.Latency[r.Op], r.Latency())
			if w.l.Keep == 0 || len(w.res.Requests) < w.l.Keep {
				w.res.Requests = append(w.res.Requests, r)
			}
			n++
		}
		i.RspEvent.Store(w.g.cons + 1)
		if i.RspProd.Load() == w.g.cons {
			return n
		}
	}
}

// mark is what is written to a page of that place.
func mark(at int64) uint64 { return uint64(at) ^ 0x7461706469736b }

// check looks at the data of a read, and remembers a write.
func (w *worker) check(r *Request) {
	for i := 0; i*blkif.Page < r.Bytes; i++ {
		at := r.Offset + int64(i*blkif.Page)
		if r.Op == Write {
			w.g.written[at] = true
			continue
		}
		page, _ := w.mem.Granted(blkif.Gref(r.ID, i))
		got := binary.LittleEndian.Uint64(page)
		_, begun := w.g.written[at]
		if got != mark(at) && (got != 0 || r.must&(1<<i) != 0) || got != 0 && !begun {
			w.res.Wrong++
		}
	}
}

// sleep waits until the tapdisk notifies, or that time is there if it is not 0. A guest
// does not look at the ring for anything else.
func (w *worker) sleep(ctx context.Context, until int64) error {
	fds := []unix.PollFd{{Fd: int32(w.g.notify.Fd()), Events: unix.POLLIN}}
	for {
		wait := int64(time.Second)
		if until != 0 {
			wait = min(wait, max(until-monotonic(), 0))
		}
		ts := unix.NsecToTimespec(wait)
		n, err := unix.Ppoll(fds, &ts, nil)
		switch {
		case err == unix.EINTR:
			continue
		case err != nil:
			return err
		case n > 0 && fds[0].Revents&unix.POLLIN != 0:
			var b [256]byte
			_, err := unix.Read(int(fds[0].Fd), b[:])
			return err
		case until != 0 && monotonic() >= until:
			return nil
		}
		select {
		case <-w.g.d.ended:
			return errors.New("the tapdisk has ended")
		case <-ctx.Done():
			return ctx.Err()
		default:
		}
	}
}
