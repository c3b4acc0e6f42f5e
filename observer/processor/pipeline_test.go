package processor

import (
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/go-quicktest/qt"
	"github.com/xenserver/dtagent/correlate"
	"github.com/xenserver/dtagent/probes/event"
	"go.opentelemetry.io/otel/attribute"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/trace"
)

const ms = int64(time.Millisecond)

// bench is a Pipeline with a clock of its own that keeps what passes.
type bench struct {
	*Pipeline
	t      *testing.T
	now    time.Time
	parent trace.SpanID
	got    []*correlate.Span
}

func newBench(t *testing.T, c Config) *bench {
	b := &bench{t: t, now: time.Unix(1_800_000_000, 0)}
	b.Pipeline = New(c, func(sp *correlate.Span) { b.got = append(b.got, sp) })
	b.clock = func() time.Time { return b.now }
	return b
}

// after lets d pass, with a tick at its end.
func (b *bench) after(d time.Duration) {
	b.now = b.now.Add(d)
	b.Tick(b.now)
}

// span sends one of that tree. Names that end in "." are Last.
func (b *bench) span(tree uint64, name string, start, end int64, err string) *correlate.Span {
	sp := &correlate.Span{TraceID: trace.TraceID{15: byte(tree)}, Tree: tree, Name: name, ParentID: b.parent, SpanID: trace.SpanID{9}, Start: start * ms, End: end * ms, Error: err, Last: strings.HasSuffix(name, ".")}
	b.OnEnd(sp)
	b.check()
	return sp
}

func (s Stats) sum() uint64 {
	n := s.Passed + s.Held
	for _, f := range s.Filtered {
		n += f
	}
	return n
}

func (b *bench) check() Stats {
	b.t.Helper()
	s := b.Stats()
	qt.Assert(b.t, qt.Equals(s.sum(), s.Received))
	qt.Assert(b.t, qt.Equals(s.Passed, uint64(len(b.got))))
	return s
}

// expect checks the names that have passed since the last call.
func (b *bench) expect(names ...string) {
	b.t.Helper()
	b.check()
	var got []string
	for _, sp := range b.got[:] {
		got = append(got, sp.Name)
	}
	qt.Assert(b.t, qt.Equals(strings.Join(got, " "), strings.Join(names, " ")))
}

func TestPassThrough(t *testing.T) {
	b := newBench(t, Config{})
	b.span(1, "a", 0, 0, "")
	b.span(1, "b.", 0, 10, "E")
	b.expect("a", "b.")
	qt.Check(t, qt.Equals(b.Stats(), Stats{Received: 2, Passed: 2}))
}

// TestHead: the same traces as the SDK's sampler, and a ratio of them.
func TestHead(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 1))
	ref := sdktrace.TraceIDRatioBased(0.25)
	b := newBench(t, Config{Sampler: TraceIDRatio, Ratio: 0.25})
	const n = 20_000
	for range n {
		sp := &correlate.Span{}
		for i := range sp.TraceID {
			sp.TraceID[i] = byte(rng.Uint32())
		}
		before := len(b.got)
		b.OnEnd(sp)
		want := ref.ShouldSample(sdktrace.SamplingParameters{TraceID: sp.TraceID}).Decision == sdktrace.RecordAndSample
		if passed := len(b.got) > before; passed != want {
			t.Fatalf("%v: passed %v, the SDK says %v", sp.TraceID, passed, want)
		}
	}
	s := b.check()
	qt.Check(t, qt.IsTrue(s.Passed > n/4-400 && s.Passed < n/4+400))
	qt.Check(t, qt.Equals(s.Filtered[SampledOut], n-s.Passed))

	b = newBench(t, Config{Sampler: AlwaysOff})
	b.span(1, "a", 0, 1, "E")
	b.expect()
	qt.Check(t, qt.Equals(b.Stats().Filtered[SampledOut], 1))
	for _, ratio := range []float64{0, 1} {
		b = newBench(t, Config{Sampler: TraceIDRatio, Ratio: ratio})
		b.span(1, "a", 0, 1, "")
		qt.Check(t, qt.Equals(b.Stats().Passed, uint64(ratio)))
	}
}

