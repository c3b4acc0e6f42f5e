package agent

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/xenserver/dtagent/observer"
	"github.com/xenserver/dtagent/probes/guestio"
)

// errNoRequests says that no requests of guests are told.
var errNoRequests = errors.New("requests of guests are not told")

// requestProbe is a guestio.Probe, as far as requests go.
type requestProbe interface {
	Follow(ctx context.Context, w guestio.Want) (leave func(), err error)
}

// requests has a probe tell the requests of guests that the Observers want. It belongs
// to one goroutine.
type requests struct {
	probe requestProbe
	held  map[guestio.Want]func() // by what is followed: how to leave
}

// follow has those told that are wanted. What is wanted of each kind is followed by
// itself. What is no longer wanted is left after that, so that nothing is detached that
// is needed again at once.
func (r *requests) follow(ctx context.Context, w observer.Requests) error {
	var errs []error
	wanted := map[guestio.Want]bool{}
	for _, want := range wantsOf(w) {
		wanted[want] = true
		if r.held[want] != nil {
			continue
		}
		leave, err := r.probe.Follow(ctx, want)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		if r.held == nil {
			r.held = map[guestio.Want]func(){}
		}
		r.held[want] = leave
	}
	for want, leave := range r.held {
		if !wanted[want] {
			leave()
			delete(r.held, want)
		}
	}
	if len(errs) > 0 {
		return fmt.Errorf("%w: %w", errNoRequests, errs[0]) // all fail alike
	}
	return nil
}

// wantsOf is what the probe is asked for.
func wantsOf(w observer.Requests) (out []guestio.Want) {
	if w.Slow > 0 {
		out = append(out, guestio.Want{Slow: [2]time.Duration{w.Slow, w.Slow}})
	}
	if w.Factor > 0 {
		const before = observer.UnlearnedSlow
		out = append(out, guestio.Want{Slow: [2]time.Duration{before, before}, Factor: w.Factor, Floor: observer.LeastSlow})
	}
	if w.Sample > 0 {
		out = append(out, guestio.Want{Sample: w.Sample})
	}
	return out
}
