//go:build linux

package bpf

import (
	"bufio"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"
	"unsafe"

	"github.com/go-quicktest/qt"
	"golang.org/x/sys/unix"

	"github.com/xenserver/dtagent/testenv/fault"
	"github.com/xenserver/dtagent/testenv/tapdisk"
)

// A victim is this test binary run once more as a real process that makes the
// system calls it is told to make, each on the thread it is told to use.

const victimEnv = "DTAGENT_BPF_TEST_VICTIM"

func TestMain(m *testing.M) {
	fault.Main()
	tapdisk.Main()
	if os.Getenv(victimEnv) != "" {
		victimMain()
		return
	}
	code := m.Run()
	closeSessions()
	os.Exit(code)
}

// order is one thing to do.
type order struct {
	Thread int
	Do     string
	FD     int
	N      int // bytes a read asks for; the second fd of dup2
	Times  int // 0: once
	Data   string
	Parts  []string // of vectors
	Path   string
	At     int64 // offset in a file
	Count  int   // of pieces of N bytes each
}

// outcome is what came of it.
type outcome struct {
	Ret   int
	Ret2  int
	Errno int
	TID   int
	Data  string
}

type victim struct {
	t   testing.TB
	cmd *exec.Cmd
	in  *json.Encoder
	out *json.Decoder
}

// startVictim starts a victim that has the given files as fds 3, 4, ….
func startVictim(t testing.TB, files ...*os.File) *victim {
	t.Helper()
	// Not by its path: in a chroot, that is another one to a thread in a mount namespace of its own (newFrozen).
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), victimEnv+"=1", "GOMAXPROCS=2")
	cmd.ExtraFiles = files
	cmd.Stderr = os.Stderr
	in, err := cmd.StdinPipe()
	qt.Assert(t, qt.IsNil(err))
	out, err := cmd.StdoutPipe()
	qt.Assert(t, qt.IsNil(err))
	qt.Assert(t, qt.IsNil(cmd.Start()))
	v := &victim{t: t, cmd: cmd, in: json.NewEncoder(in), out: json.NewDecoder(out)}
	t.Cleanup(func() { v.kill() })
	v.do(order{Do: "tid"}) // it runs
	v.quiet()              // and is in no call whose beginning the probes could miss
	return v
}

func (v *victim) pid() uint32 { return uint32(v.cmd.Process.Pid) }

func (v *victim) kill() {
	v.cmd.Process.Kill()
	v.cmd.Wait()
}

// start gives an order without waiting for its outcome.
func (v *victim) start(o order) {
	v.t.Helper()
	qt.Assert(v.t, qt.IsNil(v.in.Encode(o)))
}

func (v *victim) wait() outcome {
	v.t.Helper()
	var r outcome
	qt.Assert(v.t, qt.IsNil(v.out.Decode(&r)))
	return r
}

func (v *victim) do(o order) outcome {
	v.t.Helper()
	v.start(o)
	return v.wait()
}

// must is do for an order that has to succeed.
func (v *victim) must(o order) outcome {
	v.t.Helper()
	r := v.do(o)
	qt.Assert(v.t, qt.Equals(syscall.Errno(r.Errno), 0), qt.Commentf("%+v", o))
	return r
}

func (v *victim) read(fd, n int) outcome {
	v.t.Helper()
	return v.must(order{Do: "read", FD: fd, N: n})
}
func (v *victim) write(fd int, data string) outcome {
	v.t.Helper()
	return v.must(order{Do: "write", FD: fd, Data: data})
}

// blocked waits until a thread sleeps in a system call on fd.
func (v *victim) blocked(nr uintptr, fd int) {
	v.t.Helper()
	in := fmt.Sprintf("%d %#x ", nr, fd)
	v.threads(fmt.Sprintf("sleeps in system call %d on fd %d", nr, fd), func(calls []string) bool {
		return slices.ContainsFunc(calls, func(c string) bool { return strings.HasPrefix(c, in) })
	})
}

// polls waits until a thread sleeps in poll.
func (v *victim) polls() {
	v.t.Helper()
	in := fmt.Sprintf("%d ", unix.SYS_POLL)
	v.threads("sleeps in poll", func(calls []string) bool {
		return slices.ContainsFunc(calls, func(c string) bool { return strings.HasPrefix(c, in) })
	})
}