// TestTail: a tree is emitted whole and in order as soon as there is a reason.
func TestTail(t *testing.T) {
	b := newBench(t, Config{KeepErrors: true, KeepSlow: 100 * time.Millisecond})
	b.span(1, "a", 0, 1, "")
	b.span(2, "x", 0, 2, "")
	b.span(1, "b", 1, 2, "")
	b.span(3, "s", 0, 40, "")
	qt.Check(t, qt.Equals(b.check().Trees, 3))
	b.expect()
	b.span(1, "c", 2, 3, "HANDLE_INVALID")
	b.expect("a", "b", "c")
	b.span(1, "d", 3, 4, "") // passes at once from now on
	b.span(1, "e.", 4, 5, "")
	b.expect("a", "b", "c", "d", "e.")
	b.span(2, "y.", 2, 5, "")
	b.after(grace - 1)
	b.span(2, "z.", 2, 5, "") // late, in the grace, which begins again
	b.after(grace - 1)
	qt.Check(t, qt.Equals(b.check().Held, 4))
	b.after(1)
	s := b.check()
	qt.Check(t, qt.Equals(s.Filtered[NotKept], 3))
	qt.Check(t, qt.Equals(s.Held, 1))
	b.span(2, "later", 2, 5, "") // the decision is remembered
	qt.Check(t, qt.Equals(b.check().Filtered[NotKept], 4))
	// No span of tree 3 is slow, but all together are.
	b.span(3, "t", 35, 99, "")
	b.expect("a", "b", "c", "d", "e.")
	b.span(3, "u.", 99, 100, "")
	b.expect("a", "b", "c", "d", "e.", "s", "t", "u.")
	// One trace, two trees: each is judged alone.
	one := &correlate.Span{TraceID: trace.TraceID{1}, Tree: 100, Name: "1"}
	two := &correlate.Span{TraceID: trace.TraceID{1}, Tree: 101, Name: "2", Error: "E"}
	b.OnEnd(one)
	b.OnEnd(two)
	qt.Check(t, qt.Equals(b.got[len(b.got)-1], two))
	s = b.check()
	qt.Check(t, qt.Equals(s.Held, 1))
	qt.Check(t, qt.Equals(s.HeldBytes, one.Size()))
}

// TestLateReason: a tree that was judged too early is kept from the span on
// that shows it.
func TestLateReason(t *testing.T) {
	b := newBench(t, Config{KeepErrors: true, Hold: 2 * time.Second})
	b.span(1, "a", 0, 1, "")
	b.after(2*time.Second - 1)
	qt.Check(t, qt.Equals(b.check().Held, 1))
	b.after(1)
	qt.Check(t, qt.Equals(b.check().Filtered[HoldEnded], 1))
	b.span(1, "b", 0, 2, "")
	qt.Check(t, qt.Equals(b.check().Filtered[HoldEnded], 2))
	b.span(1, "c", 0, 3, "E")
	b.span(1, "d.", 0, 3, "")
	b.expect("c", "d.")

	// The beginning of a tree is remembered too.
	b = newBench(t, Config{KeepSlow: time.Second, KeepErrors: true})
	b.span(1, "a.", 0, 1, "")
	b.after(2 * time.Second)
	b.span(1, "b", 990, 1000, "")
	b.expect("b")
}

// TestNotLastAnyMore: a tree that goes on after it seemed finished is held on.
func TestNotLastAnyMore(t *testing.T) {
	b := newBench(t, Config{KeepErrors: true})
	b.span(1, "Async.VM.start.", 0, 1, "")
	b.after(grace / 2)
	b.span(1, "child", 2, 3, "")
	b.after(10 * time.Second)
	qt.Check(t, qt.Equals(b.check().Held, 2))
	b.span(1, "VM.start.", 1, 9000, "NO_HOSTS_AVAILABLE")
	b.expect("Async.VM.start.", "child", "VM.start.")
}

