//go:build linux

package bpf

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"
)

// allProbes in the order in which they are loaded.
var allProbes = []Probe{Stream, Process, Wait, Disk, Tapdisk}

// Target is how a process is watched.
type Target struct {
	Component uint8 // event.Component, copied into every record
	Watch     Watch
}

// Attachment is one program attached to one hook.
type Attachment struct {
	Probe   Probe
	Program string // as bpftool prog shows it
	Hook    string // "syscalls:sys_enter_read"
	Way     Way
}

type attached struct {
	found
	link link.Link
}

// Session is a set of loaded programs. Its methods may be called by several
// goroutines at once, except Read.
type Session struct {
	kernel *Kernel
	tier   Tier
	maps   map[string]*ebpf.Map
	progs  map[Probe]map[string]*ebpf.Program
	runs   map[string]uint32 // legacy tier: the entry of each program in runsMap
	call   time.Duration     // legacy tier: what a system call takes while nothing is attached
	losses *lossCounters
	buffer buffer
	seq    *sequence // of the goroutine in Read

	userLost [numProbes][numCauses]atomic.Uint64
	active   atomic.Int32 // probes attached
	reading  atomic.Bool  // Read was called
	closing  atomic.Bool
	detached atomic.Uint64 // ktime of the last detach
	rounds   atomic.Uint64 // see Rounds
	flushed  atomic.Uint64 // times that Read had returned all there was when buffer.flush was called

	drainOnce sync.Once
	read      chan struct{} // closed when Read has returned everything
	sweep     chan struct{} // closed to end the sweeper

	attach sync.Mutex // held while attaching and detaching, which takes a second; taken before mu

	mu     sync.Mutex // of the fields below and of the maps' entries, never held for long
	links  map[Probe][]attached
	disks  disks
	taps   taps
	conf   config // what dt_config holds
	longNs uint64 // the threshold of long waits, which dt_config has while Wait is attached
	gaps   uint64 // when they were counted last
	closed bool
}

var errClosed = fmt.Errorf("session: %w", os.ErrClosed)

// Attach attaches the programs of a probe. Attaching an attached probe does
// nothing. Attach(Stream) begins with no known socket, Attach(Wait) with no known
// device: seed afterwards.
func (s *Session) Attach(p Probe) error {
	s.attach.Lock()
	defer s.attach.Unlock()
	if s.isClosed() {
		return errClosed
	}
	if len(s.attachedTo(p)) > 0 {
		return nil
	}
	if p == Stream {
		// What is left of the last time says nothing about the sockets of now.
		for _, name := range []string{"dt_conns", "dt_gathers", "dt_inflight"} {
			if err := clearMap(s.maps[name]); err != nil {
				return fmt.Errorf("probe %s: map %s: %w", p, name, err)
			}
		}
	}
	if p == Wait {
		if err := s.beginWaits(); err != nil {
			return err
		}
	}
	if p == Disk {
		if err := s.beginDisks(); err != nil {
			return err
		}
	}
	if p == Tapdisk {
		if err := errors.Join(s.loadLate(p), s.beginTapdisks()); err != nil {
			return err
		}
	}
	for _, h := range s.kernel.hooks[p] {
		l, err := h.attach(s.progs[p][h.program])
		if err != nil {
			return errors.Join(fmt.Errorf("probe %s: attach %s to %s: %w", p, h.program, h, err), s.detach(p))
		}
		s.mu.Lock()
		s.links[p] = append(s.links[p], attached{h, l})
		s.mu.Unlock()
	}
	s.active.Add(1)
	return s.buffer.flush() // ends a Read's long sleep
}

// Detach detaches a probe; records already made can still be read. Detaching
// what is not attached does nothing. It takes about a second: for each hook the
// kernel waits until no CPU can be in it any more.
func (s *Session) Detach(p Probe) error {
	s.attach.Lock()
	defer s.attach.Unlock()
	if len(s.attachedTo(p)) == 0 {
		return nil
	}
	err := s.detach(p)
	s.detached.Store(ktime())
	s.active.Add(-1)
	return err
}

