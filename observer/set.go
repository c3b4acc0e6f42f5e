package observer

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/xenserver/dtagent/correlate"
	"github.com/xenserver/dtagent/observer/bugtool"
	"github.com/xenserver/dtagent/observer/export"
	"github.com/xenserver/dtagent/observer/metrics"
	"github.com/xenserver/dtagent/observer/remote"
	"github.com/xenserver/dtagent/observer/spanlog"
	"github.com/xenserver/dtagent/probes/event"
)

// Limits bound what one endpoint of one Observer may hold and how long it may
// take. Zero values mean the defaults.
type Limits struct {
	QueueSpans    int           // 10,000, as max-spans of xapi.conf
	QueueBytes    int           // of the spans kept in the queue, about; 16 MiB
	TotalBytes    int           // of the spans kept in all queues of the Set, about; 64 MiB
	BatchSpans    int           // most spans in one Export; 512
	FlushEvery    time.Duration // longest time that a span waits for others; 1 s
	ExportTimeout time.Duration // of one Export; 15 s
	DrainTimeout  time.Duration // to flush the queue of an endpoint no longer named; 5 s
	Linger        time.Duration // how late a span may come that ended before its Observer was given up; 3 s, < 0: not at all
	BackoffMin    time.Duration // pause after a first failure, doubled each time; 200 ms
	BackoffMax    time.Duration // 30 s
	RetryAfterMax time.Duration // longest pause that a receiver may ask for; 2 min
}

func (l Limits) withDefaults() Limits {
	ints := func(v *int, def int) {
		if *v <= 0 {
			*v = def
		}
	}
	times := func(v *time.Duration, def time.Duration) {
		if *v <= 0 {
			*v = def
		}
	}
	ints(&l.QueueSpans, 10_000)
	ints(&l.QueueBytes, 16<<20)
	ints(&l.TotalBytes, 64<<20)
	ints(&l.BatchSpans, 512)
	l.BatchSpans = min(l.BatchSpans, l.QueueSpans)
	times(&l.FlushEvery, time.Second)
	times(&l.ExportTimeout, 15*time.Second)
	times(&l.DrainTimeout, 5*time.Second)
	if l.Linger == 0 {
		l.Linger = 3 * time.Second // correlate holds spans for 2 s
	}
	times(&l.BackoffMin, 200*time.Millisecond)
	times(&l.BackoffMax, 30*time.Second)
	times(&l.RetryAfterMax, 2*time.Minute)
	return l
}

// maxLeaving bounds the endpoints that are flushed in the background after
// their Observers gave them up. Beyond it those that have had the longest time
// are told to end at once.
const maxLeaving = 256

// tick is how often held spans and what was given up are looked at.
const tick = 250 * time.Millisecond

// closeGrace is how long Close waits for an exporter that does not end although
// its context is done: a file system that hangs.
const closeGrace = time.Second

// Options of a Set.
type Options struct {
	Host       Host
	BugtoolDir string            // "": bugtool.DefaultDir
	QueueDir   string            // of the queues of remote endpoints on disk; "": in memory only
	SpanLog    string            // file of the log records made from spans; "": spanlog.DefaultPath
	CAFile     string            // https receivers are checked against these CAs too
	Metrics    *metrics.Registry // of what is measured by spans; nil: one that nobody sees
	Log        *slog.Logger      // nil: discarded
	Limits     Limits

	// Experimental are left out even when an Observer names them, as XAPI does
	// with observer-experimental-components.
	Experimental event.Components

	// OnWanted is called by Apply, never twice at once, when the union of the
	// components of the Observers in force has changed. Before the first call
	// it is empty. It must not call the Set.
	OnWanted func(event.Components)

	// NewExporter makes the exporter of an endpoint, which tells the ledger what
	// becomes of the spans if it is a Holder; nil: those of this project.
	NewExporter func(o Observer, endpoint string, l *export.Ledger) (export.Exporter, error)

	// NoTrim leaves the bugtool files to others. Otherwise, while an Observer
	// writes them, they are trimmed at once, each hour, and after each 32 MiB
	// written: see bugtool.Trim.
	NoTrim bool
}