// TestSlowAlready: an operation longer than any hold is slow before it ends.
func TestSlowAlready(t *testing.T) {
	const long = time.Minute + SlowMargin
	b := newBench(t, Config{KeepSlow: time.Minute})
	qt.Check(t, qt.Equals(b.c.hold(), long))
	child := func(tree uint64, name string, id, parent byte, link correlate.Link) {
		b.OnEnd(&correlate.Span{TraceID: trace.TraceID{15: byte(tree)}, Tree: tree, Name: name, End: ms, SpanID: trace.SpanID{id}, ParentID: trace.SpanID{parent}, Link: link})
	}
	child(1, "atom", 2, 1, correlate.LinkThread) // 1 is still open
	b.after(long - 1)
	b.expect()
	b.after(1)
	b.expect("atom")
	child(1, "more", 3, 1, correlate.LinkThread)
	b.expect("atom", "more")

	// What is still open has no children that ended: a daemon that was left
	// behind, or a span elsewhere.
	child(2, "atom", 2, 1, correlate.LinkThread)
	child(2, "operation", 1, 0, correlate.LinkNone)
	child(3, "call", 4, 3, correlate.LinkTraceparent)
	b.after(long)
	b.expect("atom", "more")
	qt.Check(t, qt.Equals(b.check().Filtered[HoldEnded], 3))

	// Flushing is no reason to lose one that is known to be slow.
	b.Configure(Config{KeepSlow: time.Minute, Hold: MaxHold})
	child(4, "atom4", 2, 1, correlate.LinkThread)
	b.now = b.now.Add(long)
	b.Shutdown()
	b.expect("atom", "more", "atom4")

	b = newBench(t, Config{KeepSlow: time.Minute, Hold: time.Second})
	child(1, "a", 2, 1, correlate.LinkThread)
	b.after(time.Second)
	qt.Check(t, qt.Equals(b.check().Filtered[HoldEnded], 1))
	qt.Check(t, qt.Equals((&Config{Hold: time.Hour}).hold(), MaxHold))
	qt.Check(t, qt.Equals((&Config{}).hold(), DefaultHold))
}

func TestOverflow(t *testing.T) {
	b := newBench(t, Config{KeepErrors: true})
	b.limits = limits{trees: 3, spans: 6, bytes: 1 << 20, decisions: 4}
	b.span(1, "a", 0, 1, "")
	b.span(2, "b.", 0, 1, "")
	b.span(3, "c", 0, 1, "")
	b.span(4, "d", 0, 1, "")
	s := b.check()
	qt.Check(t, qt.Equals(s.Trees, 3))
	qt.Check(t, qt.Equals(s.Filtered[HoldOverflow], 1))
	b.span(5, "e", 0, 1, "")
	s = b.check()
	qt.Check(t, qt.Equals(s.Filtered[HoldOverflow], 1))
	qt.Check(t, qt.Equals(s.Filtered[NotKept], 1)) // tree 2 was seen whole
	for range 3 {
		b.span(5, "f", 0, 1, "")
	}
	qt.Check(t, qt.Equals(b.check().Held, 6))
	b.span(5, "f", 0, 1, "")
	s = b.check()
	qt.Check(t, qt.Equals(s.Held, 6))
	qt.Check(t, qt.Equals(s.Filtered[HoldOverflow], 2))
	for range 10 { // larger than all the room
		b.span(5, "f", 0, 1, "")
	}
	qt.Check(t, qt.Equals(b.check().Trees, 0))
	qt.Check(t, qt.Equals(b.check().Forgotten, 1)) // of 1, 2, 3, 4, 5

	b.limits.bytes = 3 * (&correlate.Span{Name: "a"}).Size()
	for i := range uint64(4) {
		b.span(10+i, "g", 0, 1, "")
	}
	s = b.check()
	qt.Check(t, qt.Equals(s.Held, 3))
	qt.Check(t, qt.Equals(s.HeldBytes, b.limits.bytes))
	qt.Check(t, qt.HasLen(b.trees, b.held.Len()+b.judged.Len()))
	b.expect()
}

