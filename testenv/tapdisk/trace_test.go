//go:build linux

package tapdisk_test

import (
	"encoding/binary"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strings"
	"testing"

	"github.com/go-quicktest/qt"
	"golang.org/x/sys/unix"

	"github.com/xenserver/dtagent/testenv/tapdisk"
)

// step is a system call of a tapdisk's, by what it is for.
type step struct {
	What    string   // select, aio, kick, unmask, copy, submit, notify, wake, mmap
	Ready   string   // of a select: which of aio and kick are
	Timeout int64    // of a select, in ns
	Count   uint64   // of events, read from the eventfd
	Iocbs   []iocb   // of a submit
	Copies  []grant  // of a copy, where they can be read
	Failed  string   // errno
	Watched []string // of a select
}

// iocb is one that is submitted.
type iocb struct {
	Op      string
	Bytes   int64 // of all vectors
	Vectors int
	Offset  int64
	Data    bool // it has a pointer of its owner's
	Resfd   string
	Buf     uint64 // of the first vector
}

// grant is a segment of a copy.
type grant struct {
	Foreign           uint64 // the side that is the guest's
	Local             uint64
	Len, Flags        uint16
	Ref, Offset, From uint32
}

// tracerEnv is the variable that makes a test's process a tracer, of that process.
const tracerEnv = "DTAGENT_TAPDISK_TRACER"

// traceSteps records the system calls of a disk's tapdisk while f runs. Another process
// does so: who started the tapdisk waits for its end, and would be told of its stops.
func traceSteps(t *testing.T, d *tapdisk.Disk, f func()) (steps []step) {
	t.Helper()
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), fmt.Sprintf("%s=%d", tracerEnv, d.PID()))
	cmd.Stderr = os.Stderr
	in, err := cmd.StdinPipe()
	qt.Assert(t, qt.IsNil(err))
	out, err := cmd.StdoutPipe()
	qt.Assert(t, qt.IsNil(err))
	qt.Assert(t, qt.IsNil(cmd.Start()))
	defer func() {
		in.Close()
		qt.Check(t, qt.IsNil(cmd.Wait()))
	}()
	said := json.NewDecoder(out)
	var problem string
	qt.Assert(t, qt.IsNil(said.Decode(&problem)))
	if problem != "" {
		t.Skipf("needs ptrace: %s", problem)
	}
	f()
	in.Close()
	qt.Assert(t, qt.IsNil(said.Decode(&steps)))
	return steps
}

// traceMain is the life of a tracer.
func traceMain(pid string) {
	runtime.LockOSThread() // a tracee belongs to a thread
	tr := &tracer{}
	_, err := fmt.Sscan(pid, &tr.pid)
	if err == nil {
		err = tr.attach()
	}
	out := json.NewEncoder(os.Stdout)
	if err != nil {
		_ = out.Encode(err.Error())
		return
	}
	_ = out.Encode("")
	stop := make(chan struct{})
	go func() {
		_, _ = io.Copy(io.Discard, os.Stdin)
		close(stop)
		_ = unix.Tgkill(tr.pid, tr.pid, unix.SIGURG) // it may sleep: have it stop
	}()
	if err := tr.run(stop); err != nil {
		fmt.Fprintln(os.Stderr, "tracer:", err)
		os.Exit(1)
	}
	_ = out.Encode(tr.steps)
}

type tracer struct {
	pid   int
	steps []step
	in    bool
	regs  unix.PtraceRegs
	cur   *step
}

const ptraceSeize, ptraceInterrupt = 0x4206, 0x4207

func (tr *tracer) ptrace(request int, data uintptr) error {
	if _, _, e := unix.Syscall6(unix.SYS_PTRACE, uintptr(request), uintptr(tr.pid), 0, data, 0, 0); e != 0 {
		return e
	}
	return nil
}

func (tr *tracer) attach() error {
	if err := tr.ptrace(ptraceSeize, unix.PTRACE_O_TRACESYSGOOD); err != nil {
		return err
	}
	if err := tr.ptrace(ptraceInterrupt, 0); err != nil {
		return err
	}
	var ws unix.WaitStatus
	if _, err := unix.Wait4(tr.pid, &ws, unix.WALL, nil); err != nil {
		return err
	}
	return nil
}

