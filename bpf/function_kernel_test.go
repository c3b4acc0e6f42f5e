//go:build linux

package bpf

import (
	"bufio"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/link"
	"github.com/go-quicktest/qt"
	"golang.org/x/sys/unix"
)

// openFunctions opens the kernel in a tier, and skips where it has no kprobes.
func openFunctions(t *testing.T, tier Tier) *functions {
	t.Helper()
	openKernel(t, tier, Options{})
	f := findFunctions(map[Probe][]hook{Tapdisk: functionHooks})
	t.Cleanup(f.close)
	for _, by := range []Way{ByKprobe, ByKretprobe} {
		if err := f.none[by]; err != nil {
			t.Skipf("needs %ss: %v", by, err)
		}
	}
	return f
}

// unless says what cannot be of functions: all else can.
func (f *functions) unless(w way) error {
	if !w.function() {
		return nil
	}
	return f.cannot(w)
}

// functionHooks are of harmless functions: of the kernel, of modules that are not
// loaded, and none at all.
var functionHooks = []hook{
	seen(Tapdisk, "eventfd read", "sys_exit_read", "dt_sys", leaving("eventfd_read", "", "dt_leaving")),
	seen(Tapdisk, "eventfd write", "sys_enter_write", "dt_sys", entering("eventfd_write", "", "dt_entering")),
	seen(Tapdisk, "getpgid", "sys_enter_getpgid", "dt_sys", entering("__x64_sys_getpgid", "", "dt_syscall")),
	seen(Tapdisk, "absent", "sys_enter_getsid", "dt_sys", entering("dt_absent", "", "dt_entering"), leaving("dt_absent", "dt_absent", "dt_leaving")),
	seen(Tapdisk, "untraceable", "sys_enter_getuid", "dt_sys", entering("kprobe_dispatcher", "", "dt_entering")),
}

// saw is what a program of noting notes.
type saw struct{ Runs, Value uint64 }

// noting makes a program that counts runs of the thread of the test and notes the
// value that args leave in R8. R6 is the context.
func noting(t *testing.T, name string, kind ebpf.ProgramType, args ...asm.Instruction) (*ebpf.ProgramSpec, *ebpf.Map) {
	t.Helper()
	m, err := ebpf.NewMap(&ebpf.MapSpec{Type: ebpf.Array, KeySize: 4, ValueSize: 16, MaxEntries: 1})
	qt.Assert(t, qt.IsNil(err))
	t.Cleanup(func() { m.Close() })
	body := asm.Instructions{
		asm.Mov.Reg(asm.R6, asm.R1),
		asm.FnGetCurrentPidTgid.Call(),
		asm.RSh.Imm(asm.R0, 32),
		asm.JNE.Imm(asm.R0, int32(os.Getpid()), "exit"),
	}
	body = append(body, args...)
	body = append(body,
		asm.StoreImm(asm.RFP, -4, 0, asm.Word),
		asm.Mov.Reg(asm.R2, asm.RFP),
		asm.Add.Imm(asm.R2, -4),
		asm.LoadMapPtr(asm.R1, m.FD()),
		asm.FnMapLookupElem.Call(),
		asm.JEq.Imm(asm.R0, 0, "exit"),
		asm.Mov.Imm(asm.R1, 1),
		asm.StoreXAdd(asm.R0, asm.R1, asm.DWord),
		asm.StoreMem(asm.R0, 8, asm.R8, asm.DWord),
		asm.Mov.Imm(asm.R0, 0).WithSymbol("exit"),
		asm.Return(),
	)
	body[0] = body[0].WithSymbol(name)
	return &ebpf.ProgramSpec{Name: name, Type: kind, License: "GPL", Instructions: body}, m
}

// Offsets in struct pt_regs of x86-64.
const (
	regsAX = 80
	regsDX = 96
	regsSI = 104
	regsDI = 112
)

