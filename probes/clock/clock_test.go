//go:build linux

package clock

import (
	"errors"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/go-quicktest/qt"

	"github.com/xenserver/dtagent/probes/event"
)

// fake is a host with two clocks. Each reading takes the next of costs.
type fake struct {
	mu    sync.Mutex
	mono  int64
	add   int64
	costs []int64
	reads int
	err   error
}

func (f *fake) read() int64 {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.mono += f.costs[f.reads%len(f.costs)]
	f.reads++
	return f.mono
}

func (f *fake) Monotonic() (int64, error) { return f.read(), f.err }

func (f *fake) Realtime() (int64, error) {
	t := f.read()
	f.mu.Lock()
	defer f.mu.Unlock()
	return t + f.add, f.err
}

func (f *fake) step(by time.Duration) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.add += int64(by)
}

const epoch = 1_795_350_180_000_000_000

func near(t *testing.T, got, want, within int64) {
	t.Helper()
	if d := got - want; max(d, -d) > within {
		t.Errorf("%d is %d away from %d", got, d, want)
	}
}

func TestWall(t *testing.T) {
	f := &fake{mono: 1000, add: epoch, costs: []int64{50}}
	c, err := New(f)
	qt.Assert(t, qt.IsNil(err))
	near(t, c.Wall(5_000_000), epoch+5_000_000, 50)
}

// The tightest reading counts: all but one are disturbed between the clocks.
func TestTightestReading(t *testing.T) {
	f := &fake{add: epoch, costs: []int64{10, 90_000, 10, 10, 70_000, 10, 10, 20, 20, 10, 80_000, 10}}
	c, err := New(f)
	qt.Assert(t, qt.IsNil(err))
	near(t, c.Wall(0), epoch, 20)
}

func TestStep(t *testing.T) {
	for _, by := range []time.Duration{time.Hour, -time.Hour, time.Millisecond, -10 * time.Microsecond} {
		f := &fake{add: epoch, costs: []int64{50}}
		c, err := New(f)
		qt.Assert(t, qt.IsNil(err))
		f.mono = 10_000_000
		before := event.Time(f.mono)
		f.step(by)
		qt.Assert(t, qt.IsNil(c.Refresh()))
		after := event.Time(f.mono)
		near(t, c.Wall(before), epoch+int64(before), 50)
		near(t, c.Wall(after), epoch+int64(after)+int64(by), 50)
		qt.Check(t, qt.Equals(c.Steps(), 1))
	}
}

func TestNoiseIsNoStep(t *testing.T) {
	f := &fake{add: epoch, costs: []int64{50, 70, 40, 90, 60, 55, 45}}
	c, err := New(f)
	qt.Assert(t, qt.IsNil(err))
	want := c.Wall(12345)
	for range 100 {
		qt.Assert(t, qt.IsNil(c.Refresh()))
		qt.Assert(t, qt.Equals(c.Wall(12345), want))
	}
	qt.Check(t, qt.Equals(c.Steps(), 0))
}

// A slow drift of the offset (a kernel that corrects one clock only) is
// followed once it is more than the reading's own error.
func TestDrift(t *testing.T) {
	f := &fake{add: epoch, costs: []int64{50}}
	c, err := New(f)
	qt.Assert(t, qt.IsNil(err))
	for range 1000 {
		f.step(7)
		f.mono += 1_000_000
		qt.Assert(t, qt.IsNil(c.Refresh()))
	}
	near(t, c.Wall(event.Time(f.mono)), f.mono+f.add, 150)
	near(t, c.Wall(0), epoch, 7000)
}

func TestError(t *testing.T) {
	f := &fake{costs: []int64{1}, err: errors.New("no clock")}
	_, err := New(f)
	qt.Assert(t, qt.ErrorIs(err, f.err))
}

