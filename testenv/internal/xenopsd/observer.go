//go:build linux

package xenopsd

import (
	"strings"
	"sync"

	"github.com/xenserver/dtagent/testenv/internal/mswitch"
	"github.com/xenserver/dtagent/testenv/internal/node"
)

// providers is xenopsd's table of tracer providers, by the uuid of their Observer:
// what xapi has told it. Nobody tells it again when it is restarted alone.
type providers struct {
	mu sync.Mutex
	on map[string]bool
}

// observe does one of the Observer calls (xenops_server.ml, module Observer).
func (d *daemon) observe(t *node.Thread, method, info string, p mswitch.Params) string {
	shown := method
	if method == "Observer.set_endpoints" {
		shown = "Observer.set_endpoint" // so it is
	}
	t.Log(node.Debug, "xenops_server", "%s : dbg=%s", shown, info)
	t.Tag = info
	uuid, on := p.String("uuid"), string(p["bool"]) == "true"
	table := &d.providers
	table.mu.Lock()
	defer table.mu.Unlock()
	_, known := table.on[uuid]
	switch strings.TrimPrefix(method, "Observer.") {
	case "create":
		if known {
			t.Log(node.Debug, "tracing", "TracerProvider %s already exists", p.String("name_label"))
			return "null"
		}
		if table.on == nil {
			table.on = map[string]bool{}
		}
		table.on[uuid] = on
	case "destroy":
		delete(table.on, uuid)
	case "set_enabled":
		if known {
			table.on[uuid] = on
		}
	}
	traced := false
	for _, on := range table.on {
		traced = traced || on
	}
	d.p.Observe(traced)
	return "null"
}