func TestConfigure(t *testing.T) {
	b := newBench(t, Config{KeepErrors: true})
	b.span(1, "a", 0, 500, "")
	b.span(2, "b", 0, 20, "")
	b.span(2, "c", 0, 500, "")
	b.span(3, "d", 0, 20, "")
	b.Configure(Config{KeepSlow: time.Second})
	qt.Check(t, qt.Equals(b.check().Held, 4))
	b.Configure(Config{KeepSlow: 500 * time.Millisecond})
	b.expect("a", "b", "c")
	b.Configure(Config{Drop: []string{"d"}})
	b.expect("a", "b", "c")
	qt.Check(t, qt.Equals(b.check().Filtered[NameDropped], 1))
	b.span(3, "e", 0, 0, "")
	b.expect("a", "b", "c", "e")
	qt.Check(t, qt.HasLen(b.trees, 0))
}

func TestFlushAndShutdown(t *testing.T) {
	b := newBench(t, Config{KeepErrors: true})
	b.span(1, "a", 0, 1, "")
	b.span(2, "b.", 0, 1, "")
	b.ForceFlush()
	s := b.check()
	qt.Check(t, qt.Equals(s.Held, 0))
	qt.Check(t, qt.Equals(s.Filtered[HoldEnded], 1))
	qt.Check(t, qt.Equals(s.Filtered[NotKept], 1))
	b.span(3, "c", 0, 1, "")
	qt.Check(t, qt.Equals(b.check().Held, 1))
	b.Shutdown()
	b.span(4, "d", 0, 1, "")
	b.span(4, "e", 0, 1, "E")
	b.span(5, "f.", 0, 1, "E")
	b.span(6, "g.", 0, 1, "")
	b.expect("e", "f.")
	s = b.check()
	qt.Check(t, qt.Equals(s.Held, 0))
	qt.Check(t, qt.Equals(s.Filtered[HoldEnded], 3))
	qt.Check(t, qt.Equals(s.Filtered[NotKept], 2))
}

func TestFilters(t *testing.T) {
	b := newBench(t, Config{MinDuration: 10 * time.Millisecond, Drop: []string{"event.from", "GET /rrd*", "noise*"}})
	b.span(1, "short", 0, 9, "")
	b.span(1, "failed", 0, 9, "E")
	b.span(1, "long", 0, 10, "")
	b.span(1, "noise", 0, 9, "")
	b.span(1, "noise2", 0, 10, "E")
	b.span(1, "GET /rrd_updates/x", 0, 10, "")
	b.OnEnd(&correlate.Span{Name: "cut", Incomplete: "evicted"})
	b.expect("failed", "long", "cut")
	s := b.check()
	qt.Check(t, qt.DeepEquals(s.FilteredByCause(), map[string]uint64{"too_short": 2, "name_dropped": 2}))
}

