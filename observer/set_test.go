package observer

import (
	"bufio"
	"compress/gzip"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/go-quicktest/qt"
	"github.com/xenserver/dtagent/correlate"
	"github.com/xenserver/dtagent/observer/export"
	"github.com/xenserver/dtagent/observer/processor"
	"github.com/xenserver/dtagent/probes/event"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/trace"
)

const (
	uuidA = "aaaaaaaa-0000-4000-8000-000000000001"
	uuidB = "bbbbbbbb-0000-4000-8000-000000000002"
	hostA = "6f1b3a0c-1111-4222-8333-444455556666"
)

var thisHost = Host{UUID: hostA, Name: "h1", PoolUUID: "p1"}

func span(c event.Component, name string) *correlate.Span {
	return &correlate.Span{TraceID: trace.TraceID{1}, SpanID: trace.SpanID{2}, Component: c, Service: c.String(), Name: name, Start: 1e18, End: 1e18 + 5000,
		Link: correlate.LinkThread, Attributes: []attribute.KeyValue{attribute.String("rpc.method", name)}}
}

func enabled(id string, endpoints ...string) Observer {
	return Observer{UUID: id, NameLabel: "o-" + id[:1], Endpoints: endpoints, Enabled: true}
}

// fast are limits under which tests need no long waits. An exporter that has not
// ended is not taken to hang because this machine is busy.
var fast = Limits{FlushEvery: 5 * time.Millisecond, BatchSpans: 16, BackoffMin: time.Millisecond, BackoffMax: 5 * time.Millisecond, DrainTimeout: 10 * time.Second, CloseGrace: time.Minute, Linger: -1}

// memory is an exporter that keeps what it gets, or fails as it is told.
type memory struct {
	endpoint string
	export   func(ctx context.Context, batch []*Record) error // nil: succeed

	mu     sync.Mutex
	names  []string
	tags   []map[string]string
	closed int
}

func (m *memory) Export(ctx context.Context, batch []*Record) error {
	if m.export != nil {
		if err := m.export(ctx, batch); err != nil {
			return err
		}
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, r := range batch {
		m.names = append(m.names, r.Span.Name)
		if len(m.tags) >= 100 {
			continue
		}
		tags := map[string]string{}
		for _, kv := range r.AppendTags(nil) {
			tags[string(kv.Key)] = kv.Value.String()
		}
		m.tags = append(m.tags, tags)
	}
	return nil
}

func (m *memory) Close() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.closed++
	return nil
}

func (m *memory) got() []string {
	m.mu.Lock()
	defer m.mu.Unlock()
	return slices.Clone(m.names)
}

type ledger = export.Ledger

// bench is a Set whose exporters are memories.
type bench struct {
	*Set
	mu   sync.Mutex
	made []*memory
}

func newBench(l Limits, wanted func(Wanted), export func(endpoint string) func(context.Context, []*Record) error) *bench {
	b := &bench{}
	b.Set = NewSet(Options{Host: thisHost, Limits: l, NoTrim: true, OnWanted: wanted, NewExporter: func(_ Observer, endpoint string, _ *ledger) (Exporter, error) {
		if strings.Contains(endpoint, "broken") {
			return nil, errors.New("no such thing")
		}
		m := &memory{endpoint: endpoint}
		if export != nil {
			m.export = export(endpoint)
		}
		b.mu.Lock()
		defer b.mu.Unlock()
		b.made = append(b.made, m)
		return m, nil
	}})
	return b
}

func eventually(t *testing.T, what string, f func() bool) {
	t.Helper()
	for end := time.Now().Add(2 * time.Minute); !f(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("not within 2 min: %s", what)
		}
	}
}

func exact(t *testing.T, c Counters) {
	t.Helper()
	if c.Produced != c.Sent+c.Lost()+c.Queued {
		t.Fatalf("%d produced, but %d sent + %d dropped + %d queued", c.Produced, c.Sent, c.Lost(), c.Queued)
	}
}

func closeSet(t *testing.T, s *Set) Counters {
	t.Helper()
	_ = s.Close(context.Background())
	c := s.Totals()
	exact(t, c)
	qt.Assert(t, qt.Equals(c.Queued, 0))
	return c
}

