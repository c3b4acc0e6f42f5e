//go:build linux

package bpf

import (
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/go-quicktest/qt"
	"github.com/xenserver/dtagent/probes/event"
	"golang.org/x/sys/unix"
)

// long is how long the waits of these tests are, well above the threshold that
// the tests set. They end when the test or a timer lets them, never earlier.
const (
	long      = 60 * time.Millisecond
	threshold = 20 * time.Millisecond
)

// waiter starts a victim whose threads' time is told.
func (c *collector) waiter(files ...*os.File) *victim {
	c.t.Helper()
	qt.Assert(c.t, qt.IsNil(c.s.SetWait(threshold)))
	c.t.Cleanup(func() { c.s.SetWait(0) })
	v := startVictim(c.t, files...)
	qt.Assert(c.t, qt.IsNil(c.s.SetTarget(v.pid(), Target{Component: 2, Watch: WatchProcess | WatchStream | WatchWait})))
	return v
}

// waitsOf returns the long waits of a thread, once there are no more.
func waitsOf(recs []got, tid int) (out []TimeRec) {
	for _, r := range recs {
		if r.TID == uint32(tid) && r.Time.Wait != 0 {
			out = append(out, r.Time)
		}
	}
	return out
}

// checkStretches checks that the stretches of each thread come in order, do not
// overlap, and hold no more time than they last; exactly as much where every
// switch was seen.
func (c *collector) checkStretches(recs []got) {
	c.t.Helper()
	last := map[uint32]uint64{}
	whole := true
	for _, l := range c.losses() {
		whole = whole && l.Cause != lossNames[lossSwitch]
	}
	for _, r := range recs {
		s := r.Time
		qt.Check(c.t, qt.IsTrue(s.First >= last[r.TID]), qt.Commentf("thread %d: %d before %d", r.TID, s.First, last[r.TID]))
		qt.Check(c.t, qt.IsTrue(s.First <= s.Last && s.Last <= r.Ktime), qt.Commentf("%+v", s))
		last[r.TID] = s.Last
		var sum uint64
		for _, n := range s.Spent {
			sum += n
		}
		qt.Check(c.t, qt.IsTrue(sum <= s.Last-s.First), qt.Commentf("%+v", s))
		if whole {
			qt.Check(c.t, qt.Equals(sum, s.Last-s.First), qt.Commentf("%+v", s))
		}
	}
}

// Each kind of wait is told as what it is, once, as long as it was.
func TestWaitsKernel(t *testing.T) {
	inTiers(t, func(t *testing.T, c *collector) {
		locked := filepath.Join(t.TempDir(), "lock")
		ours, err := os.Create(locked)
		qt.Assert(t, qt.IsNil(err))
		defer ours.Close()
		theirs, err := os.Open(locked)
		qt.Assert(t, qt.IsNil(err))
		qt.Assert(t, qt.IsNil(unix.Flock(int(ours.Fd()), unix.LOCK_EX)))
		r, w, err := os.Pipe()
		qt.Assert(t, qt.IsNil(err))
		defer w.Close()
		fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
		qt.Assert(t, qt.IsNil(err))
		socket, peer := os.NewFile(uintptr(fds[0]), "socket"), os.NewFile(uintptr(fds[1]), "peer")
		defer peer.Close()
		v := c.waiter(theirs, r, socket) // 3, 4, 5
		theirs.Close()
		r.Close()
		socket.Close()
		qt.Assert(t, qt.IsNil(c.s.SeedSocket(v.pid(), 5, inodeOf(t, v.pid(), 5), false)))
		c.take(v.pid())

		for _, w := range []struct {
			o      order
			nr     int
			unlock func() // nil: it ends by itself
			spent  event.Spent
		}{
			{order{Do: "sleep", N: 60}, unix.SYS_NANOSLEEP, nil, event.Sleeping},
			{order{Do: "select-sleep", N: 60}, unix.SYS_SELECT, nil, event.Sleeping},
			{order{Do: "futex", N: 60}, unix.SYS_FUTEX, nil, event.Lock},
			{order{Do: "fork", N: 60}, unix.SYS_WAIT4, nil, event.Child},
			{order{Do: "flock", FD: 3}, unix.SYS_FLOCK, func() { unix.Flock(int(ours.Fd()), unix.LOCK_UN) }, event.Flock},
			{order{Do: "read", FD: 4, N: 1}, unix.SYS_READ, func() { w.Write([]byte("x")) }, event.Pipe},
			{order{Do: "read", FD: 5, N: 1}, unix.SYS_READ, func() { peer.Write([]byte("x")) }, event.Network},
			{order{Do: "recvfrom", FD: 5, N: 1}, unix.SYS_RECVFROM, func() { peer.Write([]byte("x")) }, event.Network},
			{order{Do: "poll", FD: 5}, unix.SYS_POLL, func() { peer.Write([]byte("x")) }, event.Polling},
		} {
			what := qt.Commentf("%+v", w.o)
			w.o.Thread = 7
			v.start(w.o)
			if w.unlock != nil {
				if w.nr == unix.SYS_POLL { // no other thread polls
					v.polls()
				} else {
					v.blocked(uintptr(w.nr), w.o.FD)
				}
				time.Sleep(long)
				w.unlock()
			}
			out := v.wait()
			v.must(order{Thread: 7, Do: "tid"})
			recs := ofKind(c.all(), KindTime)
			c.checkStretches(recs)
			var found []TimeRec
			for _, r := range waitsOf(recs, out.TID) {
				if r.NR != int32(w.nr) {
					continue
				}
				qt.Check(t, qt.Equals(event.Spent(r.Wait), w.spent), what)
				// The Go runtime lets a thread without an order wait in a futex, too.
				if w.nr != unix.SYS_FUTEX || r.Spent[w.spent] >= uint64(long)*9/10 && len(found) == 0 {
					found = append(found, r)
				}
			}
			if !qt.Check(t, qt.HasLen(found, 1), what) {
				continue
			}
			f := found[0]
			qt.Check(t, qt.IsTrue(f.Spent[w.spent] >= uint64(threshold)), what)
			qt.Check(t, qt.IsTrue(f.Last-f.First >= uint64(long)*9/10), what)
			qt.Check(t, qt.IsTrue(f.Runnable >= f.First && f.Runnable <= f.Last), what)
			qt.Check(t, qt.Equals(f.Component, 2), what)
		}
	})
}

