package observer

import (
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
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
	"github.com/xenserver/dtagent/observer/export"
	"github.com/xenserver/dtagent/observer/metrics"
	"github.com/xenserver/dtagent/observer/remote"
	"github.com/xenserver/dtagent/probes/event"
)

// disk is what holders find again: by sink how many records, and who has it.
type disk struct {
	mu   sync.Mutex
	left map[string]int
	used map[string]bool
}

func (d *disk) open(sink string) (int, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.used[sink] {
		return 0, fmt.Errorf("%s: %w", sink, remote.ErrInUse)
	}
	d.used[sink] = true
	n := d.left[sink]
	d.left[sink] = 0
	return n, nil
}

func (d *disk) close(sink string, n int) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.used[sink], d.left[sink] = false, n
}

func (d *disk) total() (n int) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, k := range d.left {
		n += k
	}
	return n
}

// gate keeps who comes by while it is shut. It begins open.
type gate struct{ shut atomic.Pointer[chan struct{}] }

func (g *gate) close() (open func()) {
	ch := make(chan struct{})
	g.shut.Store(&ch)
	return func() { g.shut.Store(nil); close(ch) }
}

func (g *gate) pass() {
	if ch := g.shut.Load(); ch != nil {
		<-*ch
	}
}

// moody is a Holder of random behaviour: its receiver is down or slow by turns,
// it refuses batches, and its Close takes a while. None of its calls ends while
// the gate is shut.
type moody struct {
	d    *disk
	sink string
	l    *ledger
	took *atomic.Int64 // that the receiver has
	gate *gate

	mu     sync.Mutex
	rng    *rand.Rand
	n      int
	closed bool
}

func (m *moody) roll(n int) int {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.rng.IntN(n)
}

