package metrics

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/otlptranslator"
	"go.opentelemetry.io/otel/attribute"
	otelprometheus "go.opentelemetry.io/otel/exporters/prometheus"
	"go.opentelemetry.io/otel/metric"
	sdkmetric "go.opentelemetry.io/otel/sdk/metric"
	"go.opentelemetry.io/otel/sdk/metric/exemplar"
	"go.opentelemetry.io/otel/sdk/resource"
	"go.opentelemetry.io/otel/trace"

	"github.com/xenserver/dtagent/observer/export"
	"github.com/xenserver/dtagent/observer/otlphttp"
)

// Names of the metrics, those of the Collector's spanmetrics connector. A scrape
// shows them as traces_span_metrics_calls_total and
// traces_span_metrics_duration_seconds.
const (
	CallsName    = "traces.span.metrics.calls"
	DurationName = "traces.span.metrics.duration"
)

// buckets are the bounds of the duration histograms in seconds: XAPI calls last
// from a millisecond (a read of the database) to minutes (VM.start,
// VM.migrate_send).
var buckets = [...]float64{.001, .002, .005, .01, .02, .05, .1, .2, .5, 1, 2, 5, 10, 20, 30, 60, 120, 300, 600}

// Observer is whose spans are counted: labels of every series.
type Observer struct {
	UUID, Name                   string
	HostUUID, HostName, PoolUUID string // "": not known, no label
}

// OTLP says where the metrics of an Observer are sent. The zero value: nowhere.
type OTLP struct {
	Endpoints []string       // otlp+http://… and otlp+https://…; others are left out
	Trust     otlphttp.Trust // nil: the system's CA certificates; *remote.Trust has the pool's too
}

// exporter counts the spans of one Observer.
type exporter struct {
	registry *Registry
	id       string
	scraped  *prometheus.Registry
	provider *sdkmetric.MeterProvider
	calls    metric.Int64Counter
	duration metric.Float64Histogram
	series   series
	tags     []attribute.KeyValue // scratch
}

// Exporter returns an exporter whose metrics are shown from now on. Of two of
// one Observer the later is shown. An error names an endpoint that cannot be
// used.
func (r *Registry) Exporter(ob Observer, to OTLP) (export.Exporter, error) {
	e := &exporter{registry: r, id: ob.UUID, scraped: prometheus.NewRegistry(), series: series{max: r.o.MaxSeries, take: r.take}}
	scraped, err := otelprometheus.New(
		otelprometheus.WithRegisterer(e.scraped),
		otelprometheus.WithTranslationStrategy(otlptranslator.UnderscoreEscapingWithSuffixes),
		otelprometheus.WithResourceAsConstantLabels(func(a attribute.KeyValue) bool { return strings.HasPrefix(string(a.Key), "xs.") }),
		otelprometheus.WithoutTargetInfo(),
		otelprometheus.WithoutScopeInfo(),
	)
	if err != nil {
		return nil, fmt.Errorf("metrics of observer %s: %w", ob.UUID, err)
	}
	options := []sdkmetric.Option{
		sdkmetric.WithReader(scraped),
		sdkmetric.WithResource(resourceOf(ob)),
		sdkmetric.WithExemplarFilter(exemplar.TraceBasedFilter),
		sdkmetric.WithCardinalityLimit(r.o.MaxSeries + 2), // above ours and the overflow series
	}
	sender, err := newSender(to, ob.UUID, r)
	if err != nil {
		return nil, fmt.Errorf("metrics of observer %s: %w", ob.UUID, err)
	}
	if sender != nil {
		options = append(options, sdkmetric.WithReader(sdkmetric.NewPeriodicReader(sender,
			sdkmetric.WithInterval(r.o.Interval), sdkmetric.WithTimeout(r.o.Timeout))))
	}
	e.provider = sdkmetric.NewMeterProvider(options...)
	meter := e.provider.Meter("github.com/xenserver/dtagent/observer/metrics")
	var errCalls, errDuration error
	e.calls, errCalls = meter.Int64Counter(CallsName, metric.WithDescription("Finished spans."))
	e.duration, errDuration = meter.Float64Histogram(DurationName, metric.WithUnit("s"),
		metric.WithDescription("How long spans took."), metric.WithExplicitBucketBoundaries(buckets[:]...))
	if err := errors.Join(errCalls, errDuration); err != nil {
		_ = e.provider.Shutdown(context.Background())
		return nil, fmt.Errorf("metrics of observer %s: %w", ob.UUID, err)
	}
	r.mu.Lock()
	r.observers[e.id] = e
	r.mu.Unlock()
	return e, nil
}

// resourceOf describes the Observer. Its instance keeps apart, at receivers that
// make labels only of service.name and service.instance.id, what several hosts
// and Observers send.
func resourceOf(ob Observer) *resource.Resource {
	attrs := []attribute.KeyValue{
		attribute.String("service.name", "dtagent"),
		attribute.String("service.instance.id", ob.HostUUID+"/"+ob.UUID),
	}
	for _, a := range []struct{ key, value string }{
		{"xs.observer.uuid", ob.UUID}, {"xs.observer.name", ob.Name},
		{"xs.host.uuid", ob.HostUUID}, {"xs.host.name", ob.HostName}, {"xs.pool.uuid", ob.PoolUUID},
	} {
		if a.value != "" {
			attrs = append(attrs, attribute.String(a.key, label(a.value)))
		}
	}
	return resource.NewSchemaless(attrs...)
}

// Export counts the batch. It never fails.
func (e *exporter) Export(_ context.Context, batch []*export.Record) error {
	for _, r := range batch {
		e.record(r)
	}
	return nil
}

func (e *exporter) record(r *export.Record) {
	s := r.Span
	p := e.series.of(e.service(r), s)
	// The span as the current one of a context is how an exemplar is named.
	ctx := trace.ContextWithSpanContext(context.Background(), trace.NewSpanContext(trace.SpanContextConfig{
		TraceID: s.TraceID, SpanID: s.SpanID, TraceFlags: trace.FlagsSampled,
	}))
	e.calls.Add(ctx, 1, p.add...)
	e.duration.Record(ctx, time.Duration(max(s.End, s.Start)-s.Start).Seconds(), p.record...)
}

// service is the record's final service.name: what the user's attributes, or
// their editing, made of it.
func (e *exporter) service(r *export.Record) string {
	if r.Edit == nil {
		for i := range r.Attributes {
			if r.Attributes[i].Key == export.KeyServiceName {
				return r.Attributes[i].Value.String()
			}
		}
		return r.Span.Service
	}
	e.tags = r.AppendTags(e.tags[:0])
	defer clear(e.tags)
	for i := range e.tags {
		if e.tags[i].Key == export.KeyServiceName {
			return e.tags[i].Value.String()
		}
	}
	return "" // renamed or taken out
}

// closeTimeout is for the last export: shorter than the time that the agent has
// to stop.
const closeTimeout = 3 * time.Second

// Close takes the Observer's series out of the scrapes and sends what was
// counted a last time to the OTLP endpoints, for at most closeTimeout.
func (e *exporter) Close() error {
	r := e.registry
	r.mu.Lock()
	if r.observers[e.id] == e {
		delete(r.observers, e.id)
	}
	r.series -= len(e.series.points)
	e.series.points = nil
	r.mu.Unlock()
	ctx, cancel := context.WithTimeout(context.Background(), min(r.o.Timeout, closeTimeout))
	defer cancel()
	if err := e.provider.Shutdown(ctx); err != nil {
		return fmt.Errorf("metrics of observer %s: %w", e.id, err)
	}
	return nil
}
