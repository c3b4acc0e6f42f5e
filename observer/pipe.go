package observer

import (
	"context"
	"errors"
	"log/slog"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"

	"github.com/xenserver/dtagent/observer/export"
	"github.com/xenserver/dtagent/observer/remote"
)

// pipe is the way of one Observer's spans to one endpoint: a bounded queue and
// one goroutine that empties it into an exporter. Pipes share nothing but the
// bound on their memory, so that a dead endpoint holds up no other.
type pipe struct {
	key      pipeKey
	endpoint string // as to be shown
	sink     string // where the spans end up: two pipes of one sink are not used at once
	ledger   *export.Ledger
	open     func() (export.Exporter, error) // makes exp, if there was none at the start
	after    []*pipe                         // those that must have ended before open is called
	claimed  uint64                          // of what it found on disk: taken off the retired counters; under Set.apply
	l        Limits
	budget   *atomic.Int64 // bytes queued by all pipes of the Set
	log      *slog.Logger

	wake chan struct{} // there is work: the first record, or a full batch
	ctl  chan struct{} // the state has changed; ends a pause too
	done chan struct{} // closed when the goroutine has ended

	mu       sync.Mutex
	exp      export.Exporter // set once, by newPipe or by the goroutine
	holder   export.Holder   // exp, if it is one
	interval time.Duration   // as configured
	spans    int
	q        queue
	inflight int // records with the exporter; they are not in q
	inBytes  int
	since    time.Time // when the first record of q came
	state    pipeState
	yields   bool               // draining: what a Holder holds is left to a pipe that comes after
	expired  bool               // draining, and its time is over
	until    time.Time          // draining: when it will be expired; zero: not by time
	drains   int                // how often drain was called
	cut      *time.Timer        // sets expired
	cancel   context.CancelFunc // of the running Export or Flush, else nil
}

type pipeState uint8

const (
	running  pipeState = iota
	draining           // what it holds is being flushed, then it ends
	closed
)

// newPipe makes a pipe. The ledger is the one that exp is made with. start sets
// it to work.
func newPipe(k pipeKey, ledger *export.Ledger, l Limits, budget *atomic.Int64, log *slog.Logger) *pipe {
	return &pipe{
		key: k, endpoint: show(k.endpoint), sink: k.sink(), ledger: ledger, l: l, budget: budget, log: log,
		wake: make(chan struct{}, 1), ctl: make(chan struct{}, 1), done: make(chan struct{}),
	}
}

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

// retry asks for a try without the pause that a failure before has set.
func (p *pipe) retry() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if x, ok := p.exp.(*remote.Exporter); ok {
		x.Retry()
	}
	signal(p.ctl)
}

// configure says how often and how many spans a receiver is sent; 0: the
// defaults.
func (p *pipe) configure(interval time.Duration, spans int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.interval != interval || p.spans != spans {
		p.interval, p.spans = interval, spans
		p.tell()
	}
}

func (p *pipe) tell() {
	if x, ok := p.exp.(*remote.Exporter); ok {
		x.Configure(p.interval, p.spans)
	}
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

func signal(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// push queues one record. It waits for nobody and, in steady state, allocates
// nothing. When the queue, or the memory of all queues, is full the oldest records
// of this one go.
func (p *pipe) push(r export.Record, size int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.ledger.Produced()
	if p.state == closed {
		p.ledger.Dropped(export.Unsent, 1)
		return
	}
	for p.q.n+p.inflight >= p.l.QueueSpans || p.q.bytes+p.inBytes+size > p.l.QueueBytes ||
		p.q.n > 0 && p.budget.Load()+int64(size) > int64(p.l.TotalBytes) {
		p.ledger.Dropped(export.QueueFull, 1)
		if p.q.n == 0 {
			return // all the room is taken by what is being sent right now
		}
		p.budget.Add(-int64(p.q.pop().size))
	}
	if p.q.n == 0 {
		p.since = time.Now()
	}
	p.q.push(entry{r, size})
	p.budget.Add(int64(size))
	if p.q.n == 1 || p.q.n == p.l.BatchSpans {
		signal(p.wake)
	}
}

// drain makes the pipe flush what it holds and end, within d; what a Holder
// holds has no such limit here, only its age. For one that drains already d can
// only shorten the time.
func (p *pipe) drain(d time.Duration) {
	p.drainBy(d, !p.isHolder())
}

// isHolder tells whether the exporter is a Holder; not before there is one.
func (p *pipe) isHolder() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.holder != nil
}

// isOpen tells whether there is an exporter.
func (p *pipe) isOpen() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.exp != nil
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

// left tells whether there is time left.
func (p *pipe) left() bool { return p.until.IsZero() || time.Now().Before(p.until) }

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

// stats returns what has become of the records so far.
func (p *pipe) stats() EndpointStats {
	p.mu.Lock()
	state := p.state
	p.mu.Unlock()
	h := p.ledger.Health()
	s := EndpointStats{Endpoint: p.endpoint, Counters: p.ledger.Counters(), LastError: h.LastError}
	if !h.ErrorTime.IsZero() {
		s.LastErrorTime = &h.ErrorTime
	}
	if !h.SentTime.IsZero() {
		s.LastSent = &h.SentTime
	}
	switch {
	case state == draining:
		s.State = "draining"
	case state == closed:
		s.State = "closed"
	case h.Failing:
		s.State = "failing"
	default:
		s.State = "ok"
	}
	return s
}