// Programs at functions run when these do, with what they were given, in both tiers:
// those of the legacy tier with the counter before them.
func TestFunctionsKernel(t *testing.T) {
	for _, tier := range []Tier{Legacy, Modern} {
		t.Run(tier.String(), func(t *testing.T) {
			f := openFunctions(t, tier)
			runs, err := newRuns(1)
			qt.Assert(t, qt.IsNil(err))
			defer runs.Close()

			fd, err := unix.Eventfd(0, unix.EFD_CLOEXEC)
			qt.Assert(t, qt.IsNil(err))
			defer unix.Close(fd)
			eight := []byte{5, 0, 0, 0, 0, 0, 0, 0}
			do := func() {
				_, err := unix.Write(fd, eight)
				qt.Assert(t, qt.IsNil(err))
				_, err = unix.Read(fd, make([]byte, 8))
				qt.Assert(t, qt.IsNil(err))
				_, _ = unix.Getpgid(0x12345)
			}
			for _, c := range []struct {
				hook  hook
				by    Way
				load  []asm.Instruction
				value uint64
			}{
				{functionHooks[0], ByKretprobe, []asm.Instruction{asm.LoadMem(asm.R8, asm.R6, regsAX, asm.DWord)}, 8},
				{functionHooks[1], ByKprobe, []asm.Instruction{asm.LoadMem(asm.R8, asm.R6, regsDX, asm.DWord)}, 8},
				{functionHooks[2], ByKprobe, []asm.Instruction{ // the function's argument is where the call's are
					asm.LoadMem(asm.R3, asm.R6, regsDI, asm.DWord),
					asm.Add.Imm(asm.R3, regsDI),
					asm.Mov.Reg(asm.R1, asm.RFP),
					asm.Add.Imm(asm.R1, -16),
					asm.Mov.Imm(asm.R2, 8),
					asm.FnProbeRead.Call(),
					asm.LoadMem(asm.R8, asm.RFP, -16, asm.DWord),
				}, 0x12345},
			} {
				k := &Kernel{hooks: map[Probe][]found{}, dispatched: map[Probe][]found{}}
				check := HookCheck{Probe: Tapdisk}
				k.choose(&check, c.hook, tracefsDir, f.unless)
				qt.Assert(t, qt.Equals(check.Way, c.by), qt.Commentf("%s: %s", c.hook, check.Why))
				qt.Assert(t, qt.HasLen(k.hooks[Tapdisk], 1))
				spec, noted := noting(t, check.Program, ebpf.Kprobe, c.load...)
				if tier == Legacy {
					qt.Assert(t, qt.IsNil(runs.Put(uint32(0), make([]uint64, ebpf.MustPossibleCPU()))))
					spec = counted(spec, runs.FD(), 0)
				}
				p, err := ebpf.NewProgram(spec)
				qt.Assert(t, qt.IsNil(err))
				l, err := k.hooks[Tapdisk][0].attach(p)
				qt.Assert(t, qt.IsNil(err))
				do()
				qt.Check(t, qt.IsNil(l.Close()))
				do()
				qt.Check(t, qt.IsNil(p.Close()))
				var got saw
				qt.Assert(t, qt.IsNil(noted.Lookup(uint32(0), &got)))
				qt.Check(t, qt.Equals(got, saw{1, c.value}), qt.Commentf("%s", c.hook))
				if tier == Legacy {
					var perCPU []uint64
					qt.Assert(t, qt.IsNil(runs.Lookup(uint32(0), &perCPU)))
					var n uint64
					for _, v := range perCPU {
						n += v
					}
					qt.Check(t, qt.IsTrue(n >= 1), qt.Commentf("%s: %d runs", c.hook, n))
				}
			}

			// What cannot be had says why, and the next way is taken.
			for i, why := range map[int]string{
				3: "kprobe dt_absent: the kernel has no such function; kretprobe dt_absent: module dt_absent is not loaded",
				4: "kprobe kprobe_dispatcher: the kernel has it, but attaching failed: .+",
			} {
				check := HookCheck{Probe: Tapdisk}
				(&Kernel{hooks: map[Probe][]found{}, dispatched: map[Probe][]found{}}).choose(&check, functionHooks[i], tracefsDir, f.unless)
				qt.Check(t, qt.Matches(check.Why, why))
				qt.Check(t, qt.Equals(check.Way, ByTracepoint))
				t.Logf("%s: %s", functionHooks[i], check.Why)
			}
		})
	}
}

// More threads than the kernel would count by itself sleep in a function, and all
// their returns are seen.
func TestReturnsOfManyKernel(t *testing.T) {
	f := openFunctions(t, Legacy)
	spec, noted := noting(t, "dt_leaving", ebpf.Kprobe, asm.LoadMem(asm.R8, asm.R6, regsAX, asm.DWord))
	p, err := ebpf.NewProgram(spec)
	qt.Assert(t, qt.IsNil(err))
	defer p.Close()
	const threads = 64
	file := filepath.Join(t.TempDir(), "lock")
	open := func() int {
		fd, err := unix.Open(file, unix.O_CREAT|unix.O_RDWR|unix.O_CLOEXEC, 0o600)
		qt.Assert(t, qt.IsNil(err))
		return fd
	}
	holder := open()
	qt.Assert(t, qt.IsNil(unix.Flock(holder, unix.LOCK_EX)))
	flock := found{way: leaving("__x64_sys_flock", "", "dt_leaving")}
	l, err := flock.attach(p)
	qt.Assert(t, qt.IsNil(err))
	done := make(chan error, threads)
	for range threads {
		fd := open()
		defer unix.Close(fd)
		go func() { done <- unix.Flock(fd, unix.LOCK_SH) }() // each has a thread of its own while it sleeps
	}
	waitAsleep(t, threads)
	qt.Assert(t, qt.IsNil(unix.Close(holder)))
	for range threads {
		qt.Assert(t, qt.IsNil(<-done))
	}
	var got saw
	qt.Assert(t, qt.IsNil(noted.Lookup(uint32(0), &got)))
	qt.Check(t, qt.Equals(got, saw{threads, 0}))

	// The event is there while it is attached only.
	qt.Check(t, qt.Equals(ownEvents(t), 1+1)) // and one that was tried
	qt.Assert(t, qt.IsNil(l.Close()))
	f.close()
	f.tried, f.program = nil, nil
	qt.Check(t, qt.Equals(ownEvents(t), 0))
}

