package agent

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"time"

	"github.com/xenserver/dtagent/observer"
	"github.com/xenserver/dtagent/observer/metrics"
	"github.com/xenserver/dtagent/observer/xapi"
)

// What StateDir holds.
const (
	queueDir  = "queue"          // spans not delivered yet, by Observer and endpoint
	stateFile = "observers.json" // the last known Observers of the pool
)

// observers makes what takes the spans, and what says who gets them.
func (a *agent) observers() error {
	c, log := a.c, a.c.Log.With("component", "observer")
	queues, state := "", ""
	if c.StateDir != "" {
		if err := os.MkdirAll(c.StateDir, 0o700); err != nil {
			return fmt.Errorf("state directory: %w; name another with --state-dir, or none with --state-dir=", err)
		}
		queues, state = filepath.Join(c.StateDir, queueDir), filepath.Join(c.StateDir, stateFile)
	}
	a.metrics = metrics.New(metrics.Options{Log: log})
	a.sources.given, a.sources.known = c.Host, c.Known
	host := a.sources.host(observer.Host{})
	a.set = observer.NewSet(observer.Options{
		Host: host, BugtoolDir: c.BugtoolDir, QueueDir: queues, SpanLog: c.SpanLog, CAFile: c.CAFile, Metrics: a.metrics,
		Experimental: c.Experimental, Log: log, OnWanted: a.want,
	})
	a.sources.set = a.set
	a.dir = observer.NewDirectory(c.ObserversDir, log)
	if c.XAPISocket != "" {
		a.xapi = xapi.New(xapi.Options{Socket: c.XAPISocket, StateFile: state, HostUUID: host.UUID, Version: c.Version, Log: log})
	}
	return nil
}

// serveMetrics answers scrapes until stop is called.
func (a *agent) serveMetrics(fail func(error)) (stop func(), err error) {
	ln, err := metrics.Listen(a.c.Metrics)
	if err != nil {
		return nil, err
	}
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", a.metrics.Handler())
	srv := &http.Server{Handler: mux, ReadHeaderTimeout: 5 * time.Second, WriteTimeout: 30 * time.Second, MaxHeaderBytes: 16 << 10}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		if err := srv.Serve(ln); !errors.Is(err, http.ErrServerClosed) {
			fail(fmt.Errorf("metrics page: %w", err))
		}
	}()
	return func() {
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		defer cancel()
		_ = srv.Shutdown(ctx) // a scrape that takes longer is cut
		_ = srv.Close()
		<-ended
	}, nil
}