func TestSetRoutes(t *testing.T) {
	var wanted []string
	b := newBench(fast, func(w Wanted) { wanted = append(wanted, w.Components.String()) }, nil)
	a, o := enabled(uuidA, "e1", "e2", "e1"), enabled(uuidB, "e1")
	a.Components = []string{"xapi"}
	a.Attributes = map[string]string{"custom.k": "v", "service.name": "mine", "dtagent.sampler": "ratio", "xs.host.name": "other"}
	o.Components = []string{"xapi", "xenopsd"}
	off, far := enabled("cccccccc-0000-4000-8000-000000000003", "e9"), enabled("dddddddd-0000-4000-8000-000000000004", "e9")
	off.Enabled = false
	far.Hosts = []string{uuidA}
	b.Apply([]Observer{a, o, off, far})
	b.Apply([]Observer{a, o, off, far})
	qt.Assert(t, qt.DeepEquals(wanted, []string{"xapi,xenopsd"}))
	qt.Assert(t, qt.HasLen(b.made, 3)) // e1 and e2 of A, e1 of B
	b.Export(span(event.Xapi, "VM.start"))
	b.Export(span(event.Xenopsd, "VM_start"))
	b.Export(span(event.SMAPI, "SR.scan"))
	c := closeSet(t, b.Set)
	qt.Assert(t, qt.Equals(c.Sent, 4))
	qt.Check(t, qt.DeepEquals(b.made[0].names, []string{"VM.start"}))
	qt.Check(t, qt.DeepEquals(b.made[1].names, []string{"VM.start"}))
	qt.Check(t, qt.DeepEquals(b.made[2].names, []string{"VM.start", "VM_start"}))
	qt.Check(t, qt.DeepEquals(b.made[0].tags[0], map[string]string{"xs.pool.uuid": "p1", "xs.host.name": "other", "xs.host.uuid": hostA,
		"xs.observer.name": "o-a", "xs.observer.uuid": uuidA, "service.name": "mine", "otel.scope.name": "dtagent", "custom.k": "v",
		"rpc.method": "VM.start", "dt.link.method": "thread"}))
	qt.Check(t, qt.Equals(b.made[2].tags[1]["service.name"], "xenopsd"))
	qt.Check(t, qt.Equals(b.made[2].tags[1]["xs.observer.name"], "o-b"))
	for _, m := range b.made {
		qt.Check(t, qt.Equals(m.closed, 1))
	}
	b.Export(span(event.Xapi, "late"))
	qt.Check(t, qt.Equals(b.Totals().Produced, 4))
	qt.Check(t, qt.IsNil(b.Close(context.Background())))
}

func TestSetWanted(t *testing.T) {
	var wanted []string
	b := newBench(fast, func(w Wanted) { wanted = append(wanted, w.Components.String()) }, nil)
	defer closeSet(t, b.Set)
	a, o := enabled(uuidA, "e"), enabled(uuidB, "e")
	a.Components, o.Components = []string{"xapi"}, []string{"xapi"}
	b.Apply(nil) // still nothing
	b.Apply([]Observer{a})
	b.Apply([]Observer{a, o})
	b.Apply([]Observer{o})
	o.Hosts = []string{hostA}
	b.Apply([]Observer{o})
	o.Components = nil
	b.Apply([]Observer{o})
	o.Hosts = []string{uuidB} // not here
	b.Apply([]Observer{o})
	qt.Assert(t, qt.DeepEquals(wanted, []string{"xapi", event.DefaultComponents().String(), ""}))
}