func (m *moody) Export(ctx context.Context, batch []*Record) error {
	defer m.gate.pass()
	switch m.roll(8) {
	case 0:
		return &export.Failure{Err: errors.New("busy"), Retry: true}
	case 1:
		<-ctx.Done()
		return &export.Failure{Err: ctx.Err(), Retry: true}
	case 2:
		return &export.Failure{Err: errors.New("part"), Cause: export.DiskFull, Lost: len(batch)} // of a Holder: all or nothing
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.closed {
		panic("Export after Close")
	}
	m.n += len(batch)
	return nil
}

func (m *moody) Holding() int {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.n
}

// Flush sends bit by bit, sometimes not at all.
func (m *moody) Flush(ctx context.Context) {
	defer m.gate.pass()
	down := m.roll(3) == 0
	for ctx.Err() == nil {
		m.mu.Lock()
		if k := min(m.n, 1+m.rng.IntN(20)); !down {
			if m.closed {
				panic("Flush after Close")
			}
			m.n -= k
			m.took.Add(int64(k))
			m.l.Sent(k)
		}
		n := m.n
		m.mu.Unlock()
		if n == 0 {
			return
		}
		select {
		case <-ctx.Done():
		case <-time.After(200 * time.Microsecond):
		}
	}
}

func (m *moody) Discard(export.Cause) { panic("nobody asks for it") }

func (m *moody) Close() error {
	defer m.gate.pass()
	time.Sleep(time.Duration(m.roll(3)) * time.Millisecond)
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.closed {
		panic("closed twice")
	}
	m.closed = true
	m.d.close(m.sink, m.n)
	return nil
}

// TestHolderAccounting: whatever Holders do, and however often they are given up
// and named again, each span is accounted for at every moment, none is counted
// twice, and at the end all are sent, dropped or on disk. Apply waits for none of
// them.
func TestHolderAccounting(t *testing.T) {
	before := runtime.NumGoroutine()
	for seed := range uint64(12) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			t.Parallel()
			rng := rand.New(rand.NewPCG(seed, 7))
			l := fast
			l.QueueSpans, l.BatchSpans = 50+rng.IntN(200), 1+rng.IntN(40)
			l.DrainTimeout = time.Duration(1+rng.IntN(200)) * time.Millisecond
			l.Linger = time.Duration(rng.IntN(20)-5) * time.Millisecond
			l.ExportTimeout = 10 * time.Millisecond
			var g gate
			d := &disk{left: map[string]int{}, used: map[string]bool{}}
			var took, opened, passed atomic.Int64
			var made atomic.Uint64
			s := NewSet(Options{Host: thisHost, Limits: l, NoTrim: true, NewExporter: func(o Observer, e string, l *ledger) (Exporter, error) {
				sink := pipeKey{o.UUID, e, ""}.sink()
				n, err := d.open(sink)
				if err != nil {
					return nil, err
				}
				opened.Add(1)
				l.Recovered(n)
				return &moody{d: d, sink: sink, l: l, took: &took, gate: &g, n: n, rng: rand.New(rand.NewPCG(seed, made.Add(1)))}, nil
			}})
			stop := make(chan struct{})
			var wg sync.WaitGroup
			look := func(f func(r *rand.Rand)) {
				r := rand.New(rand.NewPCG(seed, made.Add(1)))
				wg.Go(func() {
					for {
						select {
						case <-stop:
							return
						default:
							f(r)
							time.Sleep(300 * time.Microsecond)
						}
					}
				})
			}
			look(func(*rand.Rand) {
				exact(t, s.Totals())
				for _, o := range s.Stats() {
					for _, e := range o.Endpoints {
						exact(t, e.Counters)
					}
				}
			})
			look(func(r *rand.Rand) {
				s.SetHost(Host{Name: fmt.Sprint(r.IntN(3))})
				s.tick()
			})
			look(func(r *rand.Rand) { // as if there were too many
				s.apply.Lock()
				defer s.apply.Unlock()
				if len(s.leaving) > 0 && r.IntN(20) == 0 {
					s.leaving[r.IntN(len(s.leaving))].expire()
				}
			})
			look(func(*rand.Rand) { // passed bounds what Produced may be
				s.Export(span(event.Xapi, "x"))
				passed.Add(1)
			})
			for range 100 {
				var obs []Observer
				for k := range rng.IntN(4) {
					o := enabled(fmt.Sprintf("%08d-0000-4000-8000-000000000001", k),
						[]string{fmt.Sprintf("http://u:%d@h/", rng.IntN(3)), "http://i/", "http://u:b@h/", fmt.Sprintf("http://j:%d/", rng.IntN(2))}[:1+rng.IntN(4)]...)
					o.Enabled = rng.IntN(4) > 0
					obs = append(obs, o)
				}
				open := g.close()
				s.Apply(obs) // one that waits for a Holder does not return
				open()
				for range rng.IntN(50) {
					s.Export(span(event.Xapi, "x"))
				}
				time.Sleep(time.Duration(rng.IntN(3)) * time.Millisecond)
			}
			close(stop)
			wg.Wait()
			_ = s.Close(context.Background())
			c := s.Totals()
			exact(t, c)
			qt.Check(t, qt.Equals(int64(c.Sent), took.Load()))
			qt.Check(t, qt.Equals(int(c.Queued), d.total()))
			qt.Check(t, qt.Equals(c.Recovered, 0)) // all was this Set's own
			qt.Check(t, qt.HasLen(s.leavingNow(), 0))
			for sink, used := range d.used {
				qt.Check(t, qt.IsFalse(used), qt.Commentf("%s", sink))
			}
			t.Logf("%d holders, produced %d, sent %d, on disk %d, dropped %v", opened.Load(), c.Produced, c.Sent, c.Queued, c.DroppedByCause())
		})
	}
	t.Cleanup(func() {
		eventually(t, "all goroutines to end", func() bool { return runtime.NumGoroutine() <= before })
	})
}

// stuck is a Holder that does not end before it is let go.
type stuck struct {
	moody
	free chan struct{}
}