// pollsAgain waits until a thread sleeps in poll that has slept more often than so,
// and returns how often.
func (v *victim) pollsAgain(tid, slept int) (n int) {
	v.t.Helper()
	what := fmt.Sprintf("thread %d sleeps in poll for more than %d times", tid, slept)
	v.threads(what, func([]string) bool {
		dir := fmt.Sprintf("/proc/%d/task/%d/", v.pid(), tid)
		call, _ := os.ReadFile(dir + "syscall")
		status, _ := os.ReadFile(dir + "status")
		_, after, _ := strings.Cut(string(status), "\nvoluntary_ctxt_switches:")
		fmt.Sscan(after, &n)
		return n > slept && strings.HasPrefix(string(call), fmt.Sprintf("%d ", unix.SYS_POLL))
	})
	return n
}

// quiet waits until all threads sleep: what was done is also traced.
func (v *victim) quiet() {
	v.t.Helper()
	v.threads("sleep all", func(calls []string) bool { return !slices.Contains(calls, "running\n") })
}

// threads waits until f is content with what /proc/PID/task/TID/syscall tells.
func (v *victim) threads(what string, f func(calls []string) bool) {
	v.t.Helper()
	var calls []string
	for range 2000 {
		files, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/syscall", v.pid()))
		qt.Assert(v.t, qt.IsNil(err))
		calls = calls[:0]
		for _, file := range files {
			if b, err := os.ReadFile(file); err == nil {
				calls = append(calls, string(b))
			}
		}
		if f(calls) {
			return
		}
		time.Sleep(time.Millisecond)
	}
	v.t.Fatalf("threads do not: %s: %q", what, calls)
}

// victimMain runs orders until stdin ends. Each thread number is one OS thread.
func victimMain() {
	in := json.NewDecoder(bufio.NewReader(os.Stdin))
	out := json.NewEncoder(os.Stdout)
	type job struct {
		o    order
		done chan outcome
	}
	threads := map[int]chan job{}
	results := make(chan chan outcome, 64)
	go func() {
		for r := range results {
			out.Encode(<-r)
		}
	}()
	for {
		var o order
		if err := in.Decode(&o); err != nil {
			os.Exit(0)
		}
		jobs := threads[o.Thread]
		if jobs == nil {
			jobs = make(chan job, 8)
			threads[o.Thread] = jobs
			go func() {
				runtime.LockOSThread()
				deafen()
				for j := range jobs {
					j.done <- obey(j.o)
				}
			}()
		}
		done := make(chan outcome, 1)
		jobs <- job{o, done}
		results <- done
	}
}

// deafen keeps the signal from the calling thread by which the Go runtime takes the
// CPU from goroutines: sent just before a system call that waits, it cuts the wait.
func deafen() {
	var set unix.Sigset_t
	set.Val[0] = 1 << (unix.SIGURG - 1)
	if err := unix.PthreadSigmask(unix.SIG_BLOCK, &set, nil); err != nil {
		panic(err)
	}
}

func obey(o order) outcome {
	var r outcome
	for range max(o.Times, 1) {
		r = obeyOnce(o)
	}
	return r
}

