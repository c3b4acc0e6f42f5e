//go:build linux

// Package squeezed is squeezed as it looks from outside: a service on the message
// switch whose parameters have no names.
package squeezed

import (
	"fmt"
	"math/rand/v2"
	"sync"

	"github.com/xenserver/dtagent/testenv/internal/mswitch"
	"github.com/xenserver/dtagent/testenv/internal/node"
)

// Queue is where squeezed takes its orders.
const Queue = "org.xen.xapi.memory"

type daemon struct {
	mu       sync.Mutex
	sessions map[string]string // id → service
	reserved map[string]int64  // reservation → KiB, until it is a domain's
	domains  map[int64]string  // domid → reservation
}

// Run makes the threads of the process.
func Run(p *node.Proc) error {
	d := &daemon{sessions: map[string]string{}, reserved: map[string]int64{}, domains: map[int64]string{}}
	p.Go("", node.Tick)
	return mswitch.Listen(p, Queue, d.call)
}

// call is one RPC, on its own thread. Its first parameter is the log tag, and the
// second, but for login, the session.
func (d *daemon) call(t *node.Thread, method string, p mswitch.Params) (string, error) {
	t.Tag = p.DebugInfo()
	debug := func(format string, args ...any) { t.Log(node.Debug, "memory_server", format, args...) }
	d.mu.Lock()
	defer d.mu.Unlock()
	if method == "login" {
		id := uuid()
		d.sessions[id] = p.String("1")
		debug("login: service %s", p.String("1"))
		return mswitch.Quoted(id), nil
	}
	if _, ok := d.sessions[p.String("1")]; !ok {
		return "", &mswitch.Failure{Parts: []string{"Internal_error", "no such session"}}
	}
	switch method {
	case "reserve_memory_range":
		low, high := p.Int("2"), p.Int("3")
		if low < 0 || high < low {
			return "", &mswitch.Failure{Parts: []string{"Invalid_memory_value", fmt.Sprint(low)}}
		}
		id := uuid()
		d.reserved[id] = high
		debug("reserve_memory_range min=%d; max=%d", low, high)
		return fmt.Sprintf("[%s,%d]", mswitch.Quoted(id), high), nil
	case "transfer_reservation_to_domain":
		id := p.String("2")
		if _, ok := d.reserved[id]; !ok {
			return "", &mswitch.Failure{Parts: []string{"Unknown_reservation", id}}
		}
		d.domains[p.Int("3")] = id
		debug("transfer_reservation_to_domain reservation_id=%s; domid=%d", id, p.Int("3"))
		return "null", nil
	}
	return "", &mswitch.Failure{Parts: []string{"Unknown_RPC", method}}
}

func uuid() string {
	a, b := rand.Uint64(), rand.Uint64()
	return fmt.Sprintf("%08x-%04x-%04x-%04x-%012x", a>>32, a>>16&0xffff, a&0xffff, b>>48, b&0xffffffffffff)
}
