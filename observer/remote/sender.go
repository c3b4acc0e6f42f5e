package remote

import (
	"context"
	"errors"
	"math"
	"math/rand/v2"
	"net/http"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"github.com/xenserver/dtagent/observer/export"
)

// run sends what is held, until Close.
func (e *Exporter) run() {
	defer close(e.done)
	timer := time.NewTimer(time.Hour)
	defer timer.Stop()
	var pause time.Duration // the last backoff
	var until time.Time     // no request before
	for e.ctx.Err() == nil {
		if wait := e.next(until); wait != 0 {
			var after <-chan time.Time
			if wait > 0 {
				timer.Reset(wait)
				after = timer.C
			}
			select {
			case <-e.wake:
			case <-after:
			case <-e.ctx.Done():
			}
			continue
		}
		f := e.deliver()
		if f == nil {
			pause, until = 0, time.Time{}
			continue
		}
		e.merge()
		pause = min(max(2*pause, e.o.BackoffMin), e.backoffMax())
		// Several endpoints of one dead receiver shall not return in step.
		until = time.Now().Add(max(min(f.After, e.o.RetryAfterMax), pause/2+rand.N(pause/2+1)))
	}
}

// backoffMax is shorter while somebody waits who has little time.
func (e *Exporter) backoffMax() time.Duration {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.hurried > 0 {
		return min(e.o.BackoffMax, max(e.o.BackoffMin, 500*time.Millisecond))
	}
	return e.o.BackoffMax
}

// next tells how long to wait before the next request, which must not come
// before until; < 0: until something changes.
func (e *Exporter) next(until time.Time) time.Duration {
	e.mu.Lock()
	defer e.mu.Unlock()
	now := time.Now()
	e.expire(now)
	kicked := e.kicked
	e.kicked = false
	if len(e.q.frames) == 0 {
		return -1
	}
	if kicked {
		return 0
	}
	wait := max(until.Sub(now), 0)
	if e.flushers == 0 && e.q.spans < e.spans {
		wait = max(wait, e.q.frames[0].when.Add(e.interval).Sub(now))
	}
	return wait
}

// delivery is one round of the sender.
type delivery struct {
	ctx     context.Context
	failing bool // before
	sent    bool
	err     error // of what was lost or is to be tried again
	budget  int   // of requests that look for what a receiver refuses

	corrupt    int   // files
	corruptErr error // of the last
}

// maxSearch bounds the requests in which the spans are looked for because of
// which a receiver refuses a request. One among 10,000 takes 28.
const maxSearch = 64

// deliver sends the oldest frames in one request. It returns a Failure if they
// are to be tried again.
func (e *Exporter) deliver() *export.Failure {
	ctx, cancel := context.WithCancel(e.ctx)
	defer cancel()
	d := &delivery{ctx: ctx, budget: maxSearch}
	return e.end(d, e.send(d, e.begin(cancel)))
}

// begin picks the frames of a request.
func (e *Exporter) begin(cancel context.CancelFunc) []*frame {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.sending, e.stop = true, cancel
	n, spans := 0, 0
	for _, f := range e.q.frames {
		if spans += f.spans; n > 0 && spans > min(e.spans, e.most) {
			break
		}
		f.sending = true
		n++
	}
	return append([]*frame(nil), e.q.frames[:n]...)
}

// end takes the frames back that are still to be sent, and tells the ledger and
// the log how it went.
func (e *Exporter) end(d *delivery, f *export.Failure) *export.Failure {
	if f != nil {
		d.err = f
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	for _, f := range e.q.frames {
		f.sending = false
	}
	if e.discard {
		e.discard = false
		e.drop(e.cause, always, anyFrame)
	}
	e.sending, e.stop = false, nil
	e.idle.Broadcast()
	if d.corrupt > 0 {
		e.log.Warn("damaged queue files set aside", "files", d.corrupt, "dir", e.o.Dir, "err", d.corruptErr)
	}
	if d.ctx.Err() != nil { // called off
		return nil
	}
	if d.err == nil {
		if d.sent {
			e.dropping = false
		}
		if d.sent && d.failing {
			e.log.Info("endpoint works again", "held", e.q.spans, "dropped", e.o.Ledger.Counters().Lost())
		}
		return f
	}
	if news := e.o.Ledger.Failed(d.err); news && !d.failing {
		e.log.Warn("endpoint fails", "err", d.err, "retry", f != nil, "held", e.q.spans)
	}
	return f
}

// load reads frames into one body: as many of the first as fit. Damaged ones are
// set aside.
func (e *Exporter) load(d *delivery, frames []*frame) (loaded []*frame, body []byte, f *export.Failure) {
	e.mu.Lock()
	left := e.limit
	e.mu.Unlock()
	var bodies [][]byte
	for _, f := range frames {
		b, err := e.read(f)
		switch {
		case err == nil:
		case transient(err):
			return nil, nil, &export.Failure{Err: err, Retry: true}
		default:
			d.corrupt, d.corruptErr = d.corrupt+1, err
			e.corrupt(f)
			continue
		}
		if len(loaded) > 0 && len(b) > left {
			break
		}
		left -= len(b)
		loaded, bodies = append(loaded, f), append(bodies, b)
	}
	if len(bodies) == 1 {
		return loaded, bodies[0], nil
	}
	return loaded, e.o.Encoder.Join(nil, bodies...), nil
}

// transient tells the errors that say nothing about the file.
func transient(err error) bool {
	var p *os.PathError
	return errors.As(err, &p) && !errors.Is(err, os.ErrNotExist) && !errors.Is(err, syscall.EIO)
}

func (e *Exporter) read(f *frame) ([]byte, error) {
	e.mu.Lock()
	content := f.content
	e.mu.Unlock()
	if content == nil {
		var err error
		if content, err = readBounded(filepath.Join(e.o.Dir, f.name()), maxFrame); err != nil {
			return nil, err
		}
	}
	return e.o.Spool.decompress(content)
}

// corrupt gives up a frame that cannot be read.
func (e *Exporter) corrupt(f *frame) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if onDisk(f) {
		setAside(e.o.Dir, f.name())
	}
	e.forget(f)
	e.o.Ledger.Dropped(export.Corrupt, f.spans)
}

