//go:build linux

package tapdisk_test

import (
	"errors"
	"os"
	"testing"
	"time"

	"github.com/go-quicktest/qt"
	"golang.org/x/sys/unix"

	"github.com/xenserver/dtagent/testenv/fault"
	"github.com/xenserver/dtagent/testenv/tapdisk"
)

// injected is how much is, of each layer.
const injected = 20 * time.Millisecond

func needsRoot(t *testing.T) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
}

// device opens one of that kind.
func device(t *testing.T, kind string) fault.Device {
	t.Helper()
	needsRoot(t)
	d, err := fault.Open(t.Context(), kind, fault.Options{Size: 64 << 20})
	if missing := (*fault.MissingError)(nil); errors.As(err, &missing) {
		t.Skip(err)
	}
	qt.Assert(t, qt.IsNil(err))
	t.Cleanup(func() { qt.Check(t, qt.IsNil(d.Close())) })
	return d
}

// load runs one, and returns the requests.
func load(t *testing.T, d *tapdisk.Disk, l tapdisk.Load) []tapdisk.Request {
	t.Helper()
	res, err := d.Guest().Run(t.Context(), l)
	qt.Assert(t, qt.IsNil(err))
	qt.Assert(t, qt.Equals(res.Failed, 0))
	for _, op := range []tapdisk.Op{tapdisk.Read, tapdisk.Write} {
		if l := res.Latency[op]; len(l) > 0 {
			t.Logf("%v: mean %v, median %v, most %v", op, l.Mean(), l.At(0.5), l.At(1))
		}
	}
	return res.Requests
}

// least asserts that what f tells of each request is so much at least, but for a share.
func least(t *testing.T, all []tapdisk.Request, share float64, want time.Duration, f func(*tapdisk.Request) int64) {
	t.Helper()
	n := 0
	for i := range all {
		if f(&all[i]) >= int64(want) {
			n++
		}
	}
	qt.Check(t, qt.IsTrue(float64(n) >= share*float64(len(all))), qt.Commentf("%d of %d take %v", n, len(all), want))
}

func TestInjectBusy(t *testing.T) {
	d := start(t, tapdisk.Options{Image: rawFile(t, 64<<20)})
	qt.Assert(t, qt.IsNil(d.Inject(tapdisk.Busy, time.Millisecond)))
	least(t, load(t, d, tapdisk.Load{Requests: 50, Depth: 4}), 1, time.Millisecond, func(r *tapdisk.Request) int64 { return r.BusyNs })
	qt.Assert(t, qt.IsNil(d.Inject(tapdisk.Busy, 0)))
	for _, r := range load(t, d, tapdisk.Load{Requests: 50, Depth: 4}) {
		qt.Assert(t, qt.Equals(r.BusyNs, 0))
	}
}

func TestInjectDevice(t *testing.T) {
	for _, k := range fault.Kinds() {
		if !k.Live || k.Layer == fault.Queue {
			continue
		}
		t.Run(k.Name, func(t *testing.T) {
			d := start(t, tapdisk.Options{Device: device(t, k.Name)})
			l := tapdisk.Load{Requests: 20, Depth: 4, Random: true, Span: 4 << 20}
			load(t, d, l)
			qt.Assert(t, qt.IsNil(d.Inject(tapdisk.Device, injected)))
			// A timer in jiffies may be early by one.
			least(t, load(t, d, l), 1, injected*3/4, func(r *tapdisk.Request) int64 { return r.Picked - r.Submit })
			qt.Assert(t, qt.IsNil(d.Inject(tapdisk.Device, 0)))
			qt.Assert(t, qt.ErrorMatches(d.Inject(tapdisk.Queue, injected), ".*on no device.*"))
		})
	}
}

func TestInjectQueue(t *testing.T) {
	d := start(t, tapdisk.Options{Device: device(t, "throttle")})
	load(t, d, tapdisk.Load{Requests: 20})
	qt.Assert(t, qt.IsNil(d.Inject(tapdisk.Queue, injected)))
	least(t, load(t, d, tapdisk.Load{Requests: 20, Depth: 4, Random: true}), 0.25, injected, func(r *tapdisk.Request) int64 { return r.Picked - r.Submit })
}

// TestNeighbour has two guests share what a device can do in a second.
func TestNeighbour(t *testing.T) {
	dev := device(t, "throttle")
	d := start(t, tapdisk.Options{Device: dev})
	other := start(t, tapdisk.Options{Domid: 2, Device: dev})
	qt.Assert(t, qt.IsNil(d.Inject(tapdisk.Queue, injected)))
	done := make(chan int)
	go func() {
		res, err := other.Guest().Run(t.Context(), tapdisk.Load{Requests: 20, Depth: 16, Random: true, Seed: 1})
		qt.Check(t, qt.IsNil(err))
		done <- len(res.Requests)
	}()
	begin := time.Now()
	n := len(load(t, d, tapdisk.Load{Requests: 20, Depth: 4, Random: true})) + <-done
	qt.Check(t, qt.IsTrue(time.Since(begin) > time.Duration(n)*injected/2), qt.Commentf("%d in %v", n, time.Since(begin)))
}

