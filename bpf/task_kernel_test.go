//go:build linux

package bpf

import (
	"errors"
	"os"
	"runtime"
	"slices"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/btf"
	"github.com/cilium/ebpf/link"
	"github.com/go-quicktest/qt"
	"golang.org/x/sys/unix"
)

func TestPlacesOf(t *testing.T) {
	task := make([]byte, 64)
	put := func(at int, v uint32) { task[at], task[at+1] = byte(v), byte(v>>8) }
	qt.Check(t, qt.HasLen(placesOf(task, 700, 7), 0))
	put(16, 700) // alone it is any number
	qt.Check(t, qt.HasLen(placesOf(task, 700, 7), 0))
	put(20, 7)
	put(40, 700)
	put(60, 700) // nothing follows
	qt.Check(t, qt.DeepEquals(placesOf(task, 700, 7), []int{16}))
	put(44, 7)
	qt.Check(t, qt.DeepEquals(placesOf(task, 700, 7), []int{16, 40}))
	qt.Check(t, qt.HasLen(placesOf(task[:7], 700, 7), 0))
}

// What is found by looking is what BTF says.
func TestFindTaskPIDKernel(t *testing.T) {
	openKernel(t, Legacy, Options{})
	got, err := findTaskPID()
	qt.Assert(t, qt.IsNil(err))
	spec, err := btf.LoadKernelSpec()
	if errors.Is(err, ebpf.ErrNotSupported) || errors.Is(err, os.ErrNotExist) {
		t.Skipf("needs BTF to compare %d with", got)
	}
	qt.Assert(t, qt.IsNil(err))
	var task *btf.Struct
	qt.Assert(t, qt.IsNil(spec.TypeByName("task_struct", &task)))
	i := slices.IndexFunc(task.Members, func(m btf.Member) bool { return m.Name == "pid" })
	qt.Assert(t, qt.IsTrue(i >= 0))
	qt.Check(t, qt.Equals(got, task.Members[i].Offset.Bytes()))
}

// by restricts the hooks that have several ways to one of them, where that one keeps
// the CPU.
func (k *Kernel) by(want Way) {
	yield := callsYield()
	for p, all := range k.hooks {
		for i, f := range all {
			if j := slices.IndexFunc(f.ways, func(w way) bool { return w.by == want && !(w.calls && yield) }); j >= 0 && len(f.ways) > 1 {
				k.hooks[p][i].way = f.ways[j]
			}
		}
	}
}

// A wakeup by an interrupt that comes while a program runs is lost to a tracepoint
// and counted; a raw tracepoint sees it.
func TestNestedWakeupKernel(t *testing.T) {
	const wakeups = 40
	for _, tier := range []Tier{Legacy, Modern} {
		t.Run(tier.String(), func(t *testing.T) {
			lost := map[Way]int{}
			for _, w := range []Way{ByTracepoint, ByRawTracepoint} {
				k := openKernel(t, tier, Options{})
				k.by(w)
				c := newCollector(t, k)
				qt.Assert(t, qt.IsNil(c.s.Attach(Process)))
				qt.Assert(t, qt.IsNil(c.s.Attach(Wait)))
				lost[w] = nestedWakeups(t, c, wakeups)
				qt.Check(t, qt.IsNil(c.close()))
			}
			t.Logf("of %d wakeups during a program, not seen: %v", wakeups, lost)
			qt.Check(t, qt.IsTrue(lost[ByTracepoint] >= wakeups*9/10))
			qt.Check(t, qt.IsTrue(lost[ByRawTracepoint] <= wakeups/10))
		})
	}
}

