package correlate

import (
	"math/rand/v2"
	"testing"
	"time"

	"github.com/go-quicktest/qt"

	"github.com/xenserver/dtagent/probes/event"
)

// stepped is a wall clock that is set at a time, and what it showed before.
func stepped(at event.Time, by time.Duration) func(event.Time) int64 {
	return func(t event.Time) int64 {
		if t >= at {
			return int64(t) + int64(by)
		}
		return int64(t)
	}
}

// When the wall clock steps in the midst of a call, whenever and however, each span
// is as long as it was, and as far from the others. What begins later is told by the
// new clock.
func TestClockSteps(t *testing.T) {
	type times struct{ start, end int64 }
	run := func(wall func(event.Time) int64) (map[string]times, []event.Event) {
		s := newScript(t)
		s.e.cfg.Wall = wall
		rnd := rand.New(rand.NewPCG(3, 3))
		var events []event.Event
		for i := range 2 { // one after the other
			for _, ev := range newWork(t, i, rnd).events {
				s.now += 1000
				d := s.now - ev.Time
				ev.Time, ev.First, ev.Last = s.now, ev.First+d, ev.Last+d
				events = append(events, ev)
				s.e.Handle(&ev)
			}
			s.wait(10 * time.Second)
		}
		out := map[string]times{}
		for _, sp := range s.spans {
			out[sp.Name] = times{sp.Start, sp.End}
		}
		return out, events
	}
	want, events := run(stepped(1<<62, 0))
	qt.Assert(t, qt.IsTrue(len(want) >= 10))
	for _, by := range []time.Duration{time.Hour, -time.Hour, 5 * time.Millisecond} {
		for _, ev := range events {
			got, _ := run(stepped(ev.Time, by))
			qt.Assert(t, qt.HasLen(got, len(want)))
			shifts := map[byte]map[int64]bool{'0': {}, '1': {}} // of the first call's spans, of the second's
			for name, w := range want {
				g := got[name]
				qt.Check(t, qt.Equals(g.end-g.start, w.end-w.start), qt.Commentf("%s, step of %v at %d", name, by, ev.Time))
				shifts[name[len(name)-1]][g.start-w.start] = true
			}
			qt.Check(t, qt.HasLen(shifts['0'], 1), qt.Commentf("step of %v at %d", by, ev.Time))
			qt.Check(t, qt.HasLen(shifts['1'], 1), qt.Commentf("step of %v at %d", by, ev.Time))
		}
	}
	// The step is between the calls.
	got, _ := run(stepped(events[len(events)/2].Time-5_000, time.Hour))
	qt.Check(t, qt.Equals(got["VM_op0"].start, want["VM_op0"].start))
	late, _ := run(stepped(1, time.Hour))
	qt.Check(t, qt.Equals(late["VM_op1"].start, want["VM_op1"].start+int64(time.Hour)))
}

// A tree that lasts for long goes by the clock of then.
func TestOldTreesFollowTheClock(t *testing.T) {
	e := New(Config{Wall: stepped(event.Time(30*time.Minute), time.Hour)})
	tr := &tree{began: event.Time(time.Minute)}
	qt.Check(t, qt.Equals(e.wall(tr, event.Time(2*time.Minute)), int64(2*time.Minute)))
	qt.Check(t, qt.Equals(e.wall(tr, event.Time(59*time.Minute)), int64(59*time.Minute)))
	qt.Check(t, qt.Equals(e.wall(tr, event.Time(2*time.Hour)), int64(3*time.Hour)))
	qt.Check(t, qt.Equals(e.wall(tr, event.Time(3*time.Minute)), int64(3*time.Minute))) // it ends late
}
