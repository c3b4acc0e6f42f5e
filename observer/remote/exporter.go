// Package remote carries spans to receivers over HTTP, through a queue on disk.
//
// Each batch becomes one file in the directory of its endpoint before Export
// returns, so that the spans survive a kill of the agent, and a file goes only
// when the receiver has said that it has the spans: each is delivered at least
// once, and a second time with the same ids. A sender joins files into requests. Files
// are not synced: after a loss of power those that are damaged are set aside and
// counted.
package remote

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"net/http"
	"os"
	"sync"
	"time"

	"github.com/xenserver/dtagent/observer/export"
)

// Options of an Exporter. Zero values mean the defaults.
type Options struct {
	Endpoint string         // as an Observer names it: see NewClient; the form is the Encoder's
	Encoder  Encoder        // of this Exporter alone
	Ledger   *export.Ledger // nil: one of its own

	// Dir is the directory of this endpoint's queue, made when it is absent: see
	// DirFor. "": what is held is in memory only.
	Dir string
	// ObserverUUID and ObserverName are kept in Dir, for Leftovers.
	ObserverUUID, ObserverName string
	Spool                      *Spool // shared with the other Exporters of the agent; nil: one of its own

	Interval   time.Duration // between requests when there is little to send; 30 s
	BatchSpans int           // most spans in one request, and as many as make it due at once; 10,000
	DiskBytes  int64         // of the files in Dir; 64 MiB. When they are full the oldest go
	// MemoryBytes bounds what is held in memory, compressed, while there is no Dir or
	// it cannot be written; 4 MiB. When it is full the oldest go.
	MemoryBytes int
	Age         time.Duration // what is older is dropped; 24 h

	Timeout       time.Duration // of one request; 15 s
	BackoffMin    time.Duration // pause after a first failure, doubled each time; 500 ms
	BackoffMax    time.Duration // 1 min
	RetryAfterMax time.Duration // longest pause that a receiver may ask for; 5 min

	Trust     *Trust            // nil: the system's and the pool's CA certificates
	Transport http.RoundTripper // nil: one of its own
	Log       *slog.Logger      // nil: discarded
}

func (o Options) withDefaults() Options {
	times := func(v *time.Duration, def time.Duration) {
		if *v <= 0 {
			*v = def
		}
	}
	if o.Ledger == nil {
		o.Ledger = &export.Ledger{}
	}
	if o.DiskBytes <= 0 {
		o.DiskBytes = 64 << 20
	}
	if o.MemoryBytes <= 0 {
		o.MemoryBytes = 4 << 20
	}
	if o.Spool == nil {
		o.Spool = NewSpool(0)
	}
	times(&o.Age, 24*time.Hour)
	times(&o.Timeout, 15*time.Second)
	times(&o.BackoffMin, 500*time.Millisecond)
	times(&o.BackoffMax, time.Minute)
	times(&o.RetryAfterMax, 5*time.Minute)
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	return o
}

// Defaults of Configure, as the toolstack's export-interval and
// export-chunk-size.
const (
	DefaultInterval   = 30 * time.Second
	DefaultBatchSpans = 10_000
)

// Exporter carries the spans of one Observer to one endpoint. It implements
// export.Holder.
type Exporter struct {
	o      Options
	client *Client
	log    *slog.Logger
	wake   chan struct{} // something that next looks at has changed
	done   chan struct{} // closed when the sender has ended
	ctx    context.Context
	cancel context.CancelFunc // ends the sender

	body []byte // scratch of Export
	size int    // of the last body

	mu        sync.Mutex
	idle      *sync.Cond // signalled when frames go and when a delivery ends
	q         queue
	interval  time.Duration
	spans     int
	flushers  int                // in Flush
	hurried   int                // of them, those with a deadline
	kicked    bool               // Flush asks for a try without a pause
	sending   bool               // the oldest frames are with the sender
	stop      context.CancelFunc // of the running delivery, else nil
	limit     int                // most bytes of a body
	most      int                // most spans of a request, as long as larger ones take too long
	seq       uint64             // of the last frame
	lock      *os.File           // the directory, when it is in use
	discard   bool               // what is being sent is to be dropped, not tried again
	cause     export.Cause       // of discard
	closed    bool
	diskErr   error // of the last write; nil: it worked
	encodeErr error // of the last Export
	dropping  bool  // since the last delivery
}