// TestModel compares random runs with a plain model of tail sampling that
// never forgets anything.
func TestModel(t *testing.T) {
	for seed := range uint64(300) {
		rng := rand.New(rand.NewPCG(seed, 7))
		c := Config{KeepErrors: true, KeepSlow: 50 * time.Millisecond, Hold: 20 * time.Second}
		if seed%2 == 1 {
			c.KeepSlow = 0 // so that holds end
		}
		b := newBench(t, c)
		type plain struct {
			spans   []*correlate.Span // held
			state   verdict
			failed  bool
			lo, hi  int64
			last    bool
			due     time.Time
			arrived time.Time
		}
		model := map[uint64]*plain{}
		var want []*correlate.Span
		for range 400 {
			if rng.IntN(5) == 0 {
				b.after(time.Duration(rng.IntN(1500)) * time.Millisecond)
				for id, m := range model { // of those kept here only one can be due: order among them does not matter
					if m.state != held {
						continue
					}
					switch {
					case m.last && !b.now.Before(m.due):
						m.state = filtered
					case c.KeepSlow > 0 && id%2 == 1 && !m.last && b.now.Sub(m.arrived) >= c.KeepSlow+SlowMargin:
						m.state = kept
						want = append(want, m.spans...)
					case b.now.Sub(m.arrived) >= c.Hold:
						m.state = filtered
					}
				}
				continue
			}
			id := uint64(rng.IntN(20))
			start := int64(rng.IntN(30))
			name, e := "s", ""
			if rng.IntN(4) == 0 {
				name = "s."
			}
			if rng.IntN(30) == 0 {
				e = "E"
			}
			b.parent = trace.SpanID{byte(id % 2)} // of odd trees the parent never comes
			sp := b.span(id, name, start, start+int64(rng.IntN(25)), e)
			m := model[id]
			if m == nil {
				m = &plain{lo: sp.Start, hi: sp.End, arrived: b.now}
				model[id] = m
			}
			m.lo, m.hi, m.failed = min(m.lo, sp.Start), max(m.hi, sp.End), m.failed || e != ""
			if m.last = sp.Last; m.last {
				m.due = b.now.Add(grace)
			}
			reason := m.failed || c.KeepSlow > 0 && m.hi-m.lo >= int64(c.KeepSlow)
			switch {
			case m.state == held && reason:
				want = append(append(want, m.spans...), sp)
				m.state = kept
			case m.state == held:
				m.spans = append(m.spans, sp)
			case m.state == kept || reason:
				m.state = kept
				want = append(want, sp)
			}
		}
		// Trees that a Tick keeps come in any order in the model: compare by tree.
		byTree := func(spans []*correlate.Span) map[uint64][]*correlate.Span {
			out := map[uint64][]*correlate.Span{}
			for _, sp := range spans {
				out[sp.Tree] = append(out[sp.Tree], sp)
			}
			return out
		}
		got, exp := byTree(b.got), byTree(want)
		qt.Assert(t, qt.Equals(len(got), len(exp)))
		for id := range exp {
			qt.Assert(t, qt.IsTrue(slices.Equal(got[id], exp[id])), qt.Commentf("seed %d tree %d", seed, id))
		}
	}
}