func (s *Session) isClosed() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.closed
}

func (s *Session) attachedTo(p Probe) []attached {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.links[p])
}

// detach needs s.attach. It closes all links at once, which halves the wait.
func (s *Session) detach(p Probe) error {
	var (
		wg    sync.WaitGroup
		links = s.attachedTo(p)
		errs  = make([]error, len(links))
	)
	for i, a := range slices.Backward(links) {
		wg.Go(func() {
			if err := a.link.Close(); err != nil {
				errs[i] = fmt.Errorf("probe %s: detach from %s: %w", p, a.hook, err)
			}
		})
	}
	wg.Wait()
	s.mu.Lock()
	s.links[p] = nil
	if p == Wait {
		errs = append(errs, s.endWaits())
	}
	s.mu.Unlock()
	return errors.Join(errs...)
}

// Attached lists what is attached now. What dispatchers call stands behind them.
func (s *Session) Attached() []Attachment {
	s.mu.Lock()
	defer s.mu.Unlock()
	var out []Attachment
	for _, p := range allProbes {
		for _, a := range s.links[p] {
			out = append(out, Attachment{Probe: p, Program: a.program, Hook: a.String(), Way: a.by})
		}
		if len(s.links[p]) > 0 {
			for _, f := range s.kernel.dispatched[p] {
				out = append(out, Attachment{Probe: p, Program: f.program, Hook: f.String(), Way: f.by})
			}
		}
	}
	return out
}

// SetTarget makes a process a target or changes how it is watched. The sockets
// of a new target are not known yet: see SeedSocket. It fails when
// Options.TargetsMax processes are watched.
func (s *Session) SetTarget(tgid uint32, t Target) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return errClosed
	}
	var v target
	if err := s.maps["dt_targets"].Lookup(tgid, &v); err != nil || v.State&targetGone != 0 {
		v = target{Since: ktime(), State: targetThreads}
	}
	v.Component, v.Watch = t.Component, t.Watch
	if err := s.maps["dt_targets"].Put(tgid, v); err != nil {
		return fmt.Errorf("target %d: %w", tgid, err)
	}
	return nil
}

// DeleteTarget forgets a process and its sockets. Forgetting what is not known
// is no error.
func (s *Session) DeleteTarget(tgid uint32) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return errClosed
	}
	if err := s.maps["dt_targets"].Delete(tgid); err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
		return fmt.Errorf("target %d: %w", tgid, err)
	}
	return errors.Join(s.sweepConns(), s.sweepThreads())
}

// Targets returns the processes watched now, with the children that the kernel
// added.
func (s *Session) Targets() (map[uint32]Target, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return nil, errClosed
	}
	all, err := s.targets()
	if err != nil {
		return nil, err
	}
	out := make(map[uint32]Target, len(all))
	for tgid, t := range all {
		if t.State&targetGone != 0 {
			continue
		}
		out[tgid] = Target{Component: t.Component, Watch: t.Watch}
	}
	return out, nil
}

func (s *Session) targets() (map[uint32]target, error) {
	out := map[uint32]target{}
	keys, err := mapKeys[uint32](s.maps["dt_targets"])
	if err != nil {
		return nil, fmt.Errorf("map dt_targets: %w", err)
	}
	for _, tgid := range keys {
		var t target
		if s.maps["dt_targets"].Lookup(tgid, &t) == nil { // else it has just ended
			out[tgid] = t
		}
	}
	return out, nil
}

// Losses returns the counters of all probes and causes that are not zero.
func (s *Session) Losses() []Loss {
	s.mu.Lock()
	defer s.mu.Unlock()
	var out []Loss
	for _, p := range allProbes {
		for c := range numCauses {
			n := s.userLost[p-1][c].Load()
			if c < kernelCauses && !s.closed {
				n += s.losses.count(p, c)
			}
			if c == lossSkipped && !s.closed {
				n += s.skipped(p)
			}
			if n > 0 {
				out = append(out, Loss{Probe: p, Cause: c.String(), Count: n})
			}
		}
	}
	return out
}

