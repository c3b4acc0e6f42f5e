package observer

import (
	"context"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/xenserver/dtagent/observer/export"
)

// pipe is the way of one Observer's spans to one endpoint: a bounded queue and
// one goroutine that empties it into an exporter. Pipes share nothing, so that
// a dead endpoint holds up no other.
type pipe struct {
	key      pipeKey
	endpoint string // as to be shown
	exp      export.Exporter
	l        Limits
	log      *slog.Logger

	wake chan struct{} // there is work: the first record, or a full batch
	ctl  chan struct{} // the state has changed; ends a pause too
	done chan struct{} // closed when the goroutine has ended

	mu       sync.Mutex
	q        queue
	inflight int // records with the exporter; they are not in q
	inBytes  int
	since    time.Time // when the first record of q came
	state    pipeState
	expired  bool               // draining, and its time is over
	until    time.Time          // draining: when it will be expired
	drains   int                // how often drain was called
	cut      *time.Timer        // sets expired
	cancel   context.CancelFunc // of the running Export, else nil
	c        Counters
	lastErr  string
	errTime  time.Time
	sentTime time.Time
	failing  bool
}

type pipeState uint8

const (
	running  pipeState = iota
	draining           // takes no new records; what it holds is being flushed
	closed
)

func newPipe(k pipeKey, exp export.Exporter, l Limits, log *slog.Logger) *pipe {
	p := &pipe{
		key: k, endpoint: redactEndpoint(k.endpoint), exp: exp, l: l, log: log,
		wake: make(chan struct{}, 1), ctl: make(chan struct{}, 1), done: make(chan struct{}),
	}
	go p.run()
	return p
}

func signal(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// push queues one record. It waits for nobody and, in steady state, allocates
// nothing. When the queue is full the oldest records go.
func (p *pipe) push(r export.Record, size int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.c.Produced++
	if p.state == closed {
		p.c.Dropped[export.Unsent]++
		return
	}
	for p.q.n+p.inflight >= p.l.QueueSpans || p.q.bytes+p.inBytes+size > p.l.QueueBytes {
		p.c.Dropped[export.QueueFull]++
		if p.q.n == 0 {
			return // all the room is taken by what is being sent right now
		}
		p.q.pop()
	}
	if p.q.n == 0 {
		p.since = time.Now()
	}
	p.q.push(entry{r, size})
	if p.q.n == 1 || p.q.n == p.l.BatchSpans {
		signal(p.wake)
	}
}

// drain makes the pipe flush what it holds and end, within d. For one that
// drains already d can only shorten the time.
func (p *pipe) drain(d time.Duration) {
	p.mu.Lock()
	defer p.mu.Unlock()
	until := time.Now().Add(d)
	if p.state == closed || p.state == draining && !until.Before(p.until) {
		return
	}
	if p.cut != nil {
		p.cut.Stop()
	}
	p.state, p.until = draining, until
	p.drains++
	id := p.drains
	p.cut = time.AfterFunc(d, func() { p.end(id) })
	signal(p.ctl)
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
		p.cut.Stop()
		p.state = running
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

func (p *pipe) run() {
	defer close(p.done)
	batch := make([]entry, 0, p.l.BatchSpans)
	recs := make([]*export.Record, 0, p.l.BatchSpans)
	pause := time.Duration(0) // last backoff
	timer := time.NewTimer(time.Hour)
	defer timer.Stop()
	for {
		wait, end := p.next()
		if end {
			if err := p.exp.Close(); err != nil {
				p.log.Warn("exporter not closed", "endpoint", p.endpoint, "err", err)
			}
			return
		}
		if wait != 0 {
			var after <-chan time.Time
			if wait > 0 {
				timer.Reset(wait)
				after = timer.C
			}
			select {
			case <-p.wake:
			case <-p.ctl:
			case <-after:
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

// backoffMax is shorter while there is only a short time left.
func (p *pipe) backoffMax() time.Duration {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.state == draining {
		return min(p.l.BackoffMax, max(p.l.BackoffMin, 500*time.Millisecond))
	}
	return p.l.BackoffMax
}

// next tells what to do: deliver (0), wait at most so long (> 0), wait for a
// signal (< 0), or end.
func (p *pipe) next() (wait time.Duration, end bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.state == draining {
		if p.expired {
			p.c.Dropped[export.Unsent] += uint64(p.q.n)
			p.q = queue{}
		}
		if p.q.n == 0 {
			p.state = closed
			p.cut.Stop()
			p.q = queue{}
			return 0, true
		}
		return 0, false
	}
	switch {
	case p.q.n == 0:
		return -1, false
	case p.q.n >= p.l.BatchSpans:
		return 0, false
	}
	return max(p.l.FlushEvery-time.Since(p.since), 0), false
}

// take moves the oldest records from the queue to batch.
func (p *pipe) take(batch []entry, cancel context.CancelFunc) []entry {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.cancel = cancel
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
	n := len(batch)
	p.cancel, p.inflight, p.inBytes = nil, 0, 0
	if err == nil {
		p.c.Sent += uint64(n)
		p.sentTime = time.Now()
		if p.failing {
			p.failing = false
			p.log.Info("endpoint works again", "endpoint", p.endpoint, "dropped", p.c.Lost(), "queued", p.q.n)
		}
		return false, 0
	}
	f := export.AsFailure(err, n)
	if !p.expired || p.lastErr == "" { // when expired it only says that we gave up
		p.lastErr, p.errTime = f.Error(), time.Now()
	}
	if !p.failing {
		p.failing = true
		p.log.Warn("endpoint fails", "endpoint", p.endpoint, "err", f, "retry", f.Retry)
	}
	if f.Retry {
		for i := n - 1; i >= 0; i-- {
			p.q.unpop(batch[i])
		}
		return true, min(f.After, p.l.RetryAfterMax)
	}
	lost := min(max(f.Lost, 0), n)
	p.c.Dropped[f.Cause%export.NumCauses] += uint64(lost)
	p.c.Sent += uint64(n - lost)
	return false, 0
}

// stats returns what has become of the records so far. The sum of Counters
// holds at every moment.
func (p *pipe) stats() EndpointStats {
	p.mu.Lock()
	defer p.mu.Unlock()
	c := p.c
	c.Queued = uint64(p.q.n + p.inflight)
	s := EndpointStats{Endpoint: p.endpoint, Counters: c, LastError: p.lastErr}
	if !p.errTime.IsZero() {
		t := p.errTime
		s.LastErrorTime = &t
	}
	if !p.sentTime.IsZero() {
		t := p.sentTime
		s.LastSent = &t
	}
	switch {
	case p.state == draining:
		s.State = "draining"
	case p.state == closed:
		s.State = "closed"
	case p.failing:
		s.State = "failing"
	default:
		s.State = "ok"
	}
	return s
}

// broken stands in for an exporter that could not be made.
type broken struct{ err error }

func (b broken) Export(_ context.Context, batch []*export.Record) error {
	return &export.Failure{Err: fmt.Errorf("endpoint not usable: %w", b.err), Cause: export.Unusable, Lost: len(batch)}
}

func (broken) Close() error { return nil }
