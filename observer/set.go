package observer

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/xenserver/dtagent/correlate"
	"github.com/xenserver/dtagent/observer/bugtool"
	"github.com/xenserver/dtagent/observer/export"
	"github.com/xenserver/dtagent/observer/zipkin"
	"github.com/xenserver/dtagent/probes/event"
	"go.opentelemetry.io/otel/attribute"
)

// Limits bound what one endpoint of one Observer may hold and how long it may
// take. Zero values mean the defaults.
type Limits struct {
	QueueSpans    int           // 10,000, as max-spans of xapi.conf
	QueueBytes    int           // of the spans kept in the queue, about; 16 MiB
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

// maxDraining bounds the endpoints that are flushed in the background after
// their Observers gave them up. Beyond it those that have had the longest time
// are told to end at once.
const maxDraining = 64

// closeGrace is how long Close waits for an exporter that does not end although
// its context is done: a file system that hangs.
const closeGrace = time.Second

// Options of a Set.
type Options struct {
	Host       Host
	BugtoolDir string       // "": bugtool.DefaultDir
	Log        *slog.Logger // nil: discarded
	Limits     Limits

	// OnWanted is called by Apply, never twice at once, when the union of the
	// components of the Observers in force has changed. Before the first call
	// it is empty. It must not call the Set.
	OnWanted func(event.Components)

	// NewExporter makes the exporter of an endpoint; nil: bugtool files and
	// zipkin.
	NewExporter func(o Observer, endpoint string) (export.Exporter, error)

	// NoTrim leaves the bugtool files to others. Otherwise, while an Observer
	// writes them, they are trimmed at once, each hour, and after each 32 MiB
	// written: see bugtool.Trim.
	NoTrim bool
}

// Set gives the Observers in force their spans. All methods may be called at
// once from several goroutines.
type Set struct {
	o    Options
	trim *trimmer

	mu     sync.RWMutex // held for reading by Export: routes do not change under it
	routes []route

	apply   sync.Mutex // guards all below; taken before mu
	active  []Observer
	wanted  event.Components
	current []route           // of the Observers in force
	late    []route           // of what was in force a moment ago
	ender   *time.Timer       // ends the next of late
	pipes   map[pipeKey]*pipe // in use
	leaving []*pipe           // given up, oldest first: linger, then drain, then end
	retired Counters          // of the pipes that are gone
	closed  bool
}

type pipeKey struct{ uuid, endpoint string }

// route is the way of the spans of some components to the endpoints of one
// Observer.
type route struct {
	components event.Components
	tags       []attribute.KeyValue
	size       int // bytes of tags, an estimate
	pipes      []*pipe
	before     time.Time // not zero: only for spans that ended by then
}

// NewSet returns a Set without Observers.
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
	s := &Set{o: o, pipes: map[pipeKey]*pipe{}}
	if !o.NoTrim {
		s.trim = newTrimmer(trimRoot(o.BugtoolDir), o.Log)
	}
	if s.o.NewExporter == nil {
		s.o.NewExporter = s.newExporter
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

func (s *Set) newExporter(_ Observer, endpoint string) (export.Exporter, error) {
	if endpoint == Bugtool {
		o := bugtool.Options{Dir: s.o.BugtoolDir, HostUUID: s.o.Host.UUID, Log: s.o.Log}
		if s.trim != nil {
			o.Rotated = s.trim.rotated
		}
		return bugtool.New(o), nil
	}
	return zipkin.New(endpoint, zipkin.Options{})
}

// Apply makes obs the Observers in force; it converges and may be called with
// the same ones again. Endpoints that an Observer keeps go on with their queues
// and connections; changed attributes are on the spans that are exported from
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
	if s.closed {
		return
	}
	s.sweep()
	old := s.current
	s.active, s.current = nil, nil
	var wanted event.Components
	taken := map[*pipe]event.Components{}
	files := false
	for _, o := range obs {
		if slices.ContainsFunc(s.active, func(a Observer) bool { return a.UUID == o.UUID }) {
			s.o.Log.Warn("second Observer with the same uuid ignored", "uuid", o.UUID, "name_label", o.NameLabel)
			continue
		}
		o = o.Clone()
		s.active = append(s.active, o)
		if !o.On(s.o.Host.UUID) {
			continue
		}
		r := route{components: o.Wants(), tags: o.tags(s.o.Host)}
		for _, t := range r.tags {
			r.size += len(t.Key) + len(t.Value.AsString())
		}
		wanted |= r.components
		for _, e := range o.endpoints() {
			files = files || e == Bugtool
			p := s.pipe(pipeKey{o.UUID, e}, o)
			taken[p] = r.components
			r.pipes = append(r.pipes, p)
		}
		s.current = append(s.current, r)
	}
	s.giveUp(old, taken, time.Now())
	if s.trim != nil {
		s.trim.set(files)
	}
	if wanted != s.wanted {
		s.wanted = wanted
		s.o.OnWanted(wanted)
	}
}

// pipe returns the pipe of k, new if there is none that can be used.
func (s *Set) pipe(k pipeKey, o Observer) *pipe {
	if p := s.pipes[k]; p != nil {
		return p
	}
	for i, p := range s.leaving {
		if p.key == k && p.resume() {
			s.leaving = slices.Delete(s.leaving, i, i+1)
			s.pipes[k] = p
			return p
		}
	}
	log := s.o.Log.With("observer", o.NameLabel, "uuid", o.UUID)
	exp, err := s.o.NewExporter(o, k.endpoint)
	if err != nil {
		log.Warn("endpoint not usable", "endpoint", redactEndpoint(k.endpoint), "err", err)
		exp = broken{err}
	}
	p := newPipe(k, exp, s.o.Limits, log)
	s.pipes[k] = p
	return p
}

// sweep adds the pipes that have ended to the retired counters.
func (s *Set) sweep() {
	s.leaving = slices.DeleteFunc(s.leaving, func(p *pipe) bool {
		done := p.isDone()
		if done {
			s.retired.add(p.stats().Counters)
		}
		return done
	})
}

// Export gives the span to every Observer in force that asks for its
// component. It waits for no endpoint and keeps sp. After Close it does
// nothing.
func (s *Set) Export(sp *correlate.Span) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	size := 0
	for i := range s.routes {
		r := &s.routes[i]
		if !r.components.Has(sp.Component) || !r.before.IsZero() && sp.End > r.before.UnixNano() {
			continue
		}
		if size == 0 {
			size = sizeOf(sp)
		}
		for _, p := range r.pipes {
			p.push(export.Record{Span: sp, Attributes: r.tags}, size)
		}
	}
}

