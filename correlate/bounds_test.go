package correlate

import (
	"flag"
	"math/rand/v2"
	"runtime"
	"testing"
	"time"

	"github.com/xenserver/dtagent/probes/event"
)

var loadRate = flag.Float64("load", 4, "pieces of work a second in the tests of an hour's load: a real hour is 200 or more")

// level is what an Engine holds at some minute.
type level struct {
	activities, trees, conns, threads, keys int
	heap                                    uint64 // bytes in use; 0: not asked
}

func (l *level) raise(s *Stats) {
	l.activities, l.trees = max(l.activities, s.Activities), max(l.trees, s.Trees)
	l.conns, l.threads, l.keys = max(l.conns, s.Conns), max(l.threads, s.Threads), max(l.keys, s.Keys)
}

func heapInUse() uint64 {
	var m runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&m)
	return m.HeapAlloc
}

// hour plays an hour of mixed load to an Engine, as fast as it goes, together
// with what an attacker does that often a second. It returns the highest levels
// of minutes 5 to 10, and of minutes 10 to 60.
func hour(t *testing.T, attacks float64, l Limits) (early, later level, st Stats, sorter SorterStats) {
	chance := rand.New(rand.NewPCG(5, 6))
	random := rand.New(rand.NewPCG(7, 8))
	e := New(Config{Rand: random.Uint64, Limits: l})
	s := NewSorter(propertyWindow, 8192, e.Handle)
	load := newLoad(t, chance.IntN, chance.IntN, time.Duration(float64(time.Second) / *loadRate), 200*time.Millisecond)

	begin := load.now
	tick, minute, attack := begin, begin, begin
	minutes, n := 0, uint64(0)
	var ev, bad event.Event
	for minutes <= 60 {
		if len(load.going) == 0 || load.now <= load.going[0].time {
			load.begin()
			continue
		}
		if !load.step(&ev) {
			continue
		}
		for ; attacks > 0 && attack < ev.Time; attack += event.Time(float64(time.Second) / attacks) {
			hostile(&bad, n, chance)
			n++
			d := attack - bad.Time
			bad.Time, bad.First, bad.Last = attack, bad.First+d, bad.Last+d
			s.Add(&bad)
		}
		for ; tick <= ev.Time; tick += event.Time(propertyTick) {
			s.Advance(tick)
			e.Advance(tick - event.Time(propertyWindow))
		}
		s.Add(&ev)
		if ev.Time < minute+event.Time(time.Minute) {
			continue
		}
		minute += event.Time(time.Minute)
		minutes++
		st = e.Stats()
		switch {
		case minutes <= 10:
			if minutes >= 5 {
				early.raise(&st)
			}
			if minutes == 10 {
				early.heap = heapInUse()
			}
		default:
			later.raise(&st)
			if minutes%10 == 0 {
				later.heap = max(later.heap, heapInUse())
			}
		}
	}
	e.check(t)
	st, sorter = e.Stats(), s.Stats()
	t.Logf("%d pieces of work, %d attacks, %d events: %d spans", load.next, n, st.Events, st.Spans)
	t.Logf("minutes 5 to 10: %+v; minutes 10 to 60: %+v", early, later)
	return early, later, st, sorter
}

// flat asserts that a level did not rise: what was reached in the first minutes
// holds, but for chance.
func flat(t *testing.T, what string, early, later int) {
	t.Helper()
	if later > early+early/2+50 {
		t.Errorf("%s rose from %d to %d", what, early, later)
	}
}

// TestHour: an hour of mixed load holds all tables and the heap at the level of
// its first minutes.
func TestHour(t *testing.T) {
	early, later, st, sorter := hour(t, 0, Limits{})
	flat(t, "activities", early.activities, later.activities)
	flat(t, "trees", early.trees, later.trees)
	flat(t, "connections", early.conns, later.conns)
	flat(t, "threads", early.threads, later.threads)
	flat(t, "keys", early.keys, later.keys)
	if later.heap > early.heap+early.heap/2+4<<20 {
		t.Errorf("the heap rose from %d to %d KiB", early.heap>>10, later.heap>>10)
	}
	for what, n := range map[string]uint64{
		"activities evicted": st.ActivitiesEvicted, "activities too old": st.ActivitiesAged, "keys too old": st.KeysAged,
		"connections evicted": st.ConnsEvicted, "threads evicted": st.ThreadsEvicted, "messages evicted": st.MessagesEvicted,
		"tasks of xenopsd evicted": st.JobsEvicted, "tasks evicted": st.TasksEvicted, "pushes evicted": st.PushesEvicted,
		"bad heads": st.BadHeads, "bad messages": st.BadMessages, "conflicts": st.Conflicts, "reassigned": st.Reassigned,
		"late events": sorter.Late, "events forced": sorter.Forced,
	} {
		if n != 0 {
			t.Errorf("%d %s", n, what)
		}
	}
}

// TestHourUnderAttack: the same with somebody who begins what they never end:
// connections, requests, heads, tasks, messages. Tables fill up to their limits and
// stay there, what had to go is counted, and so does the heap.
func TestHourUnderAttack(t *testing.T) {
	l := Limits{Activities: 256, Conns: 128, Threads: 128, Keys: 512, Age: 5 * time.Minute}
	early, later, st, _ := hour(t, 25, l)
	for _, x := range []struct {
		what     string
		is, most int
	}{
		{"activities", later.activities, l.Activities}, {"connections", later.conns, l.Conns}, {"threads", later.threads, l.Threads},
		// messages, tasks of xenopsd, tasks, ended ones, calls in and out, pushes
		{"keys", later.keys, 6*l.Keys + 1024},
	} {
		if x.is > x.most {
			t.Errorf("%d %s, %d are allowed", x.is, x.what, x.most)
		}
	}
	flat(t, "trees", early.trees, later.trees)
	flat(t, "keys", early.keys, later.keys)
	if later.heap > early.heap+early.heap/2+4<<20 {
		t.Errorf("the heap rose from %d to %d KiB", early.heap>>10, later.heap>>10)
	}
	for what, n := range map[string]uint64{
		"activities evicted or too old": st.ActivitiesEvicted + st.ActivitiesAged, "keys too old": st.KeysAged,
		"connections evicted": st.ConnsEvicted, "threads evicted": st.ThreadsEvicted,
		"messages evicted": st.MessagesEvicted, "bad heads": st.BadHeads,
	} {
		if n == 0 {
			t.Errorf("no %s", what)
		}
	}
}