// TestSetWaits: the probe tells what the one asks for that asks for most, and
// each Observer gets what it asked for itself.
func TestSetWaits(t *testing.T) {
	var wanted []string
	b := newBench(fast, func(w Wanted) {
		wanted = append(wanted, fmt.Sprintf("%s %v %s", w.Components, w.Waits, w.WaitThreshold))
	}, nil)
	with := func(id string, settings ...string) Observer {
		o := steeredObserver(id, "http://"+id[:1], settings...)
		o.Components = []string{"xapi"}
		return o
	}
	const uuidC = "cccccccc-0000-4000-8000-000000000003"
	slow, fine, none := with(uuidA, "wait_threshold=10ms"), with(uuidB, "wait_threshold=200us"), with(uuidC, "waits=false", "wait_threshold=100us")
	b.Apply([]Observer{none})
	b.Apply([]Observer{none, slow})
	b.Apply([]Observer{none, slow, fine})
	qt.Check(t, qt.Equals(b.Wanted(), Wanted{Components: event.Of(event.Xapi), Waits: true, WaitThreshold: 200 * time.Microsecond}))
	for _, d := range []time.Duration{100 * time.Microsecond, 200 * time.Microsecond, 9 * time.Millisecond, 10 * time.Millisecond} {
		sp := span(event.Xapi, "lock "+d.String())
		sp.Wait, sp.End = event.Lock, sp.Start+int64(d)
		b.Export(sp)
	}
	b.Export(span(event.Xapi, "VM.start"))
	qt.Check(t, qt.Equals(b.processed(t, uuidA).Filtered[processor.UnwantedWait], 3))
	qt.Check(t, qt.Equals(b.processed(t, uuidB).Filtered[processor.UnwantedWait], 1))
	qt.Check(t, qt.Equals(b.processed(t, uuidC).Filtered[processor.UnwantedWait], 4))
	delete(fine.Attributes, "dtagent.wait_threshold")
	b.Apply([]Observer{none, slow, fine})
	b.Apply([]Observer{slow})
	b.Apply([]Observer{none})
	b.Apply(nil)
	qt.Check(t, qt.DeepEquals(wanted, []string{
		"xapi false 0s", "xapi true 10ms", "xapi true 200µs", "xapi true 1ms", "xapi true 10ms", "xapi false 0s", " false 0s",
	}))
	closeSet(t, b.Set)
	qt.Check(t, qt.DeepEquals(b.got("http://a"), []string{"lock 10ms", "VM.start"}))
	qt.Check(t, qt.DeepEquals(b.got("http://b"), []string{"lock 200µs", "lock 9ms", "lock 10ms", "VM.start"}))
	qt.Check(t, qt.DeepEquals(b.got("http://c"), []string{"VM.start"}))
}

// TestSetChange: what an Observer keeps goes on; its attributes change from the
// next span on; what it gives up is flushed first.
func TestSetChange(t *testing.T) {
	l := fast
	l.FlushEvery = time.Hour
	b := newBench(l, nil, nil)
	a := enabled(uuidA, "keep", "drop")
	a.Attributes = map[string]string{"k0": "1"}
	b.Apply([]Observer{a})
	b.Export(span(event.Xapi, "one"))
	a.Attributes = map[string]string{"k0": "2"}
	a.Endpoints = []string{"keep"}
	b.Apply([]Observer{a})
	b.Export(span(event.Xapi, "two"))
	eventually(t, "the flush", func() bool { return slices.Equal(b.made[1].got(), []string{"one"}) })
	qt.Assert(t, qt.HasLen(b.made[0].got(), 0)) // still waiting for more: not disturbed
	a.Enabled = false
	b.Apply([]Observer{a})
	eventually(t, "the flush", func() bool { return slices.Equal(b.made[0].got(), []string{"one", "two"}) })
	qt.Assert(t, qt.HasLen(b.made, 2))
	qt.Assert(t, qt.Equals(b.made[0].tags[0]["k0"], "1"))
	qt.Assert(t, qt.Equals(b.made[0].tags[1]["k0"], "2"))
	eventually(t, "the end", func() bool { b.Stats(); return b.Totals().Sent == 3 && len(b.leavingNow()) == 0 })
	a.Enabled = true
	b.Apply([]Observer{a})
	b.Export(span(event.Xapi, "three"))
	qt.Assert(t, qt.Equals(closeSet(t, b.Set).Sent, 4))
	qt.Assert(t, qt.HasLen(b.made, 3))
}

func (s *Set) leavingNow() []*pipe {
	s.apply.Lock()
	defer s.apply.Unlock()
	return slices.Clone(s.leaving)
}

