package control

import (
	"context"
	"errors"
	"log/slog"
	"path/filepath"
	"testing"

	"github.com/go-quicktest/qt"

	"github.com/xenserver/dtagent/probes/clock"
	"github.com/xenserver/dtagent/probes/event"
	"github.com/xenserver/dtagent/probes/recording"
)

// live starts a Server whose recordings are of live.
func live(t *testing.T, live *recording.Live) (*Server, string) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "run", "control.sock")
	ln, err := Listen(path)
	qt.Assert(t, qt.IsNil(err))
	s := NewServer(Sources{Status: func() Status { return Status{} }, Record: func() (*recording.Header, *recording.Tap, error) {
		tap, err := live.Join()
		return &recording.Header{ID: "x", Version: "v"}, tap, err
	}}, slog.New(slog.DiscardHandler))
	done := make(chan error, 1)
	go func() { done <- s.Serve(ln) }()
	t.Cleanup(func() {
		live.Close()
		qt.Check(t, qt.IsNil(s.Close()))
		qt.Check(t, qt.IsNil(<-done))
	})
	return s, path
}

// turn tells n events with a payload.
func turn(l *recording.Live, at event.Time, n int) {
	var evs []event.Event
	for i := range n {
		evs = append(evs, event.Event{Kind: event.KindData, Dir: event.In, Time: at + event.Time(i), Bytes: 1000, Head: make([]byte, 1000)})
	}
	l.Turn(evs, at+event.Time(n), clock.Offsets{{Add: 1}}, func(func(*event.Event)) {})
}

func TestRecord(t *testing.T) {
	var l recording.Live
	_, path := live(t, &l)
	var got recording.Totals
	ended, err := NewClient(path).Record(t.Context(), func(h *recording.Header) error {
		qt.Check(t, qt.Equals(h.Version, "v"))
		for i := range 20 {
			turn(&l, event.Time(1000*(i+1)), 100)
		}
		go l.Close()
		return nil
	}, func(b *recording.Block) error {
		got.Events += b.Totals().Events
		return nil
	})
	qt.Assert(t, qt.IsNil(err))
	qt.Check(t, qt.Equals(ended, "the agent stops"))
	qt.Check(t, qt.Equals(got.Events, 2000))
}

// TestSlowRecorderLosesAndIsTold: the agent does not wait for one, and what it could
// not take is counted in its recording.
func TestSlowRecorderLosesAndIsTold(t *testing.T) {
	var l recording.Live
	_, path := live(t, &l)
	const turns, each = 400, 100 // 40 MB, more than the sockets and the Tap hold
	begun := false
	var got recording.Totals
	_, err := NewClient(path).Record(t.Context(), func(*recording.Header) error {
		turn(&l, 1000, each)
		return nil
	}, func(b *recording.Block) error {
		if !begun { // nobody reads meanwhile
			begun = true
			for i := range turns {
				turn(&l, event.Time(1_000_000*(i+1)), each)
			}
			go l.Close()
		}
		s := b.Totals()
		got.Events, got.Lost = got.Events+s.Events, got.Lost+s.Lost
		return nil
	})
	qt.Assert(t, qt.IsNil(err))
	qt.Check(t, qt.IsTrue(got.Lost > 0))
	qt.Check(t, qt.Equals(got.Events+got.Lost, (turns+1)*each))
}

func TestRecordEnds(t *testing.T) {
	var l recording.Live
	_, path := live(t, &l)
	c := NewClient(path)
	ctx, cancel := context.WithCancel(t.Context())
	ended, err := c.Record(ctx, func(*recording.Header) error { cancel(); return nil }, func(*recording.Block) error { return nil })
	qt.Check(t, qt.IsNil(err))
	qt.Check(t, qt.Equals(ended, ""))

	full := errors.New("no space left on device")
	_, err = c.Record(t.Context(), func(*recording.Header) error { return full }, nil)
	qt.Check(t, qt.ErrorIs(err, full))

	l.Close()
	_, err = c.Record(t.Context(), nil, nil)
	qt.Check(t, qt.ErrorMatches(err, `.*503 .*the agent stops`))
	_, err = NewClient(path+"-absent").Record(t.Context(), nil, nil)
	qt.Check(t, qt.ErrorIs(err, ErrNotRunning))
}
