package agent

import (
	"log/slog"
	"os"
	"strconv"
	"sync/atomic"
	"testing"
	"time"

	"github.com/go-quicktest/qt"

	"github.com/xenserver/dtagent/probes/clock"
	"github.com/xenserver/dtagent/probes/event"
)

// heldTime is a kernelTime that answers when it is let: each turn of the engine asks
// it first.
type heldTime struct {
	asked chan struct{}
	let   chan struct{}
}

func (h heldTime) Now() (event.Time, error) {
	h.asked <- struct{}{}
	<-h.let
	return 1, nil
}
func (heldTime) Gaps() uint64           { return 0 }
func (heldTime) Offsets() clock.Offsets { return clock.Offsets{} }

// Systemd is told that the agent is alive while both parts get on, and never while
// the engine stands still in its turn, whatever the reader does.
func TestWatchdogEngine(t *testing.T) {
	a := &agent{
		c:     Config{Log: slog.New(slog.DiscardHandler)},
		queue: newHandover(DefaultQueue), stats: make(chan chan counts), ended: make(chan struct{}),
	}
	k := heldTime{make(chan struct{}), make(chan struct{})}
	var reader atomic.Uint64
	var told []string
	w := newWatchdog(a.c.Log, func(state string) error { told = append(told, state); return nil },
		part{"reader", reader.Load}, part{"correlation", a.turns.Load})
	go a.correlate(k)

	<-k.asked // the engine stands still in its first turn
	for range 5 {
		reader.Add(1)
		w.look()
	}
	qt.Assert(t, qt.HasLen(told, 0))
	qt.Assert(t, qt.IsTrue(w.stuck))

	for i := range 3 {
		k.let <- struct{}{}
		<-k.asked // it has had a turn
		reader.Add(1)
		w.look()
		qt.Assert(t, qt.HasLen(told, i+1))
		qt.Assert(t, qt.Equals(told[i], "WATCHDOG=1"))
		qt.Assert(t, qt.IsFalse(w.stuck))
		w.look() // the same turn again
		qt.Assert(t, qt.HasLen(told, i+1))
	}

	k.let <- struct{}{} // a reader that stands still is no better
	<-k.asked
	w.look()
	qt.Assert(t, qt.HasLen(told, 3))

	a.queue.close()
	close(k.let)
	for {
		select {
		case <-k.asked:
			continue
		case <-a.ended:
		}
		return
	}
}

func TestWatchdogTime(t *testing.T) {
	for _, c := range []struct {
		usec, pid string
		want      time.Duration
	}{
		{"", "", 0},
		{"60000000", "", time.Minute},
		{"60000000", strconv.Itoa(os.Getpid()), time.Minute},
		{"60000000", "1", 0},
		{"0", "", 0},
		{"often", "", 0},
		{"-5", "", 0},
		{"18446744073709551615", "", 0},
	} {
		t.Setenv("WATCHDOG_USEC", c.usec)
		t.Setenv("WATCHDOG_PID", c.pid)
		qt.Check(t, qt.Equals(watchdogTime(), c.want), qt.Commentf("%+v", c))
	}
}
