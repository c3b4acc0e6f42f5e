package agent

import (
	"bytes"
	"sync"
	"testing"

	"github.com/go-quicktest/qt"

	"github.com/xenserver/dtagent/probes/event"
)

func TestHandoverCopies(t *testing.T) {
	h := newHandover(DefaultQueue)
	head, tail := []byte("head"), []byte("tail")
	h.put(&event.Event{Kind: event.KindData, TID: 7, Head: head, Tail: tail})
	copy(head, "XXXX")
	copy(tail, "XXXX")
	b, more := h.take(batch{})
	qt.Assert(t, qt.IsTrue(more))
	qt.Assert(t, qt.HasLen(b.events, 1))
	ev := &b.events[0]
	qt.Assert(t, qt.Equals(string(ev.Head), "head"))
	qt.Assert(t, qt.Equals(string(ev.Tail), "tail"))
	qt.Assert(t, qt.Equals(ev.TID, 7))
	_ = append(ev.Head, '!') // does not reach the tail
	qt.Assert(t, qt.Equals(string(ev.Tail), "tail"))
	h.put(&event.Event{Kind: event.KindFork}) // while the engine works on the batch
	qt.Assert(t, qt.Equals(string(ev.Head), "head"))
	b, _ = h.take(b)
	qt.Assert(t, qt.HasLen(b.events, 1))
	qt.Assert(t, qt.IsNil(b.events[0].Head))
}

func TestHandoverIsBounded(t *testing.T) {
	h := newHandover(DefaultQueue)
	for range DefaultQueue + 5 {
		h.put(&event.Event{Kind: event.KindFork})
	}
	qt.Assert(t, qt.Equals(h.dropped.Load(), 5))
	qt.Assert(t, qt.Equals(h.waiting(), DefaultQueue))

	h = newHandover(DefaultQueue)
	big := make([]byte, 16<<10)
	for range 2 * handoverBytes / len(big) {
		h.put(&event.Event{Kind: event.KindData, Head: big})
	}
	qt.Assert(t, qt.Equals(h.dropped.Load(), uint64(handoverBytes/len(big))))
	b, _ := h.take(batch{})
	qt.Assert(t, qt.HasLen(b.events, handoverBytes/len(big)+1)) // and what says that some are missing
	h.take(b)
	qt.Assert(t, qt.IsTrue(cap(h.filling.payload) <= keptBytes)) // a peak is not kept
}

func TestHandoverTellsTheGap(t *testing.T) {
	h := newHandover(DefaultQueue)
	for range DefaultQueue {
		h.put(&event.Event{Kind: event.KindFork, Time: 1})
	}
	for _, ev := range []event.Event{
		{Kind: event.KindFork, Time: 7}, {Kind: event.KindFork, Time: 5}, // of two CPUs
		{Kind: event.KindLost, Time: 6, First: 3, Last: 6, Count: 9},
		{Kind: event.KindFork, Time: 8},
	} {
		h.put(&ev)
	}
	b, _ := h.take(batch{})
	qt.Assert(t, qt.HasLen(b.events, DefaultQueue+1))
	isGap(t, &b.events[DefaultQueue], 3, 8, 4)
	h.put(&event.Event{Kind: event.KindFork, Time: 9})
	b, _ = h.take(b)
	qt.Assert(t, qt.HasLen(b.events, 1)) // the gap is over
	qt.Assert(t, qt.Equals(b.events[0].Kind, event.KindFork))
}

func TestHandoverWakesHalfFull(t *testing.T) {
	h := newHandover(DefaultQueue)
	for i := range DefaultQueue / 2 {
		qt.Assert(t, qt.HasLen(h.half, 0), qt.Commentf("%d events", i))
		h.put(&event.Event{Kind: event.KindFork})
	}
	qt.Assert(t, qt.HasLen(h.half, 1))
}

func TestHandoverKeepsOrder(t *testing.T) {
	h := newHandover(DefaultQueue)
	const n = 100_000
	var wg sync.WaitGroup
	got, told := 0, uint64(0)
	wg.Go(func() {
		var last event.Time
		var b batch
		for more := true; more; {
			b, more = h.take(b)
			for i := range b.events {
				ev := &b.events[i]
				if ev.Kind == event.KindLost {
					told += ev.Count
					continue
				}
				if ev.Time <= last || !bytes.Equal(ev.Head, []byte{byte(ev.Time)}) {
					t.Errorf("event %d after %d with head %v", ev.Time, last, ev.Head)
				}
				last = ev.Time
				got++
			}
			if more {
				<-h.half
			}
		}
	})
	for i := range n {
		h.put(&event.Event{Time: event.Time(i + 1), Head: []byte{byte(i + 1)}})
	}
	h.close()
	wg.Wait()
	qt.Assert(t, qt.Equals(uint64(got)+h.dropped.Load(), n))
	qt.Assert(t, qt.Equals(told+h.gap.events, h.dropped.Load()))
}

func TestHandoverDoesNotAllocate(t *testing.T) {
	h := newHandover(DefaultQueue)
	ev := event.Event{Kind: event.KindData, Head: make([]byte, 500), Tail: make([]byte, 100)}
	var b batch
	turn := func() {
		for range 100 {
			h.put(&ev)
		}
		b, _ = h.take(b)
	}
	turn()
	turn() // both batches have grown
	qt.Assert(t, qt.Equals(testing.AllocsPerRun(100, turn), 0))
}

func BenchmarkHandover(b *testing.B) {
	h := newHandover(DefaultQueue)
	ev := event.Event{Kind: event.KindData, Head: make([]byte, 500)}
	var done batch
	b.ReportAllocs()
	for i := 0; b.Loop(); i++ {
		h.put(&ev)
		if i%256 == 0 {
			done, _ = h.take(done)
		}
	}
}
