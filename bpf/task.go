//go:build linux

package bpf

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"runtime"
	"slices"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"
)

// taskBytes is how much of a task_struct is looked at: its pid is within the first
// 3 KiB on all kernels of 4.19 to 7.2 that were looked at.
const taskBytes = 4096

// taskThreads is how many threads have to agree where their numbers are.
const taskThreads = 3

// taskPID returns where the programs find the number of a thread in its
// task_struct; raw is why raw tracepoints cannot be used, if they cannot.
func (k *Kernel) taskPID(raw error) (offset uint32, detail string, err error) {
	if k.tier == Modern {
		return 0, "by BTF", nil
	}
	if raw != nil {
		return 0, "", errors.New("not looked at without raw tracepoints")
	}
	offset, err = findTaskPID()
	return offset, fmt.Sprintf("pid at %d, found by looking", offset), err
}

// findTaskPID returns the offset of pid in the kernel's struct task_struct, found
// by looking: kernels without BTF do not tell it, and dom0 kernels of one name
// have several layouts. Threads whose numbers are known look for them in their own
// task_struct, where tgid follows pid. It is an error when more than one place has
// them, or none.
func findTaskPID() (uint32, error) {
	var places []int
	for i := range taskThreads {
		tid, task, err := ownTask()
		if err != nil {
			return 0, fmt.Errorf("look at a thread: %w", err)
		}
		here := placesOf(task, tid, uint32(os.Getpid()))
		if i == 0 {
			places = here
		}
		places = slices.DeleteFunc(places, func(p int) bool { return !slices.Contains(here, p) })
	}
	if len(places) != 1 {
		return 0, fmt.Errorf("the number of a thread is at %d places of its task_struct", len(places))
	}
	return uint32(places[0]), nil
}

// placesOf returns the offsets at which tid and tgid stand side by side.
func placesOf(task []byte, tid, tgid uint32) []int {
	var out []int
	for at := 0; at+8 <= len(task); at += 4 {
		if binary.NativeEndian.Uint32(task[at:]) == tid && binary.NativeEndian.Uint32(task[at+4:]) == tgid {
			out = append(out, at)
		}
	}
	return out
}

// ownTask returns the number of a new thread and what the kernel's struct of it
// begins with.
func ownTask() (tid uint32, task []byte, err error) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread()
		if unix.Gettid() == os.Getpid() { // both numbers of the first thread are the same
			tid, task, err = ownTask() // on another, as this one is taken
			runtime.UnlockOSThread()
			return
		}
		tid = uint32(unix.Gettid()) // stays locked: the thread ends here
		task, err = readTask(tid)
	}()
	<-done
	return tid, task, err
}

// readTask is called by thread tid. Its switch away from the CPU shows its
// task_struct to a program.
func readTask(tid uint32) ([]byte, error) {
	m, err := ebpf.NewMap(&ebpf.MapSpec{Name: "dt_task", Type: ebpf.Array, KeySize: 4, ValueSize: 8 + taskBytes, MaxEntries: 1})
	if err != nil {
		return nil, err
	}
	defer m.Close()
	p, err := ebpf.NewProgram(&ebpf.ProgramSpec{
		Name: "dt_task", Type: ebpf.RawTracepoint, License: "GPL",
		Instructions: asm.Instructions{
			asm.FnGetCurrentPidTgid.Call(),
			asm.LSh.Imm(asm.R0, 32),
			asm.RSh.Imm(asm.R0, 32),
			asm.LoadImm(asm.R1, int64(tid), asm.DWord),
			asm.JNE.Reg(asm.R0, asm.R1, "exit"),
			asm.StoreImm(asm.RFP, -4, 0, asm.Word),
			asm.Mov.Reg(asm.R2, asm.RFP),
			asm.Add.Imm(asm.R2, -4),
			asm.LoadMapPtr(asm.R1, m.FD()),
			asm.FnMapLookupElem.Call(),
			asm.JEq.Imm(asm.R0, 0, "exit"),
			asm.Mov.Reg(asm.R6, asm.R0),
			asm.FnGetCurrentTask.Call(),
			asm.Mov.Reg(asm.R1, asm.R6),
			asm.Add.Imm(asm.R1, 8),
			asm.Mov.Imm(asm.R2, taskBytes),
			asm.Mov.Reg(asm.R3, asm.R0),
			asm.FnProbeRead.Call(),
			asm.JNE.Imm(asm.R0, 0, "exit"),
			asm.StoreImm(asm.R6, 0, 1, asm.Word), // it is there
			asm.Mov.Imm(asm.R0, 0).WithSymbol("exit"),
			asm.Return(),
		},
	})
	if err != nil {
		return nil, err
	}
	defer p.Close()
	l, err := link.AttachRawTracepoint(link.RawTracepointOptions{Name: "sched_switch", Program: p})
	if err != nil {
		return nil, err
	}
	defer l.Close()
	for range 20 {
		if err := unix.Nanosleep(&unix.Timespec{Nsec: int64(time.Millisecond)}, nil); err != nil && !errors.Is(err, unix.EINTR) {
			return nil, err
		}
		b, err := m.LookupBytes(uint32(0))
		if err != nil {
			return nil, err
		}
		if binary.NativeEndian.Uint64(b) == 1 {
			return b[8:], nil
		}
	}
	return nil, errors.New("no program ran when it gave up the CPU, or could not read")
}