// TestTogether: whatever is called at once, no span is lost, doubled or out of
// order in its tree, and the sum holds at every moment.
func TestTogether(t *testing.T) {
	configs := []Config{
		{}, {KeepErrors: true}, {KeepSlow: 5 * time.Millisecond, Hold: 3 * time.Millisecond}, {KeepErrors: true, KeepSlow: 40 * time.Millisecond},
		{Sampler: TraceIDRatio, Ratio: 0.5, KeepErrors: true}, {MinDuration: 3 * time.Millisecond, KeepErrors: true, Drop: []string{"7*"}},
	}
	last := map[uint64]int{} // by tree: guarded by the Pipeline
	passed := 0
	for i := range configs {
		configs[i].MinWait = 5 * time.Millisecond
	}
	p := New(configs[1], func(sp *correlate.Span) {
		if n := int(sp.Attributes[0].Value.AsInt64()); n <= last[sp.Tree] {
			t.Errorf("tree %d: %d after %d", sp.Tree, n, last[sp.Tree])
		} else {
			last[sp.Tree] = n
		}
		passed++
	})
	p.limits = limits{trees: 40, spans: 200, bytes: 60_000, decisions: 200}
	const senders, each = 4, 20_000
	var senderWG, others sync.WaitGroup
	for s := range senders {
		senderWG.Go(func() {
			rng := rand.New(rand.NewPCG(3, uint64(s)))
			for i := range each {
				tree := uint64(s)<<32 + uint64(i/50) + uint64(rng.IntN(30))
				sp := &correlate.Span{TraceID: trace.TraceID{8: byte(rng.Uint32()), 15: byte(tree)}, Tree: tree, Name: fmt.Sprint(rng.IntN(10)), End: rng.Int64N(20 * ms),
					Last: rng.IntN(10) == 0, Attributes: []attribute.KeyValue{attribute.Int("n", i+1)}}
				sp.TraceID[8] = byte(tree) // the head sampler takes all of a tree or none
				switch rng.IntN(100) {
				case 0:
					sp.Error = "E"
				case 1, 2:
					sp.Wait = event.Lock
				}
				p.OnEnd(sp)
				if i%100 == 0 {
					time.Sleep(200 * time.Microsecond) // time for the others
				}
			}
		})
	}
	stop := make(chan struct{})
	loop := func(f func(rng *rand.Rand)) {
		others.Go(func() {
			rng := rand.New(rand.NewPCG(5, 5))
			for {
				select {
				case <-stop:
					return
				case <-time.After(200 * time.Microsecond):
					f(rng)
				}
			}
		})
	}
	checks := 0
	loop(func(rng *rand.Rand) { p.Configure(configs[rng.IntN(len(configs))]) })
	loop(func(*rand.Rand) { p.Tick(time.Now()) })
	loop(func(rng *rand.Rand) {
		if rng.IntN(5) == 0 {
			p.ForceFlush()
		}
	})
	loop(func(*rand.Rand) {
		s := p.Stats()
		checks++
		if s.sum() != s.Received || s.Held > 200 || s.Trees > 40 {
			t.Errorf("%+v", s)
		}
	})
	senderWG.Wait()
	close(stop)
	others.Wait()
	p.Shutdown()
	s := p.Stats()
	t.Logf("%+v, %d checks on the way", s, checks)
	qt.Check(t, qt.Equals(s.Received, senders*each))
	qt.Check(t, qt.Equals(s.Held, 0))
	qt.Check(t, qt.Equals(s.HeldBytes, 0))
	qt.Check(t, qt.Equals(s.sum(), s.Received))
	qt.Check(t, qt.Equals(s.Passed, uint64(passed)))
	qt.Check(t, qt.IsTrue(checks > 10))
	for i, n := range s.Filtered {
		qt.Check(t, qt.IsTrue(n > 0), qt.Commentf("nothing filtered by %v", Cause(i)))
	}
}

func TestNoAllocation(t *testing.T) {
	sp := &correlate.Span{Name: "VM.start", TraceID: trace.TraceID{8: 1}, End: ms}
	for _, c := range []Config{{}, {Sampler: TraceIDRatio, Ratio: 0.9, MinDuration: 1, Drop: []string{"event.*", "*.get_*"}}} {
		p := New(c, func(*correlate.Span) {})
		qt.Check(t, qt.Equals(testing.AllocsPerRun(100, func() { p.OnEnd(sp) }), 0))
	}
}

// TestWaits: they are filtered before anything is held, and count for no tree.
func TestWaits(t *testing.T) {
	wait := func(b *bench, end int64) {
		b.OnEnd(&correlate.Span{TraceID: trace.TraceID{1}, Tree: 1, Name: "lock", Wait: event.Lock, End: end * ms, Incomplete: "x"})
	}
	b := newBench(t, Config{MinWait: 2 * time.Millisecond})
	wait(b, 1)
	wait(b, 2)
	b.span(1, "a", 0, 1, "")
	b.expect("lock", "a")
	qt.Check(t, qt.Equals(b.check().Filtered[UnwantedWait], 1))

	b = newBench(t, Config{NoWaits: true, KeepSlow: time.Second})
	wait(b, 10_000)
	b.span(1, "b", 0, 1, "")
	qt.Check(t, qt.Equals(b.check().Held, 1))
	qt.Check(t, qt.Equals(b.check().Filtered[UnwantedWait], 1))
}

