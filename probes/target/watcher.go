//go:build linux

package target

import (
	"cmp"
	"context"
	"log/slog"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

// ScanInterval is how often all processes are looked at: how late a start or
// an end is noticed where the proc connector is not allowed. A scan costs some
// 30 µs a process, so where the connector works only one scan in rareScans is
// made unasked.
const (
	ScanInterval = time.Second
	rareScans    = 10
)

// Options of a Watcher. The zero value watches this host.
type Options struct {
	Proc     string        // root of the proc file system; "": /proc
	Interval time.Duration // between scans; 0: ScanInterval
	Log      *slog.Logger  // nil: discarded
}

// Watcher follows the processes of the toolstack.
type Watcher struct {
	proc     Proc
	interval time.Duration
	log      *slog.Logger
	wake     chan struct{}

	mu       sync.Mutex
	children map[uint32]child // same-named children
}

// child is a process with a parent of the same program.
type child struct {
	start uint64
	seen  time.Time // first
}

// NewWatcher returns a Watcher that has not looked yet.
func NewWatcher(o Options) *Watcher {
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	return &Watcher{
		proc: NewProc(o.Proc), interval: cmp.Or(o.Interval, ScanInterval), log: o.Log,
		wake: make(chan struct{}, 1), children: map[uint32]child{},
	}
}

// Proc returns the proc file system that is watched.
func (w *Watcher) Proc() Proc { return w.proc }

// Wake asks for a scan soon, as is right when a target has ended. It does not
// block.
func (w *Watcher) Wake() {
	select {
	case w.wake <- struct{}{}:
	default: // one is due already
	}
}

// Scan returns the processes of the toolstack, by TGID.
//
// A child of a process of the same program is most often one that is about to
// execute something else, so it counts only when it has been seen for half an
// interval.
func (w *Watcher) Scan() ([]Process, error) {
	all, err := w.proc.scan()
	if err != nil {
		return nil, err
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	now := time.Now()
	children := map[uint32]child{}
	out := make([]Process, 0, len(all))
	for _, s := range all {
		if s.child {
			c, ok := w.children[s.TGID]
			if !ok || c.start != s.Start {
				c = child{start: s.Start, seen: now}
			}
			children[s.TGID] = c
			if now.Sub(c.seen) < w.interval/2 {
				continue
			}
		}
		out = append(out, s.Process)
	}
	w.children = children
	slices.SortFunc(out, func(a, b Process) int { return cmp.Compare(a.TGID, b.TGID) })
	return out, nil
}

// undecided tells whether the last scan left out a child that the next may
// count.
func (w *Watcher) undecided() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return len(w.children) > 0
}

// Run calls changed with all processes of the toolstack after each scan: at
// once when one of them has executed its program or Wake was called, and from
// time to time. It returns when ctx ends.
func (w *Watcher) Run(ctx context.Context, changed func([]Process)) {
	var wg sync.WaitGroup
	defer wg.Wait()
	var connected atomic.Bool
	wg.Go(func() {
		err := execs(ctx, func() { connected.Store(true) }, func(tgid uint32) {
			if _, ok := w.proc.Process(tgid); ok || tgid == unknown {
				w.Wake()
			}
		})
		connected.Store(false)
		if err != nil {
			w.log.Info("starts are noticed by scans only", "interval", w.interval, "err", err)
		}
	})
	tick := time.NewTicker(w.interval)
	defer tick.Stop()
	failed := false
	for skipped := 0; ; {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
			if skipped++; connected.Load() && skipped < rareScans && !w.undecided() {
				continue
			}
		case <-w.wake:
		}
		skipped = 0
		found, err := w.Scan()
		if err != nil {
			if !failed {
				w.log.Warn("processes not found", "err", err)
			}
			failed = true
			continue
		}
		failed = false
		changed(found)
	}
}
