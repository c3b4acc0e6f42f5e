package metrics

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"sync"

	"github.com/prometheus/client_golang/prometheus"
	"go.opentelemetry.io/otel/exporters/otlp/otlpmetric/otlpmetrichttp"
	sdkmetric "go.opentelemetry.io/otel/sdk/metric"
	"go.opentelemetry.io/otel/sdk/metric/metricdata"

	"github.com/xenserver/dtagent/observer/otlphttp"
)

// sender sends one collection to several receivers at once. A failure is not
// retried: the counts are cumulative, so the next export has all of it. It
// implements sdkmetric.Exporter.
type sender struct {
	observer  string
	receivers []*receiver
	log       *slog.Logger
	exports   *prometheus.CounterVec
}

type receiver struct {
	sdkmetric.Exporter
	host    string
	client  *http.Client
	mu      sync.Mutex
	failing bool
}

// newSender returns nil when there is no receiver.
func newSender(to OTLP, observer string, in *Registry) (*sender, error) {
	s := &sender{observer: observer, log: in.o.Log, exports: in.exports}
	for _, endpoint := range to.Endpoints {
		if !otlphttp.IsEndpoint(endpoint) {
			continue
		}
		u, err := otlphttp.URL(endpoint, otlphttp.Metrics)
		if err != nil {
			return nil, err
		}
		client := otlphttp.NewClient(u, otlphttp.Options{Trust: to.Trust, Timeout: in.o.Timeout})
		exp, err := otlpmetrichttp.New(context.Background(),
			otlpmetrichttp.WithEndpointURL(u.String()),
			otlpmetrichttp.WithHTTPClient(client),
			otlpmetrichttp.WithCompression(otlpmetrichttp.GzipCompression),
			otlpmetrichttp.WithRetry(otlpmetrichttp.RetryConfig{}),
		)
		if err != nil {
			return nil, fmt.Errorf("OTLP endpoint %s: %w", u.Host, err)
		}
		s.receivers = append(s.receivers, &receiver{Exporter: exp, host: u.Host, client: client})
	}
	if len(s.receivers) == 0 {
		return nil, nil
	}
	return s, nil
}

func (s *sender) Temporality(k sdkmetric.InstrumentKind) metricdata.Temporality {
	return sdkmetric.DefaultTemporalitySelector(k)
}

func (s *sender) Aggregation(k sdkmetric.InstrumentKind) sdkmetric.Aggregation {
	return sdkmetric.DefaultAggregationSelector(k)
}

// Export logs the first failure of a row and its end. Its error is nil: the
// SDK would only print it.
func (s *sender) Export(ctx context.Context, rm *metricdata.ResourceMetrics) error {
	var all sync.WaitGroup
	for _, r := range s.receivers {
		all.Go(func() {
			err := r.Export(ctx, rm)
			r.mu.Lock()
			was := r.failing
			r.failing = err != nil
			r.mu.Unlock()
			outcome := "sent"
			switch {
			case err != nil && !was:
				s.log.Warn("metrics not sent; the next export has them too", "observer", s.observer, "receiver", r.host, "err", err)
			case err == nil && was:
				s.log.Info("metrics are sent again", "observer", s.observer, "receiver", r.host)
			}
			if err != nil {
				outcome = "failed"
			}
			s.exports.WithLabelValues(s.observer, r.host, outcome).Inc()
		})
	}
	all.Wait()
	return nil
}

func (s *sender) ForceFlush(ctx context.Context) error { return ctx.Err() }

func (s *sender) Shutdown(ctx context.Context) error {
	var err error
	for _, r := range s.receivers {
		err = errors.Join(err, r.Shutdown(ctx))
		r.client.CloseIdleConnections()
	}
	s.exports.DeletePartialMatch(prometheus.Labels{"xs_observer_uuid": s.observer})
	return err
}