// TestSetLinger: spans that had ended before a change, but come after it, go
// where they belonged; each once; later ones do not.
func TestSetLinger(t *testing.T) {
	l := fast
	l.Linger = 300 * time.Millisecond
	b := newBench(l, nil, nil)
	ended := func(c event.Component, name string, at time.Time) *correlate.Span {
		s := span(c, name)
		s.Start, s.End = at.UnixNano()-1000, at.UnixNano()
		return s
	}
	a := enabled(uuidA, "one", "two")
	a.Attributes = map[string]string{"k0": "old"}
	b.Apply([]Observer{a})
	before := time.Now()
	a.Components, a.Endpoints, a.Attributes = []string{"xapi"}, []string{"one"}, map[string]string{"k0": "new"}
	b.Apply([]Observer{a}) // endpoint two is gone, and xenopsd for one
	b.Export(ended(event.Xapi, "xapi before", before))
	b.Export(ended(event.Xenopsd, "xenopsd before", before))
	b.Export(ended(event.Xapi, "xapi after", time.Now()))
	b.Export(ended(event.Xenopsd, "xenopsd after", time.Now()))
	for range 5 { // off and on, with a span each time that ended while it was on
		b.Apply(nil)
		b.Export(ended(event.Xapi, "off", time.Now()))
		b.Export(ended(event.Xapi, "late", before))
		b.Apply([]Observer{a})
		b.Export(ended(event.Xapi, "on", before))
	}
	b.Apply(nil)
	eventually(t, "the end", func() bool { b.Stats(); return len(b.leavingNow()) == 0 })
	b.Export(ended(event.Xapi, "too late", before))
	c := closeSet(t, b.Set)
	want := []string{"xapi before", "xenopsd before", "xapi after"}
	for range 5 {
		want = append(want, "late", "on")
	}
	qt.Check(t, qt.DeepEquals(b.made[0].names, want))
	var two []string
	for _, n := range b.made[1].names {
		if n != "late" { // had ended while endpoint two was named
			two = append(two, n)
		}
	}
	qt.Check(t, qt.DeepEquals(two, []string{"xapi before", "xenopsd before", "on", "on", "on", "on", "on"}))
	qt.Check(t, qt.HasLen(b.made, 2))
	qt.Check(t, qt.Equals(b.made[0].tags[0]["k0"], "new")) // handed on after the change
	qt.Check(t, qt.Equals(c.Lost(), 0))
}

// TestSetResume: an endpoint that comes back while it drains goes on.
func TestSetResume(t *testing.T) {
	var up atomic.Bool
	b := newBench(fast, nil, func(string) func(context.Context, []*Record) error {
		return func(context.Context, []*Record) error {
			if !up.Load() {
				return &export.Failure{Err: errors.New("down"), Retry: true}
			}
			return nil
		}
	})
	a := enabled(uuidA, "e")
	for i := range 10 {
		b.Apply([]Observer{a})
		b.Export(span(event.Xapi, fmt.Sprint(i)))
		b.Apply(nil)
		if i == 5 {
			st := b.Stats()
			qt.Assert(t, qt.HasLen(st, 1))
			qt.Assert(t, qt.Equals(st[0].Endpoints[0].State, "draining"))
			qt.Assert(t, qt.Equals(st[0].Endpoints[0].Queued, 6))
		}
	}
	b.Apply([]Observer{a})
	up.Store(true)
	c := closeSet(t, b.Set)
	qt.Assert(t, qt.Equals(c.Sent, 10))
	qt.Assert(t, qt.HasLen(b.made, 1))
	qt.Assert(t, qt.DeepEquals(b.made[0].names, []string{"0", "1", "2", "3", "4", "5", "6", "7", "8", "9"}))
}