func TestInjectSubmit(t *testing.T) {
	d := start(t, tapdisk.Options{Device: device(t, "loop-fuse")})
	load(t, d, tapdisk.Load{Requests: 20})
	qt.Assert(t, qt.IsNil(d.Inject(tapdisk.Submit, injected)))
	least(t, load(t, d, tapdisk.Load{Requests: 64, Depth: 32, Random: true}), 0.5, injected, func(r *tapdisk.Request) int64 { return r.Returned - r.Submit })
	qt.Assert(t, qt.IsNil(d.Inject(tapdisk.Submit, 0)))
	load(t, d, tapdisk.Load{Requests: 20})
}

func TestInjectMetadata(t *testing.T) {
	dev := device(t, "loop-fuse")
	qt.Assert(t, qt.IsNil(tapdisk.CreateVHD(dev.Path(), tapdisk.Content{Size: 48 << 20, Blocks: 1, Sectors: 1})))
	d := start(t, tapdisk.Options{Device: dev, Type: tapdisk.VHD})
	l := tapdisk.Load{Requests: 40, Random: true, Span: 48 << 20}
	load(t, d, tapdisk.Load{Requests: 200, Depth: 16, Random: true, Span: 48 << 20})
	qt.Assert(t, qt.IsNil(d.Inject(tapdisk.Device, injected)))
	cached := load(t, d, l)
	qt.Assert(t, qt.IsNil(d.Inject(tapdisk.Metadata, 1)))
	uncached := load(t, d, l)
	least(t, cached, 1, 1, func(r *tapdisk.Request) int64 { return int64(1 - r.Metadata) })
	least(t, uncached, 1, injected, func(r *tapdisk.Request) int64 { return r.Submit - r.Queued })
	least(t, uncached, 1, 1, func(r *tapdisk.Request) int64 { return int64(r.Metadata) })
}

func TestInjectLimit(t *testing.T) {
	d := start(t, tapdisk.Options{Device: device(t, "loop-fuse")})
	qt.Assert(t, qt.IsNil(d.Inject(tapdisk.Device, injected)))
	qt.Assert(t, qt.IsNil(d.Inject(tapdisk.Limit, 2)))
	least(t, load(t, d, tapdisk.Load{Requests: 64, Depth: 16, Random: true}), 0.5, injected, func(r *tapdisk.Request) int64 { return r.Submit - r.Queued })
}

func TestInjectRunQueue(t *testing.T) {
	d := start(t, tapdisk.Options{Image: rawFile(t, 64<<20)})
	qt.Assert(t, qt.IsNil(d.Inject(tapdisk.RunQueue, injected)))
	_, before, err := d.Scheduled()
	qt.Assert(t, qt.IsNil(err))
	load(t, d, tapdisk.Load{Time: 20 * injected})
	_, after, err := d.Scheduled()
	qt.Assert(t, qt.IsNil(err))
	t.Logf("waited for a CPU: %v", after-before)
	qt.Check(t, qt.IsTrue(after-before > injected))
	qt.Assert(t, qt.IsNil(d.Inject(tapdisk.RunQueue, 0)))
}

func TestInjectCopy(t *testing.T) {
	needsRoot(t)
	d, err := tapdisk.Start(t.Context(), tapdisk.Options{Image: rawFile(t, 64<<20), SlowCopy: true})
	if errors.Is(err, unix.ENODEV) || errors.Is(err, unix.ENOENT) || errors.Is(err, unix.EPERM) || errors.Is(err, unix.ENOSYS) {
		t.Skip("needs FUSE: ", err)
	}
	qt.Assert(t, qt.IsNil(err))
	t.Cleanup(func() { qt.Check(t, qt.IsNil(d.Close())) })
	load(t, d, tapdisk.Load{Requests: 20, Reads: 1, Writes: 1})
	qt.Assert(t, qt.IsNil(d.Inject(tapdisk.Copy, injected)))
	all := load(t, d, tapdisk.Load{Requests: 20, Depth: 2, Reads: 1, Writes: 1, Check: true})
	least(t, all, 1, injected, func(r *tapdisk.Request) int64 { return r.CopyNs })
	for _, r := range all {
		at := r.Answered - r.Picked
		if r.Op == tapdisk.Write {
			at = r.Queued - r.Taken
		}
		qt.Check(t, qt.IsTrue(at >= r.CopyNs), qt.Commentf("%+v", r))
	}
}

func TestInjectPause(t *testing.T) {
	d := start(t, tapdisk.Options{Image: rawFile(t, 64<<20)})
	qt.Assert(t, qt.IsNil(d.Inject(tapdisk.Pause, injected)))
	most := time.Duration(0)
	for _, r := range load(t, d, tapdisk.Load{Time: 10 * injected, Depth: 4, Rate: 1000}) {
		most = max(most, r.Latency())
	}
	qt.Check(t, qt.IsTrue(most > injected/2), qt.Commentf("%v", most))
	qt.Assert(t, qt.IsNil(d.Inject(tapdisk.Pause, 0)))
}
