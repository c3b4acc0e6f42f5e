//go:build linux

package probes

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"github.com/xenserver/dtagent/bpf"
	"github.com/xenserver/dtagent/probes/clock"
	"github.com/xenserver/dtagent/probes/event"
	"github.com/xenserver/dtagent/probes/redact"
	"github.com/xenserver/dtagent/probes/target"
	"golang.org/x/sys/unix"
)

// Options of Open. The zero value is right for a dom0.
type Options struct {
	Proc     string        // root of the proc file system; "": /proc
	SMDirs   []string      // where SM scripts are; nil: target.SMDirs
	Switch   string        // socket of message-switch; "": target.SwitchPath
	Interval time.Duration // between scans for processes; 0: target.ScanInterval
	Conns    int           // connections whose place the redactor remembers; 0: redact.DefaultConns
	// ClockOffset is added to wall time, for tests of pools: clock.Ahead.
	ClockOffset time.Duration
	ClockFile   string       // says what is added instead, for tests of steps: clock.Set; "": none
	Log         *slog.Logger // nil: discarded
}

// Manager owns the kernel side: it attaches what the wanted components need,
// keeps the targets, and reads the records.
//
// Programs and maps are loaded once, by Open, and stay loaded until Close, so
// that switching on is quick and cannot fail for want of memory; while nothing
// is wanted no program is attached and no process is a target.
//
// Its methods may be called by several goroutines at once; Run only once.
type Manager struct {
	session *bpf.Session
	watcher *target.Watcher
	clock   *clock.Clock
	smDirs  []string
	sw      string
	log     *slog.Logger

	reader reader // of the goroutine in Run
	count  counters
	disks  atomic.Pointer[Disks]

	mu      sync.Mutex // guards what follows, and the order of changes in the kernel
	wanted  event.Components
	waits   bool
	targets map[uint32]*daemon
	stop    context.CancelFunc // of the watcher; nil while no target is wanted
	// stopClock ends the look at the wall clock; nil while nothing is wanted.
	stopClock context.CancelFunc
	closed    bool

	watching  sync.WaitGroup
	listeners listeners
	daemons   pids // the keys of targets, for the goroutine in Run
}

// daemon is a target that the table of components names.
type daemon struct {
	target.Process
	component event.Component
	watch     bpf.Watch
	seeded    bool // its sockets were told to the kernel since streams are watched
	devices   bool // its devices were told to the kernel since its time is
}

// Open loads the programs of all probes; none is attached.
func Open(k *bpf.Kernel, o Options) (*Manager, error) {
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if o.SMDirs == nil {
		o.SMDirs = target.SMDirs
	}
	clocks := clock.Ahead(o.ClockOffset)
	if o.ClockFile != "" {
		clocks = clock.Set(o.ClockFile)
	}
	c, err := clock.New(clocks)
	if err != nil {
		return nil, err
	}
	s, err := k.Load()
	if err != nil {
		return nil, fmt.Errorf("probes: %w", err)
	}
	w := target.NewWatcher(target.Options{Proc: o.Proc, Interval: o.Interval, Log: o.Log})
	m := &Manager{
		session: s, watcher: w, clock: c, smDirs: o.SMDirs, sw: cmp.Or(o.Switch, target.SwitchPath), log: o.Log,
		targets: map[uint32]*daemon{},
	}
	m.listeners.proc = w.Proc()
	m.reader.redactor = redact.New(o.Conns)
	return m, nil
}

// Wall returns t in nanoseconds since 1970.
func (m *Manager) Wall(t event.Time) int64 { return m.clock.Wall(t) }

// Offsets returns what Wall goes by now. It is shared and must not be changed.
func (m *Manager) Offsets() clock.Offsets { return m.clock.Offsets() }

// Now returns the present time on the clock of events.
func (m *Manager) Now() (event.Time, error) { return m.clock.Now() }

// Gaps counts events that the kernel side has lost, before a KindLost tells of them:
// see bpf.Session.Gaps.
func (m *Manager) Gaps() uint64 { return m.session.Gaps() }

