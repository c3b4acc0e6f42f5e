//go:build linux

package tapdiskd

import (
	"encoding/json"
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"github.com/xenserver/dtagent/testenv/internal/blkif"
)

// Options are what a tapdisk is told when it starts.
type Options struct {
	Domid, Devid, Minor int
	Type                string   // aio or vhd
	Images              []string // the chain, the leaf first
	ShmRoot             string   // for /dev/shm
	ControlDir          string   // for /run/blktap-control
	RingPages           int
	Gntdev              string // the device of grants
	Select              bool   // waits by select instead of pselect6
}

// Descriptors that a tapdisk inherits.
const (
	MemoryFD = 3 // of the guest
	EventFD  = 4 // stands for the event channel: 4 bytes each way
	NotifyFD = 5 // where a notification of the guest goes
)

// Times in ns.
const (
	second         = int64(1e9)
	never          = int64(1<<63 - 1)
	idle           = 600 * second // SCHEDULER_MAX_TIMEOUT
	watchdog       = 10 * second  // TD_VBD_WATCHDOG_TIMEOUT
	retry          = 1 * second   // TD_VBD_RETRY_INTERVAL
	requestTimeout = 120 * second // TD_VBD_REQUEST_TIMEOUT
	forgetBuf      = 3 * second   // TD_REQS_BUFCACHE_EXPIRE
)

// server is the process.
type server struct {
	Options
	mem     *blkif.Memory
	knobs   *blkif.Knobs
	rw, ro  *queue // for the leaf and for its parents
	chain   []image
	ring    ring
	control control
	shm     shm

	fresh, failed, completed list // of requests: not issued, given up for the time being, to be answered
	inflight                 int  // issued and not complete
	progress                 int64

	quiesced, pausing, paused bool
	pid                       uint32
	parent                    int // the process that started it

	// The scheduler's.
	woke              int64 // when it last had something to do
	wait              [3]fdSet
	timeout           [2]int64
	checkRing, forget int64 // when to: never, or a time
	stopPolling       int64
}

// Run is the life of the process.
func Run(options string) error {
	s := &server{checkRing: never, forget: never, stopPolling: never, parent: os.Getppid()}
	if err := json.Unmarshal([]byte(options), &s.Options); err != nil {
		return fmt.Errorf("options: %w", err)
	}
	// Whoever wants to may trace it; it is an error where there is nothing to permit.
	_ = unix.Prctl(unix.PR_SET_PTRACER, ^uintptr(0), 0, 0, 0)
	var err error
	if s.mem, err = blkif.Map(MemoryFD, s.RingPages); err != nil {
		return err
	}
	s.knobs = s.mem.Knobs()
	limit := func() int {
		if n := s.knobs.Tiocbs.Load(); n > 0 && n < tiocbs {
			return int(n)
		}
		return tiocbs
	}
	if s.ro, err = newQueue(limit); err != nil {
		return err
	}
	if s.rw, err = newQueue(limit); err != nil {
		return err
	}
	if err := s.control.listen(s.ControlDir, s.Minor); err != nil {
		return err
	}
	for i, path := range s.Images {
		f := file{path: path, q: s.rw}
		if i > 0 {
			f.readOnly, f.q = true, s.ro
		}
		var img image
		switch s.Type {
		case "vhd":
			img, err = openVHD(s, f, i)
		case "aio":
			img, err = openRaw(s, f)
		default:
			err = fmt.Errorf("unknown type of image %q", s.Type)
		}
		if err != nil {
			return err
		}
		s.chain = append(s.chain, img)
	}
	if err := s.shm.create(s); err != nil {
		return err
	}
	if err := s.ring.connect(s); err != nil {
		return err
	}
	alone()
	// It is up: who started it reads so.
	s.pid = uint32(os.Getpid())
	call(unix.SYS_WRITE, 1, addr(&s.pid), 4)
	for !s.control.ended || s.control.answering {
		s.iterate()
	}
	s.shm.remove()
	s.control.remove()
	return nil
}

