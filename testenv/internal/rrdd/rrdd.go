//go:build linux

// Package rrdd is xcp-rrdd as it looks from outside: it has a socket of its own,
// also where the other daemons use the message switch.
package rrdd

import (
	"github.com/xenserver/dtagent/testenv/internal/mswitch"
	"github.com/xenserver/dtagent/testenv/internal/node"
	"github.com/xenserver/dtagent/testenv/internal/socketrpc"
)

// Socket is where xcp-rrdd listens.
const Socket = "/var/lib/xcp/xcp-rrdd"

// Run makes the threads of the process.
func Run(p *node.Proc) error {
	p.Go("", node.Tick)
	return socketrpc.Listen(p, Socket, func(t *node.Thread, method string, p socketrpc.Params) ([]string, error) {
		switch method {
		case "push_rrd_local":
			t.Log(node.Debug, "rrdd_server", "Pushing RRD for VM uuid=%s locally", p.Named["vm_uuid"])
			return nil, nil
		}
		return nil, &mswitch.Failure{Parts: []string{"Unknown_RPC", method}}
	})
}

// Push tells xcp-rrdd of a VM that runs. Nothing in it names the caller.
func Push(user, vm, domid string) error {
	_, err := socketrpc.Call(Socket, user, "push_rrd_local", socketrpc.Params{Named: map[string]string{"vm_uuid": vm, "domid": domid}})
	return err
}