func obeyOnce(o order) outcome {
	r := outcome{TID: unix.Gettid()}
	set := func(n uintptr, errno syscall.Errno) {
		r.Ret, r.Errno = int(n), int(errno)
	}
	bytes := func(b []byte) uintptr {
		if len(b) == 0 {
			return 0
		}
		return uintptr(unsafe.Pointer(&b[0]))
	}
	fd := uintptr(o.FD)
	buf := []byte(o.Data)
	if o.N > 0 {
		buf = make([]byte, o.N)
	}
	var iov []unix.Iovec
	for i := range o.Parts {
		p := []byte(o.Parts[i])
		v := unix.Iovec{Base: &p[0]}
		v.SetLen(len(p))
		iov = append(iov, v)
	}
	var msg unix.Msghdr
	if iov != nil {
		msg.Iov = &iov[0]
		msg.SetIovlen(len(iov))
	}
	errno := func(err error) {
		if err != nil {
			r.Errno = int(err.(syscall.Errno))
		}
	}
	two := [2]int32{}
	switch o.Do {
	case "tid":
	case "read":
		n, _, e := unix.Syscall(unix.SYS_READ, fd, bytes(buf), uintptr(len(buf)))
		set(n, e)
		if e == 0 {
			r.Data = string(buf[:n])
		}
	case "recvfrom", "peek":
		flags := uintptr(0)
		if o.Do == "peek" {
			flags = unix.MSG_PEEK
		}
		n, _, e := unix.Syscall6(unix.SYS_RECVFROM, fd, bytes(buf), uintptr(len(buf)), flags, 0, 0)
		set(n, e)
	case "readv":
		n, _, e := unix.Syscall(unix.SYS_READV, fd, uintptr(unsafe.Pointer(&iov[0])), uintptr(len(iov)))
		set(n, e)
	case "recvmsg":
		n, _, e := unix.Syscall(unix.SYS_RECVMSG, fd, uintptr(unsafe.Pointer(&msg)), 0)
		set(n, e)
	case "receive": // bytes and what is passed with them; Ret2 is the descriptor
		rights := make([]byte, unix.CmsgSpace(4))
		n, got, _, _, err := unix.Recvmsg(o.FD, buf, rights, 0)
		errno(errOf(err))
		r.Ret = n
		if all, err := unix.ParseSocketControlMessage(rights[:got]); err == nil && len(all) > 0 {
			if fds, err := unix.ParseUnixRights(&all[0]); err == nil && len(fds) > 0 {
				r.Ret2 = fds[0]
			}
		}
	case "write":
		n, _, e := unix.Syscall(unix.SYS_WRITE, fd, bytes(buf), uintptr(len(buf)))
		set(n, e)
	case "sendto":
		n, _, e := unix.Syscall6(unix.SYS_SENDTO, fd, bytes(buf), uintptr(len(buf)), unix.MSG_NOSIGNAL, 0, 0)
		set(n, e)
	case "writev":
		n, _, e := unix.Syscall(unix.SYS_WRITEV, fd, uintptr(unsafe.Pointer(&iov[0])), uintptr(len(iov)))
		set(n, e)
	case "sendmsg":
		n, _, e := unix.Syscall(unix.SYS_SENDMSG, fd, uintptr(unsafe.Pointer(&msg)), 0)
		set(n, e)
	case "listen":
		r.Ret, _ = unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM, 0)
		errno(unix.Bind(r.Ret, &unix.SockaddrUnix{Name: o.Path}))
		if r.Errno == 0 {
			errno(unix.Listen(r.Ret, 8))
		}
	case "listen6":
		r.Ret, _ = unix.Socket(unix.AF_INET6, unix.SOCK_STREAM, 0)
		errno(unix.Bind(r.Ret, &unix.SockaddrInet6{}))
		if r.Errno == 0 {
			errno(unix.Listen(r.Ret, 8))
		}
		sa, err := unix.Getsockname(r.Ret)
		if err == nil {
			r.Ret2 = sa.(*unix.SockaddrInet6).Port
		}
	case "accept":
		n, _, err := unix.Accept4(o.FD, 0)
		r.Ret = n
		errno(errOf(err))
	case "connect", "connect-dgram":
		kind := unix.SOCK_STREAM
		if o.Do == "connect-dgram" {
			kind = unix.SOCK_DGRAM
		}
		r.Ret, _ = unix.Socket(unix.AF_UNIX, kind, 0)
		errno(errOf(unix.Connect(r.Ret, &unix.SockaddrUnix{Name: o.Path})))
	case "pair":
		_, _, e := unix.RawSyscall6(unix.SYS_SOCKETPAIR, unix.AF_UNIX, unix.SOCK_STREAM, 0, uintptr(unsafe.Pointer(&two)), 0, 0)
		r.Ret, r.Ret2, r.Errno = int(two[0]), int(two[1]), int(e)
	case "close":
		_, _, e := unix.Syscall(unix.SYS_CLOSE, fd, 0, 0)
		set(0, e)
	case "dup2":
		n, _, e := unix.Syscall(unix.SYS_DUP2, fd, uintptr(o.N), 0)
		set(n, e)
	case "shutdown":
		_, _, e := unix.Syscall(unix.SYS_SHUTDOWN, fd, unix.SHUT_WR, 0)
		set(0, e)
	case "close_range":
		_, _, e := unix.Syscall(unix.SYS_CLOSE_RANGE, fd, fd, 0)
		set(0, e)
	case "clone3":
		pid, e := clone3AndExit()
		set(pid, e)
		unix.Wait4(int(pid), nil, 0, nil)
	case "exec":
		cmd := exec.Command(o.Parts[0], o.Parts[1:]...)
		if err := cmd.Start(); err != nil {
			r.Errno = int(unix.ENOENT)
			break
		}
		r.Ret = cmd.Process.Pid
		cmd.Wait()
	case "sleep": // N milliseconds
		t := unix.NsecToTimespec(int64(o.N) * 1e6)
		_, _, e := unix.Syscall(unix.SYS_NANOSLEEP, uintptr(unsafe.Pointer(&t)), 0, 0)
		set(0, e)
	case "select-sleep":
		t := unix.NsecToTimeval(int64(o.N) * 1e6)
		_, _, e := unix.Syscall6(unix.SYS_SELECT, 0, 0, 0, 0, uintptr(unsafe.Pointer(&t)), 0)
		set(0, e)
	case "poll":
		p := [1]unix.PollFd{{Fd: int32(o.FD), Events: unix.POLLIN}}
		n, _, e := unix.Syscall(unix.SYS_POLL, uintptr(unsafe.Pointer(&p)), 1, ^uintptr(0))
		set(n, e)
	case "polls": // N times, each until there is something; the Go runtime does not know, so that nothing of it wakes the thread
		p := [1]unix.PollFd{{Fd: int32(o.FD), Events: unix.POLLIN}}
		for range o.N {
			n, _, e := unix.RawSyscall(unix.SYS_POLL, uintptr(unsafe.Pointer(&p)), 1, ^uintptr(0))
			if n != 1 {
				r.Errno = int(e)
				break
			}
			r.Ret++
		}
	case "compat": // system call N of 32-bit programs with FD, the address of Data and Count; FD -1: the address and Count only
		r.Ret = compatCall(uint32(o.N), o.FD, o.Data, uint32(o.Count))
	case "futex": // waits N milliseconds for nobody
		var word uint32
		t := unix.NsecToTimespec(int64(o.N) * 1e6)
		unix.Syscall6(unix.SYS_FUTEX, uintptr(unsafe.Pointer(&word)), 0, 0, uintptr(unsafe.Pointer(&t)), 0, 0)
	case "flock":
		_, _, e := unix.Syscall(unix.SYS_FLOCK, fd, unix.LOCK_EX, 0)
		set(0, e)
	case "fork": // a child that sleeps N milliseconds, and a wait for it
		pid, e := forkAndSleep(int64(o.N) * 1e6)
		set(pid, e)
		unix.Syscall6(unix.SYS_WAIT4, pid, 0, 0, 0, 0, 0)
	case "hypercall": // op FD with command N, as libxenctrl makes it
		cmd := [2]uint32{uint32(o.N)}
		h := [6]uint64{uint64(o.FD), uint64(uintptr(unsafe.Pointer(&cmd)))}
		_, _, e := unix.Syscall(unix.SYS_IOCTL, 0, 0x305000, uintptr(unsafe.Pointer(&h)))
		set(0, e)
		runtime.KeepAlive(&cmd)
	case "open":
		n, _, e := openAt(o.Path, unix.O_RDWR)
		set(n, e)
	case "private": // this thread alone sees empty /dev and /run
		errno(errOf(unix.Unshare(unix.CLONE_NEWNS)))
		errno(errOf(unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, "")))
		errno(errOf(unix.Mount("tmpfs", "/dev", "tmpfs", 0, "")))
		errno(errOf(unix.Mount("tmpfs", "/run", "tmpfs", 0, "")))
	case "mkdir":
		errno(errOf(unix.Mkdir(o.Path, 0o700)))
	case "mkfifo":
		errno(errOf(unix.Mkfifo(o.Path, 0o600)))
	case "spin": // N milliseconds on a CPU
		for end := time.Now().Add(time.Duration(o.N) * time.Millisecond); time.Now().Before(end); {
		}
	case "become":
		errno(errOf(unix.Exec(o.Parts[0], o.Parts, nil)))
	case "exit":
		unix.Exit(o.N)
	case "open-direct":
		n, _, e := openAt(o.Path, unix.O_RDWR|unix.O_DIRECT)
		set(n, e)
	case "pread", "pwrite", "fsync", "submit", "discard", "zero":
		set(blockIO(o))
	default:
		panic(fmt.Sprintf("order %q", o.Do))
	}
	runtime.KeepAlive(iov)
	return r
}