// TestSetOrder: a batch that is tried again keeps its place.
func TestSetOrder(t *testing.T) {
	fails := 3
	b := newBench(fast, nil, func(string) func(context.Context, []*Record) error {
		return func(context.Context, []*Record) error {
			if fails--; fails >= 0 {
				return &export.Failure{Err: errors.New("down"), Retry: true}
			}
			return nil
		}
	})
	b.Apply([]Observer{enabled(uuidA, "e")})
	var want []string
	for i := range 200 {
		b.Export(span(event.Xapi, fmt.Sprint(i)))
		want = append(want, fmt.Sprint(i))
	}
	closeSet(t, b.Set)
	qt.Assert(t, qt.DeepEquals(b.made[0].names, want))
}

// TestSetDeadEndpoint: one that hangs and one that refuses hold up neither the
// caller nor a third, which would wait for an hour; the oldest spans go when the queue
// is full.
func TestSetDeadEndpoint(t *testing.T) {
	l := fast
	l.ExportTimeout, l.DrainTimeout = time.Hour, time.Hour
	l.QueueSpans = 100
	b := newBench(l, nil, func(e string) func(context.Context, []*Record) error {
		return func(ctx context.Context, batch []*Record) error {
			switch e {
			case "hangs":
				<-ctx.Done()
				return &export.Failure{Err: ctx.Err(), Retry: true}
			case "down":
				return &export.Failure{Err: errors.New("refused"), Retry: true}
			case "picky":
				return &export.Failure{Err: errors.New("400"), Cause: export.Rejected, Lost: len(batch)}
			}
			return nil
		}
	})
	b.Apply([]Observer{enabled(uuidA, "hangs", "down", "good", "picky", "broken")})
	for i := range 1000 {
		b.Export(span(event.Xapi, fmt.Sprint(i)))
		if i%50 == 49 { // its queue holds 100
			eventually(t, "the good endpoint", func() bool { return len(b.made[2].got()) == i+1 })
		}
	}
	st := b.Stats()[0]
	for _, e := range st.Endpoints {
		exact(t, e.Counters)
	}
	qt.Check(t, qt.Equals(st.Endpoints[0].Queued, 100))
	qt.Check(t, qt.Equals(st.Endpoints[0].Dropped[export.QueueFull], 900))
	qt.Check(t, qt.Equals(st.Endpoints[1].State, "failing"))
	qt.Check(t, qt.Equals(st.Endpoints[1].LastError, "refused"))
	qt.Check(t, qt.Equals(st.Endpoints[2].State, "ok"))
	eventually(t, "the refusal", func() bool {
		e := b.Stats()[0].Endpoints
		return e[3].Lost() == 1000 && e[3].Dropped[export.Rejected] > 0 && e[4].Lost() == 1000 && e[4].Dropped[export.Unusable] > 0
	})

	ctx, cancel := context.WithTimeout(context.Background(), 100*time.Millisecond)
	defer cancel()
	err := b.Close(ctx)
	qt.Assert(t, qt.ErrorMatches(err, `(?s).*endpoint (hangs|down): 100 spans not delivered.*endpoint (hangs|down): 100 spans not delivered.*`))
	c := b.Totals()
	exact(t, c)
	qt.Assert(t, qt.Equals(c.Queued, 0))
	qt.Assert(t, qt.Equals(c.Produced, 5000))
	qt.Assert(t, qt.Equals(c.Dropped[export.Unsent], 200))
}

// TestQueueBytes: large spans are bounded by their size.
func TestQueueBytes(t *testing.T) {
	l := fast
	l.QueueBytes = 1 << 20
	b := newBench(l, nil, func(string) func(context.Context, []*Record) error {
		return func(context.Context, []*Record) error { return &export.Failure{Err: errors.New("down"), Retry: true} }
	})
	b.Apply([]Observer{enabled(uuidA, "down")})
	for range 100 {
		s := span(event.Xapi, "big")
		s.Attributes = append(s.Attributes, attribute.String("v", strings.Repeat("x", 64<<10)))
		b.Export(s)
	}
	st := b.Stats()[0].Endpoints[0]
	exact(t, st.Counters)
	qt.Assert(t, qt.Equals(st.Queued, 15))
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	_ = b.Close(ctx)
	qt.Assert(t, qt.Equals(b.Totals().Lost(), 100))
}