// ErrClosed is the error of an Export after Close.
var ErrClosed = errors.New("exporter closed")

// Open returns an Exporter, which begins to send what an agent before it left in
// Options.Dir; the Ledger is told of it as Recovered. A directory that cannot be
// used is no error: the queue is in memory then. ErrInUse is returned when
// another Exporter has the directory.
func Open(o Options) (*Exporter, error) {
	o = o.withDefaults()
	if o.Encoder == nil {
		return nil, errors.New("no encoder")
	}
	client, err := NewClient(o.Endpoint, o.Encoder, ClientOptions{Trust: o.Trust, Timeout: o.Timeout, Transport: o.Transport})
	if err != nil {
		return nil, err
	}
	e := &Exporter{o: o, client: client, log: o.Log, wake: make(chan struct{}, 1), done: make(chan struct{}), limit: maxBody, most: math.MaxInt}
	e.idle = sync.NewCond(&e.mu)
	e.Configure(o.Interval, o.BatchSpans)
	if e.diskErr = e.attach(); e.diskErr != nil {
		if errors.Is(e.diskErr, ErrInUse) || errors.Is(e.diskErr, errOtherForm) {
			return nil, e.diskErr
		}
		e.log.Warn("queue directory not usable, spans are held in memory", "dir", o.Dir, "err", e.diskErr)
	}
	e.ctx, e.cancel = context.WithCancel(context.Background())
	go e.run()
	return e, nil
}

// Configure changes how often and how many spans are sent; 0: the defaults. It
// may be called at any time.
func (e *Exporter) Configure(interval time.Duration, spans int) {
	if interval <= 0 {
		interval = DefaultInterval
	}
	if spans <= 0 {
		spans = DefaultBatchSpans
	}
	e.mu.Lock()
	e.interval, e.spans = interval, spans
	e.mu.Unlock()
	e.signal()
}

// Retry asks for a try without the pause that a failure before has set: what
// made it fail may have changed.
func (e *Exporter) Retry() {
	e.mu.Lock()
	e.kicked = e.kicked || len(e.q.frames) > 0
	e.mu.Unlock()
	e.signal()
}

func (e *Exporter) signal() {
	select {
	case e.wake <- struct{}{}:
	default:
	}
}

// maxScratch bounds what an Exporter keeps between two batches.
const maxScratch = 64 << 10

// maxBody bounds the body of one request, before compression.
const maxBody = 4 << 20

// Export takes the batch over: when it returns nil the spans are in a file, or
// in memory if there is no place for files. Those that cannot be encoded are
// counted as dropped. It waits for no receiver.
func (e *Exporter) Export(_ context.Context, batch []*export.Record) error {
	e.mu.Lock()
	most, closed := e.spans, e.closed
	e.mu.Unlock()
	if closed {
		return &export.Failure{Err: ErrClosed, Cause: export.Unsent, Lost: len(batch)}
	}
	for len(batch) > 0 {
		n := min(len(batch), most)
		e.take(batch[:n])
		batch = batch[n:]
	}
	e.mu.Lock()
	spill := e.q.memory > 0 && e.diskErr == nil
	e.mu.Unlock()
	if spill {
		e.spill()
	}
	if cap(e.body) > maxScratch {
		e.body = nil
	}
	return nil
}

