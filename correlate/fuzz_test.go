package correlate

import (
	"bytes"
	"testing"
	"time"

	"github.com/xenserver/dtagent/probes/event"
)

// FuzzLoad makes pieces of work of the bytes, and damages their events as the
// next bytes say: nothing panics, every span is sound, all is counted, and the
// tables stay within their limits.
func FuzzLoad(f *testing.F) {
	for kind := range byte(numPieces) {
		f.Add([]byte{3, kind, 1, 0, 1, 2}, []byte{0, 250, 0, 251, 3, 252, 9, 253, 1, 254, 0, 255, 7})
		f.Add([]byte{1, kind, 0, 1, 1, 0}, []byte{})
	}
	f.Fuzz(func(t *testing.T, choices, damage []byte) {
		pick := func(n int) int {
			if len(choices) == 0 || n == 0 {
				return 0
			}
			c := int(choices[0])
			choices = choices[1:]
			return c % n
		}
		events, _ := newLoad(t, pick, pick, 300*time.Microsecond, 100*time.Microsecond).all(1 + pick(6))
		l := Limits{Activities: 16, Conns: 8, Threads: 8, Keys: 8, Buffers: 2, BodyBytes: 512, Age: time.Minute}
		spans := uint64(0)
		e := New(Config{Limits: l, Emit: func(s *Span) {
			spans++
			if !s.TraceID.IsValid() || !s.SpanID.IsValid() || s.End < s.Start || s.Name == "" || s.SpanID == s.ParentID {
				t.Fatalf("bad span %+v", s)
			}
		}})
		sorter := NewSorter(100*time.Millisecond, 64, e.Handle)
		for i := range events {
			for _, ev := range damaged(&events[i], events, &damage) {
				sorter.Add(&ev)
			}
			if i%16 == 0 {
				sorter.Advance(events[i].Time)
				e.Advance(events[i].Time - 1e8)
			}
			st := e.Stats()
			if st.Activities > l.Activities || st.Conns > l.Conns || st.Threads > l.Threads || st.Keys > 6*l.Keys+1024 {
				t.Fatalf("too much is held: %+v", st)
			}
		}
		e.check(t)
		sorter.Drain()
		e.Drain()
		e.check(t)
		if st := e.Stats(); st.Activities != 0 || st.Spans != spans {
			t.Fatalf("%d spans, %+v", spans, st)
		}
	})
}

// damaged is what becomes of an event.
func damaged(ev *event.Event, others []event.Event, damage *[]byte) []event.Event {
	next := func() byte {
		if len(*damage) == 0 {
			return 0
		}
		b := (*damage)[0]
		*damage = (*damage)[1:]
		return b
	}
	e := *ev
	switch next() {
	case 247:
		return nil
	case 248:
		return []event.Event{{Kind: event.KindLost, CPU: e.CPU, Time: e.Time, Count: uint64(next())}}
	case 249:
		return []event.Event{e, e}
	case 250: // only a part of its bytes was seen
		n := min(int(next()), len(e.Head))
		e.Head, e.Tail = e.Head[:n], e.Head[n+(len(e.Head)-n)/2:]
	case 251:
		e.TID = others[int(next())%len(others)].TID
	case 252:
		e.Conn = others[int(next())%len(others)].Conn
	case 253: // other bytes
		e.Head = append(bytes.Clone(e.Head), next())
		e.Head[int(next())%len(e.Head)] = next()
	case 254:
		e.Flags ^= event.Flags(next())
		e.Dir = event.Dir(next() & 3)
	case 255: // comes at another time
		e.Time += event.Time(int8(next())) * 1e7
		e.Kind = event.Kind(next() % 11)
	}
	return []event.Event{e}
}