func TestEqual(t *testing.T) {
	full := Config{TraceIDRatio, 0.5, 1, true, 2, true, 4, 3, []string{"a"}}
	qt.Check(t, qt.IsTrue(full.Equal(full)))
	qt.Check(t, qt.IsTrue(Config{}.Equal(Config{Drop: []string{}})))
	for i, c := range []Config{
		{AlwaysOff, 0.5, 1, true, 2, true, 4, 3, []string{"a"}}, {TraceIDRatio, 0.6, 1, true, 2, true, 4, 3, []string{"a"}},
		{TraceIDRatio, 0.5, 2, true, 2, true, 4, 3, []string{"a"}}, {TraceIDRatio, 0.5, 1, false, 2, true, 4, 3, []string{"a"}},
		{TraceIDRatio, 0.5, 1, true, 3, true, 4, 3, []string{"a"}}, {TraceIDRatio, 0.5, 1, true, 2, false, 4, 3, []string{"a"}},
		{TraceIDRatio, 0.5, 1, true, 2, true, 5, 3, []string{"a"}}, {TraceIDRatio, 0.5, 1, true, 2, true, 4, 4, []string{"a"}},
		{TraceIDRatio, 0.5, 1, true, 2, true, 4, 3, []string{"b"}},
	} {
		qt.Check(t, qt.IsFalse(full.Equal(c)), qt.Commentf("%d", i))
	}
}

func TestStatsJSON(t *testing.T) {
	in := Stats{Received: 10, Passed: 1, Held: 2, Filtered: [NumCauses]uint64{NotKept: 3, NameDropped: 4}, Trees: 1, HeldBytes: 300, Forgotten: 5}
	data, err := json.Marshal(in)
	qt.Assert(t, qt.IsNil(err))
	qt.Check(t, qt.Equals(string(data), `{"received":10,"passed":1,"held":2,"held_trees":1,"held_bytes":300,"forgotten":5,"filtered":{"name_dropped":4,"not_kept":3}}`))
	var out Stats
	qt.Assert(t, qt.IsNil(json.Unmarshal(data, &out)))
	qt.Check(t, qt.Equals(out, in))
}

func TestCauses(t *testing.T) {
	for c := range NumCauses {
		qt.Check(t, qt.Matches(c.String(), `[a-z_]+`))
	}
	qt.Check(t, qt.Equals(NumCauses.String(), "cause(7)"))
}

func BenchmarkPipeline(b *testing.B) {
	const n = 1 << 12
	spans := make([]*correlate.Span, n)
	rng := rand.New(rand.NewPCG(1, 1))
	for i := range spans {
		sp := &correlate.Span{Name: "VM.start", End: ms, Tree: uint64(i / 8), Last: i%8 == 7, Attributes: make([]attribute.KeyValue, 6)}
		for j := range sp.TraceID {
			sp.TraceID[j] = byte(i / 8 * (j + 1))
		}
		if rng.IntN(500) == 0 {
			sp.Error = "E"
		}
		spans[i] = sp
	}
	for _, c := range []struct {
		name string
		c    Config
	}{
		{"zero", Config{}},
		{"head", Config{Sampler: TraceIDRatio, Ratio: 0.5}},
		{"filters", Config{MinDuration: time.Microsecond, Drop: []string{"event.*", "*.get_*", "session.*", "host.tickle*"}}},
		{"tail", Config{KeepErrors: true, KeepSlow: time.Second}},
	} {
		b.Run(c.name, func(b *testing.B) {
			b.ReportAllocs()
			p := New(c.c, func(*correlate.Span) {})
			round := uint64(0)
			for i := range b.N {
				sp := spans[i%n]
				if i%n == 0 {
					round += n
				}
				if c.c.tail() {
					sp.Tree = round + uint64(i%n/8)
				}
				p.OnEnd(sp)
			}
		})
	}
}