// Set gives the Observers in force their spans. All methods may be called at
// once from several goroutines.
type Set struct {
	o      Options
	trim   *trimmer
	budget atomic.Int64 // bytes in the queues of all pipes

	spool   *remote.Spool // of the queues on disk
	spanLog *spanlog.Log

	mu   sync.RWMutex // held for reading while spans are handed on: subs do not change under it
	subs []*subscription

	apply   sync.Mutex // guards all below; taken before mu
	host    Host
	active  []Observer
	warned  map[string][]string // by uuid of the Observer
	again   map[string]bool     // uuids that came more than once, which was logged
	wanted  event.Components
	pipes   map[pipeKey]*pipe        // in use
	leaving []*pipe                  // given up, oldest first: linger, then drain, then end
	retired Counters                 // of the pipes that are gone
	trusts  map[string]*remote.Trust // by uuid of the Observer
	left    map[string]uint64        // by sink: spans of retired that are still on disk
	ticker  *time.Timer              // for the next tick, while there are subs or leaving
	closed  bool
}

type pipeKey struct{ uuid, endpoint, labels string }

func (s *Set) key(o Observer, endpoint string) pipeKey {
	return pipeKey{o.UUID, endpoint, s.labels(o, endpoint)}
}

// NewSet returns a Set without Observers. It goes on with what queues on disk
// still hold.
func NewSet(o Options) *Set {
	if o.BugtoolDir == "" {
		o.BugtoolDir = bugtool.DefaultDir
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if o.OnWanted == nil {
		o.OnWanted = func(event.Components) {}
	}
	o.Limits = o.Limits.withDefaults()
	s := &Set{o: o, host: o.Host, pipes: map[pipeKey]*pipe{}, left: map[string]uint64{}, trusts: map[string]*remote.Trust{}}
	if !o.NoTrim {
		s.trim = newTrimmer(trimRoot(o.BugtoolDir), o.Log)
	}
	s.spool, s.spanLog = remote.NewSpool(0), spanlog.New(spanlog.Options{Path: o.SpanLog, Log: o.Log})
	if s.o.Metrics == nil {
		s.o.Metrics = metrics.New(metrics.Options{Log: o.Log})
	}
	if o.NewExporter == nil && o.QueueDir != "" {
		s.goOn()
	}
	return s
}

// trimRoot returns the tree that is trimmed: /var/log/dt for the default
// directory, as the toolstack does, else the directory itself.
func trimRoot(dir string) string {
	const below = "/zipkinv2/json"
	dir = filepath.Clean(dir)
	if root, ok := strings.CutSuffix(dir, below); ok && root != "" {
		return root
	}
	return dir
}

// SetHost changes what the Observers' default attributes say of this host. The
// uuid is that of the Options: which host this is does not change.
func (s *Set) SetHost(h Host) {
	s.apply.Lock()
	defer s.apply.Unlock()
	h.UUID = s.host.UUID
	if h != s.host {
		s.host = h
		s.converge(s.active)
	}
}

// Apply makes obs the Observers in force; it converges and may be called with
// the same ones again. Endpoints that an Observer keeps go on with their queues
// and connections; changed attributes are on the spans that are handed on from
// then on. Endpoints that are no longer named, or whose Observer was disabled
// or removed, still get the spans that had ended by then, which come a little
// later (Limits.Linger), flush what they hold, and then close; when they are named
// again in that time they go on as if nothing had been.
//
// obs are taken to be valid. What cannot be used is shown by Stats. Of several
// with one uuid the first counts. Apply does nothing after Close.
func (s *Set) Apply(obs []Observer) {
	s.apply.Lock()
	defer s.apply.Unlock()
	s.converge(obs)
}

// converge is Apply with s.apply held.
func (s *Set) converge(obs []Observer) {
	if s.closed {
		return
	}
	now := time.Now()
	active := make([]Observer, 0, len(obs))
	var wanted event.Components
	taken := map[*pipe]bool{}
	inForce, again := map[string]bool{}, map[string]bool{}
	for _, o := range obs {
		if slices.ContainsFunc(active, func(a Observer) bool { return strings.EqualFold(a.UUID, o.UUID) }) {
			again[o.UUID] = true
			if !s.again[o.UUID] {
				s.o.Log.Warn("second Observer with the same uuid ignored", "uuid", o.UUID, "name_label", o.NameLabel)
			}
			continue
		}
		o = o.Clone()
		active = append(active, o)
		want := s.wants(o)
		if !o.On(s.host.UUID) || want == 0 {
			continue
		}
		inForce[o.UUID] = true
		wanted |= want
		steering, _ := o.Steering() // Stats shows what is wrong with it
		s.trust(o)
		var pipes []*pipe
		for _, e := range o.endpoints(steering) {
			p := s.pipe(s.key(o, e), o)
			p.configure(steering.BatchInterval, steering.BatchSpans)
			taken[p] = true
			pipes = append(pipes, p)
		}
		s.subscribe(o, steering, want, pipes, now)
	}
	s.warn(active)
	s.active, s.again = active, again
	s.forgetTrusts()
	s.mu.Lock()
	for _, sub := range s.subs {
		if !inForce[sub.uuid] {
			sub.claims, sub.outlets = sub.claimed(0, now), sub.connected(nil, now)
		}
	}
	s.mu.Unlock()
	for k, p := range s.pipes {
		if !taken[p] {
			delete(s.pipes, k)
			s.leaving = append(s.leaving, p)
		}
	}
	s.endLate(now)
	s.arm()
	if s.trim != nil {
		s.trim.set(slices.ContainsFunc(slices.Collect(maps.Keys(s.pipes)), func(k pipeKey) bool { return k.endpoint == Bugtool }))
	}
	if wanted != s.wanted {
		s.wanted = wanted
		s.o.OnWanted(wanted)
	}
}

// forgetTrusts keeps a Trust as long as there is the Observer or an endpoint of
// it, which may come into use again.
func (s *Set) forgetTrusts() {
	keep := map[string]bool{}
	for _, o := range s.active {
		keep[o.UUID] = true
	}
	for _, p := range s.all() {
		keep[p.key.uuid] = true
	}
	maps.DeleteFunc(s.trusts, func(uuid string, _ *remote.Trust) bool { return !keep[uuid] })
}

// warn logs the warnings about Observers that are new.
func (s *Set) warn(active []Observer) {
	warned := map[string][]string{}
	for _, o := range active {
		if !o.observes(s.host.UUID) {
			continue
		}
		all := o.Warnings()
		for _, w := range all {
			if !slices.Contains(s.warned[o.UUID], w) {
				s.o.Log.Warn("Observer not wholly in force", "observer", o.NameLabel, "uuid", o.UUID, "warning", w)
			}
		}
		warned[o.UUID] = all
	}
	s.warned = warned
}

// wants returns the components that o gets spans of.
func (s *Set) wants(o Observer) event.Components { return o.Wants() &^ s.o.Experimental }

// subscribe makes o's subscription what o says.
func (s *Set) subscribe(o Observer, st Steering, want event.Components, pipes []*pipe, now time.Time) {
	i := slices.IndexFunc(s.subs, func(sub *subscription) bool { return sub.uuid == o.UUID })
	var sub *subscription
	if i < 0 {
		sub = newSubscription(o.UUID, st.Processor)
	} else {
		sub = s.subs[i]
	}
	tags := o.tags(s.host)
	size := 0
	for _, t := range tags {
		size += len(t.Key) + len(t.Value.AsString())
	}
	s.mu.Lock()
	sub.tags, sub.size, sub.edit = tags, size, st.Edit
	sub.claims, sub.outlets = sub.claimed(want, now), sub.connected(pipes, now)
	if i < 0 {
		s.subs = append(s.subs, sub)
	}
	s.mu.Unlock()
	s.mu.RLock()
	defer s.mu.RUnlock()
	sub.pipeline.Configure(st.Processor)
}

// arm sees to the next tick, if there is anything to look at.
func (s *Set) arm() {
	if s.closed || len(s.subs) == 0 && len(s.leaving) == 0 {
		return
	}
	if s.ticker == nil {
		s.ticker = time.AfterFunc(tick, s.tick)
		return
	}
	s.ticker.Reset(tick)
}

func (s *Set) tick() {
	s.apply.Lock()
	defer s.apply.Unlock()
	if s.closed {
		return
	}
	now := time.Now()
	s.mu.RLock()
	for _, sub := range s.subs {
		sub.pipeline.Tick(now)
	}
	s.mu.RUnlock()
	s.endLate(now)
	s.arm()
}

// pipe returns the pipe of k, new if there is none that can be used.
func (s *Set) pipe(k pipeKey, o Observer) *pipe {
	if p := s.pipes[k]; p != nil {
		return p
	}
	s.sweep()
	sink := k.sink()
	before := slices.DeleteFunc(s.all(), func(p *pipe) bool { return p.sink != sink })
	if len(before) == 1 && before[0].key == k && before[0].resume() {
		p := before[0]
		s.leaving = slices.DeleteFunc(s.leaving, func(l *pipe) bool { return l == p })
		s.pipes[k] = p
		return p
	}
	// A queue on disk can be opened once only.
	before = slices.DeleteFunc(before, func(p *pipe) bool { return p.isOpen() && !p.isHolder() })
	log := s.o.Log.With("observer", o.NameLabel, "uuid", o.UUID)
	ledger := &export.Ledger{}
	p := newPipe(k, ledger, s.o.Limits, &s.budget, log)
	p.open, p.after = s.maker(o, k.endpoint, ledger), before
	var exp export.Exporter
	if len(before) == 0 {
		var err error
		switch exp, err = p.open(); {
		case errors.Is(err, remote.ErrInUse):
			exp = nil // tried again
		case err != nil:
			log.Warn("endpoint not usable", "endpoint", show(k.endpoint), "err", err)
			exp = broken{err}
		}
	}
	p.start(exp)
	s.pipes[k] = p
	return p
}

// all returns the pipes that are given up and those in use.
func (s *Set) all() []*pipe { return slices.AppendSeq(slices.Clone(s.leaving), maps.Values(s.pipes)) }

// sweep adds the pipes that have ended to the retired counters.
func (s *Set) sweep() {
	s.leaving = slices.DeleteFunc(s.leaving, func(p *pipe) bool {
		done := p.isDone()
		if done {
			s.claim(p)
			c := p.ledger.Counters()
			s.retired.Add(c)
			if c.Queued > 0 {
				s.left[p.sink] += c.Queued
			}
		}
		return done
	})
}

// claim takes off the retired counters what p has found on disk of what a pipe
// before it has left there: it is p's now.
func (s *Set) claim(p *pipe) {
	n := min(p.ledger.Counters().Recovered-p.claimed, s.left[p.sink])
	if n == 0 {
		return
	}
	p.claimed += n
	s.retired.Produced -= n
	s.retired.Queued -= n
	s.retired.Recovered -= n // may be below 0 until p is added
	if s.left[p.sink] -= n; s.left[p.sink] == 0 {
		delete(s.left, p.sink)
	}
}

// Export gives the span to every Observer in force that asks for its
// component. It waits for no endpoint and keeps sp. After Close it does
// nothing.
func (s *Set) Export(sp *correlate.Span) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	for _, sub := range s.subs {
		if sub.wants(sp) {
			sub.pipeline.OnEnd(sp)
		}
	}
}

