package main

import (
	"context"
	"encoding/json"
	"net/http"
	"strings"
	"sync"

	"go.opentelemetry.io/collector/client"
	"go.opentelemetry.io/collector/consumer"
	"go.opentelemetry.io/collector/pdata/plog"
	"go.opentelemetry.io/collector/pdata/pmetric"
	"go.opentelemetry.io/collector/pdata/ptrace"
)

// memory keeps all that the receivers decoded.
type memory struct {
	mu      sync.Mutex
	traces  ptrace.Traces
	metrics pmetric.Metrics
	logs    plog.Logs

	encodings map[string]map[string]int // requests by signal and Content-Encoding
}

func newMemory() *memory {
	return &memory{traces: ptrace.NewTraces(), metrics: pmetric.NewMetrics(), logs: plog.NewLogs(),
		encodings: map[string]map[string]int{"traces": {}, "metrics": {}, "logs": {}}}
}

// count notes how the request was compressed.
func (m *memory) count(ctx context.Context, signal string) {
	m.encodings[signal][strings.Join(client.FromContext(ctx).Metadata.Get("Content-Encoding"), ",")]++
}

func (m *memory) tracesConsumer() consumer.Traces {
	return must(consumer.NewTraces(func(ctx context.Context, d ptrace.Traces) error {
		m.mu.Lock()
		defer m.mu.Unlock()
		m.count(ctx, "traces")
		d.ResourceSpans().MoveAndAppendTo(m.traces.ResourceSpans())
		return nil
	}))
}

func (m *memory) metricsConsumer() consumer.Metrics {
	return must(consumer.NewMetrics(func(ctx context.Context, d pmetric.Metrics) error {
		m.mu.Lock()
		defer m.mu.Unlock()
		m.count(ctx, "metrics")
		d.ResourceMetrics().MoveAndAppendTo(m.metrics.ResourceMetrics())
		return nil
	}))
}

func (m *memory) logsConsumer() consumer.Logs {
	return must(consumer.NewLogs(func(ctx context.Context, d plog.Logs) error {
		m.mu.Lock()
		defer m.mu.Unlock()
		m.count(ctx, "logs")
		d.ResourceLogs().MoveAndAppendTo(m.logs.ResourceLogs())
		return nil
	}))
}

// must is for constructors that fail only without a function.
func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

// handler answers GET /traces, /metrics and /logs with all that was decoded, as
// OTLP JSON, and /encodings with how many requests of each signal came in each
// Content-Encoding.
func (m *memory) handler() http.Handler {
	mux := http.NewServeMux()
	for path, marshal := range map[string]func() ([]byte, error){
		"GET /traces":    func() ([]byte, error) { return (&ptrace.JSONMarshaler{}).MarshalTraces(m.traces) },
		"GET /metrics":   func() ([]byte, error) { return (&pmetric.JSONMarshaler{}).MarshalMetrics(m.metrics) },
		"GET /logs":      func() ([]byte, error) { return (&plog.JSONMarshaler{}).MarshalLogs(m.logs) },
		"GET /encodings": func() ([]byte, error) { return json.Marshal(m.encodings) },
	} {
		mux.HandleFunc(path, func(w http.ResponseWriter, _ *http.Request) {
			m.mu.Lock()
			defer m.mu.Unlock()
			b, err := marshal()
			if err != nil {
				http.Error(w, err.Error(), http.StatusInternalServerError)
				return
			}
			_, _ = w.Write(b)
		})
	}
	return mux
}
