package agent

import (
	"slices"

	"github.com/xenserver/dtagent/probes/event"
)

// gapWatch looks at the kernel side's counters of losses. The gap in the numbers of
// records is seen with the next record of the same CPU only; by then the engine may
// have handled what other CPUs told after the loss. A counter is seen at once: when
// it has grown since the last look, events were lost since then.
type gapWatch struct {
	seen uint64
	at   event.Time // of the last look
}

// look is called after events were taken that are handled next, with the time then. It
// returns a KindLost when something may be missing, which has to be handled before
// any event that was made later.
func (g *gapWatch) look(now event.Time, counted uint64, then func() (event.Time, error)) (lost event.Event, ok bool) {
	since := g.at
	g.at = now
	if counted == g.seen {
		return event.Event{}, false
	}
	g.seen = counted
	until, err := then()
	if err != nil {
		until = now
	}
	return event.Event{Kind: event.KindLost, Time: since, First: since, Last: until}, true // how many, the records tell
}

// lossesFirst puts the losses of a batch before its other events: what is missing
// takes effect before what is there.
func lossesFirst(events []event.Event) {
	isLoss := func(ev event.Event) bool { return ev.Kind == event.KindLost }
	if !slices.ContainsFunc(events, isLoss) {
		return
	}
	slices.SortStableFunc(events, func(a, b event.Event) int {
		switch la, lb := isLoss(a), isLoss(b); {
		case la && !lb:
			return -1
		case lb && !la:
			return 1
		}
		return 0
	})
}