// waitAsleep waits until so many threads of the test are in flock.
func waitAsleep(t *testing.T, want int) {
	t.Helper()
	for {
		tasks, err := filepath.Glob("/proc/self/task/*/syscall")
		qt.Assert(t, qt.IsNil(err))
		n := 0
		for _, file := range tasks {
			b, _ := os.ReadFile(file)
			if strings.HasPrefix(string(b), fmt.Sprintf("%d ", unix.SYS_FLOCK)) {
				n++
			}
		}
		if n >= want {
			return
		}
		unix.Nanosleep(&unix.Timespec{Nsec: 20e6}, nil)
	}
}

// ownEvents counts the kernel's events of this process.
func ownEvents(t *testing.T) (n int) {
	t.Helper()
	f, err := os.Open(filepath.Join(tracefsDir, "kprobe_events"))
	qt.Assert(t, qt.IsNil(err))
	defer f.Close()
	for in := bufio.NewScanner(f); in.Scan(); {
		if strings.Contains(in.Text(), fmt.Sprintf(":%s%d_", returnsPrefix, os.Getpid())) {
			n++
		}
	}
	return n
}

// What it costs a process that is no target that a system call is watched, by its
// tracepoints and by functions: of calls of others, and of that call.
func TestStrangersPriceKernel(t *testing.T) {
	openFunctions(t, Legacy)
	load := func(kind ebpf.ProgramType) *ebpf.Program {
		p, err := ebpf.NewProgram(&ebpf.ProgramSpec{Name: "dt_try", Type: kind, License: "GPL", Instructions: asm.Instructions{asm.Mov.Imm(asm.R0, 0), asm.Return()}})
		qt.Assert(t, qt.IsNil(err))
		t.Cleanup(func() { p.Close() })
		return p
	}
	atEvents, atFunctions := load(ebpf.TracePoint), load(ebpf.Kprobe)
	bad := ^uintptr(0)
	calls := map[string]func(){
		"another call": func() { unix.Getppid() },
		"that call":    func() { unix.RawSyscall(unix.SYS_IO_SUBMIT, bad, 0, 0) },
	}
	least := map[string]map[string]time.Duration{}
	measure := func(what string) {
		for name, call := range calls {
			if least[name] == nil {
				least[name] = map[string]time.Duration{}
			}
			for range 7 {
				start := time.Now()
				for range 2000 {
					call()
				}
				took := time.Since(start) / 2000
				if old, ok := least[name][what]; !ok || took < old {
					least[name][what] = took
				}
			}
		}
	}
	pair := func(what string, p *ebpf.Program, hooks ...found) {
		var links []link.Link
		for _, f := range hooks {
			l, err := f.attach(p)
			qt.Assert(t, qt.IsNil(err))
			links = append(links, l)
		}
		measure(what)
		for _, l := range links {
			qt.Check(t, qt.IsNil(l.Close()))
		}
	}
	for range 3 { // in turn: other work on the machine makes things look dearer
		measure("off")
		pair("tracepoints", atEvents, found{hook: hook{group: "syscalls", name: "sys_enter_io_submit"}}, found{hook: hook{group: "syscalls", name: "sys_exit_io_submit"}})
		pair("kprobe", atFunctions, found{way: entering("__x64_sys_io_submit", "", "")})
		pair("kprobe and kretprobe", atFunctions, found{way: entering("__x64_sys_io_submit", "", "")}, found{way: leaving("__x64_sys_io_submit", "", "")})
	}
	for name := range calls {
		for _, what := range []string{"off", "tracepoints", "kprobe", "kprobe and kretprobe"} {
			took := least[name][what]
			t.Logf("%s, %s: %v, %.2f of off", name, what, took, float64(took)/float64(least[name]["off"]))
		}
	}
}
