package agent

import (
	"github.com/xenserver/dtagent/cmd/dtagent/check"
	"github.com/xenserver/dtagent/cmd/dtagent/control"
)

// restrictions are what `dtagent status` shows of what the agent found out at its
// start.
func restrictions(k check.Kernel) []control.Restriction {
	out := []control.Restriction{}
	for _, i := range k.Restrictions() {
		out = append(out, control.Restriction{Name: i.Name, State: string(i.State), Detail: i.Detail, Why: i.Why, Advice: i.Advice})
	}
	return out
}
