package observer

import (
	"slices"
	"time"

	"github.com/xenserver/dtagent/probes/event"
)

// giveUp makes the change from the routes old to s.current, in which taken says
// what each pipe gets. A span is known only some time after it ended, while its
// trace is being put together: what had ended by now still goes by the old
// routes, so that a change loses no span in flight.
func (s *Set) giveUp(old []route, taken map[*pipe]event.Components, now time.Time) {
	s.late = slices.DeleteFunc(s.late, func(r route) bool { return taken[r.pipes[0]]&r.components == r.components })
	for i := range s.late {
		s.late[i].components &^= taken[s.late[i].pipes[0]]
	}
	for _, r := range old {
		for _, p := range r.pipes {
			if lost := r.components &^ taken[p]; lost != 0 && s.o.Limits.Linger > 0 {
				s.late = append(s.late, route{components: lost, tags: r.tags, size: r.size, pipes: []*pipe{p}, before: now})
			}
		}
	}
	for k, p := range s.pipes {
		if _, ok := taken[p]; !ok {
			delete(s.pipes, k)
			s.leaving = append(s.leaving, p)
		}
	}
	s.endLate(now)
}

// endLate ends the routes that have lingered, lets the pipes drain that no
// route leads to any more, and keeps both within bounds.
func (s *Set) endLate(now time.Time) {
	s.late = slices.DeleteFunc(s.late, func(r route) bool { return now.Sub(r.before) >= s.o.Limits.Linger })
	s.late = slices.Delete(s.late, 0, max(len(s.late)-maxDraining, 0))
	over := s.leaving[:max(len(s.leaving)-maxDraining, 0)]
	s.late = slices.DeleteFunc(s.late, func(r route) bool { return slices.Contains(over, r.pipes[0]) })

	s.useRoutes()
	for _, p := range s.leaving {
		if !slices.ContainsFunc(s.late, func(r route) bool { return r.pipes[0] == p }) {
			p.drain(s.o.Limits.DrainTimeout)
		}
	}
	for _, p := range over {
		p.expire()
	}

	if s.ender != nil {
		s.ender.Stop()
	}
	if len(s.late) > 0 {
		s.ender = time.AfterFunc(s.late[0].before.Add(s.o.Limits.Linger).Sub(now), func() {
			s.apply.Lock()
			defer s.apply.Unlock()
			if !s.closed {
				s.endLate(time.Now())
			}
		})
	}
}

// useRoutes makes Export use the current routes and the late ones. When it
// returns no Export uses others.
func (s *Set) useRoutes() {
	routes := slices.Concat(s.current, s.late)
	s.mu.Lock()
	s.routes = routes
	s.mu.Unlock()
}
