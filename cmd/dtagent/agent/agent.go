// Package agent is the daemon: it wires probes, correlation and Observers
// together, and holds nothing of their logic.
package agent

import (
	"cmp"
	"context"
	"errors"
	"log/slog"
	"net"
	"os"
	"runtime/debug"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"go.opentelemetry.io/otel"

	"github.com/xenserver/dtagent/bpf"
	"github.com/xenserver/dtagent/cmd/dtagent/check"
	"github.com/xenserver/dtagent/cmd/dtagent/control"
	"github.com/xenserver/dtagent/cmd/dtagent/judge"
	"github.com/xenserver/dtagent/correlate"
	"github.com/xenserver/dtagent/observer"
	"github.com/xenserver/dtagent/observer/metrics"
	"github.com/xenserver/dtagent/observer/xapi"
	"github.com/xenserver/dtagent/probes"
	"github.com/xenserver/dtagent/probes/clock"
	"github.com/xenserver/dtagent/probes/event"
	"github.com/xenserver/dtagent/probes/guestio"
	"github.com/xenserver/dtagent/probes/recording"
	"github.com/xenserver/dtagent/probes/target"
)

// Config is all that the daemon is told.
type Config struct {
	Version      string
	ObserversDir string           // "": observer.DefaultDir
	BugtoolDir   string           // "": the toolstack's own
	XAPISocket   string           // "": the Observers of the pool are not followed
	StateDir     string           // what outlives the agent: spans not delivered, the last Observers of the pool, what is usual for disks; "": nothing does
	SpanLog      string           // file of the log records made from spans; "": spanlog.DefaultPath
	Metrics      string           // address of the metrics page; "": none
	CAFile       string           // https receivers are checked against these too; "": the system's and the pool's
	Experimental event.Components // left out even when an Observer names them
	Control      string           // path of the control socket
	Xenstore     string           // xenstored's socket or device; "": xenstore.Paths
	SMDir        string           // further directory of SM scripts; "": none
	Proc         string           // where processes are looked for; "": /proc
	Legacy       bool             // the programs for Linux 4.19 even where the modern ones work
	ClockOffset  time.Duration    // added to wall time, for tests of pools
	ClockFile    string           // says what is added instead, for tests of steps
	BufferBytes  int              // of the kernel's buffer, of each CPU's in the legacy tier; 0: as bpf has it
	MemoryLimit  int64            // what all that the Go runtime holds is kept below, in bytes; 0: as it grows
	QueueEvents  int              // that wait for the engine at most; 0: DefaultQueue
	Host         observer.Host    // what it is told about this host: goes before what XAPI says
	Known        observer.Host    // what is known of this host otherwise
	Log          *slog.Logger     // nil: discarded
}

const (
	tick         = 20 * time.Millisecond // how often the engine comes for events, and its clock moves on
	startUp      = 3 * time.Second       // after which what only starting took is let go of
	flushTimeout = 5 * time.Second       // for the exporters, when the agent stops
)

// Run is the daemon. It returns when ctx ends, with all spans flushed and all
// programs detached, or when it cannot go on.
func Run(ctx context.Context, c Config) (err error) {
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	c.ObserversDir = cmp.Or(c.ObserversDir, observer.DefaultDir)

	ln, err := control.Listen(c.Control)
	if err != nil {
		return err
	}
	defer ln.Release() // when all is detached
	var page net.Listener
	if c.Metrics != "" {
		if page, err = metrics.Listen(c.Metrics); err != nil {
			return err
		}
		defer page.Close()
	}
	k, err := bpf.Open(bpf.Options{Legacy: c.Legacy, RingBytes: c.BufferBytes, PerfBytes: c.BufferBytes, Log: c.Log.With("component", "bpf")})
	kernel := check.OfKernel(k)
	kernel.Log(c.Log.With("component", "check"))
	if err != nil {
		return cmp.Or(check.Refusal(kernel.All()), err)
	}
	m, err := probes.Open(k, probes.Options{Proc: c.Proc, ClockOffset: c.ClockOffset, ClockFile: c.ClockFile, Log: c.Log.With("component", "probes"), SMDirs: smDirs(c.SMDir)})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, m.Close()) }()

	otel.SetErrorHandler(otel.ErrorHandlerFunc(func(err error) { c.Log.Warn("OpenTelemetry SDK", "err", err) }))
	debug.FreeOSMemory() // loading took several times what the agent lives on
	a := &agent{
		c: c, started: time.Now(), manager: m,
		queue: newHandover(cmp.Or(c.QueueEvents, DefaultQueue)), wanted: make(chan observer.Wanted, 1), stats: make(chan chan counts), ended: make(chan struct{}),
	}
	if err := a.observers(); err != nil {
		return err
	}
	a.tier, a.restrictions = kernel.Tier, restrictions(kernel)
	disks := guestio.New(guestio.Options{Kernel: m.Session(), Xenstore: c.xenstores(), Proc: c.Proc, Log: c.Log.With("component", "guestio")})
	judge := judge.New(judge.Options{File: c.stateFile(disksFile), Log: c.Log.With("component", "judge"), Watch: func(ctx context.Context) (judge.Watch, error) {
		w, err := disks.Watch(ctx)
		if err != nil {
			return nil, err
		}
		return w, nil
	}})
	m.SetDisks(probes.Disks{Of: disks.DiskOf, Usual: disks.Usual})
	a.requests.probe = disks
	a.server = control.NewServer(control.Sources{Status: a.status, Record: a.record, Cost: a.measure, IO: judge.Watch, Verdict: judge.Verdict}, c.Log.With("component", "control"))
	return a.run(ctx, ln, page)
}

