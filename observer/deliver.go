package observer

import (
	"context"
	"math/rand/v2"
	"time"

	"github.com/xenserver/dtagent/observer/export"
)

// step is what the goroutine of a pipe does next.
type step uint8

const (
	deliver step = iota
	wait         // for a signal, or for some time
	flush        // what the Holder holds
	end
)

func (p *pipe) run() {
	defer close(p.done)
	if !p.ready() {
		return
	}
	batch := make([]entry, 0, p.l.BatchSpans)
	recs := make([]*export.Record, 0, p.l.BatchSpans)
	pause := time.Duration(0) // last backoff
	timer := time.NewTimer(time.Hour)
	defer timer.Stop()
	sleep := func(d time.Duration) {
		var after <-chan time.Time
		if d > 0 {
			timer.Reset(d)
			after = timer.C
		}
		select {
		case <-p.wake:
		case <-p.ctl:
		case <-after:
		}
	}
	for {
		next, d := p.next()
		switch next {
		case end:
			if err := p.exp.Close(); err != nil {
				p.log.Warn("exporter not closed", "endpoint", p.endpoint, "err", err)
			}
			return
		case wait:
			sleep(d)
			continue
		case flush:
			if ctx, cancel := p.beginFlush(); ctx != nil {
				p.holder.Flush(ctx)
				p.endedFlush()
				cancel()
			}
			continue
		}

		ctx, cancel := context.WithTimeout(context.Background(), p.l.ExportTimeout)
		batch = p.take(batch[:0], cancel)
		recs = recs[:0]
		for i := range batch {
			recs = append(recs, &batch[i].rec)
		}
		var err error
		if len(recs) > 0 {
			err = p.exp.Export(ctx, recs)
		}
		cancel()
		retry, after := p.settle(batch, err)
		clear(batch) // the spans are no longer ours to keep
		if !retry {
			pause = 0
			continue
		}
		pause = min(max(2*pause, p.l.BackoffMin), p.backoffMax())
		// Several endpoints of one dead receiver shall not return in step.
		timer.Reset(max(after, pause/2+rand.N(pause/2+1)))
		select {
		case <-timer.C:
		case <-p.ctl:
		}
	}
}

// beginFlush returns the context of a Flush, with the limit that the pipe has;
// nil when none shall begin.
func (p *pipe) beginFlush() (ctx context.Context, cancel context.CancelFunc) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.state != draining || p.expired || p.yields {
		return nil, nil
	}
	if p.until.IsZero() {
		ctx, cancel = context.WithCancel(context.Background())
	} else {
		ctx, cancel = context.WithDeadline(context.Background(), p.until)
	}
	p.cancel = cancel
	return ctx, cancel
}

func (p *pipe) endedFlush() {
	p.mu.Lock()
	p.cancel = nil
	p.mu.Unlock()
}

// backoffMax is shorter while there is only a short time left.
func (p *pipe) backoffMax() time.Duration {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.state == draining {
		return min(p.l.BackoffMax, max(p.l.BackoffMin, 500*time.Millisecond))
	}
	return p.l.BackoffMax
}

// next tells what to do, and how long to wait at most, 0: for a signal.
func (p *pipe) next() (step, time.Duration) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.state == draining {
		if p.expired {
			p.ledger.Dropped(export.Unsent, p.q.n)
			p.forget()
		}
		switch {
		case p.q.n > 0:
			return deliver, 0
		case p.holder != nil && !p.yields && !p.expired && p.left() && p.holder.Holding() > 0:
			return flush, 0
		}
		p.state = closed
		p.stopCut()
		p.forget()
		return end, 0
	}
	switch {
	case p.q.n == 0:
		return wait, 0
	case p.q.n >= p.l.BatchSpans:
		return deliver, 0
	}
	if d := p.l.FlushEvery - time.Since(p.since); d > 0 {
		return wait, d
	}
	return deliver, 0
}

// forget empties the queue.
func (p *pipe) forget() {
	p.budget.Add(-int64(p.q.bytes))
	p.q = queue{}
}

// take moves the oldest records from the queue to batch.
func (p *pipe) take(batch []entry, cancel context.CancelFunc) []entry {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.cancel = cancel; p.expired {
		cancel() // since next looked
	}
	for p.q.n > 0 && len(batch) < p.l.BatchSpans {
		e := p.q.pop()
		p.inBytes += e.size
		batch = append(batch, e)
	}
	p.inflight = len(batch)
	p.since = time.Now() // of what is left or comes next
	return batch
}

// settle accounts for what became of batch.
func (p *pipe) settle(batch []entry, err error) (retry bool, after time.Duration) {
	p.mu.Lock()
	defer p.mu.Unlock()
	n, bytes := len(batch), p.inBytes
	p.cancel, p.inflight, p.inBytes = nil, 0, 0
	if err == nil {
		p.budget.Add(-int64(bytes))
		if p.holder == nil && p.ledger.Sent(n) {
			p.log.Info("endpoint works again", "endpoint", p.endpoint, "dropped", p.ledger.Counters().Lost(), "queued", p.q.n)
		}
		return false, 0
	}
	f := export.AsFailure(err, n)
	if !p.expired || p.ledger.Health().LastError == "" { // when expired it only says that we gave up
		if p.ledger.Failed(f) {
			p.log.Warn("endpoint fails", "endpoint", p.endpoint, "err", f, "retry", f.Retry)
		}
	}
	if f.Retry {
		for i := n - 1; i >= 0; i-- {
			p.q.unpop(batch[i])
		}
		return true, min(f.After, p.l.RetryAfterMax)
	}
	p.budget.Add(-int64(bytes))
	lost := min(max(f.Lost, 0), n)
	p.ledger.Dropped(f.Cause, lost)
	if p.holder == nil && n > lost {
		p.ledger.Delivered(n - lost)
	}
	return false, 0
}
