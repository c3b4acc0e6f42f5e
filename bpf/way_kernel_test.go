//go:build linux

package bpf

import (
	"errors"
	"io/fs"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/link"
	"github.com/go-quicktest/qt"
	"golang.org/x/sys/unix"
)

// Ways that the probes do not take, but a kernel may have.
const (
	byBTF    Way = "tp_btf"
	byFentry Way = "fentry"
	byFexit  Way = "fexit"
)

var allWays = []Way{ByTracepoint, ByRawTracepoint, byBTF, ByKprobe, ByKretprobe, byFentry, byFexit}

// places are where one way goes that leads to a hook: a tracepoint or a function, by
// what the way is called there.
func (h hook) places(by Way) map[string]string {
	if strings.Contains(h.name, " ") || h.ways[0].function() { // it is no tracepoint
		out := map[string]string{}
		for _, w := range h.ways {
			if w.by != by {
				continue
			}
			_, out[w.place()] = found{h, w}.tracepoint()
			if w.function() {
				out[w.place()] = w.symbol
			}
		}
		return out
	}
	enter, isEnter := strings.CutPrefix(h.name, "sys_enter_")
	exit, isExit := strings.CutPrefix(h.name, "sys_exit_")
	place, ok := h.name, true
	switch by {
	case ByTracepoint:
	case ByRawTracepoint, byBTF:
		ok = h.group != "syscalls"
	case ByKprobe, byFentry:
		place, ok = "__x64_sys_"+enter, isEnter
	default:
		place, ok = "__x64_sys_"+exit, isExit
	}
	if !ok {
		return nil
	}
	return map[string]string{string(by): place}
}

// tried is one way to one hook, as it came out.
type tried struct {
	hook  string
	way   Way
	place string
	name  string // of the way, with the place where the hook's name does not say that
	err   error
	link  link.Link
	prog  *ebpf.Program
	count *ebpf.Map
}

// try attaches a program that counts how often it runs.
func (h hook) try(by Way, name, place string) (r *tried) {
	r = &tried{hook: h.String(), way: by, name: name, place: place}
	if r.count, r.err = ebpf.NewMap(&ebpf.MapSpec{Type: ebpf.Array, KeySize: 4, ValueSize: 8, MaxEntries: 1}); r.err != nil {
		return r
	}
	spec := &ebpf.ProgramSpec{
		Name: "dt_try", License: "GPL",
		Instructions: asm.Instructions{
			asm.StoreImm(asm.RFP, -4, 0, asm.Word),
			asm.Mov.Reg(asm.R2, asm.RFP),
			asm.Add.Imm(asm.R2, -4),
			asm.LoadMapPtr(asm.R1, r.count.FD()),
			asm.FnMapLookupElem.Call(),
			asm.JEq.Imm(asm.R0, 0, "exit"),
			asm.Mov.Imm(asm.R1, 1),
			asm.StoreXAdd(asm.R0, asm.R1, asm.DWord),
			asm.Mov.Imm(asm.R0, 0).WithSymbol("exit"),
			asm.Return(),
		},
	}
	switch by {
	case ByTracepoint:
		spec.Type = ebpf.TracePoint
	case ByRawTracepoint:
		spec.Type = ebpf.RawTracepoint
	case ByKprobe, ByKretprobe:
		spec.Type = ebpf.Kprobe
	default:
		spec.Type, spec.AttachTo = ebpf.Tracing, place
		spec.AttachType = map[Way]ebpf.AttachType{byBTF: ebpf.AttachTraceRawTp, byFentry: ebpf.AttachTraceFEntry, byFexit: ebpf.AttachTraceFExit}[by]
	}
	if r.prog, r.err = ebpf.NewProgram(spec); r.err != nil {
		return r
	}
	switch by {
	case ByTracepoint:
		group := h.group
		if strings.HasPrefix(place, "sys_") && group != "raw_syscalls" {
			group = "syscalls"
		}
		r.link, r.err = link.Tracepoint(group, place, r.prog, nil)
	case ByRawTracepoint:
		r.link, r.err = link.AttachRawTracepoint(link.RawTracepointOptions{Name: place, Program: r.prog})
	case ByKprobe:
		r.link, r.err = link.Kprobe(place, r.prog, nil)
	case ByKretprobe:
		r.link, r.err = link.Kretprobe(place, r.prog, nil)
	default:
		r.link, r.err = link.AttachTracing(link.TracingOptions{Program: r.prog})
	}
	return r
}

func (r *tried) close() {
	if r.link != nil {
		r.link.Close()
	}
	if r.prog != nil {
		r.prog.Close()
	}
	if r.count != nil {
		r.count.Close()
	}
}

