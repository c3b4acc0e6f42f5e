//go:build linux

// Package squeezed is squeezed as it looks from outside: a service on the message
// switch, or on a socket of its own, whose parameters have no names.
package squeezed

import (
	"fmt"
	"math/rand/v2"
	"strconv"
	"sync"

	"github.com/xenserver/dtagent/testenv/internal/mswitch"
	"github.com/xenserver/dtagent/testenv/internal/node"
	"github.com/xenserver/dtagent/testenv/internal/socketrpc"
)

// Where squeezed takes its orders, with the message switch and without it.
const (
	Queue  = "org.xen.xapi.memory"
	Socket = "/var/xapi/memory"
)

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
	if p.Setup.Options.Sockets {
		return socketrpc.Listen(p, Socket, func(t *node.Thread, method string, p socketrpc.Params) ([]string, error) {
			return d.call(t, method, p.Rest)
		})
	}
	return mswitch.Listen(p, Queue, func(t *node.Thread, method string, p mswitch.Params) (string, error) {
		result, err := d.call(t, method, p.Rest())
		switch {
		case err != nil || len(result) == 0:
			return "null", err
		case len(result) == 1:
			return mswitch.Quoted(result[0]), nil
		}
		return fmt.Sprintf("[%s,%s]", mswitch.Quoted(result[0]), result[1]), nil
	})
}

// call is one RPC, on its own thread. Its first parameter is the log tag, and the
// second, but for login, the session.
func (d *daemon) call(t *node.Thread, method string, p []string) ([]string, error) {
	p = append(p, "", "", "", "")
	t.Tag = p[0]
	number := func(i int) int64 {
		n, err := strconv.ParseInt(p[i], 10, 64)
		if err != nil {
			return -1
		}
		return n
	}
	debug := func(format string, args ...any) { t.Log(node.Debug, "memory_server", format, args...) }
	d.mu.Lock()
	defer d.mu.Unlock()
	if method == "login" {
		id := uuid()
		d.sessions[id] = p[1]
		debug("login: service %s", p[1])
		return []string{id}, nil
	}
	if _, ok := d.sessions[p[1]]; !ok {
		return nil, &mswitch.Failure{Parts: []string{"Internal_error", "no such session"}}
	}
	switch method {
	case "reserve_memory_range":
		low, high := number(2), number(3)
		if low < 0 || high < low {
			return nil, &mswitch.Failure{Parts: []string{"Invalid_memory_value", fmt.Sprint(low)}}
		}
		id := uuid()
		d.reserved[id] = high
		debug("reserve_memory_range min=%d; max=%d", low, high)
		return []string{id, p[3]}, nil
	case "transfer_reservation_to_domain":
		id := p[2]
		if _, ok := d.reserved[id]; !ok {
			return nil, &mswitch.Failure{Parts: []string{"Unknown_reservation", id}}
		}
		d.domains[number(3)] = id
		debug("transfer_reservation_to_domain reservation_id=%s; domid=%s", id, p[3])
		return nil, nil
	}
	return nil, &mswitch.Failure{Parts: []string{"Unknown_RPC", method}}
}

func uuid() string {
	a, b := rand.Uint64(), rand.Uint64()
	return fmt.Sprintf("%08x-%04x-%04x-%04x-%012x", a>>32, a>>16&0xffff, a&0xffff, b>>48, b&0xffffffffffff)
}
