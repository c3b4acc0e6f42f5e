package observer

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/xenserver/dtagent/observer/bugtool"
	"github.com/xenserver/dtagent/observer/export"
	"github.com/xenserver/dtagent/observer/masked"
	"github.com/xenserver/dtagent/observer/metrics"
	"github.com/xenserver/dtagent/observer/otlp"
	"github.com/xenserver/dtagent/observer/otlphttp"
	"github.com/xenserver/dtagent/observer/remote"
	"github.com/xenserver/dtagent/observer/spanlog"
	"github.com/xenserver/dtagent/observer/zipkin"
)

// Bugtool is the endpoint that stands for the files of the bugtool.
const Bugtool = "bugtool"

// What an Observer's settings turn on is an endpoint too, by a name that an
// Observer cannot write.
const (
	metricsEndpoint = "metrics"
	logsEndpoint    = "logs"
	to              = " to " // before the URLs of receivers
)

// maxEndpoints bounds the endpoints of one Observer that are used; each has a
// queue and a worker. XAPI has no such bound.
const maxEndpoints = 32

// sameReceiver tells the endpoints of one Observer that have one queue on disk:
// those that are the same but for the password.
func sameReceiver(a, b string) bool {
	return a == b || strings.Contains(a, "@") && remote.DirFor("", "", a) == remote.DirFor("", "", b)
}

// sink names where the spans of a pipe end up. Of several pipes of one sink the
// newest is used: those before it had another password or other labels.
func (k pipeKey) sink() string {
	switch kind, _, _ := strings.Cut(k.endpoint, to); kind {
	case metricsEndpoint:
		return k.uuid + " " + kind // a scrape shows one of them
	case Bugtool, logsEndpoint:
		return k.uuid + " " + k.endpoint
	}
	return remote.DirFor("", k.uuid, k.endpoint)
}

// endpoints returns the endpoints that are used: those of the Observer and of
// its settings without repetitions, the first maxEndpoints of them, and what the
// settings turn on.
func (o Observer) endpoints(st Steering) []string {
	var out, receivers []string
	for _, e := range slices.Concat(o.Endpoints, st.Endpoints) {
		if len(out) < maxEndpoints && !slices.ContainsFunc(out, func(o string) bool { return sameReceiver(o, e) }) {
			out = append(out, e)
			if otlphttp.IsEndpoint(e) {
				receivers = append(receivers, e)
			}
		}
	}
	if st.Metrics {
		name := metricsEndpoint
		if len(receivers) > 0 {
			name += to + strings.Join(receivers, " ")
		}
		out = append(out, name)
	}
	if st.Logs {
		out = append(out, logsEndpoint)
		for _, r := range receivers {
			out = append(out, logsEndpoint+to+r)
		}
	}
	return out
}

// show returns the endpoint without what may be secret in it.
func show(endpoint string) string {
	kind, receivers, ok := strings.Cut(endpoint, to)
	if !ok || kind != metricsEndpoint && kind != logsEndpoint {
		return masked.Endpoint(endpoint)
	}
	words := strings.Fields(receivers)
	for i, w := range words {
		words[i] = masked.Endpoint(w)
	}
	return kind + to + strings.Join(words, " ")
}

// labels are what exporters with a description of the Observer of their own have
// to be made anew for.
func (s *Set) labels(o Observer, endpoint string) string {
	if strings.HasPrefix(endpoint, metricsEndpoint) || strings.HasPrefix(endpoint, logsEndpoint) {
		return strings.Join([]string{o.NameLabel, s.host.Name, s.host.PoolUUID}, "\x00")
	}
	return ""
}

// maker returns what makes the exporter of one of o's endpoints, which needs no
// lock any more.
func (s *Set) maker(o Observer, endpoint string, l *export.Ledger) func() (export.Exporter, error) {
	if s.o.NewExporter != nil {
		return func() (export.Exporter, error) { return s.o.NewExporter(o, endpoint, l) }
	}
	host, trust := s.host, s.trust(o)
	return func() (export.Exporter, error) { return s.newExporter(o, endpoint, l, host, trust) }
}