func (s *stuck) Export(context.Context, []*Record) error { s.add(1); return nil }
func (s *stuck) add(n int)                               { s.mu.Lock(); s.n += n; s.mu.Unlock() }
func (s *stuck) Flush(context.Context)                   { <-s.free }
func (s *stuck) Close() error                            { <-s.free; return nil }

// TestHolderStuck: one on a file system that hangs holds up neither Apply nor
// Stats, and Close gives it up: each of them would not return, for it is let go at
// the end only.
func TestHolderStuck(t *testing.T) {
	free := make(chan struct{})
	l := fast
	l.CloseGrace = 100 * time.Millisecond
	s := NewSet(Options{Host: thisHost, Limits: l, NoTrim: true, NewExporter: func(_ Observer, _ string, l *ledger) (Exporter, error) {
		return &stuck{moody: moody{l: l}, free: free}, nil
	}})
	var obs []Observer
	for k := range 50 {
		obs = append(obs, enabled(fmt.Sprintf("%08d-0000-4000-8000-000000000001", k), "http://h/"))
	}
	s.Apply(obs)
	s.Export(span(event.Xapi, "one"))
	eventually(t, "the export", func() bool {
		return !slices.ContainsFunc(s.all(), func(p *pipe) bool { return p.holder.Holding() == 0 })
	})
	s.Apply(nil)
	for _, p := range s.leavingNow() {
		p.expire()
	}
	s.Apply(obs)
	s.Stats()
	s.Export(span(event.Xapi, "two"))
	ctx, cancel := context.WithTimeout(context.Background(), 200*time.Millisecond)
	defer cancel()
	closing := make(chan error)
	go func() { closing <- s.Close(ctx) }()
	time.Sleep(50 * time.Millisecond)
	s.Stats() // while it closes
	qt.Check(t, qt.ErrorMatches(<-closing, `(?s)observer .* hangs.*`))
	exact(t, s.Totals())
	close(free)
	eventually(t, "the end", func() bool { s.Totals(); return len(s.leavingNow()) == 0 })
	exact(t, s.Totals())
}

// TestPasswordChanges: an endpoint whose password changes goes on with its queue
// on disk, at once and after a restart; nothing is lost or sent twice.
func TestPasswordChanges(t *testing.T) {
	var mu sync.Mutex
	var got int
	var password string // "": nobody is let in, for now
	receiver := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		mu.Lock()
		defer mu.Unlock()
		if _, p, _ := r.BasicAuth(); password == "" || p != password {
			w.WriteHeader(http.StatusServiceUnavailable)
			return
		}
		got += countSpans(t, r)
	}))
	defer receiver.Close()
	url := func(p string) string { return strings.Replace(receiver.URL, "http://", "http://u:"+p+"@", 1) }
	l := fast
	l.DrainTimeout = 300 * time.Millisecond
	o := Options{Host: thisHost, QueueDir: t.TempDir(), Limits: l, NoTrim: true}
	a := enabled(uuidA, url("old"))
	a.Attributes = map[string]string{"dtagent.batch.interval": "10ms"}

	s := NewSet(o)
	s.Apply([]Observer{a})
	s.Export(span(event.Xapi, "one"))
	time.Sleep(50 * time.Millisecond)
	_ = s.Close(context.Background())
	qt.Assert(t, qt.Equals(s.Totals().Queued, 1))

	s = NewSet(o)
	s.SetHost(Host{Name: "other"})
	a.Endpoints = []string{url("new"), url("newer")} // the second is the same receiver
	s.Apply([]Observer{a})
	s.Export(span(event.Xapi, "two"))
	a.Endpoints = []string{url("last")}
	s.Apply([]Observer{a})
	s.Export(span(event.Xapi, "three"))
	mu.Lock()
	password = "last"
	mu.Unlock()
	eventually(t, "all to be sent", func() bool { return s.Totals().Sent == 3 })
	c := s.Totals()
	exact(t, c)
	qt.Check(t, qt.Equals(c.Produced, 3))
	qt.Check(t, qt.Equals(c.Recovered, 1))
	qt.Check(t, qt.Equals(c.Lost(), 0))
	_ = s.Close(context.Background())
	mu.Lock()
	defer mu.Unlock()
	qt.Check(t, qt.Equals(got, 3))
	left, err := os.ReadDir(o.QueueDir)
	qt.Check(t, qt.IsNil(err))
	qt.Check(t, qt.HasLen(left, 0))
}