// TestAccounting: under random failures, changes and load every span is
// accounted for at every moment, and what exporters took equals what is counted
// as sent.
func TestAccounting(t *testing.T) {
	for seed := range uint64(8) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			rng := rand.New(rand.NewPCG(seed, 1))
			var took, lost atomic.Int64
			l := fast
			l.QueueSpans, l.BatchSpans = 50+rng.IntN(200), 1+rng.IntN(40)
			l.DrainTimeout = time.Duration(1+rng.IntN(30)) * time.Millisecond
			l.Linger = time.Duration(rng.IntN(20)-5) * time.Millisecond
			l.ExportTimeout = 10 * time.Millisecond
			b := newBench(l, nil, func(string) func(context.Context, []*Record) error {
				rng := rand.New(rand.NewPCG(seed, rng.Uint64()))
				return func(ctx context.Context, batch []*Record) error {
					switch rng.IntN(6) {
					case 0:
						return &export.Failure{Err: errors.New("down"), Retry: true, After: time.Duration(rng.IntN(3)) * time.Millisecond}
					case 1:
						<-ctx.Done()
						return &export.Failure{Err: ctx.Err(), Retry: true}
					case 2:
						n := rng.IntN(len(batch) + 1)
						lost.Add(int64(n))
						took.Add(int64(len(batch) - n))
						return &export.Failure{Err: errors.New("part"), Cause: export.DiskFull, Lost: n}
					case 3:
						lost.Add(int64(len(batch)))
						return errors.New("of no type")
					}
					took.Add(int64(len(batch)))
					return nil
				}
			})
			stop := make(chan struct{})
			var wg sync.WaitGroup
			wg.Go(func() {
				for {
					select {
					case <-stop:
						return
					default:
						exact(t, b.Totals())
						for _, o := range b.Stats() {
							for _, e := range o.Endpoints {
								exact(t, e.Counters)
							}
						}
						time.Sleep(200 * time.Microsecond)
					}
				}
			})
			for i := range 3000 {
				b.Export(span(event.Xapi, fmt.Sprint(i)))
				if i%100 == 0 {
					var obs []Observer
					for k := range rng.IntN(4) {
						o := enabled(fmt.Sprintf("%08d-0000-4000-8000-000000000001", k), []string{"x", "y", "z"}[:1+rng.IntN(3)]...)
						o.Enabled = rng.IntN(4) > 0
						obs = append(obs, o)
					}
					b.Apply(obs)
					time.Sleep(time.Millisecond)
				}
			}
			close(stop)
			wg.Wait()
			c := closeSet(t, b.Set)
			qt.Check(t, qt.Equals(int64(c.Sent), took.Load()))
			qt.Check(t, qt.Equals(int64(c.Dropped[export.DiskFull]+c.Dropped[export.WriteError]), lost.Load()))
			for _, m := range b.made {
				qt.Check(t, qt.Equals(m.closed, 1))
			}
			t.Logf("produced %d, sent %d, dropped %v", c.Produced, c.Sent, c.DroppedByCause())
		})
	}
}

// TestApplyStorm: 200 changes under load lose no span of an Observer that is
// there all the time, and leave no goroutine behind.
func TestApplyStorm(t *testing.T) {
	before := runtime.NumGoroutine()
	var wanted atomic.Uint64
	b := newBench(fast, func(w Wanted) { wanted.Store(uint64(w.Components)) }, nil)
	const n = 5000
	done := make(chan struct{})
	b.Apply([]Observer{enabled(uuidA, "stays")})
	go func() {
		defer close(done)
		for i := range n {
			b.Export(span(event.Xapi, fmt.Sprint(i)))
			if i%100 == 0 {
				time.Sleep(100 * time.Microsecond)
			}
		}
	}()
	for i := range 200 {
		stays := enabled(uuidA, "stays")
		stays.Attributes = map[string]string{"round": fmt.Sprint(i)}
		obs := []Observer{stays}
		for k := range i % 50 {
			o := enabled(fmt.Sprintf("%08d-0000-4000-8000-00000000%04d", k, i%7), "e", fmt.Sprintf("e%d", i%3))
			o.Enabled = (i+k)%3 != 0
			obs = append(obs, o)
		}
		b.Apply(obs)
	}
	<-done
	qt.Check(t, qt.Equals(event.Components(wanted.Load()), event.DefaultComponents()))
	eventually(t, "the drains to end", func() bool { b.Stats(); return len(b.leavingNow()) <= maxLeaving })
	c := closeSet(t, b.Set)
	qt.Check(t, qt.Equals(c.Dropped[export.QueueFull], 0))
	qt.Check(t, qt.HasLen(b.made[0].names, n))
	for i, name := range b.made[0].names {
		if name != fmt.Sprint(i) {
			t.Fatalf("span %d is %s", i, name)
		}
	}
	eventually(t, "all goroutines to end", func() bool { return runtime.NumGoroutine() <= before })
}

