package xapi

import (
	"context"
	"sync"
	"time"
)

// Source follows the pool's Observers.
type Source struct {
	o Options

	mu     sync.Mutex
	status Status
}

// New returns a Source that does nothing before Run.
func New(o Options) *Source {
	o = o.withDefaults()
	return &Source{o: o, status: Status{Socket: o.Socket, StateFile: o.StateFile, State: Connecting, Since: time.Now()}}
}

// Status tells how the Source is doing. It may be called at any time.
func (s *Source) Status() Status {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.status
}

// Run calls apply with the State of the state file, if there is a good one, then
// with what XAPI says, and after each change within a second of it, but not more
// often than Options.ApplyEvery: the last State always arrives. Calls do not
// overlap. When XAPI is lost nothing is applied: what was stays in force. Run
// returns nil when ctx is done, after it has logged out, and must be called once
// only.
func (s *Source) Run(ctx context.Context, apply func(State)) error {
	<-ctx.Done()
	return nil
}
