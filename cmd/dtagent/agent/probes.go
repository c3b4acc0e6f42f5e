package agent

import (
	"time"

	"github.com/xenserver/dtagent/cmd/dtagent/control"
	"github.com/xenserver/dtagent/probes"
	"github.com/xenserver/dtagent/probes/event"
)

// kindNames are the names that status shows.
var kindNames = map[event.Kind]string{
	event.KindData: "data", event.KindLog: "log", event.KindOpen: "open", event.KindClose: "close",
	event.KindFork: "fork", event.KindExec: "exec", event.KindExit: "exit", event.KindLost: "lost", event.KindTime: "time",
	event.KindRequest: "request",
}

// probeStats asks the probes. While they are attached or detached they answer
// late, since the kernel waits for grace periods: what they said last is shown then.
func (a *agent) probeStats() probes.Stats {
	const patience = 300 * time.Millisecond
	answer := make(chan probes.Stats, 1)
	go func() {
		st := a.manager.Stats()
		a.mu.Lock()
		a.probes = st
		a.mu.Unlock()
		answer <- st
	}()
	select {
	case st := <-answer:
		return st
	case <-time.After(patience):
		a.mu.Lock()
		defer a.mu.Unlock()
		return a.probes
	}
}

// probeStatus fills in what the probes tell.
func (a *agent) probeStatus(s *control.Status) {
	st := a.probeStats()
	for k, n := range st.Events {
		s.Events[kindNames[k]] += n
	}
	for _, t := range st.Targets {
		s.Targets = append(s.Targets, control.Target{TGID: t.TGID, Component: t.Component.String(), Program: t.Program})
	}
	s.Children = st.Children
	for _, at := range st.Attachments {
		s.Probes = append(s.Probes, control.Probe{Probe: at.Probe.String(), Program: at.Program, Hook: at.Hook, Way: string(at.Way)})
	}
	for _, l := range st.Losses {
		s.Losses = append(s.Losses, control.Loss{Probe: l.Probe.String(), Cause: l.Cause, Count: l.Count})
	}
	// What the reader itself noticed belongs to no probe.
	for _, l := range []control.Loss{
		{Probe: "reader", Cause: "malformed record", Count: st.Malformed},
		{Probe: "reader", Cause: "script not followed", Count: st.Unfollowed},
		{Probe: "reader", Cause: "connection unknown to the redactor, masked whole", Count: st.Forgotten},
	} {
		if l.Count > 0 {
			s.Losses = append(s.Losses, l)
		}
	}
	s.Missing, s.Steps = st.Lost, st.ClockSteps
	s.Order = control.Order{Early: st.Early, Late: st.Late}
}
