//go:build linux

package bpf

import (
	"errors"
	"fmt"
	"os"
	"strings"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/btf"
	"github.com/cilium/ebpf/features"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"
)

// Check is one thing that Open found out about this kernel and host.
type Check struct {
	Name   string // what was tried, e.g. "BTF"
	OK     bool
	Needed bool   // without it no probe runs
	Detail string // how it works here
	Why    string // why it does not
	Advice string // what to do about it
}

// probe tries what the loader needs, the most basic first.
func (k *Kernel) probe(memlock error) {
	add := func(c Check, err error) bool {
		c.OK = err == nil
		if err != nil {
			c.Why, c.Detail = err.Error(), ""
		} else {
			c.Advice = ""
		}
		k.checks = append(k.checks, c)
		return c.OK
	}
	needed := func(name, detail, advice string, err error) bool {
		return add(Check{Name: name, Needed: true, Detail: detail, Advice: advice}, err)
	}
	optional := func(name, detail, advice string, err error) bool {
		return add(Check{Name: name, Detail: detail, Advice: advice}, err)
	}

	ok := needed("bpf system call", fmt.Sprintf("maps can be made (uid %d)", os.Geteuid()),
		"run as root, or with CAP_BPF and CAP_PERFMON (CAP_SYS_ADMIN before Linux 5.8), in a container with seccomp open for bpf", tryMap())
	optional("locked memory", "no limit stands in the way",
		"run with CAP_SYS_RESOURCE or raise RLIMIT_MEMLOCK (ulimit -l unlimited)", memlock)
	lockdown, err := lockdownMode()
	optional("lockdown", lockdown, "boot with lockdown=integrity or none", err)
	if !ok {
		return
	}
	ok = needed("programs", "tracepoint programs load and may read memory",
		"the kernel needs CONFIG_BPF_EVENTS; lockdown=confidentiality forbids it", tryProgram())

	tracefs, detail, err := findTracefs()
	tok := needed("tracefs", detail,
		"as root: mount -t tracefs tracefs "+tracefsDir+"; the kernel needs CONFIG_FTRACE and CONFIG_FTRACE_SYSCALLS", err)
	if tok {
		k.config, err = readConfig(tracefs)
		needed("tracepoint formats", fmt.Sprintf("child_pid at %d, filename at %d", k.config.ForkChild, k.config.ExecFilename),
			"report this kernel: dtagent does not know its tracepoints", err)
		if ok {
			needed("attaching", "by perf event", "allow perf_event_open (seccomp, kernel.perf_event_paranoid, CAP_PERFMON)", tryAttach())
		}
	}

	_, btfErr := btf.LoadKernelSpec()
	btfOK := optional("BTF", "types of the kernel at /sys/kernel/btf/vmlinux",
		"none needed: the legacy tier does without (CONFIG_DEBUG_INFO_BTF)", btfErr)
	ringOK := optional("ring buffer", fmt.Sprintf("%d KiB", k.opt.RingBytes>>10),
		"none needed: the legacy tier does without (Linux 5.8)", features.HaveMapType(ebpf.RingBuf))
	if btfOK && ringOK && !k.opt.Legacy {
		k.tier = Modern
	}
	add(Check{
		Name: "perf buffer", Needed: k.tier == Legacy, Detail: fmt.Sprintf("%d KiB for each CPU", k.opt.PerfBytes>>10),
		Advice: "the kernel needs CONFIG_PERF_EVENTS",
	}, features.HaveMapType(ebpf.PerfEventArray))
	tier := Check{Name: "tier", Detail: k.tier.String()}
	switch {
	case k.opt.Legacy:
		tier.Detail += ", as asked for"
	case k.tier == Legacy:
		tier.Detail += ": no socket inodes or peers, no exit codes of killed processes, no CPU time"
	}
	add(tier, nil)
	if !tok || !ok {
		return
	}
	raw := tryRaw()
	needed("raw tracepoints", "attached", "allow bpf's BPF_RAW_TRACEPOINT_OPEN (seccomp, CAP_BPF and CAP_PERFMON); needs Linux 4.17", raw)
	pid, detail, noPID := k.taskPID(raw)
	optional("task structure", detail, "report this kernel (/sys/kernel/notes); meanwhile wakeups are seen by the tracepoint, at a higher cost", noPID)
	k.config.TaskPid = pid
	yield := k.opt.dispatch || callsYield()
	k.tracefs = tracefs
	k.cannot = func(f *functions) func(way) error {
		return func(w way) error {
			switch {
			case w.by == ByRawTracepoint && raw != nil:
				return raw
			case w.task && noPID != nil:
				return noPID
			case w.btf && k.tier != Modern:
				return errors.New("what it reads is known by BTF only")
			case w.calls && yield:
				return errors.New("this kernel takes the CPU from programs there")
			case w.function():
				return f.cannot(w)
			}
			return nil
		}
	}
	dropReturns(tracefs)
	functions := findFunctions(hooks)
	defer functions.close()
	cannot := k.cannot(functions)
	k.hooks, k.dispatched = map[Probe][]found{}, map[Probe][]found{}
	for _, p := range allProbes {
		if p == Disk || p == Tapdisk {
			continue
		}
		detail, err := k.findHooks(tracefs, p, cannot)
		needed("hooks of "+p.String(), detail, "the kernel needs CONFIG_FTRACE_SYSCALLS", err)
	}
	detail, err = k.findDiskHooks(tracefs, cannot)
	optional("hooks of "+Disk.String(), detail, "without them dtagent io shows nothing (CONFIG_BLOCK, CONFIG_TRACEPOINTS)", err)
	detail, err = k.findTapdiskHooks(tracefs, cannot)
	optional("hooks of "+Tapdisk.String(), detail, "without them the layers of guests' disk requests are not told apart (CONFIG_FTRACE_SYSCALLS, CONFIG_AIO)", err)
}

