package observer

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/xenserver/dtagent/observer/export"
)

// Close takes no more spans, flushes what the endpoints hold until ctx is done
// or, without a deadline, for Limits.DrainTimeout, and closes them; for endpoints whose
// queue is on disk, for Limits.CloseTimeout at most. What could
// not be delivered stays on disk, where the endpoint has a queue there, or is
// counted as dropped: Totals then has nothing else queued, unless an exporter
// hangs. The error names the endpoints that lost spans by that. A second Close does
// nothing.
//
// While it waits the Set still answers.
func (s *Set) Close(ctx context.Context) error {
	s.apply.Lock()
	if s.closed {
		s.apply.Unlock()
		return nil
	}
	s.closed = true
	if s.ticker != nil {
		s.ticker.Stop()
	}
	s.mu.Lock()
	subs := s.subs
	s.subs = nil
	s.mu.Unlock()
	for _, sub := range subs {
		sub.pipeline.ForceFlush()
	}
	left := s.o.Limits.DrainTimeout
	if t, ok := ctx.Deadline(); ok {
		left = max(time.Until(t), 0)
	}
	for _, p := range s.pipes {
		s.leaving = append(s.leaving, p)
	}
	clear(s.pipes)
	pipes := slices.Clone(s.leaving)
	for _, p := range pipes {
		if p.kept() { // an agent that takes this one's place does not wait for a receiver
			p.drainBy(min(left, s.o.Limits.CloseTimeout), true)
		} else {
			p.drainBy(left, true)
		}
	}
	s.apply.Unlock()
	// Nothing changes any more.
	stop := context.AfterFunc(ctx, func() {
		for _, p := range pipes {
			p.expire()
		}
	})
	defer stop()
	over, cancel := context.WithTimeout(context.Background(), left+s.o.Limits.CloseGrace)
	defer cancel()
	var errs []error
	if s.trim != nil {
		s.trim.close(over.Done())
	}
	for _, p := range pipes {
		select {
		case <-p.done:
		case <-over.Done():
		}
		if !p.isDone() {
			errs = append(errs, fmt.Errorf("observer %s: endpoint %s hangs", p.key.uuid, p.endpoint))
			continue
		}
		if st := p.stats(); st.Dropped[export.Unsent] > 0 {
			errs = append(errs, fmt.Errorf("observer %s: endpoint %s: %d spans not delivered: %s", p.key.uuid, p.endpoint, st.Dropped[export.Unsent], st.LastError))
		}
	}
	s.apply.Lock()
	s.sweep()
	s.apply.Unlock()
	errs = append(errs, s.spanLog.Close())
	return errors.Join(errs...)
}
