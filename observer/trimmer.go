package observer

import (
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/xenserver/dtagent/observer/bugtool"
)

const (
	trimEvery = time.Hour
	// trimBytes is how much may be written between two trimmings besides the
	// hourly one: under load an hour is long.
	trimBytes = 32 << 20
)

// trimmer trims the bugtool files while an Observer writes them.
type trimmer struct {
	root    string
	log     *slog.Logger
	written atomic.Int64
	now     chan struct{}

	mu   sync.Mutex
	stop chan struct{} // nil: not running
	done chan struct{}
}

func newTrimmer(root string, log *slog.Logger) *trimmer {
	return &trimmer{root: root, log: log, now: make(chan struct{}, 1)}
}

// rotated is told the size of each file that was rotated.
func (t *trimmer) rotated(n int64) {
	if t.written.Add(n) >= trimBytes {
		t.written.Store(0)
		signal(t.now)
	}
}

// set starts or stops it.
func (t *trimmer) set(on bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	switch {
	case on && t.stop == nil:
		t.stop, t.done = make(chan struct{}), make(chan struct{})
		go t.run(t.stop, t.done)
	case !on && t.stop != nil:
		close(t.stop) // a run under way may end behind us
		t.stop = nil
	}
}

// close stops it and waits for it, but no longer than until over.
func (t *trimmer) close(over <-chan struct{}) {
	t.set(false)
	if t.done == nil {
		return
	}
	select {
	case <-t.done:
	case <-over:
	}
}

func (t *trimmer) run(stop, done chan struct{}) {
	defer close(done)
	hour := time.NewTicker(trimEvery)
	defer hour.Stop()
	for {
		switch r, err := bugtool.Trim(t.root, bugtool.TrimLimits{}, time.Now()); {
		case err != nil:
			t.log.Warn("bugtool files not trimmed wholly", "dir", t.root, "err", err)
		case r.Files > 0:
			t.log.Info("bugtool files trimmed", "dir", t.root, "files", r.Files, "bytes", r.Bytes)
		}
		select {
		case <-hour.C:
		case <-t.now:
		case <-stop:
			return
		}
	}
}