// xenstores are where xenstored is looked for; nil: where it usually is.
func (c *Config) xenstores() []string {
	if c.Xenstore == "" {
		return nil
	}
	return []string{c.Xenstore}
}

func smDirs(dir string) []string {
	if dir == "" {
		return target.SMDirs
	}
	return append(slices.Clone(target.SMDirs), dir)
}

// agent is the running daemon.
type agent struct {
	c            Config
	tier         string
	restrictions []control.Restriction // of the kernel
	started      time.Time
	manager      *probes.Manager
	set          *observer.Set
	sources      sources
	dir          *observer.Directory
	xapi         *xapi.Source // nil: the Observers of the pool are not followed
	metrics      *metrics.Registry
	server       *control.Server
	live         recording.Live // to those who record
	queue        *handover
	requests     requests             // of guests; of the goroutine in attach
	wanted       chan observer.Wanted // the newest wish of the Observers; holds one
	stats        chan chan counts     // questions to the engine's goroutine
	ended        chan struct{}        // closed when the engine has gone
	turns        atomic.Uint64        // of the engine

	mu      sync.Mutex
	trouble error        // of the last change of probes
	probes  probes.Stats // as last asked
}

// run starts the parts in the order in which spans flow backwards, and stops
// them in the order in which they flow, so that nothing in between is lost.
func (a *agent) run(ctx context.Context, ln, page net.Listener) error {
	log := a.c.Log
	var errs []error
	var mu sync.Mutex
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	fail := func(err error) {
		if err != nil {
			mu.Lock()
			errs = append(errs, err)
			mu.Unlock()
			cancel()
		}
	}

	var serving, correlating, reading, watching sync.WaitGroup
	serving.Go(func() { fail(a.server.Serve(ln)) })
	correlating.Go(func() { a.correlate(a.manager) })
	reading.Go(func() {
		fail(a.manager.Run(ctx, a.queue.put))
		a.queue.close()
	})
	watching.Go(func() { a.attach(ctx) })
	watching.Go(func() { boundMemory(ctx, a.c.MemoryLimit) })
	watching.Go(func() { fail(a.dir.Run(ctx, a.sources.applyLocal)) })
	if a.xapi != nil {
		watching.Go(func() { fail(a.xapi.Run(ctx, a.sources.applyXAPI)) })
	}
	if page != nil {
		serving.Go(func() { fail(a.metrics.Serve(ctx, page)) })
	}

	started := time.AfterFunc(startUp, func() {
		if err := forgetProgram(); err != nil {
			log.Debug("program file stays in memory", "err", err)
		}
	})
	defer started.Stop()
	if err := notify("READY=1"); err != nil {
		log.Warn("not told systemd", "err", err)
	}
	if every := watchdogTime(); every > 0 {
		w := newWatchdog(log, notify, part{"reader", a.manager.Rounds}, part{"correlation", a.turns.Load})
		watching.Go(func() { w.run(ctx, every) })
	}
	log.Info("dtagent runs", "version", a.c.Version, "tier", a.tier, "control", a.c.Control, "observers", a.c.ObserversDir)
	<-ctx.Done()
	log.Info("dtagent stops")
	_ = notify("STOPPING=1")

	watching.Wait()    // no more changes
	reading.Wait()     // no more events
	correlating.Wait() // no more spans
	flush, done := context.WithTimeout(context.Background(), flushTimeout)
	defer done()
	if err := a.set.Close(flush); err != nil {
		log.Warn("spans not delivered", "err", err)
	}
	if err := a.server.Close(); err != nil {
		log.Warn("control socket", "err", err)
	}
	serving.Wait()
	mu.Lock()
	defer mu.Unlock()
	return errors.Join(errs...)
}

// counts are what the engine's goroutine counts.
type counts struct {
	engine correlate.Stats
	sorter correlate.SorterStats
}

// kernelTime is a probes.Manager, as far as the engine's turns need one.
type kernelTime interface {
	Now() (event.Time, error)
	Gaps() uint64
	Offsets() clock.Offsets
}