func errOf(err error) error {
	if err == nil {
		return nil
	}
	return err.(syscall.Errno)
}

func openAt(path string, flags int) (uintptr, uintptr, syscall.Errno) {
	p, err := unix.BytePtrFromString(path)
	if err != nil {
		return 0, 0, unix.EINVAL
	}
	dir := unix.AT_FDCWD
	return unix.Syscall6(unix.SYS_OPENAT, uintptr(dir), uintptr(unsafe.Pointer(p)), uintptr(flags), 0, 0, 0)
}

// forkAndSleep makes a process that sleeps ns and exits.
//
//go:norace
//go:nosplit
func forkAndSleep(ns int64) (uintptr, syscall.Errno) {
	t := unix.Timespec{Sec: ns / 1e9, Nsec: ns % 1e9}
	pid, _, e := unix.RawSyscall6(unix.SYS_CLONE, uintptr(unix.SIGCHLD), 0, 0, 0, 0, 0)
	if pid == 0 && e == 0 {
		unix.RawSyscall(unix.SYS_NANOSLEEP, uintptr(unsafe.Pointer(&t)), 0, 0)
		unix.RawSyscall(unix.SYS_EXIT_GROUP, 0, 0, 0)
	}
	return pid, e
}

// clone3AndExit makes a process as newer C libraries do; it exits with 9.
//
//go:norace
//go:nosplit
func clone3AndExit() (uintptr, syscall.Errno) {
	args := [8]uint64{4: uint64(unix.SIGCHLD)} // struct clone_args; flags are 0
	pid, _, e := unix.RawSyscall(unix.SYS_CLONE3, uintptr(unsafe.Pointer(&args)), unsafe.Sizeof(args), 0)
	if pid == 0 && e == 0 {
		unix.RawSyscall(unix.SYS_EXIT_GROUP, 9, 0, 0)
	}
	return pid, e
}

