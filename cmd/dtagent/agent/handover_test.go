package agent

import (
	"bytes"
	"sync"
	"testing"

	"github.com/go-quicktest/qt"

	"github.com/xenserver/dtagent/probes/event"
)

func TestHandoverCopies(t *testing.T) {
	h := newHandover()
	head, tail := []byte("head"), []byte("tail")
	h.put(&event.Event{Kind: event.KindData, TID: 7, Head: head, Tail: tail})
	copy(head, "XXXX")
	copy(tail, "XXXX")
	s := <-h.full
	qt.Assert(t, qt.Equals(string(s.ev.Head), "head"))
	qt.Assert(t, qt.Equals(string(s.ev.Tail), "tail"))
	qt.Assert(t, qt.Equals(s.ev.TID, 7))
	_ = append(s.ev.Head, '!') // does not reach the tail
	qt.Assert(t, qt.Equals(string(s.ev.Tail), "tail"))
	h.done(s)
	qt.Assert(t, qt.Equals(h.bytes.Load(), 0))
}

func TestHandoverIsBounded(t *testing.T) {
	h := newHandover()
	for range handoverEvents + 5 {
		h.put(&event.Event{Kind: event.KindFork})
	}
	qt.Assert(t, qt.Equals(h.dropped.Load(), 5))
	qt.Assert(t, qt.HasLen(h.full, handoverEvents))

	h = newHandover()
	big := make([]byte, 16<<10)
	for range 2 * handoverBytes / len(big) {
		h.put(&event.Event{Kind: event.KindData, Head: big})
	}
	qt.Assert(t, qt.Equals(h.dropped.Load(), uint64(handoverBytes/len(big))))
	for range handoverBytes / len(big) {
		h.done(<-h.full)
	}
	qt.Assert(t, qt.Equals(h.bytes.Load(), 0))
	h.put(&event.Event{Kind: event.KindData, Head: big})
	qt.Assert(t, qt.HasLen(h.full, 1))
}

func TestHandoverKeepsOrder(t *testing.T) {
	h := newHandover()
	const n = 100_000
	var wg sync.WaitGroup
	var last event.Time
	got := 0
	wg.Go(func() {
		for s := range h.full {
			if s.ev.Time <= last || !bytes.Equal(s.ev.Head, []byte{byte(s.ev.Time)}) {
				t.Errorf("event %d after %d with head %v", s.ev.Time, last, s.ev.Head)
			}
			last = s.ev.Time
			got++
			h.done(s)
		}
	})
	for i := range n {
		h.put(&event.Event{Time: event.Time(i + 1), Head: []byte{byte(i + 1)}})
	}
	h.close()
	wg.Wait()
	qt.Assert(t, qt.Equals(uint64(got)+h.dropped.Load(), n))
}

func TestHandoverDoesNotAllocate(t *testing.T) {
	h := newHandover()
	ev := event.Event{Kind: event.KindData, Head: make([]byte, 500), Tail: make([]byte, 100)}
	for range 2 * handoverEvents { // every slot has its buffer
		h.put(&ev)
		h.done(<-h.full)
	}
	qt.Assert(t, qt.Equals(testing.AllocsPerRun(1000, func() {
		h.put(&ev)
		h.done(<-h.full)
	}), 0))
}

func BenchmarkHandover(b *testing.B) {
	h := newHandover()
	ev := event.Event{Kind: event.KindData, Head: make([]byte, 500)}
	go func() {
		for s := range h.full {
			h.done(s)
		}
	}()
	b.ReportAllocs()
	for b.Loop() {
		h.put(&ev)
	}
	h.close()
	b.ReportMetric(float64(h.dropped.Load())/float64(b.N), "dropped/op")
}
