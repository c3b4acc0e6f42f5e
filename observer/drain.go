package observer

import (
	"time"
)

// drain makes the pipe flush what it holds and end, within d; what a Holder
// holds has no such limit here, only its age. For one that drains already d can
// only shorten the time.
func (p *pipe) drain(d time.Duration) {
	p.drainBy(d, !p.isHolder())
}

// yield makes the pipe hand what it has queued to its Holder and end: another
// pipe goes on with what is held.
func (p *pipe) yield() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.state == closed || p.yields {
		return
	}
	p.state, p.yields = draining, true
	p.endFlush()
	signal(p.ctl)
}

// endFlush ends a Flush that runs.
func (p *pipe) endFlush() {
	if p.inflight == 0 && p.cancel != nil {
		p.cancel()
	}
}

// drainBy is drain with a limit that a Holder has, too, if limited.
func (p *pipe) drainBy(d time.Duration, limited bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	until := time.Now().Add(d)
	if p.state == closed || p.state == draining && (!limited || !p.until.IsZero() && !until.Before(p.until)) {
		return
	}
	p.stopCut()
	p.state, p.until = draining, time.Time{}
	p.drains++
	if id := p.drains; limited {
		p.until = until
		p.cut = time.AfterFunc(d, func() { p.end(id) })
		p.endFlush() // one that does not know of the limit; another begins
	}
	signal(p.ctl)
}

func (p *pipe) stopCut() {
	if p.cut != nil {
		p.cut.Stop()
	}
}

// expire ends the time of a pipe that drains.
func (p *pipe) expire() { p.end(0) }

// end is expire for the drain of that number only, 0 for any: a timer that was
// stopped too late must not end a later drain.
func (p *pipe) end(id int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.state != draining || id != 0 && id != p.drains {
		return
	}
	p.expired = true
	if p.cancel != nil {
		p.cancel()
	}
	signal(p.ctl)
}

// resume takes a pipe that drains into use again. It returns false when it is
// too late for that.
func (p *pipe) resume() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.state == closed || p.expired {
		return false
	}
	if p.state == draining {
		p.stopCut()
		p.state, p.yields = running, false
		p.endFlush() // not wanted any more
	}
	return true
}

func (p *pipe) isDone() bool {
	select {
	case <-p.done:
		return true
	default:
		return false
	}
}

// left tells whether there is time left.
func (p *pipe) left() bool { return p.until.IsZero() || time.Now().Before(p.until) }