// Session returns the kernel side, for what is attached apart from components: the
// disks of guests.
func (m *Manager) Session() *bpf.Session { return m.session }

// Want attaches exactly what the components of c need and detaches the rest;
// none detaches everything. When it returns, the processes that were running
// are targets with their sockets known; those that start later follow. Wanting
// the same again changes nothing. After an error what is attached is less than
// what is wanted; wanting again tries again.
func (m *Manager) Want(c event.Components) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.want(c)
}

// want needs mu.
func (m *Manager) want(c event.Components) error {
	if m.closed {
		return fmt.Errorf("probes: %w", os.ErrClosed)
	}
	m.wanted = c
	need := target.Watches(c)
	if need == 0 { // also for components that have no probe yet
		err := m.detach()
		if c.Has(event.Tapdisk) { // guestio has its requests told; their times are the wall's here
			err = errors.Join(err, m.keepTime())
		}
		return err
	}
	if err := m.keepTime(); err != nil {
		return err
	}
	if err := errors.Join(
		m.probe(bpf.Process, need&bpf.WatchProcess != 0),
		m.probe(bpf.Stream, need&(bpf.WatchStream|bpf.WatchLog) != 0),
		m.probe(bpf.Wait, m.waits),
	); err != nil {
		return err
	}
	found, err := m.watcher.Scan()
	if err != nil {
		return fmt.Errorf("probes: %w", err)
	}
	err = m.follow(found)
	if m.stop == nil {
		ctx, stop := context.WithCancel(context.Background())
		m.stop = stop
		m.watching.Go(func() { m.watch(ctx) })
	}
	return err
}

// keepTime has ktime become wall time rightly until detach.
func (m *Manager) keepTime() error {
	if err := m.clock.Refresh(); err != nil {
		return err
	}
	if m.stopClock != nil {
		return nil
	}
	ctx, stop := context.WithCancel(context.Background())
	m.stopClock = stop
	m.watching.Go(func() {
		if err := m.clock.Run(ctx); err != nil {
			m.log.Warn("wall time may be off", "err", err)
		}
	})
	return nil
}

// probe attaches or detaches one probe. Sockets that the kernel side knew are
// forgotten when streams are detached.
func (m *Manager) probe(p bpf.Probe, on bool) error {
	if on {
		return m.session.Attach(p)
	}
	for _, d := range m.targets {
		switch p {
		case bpf.Stream:
			d.seeded = false
		case bpf.Wait:
			d.devices = false
		}
	}
	return m.session.Detach(p)
}

// detach ends everything. The watcher's goroutine takes mu, so it is not
// waited for here: it finds that it was stopped.
func (m *Manager) detach() error {
	if m.stop != nil {
		m.stop()
		m.stop = nil
	}
	if m.stopClock != nil {
		m.stopClock()
		m.stopClock = nil
	}
	errs := []error{m.probe(bpf.Wait, false), m.probe(bpf.Stream, false), m.probe(bpf.Process, false)}
	clear(m.targets)
	m.daemons.reset()
	m.listeners.reset()
	// Children of targets are targets too.
	all, err := m.session.Targets()
	errs = append(errs, err)
	for tgid := range all {
		errs = append(errs, m.session.DeleteTarget(tgid))
	}
	return errors.Join(errs...)
}

// watch follows starts and ends of processes until ctx ends.
func (m *Manager) watch(ctx context.Context) {
	failed := false
	m.watcher.Run(ctx, func(found []target.Process) {
		m.mu.Lock()
		defer m.mu.Unlock()
		if ctx.Err() != nil {
			return // what was found is out of date
		}
		err := m.follow(found)
		if err != nil && !failed {
			m.log.Warn("targets do not follow the processes", "err", err)
		}
		failed = err != nil
		m.reap()
	})
}

