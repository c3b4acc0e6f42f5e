//go:build linux

package probes

import (
	"cmp"
	"slices"
	"sync/atomic"

	"github.com/xenserver/dtagent/bpf"
	"github.com/xenserver/dtagent/probes/event"
)

// numKinds is one more than the last event.Kind.
const numKinds = event.KindRequest + 1

// counters are written by Run and read by Stats.
type counters struct {
	kinds     [numKinds]atomic.Uint64
	malformed atomic.Uint64
	gaps      atomic.Uint64
	forgotten atomic.Uint64
	seeded    atomic.Uint64
	scripts   atomic.Uint64
}

// Stats is what a Manager tells about itself. Counts begin with Open.
type Stats struct {
	Wanted      event.Components
	Events      map[event.Kind]uint64 // handed on, by kind; KindLost counts gaps, not records
	Lost        uint64                // records that never arrived, by the gaps in their numbers
	Malformed   uint64                // records that broke the wire contract
	Losses      []bpf.Loss            // what the kernel side and its buffers could not record, by probe and cause
	Forgotten   uint64                // connections that the redactor had no room for: masked more
	Seeded      uint64                // sockets found in /proc and told to the kernel
	Early, Late uint64                // records that went out before all older ones were surely read, and after a younger one: see bpf.Session.Order
	ClockSteps  uint64                // how often the wall clock was seen to jump
	Unfollowed  uint64                // SM scripts that could not be made targets
	Targets     []Target
	Children    int // of targets, watched too
	Attachments []bpf.Attachment
}

// Target is a process that the table of components names.
type Target struct {
	TGID      uint32
	Program   string
	Component event.Component
	Watch     bpf.Watch
}

// Stats returns the present counts. It may wait for a Want that is under way.
func (m *Manager) Stats() Stats {
	s := Stats{
		Events:    make(map[event.Kind]uint64),
		Lost:      m.count.gaps.Load(),
		Malformed: m.count.malformed.Load(),
		Forgotten: m.count.forgotten.Load(),
		Seeded:    m.count.seeded.Load(), Unfollowed: m.count.scripts.Load(),
		Losses:      m.session.Losses(),
		Attachments: m.session.Attached(),
	}
	for k := range m.count.kinds {
		if n := m.count.kinds[k].Load(); n > 0 {
			s.Events[event.Kind(k)] = n
		}
	}
	s.Early, s.Late = m.session.Order()
	s.ClockSteps = m.clock.Steps()
	m.mu.Lock()
	defer m.mu.Unlock()
	s.Wanted = m.wanted
	for _, d := range m.targets {
		s.Targets = append(s.Targets, Target{TGID: d.TGID, Program: d.Program, Component: d.component, Watch: d.watch})
	}
	slices.SortFunc(s.Targets, func(a, b Target) int { return cmp.Compare(a.TGID, b.TGID) })
	if all, err := m.session.Targets(); err == nil {
		s.Children = max(len(all)-len(s.Targets), 0)
	}
	return s
}
