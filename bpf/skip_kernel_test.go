//go:build linux

package bpf

import (
	"fmt"
	"io"
	"os"
	"runtime"
	"sync/atomic"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/link"
	"github.com/cilium/ebpf/ringbuf"
	"github.com/go-quicktest/qt"
	"golang.org/x/sys/unix"
)

// reportsSkips tells whether this kernel says how often it skipped programs of
// tracepoints, which it has to from Linux 6.7 on.
func reportsSkips(t *testing.T) bool {
	var uts unix.Utsname
	qt.Assert(t, qt.IsNil(unix.Uname(&uts)))
	var major, minor int
	_, err := fmt.Sscanf(unix.ByteSliceToString(uts.Release[:]), "%d.%d", &major, &minor)
	qt.Assert(t, qt.IsNil(err))
	return major > 6 || major == 6 && minor >= 7
}

// firstOf returns the first CPU of a set.
func firstOf(set *unix.CPUSet) (cpu int) {
	for !set.IsSet(cpu) {
		cpu++
	}
	return cpu
}

// A thread on the CPU of a target is in system calls on a map nearly all the time.
// Where it can lose the CPU in one, as on Linux 7, programs of the target's calls are
// skipped: then what is not told of those is counted.
func TestSkippedKernel(t *testing.T) {
	inTiers(t, func(t *testing.T, c *collector) {
		v, peer := c.pair(streamAndLog)
		go io.Copy(io.Discard, peer)
		tid := v.must(order{Thread: 3, Do: "tid"}).TID
		var all, one unix.CPUSet
		qt.Assert(t, qt.IsNil(unix.SchedGetaffinity(tid, &all)))
		one.Set(firstOf(&all))
		qt.Assert(t, qt.IsNil(unix.SchedSetaffinity(tid, &one)))

		big, err := ebpf.NewMap(&ebpf.MapSpec{Type: ebpf.Array, KeySize: 4, ValueSize: 1 << 20, MaxEntries: 1})
		qt.Assert(t, qt.IsNil(err))
		defer big.Close()

		const calls, rounds = 500, 40
		written, before := 0, c.s.skipped(Stream)
		for range rounds {
			var stop atomic.Bool
			done := make(chan error)
			go func() {
				runtime.LockOSThread() // for good: the thread ends with this
				value := make([]byte, 1<<20)
				err := unix.SchedSetaffinity(0, &one)
				for err == nil && !stop.Load() {
					err = big.Lookup(uint32(0), value)
				}
				done <- err
			}()
			v.must(order{Thread: 3, Do: "write", FD: 3, Data: "w", Times: calls})
			stop.Store(true)
			qt.Assert(t, qt.IsNil(<-done))
			if written += calls; c.s.skipped(Stream) > before {
				break
			}
		}
		send(t, peer, "answer")
		v.read(3, 100) // what was written is told
		told := 0
		for _, r := range c.take(v.pid(), KindData) {
			if r.Data.Dir == DirOut {
				told += int(r.Data.Calls)
			}
		}
		skipped := c.s.skipped(Stream) - before
		t.Logf("of %d calls %d are told; %d programs were skipped", written, told, skipped)
		qt.Check(t, qt.IsTrue(told <= written))
		if !reportsSkips(t) {
			return
		}
		qt.Check(t, qt.IsTrue(told+int(skipped) >= written))
		if callsYield() {
			qt.Check(t, qt.IsTrue(skipped > 0))
		}
		qt.Check(t, qt.IsTrue(c.shown(Stream) >= before+skipped))
	})
}

// shown is how often programs of a probe were skipped, as Losses says.
func (c *collector) shown(p Probe) uint64 {
	for _, l := range c.s.Losses() {
		if l.Probe == p && l.Cause == lossNames[lossSkipped] {
			return l.Count
		}
	}
	return 0
}

// A program of a tracepoint is skipped in an interrupt that comes while another one
// runs, on every kernel, and that is counted.
func TestSkippedInInterruptKernel(t *testing.T) {
	k := openKernel(t, Legacy, Options{})
	k.by(ByTracepoint)
	c := collect(t, k)
	qt.Assert(t, qt.IsNil(c.s.Attach(Wait)))

	// A program that wakes who polls its buffer, by an interrupt, while it runs.
	ring, err := ebpf.NewMap(&ebpf.MapSpec{Type: ebpf.RingBuf, MaxEntries: 4096})
	if err != nil {
		t.Skip("needs a ring buffer (Linux 5.8): ", err)
	}
	defer ring.Close()
	r, err := ringbuf.NewReader(ring)
	qt.Assert(t, qt.IsNil(err))
	defer r.Close()
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	body := asm.Instructions{
		asm.FnGetCurrentPidTgid.Call(),
		asm.LSh.Imm(asm.R0, 32),
		asm.RSh.Imm(asm.R0, 32),
		asm.JNE.Imm(asm.R0, int32(unix.Gettid()), "exit"),
		asm.StoreMem(asm.RFP, -8, asm.R0, asm.DWord),
		asm.LoadMapPtr(asm.R1, ring.FD()),
		asm.Mov.Reg(asm.R2, asm.RFP),
		asm.Add.Imm(asm.R2, -8),
		asm.Mov.Imm(asm.R3, 8),
		asm.Mov.Imm(asm.R4, 2), // BPF_RB_FORCE_WAKEUP
		asm.FnRingbufOutput.Call(),
	}
	for range 500 {
		body = append(body, asm.FnKtimeGetNs.Call())
	}
	body = append(body, asm.Mov.Imm(asm.R0, 0).WithSymbol("exit"), asm.Return())
	outer, err := ebpf.NewProgram(&ebpf.ProgramSpec{Name: "dt_outer", Type: ebpf.TracePoint, License: "GPL", Instructions: body})
	qt.Assert(t, qt.IsNil(err))
	defer outer.Close()
	l, err := link.Tracepoint("syscalls", "sys_enter_getpgid", outer, nil)
	qt.Assert(t, qt.IsNil(err))
	defer l.Close()
	fd, err := unix.FcntlInt(uintptr(ring.FD()), unix.F_DUPFD_CLOEXEC, 0)
	qt.Assert(t, qt.IsNil(err))
	polled := os.NewFile(uintptr(fd), "ring buffer")
	defer polled.Close()
	v := c.waiter(polled)

	const wakeups = 20
	before := c.s.skipped(Wait)
	for range wakeups {
		v.start(order{Thread: 5, Do: "poll", FD: 3})
		v.polls()
		_, err := unix.Getpgid(0)
		qt.Assert(t, qt.IsNil(err))
		v.wait()
		_, err = r.Read() // the next poll has to wait again
		qt.Assert(t, qt.IsNil(err))
	}
	skipped := c.s.skipped(Wait) - before
	t.Logf("%d wakeups in programs, %d programs were skipped", wakeups, skipped)
	if reportsSkips(t) {
		qt.Check(t, qt.IsTrue(skipped >= wakeups))
		qt.Check(t, qt.IsTrue(c.shown(Wait) >= before+skipped))
	}
}
