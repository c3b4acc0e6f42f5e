package recording

import (
	"context"
	"sync"
	"testing"

	"github.com/go-quicktest/qt"

	"github.com/xenserver/dtagent/probes/clock"
	"github.com/xenserver/dtagent/probes/event"
)

func nothing(func(*event.Event)) {}

func events(at event.Time, n int) (out []event.Event) {
	for i := range n {
		out = append(out, event.Event{Kind: event.KindFork, TGID: 1, TID: uint32(i), Time: at + event.Time(i)})
	}
	return out
}

// drain reads all that a Tap has until it ends.
func drain(t testing.TB, tap *Tap) (all []Item) {
	t.Helper()
	for {
		b, err := tap.Next(t.Context())
		if err != nil {
			qt.Assert(t, qt.ErrorIs(err, ErrEnded))
			return all
		}
		c, now := cursor{b: b.raw}, event.Time(0)
		for len(c.b) > 0 {
			var it Item
			c.item(&it, &now, names{})
			qt.Assert(t, qt.IsNil(c.err))
			all = append(all, it)
		}
	}
}

func TestLive(t *testing.T) {
	var l Live
	o := clock.Offsets{{Since: 1, Add: 2}}
	l.Turn(events(1, 5), 10, o, func(func(*event.Event)) { t.Error("nobody records") })
	first, err := l.Join()
	qt.Assert(t, qt.IsNil(err))
	known := 0
	tell := func(fn func(*event.Event)) {
		known++
		fn(&event.Event{Kind: event.KindOpen, TGID: 9, Time: 11})
	}
	l.Turn(events(20, 2), 30, o, tell)
	l.Turn(nil, 0, o, tell) // the time is not known
	second, err := l.Join()
	qt.Assert(t, qt.IsNil(err))
	stepped := clock.Offsets{{Since: 35, Add: 5}, o[0]}
	l.Turn(events(40, 1), 50, stepped, tell)
	l.Close()
	l.Close()
	qt.Check(t, qt.Equals(known, 2))

	kinds := func(items []Item) (out []ItemKind) {
		for _, it := range items {
			out = append(out, it.Kind)
		}
		return out
	}
	got := drain(t, first)
	qt.Check(t, qt.DeepEquals(kinds(got), []ItemKind{ItemClock, ItemEvent, ItemEvent, ItemEvent, ItemTick, ItemClock, ItemEvent, ItemTick}))
	qt.Check(t, qt.DeepEquals(got[0].Offsets, o))
	qt.Check(t, qt.Equals(got[1].Event.Kind, event.KindOpen))
	qt.Check(t, qt.Equals(got[4].Now, 30))
	qt.Check(t, qt.DeepEquals(got[5].Offsets, stepped))
	got = drain(t, second)
	qt.Check(t, qt.DeepEquals(kinds(got), []ItemKind{ItemClock, ItemEvent, ItemClock, ItemEvent, ItemTick}))
	qt.Check(t, qt.DeepEquals(got[0].Offsets, stepped))

	_, err = l.Join()
	qt.Check(t, qt.ErrorIs(err, ErrEnded))
	l.Turn(events(60, 1), 70, o, tell)
}

func TestTapsAreBounded(t *testing.T) {
	var l Live
	defer l.Close()
	var taps []*Tap
	for range maxTaps {
		tap, err := l.Join()
		qt.Assert(t, qt.IsNil(err))
		taps = append(taps, tap)
	}
	_, err := l.Join()
	qt.Assert(t, qt.ErrorMatches(err, `4 recordings are being made already`))
	taps[0].Leave()
	taps[0].Leave()
	_, err = l.Join()
	qt.Assert(t, qt.IsNil(err))
}

