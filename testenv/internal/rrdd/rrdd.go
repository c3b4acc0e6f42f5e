//go:build linux

// Package rrdd is xcp-rrdd as it looks from outside: it has a socket of its own,
// also where the other daemons use the message switch.
package rrdd

import (
	"github.com/xenserver/dtagent/testenv/internal/forwarded"
	"github.com/xenserver/dtagent/testenv/internal/mswitch"
	"github.com/xenserver/dtagent/testenv/internal/node"
	"github.com/xenserver/dtagent/testenv/internal/socketrpc"
)

// Socket is where xcp-rrdd listens.
const Socket = "/var/lib/xcp/xcp-rrdd"

// Forwarded is where it takes requests for metrics that xapi passes on.
const Forwarded = Socket + ".forwarded"

// Run makes the threads of the process.
func Run(p *node.Proc) error {
	p.Go("", node.Tick)
	if err := forwarded.Listen(p, Forwarded, func(t *node.Thread, r forwarded.Request, fd int) error {
		t.Log(node.Debug, "rrdd_http_handler", "%s %s", r.Method, r.URI)
		return forwarded.Answer(fd, "text/xml", "<xport><meta><rows>0</rows></meta><data></data></xport>")
	}); err != nil {
		return err
	}
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
