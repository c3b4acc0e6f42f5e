package agent

import (
	"errors"
	"testing"

	"github.com/go-quicktest/qt"

	"github.com/xenserver/dtagent/probes/event"
)

func TestGapWatch(t *testing.T) {
	at := func(now event.Time) func() (event.Time, error) {
		return func() (event.Time, error) { return now, nil }
	}
	var g gapWatch
	_, ok := g.look(100, 0, at(101))
	qt.Check(t, qt.IsFalse(ok))
	_, ok = g.look(120, 0, at(121))
	qt.Check(t, qt.IsFalse(ok))
	lost, ok := g.look(140, 3, at(141))
	qt.Check(t, qt.IsTrue(ok))
	isGap(t, &lost, 120, 141, 0)
	_, ok = g.look(160, 3, at(161))
	qt.Check(t, qt.IsFalse(ok))
	lost, ok = g.look(180, 4, func() (event.Time, error) { return 0, errors.New("no clock") })
	qt.Check(t, qt.IsTrue(ok))
	isGap(t, &lost, 160, 180, 0)
}

// isGap asserts that the event tells of a gap and comes at its beginning.
func isGap(t *testing.T, ev *event.Event, first, last event.Time, count uint64) {
	t.Helper()
	qt.Check(t, qt.Equals(ev.Kind, event.KindLost))
	qt.Check(t, qt.Equals(ev.Time, first))
	qt.Check(t, qt.Equals(ev.First, first))
	qt.Check(t, qt.Equals(ev.Last, last))
	qt.Check(t, qt.Equals(ev.Count, count))
}
