package agent

import (
	"context"
	"log/slog"
	"os"
	"strconv"
	"time"
)

// part is a loop of the agent that must never stand still. Its count grows with
// each round, which it makes when there is nothing to do, too.
type part struct {
	name  string
	count func() uint64
}

// watchdog tells systemd that the agent is alive, but only while all its parts get
// on. When one stands still systemd hears nothing more, ends the agent by SIGABRT,
// which makes the Go runtime print where each goroutine is, and starts it again.
// One goroutine may use it.
type watchdog struct {
	parts []part
	seen  []uint64 // their counts at the last look
	tell  func(state string) error
	log   *slog.Logger
	stuck bool // was said
}

// newWatchdog takes the counts as they are for seen: each part has to get on before
// the first word.
func newWatchdog(log *slog.Logger, tell func(string) error, parts ...part) *watchdog {
	w := &watchdog{parts: parts, tell: tell, log: log}
	for _, p := range parts {
		w.seen = append(w.seen, p.count())
	}
	return w
}

// run looks three times in the time that systemd waits, until ctx ends.
func (w *watchdog) run(ctx context.Context, patience time.Duration) {
	t := time.NewTicker(patience / 3)
	defer t.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-t.C:
			w.look()
		}
	}
}

// look tells systemd that all is well if every part has got on since the last look
// that found so.
func (w *watchdog) look() {
	var still []string
	now := make([]uint64, len(w.parts))
	for i, p := range w.parts {
		if now[i] = p.count(); now[i] == w.seen[i] {
			still = append(still, p.name)
		}
	}
	if still != nil {
		if !w.stuck {
			w.log.Error("does not get on; if this goes on systemd starts the agent anew", "parts", still)
		}
		w.stuck = true
		return
	}
	w.seen, w.stuck = now, false
	if err := w.tell("WATCHDOG=1"); err != nil {
		w.log.Warn("not told systemd", "err", err)
	}
}

// watchdogTime is how long systemd waits for a word, as sd_watchdog_enabled(3)
// says; 0: it does not.
func watchdogTime() time.Duration {
	if pid := os.Getenv("WATCHDOG_PID"); pid != "" && pid != strconv.Itoa(os.Getpid()) {
		return 0
	}
	us, err := strconv.ParseUint(os.Getenv("WATCHDOG_USEC"), 10, 63)
	if err != nil || us > uint64((24*time.Hour)/time.Microsecond) {
		return 0
	}
	return time.Duration(us) * time.Microsecond
}