func (tr *tracer) run(stop chan struct{}) error {
	signal := uintptr(0)
	for {
		if err := tr.ptrace(unix.PTRACE_SYSCALL, signal); err != nil {
			return fmt.Errorf("go on: %w", err)
		}
		signal = 0
		var ws unix.WaitStatus
		for {
			_, err := unix.Wait4(tr.pid, &ws, unix.WALL, nil)
			if err == unix.EINTR {
				continue
			}
			if err != nil {
				return err
			}
			break
		}
		if !ws.Stopped() {
			return fmt.Errorf("it ended: %#x", ws)
		}
		select {
		case <-stop:
			return tr.ptrace(unix.PTRACE_DETACH, 0)
		default:
		}
		if ws.StopSignal() != unix.SIGTRAP|0x80 {
			if ws.StopSignal() != unix.SIGTRAP { // that is the interrupt
				signal = uintptr(ws.StopSignal())
			}
			continue
		}
		if err := tr.stopped(); err != nil {
			return err
		}
	}
}

// read reads memory of the tapdisk's.
func (tr *tracer) read(at uint64, n int) ([]byte, error) {
	b := make([]byte, n)
	local := []unix.Iovec{{Base: &b[0], Len: uint64(n)}}
	_, err := unix.ProcessVMReadv(tr.pid, local, []unix.RemoteIovec{{Base: uintptr(at), Len: n}}, 0)
	return b, err
}

// fd names a descriptor.
func (tr *tracer) fd(n uint64) string {
	switch n {
	case 4:
		return "evtchn"
	case 5:
		return "notify"
	}
	name, err := os.Readlink(fmt.Sprintf("/proc/%d/fd/%d", tr.pid, n))
	if err == nil && name == "anon_inode:[eventfd]" {
		return "eventfd"
	}
	return "other"
}

func (tr *tracer) stopped() error {
	var regs unix.PtraceRegs
	if err := unix.PtraceGetRegs(tr.pid, &regs); err != nil {
		return err
	}
	if tr.in = !tr.in; !tr.in {
		return tr.left(&regs)
	}
	tr.regs = regs
	if int64(regs.Rax) != -int64(unix.ENOSYS) { // it was within one: this is its end
		tr.in = false
		return nil
	}
	s := step{}
	switch regs.Orig_rax {
	case unix.SYS_PSELECT6, unix.SYS_SELECT:
		s.What = "select"
		b, err := tr.read(regs.R8, 16)
		if err != nil {
			return err
		}
		s.Timeout = int64(binary.NativeEndian.Uint64(b))*1e9 + int64(binary.NativeEndian.Uint64(b[8:]))
		if s.Watched, err = tr.set(); err != nil {
			return err
		}
	case unix.SYS_READ:
		s.What = map[string]string{"eventfd": "aio", "evtchn": "kick"}[tr.fd(regs.Rdi)]
	case unix.SYS_WRITE:
		s.What = map[string]string{"evtchn": "unmask", "notify": "wake"}[tr.fd(regs.Rdi)]
	case unix.SYS_IOCTL:
		switch regs.Rsi {
		case 0x00104708:
			s.What = "copy"
			if err := tr.grants(&s); err != nil {
				return err
			}
		case 0x00044504:
			s.What = "notify"
		}
	case unix.SYS_IO_SUBMIT:
		s.What = "submit"
		if err := tr.submitted(&s); err != nil {
			return err
		}
	case unix.SYS_CLOCK_GETTIME, unix.SYS_GETTIMEOFDAY, // where the vDSO has no clock
		unix.SYS_FTRUNCATE, // of the text about the ring, each 5 s
		unix.SYS_MUNMAP:    // of buffers, when there was nothing to do for 3 s
		tr.cur = nil
		return nil
	case unix.SYS_MMAP:
		s.What = "mmap"
	}
	if s.What == "" {
		s.What = fmt.Sprintf("system call %d", regs.Orig_rax)
	}
	tr.steps = append(tr.steps, s)
	tr.cur = &tr.steps[len(tr.steps)-1]
	return nil
}

