package xapi

import (
	"context"
	"sync"
	"time"
)

// latest hands values to one taker that is slower than the giver: only the last
// value counts.
type latest[T any] struct {
	mu    sync.Mutex
	value T
	full  bool
	ready chan struct{} // holds one item when full
}

func newLatest[T any]() *latest[T] { return &latest[T]{ready: make(chan struct{}, 1)} }

func (l *latest[T]) put(v T) { l.give(v, true) }

// offer puts v unless there is something newer.
func (l *latest[T]) offer(v T) { l.give(v, false) }

func (l *latest[T]) give(v T, force bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.full && !force {
		return
	}
	l.value, l.full = v, true
	select {
	case l.ready <- struct{}{}:
	default:
	}
}

func (l *latest[T]) take() (T, bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	v, full := l.value, l.full
	var zero T
	l.value, l.full = zero, false
	return v, full
}

// each calls f with what was put last, never more often than every, until ctx is
// done. What is then still there is not taken.
func (l *latest[T]) each(ctx context.Context, every time.Duration, f func(T)) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-l.ready:
		}
		if ctx.Err() != nil {
			return
		}
		if v, ok := l.take(); ok {
			f(v)
			sleep(ctx, every)
		}
	}
}

// sleep waits for d or until ctx is done.
func sleep(ctx context.Context, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
	case <-t.C:
	}
}
