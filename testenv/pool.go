//go:build linux

package testenv

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"os"
	"path/filepath"

	"github.com/xenserver/dtagent/testenv/config"
	"github.com/xenserver/dtagent/testenv/truth"
)

// PoolOptions are those of both hosts. Dir gets a directory for each host;
// ports are those of a real host, 80 and 443, in the host's own network
// namespace, where Dom0.Dial reaches them. Of the VMs, vm-2, vm-4, … are at home (affinity) on the member,
// the others on the coordinator.
type PoolOptions struct {
	Options
}

// Pool is two running dom0s with one database: the coordinator's. Each host has
// its own mount and network namespace; a veth pair joins them. Its methods may be
// called from any goroutine.
type Pool struct {
	Coordinator *Dom0
	Member      *Dom0

	dir    string
	ownDir bool
	net    *network
	secret string
}

// addresses of the two hosts, in namespaces of their own.
var addresses = [2]netip.Prefix{netip.MustParsePrefix("10.197.0.1/24"), netip.MustParsePrefix("10.197.0.2/24")}

// StartPool starts both hosts and returns when all their processes answer. ctx
// ends them early, also later. The caller closes the pool. It needs what Start
// needs, and veth.
func StartPool(ctx context.Context, o PoolOptions) (*Pool, error) {
	if os.Geteuid() != 0 {
		return nil, fmt.Errorf("testenv: pool: %w", ErrPrivilege)
	}
	p := &Pool{dir: o.Dir}
	if err := p.start(ctx, o.Options); err != nil {
		return nil, errors.Join(fmt.Errorf("testenv: pool: %w", err), p.Close())
	}
	return p, nil
}

func (p *Pool) start(ctx context.Context, o Options) (err error) {
	if p.dir == "" {
		if p.dir, err = os.MkdirTemp("", "pool-"); err != nil {
			return err
		}
		p.ownDir = true
	}
	if o.Binary == "" {
		if o.Binary, err = Build(ctx, p.dir); err != nil {
			return err
		}
	}
	if p.net, err = newNetwork(addresses); err != nil {
		return err
	}
	shared, keys, err := newPool(o.WithDefaults().VMs)
	if err != nil {
		return err
	}
	p.secret = shared.Secret
	o.Port, o.TLSPort = config.HTTPPort, config.HTTPSPort
	for i, d := range []**Dom0{&p.Coordinator, &p.Member} {
		own := shared
		own.Self, own.Key = i, keys[i]
		h := o
		h.Pool = &own
		h.Dir = filepath.Join(p.dir, own.Hosts[i].Name)
		if err := os.MkdirAll(h.Dir, 0o755); err != nil {
			return err
		}
		if err := inside(p.net.spaces[i], func() (err error) {
			*d, err = Start(ctx, h)
			return err
		}); err != nil {
			return fmt.Errorf("%s: %w", own.Hosts[i].Name, err)
		}
	}
	return nil
}

// newPool makes up what the pool's database has of hosts and VMs, and the keys of
// the hosts' certificates.
func newPool(vms int) (c config.Pool, keys []string, err error) {
	c = config.Pool{UUID: newUUID(), Ref: newRef(), Secret: newUUID() + "/" + newUUID() + "/" + newUUID()}
	for i, name := range []string{"coordinator", "member"} {
		h := config.Host{Ref: newRef(), UUID: newUUID(), Name: name, Address: addresses[i].Addr().String()}
		cert, key, err := poolCertificate(h.UUID)
		if err != nil {
			return c, nil, err
		}
		h.Certificate = cert
		c.Hosts, keys = append(c.Hosts, h), append(keys, key)
	}
	for i := range vms {
		c.VMs = append(c.VMs, config.VM{Ref: newRef(), UUID: newUUID(), Name: fmt.Sprintf("vm-%d", i+1), Affinity: c.Hosts[i%2].Ref})
	}
	return c, keys, nil
}

func newUUID() string {
	a, b := rand.Uint64(), rand.Uint64()
	return fmt.Sprintf("%08x-%04x-%04x-%04x-%012x", a>>32, a>>16&0xffff, a&0xffff, b>>48, b&0xffffffffffff)
}

func newRef() string { return "OpaqueRef:" + newUUID() }

// Hosts are both hosts, the coordinator first.
func (p *Pool) Hosts() []*Dom0 { return []*Dom0{p.Coordinator, p.Member} }

// VMs gives the guests of the pool, all halted at the start.
func (p *Pool) VMs() []VM { return p.Coordinator.VMs() }

// Secret is what the hosts know each other by.
func (p *Pool) Secret() string { return p.secret }

// Set turns the knobs of both hosts.
func (p *Pool) Set(k Knobs) error {
	for _, d := range p.Hosts() {
		if err := d.Set(k); err != nil {
			return err
		}
	}
	return nil
}

// Truth returns what has happened so far on both hosts. The parent of an entry
// can be on the other host; Entry.Host tells which one it is on.
func (p *Pool) Truth() (*truth.Log, error) {
	var dirs []string
	for _, d := range p.Hosts() {
		if err := d.flush(); err != nil {
			return nil, err
		}
		dirs = append(dirs, d.Dir())
	}
	return truth.Read(dirs...)
}

// Close ends both hosts, takes their network away, and removes Dir if it was
// made by StartPool. It may be called twice.
func (p *Pool) Close() error {
	var errs []error
	for _, d := range []*Dom0{p.Member, p.Coordinator} {
		if d != nil {
			errs = append(errs, d.Close())
		}
	}
	if p.net != nil {
		errs = append(errs, p.net.close())
	}
	if p.ownDir {
		errs = append(errs, os.RemoveAll(p.dir))
	}
	return errors.Join(errs...)
}
