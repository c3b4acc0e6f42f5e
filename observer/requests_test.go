package observer

import (
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/go-quicktest/qt"

	"github.com/xenserver/dtagent/correlate"
	"github.com/xenserver/dtagent/probes/event"
)

// An Observer can name tapdisk in its own list, too.
func TestTapdiskInTheList(t *testing.T) {
	o := steered("tapdisk.slow=30ms")
	o.Components = []string{"tapdisk"}
	st, warnings := o.Steering()
	qt.Check(t, qt.HasLen(warnings, 0))
	qt.Check(t, qt.Equals(st.Requests(), Requests{Slow: 30 * time.Millisecond}))
	qt.Check(t, qt.Equals((&Steering{}).Requests(), Requests{Factor: DefaultFactor}))
	off := Steering{Tapdisk: TapdiskSteering{Off: true, Sample: 5}}
	qt.Check(t, qt.Equals(off.Requests(), Requests{Sample: 5}))
}

func TestSlowAfter(t *testing.T) {
	qt.Check(t, qt.Equals(SlowAfter(8, 0), UnlearnedSlow))
	qt.Check(t, qt.Equals(SlowAfter(8, time.Millisecond), LeastSlow))
	qt.Check(t, qt.Equals(SlowAfter(8, 10*time.Millisecond), 80*time.Millisecond))
	qt.Check(t, qt.Equals(SlowAfter(1000, 1<<62), 24*time.Hour))
}

func guestSpan(name string, took, usual time.Duration, slow bool) *correlate.Span {
	sp := span(event.Tapdisk, name)
	sp.Guest = &correlate.GuestRequest{Took: int64(took), Usual: int64(usual), Slow: slow}
	return sp
}

// TestSetRequests: the kernel is asked for what any Observer wants, and each gets what
// it asked for itself.
func TestSetRequests(t *testing.T) {
	var wanted []string
	b := newBench(fast, func(w Wanted) {
		wanted = append(wanted, fmt.Sprintf("%s %+v", w.Components, w.Requests))
	}, nil)
	with := func(id string, settings ...string) Observer {
		return steeredObserver(id, "http://"+id[:1], append(settings, "components=tapdisk", "waits=false")...)
	}
	const uuidC, uuidD = "cccccccc-0000-4000-8000-000000000003", "dddddddd-0000-4000-8000-000000000004"
	fixed, factor, higher := with(uuidA, "tapdisk.slow=50ms"), with(uuidB), with(uuidC, "tapdisk.slow=200ms")
	none := steeredObserver(uuidD, "http://d", "components=xapi", "waits=false", "tapdisk.slow=1ms")
	b.Apply([]Observer{none})
	b.Apply([]Observer{none, higher})
	b.Apply([]Observer{none, higher, factor})
	b.Apply([]Observer{none, higher, factor, fixed})
	for _, c := range []struct{ took, usual time.Duration }{{40, 1}, {60, 10}, {90, 10}, {90, 0}, {150, 0}, {300, 100}} {
		b.Export(guestSpan(fmt.Sprintf("%d of %d", c.took, c.usual), c.took*time.Millisecond, c.usual*time.Millisecond, true))
	}
	b.Export(guestSpan("sample", 300*time.Millisecond, time.Millisecond, false)) // nobody asked for those
	b.Apply([]Observer{none})
	closeSet(t, b.Set)
	qt.Check(t, qt.DeepEquals(wanted, []string{
		"xapi {Slow:0s Factor:0 Sample:0}",
		"xapi,tapdisk {Slow:200ms Factor:0 Sample:0}",
		"xapi,tapdisk {Slow:200ms Factor:8 Sample:0}",
		"xapi,tapdisk {Slow:50ms Factor:8 Sample:0}",
		"xapi {Slow:0s Factor:0 Sample:0}",
	}))
	qt.Check(t, qt.DeepEquals(b.got("http://a"), []string{"60 of 10", "90 of 10", "90 of 0", "150 of 0", "300 of 100"}))
	qt.Check(t, qt.DeepEquals(b.got("http://b"), []string{"40 of 1", "90 of 10", "150 of 0"}))
	qt.Check(t, qt.DeepEquals(b.got("http://c"), []string{"300 of 100"}))
	qt.Check(t, qt.HasLen(b.got("http://d"), 0))
}

// TestSamples: of the samples that one Observer asked for, another gets the share that
// it asked for; what is slow is a sample as often as anything else; and all spans of a
// request go the same way.
func TestSamples(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 2))
	r := Requests{Sample: 1000}
	const n = 100_000
	count := func(r Requests, told uint32, slow bool) (taken int) {
		for range n {
			sp := guestSpan("x", time.Second, time.Millisecond, slow)
			for i := range sp.TraceID {
				sp.TraceID[i] = byte(random.Uint32())
			}
			if r.take(sp, told) {
				taken++
				if !(&Requests{Sample: r.Sample / 10}).take(sp, told) {
					t.Fatal("who asks for more samples does not have those of who asks for less")
				}
			}
		}
		return taken
	}
	near := func(got, want int) {
		t.Helper()
		qt.Check(t, qt.IsTrue(got > want*9/10-30 && got < want*11/10+30), qt.Commentf("%d, not about %d", got, want))
	}
	near(count(r, 100, false), n/10)
	near(count(r, 1000, false), n)
	near(count(r, 0, false), n)
	near(count(r, 100, true), n/1000)
	near(count(Requests{}, 100, false), 0)
	near(count(Requests{Slow: time.Minute}, 100, true), 0)
}

func TestRequestsAdd(t *testing.T) {
	var r Requests
	for _, o := range []Requests{{}, {Sample: 10}, {Slow: 5, Sample: 100}, {Factor: 8, Slow: 7}, {Factor: 5, Sample: 2}} {
		r.add(o)
	}
	qt.Check(t, qt.Equals(r, Requests{Slow: 5, Factor: 5, Sample: 2}))
}
