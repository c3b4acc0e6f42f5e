package observer

import (
	"context"
	"log/slog"
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
	number   uint64 // of those that were made
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