// set names what is in the set of descriptors to be read.
func (tr *tracer) set() (names []string, err error) {
	b, err := tr.read(tr.regs.Rsi, 128)
	if err != nil {
		return nil, err
	}
	for n := range uint64(1024) {
		if b[n/8]&(1<<(n%8)) != 0 {
			names = append(names, tr.fd(n))
		}
	}
	return names, nil
}

func (tr *tracer) left(regs *unix.PtraceRegs) error {
	s := tr.cur
	if s == nil {
		return nil
	}
	if r := int64(regs.Rax); r < 0 {
		s.Failed = unix.ErrnoName(unix.Errno(-r))
	}
	switch s.What {
	case "select":
		if int64(regs.Rax) <= 0 {
			return nil
		}
		names, err := tr.set()
		if err != nil {
			return err
		}
		s.Ready = readiness(names)
	case "aio":
		b, err := tr.read(tr.regs.Rsi, 8)
		if err != nil {
			return err
		}
		s.Count = binary.NativeEndian.Uint64(b)
	}
	return nil
}

// readiness is what of a tapdisk's descriptors is ready.
func readiness(names []string) string {
	var out []string
	for _, n := range names {
		switch n {
		case "eventfd":
			out = append(out, "aio")
		case "evtchn":
			out = append(out, "kick")
		default:
			out = append(out, n)
		}
	}
	slices.Sort(out)
	return strings.Join(out, " ")
}

var opcodes = map[uint16]string{0: "PREAD", 1: "PWRITE", 7: "PREADV", 8: "PWRITEV"}

func (tr *tracer) submitted(s *step) error {
	n := int(tr.regs.Rsi)
	ptrs, err := tr.read(tr.regs.Rdx, 8*n)
	if err != nil {
		return err
	}
	for i := range n {
		b, err := tr.read(binary.NativeEndian.Uint64(ptrs[8*i:]), 64)
		if err != nil {
			return err
		}
		u64 := func(at int) uint64 { return binary.NativeEndian.Uint64(b[at:]) }
		c := iocb{Op: opcodes[binary.NativeEndian.Uint16(b[16:])], Bytes: int64(u64(32)), Vectors: 1, Offset: int64(u64(40)), Data: u64(0) != 0, Buf: u64(24)}
		if binary.NativeEndian.Uint32(b[56:]) == 1 {
			c.Resfd = tr.fd(uint64(binary.NativeEndian.Uint32(b[60:])))
		}
		if strings.HasSuffix(c.Op, "V") {
			c.Vectors, c.Bytes = int(c.Bytes), 0
			v, err := tr.read(c.Buf, 16*c.Vectors)
			if err != nil {
				return err
			}
			c.Buf = binary.NativeEndian.Uint64(v)
			for k := range c.Vectors {
				c.Bytes += int64(binary.NativeEndian.Uint64(v[16*k+8:]))
			}
		}
		s.Iocbs = append(s.Iocbs, c)
	}
	return nil
}

func (tr *tracer) grants(s *step) error {
	b, err := tr.read(tr.regs.Rdx, 16)
	if err != nil {
		return err
	}
	n := int(binary.NativeEndian.Uint32(b))
	b, err = tr.read(binary.NativeEndian.Uint64(b[8:]), 24*n)
	if err != nil {
		return err
	}
	for ; len(b) > 0; b = b[24:] {
		u64, u16 := binary.NativeEndian.Uint64, binary.NativeEndian.Uint16
		g := grant{Len: u16(b[16:]), Flags: u16(b[18:])}
		switch g.Flags {
		case 1: // the source is the guest's
			g.Foreign, g.Local = u64(b), u64(b[8:])
		case 2:
			g.Local, g.Foreign = u64(b), u64(b[8:])
		default:
			return fmt.Errorf("flags %#x of a grant copy", g.Flags)
		}
		g.Ref, g.Offset, g.From = uint32(g.Foreign), uint32(g.Foreign>>32)&0xffff, uint32(g.Foreign>>48)
		s.Copies = append(s.Copies, g)
	}
	return nil
}