// skipped returns how often the kernel did not run a program of a probe that was
// attached, since another one was running on that CPU or somebody there was in a
// system call on a map. It did so for whichever process, and counts no run then. It
// tells of tracepoints from Linux 6.7 on, and of raw tracepoints from 6.1 on.
func (s *Session) skipped(p Probe) (n uint64) {
	for _, prog := range s.progs[p] {
		if st, err := prog.Stats(); err == nil {
			n += st.RecursionMisses
		}
	}
	return n
}

// Gaps counts what the kernel side has lost until now without leaving a record that
// says so, whatever the cause: sooner than the gap in the numbers of the records is
// seen, for that takes the next one. In the legacy tier full buffers are not among
// it.
func (s *Session) Gaps() (n uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed || s.active.Load() == 0 {
		return s.gaps
	}
	for _, g := range gaps {
		n += s.losses.count(g.probe, g.cause)
	}
	s.gaps = n
	return n
}

// drainTime is how long Close waits for Read to return what is left.
const drainTime = time.Second

// Close detaches everything, lets Read return what is left, ends it and frees
// the maps. It may be called twice.
func (s *Session) Close() error {
	s.mu.Lock()
	if s.closed {
		s.mu.Unlock()
		return nil
	}
	s.closed = true // nothing is attached and no map is used after this
	close(s.sweep)
	s.mu.Unlock()

	s.attach.Lock()
	defer s.attach.Unlock()
	var errs []error
	for _, p := range allProbes {
		errs = append(errs, s.detach(p))
	}

	s.closing.Store(true)
	if s.reading.Load() {
		errs = append(errs, s.buffer.flush())
		select {
		case <-s.read:
		case <-time.After(drainTime): // nobody reads any more
		}
	}
	errs = append(errs, s.free())
	return errors.Join(errs...)
}

func (s *Session) drained() { s.drainOnce.Do(func() { close(s.read) }) }

func (s *Session) free() error {
	errs := []error{s.losses.close()}
	if s.buffer != nil {
		errs = append(errs, s.buffer.close())
	}
	for _, progs := range s.progs {
		for _, p := range progs {
			errs = append(errs, p.Close())
		}
	}
	for _, m := range s.maps {
		errs = append(errs, m.Close())
	}
	for _, d := range s.disks.bySlot {
		errs = append(errs, d.stats.Close())
	}
	for _, t := range s.taps.byTGID {
		errs = append(errs, t.hists.Close())
	}
	return errors.Join(errs...)
}

// ktime returns the clock of bpf_ktime_get_ns.
func ktime() uint64 {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &ts); err != nil {
		return 0 // cannot happen: the clock is always there
	}
	return uint64(ts.Nano())
}

// mapKeys returns the keys of a hash map that others change meanwhile.
func mapKeys[K comparable](m *ebpf.Map) ([]K, error) {
	var (
		out []K
		k   K
	)
	for range 8 {
		out = out[:0]
		err := m.NextKey(nil, &k)
		for ; err == nil && len(out) < int(m.MaxEntries()); err = m.NextKey(k, &k) {
			out = append(out, k)
		}
		switch {
		case errors.Is(err, ebpf.ErrKeyNotExist):
			return out, nil
		case err != nil:
			return nil, err
		}
	}
	return out, nil // so busy that it began anew again and again: a part has to do
}

// clearMap deletes all entries of a hash map.
func clearMap(m *ebpf.Map) error {
	k := make([]byte, m.KeySize())
	for {
		err := m.NextKey(nil, &k)
		if errors.Is(err, ebpf.ErrKeyNotExist) {
			return nil
		}
		if err != nil {
			return err
		}
		if err := m.Delete(k); err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
			return err
		}
	}
}