// What a thread did on the CPU and in short waits before a wait is told apart from it.
func TestStretchesKernel(t *testing.T) {
	inTiers(t, func(t *testing.T, c *collector) {
		v := c.waiter()
		out := v.must(order{Thread: 3, Do: "spin", N: 60})
		v.must(order{Thread: 3, Do: "sleep", N: 5, Times: 8}) // short each
		v.must(order{Thread: 3, Do: "sleep", N: 60})
		v.must(order{Thread: 3, Do: "tid"})
		recs := c.take(v.pid(), KindTime)
		c.checkStretches(recs)
		last := 0 // the long sleep; on a busy machine those before may have been long, too
		for i, r := range recs {
			if r.TID == uint32(out.TID) && r.Time.NR == unix.SYS_NANOSLEEP && r.Time.Wait != 0 {
				last = i
			}
		}
		qt.Assert(t, qt.IsTrue(recs[last].Time.Last-recs[last].Time.First >= uint64(long)*9/10))
		var before, after [16]uint64
		for i, r := range recs {
			sum := &before
			if i > last {
				sum = &after
			}
			if r.TID == uint32(out.TID) && i != last {
				for i, n := range r.Time.Spent {
					sum[i] += n
				}
			}
		}
		// Spinning takes as long whether it has the CPU or queues for it.
		qt.Check(t, qt.IsTrue(before[event.OnCPU]+before[event.RunQueue] >= uint64(long)*9/10), qt.Commentf("%v", before))
		qt.Check(t, qt.IsTrue(before[event.Sleeping] >= 8*uint64(5*time.Millisecond)*9/10), qt.Commentf("%v", before))
		qt.Check(t, qt.IsTrue(after[event.Sleeping] == 0), qt.Commentf("%v", after))
	})
}

