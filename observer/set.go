package observer

import (
	"fmt"
	"log/slog"
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

	// OnWanted is called by Apply, never twice at once, when what the Observers in
	// force want in all has changed. Before the first call that is nothing. It must
	// not call the Set.
	OnWanted func(Wanted)

	// NewExporter makes the exporter of an endpoint, which tells the ledger what
	// becomes of the spans if it is a Holder; nil: those of this project.
	NewExporter func(o Observer, endpoint string, l *export.Ledger) (export.Exporter, error)

	// NoTrim leaves the bugtool files to others. Otherwise, while an Observer
	// writes them, they are trimmed at once, each hour, and after each 32 MiB
	// written: see bugtool.Trim.
	NoTrim bool
}

// Wanted is what all Observers in force want together.
type Wanted struct {
	Components event.Components // of any of them
	// Waits says that one of them wants spans of long waits, and WaitThreshold
	// from which duration on: the shortest of those that do.
	Waits         bool
	WaitThreshold time.Duration
	// Requests of guests to their disks, none while nobody wants the component tapdisk.
	Requests Requests
}

// add makes w what is wanted when an Observer wants c and steers so, too.
func (w *Wanted) add(c event.Components, st *Steering) {
	w.Components |= c
	if c.Has(event.Tapdisk) {
		w.Requests.add(st.Requests())
	}
	if st.Processor.NoWaits {
		return
	}
	if d := st.waitThreshold(); !w.Waits || d < w.WaitThreshold {
		w.Waits, w.WaitThreshold = true, d
	}
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
	// sampled is Requests.Sample of what is wanted in all.
	sampled uint32

	apply   sync.Mutex // guards all below; taken before mu
	host    Host
	active  []Observer
	warned  map[string][]string // by uuid of the Observer
	again   map[string]bool     // uuids that came more than once, which was logged
	wanted  Wanted
	pipes   map[pipeKey]*pipe        // in use
	made    uint64                   // pipes
	leaving []*pipe                  // given up, oldest first: linger, then drain, then end
	retired Counters                 // of the pipes that are gone
	trusts  map[string]*remote.Trust // by uuid of the Observer
	left    map[string]uint64        // by sink: spans of retired that are still on disk
	ticker  *time.Timer              // for the next tick, while there are subs or leaving
	closed  bool
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
		o.OnWanted = func(Wanted) {}
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

// Export gives the span to every Observer in force that asks for its
// component. It waits for no endpoint and keeps sp. After Close it does
// nothing.
func (s *Set) Export(sp *correlate.Span) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	for _, sub := range s.subs {
		if sub.wants(sp) && (sp.Guest == nil || sub.requests.take(sp, s.sampled)) {
			sub.pipeline.OnEnd(sp)
		}
	}
}

// Wanted returns what OnWanted was last told.
func (s *Set) Wanted() Wanted {
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