// send posts frames. When the receiver refuses them as they are it sends them in
// halves, so that one span does not take the others with it. It returns a
// Failure if those that are left are to be tried again.
func (e *Exporter) send(d *delivery, frames []*frame) *export.Failure {
	frames, body, f := e.load(d, frames)
	if f != nil || len(frames) == 0 {
		return f
	}
	n := 0
	for _, f := range frames {
		n += f.spans
	}
	lost, again, f := e.post(d, body, n)
	switch {
	case f == nil, !f.Retry && !again:
		e.settle(d, frames, n, lost, f)
		return nil
	case f.Retry:
		return f
	}
	if half := len(frames) / 2; half > 0 {
		body = nil // they are read again
		if f := e.send(d, frames[:half]); f != nil {
			return f
		}
		return e.send(d, frames[half:])
	}
	lost, refused, f := e.search(d, body, n, f)
	if f != nil {
		return f
	}
	e.settle(d, frames, n, lost, refused)
	return nil
}

// post posts one body. again says that it was refused as it is, and that parts
// of it may be taken.
func (e *Exporter) post(d *delivery, body []byte, n int) (lost int, again bool, f *export.Failure) {
	err := e.client.Post(d.ctx, body, n)
	e.adapt(n, err)
	if err == nil {
		return 0, false, nil
	}
	f = export.AsFailure(err, n)
	var status *StatusError
	if f.Retry || !errors.As(f.Err, &status) {
		return f.Lost, false, f
	}
	switch status.Code {
	case http.StatusRequestEntityTooLarge:
		e.mu.Lock()
		e.limit = min(e.limit, max(len(body)/2, minBody))
		e.mu.Unlock()
	case http.StatusBadRequest, http.StatusUnprocessableEntity:
	default:
		return f.Lost, false, f
	}
	d.budget--
	return f.Lost, d.budget > 0, f
}

// adapt makes requests smaller when one took too long, and lets them grow again
// with those that do not.
func (e *Exporter) adapt(n int, err error) {
	var slow timeoutError
	e.mu.Lock()
	defer e.mu.Unlock()
	switch {
	case err == nil && e.most < math.MaxInt/2:
		e.most *= 2
	case errors.As(err, &slow):
		e.most = min(e.most, max(n/2, minSpans))
	}
}

// minSpans is the least to which requests are cut because larger ones took too
// long.
const minSpans = 50

// minBody is the least to which bodies are cut because a receiver has called
// larger ones too large.
const minBody = 64 << 10

// search sends the parts of a body that was refused. It returns how many spans
// were lost, and with which refusal, or a Failure if the body is to be tried
// again.
func (e *Exporter) search(d *delivery, body []byte, n int, why *export.Failure) (lost int, refused, retry *export.Failure) {
	first, second, k, ok := e.o.Encoder.Split(body)
	if !ok || k <= 0 || k >= n {
		return n, why, nil
	}
	for i, part := range [][]byte{first, second} {
		m := k
		if i == 1 {
			m = n - k
		}
		l, again, f := e.post(d, part, m)
		if f != nil && f.Retry {
			return 0, nil, f
		}
		if again {
			var r *export.Failure
			if l, r, f = e.search(d, part, m, f); f != nil {
				return 0, nil, f
			}
			f = r
		}
		lost += l
		if f != nil {
			refused = f
		}
	}
	return lost, refused, nil
}

// settle accounts for n spans of frames, of which lost were refused.
func (e *Exporter) settle(d *delivery, frames []*frame, n, lost int, f *export.Failure) {
	e.erase(frames)
	e.mu.Lock()
	defer e.mu.Unlock()
	e.forget(frames...)
	lost = min(max(lost, 0), n)
	if lost > 0 {
		e.o.Ledger.Dropped(f.Cause, lost)
		d.err = f
	}
	if n > lost {
		d.failing = e.o.Ledger.Sent(n-lost) || d.failing
		d.sent = true
	}
}
