package agent

import (
	"cmp"
	"slices"
	"sync"

	"github.com/xenserver/dtagent/observer"
	"github.com/xenserver/dtagent/observer/xapi"
)

// Names of the sources of Observers, as status shows them.
const (
	sourceLocal = "local"
	sourceXAPI  = "xapi"
)

// sources brings the Observers of the pool and the local ones together for the
// Set. Its methods may be called by several goroutines at once.
type sources struct {
	set   *observer.Set
	given observer.Host // what the command line says goes before what XAPI says
	known observer.Host // what is known without either

	mu    sync.Mutex
	pool  []observer.Observer
	local []observer.Observer
	xapi  observer.Host // this host as XAPI names it
}

// applyLocal takes the Observers of the local directory.
func (s *sources) applyLocal(obs []observer.Observer) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.local = obs
	s.apply()
}

// applyXAPI takes what the pool's database says.
func (s *sources) applyXAPI(st xapi.State) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.pool, s.xapi = st.Observers, st.Host
	s.set.SetHost(s.host(st.Host))
	s.apply()
}

// host is this host as the best source names each part of it.
func (s *sources) host(pool observer.Host) observer.Host {
	return observer.Host{
		UUID:     cmp.Or(s.given.UUID, s.known.UUID),
		Name:     cmp.Or(s.given.Name, pool.Name, s.known.Name),
		PoolUUID: cmp.Or(s.given.PoolUUID, pool.PoolUUID, s.known.PoolUUID),
	}
}

// thisHost is host as far as XAPI has answered.
func (s *sources) thisHost() observer.Host {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.host(s.xapi)
}

// apply puts both in force. An Observer of the pool goes before a local one
// with its uuid.
func (s *sources) apply() { s.set.Apply(slices.Concat(s.pool, s.local)) }

// of tells where the Observer of that uuid comes from, "" if it is gone.
func (s *sources) of(uuid string) string {
	s.mu.Lock()
	defer s.mu.Unlock()
	has := func(obs []observer.Observer) bool {
		return slices.ContainsFunc(obs, func(o observer.Observer) bool { return o.UUID == uuid })
	}
	switch {
	case has(s.pool):
		return sourceXAPI
	case has(s.local):
		return sourceLocal
	}
	return ""
}
