package correlate

import (
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"github.com/go-quicktest/qt"
	"github.com/xenserver/dtagent/probes/event"
)

func TestSorter(t *testing.T) {
	var got []event.Time
	s := NewSorter(100, 10, func(ev *event.Event) {
		got = append(got, ev.Time)
		qt.Check(t, qt.Equals(string(ev.Head), "head"))
		qt.Check(t, qt.Equals(string(ev.Tail), "tail"))
	})
	head, tail := []byte("head"), []byte("tail")
	add := func(at event.Time) {
		s.Add(&event.Event{Time: at, Head: head, Tail: tail})
		copy(head, "xxxx") // the sorter has a copy
		copy(tail, "xxxx")
		copy(head, "head")
		copy(tail, "tail")
	}
	add(1000)
	add(990)
	add(1050)
	qt.Assert(t, qt.HasLen(got, 0))
	add(1095)
	qt.Assert(t, qt.DeepEquals(got, []event.Time{990}))
	s.Advance(1100)
	qt.Assert(t, qt.DeepEquals(got, []event.Time{990, 1000}))
	add(995)
	qt.Assert(t, qt.DeepEquals(got, []event.Time{990, 1000, 995}))
	qt.Check(t, qt.Equals(s.Stats().Late, 1))
	add(1001)
	s.Drain()
	qt.Assert(t, qt.DeepEquals(got, []event.Time{990, 1000, 995, 1001, 1050, 1095}))
	qt.Check(t, qt.Equals(s.Stats(), SorterStats{Events: 6, Late: 1}))
}

func TestSorterFull(t *testing.T) {
	var got []event.Time
	s := NewSorter(time.Hour, 3, func(ev *event.Event) { got = append(got, ev.Time) })
	for _, at := range []event.Time{5, 4, 6, 3, 9, 7} {
		s.Add(&event.Event{Time: at})
	}
	qt.Check(t, qt.DeepEquals(got, []event.Time{3, 4, 5}))
	qt.Check(t, qt.Equals(s.Stats(), SorterStats{Events: 6, Forced: 3, Held: 3}))
	s.Drain()
	qt.Check(t, qt.DeepEquals(got, []event.Time{3, 4, 5, 6, 7, 9}))
}

// Events of the same time stay in the order in which they came.
func TestSorterStable(t *testing.T) {
	var got []uint64
	s := NewSorter(10, 1000, func(ev *event.Event) { got = append(got, ev.Count) })
	for i := range uint64(100) {
		s.Add(&event.Event{Time: event.Time(i / 10), Count: i})
	}
	s.Drain()
	qt.Check(t, qt.IsTrue(slices.IsSorted(got)))
	qt.Check(t, qt.HasLen(got, 100))
}

func TestSorterRandom(t *testing.T) {
	rnd := rand.New(rand.NewPCG(1, 2))
	const window = 1000
	var got []event.Time
	s := NewSorter(window, 1<<20, func(ev *event.Event) { got = append(got, ev.Time) })
	now := event.Time(1e6)
	for range 10000 {
		now += event.Time(rnd.IntN(50))
		s.Add(&event.Event{Time: now - event.Time(rnd.IntN(window))})
	}
	s.Drain()
	qt.Check(t, qt.HasLen(got, 10000))
	qt.Check(t, qt.IsTrue(slices.IsSorted(got)))
	qt.Check(t, qt.Equals(s.Stats().Late, 0))
}

func TestSorterAllocatesNothing(t *testing.T) {
	s := NewSorter(1000, 100, func(*event.Event) {})
	head := make([]byte, 1024)
	ev := &event.Event{Head: head}
	run := func() {
		ev.Time += 10
		s.Add(ev)
	}
	for range 1000 {
		run()
	}
	qt.Check(t, qt.Equals(testing.AllocsPerRun(1000, run), 0))
}

func BenchmarkSorter(b *testing.B) {
	s := NewSorter(100_000, 1<<16, func(*event.Event) {})
	head := make([]byte, 256)
	ev := &event.Event{Head: head}
	now := event.Time(0)
	b.ReportAllocs()
	for b.Loop() {
		now += 1000
		ev.Time = now ^ 0xfff
		s.Add(ev)
	}
}

// Events of two CPUs that were made in the same ns come out in one order,
// whichever was read first; those of one CPU in theirs.
func TestSorterTies(t *testing.T) {
	var orders [2][]uint32
	for i, cpus := range [][]uint16{{0, 0, 1, 1}, {1, 1, 0, 0}} {
		s := NewSorter(100*time.Millisecond, 10, func(ev *event.Event) { orders[i] = append(orders[i], ev.TID) })
		n := [2]uint32{}
		for _, cpu := range cpus {
			n[cpu]++
			s.Add(&event.Event{Time: 5, CPU: cpu, TID: 10*uint32(cpu) + n[cpu]})
		}
		s.Drain()
	}
	qt.Check(t, qt.DeepEquals(orders[0], []uint32{1, 2, 11, 12}))
	qt.Check(t, qt.DeepEquals(orders[1], orders[0]))
}
