// Package metrics counts the spans of Observers: calls, errors and durations by
// service, span name, kind and status, with exemplars that name a trace.
//
// The names are those of the OpenTelemetry Collector's spanmetrics connector, so
// that its dashboards work: traces.span.metrics.calls and
// traces.span.metrics.duration, the latter in seconds. They can be scraped
// (Prometheus text and OpenMetrics) and are sent to the Observer's OTLP
// endpoints.
package metrics

import (
	"log/slog"
	"net/http"
	"slices"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	dto "github.com/prometheus/client_model/go"
)

// How many combinations of service, span name, kind and status have a series of
// their own. A series costs 6 KiB of memory, with OTLP 12. A host that runs every
// XAPI method shows fewer than DefaultMaxSeries.
const (
	DefaultMaxSeries = 1000 // of one Observer
	DefaultMaxTotal  = 3000 // of all together
)

// Options of a Registry. The zero value is usable.
type Options struct {
	// What is beyond these is counted in one series of the Observer that is marked
	// otel.metric.overflow=true instead of having labels.
	MaxSeries int // of one Observer; 0: DefaultMaxSeries
	MaxTotal  int // of all; 0: DefaultMaxTotal

	Interval time.Duration // between two OTLP exports; 0: 30 s
	Timeout  time.Duration // of one OTLP export; 0: 10 s
	Log      *slog.Logger  // nil: discarded
}

// Registry holds the metrics of all Observers, and others of the agent that
// are registered with it. Its methods may be called by several goroutines at
// once.
type Registry struct {
	o     Options
	agent *prometheus.Registry

	exports *prometheus.CounterVec // by observer, receiver and outcome

	mu        sync.Mutex
	observers map[string]*exporter // by uuid: those that a scrape shows
	series    int                  // of all exporters that are open
}

// New returns a Registry without metrics.
func New(o Options) *Registry {
	if o.MaxSeries <= 0 {
		o.MaxSeries = DefaultMaxSeries
	}
	if o.MaxTotal <= 0 {
		o.MaxTotal = DefaultMaxTotal
	}
	if o.Interval <= 0 {
		o.Interval = 30 * time.Second
	}
	if o.Timeout <= 0 {
		o.Timeout = 10 * time.Second
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	r := &Registry{o: o, agent: prometheus.NewRegistry(), observers: map[string]*exporter{}}
	r.exports = prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "dtagent_otlp_metric_exports_total",
		Help: "Exports of the metrics of an Observer to an OTLP receiver, by outcome: sent or failed.",
	}, []string{"xs_observer_uuid", "receiver", "outcome"})
	r.agent.MustRegister(r.exports)
	return r
}

// take tells whether there may be one series more.
func (r *Registry) take() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.series >= r.o.MaxTotal {
		return false
	}
	r.series++
	return true
}

// Registerer takes metrics of the agent itself, which a scrape shows beside
// those of the Observers.
func (r *Registry) Registerer() prometheus.Registerer { return r.agent }

// maxScrapes bounds the scrapes answered at once; others get a 503.
const maxScrapes = 4

// Handler answers scrapes: in OpenMetrics, which has the exemplars, to those who
// accept it, else in the Prometheus text format.
func (r *Registry) Handler() http.Handler {
	return promhttp.HandlerFor(prometheus.GathererFunc(r.gather), promhttp.HandlerOpts{
		EnableOpenMetrics:   true,
		ErrorHandling:       promhttp.ContinueOnError,
		ErrorLog:            errorLog{r.o.Log},
		MaxRequestsInFlight: maxScrapes,
	})
}

// gather collects the agent's metrics and those of every Observer. The latter
// have a prometheus registry each: the collectors of the OpenTelemetry SDK
// cannot be taken out of one again.
func (r *Registry) gather() ([]*dto.MetricFamily, error) {
	r.mu.Lock()
	all := make(prometheus.Gatherers, 1, 1+len(r.observers))
	all[0] = r.agent
	ids := make([]string, 0, len(r.observers))
	for id := range r.observers {
		ids = append(ids, id)
	}
	slices.Sort(ids)
	for _, id := range ids {
		all = append(all, r.observers[id].scraped)
	}
	r.mu.Unlock()
	return all.Gather()
}

type errorLog struct{ *slog.Logger }

func (l errorLog) Println(v ...any) { l.Warn("metrics scrape", "err", v) }
