//go:build linux

// Package xapi is xapi as it looks from outside: a thread a connection, headers
// read in crumbs, tasks, calls over the message switch, SM scripts.
package xapi

import (
	"fmt"
	"net/netip"
	"os"
	"time"

	"github.com/xenserver/dtagent/testenv/internal/mswitch"
	"github.com/xenserver/dtagent/testenv/internal/node"
	"github.com/xenserver/dtagent/testenv/internal/sys"
)

// Socket is where xapi listens.
const Socket = "/var/lib/xcp/xapi"

type xapi struct {
	p      *node.Proc
	db     *database
	pool   *pool
	client *mswitch.Client
	events *events

	providers *providers
}

// Run is the process. It returns the TCP port that it listens on.
func Run(p *node.Proc) (uint16, error) {
	db, err := newDatabase(p.Setup)
	if err != nil {
		return 0, err
	}
	x := &xapi{p: p, db: db, events: newEvents(), providers: &providers{p: p, on: map[string]bool{}}}
	p.Obey(x.obey)
	p.Go("", node.Tick)
	if x.client, err = mswitch.NewClient(p); err != nil {
		return 0, err
	}
	x.pool = newPool(p.Setup)
	if !x.pool.coordinates() {
		if err := x.pool.connect(p.Main()); err != nil {
			return 0, err
		}
	}
	p.Go("", x.follow)
	if err := mswitch.Listen(p, muxQueue, x.mux); err != nil {
		return 0, err
	}
	if err := mswitch.Listen(p, pluginQueue, x.plugin); err != nil {
		return 0, err
	}
	if p.Setup.Options.Background && !x.pool.coordinates() {
		p.Go("", x.ownCalls("watching networks for NBD-related changes", 5*time.Second))
		p.Go("", x.ownCalls("xapi events", time.Second))
	} else if p.Setup.Options.Background {
		p.Go("", x.chatter("watching networks for NBD-related changes", 5*time.Second))
		p.Go("", x.chatter("xapi events", time.Second))
	}
	if err := os.MkdirAll("/var/lib/xcp", 0o700); err != nil {
		return 0, err
	}
	x.initialise(p.Main())
	fd, err := listenUnix(p)
	if err != nil {
		return 0, err
	}
	p.Go("", x.accept(listener{name: Socket, fd: fd}))
	port := p.Setup.Options.Port
	if p.Setup.Options.Pool != nil { // it has a network of its own
		fd, port, err := sys.ListenTCP(netip.AddrPortFrom(netip.IPv6Unspecified(), port))
		if err != nil {
			return 0, err
		}
		p.Go("", x.accept(listener{name: fmt.Sprintf(":::%d", port), fd: fd, tcp: true}))
		return port, nil
	}
	v4, port, err := sys.ListenTCP(netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), port))
	if err != nil {
		return 0, err
	}
	p.Go("", x.accept(listener{name: fmt.Sprintf(":::%d", port), fd: v4, tcp: true}))
	if v6, _, err := sys.ListenTCP(netip.AddrPortFrom(netip.IPv6Loopback(), port)); err == nil { // a host may have no IPv6
		p.Go("", x.accept(listener{name: fmt.Sprintf(":::%d", port), fd: v6, tcp: true}))
	}
	return port, nil
}
