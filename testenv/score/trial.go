package score

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/xenserver/dtagent/cmd/dtagent/control"
	"github.com/xenserver/dtagent/cmd/dtagent/zipkin"
	"github.com/xenserver/dtagent/testenv"
	"github.com/xenserver/dtagent/testenv/client"
	"github.com/xenserver/dtagent/testenv/config"
	"github.com/xenserver/dtagent/testenv/daemon"
	"github.com/xenserver/dtagent/testenv/truth"
)

// Options of Run.
type Options struct {
	Agent, Dom0 string // binaries, as daemon.Build and testenv.Build make them
	Dir         string // for what the trial leaves behind; it must be there

	Traceparent bool          // each call carries a trace context of its own
	Callers     int           // at once
	Rate        float64       // calls a second of all together; 0: as many as they can
	Duration    time.Duration // of the load; 0: until Calls are made
	Calls       int           // after which the load ends; 0: no limit
	Recycle     bool          // force the kernel to use few numbers of threads and processes, on the whole machine
	Knobs       testenv.Knobs
	AgentArgs   []string // further arguments of `dtagent run`
}

// Result of Run.
type Result struct {
	*Report
	Calls  int
	Kinds  string // what the calls were
	Took   time.Duration
	Status []*control.Status // of both hosts' agents, at the end
	Logs   []string
}

// Lost is how many events the agents lost, of which there is a gap in what they
// saw.
func (r *Result) Lost() (n uint64) {
	for _, s := range r.Status {
		n += s.Lost()
	}
	return n
}

// Run starts the two hosts of a simulated pool with an agent beside each, makes a
// mixed load, and compares what the agents say with the truth. It needs root.
func Run(ctx context.Context, o Options) (r *Result, err error) {
	pool, err := testenv.StartPool(ctx, testenv.PoolOptions{Options: testenv.Options{
		Binary: o.Dom0, Dir: filepath.Join(o.Dir, "pool"), VMs: max(o.Callers, 2), Squeezed: true, Networkd: true, Background: true, Knobs: o.Knobs,
	}})
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, pool.Close()) }()
	session, err := client.Unix(pool.Coordinator.XapiSocket(), client.Options{Shape: client.Node}).Login(ctx)
	if err != nil {
		return nil, err
	}
	var agents []*daemon.Daemon
	for _, h := range pool.Hosts() {
		a, err := watch(ctx, h, o)
		if err != nil {
			return nil, err
		}
		defer func() { _ = a.Stop() }() // twice where all went well
		agents = append(agents, a)
	}

	since := truth.Now()
	m := &mix{pool: pool, session: session, traced: o.Traceparent, rate: o.Rate}
	began := time.Now()
	if err := load(ctx, m, o); err != nil {
		return nil, err
	}
	r = &Result{Calls: int(m.made.Load()), Kinds: m.summary(), Took: time.Since(began)}
	var spans []zipkin.Span
	until := truth.Now() // what goes on beyond, background work and calls that were cut off, does not count
	for _, a := range agents {
		s, err := a.Status(ctx)
		if err != nil {
			return nil, err
		}
		r.Status = append(r.Status, s)
		if err := a.Stop(); err != nil { // it handles and sends all that it was told
			return nil, err
		}
		r.Logs = append(r.Logs, a.Log())
		if err := zipkin.ReadPath(a.SpansDir(), func(s zipkin.Span) { spans = append(spans, s) }); err != nil {
			return nil, err
		}
	}
	offset := time.Now().UnixNano() - truth.Now()
	log, err := pool.Truth()
	if err != nil {
		return nil, err
	}
	r.Report = Compare(log, spans, Trial{Since: since, Until: until, Offset: offset, Native: o.Knobs.Native != config.NativeOff,
		Legacy: slices.Contains(o.AgentArgs, "--legacy")})
	return r, nil
}

// load makes the calls, with numbers that are used again if that is wanted.
func load(ctx context.Context, m *mix, o Options) error {
	while, stop := context.WithCancel(ctx)
	defer stop()
	recycled := make(chan error, 1)
	go func() {
		var err error
		if o.Recycle {
			err = recycle(while)
		}
		recycled <- err
	}()
	err := m.run(ctx, o.Callers, o.Calls, o.Duration)
	stop()
	return errors.Join(err, <-recycled)
}

// watch starts a host's agent and returns when it sees all that it should.
func watch(ctx context.Context, h *testenv.Dom0, o Options) (*daemon.Daemon, error) {
	a, err := daemon.Start(ctx, daemon.Options{
		Binary: o.Agent, Dir: filepath.Join(o.Dir, "agent-"+h.HostName()), Only: slices.Collect(maps.Values(h.Processes())), In: h.InNetwork,
		Args: append([]string{"--host-uuid", h.HostUUID(), "--host-name", h.HostName()}, o.AgentArgs...),
	})
	if err != nil {
		return nil, fmt.Errorf("%s: %w", h.HostName(), err)
	}
	_, err = a.Run(ctx, "observer", "create", "name-label=score", "enabled=true", "attributes:dtagent.batch.interval=200ms")
	if err == nil {
		err = a.Wait(ctx, time.Minute, "watches xapi and xenopsd", func(s *control.Status) bool {
			found := map[string]bool{}
			for _, t := range s.Targets {
				found[t.Component] = true
			}
			return len(s.Probes) > 0 && found["xapi"] && found["xenopsd"]
		})
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("%s: %w", h.HostName(), err), a.Stop())
	}
	return a, nil
}

// Losses lists what was lost, by cause.
func (r *Result) Losses() string {
	var out []string
	for _, s := range r.Status {
		for _, l := range s.Losses {
			if l.Count > 0 && l.Cause != control.CauseNoStart {
				out = append(out, fmt.Sprintf("%s: %s: %d", l.Probe, l.Cause, l.Count))
			}
		}
		if s.Handover.Dropped > 0 {
			out = append(out, fmt.Sprintf("queue to the engine: %d", s.Handover.Dropped))
		}
	}
	return strings.Join(out, "; ")
}
