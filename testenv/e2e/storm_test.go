package e2e

import (
	"context"
	"flag"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/go-quicktest/qt"

	"github.com/xenserver/dtagent/cmd/dtagent/control"
	"github.com/xenserver/dtagent/observer"
	"github.com/xenserver/dtagent/testenv"
	"github.com/xenserver/dtagent/testenv/client"
)

var stormChanges = flag.Int("storm", 3000, "how many changes of Observers TestObserverStorm makes")

// batchInterval is the steering attribute that says how long a receiver's spans
// may wait: 30 s by default, which is long for a test.
const batchInterval = "dtagent.batch.interval"

// changer is one client of XAPI that changes Observers of its own, so that what
// they are last is known.
type changer struct {
	a    *client.Observers
	url  string
	name string
	refs []string
	last map[string]client.Observer // by reference
}

// change makes the i-th change.
func (c *changer) change(ctx context.Context, i int) error {
	n := i % len(c.refs)
	ref, round := c.refs[n], i/len(c.refs)
	o := c.last[ref]
	var err error
	switch round % 5 {
	case 0:
		o.Enabled = !o.Enabled
		err = c.a.SetEnabled(ctx, ref, o.Enabled)
	case 1:
		o.Attributes = map[string]string{"round": fmt.Sprint(round), "dtagent.sampler": "traceidratio", "dtagent.sampler.arg": "0.5", batchInterval: "1s"}
		err = c.a.SetAttributes(ctx, ref, o.Attributes)
	case 2:
		o.Endpoints = []string{"bugtool", fmt.Sprintf("%s?n=%d", c.url, round%3)}
		err = c.a.SetEndpoints(ctx, ref, o.Endpoints...)
	case 3:
		o.Components = [][]string{{"xapi"}, {"xenopsd"}, nil}[round/5%3]
		err = c.a.SetComponents(ctx, ref, o.Components...)
	case 4:
		if err = c.a.Destroy(ctx, ref); err != nil {
			break
		}
		delete(c.last, ref)
		return c.create(ctx, n, fmt.Sprintf("%s made in round %d", c.name, round))
	}
	c.last[ref] = o
	return err
}

func (c *changer) create(ctx context.Context, n int, name string) (err error) {
	o := client.Observer{Name: name, Endpoints: []string{"bugtool"}, Attributes: map[string]string{batchInterval: "1s"}, Enabled: true}
	if c.refs[n], err = c.a.Create(ctx, o); err == nil {
		c.last[c.refs[n]] = o
	}
	return err
}

