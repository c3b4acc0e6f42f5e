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

// DefaultMaxSeries is how many combinations of service, span name, kind and
// status one Observer's spans may have. It is above what a host shows that runs
// every XAPI method, and costs at most about 10 MiB.
const DefaultMaxSeries = 1000

// Options of a Registry. The zero value is usable.
type Options struct {
	MaxSeries int           // of one Observer; 0: DefaultMaxSeries. What is beyond it is counted in one series marked otel_metric_overflow="true"
	Interval  time.Duration // between two OTLP exports; 0: 30 s
	Timeout   time.Duration // of one OTLP export; 0: 10 s
	Log       *slog.Logger  // nil: discarded
}

// Registry holds the metrics of all Observers, and others of the agent that
// are registered with it. Its methods may be called by several goroutines at
// once.
type Registry struct {
	o     Options
	agent *prometheus.Registry

	mu        sync.Mutex
	observers map[string]*exporter // by uuid: those that a scrape shows
}

// New returns a Registry without metrics.
func New(o Options) *Registry {
	if o.MaxSeries <= 0 {
		o.MaxSeries = DefaultMaxSeries
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
	return &Registry{o: o, agent: prometheus.NewRegistry(), observers: map[string]*exporter{}}
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