func TestConcurrent(t *testing.T) {
	f := &fake{add: epoch, costs: []int64{50}}
	c, err := New(f)
	qt.Assert(t, qt.IsNil(err))
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			for i := range 1000 {
				f.step(time.Duration(i))
				_ = c.Refresh()
				c.Wall(event.Time(i))
			}
		})
	}
	wg.Wait()
}

func TestKernel(t *testing.T) {
	c, err := New(nil)
	qt.Assert(t, qt.IsNil(err))
	now, err := c.Now()
	qt.Assert(t, qt.IsNil(err))
	near(t, c.Wall(now), time.Now().UnixNano(), int64(50*time.Millisecond))
	qt.Check(t, qt.Equals(testing.AllocsPerRun(100, func() { c.Wall(now) }), 0))
}

func TestAhead(t *testing.T) {
	for _, d := range []time.Duration{0, 5 * time.Second, -5 * time.Second} {
		c, err := New(Ahead(d))
		qt.Assert(t, qt.IsNil(err))
		now, err := c.Now()
		qt.Assert(t, qt.IsNil(err))
		near(t, c.Wall(now), time.Now().Add(d).UnixNano(), int64(50*time.Millisecond))
		qt.Assert(t, qt.IsNil(c.Refresh()))
		qt.Check(t, qt.Equals(c.Steps(), 0))
	}
}

func BenchmarkWall(b *testing.B) {
	c, err := New(nil)
	if err != nil {
		b.Fatal(err)
	}
	for i := range b.N {
		c.Wall(event.Time(i))
	}
}

// suspended is a host that sleeps: CLOCK_MONOTONIC stands still meanwhile and
// CLOCK_REALTIME goes on, as with CLOCK_BOOTTIME.
func (f *fake) suspend(d time.Duration) { f.step(d) }

// A suspend is a step forward: what was before it keeps its time, what comes after it
// is told by the clock of then, and an interval across it is that of CLOCK_MONOTONIC
// when both ends are told by one clock.
func TestSuspend(t *testing.T) {
	const asleep = 8 * time.Hour
	f := &fake{add: epoch, costs: []int64{50}}
	c, err := New(f)
	qt.Assert(t, qt.IsNil(err))
	f.mono = 1_000_000_000
	before := event.Time(f.mono)
	f.suspend(asleep)
	qt.Assert(t, qt.IsNil(c.Refresh()))
	qt.Check(t, qt.Equals(c.Steps(), 1))
	after := event.Time(f.mono)
	near(t, c.Wall(after)-c.Wall(before), int64(after-before)+int64(asleep), 100)
	for range 3 { // and several, one after the other
		f.mono += 1_000_000_000
		f.suspend(asleep)
		qt.Assert(t, qt.IsNil(c.Refresh()))
	}
	qt.Check(t, qt.Equals(c.Steps(), 4))
	near(t, c.Wall(before), epoch+int64(before), 50)
	near(t, c.Wall(event.Time(f.mono)), epoch+f.mono+4*int64(asleep), 50)
}

// The file says what a host's clock shows.
func TestSet(t *testing.T) {
	path := filepath.Join(t.TempDir(), "clock")
	c, err := New(Set(path))
	qt.Assert(t, qt.IsNil(err))
	now, err := c.Now()
	qt.Assert(t, qt.IsNil(err))
	was := c.Wall(now)
	qt.Assert(t, qt.IsNil(os.WriteFile(path, []byte("-1h\n"), 0o600)))
	qt.Assert(t, qt.IsNil(c.Refresh()))
	qt.Check(t, qt.Equals(c.Steps(), 1))
	qt.Check(t, qt.Equals(c.Wall(now), was))
	later, err := c.Now()
	qt.Assert(t, qt.IsNil(err))
	near(t, c.Wall(later)-was, int64(later-now)-int64(time.Hour), int64(time.Minute))
	qt.Assert(t, qt.IsNil(os.WriteFile(path, []byte("soon"), 0o600)))
	qt.Check(t, qt.IsNotNil(c.Refresh()))
}