// Wanted returns what OnWanted was last told.
func (s *Set) Wanted() event.Components {
	s.apply.Lock()
	defer s.apply.Unlock()
	return s.wanted
}

// Stats returns all Observers in the order of Apply, those disabled and those
// of other hosts too. Endpoints that are being flushed after their Observer gave
// them up are listed with it, or, if it is gone, with an Observer that has only
// a uuid.
func (s *Set) Stats() []ObserverStats {
	s.apply.Lock()
	defer s.apply.Unlock()
	s.sweep()
	out := make([]ObserverStats, 0, len(s.active))
	for _, o := range s.active {
		steering, _ := o.Steering()
		st := ObserverStats{UUID: o.UUID, NameLabel: o.NameLabel, Enabled: o.Enabled,
			Here:       o.observes(s.host.UUID),
			Components: s.wants(o).String(), Warnings: o.Warnings()}
		if hidden := o.Wants() & s.o.Experimental; hidden != 0 {
			st.Warnings = append(st.Warnings, fmt.Sprintf("components: %s left out as experimental", hidden))
		}
		for _, e := range o.endpoints(steering) {
			if p := s.pipes[s.key(o, e)]; p != nil {
				st.Endpoints = append(st.Endpoints, p.stats())
			} else {
				st.Endpoints = append(st.Endpoints, EndpointStats{Endpoint: show(e), State: "off"})
			}
		}
		out = append(out, st)
	}
	of := func(uuid string) *ObserverStats {
		i := slices.IndexFunc(out, func(st ObserverStats) bool { return st.UUID == uuid })
		if i < 0 {
			i = len(out)
			out = append(out, ObserverStats{UUID: uuid})
		}
		return &out[i]
	}
	for _, sub := range s.subs {
		st := sub.pipeline.Stats()
		of(sub.uuid).Processors = &st
	}
	for _, p := range s.leaving {
		st := p.stats()
		if st.State != "closed" {
			st.State = "draining"
		}
		o := of(p.key.uuid)
		o.Endpoints = append(o.Endpoints, st)
	}
	return out
}