// iterate is tapdisk_server_iterate.
func (s *server) iterate() {
	s.waitForEvents()
	s.check()
	for {
		s.rw.submit()
		s.ro.submit()
		s.answer()
		if s.fresh.head == nil || s.quiesced || s.pausing {
			return
		}
		s.issueAll()
	}
}

// waitForEvents is scheduler_wait_for_events: what is ready and due is done in the
// order in which it was registered.
func (s *server) waitForEvents() {
	wait := idle
	now := nanotime()
	until := min(s.stopPolling, s.forget)
	if !s.suspended() {
		until = min(until, s.checkRing)
	}
	if until != never {
		wait = min(wait, max(until-now, 0))
	}
	if s.failed.head != nil || s.fresh.head != nil {
		wait = min(wait, retry)
	}
	if s.inflight > 0 {
		if left := watchdog/second - (now-s.progress)/second; left > 0 {
			wait = min(wait, left*second)
		}
	}
	s.wait = [3]fdSet{}
	most := 0
	watch := func(set, fd int) {
		s.wait[set].set(fd)
		most = max(most, fd)
	}
	watch(0, s.ro.eventfd)
	watch(0, s.rw.eventfd)
	watch(0, s.control.fd)
	for _, fd := range s.control.nbd {
		watch(0, fd)
	}
	if s.control.conn >= 0 {
		set := 0
		if s.control.answering {
			set = 1
		}
		watch(set, s.control.conn)
	}
	if !s.ring.polling && !s.suspended() {
		watch(0, EventFD)
	}
	n := s.sleep(most+1, wait)
	if n == 0 && wait == idle && s.paused { // else the end of the event channel tells
		if parent, _ := call(unix.SYS_GETPPID); int(parent) != s.parent {
			s.control.ended = true
		}
	}
	now = nanotime()
	s.woke = now
	read := &s.wait[0]
	if n <= 0 {
		*read, s.wait[1] = fdSet{}, fdSet{}
	}
	check := s.checkRing <= now && !s.suspended()
	stop, forget := s.stopPolling <= now, s.forget <= now
	kicked, ro, rw := read.has(EventFD), read.has(s.ro.eventfd), read.has(s.rw.eventfd)
	if read.has(s.control.fd) {
		s.control.accept()
	} else if s.control.conn >= 0 && (read.has(s.control.conn) || s.wait[1].has(s.control.conn)) {
		s.control.event(s)
	}
	for _, fd := range s.control.nbd {
		if read.has(fd) {
			s.control.refuse(fd)
		}
	}
	if ro {
		s.ro.event()
	}
	if rw {
		s.rw.event()
	}
	if kicked && !s.suspended() {
		s.ring.event()
	}
	if check && !s.suspended() {
		s.ring.check()
	}
	if stop {
		s.ring.stop()
	}
	if forget {
		s.ring.forget()
	}
}

// sleep is the select of the loop.
func (s *server) sleep(n int, wait int64) int {
	for {
		sets := [3]uintptr{addr(&s.wait[0]), addr(&s.wait[1]), addr(&s.wait[2])}
		s.timeout = [2]int64{wait / second, wait % second / 1000} // a struct timeval
		nr := uintptr(unix.SYS_SELECT)
		if !s.Select {
			s.timeout[1] *= 1000 // as the C library makes a struct timespec of it
			nr = unix.SYS_PSELECT6
		}
		r, e := call(nr, uintptr(n), sets[0], sets[1], sets[2], addr(&s.timeout), 0)
		switch e {
		case unix.EINTR:
		case 0:
			return int(r)
		default:
			return 0
		}
	}
}

