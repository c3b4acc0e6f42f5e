//go:build linux

package bpf

import (
	"fmt"
	"strings"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"golang.org/x/sys/unix"
)

// maxCalls is DT_CALLS: more than there are numbers of system calls.
const maxCalls = 512

// dispatcher is a program at raw_syscalls:* that calls the program of a system
// call.
type dispatcher struct {
	hook
	table string // map with the programs to call
	first uint32 // where those of this dispatcher begin
}

// dispatchers of each probe in the order of attaching. include/dt_dispatch.h says
// what for.
var dispatchers = map[Probe][]dispatcher{
	Stream: {
		{at("raw_syscalls", "sys_exit", "dt_s_ret"), "dt_s_rets", 0},
		{at("raw_syscalls", "sys_exit", "dt_s_ret2"), "dt_s_rets", maxCalls},
		{at("raw_syscalls", "sys_enter", "dt_s_call"), "dt_s_calls", 0},
	},
	Process: {
		{at("raw_syscalls", "sys_exit", "dt_p_ret"), "dt_p_rets", 0},
		{at("raw_syscalls", "sys_enter", "dt_p_call"), "dt_p_calls", 0},
	},
	Wait: {
		{at("raw_syscalls", "sys_exit", "dt_w_ret"), "dt_w_rets", 0},
	},
	Tapdisk: {
		{at("raw_syscalls", "sys_exit", "dt_t_ret"), "dt_t_rets", 0},
		{at("raw_syscalls", "sys_enter", "dt_t_call"), "dt_t_calls", 0},
		{at("raw_syscalls", "sys_enter", "dt_t_call2"), "dt_t_calls", maxCalls},
	},
}

// callNumbers are the system calls that have hooks.
var callNumbers = map[string]uint32{
	"read": unix.SYS_READ, "write": unix.SYS_WRITE, "readv": unix.SYS_READV, "writev": unix.SYS_WRITEV,
	"recvfrom": unix.SYS_RECVFROM, "sendto": unix.SYS_SENDTO, "recvmsg": unix.SYS_RECVMSG, "sendmsg": unix.SYS_SENDMSG,
	"close": unix.SYS_CLOSE, "close_range": unix.SYS_CLOSE_RANGE, "dup2": unix.SYS_DUP2, "dup3": unix.SYS_DUP3,
	"accept": unix.SYS_ACCEPT, "accept4": unix.SYS_ACCEPT4, "connect": unix.SYS_CONNECT, "shutdown": unix.SYS_SHUTDOWN,
	"socket": unix.SYS_SOCKET, "socketpair": unix.SYS_SOCKETPAIR,
	"execve": unix.SYS_EXECVE, "execveat": unix.SYS_EXECVEAT, "exit_group": unix.SYS_EXIT_GROUP,
	"clone": unix.SYS_CLONE, "clone3": unix.SYS_CLONE3, "fork": unix.SYS_FORK, "vfork": unix.SYS_VFORK,
	"ioctl": unix.SYS_IOCTL, "io_submit": unix.SYS_IO_SUBMIT, "select": unix.SYS_SELECT, "pselect6": unix.SYS_PSELECT6, "open": unix.SYS_OPEN, "openat": unix.SYS_OPENAT,
}

// entry is one program in a table.
type entry struct {
	table   string
	index   uint32
	program string
}

// entries returns where the programs of dispatched hooks go. The second of a hook
// goes to the second dispatcher there.
func entries(p Probe, dispatched []found) (out []entry, err error) {
	seen := map[string]int{}
	for _, f := range dispatched {
		_, name := f.tracepoint()
		at := "sys_enter"
		call, ok := strings.CutPrefix(name, "sys_enter_")
		if !ok {
			at = "sys_exit"
			call, ok = strings.CutPrefix(name, "sys_exit_")
		}
		nr, known := callNumbers[call]
		if !ok || !known {
			return nil, fmt.Errorf("%s is no hook of a known system call", f)
		}
		skip := seen[name]
		seen[name]++
		var to *dispatcher
		for _, d := range dispatchers[p] {
			if d.name == at {
				if skip == 0 {
					to = &d
					break
				}
				skip--
			}
		}
		if to == nil {
			return nil, fmt.Errorf("no dispatcher calls program %d of %s", seen[name], f)
		}
		out = append(out, entry{to.table, to.first + nr, f.program})
	}
	return out, nil
}

// tables returns the names of a probe's tables.
func tables(p Probe) (names []string) {
	for _, d := range dispatchers[p] {
		names = append(names, d.table)
	}
	return names
}

// fillTables gives the dispatchers of a loaded probe their programs.
func (s *Session) fillTables(p Probe) error {
	all, err := entries(p, s.kernel.dispatched[p])
	if err != nil {
		return err
	}
	for _, e := range all {
		if err := s.maps[e.table].Put(e.index, s.progs[p][e.program]); err != nil {
			return fmt.Errorf("map %s: program %s: %w", e.table, e.program, err)
		}
	}
	return nil
}

// callsYield tells whether programs at the tracepoints of system calls may lose
// the CPU to other threads. The kernels where they may, from Linux 7 on, are those
// where they also may sleep, if they say that they want to.
func callsYield() bool {
	p, err := ebpf.NewProgram(&ebpf.ProgramSpec{
		Name: "dt_try", Type: ebpf.TracePoint, License: "GPL", Flags: unix.BPF_F_SLEEPABLE,
		Instructions: asm.Instructions{asm.Mov.Imm(asm.R0, 0), asm.Return()},
	})
	if err != nil {
		return false
	}
	p.Close()
	return true
}