// TestSlowTapLoses does not read while more is told than a Tap holds. All that is
// missing is counted, where it is missing.
func TestSlowTapLoses(t *testing.T) {
	var l Live
	slow, err := l.Join()
	qt.Assert(t, qt.IsNil(err))
	const turns, each = 3 * tapBlocks, 10
	step := 2 * liveAge // each turn is a block
	turn := func(i int) {
		o := clock.Offsets{{Add: int64(i / tapBlocks)}}
		l.Turn(events(event.Time(i)*step, each), event.Time(i)*step+100, o, nothing)
	}
	for i := range turns {
		turn(i + 1)
	}
	var got []*Block
	for slow.Waiting() > 0 { // the reader wakes up
		b, err := slow.Next(t.Context())
		qt.Assert(t, qt.IsNil(err))
		got = append(got, b)
	}
	for i := range 5 {
		turn(turns + i + 1)
	}
	l.Close()
	var sum Totals
	for _, b := range got {
		sum.add(b.Totals())
	}
	qt.Check(t, qt.Equals(sum.Lost, 0))
	qt.Check(t, qt.IsTrue(sum.Events > 0))
	items := drain(t, slow)
	qt.Assert(t, qt.IsTrue(len(items) > 2))
	qt.Check(t, qt.Equals(items[0].Kind, ItemClock)) // the one told meanwhile was lost, too
	qt.Check(t, qt.Equals(items[1].Kind, ItemLost))
	qt.Check(t, qt.IsTrue(items[1].Now <= turns*step+100 && items[1].Now > tapBlocks*step))
	var lost uint64
	for _, it := range items {
		switch it.Kind {
		case ItemEvent:
			sum.Events++
		case ItemLost:
			lost += it.Lost
		}
	}
	qt.Check(t, qt.IsTrue(lost > 0))
	qt.Check(t, qt.Equals(sum.Events+lost, (turns+5)*each))
	qt.Check(t, qt.Equals(l.Stats(), LiveStats{Lost: lost}))
}

// TestLostAtTheEnd tells of blocks that were lost when no other follows.
func TestLostAtTheEnd(t *testing.T) {
	var l Live
	tap, err := l.Join()
	qt.Assert(t, qt.IsNil(err))
	const turns = 2 * tapBlocks
	for i := range turns {
		l.Turn(events(event.Time(i+1)*2*liveAge, 1), event.Time(i+1)*2*liveAge, nil, nothing)
	}
	l.Close()
	items := drain(t, tap)
	last := items[len(items)-1]
	qt.Assert(t, qt.Equals(last.Kind, ItemLost))
	var n uint64
	for _, it := range items {
		if it.Kind == ItemEvent {
			n++
		}
	}
	qt.Check(t, qt.Equals(n+last.Lost, turns))
}

func TestNextEndsWithItsContext(t *testing.T) {
	var l Live
	tap, err := l.Join()
	qt.Assert(t, qt.IsNil(err))
	defer tap.Leave()
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_, err = tap.Next(ctx)
	qt.Assert(t, qt.ErrorIs(err, context.Canceled))
}

// TestLiveTogether lets taps come and go while turns are told.
func TestLiveTogether(t *testing.T) {
	var l Live
	var turning, reading sync.WaitGroup
	stop := make(chan struct{})
	turning.Go(func() {
		for i := event.Time(1); ; i++ {
			select {
			case <-stop:
				return
			default:
				l.Turn(events(i*1000, 50), i*1000+500, clock.Offsets{{Add: int64(i / 100)}}, nothing)
			}
		}
	})
	for range maxTaps - 1 {
		reading.Go(func() {
			for range 20 {
				tap, err := l.Join()
				if err != nil {
					t.Error(err)
					return
				}
				for range 3 {
					b, err := tap.Next(t.Context())
					if err != nil || b.Len() == 0 {
						t.Error(err, "or an empty block")
						break
					}
				}
				tap.Leave()
			}
		})
	}
	reading.Wait()
	close(stop)
	turning.Wait()
	l.Close()
}

// TestTurnCostsNothing when nobody records.
func TestTurnCostsNothing(t *testing.T) {
	var l Live
	evs, o := events(1, 50), clock.Offsets{{Add: 1}}
	qt.Assert(t, qt.Equals(testing.AllocsPerRun(100, func() { l.Turn(evs, 5, o, nothing) }), 0))
}