// check is tapdisk_vbd_check_state.
func (s *server) check() {
	if s.quiesced {
		return
	}
	s.shm.refresh(s)
	if !s.pausing {
		s.issueAll()
	}
	if s.pausing && s.inflight == 0 {
		s.quiesced, s.paused = true, true
		for _, i := range s.chain {
			_ = i.reopen(false)
		}
		_ = s.shm.closeVDI()
		s.pausing = false
		s.control.reply(pauseAnswer)
	}
}

// suspended tells whether it leaves the ring alone.
func (s *server) suspended() bool { return s.pausing || s.paused }

// resume is tapdisk_vbd_resume.
func (s *server) resume() error {
	for _, i := range s.chain {
		if err := i.reopen(true); err != nil {
			return err
		}
	}
	if s.paused {
		if err := s.shm.openVDI(); err != nil {
			return err
		}
	}
	s.quiesced, s.paused = false, false
	s.check()
	return nil
}

// issueAll is tapdisk_vbd_issue_requests.
func (s *server) issueAll() {
	now := nanotime()
	for r, last := s.failed.head, s.failed.tail; r != nil; {
		next, done := r.next, r == last
		if r.sectors == 0 && (r.errno == int(unix.EBUSY) || now-r.tried >= retry) {
			s.failed.remove(r)
			r.errno = 0
			r.truth.Retried++
			s.issue(r)
		}
		if r = next; done {
			break
		}
	}
	for s.fresh.head != nil {
		s.issue(s.fresh.pop())
	}
}

// issue is tapdisk_vbd_issue_request.
func (s *server) issue(r *request) {
	if ns := s.knobs.BusyNs.Load(); ns > 0 {
		begin := nanotime()
		for nanotime()-begin < ns {
		}
		r.truth.BusyNs += nanotime() - begin
	}
	s.progress = nanotime()
	r.tried = s.progress
	r.submitting = true
	s.inflight++
	at := r.sector
	for i := range r.pieces[:r.numPieces] {
		p := piece{r: r, write: r.write(), buf: r.pieces[i].buf, sector: at, count: r.pieces[i].count}
		r.sectors += p.count
		at += uint64(p.count)
		if p.write {
			s.shm.vdi.writes++
			s.chain[0].write(p)
		} else {
			s.shm.vdi.reads++
			s.chain[0].read(p)
		}
	}
	r.submitting = false
	if r.sectors == 0 {
		s.ended(r)
	}
}

// complete is tapdisk_vbd_complete_td_request.
func (s *server) complete(p piece, errno int) {
	s.progress = nanotime()
	r := p.r
	r.sectors -= p.count
	if errno != 0 && r.errno == 0 {
		r.errno = errno
	}
	us := uint64(s.progress-r.begin) / 1000
	if p.write {
		s.shm.vdi.writesDone++
		s.shm.vdi.writeSectors += uint64(p.count)
		s.shm.vdi.writeTicks += us
	} else {
		s.shm.vdi.readsDone++
		s.shm.vdi.readSectors += uint64(p.count)
		s.shm.vdi.readTicks += us
	}
	if r.sectors == 0 && !r.submitting {
		s.ended(r)
	}
}

// ended has a request answered, or tried again.
func (s *server) ended(r *request) {
	s.inflight--
	r.truth.Picked = s.progress
	switch r.errno {
	case int(unix.EAGAIN), int(unix.EBUSY), int(unix.EINTR):
		if s.progress-r.begin < requestTimeout {
			s.failed.push(r)
			return
		}
	}
	s.completed.push(r)
}

// answer is tapdisk_vbd_kick: the guest is told of the last one.
func (s *server) answer() {
	for s.completed.head != nil {
		r := s.completed.pop()
		s.ring.complete(r, r.errno, s.completed.head == nil)
	}
}

// forward hands a part that an image does not have to its parent. Without one it is
// zeroes.
func (s *server) forward(p piece, level int) {
	if level+1 < len(s.chain) {
		s.chain[level+1].read(p)
		return
	}
	clear(bytesAt(p.buf, p.count*sector))
	s.complete(p, 0)
}
