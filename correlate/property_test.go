package correlate

import (
	"flag"
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"github.com/xenserver/dtagent/probes/event"
	"pgregory.net/rapid"
)

const (
	propertyWindow = 100 * time.Millisecond // as the agent's Sorter has it
	propertyTick   = 20 * time.Millisecond
)

// check runs a property test, the same one each time: a test that fails now and
// then helps nobody. -rapid.seed and -rapid.checks look further.
func check(t *testing.T, property func(*rapid.T)) {
	t.Helper()
	for name, v := range map[string]string{"rapid.seed": "1", "rapid.checks": "300", "rapid.nofailfile": "true"} {
		if f := flag.Lookup(name); f.Value.String() == f.DefValue {
			if err := flag.Set(name, v); err != nil {
				t.Fatal(err)
			}
		}
	}
	rapid.Check(t, property)
}

// played is what became of arrivals.
type played struct {
	spans  []*Span
	stats  Stats
	sorter SorterStats
}

// play hands events to an Engine as the agent does: through a Sorter, with the
// time told every 20 ms.
func play(t testing.TB, arrivals []arrival, l Limits) (p played) {
	random := uint64(0)
	e := New(Config{
		Emit:   func(s *Span) { p.spans = append(p.spans, s) },
		Rand:   func() uint64 { random++; return random },
		Limits: l,
	})
	sorter := NewSorter(propertyWindow, 1<<20, e.Handle)
	now := event.Time(0)
	advance := func(to event.Time) {
		for now+event.Time(propertyTick) <= to {
			now += event.Time(propertyTick)
			sorter.Advance(now)
			e.Advance(now - event.Time(propertyWindow))
		}
	}
	for i, a := range arrivals {
		advance(a.at)
		sorter.Add(a.ev)
		if i%100 == 0 {
			e.check(t)
		}
	}
	advance(now + event.Time(5*time.Second))
	e.check(t)
	sorter.Drain()
	e.Drain()
	e.check(t)
	p.stats, p.sorter = e.Stats(), sorter.Stats()
	return p
}

// drawLoad makes the events of a few pieces of work that go on at once.
func drawLoad(t testing.TB, r *rapid.T) ([]event.Event, *truth, *rand.Rand) {
	n := rapid.IntRange(1, 12).Draw(r, "pieces")
	chance := rand.New(rand.NewPCG(rapid.Uint64().Draw(r, "times"), 1))
	gap := []time.Duration{10 * time.Microsecond, time.Millisecond, 20 * time.Millisecond}[rapid.IntRange(0, 2).Draw(r, "gap")]
	pick := func(n int) int { return rapid.IntRange(0, n-1).Draw(r, "choice") }
	events, truth := newLoad(t, pick, chance.IntN, 10*gap, gap).all(n)
	return events, truth, chance
}

func inOrder(events []event.Event) []arrival {
	return delayed(events, func(uint16) event.Time { return 0 })
}

// wellFormed asserts what holds whatever happened to the events.
func wellFormed(r *rapid.T, p *played, w *truth) verdict {
	v := w.judge(p.spans)
	if len(v.broken) > 0 {
		r.Fatalf("%d broken spans, such as: %s", len(v.broken), v.broken[0])
	}
	if p.stats.Activities != 0 {
		r.Fatalf("%d activities are left", p.stats.Activities)
	}
	return v
}

// right asserts that no span hangs where it does not belong.
func right(r *rapid.T, v verdict) {
	if len(v.wrong) > 0 {
		r.Fatalf("%d wrong, such as: %s", len(v.wrong), v.wrong[0])
	}
}

func show(spans []*Span) (out []string) {
	for _, s := range spans {
		out = append(out, fmt.Sprintf("%+v", *s))
	}
	return out
}

