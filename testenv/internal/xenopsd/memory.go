//go:build linux

package xenopsd

import (
	"encoding/json"
	"fmt"
	"strconv"

	"github.com/xenserver/dtagent/testenv/internal/mswitch"
	"github.com/xenserver/dtagent/testenv/internal/node"
	"github.com/xenserver/dtagent/testenv/internal/socketrpc"
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
		if err := d.memory(t, tk, &d.session, "login", "xenopsd"); err != nil {
			return "", err
		}
	}
	var id string
	err := d.memory(t, tk, &id, "reserve_memory_range", d.session, fmt.Sprint(memoryKiB), fmt.Sprint(memoryKiB))
	return id, err
}

// transfer makes the reservation the domain's.
func (d *daemon) transfer(t *node.Thread, tk *task, reservation string, domid int) *mswitch.Failure {
	if reservation == "" {
		return nil
	}
	return d.memory(t, tk, new(string), "transfer_reservation_to_domain", d.session, reservation, fmt.Sprint(domid))
}

// memory calls squeezed, which is told the log tag only, also when there is a trace.
// result is what it answers, the first item of an array.
func (d *daemon) memory(t *node.Thread, tk *task, result *string, method string, params ...string) *mswitch.Failure {
	var err error
	if t.P.Setup.Options.Sockets {
		*result, err = socketrpc.Call(squeezed.Socket, "/usr/sbin/xenopsd-xc", method, socketrpc.Params{Rest: append([]string{tk.tag}, params...)})
	} else {
		*result, err = d.memoryBySwitch(t, tk, method, params)
	}
	if err != nil {
		return &mswitch.Failure{Parts: []string{"Internal_error", err.Error()}}
	}
	return nil
}

func (d *daemon) memoryBySwitch(t *node.Thread, tk *task, method string, params []string) (string, error) {
	c, err := d.client()
	if err != nil {
		return "", err
	}
	all := quoted(tk.tag)
	for _, p := range params {
		if _, err := strconv.ParseInt(p, 10, 64); err != nil {
			p = quoted(p)
		}
		all += "," + p
	}
	got, err := c.Call(t, squeezed.Queue, method, all)
	if err != nil {
		return "", err
	}
	var text string
	switch {
	case string(got) == "null":
	case got[0] == '[':
		err = json.Unmarshal(got, &[]any{&text})
	default:
		err = json.Unmarshal(got, &text)
	}
	return text, err
}
