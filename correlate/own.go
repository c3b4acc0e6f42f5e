package correlate

import (
	"bytes"

	"github.com/xenserver/dtagent/correlate/wire"
)

// What the agent itself asks XAPI is left out of the traces, on its own host
// and, where a member of the pool passes it on, at the coordinator. It is known
// by the user agent and the method, and has neither a traceparent nor a task.
var (
	ownAgent   = []byte("dtagent")
	ownMethods = [...]string{
		"session.login_with_password", "session.logout",
		"Observer.get_all_records", "event.from",
		"host.get_by_uuid", "host.get_record", "host.get_all_records", "host.get_name_label", "host.get_uuid",
		"pool.get_all", "pool.get_all_records", "pool.get_record",
	}
)

// fromAgent tells whether the head can be that of one of the agent's calls.
func fromAgent(h *wire.Head) bool {
	rest, ok := bytes.CutPrefix(h.UserAgent, ownAgent)
	return ok && (len(rest) == 0 || rest[0] == '/') && h.Traceparent == nil && h.Task.IsZero() && h.SubtaskOf.IsZero()
}

// leaveOut leaves the call's whole tree out, which has nothing of others in it,
// when its method is one of the agent's.
func (e *Engine) leaveOut(a *activity) {
	for _, m := range ownMethods {
		if a.name == m {
			a.tree.find().own = true
			e.stats.OwnCalls++
			return
		}
	}
}
