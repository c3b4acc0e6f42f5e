//go:build linux

package clock

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/xenserver/dtagent/probes/event"
)

const (
	// Interval is how often Run compares the clocks.
	Interval = time.Second

	readings = 9 // per comparison, of which the tightest counts
	kept     = 8 // offsets remembered, so that events from before a step keep their time
)

// Source reads the clocks: CLOCK_MONOTONIC (what bpf_ktime_get_ns returns)
// and CLOCK_REALTIME, in nanoseconds.
type Source interface {
	Monotonic() (int64, error)
	Realtime() (int64, error)
}

// Clock converts event times. Its methods may be called by several goroutines
// at once.
//
// NTP slews both clocks alike, so the offset between them changes only when
// the wall clock is stepped or the host was suspended. Differences within what
// the reading itself may be wrong by are ignored: without a step the offset is
// constant, and intervals measured in wall time are those of ktime.
type Clock struct {
	src     Source
	refresh sync.Mutex // one Refresh at a time
	offsets atomic.Pointer[offsets]
	steps   atomic.Uint64
}

// offsets is immutable.
type offsets struct {
	all   Offsets // at most kept
	error int64   // the newest is at most this much off
}

// New returns a Clock that has compared the clocks once. A nil src means the
// kernel's.
func New(src Source) (*Clock, error) {
	if src == nil {
		src = kernel{}
	}
	c := &Clock{src: src}
	if err := c.Refresh(); err != nil {
		return nil, err
	}
	return c, nil
}

// Wall returns t in nanoseconds since 1970. A time from before a step of the
// wall clock is what the clock showed then.
func (c *Clock) Wall(t event.Time) int64 { return c.offsets.Load().all.Wall(t) }

// Offsets returns what Wall goes by now. It is shared and must not be changed.
func (c *Clock) Offsets() Offsets { return c.offsets.Load().all }

// Now returns the present ktime.
func (c *Clock) Now() (event.Time, error) {
	t, err := c.src.Monotonic()
	return event.Time(t), err
}

// Steps returns how often the wall clock was seen to jump.
func (c *Clock) Steps() uint64 { return c.steps.Load() }

// Refresh compares the clocks. It allocates only when the offset changed.
func (c *Clock) Refresh() error {
	c.refresh.Lock()
	defer c.refresh.Unlock()
	now, err := c.compare()
	if err != nil {
		return fmt.Errorf("clock: %w", err)
	}
	old := c.offsets.Load()
	if old == nil {
		c.offsets.Store(&offsets{all: Offsets{now.Offset}, error: now.error})
		return nil
	}
	diff := now.Add - old.all[0].Add
	if max(diff, -diff) <= now.error+old.error {
		return nil
	}
	c.steps.Add(1)
	all := append(Offsets{now.Offset}, old.all[:min(len(old.all), kept-1)]...)
	c.offsets.Store(&offsets{all: all, error: now.error})
	return nil
}

// reading is one comparison of the clocks.
type reading struct {
	Offset
	error int64 // at most this much off
}

// compare reads the clocks several times and takes the reading that the wall
// clock was taken within the shortest time of.
func (c *Clock) compare() (best reading, err error) {
	best.error = -1
	for range readings {
		before, err := c.src.Monotonic()
		if err != nil {
			return best, err
		}
		wall, err := c.src.Realtime()
		if err != nil {
			return best, err
		}
		after, err := c.src.Monotonic()
		if err != nil {
			return best, err
		}
		half := (after - before + 1) / 2
		if best.error < 0 || half < best.error {
			best = reading{Offset{Since: event.Time(before), Add: wall - before - half}, half}
		}
	}
	return best, nil
}

// Run calls Refresh every Interval until ctx ends.
func (c *Clock) Run(ctx context.Context) error {
	tick := time.NewTicker(Interval)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
			if err := c.Refresh(); err != nil {
				return err
			}
		}
	}
}

type kernel struct{}

func (kernel) Monotonic() (int64, error) { return gettime(unix.CLOCK_MONOTONIC) }
func (kernel) Realtime() (int64, error)  { return gettime(unix.CLOCK_REALTIME) }

// Ahead returns the kernel's clocks with the wall clock ahead of what it shows,
// or behind it if d is negative. It is for tests of pools: their hosts share one
// kernel, where real hosts have clocks that differ.
func Ahead(d time.Duration) Source { return ahead(d) }

type ahead time.Duration

func (ahead) Monotonic() (int64, error) { return kernel{}.Monotonic() }
func (a ahead) Realtime() (int64, error) {
	t, err := kernel{}.Realtime()
	return t + int64(a), err
}

// Set returns the kernel's clocks with the wall clock ahead by what the file at path
// says when it is read, as time.ParseDuration takes it; nothing while there is no
// file. It is for tests of steps: setting the clock of the machine would step
// everybody's.
func Set(path string) Source { return set(path) }

type set string

func (set) Monotonic() (int64, error) { return kernel{}.Monotonic() }
func (s set) Realtime() (int64, error) {
	text, err := os.ReadFile(string(s))
	var by time.Duration
	switch {
	case errors.Is(err, fs.ErrNotExist):
	case err != nil:
		return 0, err
	default:
		if by, err = time.ParseDuration(strings.TrimSpace(string(text))); err != nil {
			return 0, err
		}
	}
	return ahead(by).Realtime()
}

func gettime(id int32) (int64, error) {
	var ts unix.Timespec
	if err := unix.ClockGettime(id, &ts); err != nil {
		return 0, fmt.Errorf("clock_gettime: %w", err)
	}
	return ts.Nano(), nil
}
