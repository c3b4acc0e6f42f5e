//go:build linux

package xenopsd

import (
	"encoding/json"
	"fmt"
	"strings"

	"github.com/xenserver/dtagent/testenv/internal/mswitch"
	"github.com/xenserver/dtagent/testenv/internal/node"
	"github.com/xenserver/dtagent/testenv/internal/squeezed"
)

// memoryKiB is what a VM gets.
const memoryKiB = 69632

// reserve has squeezed set memory aside for a domain that is to be made, and
// returns the reservation; "" without squeezed. The session lasts as long as
// xenopsd.
func (d *daemon) reserve(t *node.Thread, tk *task) (string, *mswitch.Failure) {
	if !t.P.Setup.Options.Squeezed {
		return "", nil
	}
	d.sessionMu.Lock()
	defer d.sessionMu.Unlock()
	if d.session == "" {
		if err := d.memory(t, tk, &d.session, "login", quoted("xenopsd")); err != nil {
			return "", err
		}
	}
	var id string
	err := d.memory(t, tk, &[]any{&id}, "reserve_memory_range", quoted(d.session), fmt.Sprint(memoryKiB), fmt.Sprint(memoryKiB))
	return id, err
}

// transfer makes the reservation the domain's.
func (d *daemon) transfer(t *node.Thread, tk *task, reservation string, domid int) *mswitch.Failure {
	if reservation == "" {
		return nil
	}
	return d.memory(t, tk, new(any), "transfer_reservation_to_domain", quoted(d.session), quoted(reservation), fmt.Sprint(domid))
}

// memory calls squeezed, which is told the log tag only, also when there is a trace.
func (d *daemon) memory(t *node.Thread, tk *task, result any, method string, params ...string) *mswitch.Failure {
	c, err := d.client()
	if err == nil {
		var got json.RawMessage
		if got, err = c.Call(t, squeezed.Queue, method, strings.Join(append([]string{quoted(tk.tag)}, params...), ",")); err == nil {
			err = json.Unmarshal(got, result)
		}
	}
	if err != nil {
		return &mswitch.Failure{Parts: []string{"Internal_error", err.Error()}}
	}
	return nil
}
