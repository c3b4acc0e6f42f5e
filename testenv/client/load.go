package client

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

// Call is one kind of call of a load. Params has the session first unless the
// method is one of session's.
type Call struct {
	Method string
	Params []any // behind the session
}

// LoadOptions of a Load.
type LoadOptions struct {
	Connections int                // clients at once; 0: one
	Rate        float64            // calls a second of all together; 0: as fast as they can
	Count       int                // calls in all; 0: no limit
	Duration    time.Duration      // 0: no limit
	Calls       []Call             // taken in turn; nil: VM.get_by_name_label of vm-1
	Trace       func(n int) string // traceparent of the n-th call; nil: that of the client
}

// LoadResult says what a Load did.
type LoadResult struct {
	Calls    int
	Failures int // answers of XAPI that were failures
	Elapsed  time.Duration
	Rate     float64 // calls a second

	P50, P90, P99, Max time.Duration // from before the first byte is sent until the answer is read
}

// String is one line for people.
func (r LoadResult) String() string {
	return fmt.Sprintf("%d calls in %v, %.0f/s, %d failures, p50 %v p90 %v p99 %v max %v",
		r.Calls, r.Elapsed.Round(time.Millisecond), r.Rate, r.Failures, r.P50, r.P90, r.P99, r.Max)
}

// Load makes many calls with clients like c and measures them. It ends with
// Count, Duration or ctx, whichever is first, and with the first error that is not
// XAPI's.
func (c *Client) Load(ctx context.Context, o LoadOptions) (LoadResult, error) {
	if o.Connections == 0 {
		o.Connections = 1
	}
	if o.Calls == nil {
		o.Calls = []Call{{Method: "VM.get_by_name_label", Params: []any{"vm-1"}}}
	}
	plain := c.o
	plain.Traceparent = ""
	login := c.With(plain)
	session, err := login.Login(ctx)
	login.Close()
	if err != nil {
		return LoadResult{}, fmt.Errorf("load: %w", err)
	}
	start := time.Now()
	var deadline time.Time
	if o.Duration > 0 {
		deadline = start.Add(o.Duration)
	}
	var (
		next     atomic.Int64
		failures atomic.Int64
		mu       sync.Mutex
		all      []time.Duration
		firstErr error
		wg       sync.WaitGroup
	)
	stop := make(chan struct{})
	var once sync.Once
	for range o.Connections {
		wg.Add(1)
		go func() {
			defer wg.Done()
			cl := c.With(c.o)
			defer cl.Close()
			var took []time.Duration
			defer func() {
				mu.Lock()
				all = append(all, took...)
				mu.Unlock()
			}()
			for {
				n := int(next.Add(1)) - 1
				if o.Count > 0 && n >= o.Count {
					return
				}
				if o.Rate > 0 {
					at := start.Add(time.Duration(float64(n) / o.Rate * float64(time.Second)))
					if d := time.Until(at); d > 0 {
						select {
						case <-time.After(d):
						case <-ctx.Done():
							return
						case <-stop:
							return
						}
					}
				}
				select {
				case <-ctx.Done():
					return
				case <-stop:
					return
				default:
				}
				if !deadline.IsZero() && time.Now().After(deadline) {
					return
				}
				call := o.Calls[n%len(o.Calls)]
				if o.Trace != nil {
					cl.o.Traceparent = o.Trace(n)
				}
				t := time.Now()
				_, err := cl.Call(ctx, call.Method, append([]any{session}, call.Params...)...)
				took = append(took, time.Since(t))
				var f *Failure
				switch {
				case errors.As(err, &f):
					failures.Add(1)
				case err != nil:
					once.Do(func() { firstErr = err; close(stop) })
					return
				}
			}
		}()
	}
	wg.Wait()
	r := LoadResult{Calls: len(all), Failures: int(failures.Load()), Elapsed: time.Since(start)}
	r.Rate = float64(r.Calls) / r.Elapsed.Seconds()
	if len(all) > 0 {
		slices.Sort(all)
		at := func(q float64) time.Duration { return all[int(q*float64(len(all)-1))] }
		r.P50, r.P90, r.P99, r.Max = at(0.5), at(0.9), at(0.99), all[len(all)-1]
	}
	if firstErr != nil && ctx.Err() == nil {
		return r, fmt.Errorf("load: %w", firstErr)
	}
	return r, nil
}