// TestSetForReal writes files and posts to receivers, one of them dead, for two
// Observers.
func TestSetForReal(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "dt", "zipkinv2", "json")
	var mu sync.Mutex
	posted := map[string]map[string]int{}
	handler := func(w http.ResponseWriter, r *http.Request) {
		var spans []struct{ Tags map[string]string }
		body, err := gzip.NewReader(r.Body)
		if err == nil {
			err = json.NewDecoder(body).Decode(&spans)
		}
		if err != nil {
			t.Error(err)
		}
		mu.Lock()
		defer mu.Unlock()
		if posted[r.URL.Path] == nil {
			posted[r.URL.Path] = map[string]int{}
		}
		for _, s := range spans {
			posted[r.URL.Path][s.Tags["xs.observer.name"]]++
		}
		w.WriteHeader(202)
	}
	good := httptest.NewServer(http.HandlerFunc(handler))
	defer good.Close()
	dead := httptest.NewServer(http.HandlerFunc(handler))
	dead.Close()

	l := fast
	l.BatchSpans = 100
	s := NewSet(Options{Host: thisHost, BugtoolDir: dir, Limits: l})
	a, o := enabled(uuidA, "bugtool", good.URL+"/a", dead.URL), enabled(uuidB, "bugtool", good.URL+"/b", good.URL+"/a")
	o.Components = []string{"xenopsd"}
	a.Attributes = map[string]string{"dtagent.batch.interval": "100ms"}
	o.Attributes = a.Attributes
	s.Apply([]Observer{a, o})
	for i := range 500 {
		s.Export(span(event.Xapi, fmt.Sprint("xapi", i)))
		s.Export(span(event.Xenopsd, fmt.Sprint("xenopsd", i)))
	}
	eventually(t, "the good endpoints", func() bool { return s.Totals().Sent == 3500 })
	ctx, cancel := context.WithTimeout(context.Background(), 100*time.Millisecond)
	defer cancel()
	err := s.Close(ctx)
	qt.Check(t, qt.ErrorMatches(err, `.*1000 spans not delivered: .*connection refused`))
	qt.Check(t, qt.DeepEquals(posted, map[string]map[string]int{"/a": {"o-a": 1000, "o-b": 500}, "/b": {"o-b": 500}}))
	c := s.Totals()
	exact(t, c)
	qt.Check(t, qt.Equals(c.Produced, 1000*3+500*3))
	qt.Check(t, qt.Equals(c.Sent, 3500))

	inFiles := map[string]int{}
	files, err := filepath.Glob(dir + "/*")
	qt.Assert(t, qt.IsNil(err))
	qt.Check(t, qt.HasLen(files, 3)) // xapi and xenopsd of A, xenopsd of B
	for _, f := range files {
		fd, err := os.Open(f)
		qt.Assert(t, qt.IsNil(err))
		for sc := bufio.NewScanner(fd); sc.Scan(); {
			var spans []struct {
				Tags          map[string]string
				LocalEndpoint struct{ ServiceName string }
			}
			qt.Assert(t, qt.IsNil(json.Unmarshal(sc.Bytes(), &spans)))
			for _, sp := range spans {
				inFiles[sp.Tags["xs.observer.name"]+" "+sp.LocalEndpoint.ServiceName]++
				qt.Assert(t, qt.IsTrue(strings.HasPrefix(filepath.Base(f), sp.LocalEndpoint.ServiceName+"-"+hostA+"-")))
			}
		}
		fd.Close()
	}
	qt.Check(t, qt.DeepEquals(inFiles, map[string]int{"o-a xapi": 500, "o-a xenopsd": 500, "o-b xenopsd": 500}))
}