// TestReorderProperty: however late the events of each CPU come, within the
// Sorter's window, the same spans come out, to the last id; all that are there,
// each under its parent.
func TestReorderProperty(t *testing.T) {
	check(t, func(r *rapid.T) {
		events, truth, chance := drawLoad(t, r)
		want := play(t, inOrder(events), Limits{})
		v := wellFormed(r, &want, truth)
		right(r, v)
		if v.missing > 0 {
			r.Fatalf("%d spans have no parent", v.missing)
		}
		seen := make(map[string]int)
		for _, s := range want.spans {
			seen[s.Name]++
		}
		for _, name := range truth.expected() {
			if seen[name] != 1 {
				r.Fatalf("%d spans %s", seen[name], name)
			}
		}
		most := rapid.Int64Range(0, int64(propertyWindow)).Draw(r, "lag")
		got := play(t, delayed(events, func(uint16) event.Time {
			if chance.IntN(3) > 0 {
				return 0
			}
			return event.Time(chance.Int64N(most + 1))
		}), Limits{})
		if got.sorter.Late > 0 {
			r.Fatalf("%d events are late", got.sorter.Late)
		}
		if a, b := show(want.spans), show(got.spans); !slices.Equal(a, b) {
			for i := range min(len(a), len(b)) {
				if a[i] != b[i] {
					r.Fatalf("other spans, from the %d. of %d and %d:\n%s\n%s", i, len(a), len(b), a[i], b[i])
				}
			}
			r.Fatalf("%d and %d spans", len(a), len(b))
		}
	})
}

// TestDuplicateProperty: events that come twice.
func TestDuplicateProperty(t *testing.T) {
	check(t, func(r *rapid.T) {
		events, truth, chance := drawLoad(t, r)
		share := rapid.IntRange(2, 200).Draw(r, "one in")
		var twice []event.Event
		for _, ev := range events {
			twice = append(twice, ev)
			if chance.IntN(share) == 0 {
				twice = append(twice, ev)
			}
		}
		p := play(t, inOrder(twice), Limits{})
		right(r, wellFormed(r, &p, truth))
	})
}

// lose leaves out events, one run of at most so many in a number of them, and
// tells of it as the reader does: by a KindLost before the next event of the CPU.
func lose(events []event.Event, chance *rand.Rand, share, most int) (out []event.Event) {
	missing := make(map[uint16]uint64)
	left := 0
	for _, ev := range events {
		if left == 0 && chance.IntN(share) == 0 {
			left = 1 + chance.IntN(most)
		}
		if left > 0 {
			left--
			missing[ev.CPU]++
			continue
		}
		if n := missing[ev.CPU]; n > 0 {
			out = append(out, event.Event{Kind: event.KindLost, CPU: ev.CPU, Time: ev.Time, Count: n})
			delete(missing, ev.CPU)
		}
		out = append(out, ev)
	}
	return out
}

// TestLossProperty: events that are lost, single ones and many at a time.
func TestLossProperty(t *testing.T) {
	check(t, func(r *rapid.T) {
		events, truth, chance := drawLoad(t, r)
		share, most := rapid.IntRange(5, 200).Draw(r, "one in"), rapid.IntRange(1, 20).Draw(r, "at once")
		p := play(t, inOrder(lose(events, chance, share, most)), Limits{})
		right(r, wellFormed(r, &p, truth))
	})
}

// TestLossPrecision: of the links that are made when events are lost few are
// wrong: what follows a lost end can be taken for a part of what had ended.
func TestLossPrecision(t *testing.T) {
	made, byLink := 0, make(map[Link]int)
	var wrong []string
	for seed := range uint64(300) {
		chance := rand.New(rand.NewPCG(seed, 9))
		events, truth := newLoad(t, chance.IntN, chance.IntN, 5*time.Millisecond, time.Millisecond).all(12)
		p := play(t, inOrder(lose(events, chance, 20+chance.IntN(200), 1+chance.IntN(20))), Limits{})
		v := truth.judge(p.spans)
		made += v.right + len(v.wrong)
		wrong = append(wrong, v.wrong...)
		for _, s := range p.spans {
			byLink[s.Link]++
		}
	}
	t.Logf("%d links right or wrong, %d wrong, such as %q; %v", made, len(wrong), wrong[:min(3, len(wrong))], byLink)
	if len(wrong)*50 > made {
		t.Errorf("%d of %d links are wrong", len(wrong), made)
	}
}

// TestTinyLimitsProperty: an engine that has room for next to nothing gives up
// parents, but makes up none.
func TestTinyLimitsProperty(t *testing.T) {
	check(t, func(r *rapid.T) {
		events, truth, _ := drawLoad(t, r)
		few := func(name string) int { return rapid.IntRange(1, 12).Draw(r, name) }
		p := play(t, inOrder(events), Limits{
			Activities: few("activities"), Conns: few("conns"), Threads: few("threads"), Keys: few("keys"), Buffers: few("buffers"), Age: time.Minute,
		})
		right(r, wellFormed(r, &p, truth))
	})
}