// sizeOf estimates the bytes that a span keeps alive.
func sizeOf(sp *correlate.Span) int {
	n := 256 + len(sp.Name) + len(sp.TraceState) + len(sp.Error)
	for i := range sp.Attributes {
		a := &sp.Attributes[i]
		n += 64 + len(a.Key)
		if a.Value.Type() == attribute.STRING {
			n += len(a.Value.AsString())
		}
	}
	return n
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
		st := ObserverStats{UUID: o.UUID, NameLabel: o.NameLabel, Enabled: o.Enabled,
			Here:       o.observes(s.o.Host.UUID),
			Components: o.Wants().String(), Warnings: o.Warnings()}
		for _, e := range o.endpoints() {
			if p := s.pipes[pipeKey{o.UUID, e}]; p != nil {
				st.Endpoints = append(st.Endpoints, p.stats())
			} else {
				st.Endpoints = append(st.Endpoints, EndpointStats{Endpoint: redactEndpoint(e), State: "off"})
			}
		}
		out = append(out, st)
	}
	for _, p := range s.leaving {
		i := slices.IndexFunc(out, func(st ObserverStats) bool { return st.UUID == p.key.uuid })
		if i < 0 {
			i = len(out)
			out = append(out, ObserverStats{UUID: p.key.uuid})
		}
		st := p.stats()
		if st.State != "closed" {
			st.State = "draining"
		}
		out[i].Endpoints = append(out[i].Endpoints, st)
	}
	return out
}

// Totals returns the sum over all endpoints there ever were.
func (s *Set) Totals() Counters {
	s.apply.Lock()
	defer s.apply.Unlock()
	s.sweep()
	sum := s.retired
	for _, p := range s.pipes {
		sum.add(p.stats().Counters)
	}
	for _, p := range s.leaving {
		sum.add(p.stats().Counters)
	}
	return sum
}

// Close takes no more spans, flushes what the endpoints hold until ctx is done
// or, without a deadline, for Limits.DrainTimeout, and closes them. What could
// not be delivered is counted as dropped: Totals then has nothing queued, unless an
// exporter hangs. The error names the endpoints that lost spans by that. A second Close does
// nothing.
func (s *Set) Close(ctx context.Context) error {
	s.apply.Lock()
	defer s.apply.Unlock()
	if s.closed {
		return nil
	}
	s.closed = true
	s.current, s.late = nil, nil
	s.useRoutes()
	if s.ender != nil {
		s.ender.Stop()
	}
	if s.trim != nil {
		s.trim.close()
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
		p.drain(left)
	}
	stop := context.AfterFunc(ctx, func() {
		for _, p := range pipes {
			p.expire()
		}
	})
	defer stop()
	over, cancel := context.WithTimeout(context.Background(), left+closeGrace)
	defer cancel()
	var errs []error
	for _, p := range pipes {
		select {
		case <-p.done:
		case <-over.Done():
			errs = append(errs, fmt.Errorf("observer %s: endpoint %s hangs", p.key.uuid, p.endpoint))
			continue
		}
		if st := p.stats(); st.Dropped[export.Unsent] > 0 {
			errs = append(errs, fmt.Errorf("observer %s: endpoint %s: %d spans not delivered: %s", p.key.uuid, p.endpoint, st.Dropped[export.Unsent], st.LastError))
		}
	}
	s.sweep()
	return errors.Join(errs...)
}