// nestedWakeups wakes a thread n times by an interrupt that a program causes to
// itself, and returns how many of its waits tell that the wakeup was not seen.
func nestedWakeups(t *testing.T, c *collector, n int) int {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	var old, one unix.CPUSet
	qt.Assert(t, qt.IsNil(unix.SchedGetaffinity(0, &old)))
	defer unix.SchedSetaffinity(0, &old)
	cpu := firstOf(&old)
	one.Set(cpu)
	qt.Assert(t, qt.IsNil(unix.SchedSetaffinity(0, &one)))

	// A perf event that wakes who polls it with each record of a program.
	attr := unix.PerfEventAttr{Type: unix.PERF_TYPE_SOFTWARE, Config: unix.PERF_COUNT_SW_BPF_OUTPUT, Sample_type: unix.PERF_SAMPLE_RAW, Wakeup: 1}
	fd, err := unix.PerfEventOpen(&attr, -1, cpu, -1, unix.PERF_FLAG_FD_CLOEXEC)
	qt.Assert(t, qt.IsNil(err))
	event := os.NewFile(uintptr(fd), "perf event")
	defer event.Close()
	ring, err := unix.Mmap(fd, 0, 17*os.Getpagesize(), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED) // room for all records
	qt.Assert(t, qt.IsNil(err))
	defer unix.Munmap(ring)
	events, err := ebpf.NewMap(&ebpf.MapSpec{Type: ebpf.PerfEventArray})
	qt.Assert(t, qt.IsNil(err))
	defer events.Close()
	qt.Assert(t, qt.IsNil(events.Put(uint32(cpu), uint32(fd))))
	body := asm.Instructions{
		asm.Mov.Reg(asm.R6, asm.R1),
		asm.FnGetCurrentPidTgid.Call(),
		asm.LSh.Imm(asm.R0, 32),
		asm.RSh.Imm(asm.R0, 32),
		asm.JNE.Imm(asm.R0, int32(unix.Gettid()), "exit"),
		asm.StoreMem(asm.RFP, -8, asm.R0, asm.DWord),
		asm.Mov.Reg(asm.R1, asm.R6),
		asm.LoadMapPtr(asm.R2, events.FD()),
		asm.LoadImm(asm.R3, 0xffffffff, asm.DWord), // BPF_F_CURRENT_CPU
		asm.Mov.Reg(asm.R4, asm.RFP),
		asm.Add.Imm(asm.R4, -8),
		asm.Mov.Imm(asm.R5, 8),
		asm.FnPerfEventOutput.Call(),
	}
	for range 500 { // the interrupt comes while it runs
		body = append(body, asm.FnKtimeGetNs.Call())
	}
	body = append(body, asm.Mov.Imm(asm.R0, 0).WithSymbol("exit"), asm.Return())
	outer, err := ebpf.NewProgram(&ebpf.ProgramSpec{Name: "dt_outer", Type: ebpf.TracePoint, License: "GPL", Instructions: body})
	qt.Assert(t, qt.IsNil(err))
	defer outer.Close()
	l, err := link.Tracepoint("syscalls", "sys_enter_getpgid", outer, nil)
	qt.Assert(t, qt.IsNil(err))
	defer l.Close()

	c.t = t
	v := c.waiter(event)
	tid := v.must(order{Thread: 5, Do: "tid"}).TID
	c.take(v.pid())
	c.before = c.s.Losses()
	v.start(order{Thread: 5, Do: "polls", FD: 3, N: n})
	slept := 0
	for range n {
		slept = v.pollsAgain(tid, slept)
		time.Sleep(threshold) // a long wait is told by itself
		_, err := unix.Getpgid(0)
		qt.Assert(t, qt.IsNil(err))
	}
	qt.Check(t, qt.Equals(v.wait().Ret, n))
	v.must(order{Thread: 5, Do: "tid"})
	told, unseen := 0, 0
	for _, w := range waitsOf(c.take(v.pid(), KindTime), tid) {
		if w.NR != unix.SYS_POLL {
			continue
		}
		told++
		if w.Runnable == w.Last { // it takes time to get the CPU
			unseen++
		}
	}
	qt.Check(t, qt.Equals(told, n))
	var counted uint64
	for _, l := range c.losses() {
		if l.Probe == Wait && (l.Cause == lossNames[lossWakeup] || l.Cause == lossNames[lossSwitch]) {
			counted += l.Count
		}
	}
	qt.Check(t, qt.IsTrue(counted >= uint64(unseen)), qt.Commentf("%d not seen, %d counted", unseen, counted))
	return unseen
}