// TestSetTrims: while an Observer writes files, and only then, the tree is
// trimmed.
func TestSetTrims(t *testing.T) {
	root := t.TempDir()
	dir := filepath.Join(root, "zipkinv2", "json")
	old := filepath.Join(root, "other", "old file")
	put := func() {
		t.Helper()
		qt.Assert(t, qt.IsNil(os.MkdirAll(filepath.Dir(old), 0o700)))
		qt.Assert(t, qt.IsNil(os.WriteFile(old, []byte("x"), 0o600)))
		qt.Assert(t, qt.IsNil(os.Chtimes(old, time.Time{}, time.Now().Add(-40*24*time.Hour))))
	}
	gone := func() bool { _, err := os.Stat(old); return errors.Is(err, os.ErrNotExist) }
	s := NewSet(Options{Host: thisHost, BugtoolDir: dir, Limits: fast})
	put()
	s.Apply([]Observer{enabled(uuidA, "http://127.0.0.1:1/")})
	time.Sleep(50 * time.Millisecond)
	qt.Assert(t, qt.IsFalse(gone()))
	s.Apply([]Observer{enabled(uuidA, "bugtool")})
	eventually(t, "the first trimming", gone)
	put()
	s.trim.rotated(trimBytes - 1)
	time.Sleep(50 * time.Millisecond)
	qt.Assert(t, qt.IsFalse(gone()))
	s.trim.rotated(1)
	eventually(t, "the trimming after much was written", gone)
	qt.Assert(t, qt.IsNil(s.Close(context.Background())))
}

func TestTrimRoot(t *testing.T) {
	for in, want := range map[string]string{"/var/log/dt/zipkinv2/json": "/var/log/dt", "/var/log/dt/zipkinv2/json/": "/var/log/dt",
		"/data/traces": "/data/traces", "/zipkinv2/json": "/zipkinv2/json"} {
		qt.Check(t, qt.Equals(trimRoot(in), want))
	}
}

func TestStatsJSON(t *testing.T) {
	at := time.Now().UTC().Round(0)
	in := EndpointStats{Endpoint: "bugtool", State: "ok", Counters: Counters{Produced: 5, Sent: 3, Queued: 1}, LastError: "x", LastErrorTime: &at}
	in.Dropped[export.DiskFull] = 1
	data, err := json.Marshal(in)
	qt.Assert(t, qt.IsNil(err))
	qt.Assert(t, qt.StringContains(string(data), `"produced":5,"sent":3,"queued":1,"dropped":{"disk_full":1}`))
	var out EndpointStats
	qt.Assert(t, qt.IsNil(json.Unmarshal(data, &out)))
	qt.Assert(t, qt.DeepEquals(out, in))
}

func BenchmarkExport(b *testing.B) {
	for _, n := range []int{0, 1, 10} {
		b.Run(fmt.Sprintf("%d_observers", n), func(b *testing.B) {
			s := NewSet(Options{NoTrim: true, NewExporter: func(Observer, string, *export.Ledger) (Exporter, error) { return discard{}, nil }})
			var obs []Observer
			for i := range n {
				obs = append(obs, enabled(fmt.Sprintf("%08d-0000-4000-8000-000000000001", i), "e"))
			}
			s.Apply(obs)
			sp := span(event.Xapi, "VM.start")
			for i := range 15 {
				sp.Attributes = append(sp.Attributes, attribute.String(fmt.Sprintf("key.number.%d", i), "some value"))
			}
			for range 20_000 {
				s.Export(sp)
			}
			b.ReportAllocs()
			for b.Loop() {
				s.Export(sp)
			}
			b.StopTimer()
			_ = s.Close(context.Background())
		})
	}
}

type discard struct{}

func (discard) Export(context.Context, []*Record) error { return nil }
func (discard) Close() error                            { return nil }
