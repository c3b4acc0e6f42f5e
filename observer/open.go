package observer

import (
	"errors"
	"time"

	"github.com/xenserver/dtagent/observer/export"
	"github.com/xenserver/dtagent/observer/remote"
)

// start sets the pipe to work with exp or, if that is nil, with what open makes
// as soon as it can.
func (p *pipe) start(exp export.Exporter) {
	if exp != nil {
		p.use(exp)
	}
	go p.run()
}

func (p *pipe) use(exp export.Exporter) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.exp = exp
	p.holder, _ = exp.(export.Holder)
	p.tell()
}

// reopen is how long a pipe waits for a queue on disk that is in use.
const reopen = time.Second

// ready makes the exporter if there is none yet. It is false when the time of the
// pipe was over before.
func (p *pipe) ready() bool {
	if p.exp != nil {
		return true
	}
	for _, b := range p.after {
		for !b.isDone() {
			select {
			case <-b.done:
			case <-p.ctl:
				if p.overBefore() {
					return false
				}
			}
		}
	}
	p.after = nil
	for {
		exp, err := p.open()
		if !errors.Is(err, remote.ErrInUse) {
			if err != nil {
				p.log.Warn("endpoint not usable", "endpoint", p.endpoint, "err", err)
				exp = broken{err}
			}
			p.use(exp)
			return true
		}
		if p.ledger.Failed(err) {
			p.log.Warn("endpoint not usable yet", "endpoint", p.endpoint, "err", err)
		}
		select {
		case <-time.After(reopen):
		case <-p.ctl:
			if p.overBefore() {
				return false
			}
		}
	}
}

// overBefore ends a pipe without an exporter if its time is over.
func (p *pipe) overBefore() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.expired {
		return false
	}
	p.ledger.Dropped(export.Unsent, p.q.n)
	p.forget()
	p.state = closed
	p.stopCut()
	return true
}

// isHolder tells whether the exporter is a Holder; not before there is one.
func (p *pipe) isHolder() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.holder != nil
}

// kept tells whether what the exporter holds outlives the agent.
func (p *pipe) kept() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	k, ok := p.holder.(interface{ Kept() bool })
	return ok && k.Kept()
}

// isOpen tells whether there is an exporter.
func (p *pipe) isOpen() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.exp != nil
}