// Devices and xenstore's socket are known by their paths.
func TestDevicesKernel(t *testing.T) {
	inTiers(t, func(t *testing.T, c *collector) {
		v := c.waiter()
		in := func(o order) outcome { o.Thread = 9; return v.must(o) }
		in(order{Do: "private"})
		in(order{Do: "mkdir", Path: "/dev/xen"})
		in(order{Do: "mkdir", Path: "/run/xenstored"})
		listener := in(order{Do: "listen", Path: "/run/xenstored/socket"}).Ret
		socket := in(order{Do: "connect", Path: "/run/xenstored/socket"}).Ret
		server := in(order{Do: "accept", FD: listener}).Ret
		for _, w := range []struct {
			path  string
			spent event.Spent
		}{
			{"/dev/xen/evtchn", event.EventChan}, {"/dev/xen/xenbus", event.Xenstore}, {"/dev/xen/xenstore", event.Xenstore},
			{"/dev/xen/other", event.Pipe}, {"socket", event.Xenstore},
		} {
			fd, write := socket, server
			if w.path != "socket" {
				in(order{Do: "mkfifo", Path: w.path})
				fd = in(order{Do: "open", Path: w.path}).Ret
				write = fd
			}
			c.take(v.pid())
			v.start(order{Thread: 9, Do: "read", FD: fd, N: 1})
			v.blocked(unix.SYS_READ, fd)
			time.Sleep(long)
			v.start(order{Thread: 10, Do: "write", FD: write, Data: "x"})
			tid := v.wait().TID
			v.wait()
			in(order{Do: "tid"})
			waits := waitsOf(c.take(v.pid(), KindTime), tid)
			var found []event.Spent
			for _, r := range waits {
				if r.NR == unix.SYS_READ {
					found = append(found, event.Spent(r.Wait))
				}
			}
			qt.Check(t, qt.DeepEquals(found, []event.Spent{w.spent}), qt.Commentf(w.path))
		}
		// A number that has another user is not the device any more.
		fd := in(order{Do: "open", Path: "/dev/xen/evtchn"}).Ret
		in(order{Do: "close", FD: fd})
		var d uint8
		qt.Check(t, qt.IsNotNil(c.s.maps["dt_fds"].Lookup(connKey{v.pid(), int32(fd)}, &d)))
	})
}

// A hypercall is no wait of the scheduler's: its time is that of the call.
func TestHypercallKernel(t *testing.T) {
	inTiers(t, func(t *testing.T, c *collector) {
		v := c.waiter()
		qt.Assert(t, qt.IsNil(c.s.SetWait(1))) // even the shortest is told: there is no hypervisor to make it long
		for _, w := range []struct{ op, cmd int }{{36, 3}, {35, 77}} {
			out := v.do(order{Thread: 2, Do: "hypercall", FD: w.op, N: w.cmd})
			qt.Assert(t, qt.Not(qt.Equals(out.Errno, 0)))
			var found []TimeRec
			recs := c.take(v.pid(), KindTime)
			c.checkStretches(recs)
			for _, r := range waitsOf(recs, out.TID) {
				if event.Spent(r.Wait) == event.Hypercall {
					found = append(found, r)
				}
			}
			qt.Assert(t, qt.HasLen(found, 1))
			want := uint64(w.op)
			if w.op == 36 { // only domctl has its command there
				want |= uint64(w.cmd) << 32
			}
			qt.Check(t, qt.Equals(found[0].Detail, want))
			qt.Check(t, qt.Equals(found[0].NR, unix.SYS_IOCTL))
			qt.Check(t, qt.IsTrue(found[0].Spent[event.Hypercall] > 0))
		}
	})
}

// Children are accounted for from their fork on, and their last stretch comes
// before their end.
func TestChildrensTimeKernel(t *testing.T) {
	inTiers(t, func(t *testing.T, c *collector) {
		v := c.waiter()
		pid := v.must(order{Thread: 4, Do: "fork", N: 60}).Ret
		recs := c.all()
		var forked, ended, first, last uint64
		var sum [16]uint64
		for _, r := range recs {
			switch {
			case r.Kind == KindFork && r.Fork.ChildTID == uint32(pid):
				forked = r.Ktime
			case r.Kind == KindExit && r.TID == uint32(pid):
				ended = r.Ktime
			case r.Kind == KindTime && r.TID == uint32(pid):
				if first == 0 {
					first = r.Time.First
				}
				if ended == 0 {
					last = r.Time.Last
				}
				for i, n := range r.Time.Spent {
					sum[i] += n
				}
			}
		}
		qt.Assert(t, qt.IsTrue(forked > 0 && ended > 0 && first > 0), qt.Commentf("%v", recs))
		qt.Check(t, qt.IsTrue(sum[event.Sleeping] >= uint64(long)*9/10), qt.Commentf("%v", sum))
		qt.Check(t, qt.IsTrue(last <= ended && last > first))
		// Its thread is not in the table any more.
		var th thread
		qt.Check(t, qt.IsNotNil(c.s.maps["dt_threads"].Lookup(uint32(pid), &th)))
	})
}