// result returns how it came out, in one word and in the kernel's.
func (r *tried) result() (result, why string) {
	switch {
	case r.err == nil:
		return "works", ""
	case errors.Is(r.err, fs.ErrNotExist) || errors.Is(r.err, ebpf.ErrNotSupported):
		return "absent", r.err.Error()
	default:
		return "refused", r.err.Error()
	}
}

// callAll makes every system call of the hooks, wrongly where that does no harm,
// and starts a process. Nothing here makes vfork or fork.
func callAll(t *testing.T) {
	bad := ^uintptr(0)
	for _, nr := range []uintptr{
		unix.SYS_CLOSE, unix.SYS_DUP2, unix.SYS_DUP3, unix.SYS_READ, unix.SYS_WRITE, unix.SYS_READV, unix.SYS_WRITEV,
		unix.SYS_RECVFROM, unix.SYS_SENDTO, unix.SYS_RECVMSG, unix.SYS_SENDMSG, unix.SYS_ACCEPT, unix.SYS_ACCEPT4,
		unix.SYS_CONNECT, unix.SYS_SHUTDOWN, unix.SYS_SOCKET, unix.SYS_SOCKETPAIR, unix.SYS_IOCTL, unix.SYS_OPENAT,
		unix.SYS_IO_SUBMIT, unix.SYS_SELECT,
	} {
		unix.Syscall(nr, bad, 0, 0)
	}
	unix.Syscall6(unix.SYS_PSELECT6, bad, 0, 0, 0, 0, 0)
	fd, err := unix.Eventfd(1, unix.EFD_CLOEXEC)
	qt.Assert(t, qt.IsNil(err))
	unix.Read(fd, make([]byte, 8))
	unix.Close(fd)
	unix.Syscall(unix.SYS_OPEN, 0, 0, 0)
	unix.Syscall(unix.SYS_CLOSE_RANGE, 1, 0, 0)
	unix.Syscall(unix.SYS_EXECVE, 0, 0, 0)
	unix.Syscall6(unix.SYS_EXECVEAT, bad, 0, 0, 0, 0, 0)
	unix.Syscall(unix.SYS_CLONE, unix.CLONE_SIGHAND, 0, 0) // not without CLONE_VM
	unix.Syscall(unix.SYS_CLONE3, 0, 0, 0)
	exe := startVictim(t)
	exe.kill()
	qt.Check(t, qt.IsNil(exec.Command("/bin/true").Run()))
}

// unmade tells what callAll does not make happen. There may be no block device, and
// nothing of Xen.
func unmade(hook, place string) bool {
	return slices.Contains([]string{"gntdev_ioctl", "evtchn_ioctl"}, place) || hook == "syscalls:sys_enter_fork" || hook == "syscalls:sys_enter_vfork" || strings.HasPrefix(hook, "block:")
}

// Every hook, by every way that there is: what this kernel allows. The lines are
// read by `make vmtest`. Open has to say the same, and what is attached has to run.
func TestWaysKernel(t *testing.T) {
	k := openKernel(t, Legacy, Options{})
	said := map[string]HookCheck{}
	for _, c := range k.Hooks() {
		said[c.Hook] = c
	}
	for _, by := range allWays {
		t.Run(string(by), func(t *testing.T) {
			var all []*tried
			seen := map[string]bool{}
			for _, p := range allProbes {
				for _, h := range hooks[p] {
					for name, place := range h.places(by) {
						if !seen[h.String()+name] {
							seen[h.String()+name] = true
							all = append(all, h.try(by, name, place))
						}
					}
				}
			}
			callAll(t)
			for _, r := range all {
				if r.err == nil && !unmade(r.hook, r.place) {
					var n uint64
					qt.Assert(t, qt.IsNil(r.count.Lookup(uint32(0), &n)))
					qt.Check(t, qt.IsTrue(n > 0), qt.Commentf("%s, %s: attached, but did not run", r.hook, by))
				}
			}
			var wg sync.WaitGroup
			for _, r := range all {
				wg.Go(r.close) // each waits for all processors
			}
			wg.Wait()
			for _, r := range all {
				result, why := r.result()
				t.Logf("way hook=%q way=%q result=%q why=%q", r.hook, r.name, result, why)
				c := said[r.hook]
				if c.Way == by && strings.HasSuffix(r.name, c.Function) {
					qt.Check(t, qt.Equals(result, "works"), qt.Commentf("%s: Open says that it works by %s", r.hook, by))
				}
				if result == "works" && c.Way == "" {
					t.Errorf("%s: Open says that it does not work", r.hook)
				}
			}
		})
	}
}