func countSpans(t *testing.T, r *http.Request) int {
	body, err := gzip.NewReader(r.Body)
	if err != nil {
		t.Error(err)
		return 0
	}
	text, err := io.ReadAll(body)
	if err != nil {
		t.Error(err)
	}
	return strings.Count(string(text), `"traceId"`)
}

// TestTrustStays: an endpoint that is flushed for an Observer not known yet
// follows that Observer's CA file when it is.
func TestTrustStays(t *testing.T) {
	l := fast
	l.DrainTimeout = 100 * time.Millisecond
	s := NewSet(Options{Host: thisHost, Limits: l, NoTrim: true, QueueDir: t.TempDir()})
	defer s.Close(context.Background())
	a := enabled(uuidA, "https://127.0.0.1:9/")
	s.Apply([]Observer{a})
	first := s.trusts[uuidA]
	s.Export(span(event.Xapi, "one"))
	eventually(t, "the export", func() bool { return s.all()[0].holder.Holding() == 1 })
	s.Apply(nil)
	a.Attributes = map[string]string{"dtagent.ca_file": "/nowhere.pem"}
	s.Apply([]Observer{a})
	qt.Assert(t, qt.HasLen(s.all(), 1))
	qt.Check(t, qt.Equals(s.trusts[uuidA], first))
}

// TestLabelsChange: a changed name makes metrics and log records anew; no span
// is in two of them, and names that change back do not take metrics out of the
// scrapes.
func TestLabelsChange(t *testing.T) {
	l := fast
	l.Linger = 200 * time.Millisecond
	r := metrics.New(metrics.Options{})
	log := filepath.Join(t.TempDir(), "spans.log")
	s := NewSet(Options{Host: thisHost, Limits: l, NoTrim: true, Metrics: r, SpanLog: log})
	a := enabled(uuidA)
	a.Attributes = map[string]string{"dtagent.metrics": "true", "dtagent.logs": "true"}
	const n = 6
	for i := range n {
		a.NameLabel = []string{"a", "b"}[i%2]
		s.Apply([]Observer{a})
		s.Export(span(event.Xapi, fmt.Sprintf("span-%d", i))) // it had ended long ago
	}
	eventually(t, "the others to end", func() bool { s.Totals(); return len(s.leavingNow()) == 0 })
	c := s.Totals()
	qt.Check(t, qt.Equals(c.Produced, 2*n))
	s.Export(span(event.Xapi, "last"))
	eventually(t, "the export", func() bool { return s.Totals().Queued == 0 })
	page := httptest.NewRecorder()
	r.Handler().ServeHTTP(page, httptest.NewRequest(http.MethodGet, "/metrics", nil))
	qt.Check(t, qt.StringContains(page.Body.String(), `span_name="last"`))
	_ = s.Close(context.Background())
	text, err := os.ReadFile(log)
	qt.Assert(t, qt.IsNil(err))
	for i := range n {
		lines := slices.DeleteFunc(strings.Split(string(text), "\n"), func(l string) bool { return !strings.Contains(l, fmt.Sprintf(`"span-%d"`, i)) })
		qt.Check(t, qt.HasLen(lines, 2)) // begin and end
	}
}

