//go:build linux

package node

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"sync/atomic"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/xenserver/dtagent/testenv/config"
	"github.com/xenserver/dtagent/testenv/internal/sys"
	"github.com/xenserver/dtagent/testenv/truth"
)

// obstacle is something that a thread blocks on until another removes it.
type obstacle struct {
	wait   func() error // in call, as long as it is there
	call   call
	remove func() error
	clean  func()
}

// call is a system call by its number and its first argument.
type call struct{ nr, arg uintptr }

// patience is how long a thread may take to wait for an obstacle.
const patience = time.Minute

// Block has the thread wait in the given way for at least d: another thread
// sees it asleep and removes what it waits for d later. So it is longer when the
// machine is busy, and never shorter.
func (t *Thread) Block(way config.Way, d time.Duration) error {
	if way == config.WaySleep {
		s := t.Begin(truth.Delay, "wait "+string(way))
		sys.Sleep(d)
		s.End()
		return nil
	}
	o, err := obstacles[way](t)
	if err != nil {
		return fmt.Errorf("wait %s: %w", way, err)
	}
	var over atomic.Bool
	removed := make(chan error, 1)
	tid := t.TID
	t.P.Go("obstacle", func(*Thread) {
		var err error
		for begin := time.Now(); !over.Load() && !asleep(tid, o.call); sys.Sleep(100 * time.Microsecond) {
			if time.Since(begin) > patience {
				err = fmt.Errorf("not seen asleep in system call %d for %v", o.call.nr, patience)
				break
			}
		}
		sys.Sleep(d)
		removed <- errors.Join(err, o.remove())
	})
	s := t.Begin(truth.Delay, "wait "+string(way))
	err = o.wait()
	s.End()
	over.Store(true)
	err = errors.Join(err, <-removed)
	o.clean()
	if err != nil {
		return fmt.Errorf("wait %s: %w", way, err)
	}
	return nil
}

// asleep tells whether a thread of this process waits for something in c. The Go
// runtime has it wait elsewhere, too.
func asleep(tid uint32, c call) bool {
	b, err := os.ReadFile("/proc/self/task/" + strconv.FormatUint(uint64(tid), 10) + "/syscall")
	return err == nil && bytes.HasPrefix(b, fmt.Appendf(nil, "%d %#x ", c.nr, c.arg))
}

var obstacles = map[config.Way]func(*Thread) (obstacle, error){
	config.WayLock:    futex,
	config.WayChild:   child,
	config.WayFlock:   flock,
	config.WayConnect: backlog,
	config.WayNetwork: func(*Thread) (obstacle, error) {
		fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
		return stream(fds[0], fds[1]), err
	},
	config.WayPipe: func(*Thread) (obstacle, error) {
		var fds [2]int
		err := unix.Pipe2(fds[:], unix.O_CLOEXEC)
		return stream(fds[0], fds[1]), err
	},
	config.WayPoll: func(*Thread) (obstacle, error) {
		var fds [2]int
		err := unix.Pipe2(fds[:], unix.O_CLOEXEC)
		o := stream(fds[0], fds[1])
		polled := []unix.PollFd{{Fd: int32(fds[0]), Events: unix.POLLIN}}
		o.call = call{unix.SYS_PPOLL, uintptr(unsafe.Pointer(&polled[0]))}
		o.wait = func() error {
			return again(func() error {
				_, err := unix.Poll(polled, -1)
				return err
			})
		}
		return o, err
	},
	config.WayFile: func(t *Thread) (obstacle, error) {
		return slow(t, unix.SYS_READ, func(fd int) error { return sys.ReadFull(fd, make([]byte, 1)) })
	},
	config.WayFsync:     func(t *Thread) (obstacle, error) { return slow(t, unix.SYS_FSYNC, unix.Fsync) },
	config.WayHypercall: func(t *Thread) (obstacle, error) { return slow(t, unix.SYS_IOCTL, createDomain) },
}

// again repeats a call that signals interrupt.
func again(f func() error) error {
	for {
		if err := f(); err != unix.EINTR {
			return err
		}
	}
}

// stream is read from until something is written to its other end.
func stream(from, to int) obstacle {
	return obstacle{
		wait:   func() error { return sys.ReadFull(from, make([]byte, 1)) },
		call:   call{unix.SYS_READ, uintptr(from)},
		remove: func() error { return sys.Write(to, []byte{'x'}) },
		clean:  func() { unix.Close(from); unix.Close(to) },
	}
}