// take encodes records, in frames that each fit into a request, and holds them.
func (e *Exporter) take(batch []*export.Record) {
	if e.body == nil {
		e.body = make([]byte, 0, e.size)
	}
	body, lost, err := e.o.Encoder.Encode(e.body[:0], batch)
	e.body, e.size = body, len(body)
	switch {
	case err == nil && lost < len(batch) && len(body) > maxBody && len(batch) > 1:
		half := len(batch) / 2
		e.take(batch[:half])
		e.take(batch[half:])
		return
	case lost > 0:
		e.o.Ledger.Dropped(export.EncodeError, lost)
	}
	e.mu.Lock()
	was := e.encodeErr
	e.encodeErr = err
	e.mu.Unlock()
	if err != nil && was == nil {
		e.log.Warn("spans cannot be encoded", "lost", lost, "err", err)
	}
	if n := len(batch) - lost; n > 0 {
		e.hold(e.o.Spool.compress(body), n)
	}
}

// Holding returns how many records are held.
func (e *Exporter) Holding() int {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.q.spans
}

// Flush asks for what is held to be sent now, and returns when nothing is held
// any more or ctx is done. It tries once whatever pause there is and then, if ctx
// has a deadline, with shorter ones.
func (e *Exporter) Flush(ctx context.Context) {
	hurry := 0
	if _, ok := ctx.Deadline(); ok {
		hurry = 1
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	e.flushers++
	e.hurried += hurry
	e.kicked = true
	e.signal()
	stop := context.AfterFunc(ctx, func() {
		e.mu.Lock()
		e.idle.Broadcast()
		e.mu.Unlock()
	})
	defer stop()
	// How the last request went is told when it is over.
	for (len(e.q.frames) > 0 || e.sending) && ctx.Err() == nil && !e.closed {
		e.idle.Wait()
	}
	e.flushers--
	e.hurried -= hurry
}

// Discard drops what is held. What a receiver takes while it is being called
// off counts as sent.
func (e *Exporter) Discard(c export.Cause) {
	e.mu.Lock()
	defer e.mu.Unlock()
	for len(e.q.frames) > 0 && !e.closed {
		e.drop(c, always, anyFrame)
		if !e.sending {
			break
		}
		e.discard, e.cause = true, c
		e.stop()
		e.idle.Wait()
	}
}

// Close ends sending at once. What is held stays on disk for the next agent;
// what is in memory is written there if that is possible and else dropped as
// Unsent. A second Close does nothing.
func (e *Exporter) Close() error {
	e.mu.Lock()
	if e.closed {
		e.mu.Unlock()
		<-e.done
		return nil
	}
	e.closed = true
	e.idle.Broadcast()
	e.mu.Unlock()
	e.cancel()
	<-e.done
	e.client.Close()
	e.spill()

	e.mu.Lock()
	defer e.mu.Unlock()
	e.drop(export.Unsent, always, inMemory)
	e.o.Spool.release(e.q.disk)
	if e.lock == nil {
		return nil
	}
	if err := closeDir(e.lock, e.o.Dir, len(e.q.frames) == 0); err != nil {
		return fmt.Errorf("queue directory: %w", err)
	}
	return nil
}

// Kept tells whether what is held outlives the agent: all of it is on disk.
func (e *Exporter) Kept() bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.o.Dir != "" && e.diskErr == nil && e.q.memory == 0
}

// Status says what an Exporter holds and where.
type Status struct {
	Spans       int    `json:"spans"`
	Files       int    `json:"files"`
	DiskBytes   int64  `json:"disk_bytes"`
	MemoryBytes int    `json:"memory_bytes"`
	DiskError   string `json:"disk_error,omitempty"` // why files cannot be written
}

// Status returns what is held now.
func (e *Exporter) Status() Status {
	e.mu.Lock()
	defer e.mu.Unlock()
	s := Status{Spans: e.q.spans, Files: e.q.files, DiskBytes: e.q.disk, MemoryBytes: e.q.memory}
	if e.diskErr != nil {
		s.DiskError = e.diskErr.Error()
	}
	return s
}