// tryMap makes the smallest map.
func tryMap() error {
	m, err := ebpf.NewMap(&ebpf.MapSpec{Type: ebpf.Array, KeySize: 4, ValueSize: 4, MaxEntries: 1})
	if err != nil {
		if errors.Is(err, unix.ENOSYS) {
			return fmt.Errorf("the kernel has no bpf system call: %w", err)
		}
		return err
	}
	return m.Close()
}

// smallest is a program that does nothing on a tracepoint.
func smallest(body ...asm.Instruction) (*ebpf.Program, error) {
	return ebpf.NewProgram(&ebpf.ProgramSpec{
		Name: "dt_try", Type: ebpf.TracePoint, License: "GPL",
		Instructions: append(body, asm.Mov.Imm(asm.R0, 0), asm.Return()),
	})
}

// tryProgram loads a program that reads memory, which lockdown may forbid.
func tryProgram() error {
	p, err := smallest(
		asm.Mov.Reg(asm.R3, asm.R1),
		asm.Mov.Reg(asm.R1, asm.RFP),
		asm.Add.Imm(asm.R1, -8),
		asm.Mov.Imm(asm.R2, 8),
		asm.FnProbeRead.Call(),
	)
	if err != nil {
		return err
	}
	return p.Close()
}

// tryAttach attaches a program that does nothing to a rare tracepoint.
func tryAttach() error {
	p, err := smallest()
	if err != nil {
		return err
	}
	defer p.Close()
	l, err := link.Tracepoint("sched", "sched_process_exec", p, nil)
	if err != nil {
		return err
	}
	return l.Close()
}

// tryRaw attaches a program that does nothing to a rare raw tracepoint.
func tryRaw() error {
	p, err := ebpf.NewProgram(&ebpf.ProgramSpec{
		Name: "dt_try", Type: ebpf.RawTracepoint, License: "GPL",
		Instructions: asm.Instructions{asm.Mov.Imm(asm.R0, 0), asm.Return()},
	})
	if err != nil {
		return err
	}
	defer p.Close()
	l, err := link.AttachRawTracepoint(link.RawTracepointOptions{Name: "sched_process_exec", Program: p})
	if err != nil {
		return err
	}
	return l.Close()
}

// findDiskHooks notes the hooks of the disk probe, if the kernel has all and its
// events are understood. The other probes do without.
func (k *Kernel) findDiskHooks(tracefs string, cannot func(way) error) (detail string, err error) {
	if k.block, err = readBlockConf(tracefs); err != nil {
		return "", err
	}
	if detail, err = k.findHooks(tracefs, Disk, cannot); err != nil {
		delete(k.hooks, Disk)
	}
	return detail, err
}

// findTapdiskHooks is the same for the tapdisk probe.
func (k *Kernel) findTapdiskHooks(tracefs string, cannot func(way) error) (detail string, err error) {
	if err = checkRemap(tracefs); err != nil {
		return "", err
	}
	if detail, err = k.findHooks(tracefs, Tapdisk, cannot); err != nil {
		delete(k.hooks, Tapdisk)
	}
	return detail, err
}

// lockdownMode returns the kernel's lockdown mode.
func lockdownMode() (string, error) {
	b, err := os.ReadFile("/sys/kernel/security/lockdown")
	if err != nil {
		return "not shown (no securityfs)", nil
	}
	_, mode, ok := strings.Cut(string(b), "[")
	mode, _, ok2 := strings.Cut(mode, "]")
	if !ok || !ok2 {
		return "not understood: " + strings.TrimSpace(string(b)), nil
	}
	if mode == "confidentiality" {
		return mode, errors.New("lockdown=confidentiality: programs may not read memory")
	}
	return mode, nil
}