// TestObserverStorm has several clients change Observers all the time under
// load: the agent ends with the last state of each, every span is accounted for,
// an Observer that nobody changes misses none, and what the agent holds is no
// more than before.
//
// How fast the changes come is up to the machine; at most 200 a second.
func TestObserverStorm(t *testing.T) {
	const (
		clients = 4
		each    = 2 // Observers of a client
		pause   = 20 * time.Millisecond
	)
	l := newXapiLab(t, testenv.Options{NoTruth: true})
	r := newReceiver(t)
	ctx := context.Background()
	l.connected()
	steady := client.Observer{Name: "steady", Endpoints: []string{"bugtool", r.url()}, Attributes: map[string]string{batchInterval: "1s"}, Enabled: true}
	a := l.admin()
	ref, err := a.Create(ctx, steady)
	qt.Assert(t, qt.IsNil(err))
	l.watching()
	changers := make([]*changer, clients)
	for i := range changers {
		c := &changer{a: l.admin(), url: r.url(), name: fmt.Sprint("storm ", i), refs: make([]string, each), last: map[string]client.Observer{}}
		for n := range each {
			qt.Assert(t, qt.IsNil(c.create(ctx, n, c.name)))
		}
		changers[i] = c
	}
	l.waitLong("has them all", func(s *control.Status) bool { return len(s.Observers) == 1+clients*each })
	l.calls(200) // what the first spans need is there
	qt.Assert(t, qt.IsNil(l.agent.Settled(ctx, time.Minute)))
	before := l.status()

	var changing sync.WaitGroup
	failed := make([]error, clients)
	began := time.Now()
	for i, c := range changers {
		changing.Go(func() {
			for n := 0; n < *stormChanges/clients && failed[i] == nil; n++ {
				failed[i] = c.change(ctx, n)
				time.Sleep(pause) // for the sake of the others, not of the result
			}
		})
	}
	over := make(chan struct{})
	go func() { changing.Wait(); close(over) }()
	calls, most := 200, before.Process.RSSBytes
	for going := true; going; {
		l.calls(10)
		calls += 10
		most = max(most, l.status().Process.RSSBytes)
		select {
		case <-over:
			going = false
		case <-time.After(200 * time.Millisecond):
		}
	}
	took := time.Since(began)
	for _, err := range failed {
		qt.Assert(t, qt.IsNil(err))
	}

	// The last state of each, as the database and the agent have it.
	want := map[string]client.Observer{ref: steady}
	for _, c := range changers {
		maps.Copy(want, c.last)
	}
	records, err := a.All(ctx)
	qt.Assert(t, qt.IsNil(err))
	qt.Assert(t, qt.HasLen(records, len(want)))
	inForce := func(s *control.Status) bool {
		if len(s.Observers) != len(want) {
			return false
		}
		for ref, w := range want {
			i := slices.IndexFunc(s.Observers, func(o observer.ObserverStats) bool { return o.UUID == records[ref].UUID })
			if i < 0 || !isNow(s.Observers[i], w) {
				return false
			}
		}
		return true
	}
	ended := time.Now()
	l.waitLong("has the last state", inForce)
	t.Logf("%d changes in %v; the last state was in force %v after the last", *stormChanges/clients*clients, took.Round(time.Millisecond), time.Since(ended).Round(time.Millisecond))
	for ref, w := range want {
		qt.Check(t, qt.Equals(records[ref].Name, w.Name))
		qt.Check(t, qt.Equals(records[ref].Enabled, w.Enabled))
		qt.Check(t, qt.DeepEquals(slices.Sorted(slices.Values(records[ref].Endpoints)), slices.Sorted(slices.Values(w.Endpoints))))
	}

	// Every span is accounted for. Only an endpoint that was given up can have
	// dropped any: there is a bound to how many of those may linger.
	l.waitLong("has sent everything", func(s *control.Status) bool { return s.Totals.Queued == 0 })
	qt.Assert(t, qt.IsNil(l.agent.Settled(ctx, time.Minute)))
	c := l.exact()
	for cause, n := range c.DroppedByCause() {
		qt.Check(t, qt.IsTrue(n == 0 || cause == "unsent"), qt.Commentf("%d spans dropped: %s", n, cause))
	}
	after := l.status()
	for _, o := range after.Observers {
		for _, e := range o.Endpoints {
			qt.Check(t, qt.Equals(e.Lost(), 0), qt.Commentf("%s of %s", e.Endpoint, o.NameLabel))
		}
	}

	// The steady Observer saw every call, and what is in its files (the oldest may
	// have been trimmed: so much is written) its receiver has, too.
	got, missing, seen := r.received(), 0, r.spansOf("steady", "VM.get_by_name_label")
	for _, sp := range l.spans() {
		if sp.Tags["xs.observer.name"] == "steady" && got[sp.ID] == 0 {
			missing++
		}
	}
	qt.Check(t, qt.Equals(missing, 0))
	qt.Check(t, qt.IsTrue(seen >= calls), qt.Commentf("%d of %d calls", seen, calls))

	// What the storm made has gone. The goroutines of connections to a receiver
	// stay for a while.
	l.waitLong("has given up what served the changes", func(s *control.Status) bool {
		return s.Process.Goroutines <= before.Process.Goroutines+20
	})
	t.Logf("XAPI source: %d events, %d times applied; %d calls, %d spans for all Observers, %d lost", after.XAPI.Events, after.XAPI.Applied, calls, c.Produced, c.Lost())
	t.Logf("%.1f MiB resident before, %.1f at most, %.1f after; %d goroutines before, %d after; %.1f s CPU", float64(before.Process.RSSBytes)/(1<<20), float64(most)/(1<<20),
		float64(after.Process.RSSBytes)/(1<<20), before.Process.Goroutines, after.Process.Goroutines, after.Process.CPUSeconds-before.Process.CPUSeconds)
}

// isNow tells whether the agent has an Observer as it was made.
func isNow(is observer.ObserverStats, want client.Observer) bool {
	if is.NameLabel != want.Name || is.Enabled != want.Enabled || is.Components != strings.Join(want.Components, ",") && len(want.Components) > 0 {
		return false
	}
	if !want.Enabled {
		return true // nothing is sent
	}
	var to []string
	for _, e := range is.Endpoints {
		to = append(to, e.Endpoint)
	}
	return slices.Equal(slices.Sorted(slices.Values(to)), slices.Sorted(slices.Values(want.Endpoints)))
}