// TestOddObservers: nothing panics, whatever Observers look like.
func TestOddObservers(t *testing.T) {
	l := fast
	l.DrainTimeout = 100 * time.Millisecond
	s := NewSet(Options{Limits: l, NoTrim: true, BugtoolDir: t.TempDir(), QueueDir: t.TempDir()})
	s.SetHost(Host{Name: "early"})
	odd := []Observer{
		{}, {Enabled: true}, {Enabled: true, Endpoints: []string{""}}, {UUID: "../..", Enabled: true, Endpoints: []string{"http://127.0.0.1:9/", "http://127.0.0.1:9/"}},
		{UUID: "x", Enabled: true, Endpoints: []string{"http://[", "://", "bugtool", "metrics", "logs to http://["}},
		{UUID: "X", Enabled: true, Endpoints: []string{"http://127.0.0.1:9/"}},
		{UUID: "y", Enabled: true, Endpoints: []string{"http://127.0.0.1:9/"}, Components: []string{"no such"}, Hosts: []string{""}},
	}
	for i := range odd {
		s.Apply(odd[i:])
		s.Export(span(event.Xapi, "x"))
		s.Stats()
	}
	s.Apply(nil)
	_ = s.Close(context.Background())
	exact(t, s.Totals())
	s.Apply(odd)
	s.SetHost(Host{})
	s.tick()
}

// TestSetStops: with receivers that hang the end takes as long as it may, not the
// hour that it would, and
// what they did not take is on disk; only log records for a receiver, which
// have no queue there, are lost, and counted.
func TestSetStops(t *testing.T) {
	t.Parallel()
	gone := make(chan struct{})
	hangs := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		select {
		case <-r.Context().Done():
		case <-gone:
		}
	}))
	defer hangs.Close()
	defer close(gone)
	o := Options{Host: thisHost, QueueDir: t.TempDir(), BugtoolDir: t.TempDir(), SpanLog: filepath.Join(t.TempDir(), "log"),
		Limits: Limits{ExportTimeout: time.Hour, DrainTimeout: time.Hour, CloseGrace: time.Minute}}
	s := NewSet(o)
	a, b := enabled(uuidA, hangs.URL, "otlp+"+hangs.URL, "bugtool"), enabled(uuidB, "http://u:p@"+strings.TrimPrefix(hangs.URL, "http://"))
	a.Attributes = map[string]string{"dtagent.metrics": "true", "dtagent.logs": "true", "dtagent.batch.spans": "5"}
	b.Attributes = map[string]string{"dtagent.keep.slow": "1ns", "dtagent.hold": "5m"}
	s.Apply([]Observer{a, b})
	const n = 100
	for i := range n {
		s.Export(span(event.Xapi, fmt.Sprint(i)))
	}
	s.Apply([]Observer{a}) // b lingers, then flushes, and is cut short
	eventually(t, "files, metrics and log", func() bool { return s.Totals().Sent == 3*n })
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	err := s.Close(ctx)
	qt.Check(t, qt.ErrorMatches(err, `(?s)observer aaaaaaaa.*endpoint logs to .* 100 spans not delivered.*`))
	c := s.Totals()
	exact(t, c)
	qt.Check(t, qt.Equals(c.Lost(), n))
	qt.Check(t, qt.Equals(c.Sent, 3*n)) // bugtool, metrics, log
	qt.Check(t, qt.Equals(c.Queued, 3*n))
	left, err := remote.Leftovers(o.QueueDir)
	qt.Assert(t, qt.IsNil(err))
	spans := 0
	for _, l := range left {
		spans += l.Spans
	}
	qt.Check(t, qt.Equals(spans, 3*n))
}

// TestExpireEarly: an Export that is about to begin when the time is over ends at
// once.
func TestExpireEarly(t *testing.T) {
	var budget atomic.Int64
	p := newPipe(pipeKey{uuidA, "e", ""}, &ledger{}, fast.withDefaults(), &budget, nil)
	p.push(export.Record{Span: span(event.Xapi, "x")}, 1)
	p.drain(time.Hour)
	next, _ := p.next()
	qt.Assert(t, qt.Equals(next, deliver))
	p.expire()
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	qt.Check(t, qt.HasLen(p.take(nil, cancel), 1))
	qt.Check(t, qt.IsNotNil(ctx.Err()))
}