// Totals returns the sum over all endpoints there ever were. What an endpoint
// that is gone has left on disk counts as queued.
func (s *Set) Totals() Counters {
	s.apply.Lock()
	defer s.apply.Unlock()
	s.sweep()
	all := s.all()
	for _, p := range all {
		s.claim(p)
	}
	sum := s.retired
	for _, p := range all {
		sum.Add(p.ledger.Counters())
	}
	return sum
}

// Close takes no more spans, flushes what the endpoints hold until ctx is done
// or, without a deadline, for Limits.DrainTimeout, and closes them. What could
// not be delivered stays on disk, where the endpoint has a queue there, or is
// counted as dropped: Totals then has nothing else queued, unless an exporter
// hangs. The error names the endpoints that lost spans by that. A second Close does
// nothing.
//
// While it waits the Set still answers.
func (s *Set) Close(ctx context.Context) error {
	s.apply.Lock()
	if s.closed {
		s.apply.Unlock()
		return nil
	}
	s.closed = true
	if s.ticker != nil {
		s.ticker.Stop()
	}
	s.mu.Lock()
	subs := s.subs
	s.subs = nil
	s.mu.Unlock()
	for _, sub := range subs {
		sub.pipeline.ForceFlush()
	}
	left := s.o.Limits.DrainTimeout
	if t, ok := ctx.Deadline(); ok {
		left = max(time.Until(t), 0)
	}
	for _, p := range s.pipes {
		s.leaving = append(s.leaving, p)
	}
	clear(s.pipes)
	pipes := slices.Clone(s.leaving)
	for _, p := range pipes {
		p.drainBy(left, true)
	}
	s.apply.Unlock()
	// Nothing changes any more.
	stop := context.AfterFunc(ctx, func() {
		for _, p := range pipes {
			p.expire()
		}
	})
	defer stop()
	over, cancel := context.WithTimeout(context.Background(), left+closeGrace)
	defer cancel()
	var errs []error
	if s.trim != nil {
		s.trim.close(over.Done())
	}
	for _, p := range pipes {
		select {
		case <-p.done:
		case <-over.Done():
		}
		if !p.isDone() {
			errs = append(errs, fmt.Errorf("observer %s: endpoint %s hangs", p.key.uuid, p.endpoint))
			continue
		}
		if st := p.stats(); st.Dropped[export.Unsent] > 0 {
			errs = append(errs, fmt.Errorf("observer %s: endpoint %s: %d spans not delivered: %s", p.key.uuid, p.endpoint, st.Dropped[export.Unsent], st.LastError))
		}
	}
	s.apply.Lock()
	s.sweep()
	s.apply.Unlock()
	errs = append(errs, s.spanLog.Close())
	return errors.Join(errs...)
}