func (s *Set) newExporter(o Observer, endpoint string, l *export.Ledger, host Host, trust *remote.Trust) (export.Exporter, error) {
	kind, receivers, _ := strings.Cut(endpoint, to)
	switch kind {
	case Bugtool:
		bo := bugtool.Options{Dir: s.o.BugtoolDir, HostUUID: host.UUID, Log: s.o.Log}
		if s.trim != nil {
			bo.Rotated = s.trim.rotated
		}
		return bugtool.New(bo), nil
	case metricsEndpoint:
		return s.o.Metrics.Exporter(metrics.Observer{UUID: o.UUID, Name: o.NameLabel,
			HostUUID: host.UUID, HostName: host.Name, PoolUUID: host.PoolUUID},
			metrics.OTLP{Endpoints: strings.Fields(receivers), Trust: trust})
	case logsEndpoint:
		ob := spanlog.Observer{UUID: o.UUID, Name: o.NameLabel, HostUUID: host.UUID, HostName: host.Name, PoolUUID: host.PoolUUID}
		if receivers == "" {
			return s.spanLog.Exporter(ob), nil
		}
		return spanlog.NewOTLP(ob, spanlog.OTLP{Endpoint: receivers, Trust: trust})
	}
	ro := remote.Options{Endpoint: endpoint, Encoder: encoder(endpoint), Ledger: l, ObserverUUID: o.UUID, ObserverName: o.NameLabel,
		Spool: s.spool, Trust: trust, Log: s.o.Log.With("observer", o.NameLabel, "uuid", o.UUID, "endpoint", show(endpoint))}
	if s.o.QueueDir != "" {
		ro.Dir = remote.DirFor(s.o.QueueDir, o.UUID, endpoint)
	}
	return remote.Open(ro)
}

// encoder returns a new Encoder for what the endpoint takes.
func encoder(endpoint string) remote.Encoder {
	if otlphttp.IsEndpoint(endpoint) {
		return new(otlp.Encoder)
	}
	return new(zipkin.Encoder)
}

// trust returns what https receivers of o are checked against. When that has
// changed those that failed are tried again.
func (s *Set) trust(o Observer) *remote.Trust {
	t := s.trusts[o.UUID]
	if t == nil {
		t = remote.NewTrust("", s.bundles()...)
		s.trusts[o.UUID] = t
	}
	st, _ := o.Steering()
	if t.Use(st.CAFile) {
		for k, p := range s.pipes {
			if k.uuid == o.UUID {
				p.retry()
			}
		}
	}
	return t
}

func (s *Set) bundles() []string {
	b := remote.PoolBundles()
	if s.o.CAFile != "" {
		b = append(b, s.o.CAFile)
	}
	return b
}

// goOn takes up the queues that an agent before this one has left on disk. Each
// is emptied, whether or not its Observer is still there; if it is, it goes on with
// it.
func (s *Set) goOn() {
	left, err := remote.Leftovers(s.o.QueueDir)
	if err != nil {
		s.o.Log.Warn("queues on disk", "dir", s.o.QueueDir, "err", err)
	}
	for _, l := range left {
		if l.Err != nil {
			s.o.Log.Warn("queue on disk of which nobody knows where it was to go", "dir", l.Dir, "spans", l.Spans, "err", l.Err)
			continue
		}
		o := Observer{UUID: l.ObserverUUID, NameLabel: l.ObserverName}
		p := s.pipe(s.key(o, l.Endpoint), o)
		delete(s.pipes, p.key)
		s.leaving = append(s.leaving, p)
	}
	s.endLate(time.Now())
	s.arm()
}

// broken stands in for an exporter that could not be made.
type broken struct{ err error }

func (b broken) Export(_ context.Context, batch []*export.Record) error {
	return &export.Failure{Err: fmt.Errorf("endpoint not usable: %w", b.err), Cause: export.Unusable, Lost: len(batch)}
}

func (broken) Close() error { return nil }
