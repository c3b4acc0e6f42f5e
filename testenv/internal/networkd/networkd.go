//go:build linux

// Package networkd is xcp-networkd as it looks from outside: a service on the
// message switch whose log tag has no name, and stands behind the parameters that
// have one.
package networkd

import (
	"sort"
	"strings"
	"sync"

	"github.com/xenserver/dtagent/testenv/internal/mswitch"
	"github.com/xenserver/dtagent/testenv/internal/node"
)

// Queue is where xcp-networkd takes its orders.
const Queue = "org.xen.xapi.networkd"

type daemon struct {
	mu      sync.Mutex
	bridges map[string]bool // those that outlive a restart
}

// Run makes the threads of the process.
func Run(p *node.Proc) error {
	d := &daemon{bridges: map[string]bool{}}
	p.Go("", node.Tick)
	return mswitch.Listen(p, Queue, d.call)
}

// call is one RPC, on its own thread.
func (d *daemon) call(t *node.Thread, method string, p mswitch.Params) (string, error) {
	t.Tag = p.DebugInfo()
	d.mu.Lock()
	defer d.mu.Unlock()
	switch name := p.String("name"); method {
	case "Network.Bridge.get_all":
		var names []string
		for n := range d.bridges {
			names = append(names, mswitch.Quoted(n))
		}
		sort.Strings(names)
		return "[" + strings.Join(names, ",") + "]", nil
	case "Network.Bridge.create":
		t.Log(node.Debug, "network_server", "Creating bridge %s", name)
		d.bridges[name] = false
		return "null", nil
	case "Network.Bridge.set_persistent":
		if _, ok := d.bridges[name]; !ok {
			return "", &mswitch.Failure{Parts: []string{"Bridge_does_not_exist", name}}
		}
		d.bridges[name] = string(p["value"]) == "true"
		t.Log(node.Debug, "network_server", "Making bridge %s %spersistent", name, map[bool]string{false: "non-"}[d.bridges[name]])
		return "null", nil
	}
	return "", &mswitch.Failure{Parts: []string{"Unknown_RPC", method}}
}