// futex is what a mutex that another thread holds comes down to.
func futex(*Thread) (obstacle, error) {
	const wait, wake = 128, 129 // FUTEX_WAIT and FUTEX_WAKE, FUTEX_PRIVATE_FLAG
	word := new(uint32)
	do := func(op, n uintptr) error {
		_, _, errno := unix.Syscall6(unix.SYS_FUTEX, uintptr(unsafe.Pointer(word)), op, n, 0, 0, 0)
		if errno != 0 && errno != unix.EAGAIN {
			return errno
		}
		return nil
	}
	return obstacle{
		wait: func() error {
			for atomic.LoadUint32(word) == 0 {
				if err := again(func() error { return do(wait, 0) }); err != nil {
					return err
				}
			}
			return nil
		},
		call: call{unix.SYS_FUTEX, uintptr(unsafe.Pointer(word))},
		remove: func() error {
			atomic.StoreUint32(word, 1)
			return do(wake, 1)
		},
		clean: func() {},
	}, nil
}

// start starts a process that reads its standard input, which ends when end is
// closed. extra is its descriptor 3.
func start(path string, extra ...uintptr) (pid, end int, err error) {
	var in [2]int
	if err := unix.Pipe2(in[:], unix.O_CLOEXEC); err != nil {
		return 0, 0, err
	}
	defer unix.Close(in[0])
	null, err := unix.Open("/dev/null", unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		unix.Close(in[1])
		return 0, 0, err
	}
	defer unix.Close(null)
	pid, err = syscall.ForkExec(path, []string{filepath.Base(path)}, &syscall.ProcAttr{
		Files: append([]uintptr{uintptr(in[0]), uintptr(null), 2}, extra...),
		Sys:   &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL},
	})
	if err != nil {
		unix.Close(in[1])
	}
	return pid, in[1], err
}

func reap(pid int) error {
	return again(func() error {
		_, err := unix.Wait4(pid, nil, 0, nil)
		return err
	})
}

// child is waited for until it ends.
func child(*Thread) (obstacle, error) {
	pid, end, err := start("/bin/cat")
	return obstacle{
		wait:   func() error { return reap(pid) },
		call:   call{unix.SYS_WAIT4, uintptr(pid)},
		remove: func() error { return unix.Close(end) },
		clean:  func() {},
	}, err
}

// flock is a lock on a file that another process holds.
func flock(t *Thread) (o obstacle, err error) {
	path := filepath.Join(t.P.Setup.Root, fmt.Sprintf("lock.%d", t.TID))
	theirs, err := unix.Open(path, unix.O_RDWR|unix.O_CREAT|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return o, err
	}
	defer unix.Close(theirs) // it has a copy
	if err := unix.Flock(theirs, unix.LOCK_EX); err != nil {
		return o, err
	}
	ours, err := unix.Open(path, unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return o, err
	}
	pid, end, err := start("/bin/cat", uintptr(theirs))
	return obstacle{
		wait:   func() error { return again(func() error { return unix.Flock(ours, unix.LOCK_EX) }) },
		call:   call{unix.SYS_FLOCK, uintptr(ours)},
		remove: func() error { return errors.Join(unix.Close(end), reap(pid)) },
		clean:  func() { unix.Close(ours); _ = unix.Unlink(path) },
	}, err
}

// backlog is that of a listener that accepts nobody and has a caller waiting.
func backlog(*Thread) (o obstacle, err error) {
	// In the abstract namespace: nothing is left behind.
	listener, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return o, err
	}
	if err := errors.Join(unix.Bind(listener, &unix.SockaddrUnix{}), unix.Listen(listener, 0)); err != nil {
		return o, err
	}
	addr, err := unix.Getsockname(listener)
	if err != nil {
		return o, err
	}
	var callers [2]int
	for i := range callers {
		if callers[i], err = unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0); err != nil {
			return o, err
		}
	}
	accepted := -1
	return obstacle{
		wait: func() error { return again(func() error { return unix.Connect(callers[1], addr) }) },
		call: call{unix.SYS_CONNECT, uintptr(callers[1])},
		remove: func() error {
			fd, _, err := unix.Accept4(listener, unix.SOCK_CLOEXEC)
			accepted = fd
			return err
		},
		clean: func() {
			for _, fd := range []int{listener, callers[0], callers[1], accepted} {
				unix.Close(fd)
			}
		},
	}, unix.Connect(callers[0], addr)
}
