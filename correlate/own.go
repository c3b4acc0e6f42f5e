package correlate

import (
	"bytes"
	"slices"

	"github.com/xenserver/dtagent/correlate/wire"
	"github.com/xenserver/dtagent/probes/event"
)

// Some calls are no work that anybody asked for; their trees are left out.
//
// Before xapi uses a cached connection to another host again it asks that host
// whether it is there (system.isAlive): neither end of that is reported.
//
// The members of a pool have their database at the coordinator and ask it there
// all the time; XAPI does not trace that either.
//
// What the agent itself asks XAPI is left out of the traces, on its own host
// and, where a member of the pool passes it on, at the coordinator. It is known
// by the user agent and the method, and has neither a traceparent nor a task.
var (
	databasePath = []byte("/remote_db_access") // and /remote_db_access_v2

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
// if it is one that nobody asked for.
func (e *Engine) leaveOut(c *conn, a *activity, call *wire.Call) {
	switch {
	case c.component != event.Xapi:
	case c.agent && slices.Contains(ownMethods[:], a.name):
		a.tree.find().out = true
		e.stats.OwnCalls++
	case c.hop.remote && !c.hop.known && call.Probe:
		a.tree.find().out = true
		e.stats.Probes++
	}
}