// compatCall makes a system call as 32-bit programs do. Where the kernel has none of
// those, it is the end of the process.
func compatCall(nr uint32, fd int, data string, third uint32) int {
	const at, result = 1024, 2048 // data and what the call returns, behind the code
	page, err := unix.Mmap(-1, 0, os.Getpagesize(), unix.PROT_READ|unix.PROT_WRITE|unix.PROT_EXEC, unix.MAP_PRIVATE|unix.MAP_ANON|unix.MAP_32BIT)
	if err != nil {
		panic(err)
	}
	defer unix.Munmap(page)
	copy(page[at:], data)
	code := uintptr(unsafe.Pointer(&page[0]))
	args := [3]uint32{uint32(fd), uint32(code + at), third}
	if fd < 0 {
		args = [3]uint32{args[1], third}
	}
	b := binary.LittleEndian.AppendUint32([]byte{0xb8}, nr)                    // mov nr, %eax
	b = binary.LittleEndian.AppendUint32(append(b, 0xbb), args[0])             // mov …, %ebx
	b = binary.LittleEndian.AppendUint32(append(b, 0xb9), args[1])             // mov …, %ecx
	b = binary.LittleEndian.AppendUint32(append(b, 0xba), args[2])             // mov …, %edx
	b = append(b, 0xcd, 0x80)                                                  // int $0x80
	b = binary.LittleEndian.AppendUint64(append(b, 0xa3), uint64(code+result)) // mov %eax, …
	copy(page, append(b, 0xc3))                                                // ret
	f := &code
	(*(*func())(unsafe.Pointer(&f)))()
	return int(int32(binary.LittleEndian.Uint32(page[result:])))
}