// follow makes the targets those of found that the wanted components need.
func (m *Manager) follow(found []target.Process) error {
	var errs []error
	here := make(map[uint32]bool, len(found))
	for _, p := range found {
		component, watch := target.Plan(m.wanted, p.Program)
		if watch == 0 {
			continue
		}
		watch |= m.waitWatch()
		here[p.TGID] = true
		d := m.targets[p.TGID]
		if d != nil && d.Start != p.Start { // the pid has another user
			errs = append(errs, m.forget(d))
			d = nil
		}
		if d == nil {
			d = &daemon{Process: p}
			m.log.Info("target", "as", component.String(), "program", p.Program, "tgid", p.TGID)
		}
		errs = append(errs, m.set(d, component, watch))
	}
	for tgid, d := range m.targets {
		if !here[tgid] {
			errs = append(errs, m.forget(d))
		}
	}
	return errors.Join(errs...)
}

// set makes d a target as the table of components says, and seeds its sockets
// if streams have just come to be watched.
func (m *Manager) set(d *daemon, component event.Component, watch bpf.Watch) error {
	if m.targets[d.TGID] != d || d.component != component || d.watch != watch {
		if err := m.session.SetTarget(d.TGID, bpf.Target{Component: uint8(component), Watch: watch}); err != nil {
			return err
		}
		m.targets[d.TGID] = d
		m.daemons.add(d.TGID)
		d.component, d.watch = component, watch
		if !m.watcher.Proc().Is(d.TGID, d.Start) { // it ended before it was a target
			return m.forget(d)
		}
	}
	if err := m.seedDevices(d); err != nil {
		return err
	}
	if watch&bpf.WatchStream == 0 {
		d.seeded = false
		return nil
	}
	if d.seeded {
		return nil
	}
	d.seeded = true // a process that has ended since is no reason to try again
	return m.seed(d)
}

// seed tells the kernel the stream sockets that d had before it was a target.
// The kernel side takes none that it knows already, so a socket accepted since
// is never replaced, whatever /proc showed.
func (m *Manager) seed(d *daemon) error {
	sockets, err := m.watcher.Proc().Sockets(d.TGID)
	if err != nil {
		if !m.watcher.Proc().Is(d.TGID, d.Start) {
			return nil
		}
		return err
	}
	clients, err := target.Clients(m.sw)
	if err != nil {
		// The kernel side finds out by what is written.
		m.log.Debug("sockets of message-switch not told apart", "err", err)
	}
	var errs []error
	for _, s := range sockets {
		if s.Listening {
			m.listeners.add(d.TGID, s.FD, s.Local)
			continue
		}
		if err := m.session.SeedSocket(d.TGID, s.FD, s.Ino, clients[s.Ino]); err != nil {
			errs = append(errs, err)
			continue
		}
		m.count.seeded.Add(1)
	}
	if err := m.session.SeedThreads(d.TGID); err != nil && m.watcher.Proc().Is(d.TGID, d.Start) {
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

// forget makes d no target any more.
func (m *Manager) forget(d *daemon) error {
	delete(m.targets, d.TGID)
	m.daemons.drop(d.TGID)
	m.listeners.drop(d.TGID)
	return m.session.DeleteTarget(d.TGID)
}

// reap takes out children of targets whose end the kernel side did not see. The
// kernel is asked, not Options.Proc, which need not show them.
func (m *Manager) reap() {
	all, err := m.session.Targets()
	if err != nil {
		return
	}
	for tgid := range all {
		if m.targets[tgid] == nil && errors.Is(unix.Kill(int(tgid), 0), unix.ESRCH) {
			_ = m.session.DeleteTarget(tgid)
		}
	}
}

// Close detaches everything, ends Run and frees the maps. It may be called
// twice.
func (m *Manager) Close() error {
	m.mu.Lock()
	if m.closed {
		m.mu.Unlock()
		return nil
	}
	m.closed = true
	m.wanted = 0
	err := m.detach()
	m.mu.Unlock()
	m.watching.Wait()
	return errors.Join(err, m.session.Close())
}
