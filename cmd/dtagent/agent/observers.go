package agent

import (
	"fmt"
	"os"
	"path/filepath"

	"github.com/xenserver/dtagent/observer"
	"github.com/xenserver/dtagent/observer/metrics"
	"github.com/xenserver/dtagent/observer/xapi"
)

// What StateDir holds.
const (
	queueDir  = "queue"          // spans not delivered yet, by Observer and endpoint
	stateFile = "observers.json" // the last known Observers of the pool
	disksFile = "disks.json"     // what is usual for the guests' disks
)

// stateFile is where something in StateDir is; "" without one.
func (c *Config) stateFile(name string) string {
	if c.StateDir == "" {
		return ""
	}
	return filepath.Join(c.StateDir, name)
}

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
