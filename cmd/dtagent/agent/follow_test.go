package agent

import (
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/go-quicktest/qt"
	"github.com/xenserver/dtagent/observer"
	"github.com/xenserver/dtagent/probes/event"
)

// fakeProber is a prober on a kernel that may refuse things.
type fakeProber struct {
	waits            bool
	threshold        time.Duration
	wanted           event.Components
	noWaits, nothing error
}

func (p *fakeProber) SetWaits(on bool, threshold time.Duration) error {
	p.waits, p.threshold = on, threshold
	return nil
}

func (p *fakeProber) Want(c event.Components) error {
	p.wanted = c
	if p.waits && p.noWaits != nil {
		return p.noWaits
	}
	return p.nothing
}

func TestFollow(t *testing.T) {
	w := observer.Wanted{Components: event.Of(event.Xapi), Waits: true, WaitThreshold: time.Second}
	p := &fakeProber{}
	qt.Check(t, qt.IsNil(follow(p, w)))
	qt.Check(t, qt.Equals(fmt.Sprint(p.wanted, p.waits, p.threshold), "xapi true 1s"))
	w.Waits, w.WaitThreshold = false, 0
	qt.Check(t, qt.IsNil(follow(p, w)))
	qt.Check(t, qt.Equals(fmt.Sprint(p.wanted, p.waits, p.threshold), "xapi false 0s"))

	// Spans are worth having without waits, and the cause is told.
	p.noWaits = errors.New("no sched_switch")
	qt.Check(t, qt.IsNil(follow(p, w)))
	w.Waits = true
	err := follow(p, w)
	qt.Check(t, qt.ErrorIs(err, errNoWaits))
	qt.Check(t, qt.ErrorIs(err, p.noWaits))
	qt.Check(t, qt.Equals(fmt.Sprint(p.wanted, p.waits), "xapi false"))

	p.nothing = errors.New("no eBPF")
	for _, w.Waits = range []bool{true, false} {
		err := follow(p, w)
		qt.Check(t, qt.IsNotNil(err))
		qt.Check(t, qt.IsFalse(errors.Is(err, errNoWaits)))
	}
}