// correlate runs the engine until there are no more events.
func (a *agent) correlate(k kernelTime) {
	defer close(a.ended)
	defer a.live.Close()
	e := newEngine(&a.live, correlate.Config{Emit: func(s *correlate.Span) {
		a.set.Export(s)
		a.server.Publish(s)
	}})
	ticker := time.NewTicker(tick)
	defer ticker.Stop()
	var b batch
	var gaps gapWatch
	for more := true; more; {
		select {
		case <-ticker.C:
		case <-a.queue.half:
		case answer := <-a.stats:
			var c counts
			c.engine, c.sorter = e.pipeline.Stats()
			answer <- c
			continue
		}
		now, err := k.Now() // before the events that the reader puts meanwhile
		if err != nil {     // the next events bring the time
			a.c.Log.Error("clock", "err", err)
			now = 0
		}
		b, more = a.queue.take(b)
		if lost, ok := gaps.look(now, k.Gaps(), k.Now); ok {
			b.events = append(b.events, lost)
		}
		lossesFirst(b.events)
		e.turn(b.events, now, k.Offsets())
		a.turns.Add(1)
	}
	e.pipeline.Drain()
}

// want notes what the Observers ask for; attach does it. Only the newest wish
// counts. It is never called twice at once.
func (a *agent) want(w observer.Wanted) {
	select {
	case <-a.wanted:
	default:
	}
	a.wanted <- w
}

// attach makes the probes follow the Observers. What failed is tried again.
func (a *agent) attach(ctx context.Context) {
	const again = 5 * time.Second
	retry := time.NewTimer(again)
	retry.Stop()
	defer retry.Stop()
	defer func() { _ = a.requests.follow(context.WithoutCancel(ctx), observer.Requests{}) }() // it leaves what it followed
	var w observer.Wanted
	var err error // of the components
	for {
		all := true
		select {
		case <-ctx.Done():
			return
		case w = <-a.wanted:
		case <-retry.C:
			all = err != nil && !errors.Is(err, errNoWaits) // which the kernel will not have learnt
		}
		if all {
			err = follow(a.manager, w)
		}
		noRequests := a.requests.follow(ctx, w.Requests)
		trouble := errors.Join(err, noRequests)
		a.mu.Lock()
		changed := (trouble == nil) != (a.trouble == nil)
		a.trouble = trouble
		a.mu.Unlock()
		switch {
		case trouble == nil:
			retry.Stop()
			a.c.Log.Info("probes follow the Observers", "components", w.Components.String(), "waits", w.Waits)
		case errors.Is(err, errNoWaits) && noRequests == nil:
			retry.Stop()
			a.c.Log.Error("probes follow the Observers in part", "components", w.Components.String(), "err", err)
		default:
			if changed {
				a.c.Log.Error("probes do not follow the Observers", "components", w.Components, "err", trouble)
			}
			retry.Reset(again)
		}
	}
}

// status gathers what the agent tells about itself.
func (a *agent) status() control.Status {
	s := control.Status{
		Version: a.c.Version, PID: os.Getpid(), Started: a.started, UptimeSeconds: time.Since(a.started).Seconds(),
		Tier: a.tier, Restrictions: a.restrictions, Events: map[string]uint64{}, Targets: []control.Target{}, Probes: []control.Probe{}, Losses: []control.Loss{},
		Handover:     control.Handover{Capacity: a.queue.max, Queued: a.queue.waiting(), Dropped: a.queue.dropped.Load()},
		Recordings:   a.live.Stats(),
		ObserversDir: a.c.ObserversDir, BugtoolDir: a.c.BugtoolDir,
		StateDir: a.c.StateDir, Metrics: a.c.Metrics,
		Observers: a.set.Stats(), Mistakes: []control.Mistake{}, Process: cost(), Components: []string{},
	}
	s.Totals = observer.EndpointStats{Endpoint: "all", State: "ok", Counters: a.set.Totals()}
	for i := range s.Observers {
		s.Observers[i].Source = a.sources.of(s.Observers[i].UUID)
	}
	if a.xapi != nil {
		st := a.xapi.Status()
		s.XAPI = &st
	}
	for _, c := range a.set.Wanted().Components.All() {
		s.Components = append(s.Components, c.String())
	}
	a.mu.Lock()
	if a.trouble != nil {
		s.Trouble = a.trouble.Error()
	}
	a.mu.Unlock()
	for _, p := range a.dir.Problems() {
		s.Mistakes = append(s.Mistakes, control.Mistake{File: p.Path, Error: p.Err, Kept: p.Kept})
	}
	a.probeStatus(&s)
	answer := make(chan counts, 1)
	select {
	case a.stats <- answer:
		c := <-answer
		s.Engine, s.Sorter = c.engine, c.sorter
	case <-a.ended: // its numbers stay 0
	}
	return s
}
