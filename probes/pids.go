package probes

import "sync"

// pids is a set of process ids, safe for concurrent use.
type pids struct {
	mu  sync.Mutex
	all map[uint32]bool
}

func (p *pids) add(tgid uint32) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.all == nil {
		p.all = make(map[uint32]bool)
	}
	p.all[tgid] = true
}

func (p *pids) drop(tgid uint32) {
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.all, tgid)
}

func (p *pids) has(tgid uint32) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.all[tgid]
}

func (p *pids) reset() {
	p.mu.Lock()
	defer p.mu.Unlock()
	clear(p.all)
}
