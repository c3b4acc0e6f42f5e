//go:build linux

package bpf

import (
	"errors"
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// DefaultWait is how long a wait has to be to have a record of its own.
const DefaultWait = time.Millisecond

// Ways to spend time of which user space tells the kernel: enum dt_spent.
const (
	spentXenstore   = 3
	spentEventChan  = 4
	spentLock       = 5
	spentChild      = 6
	spentFsync      = 7
	spentFlock      = 8
	spentFile       = 9
	spentConnecting = 10
	spentNetwork    = 11
	spentSleep      = 12
	spentPoll       = 13
	spentPipe       = 14
	spentOther      = 15
	byFD            = 16 // DT_BY_FD
	bySelect        = 17 // DT_SELECT
	byPolling       = 18 // DT_POLLING
)

// Values of call.Enter: DT_CALL_*.
const (
	enterIoctl   = 1
	enterOpen    = 2
	enterOpenat  = 3
	enterClose   = 4
	enterConnect = 5
)

// calls says of the system calls that can wait what for. The others wait for
// something else, if at all.
var calls = map[int]call{
	unix.SYS_READ: {Wait: byFD}, unix.SYS_WRITE: {Wait: byFD}, unix.SYS_READV: {Wait: byFD}, unix.SYS_WRITEV: {Wait: byFD},
	unix.SYS_PREAD64: {Wait: byFD}, unix.SYS_PWRITE64: {Wait: byFD}, unix.SYS_PREADV: {Wait: byFD}, unix.SYS_PWRITEV: {Wait: byFD},
	unix.SYS_PREADV2: {Wait: byFD}, unix.SYS_PWRITEV2: {Wait: byFD},
	unix.SYS_SENDFILE: {Wait: byFD}, unix.SYS_SPLICE: {Wait: byFD}, unix.SYS_TEE: {Wait: byFD}, unix.SYS_VMSPLICE: {Wait: byFD},
	unix.SYS_IOCTL: {Wait: byFD, Enter: enterIoctl},

	unix.SYS_RECVFROM: {Wait: spentNetwork}, unix.SYS_SENDTO: {Wait: spentNetwork}, unix.SYS_RECVMSG: {Wait: spentNetwork},
	unix.SYS_SENDMSG: {Wait: spentNetwork}, unix.SYS_RECVMMSG: {Wait: spentNetwork}, unix.SYS_SENDMMSG: {Wait: spentNetwork},
	unix.SYS_ACCEPT: {Wait: spentNetwork}, unix.SYS_ACCEPT4: {Wait: spentNetwork},
	unix.SYS_CONNECT: {Wait: spentConnecting, Enter: enterConnect},

	unix.SYS_FUTEX: {Wait: spentLock},
	unix.SYS_WAIT4: {Wait: spentChild}, unix.SYS_WAITID: {Wait: spentChild}, unix.SYS_VFORK: {Wait: spentChild},
	unix.SYS_CLONE: {Wait: spentChild}, unix.SYS_CLONE3: {Wait: spentChild}, // with CLONE_VFORK

	unix.SYS_FSYNC: {Wait: spentFsync}, unix.SYS_FDATASYNC: {Wait: spentFsync}, unix.SYS_SYNC: {Wait: spentFsync},
	unix.SYS_SYNCFS: {Wait: spentFsync}, unix.SYS_MSYNC: {Wait: spentFsync}, unix.SYS_SYNC_FILE_RANGE: {Wait: spentFsync},
	unix.SYS_FLOCK: {Wait: spentFlock}, unix.SYS_FCNTL: {Wait: spentFlock},

	unix.SYS_OPEN: {Wait: spentFile, Enter: enterOpen}, unix.SYS_OPENAT: {Wait: spentFile, Enter: enterOpenat},
	unix.SYS_CLOSE: {Wait: spentFile, Enter: enterClose},
	unix.SYS_CREAT: {Wait: spentFile}, unix.SYS_STAT: {Wait: spentFile}, unix.SYS_LSTAT: {Wait: spentFile}, unix.SYS_FSTAT: {Wait: spentFile},
	unix.SYS_NEWFSTATAT: {Wait: spentFile}, unix.SYS_STATX: {Wait: spentFile}, unix.SYS_STATFS: {Wait: spentFile}, unix.SYS_FSTATFS: {Wait: spentFile},
	unix.SYS_ACCESS: {Wait: spentFile}, unix.SYS_FACCESSAT: {Wait: spentFile}, unix.SYS_FACCESSAT2: {Wait: spentFile},
	unix.SYS_GETDENTS: {Wait: spentFile}, unix.SYS_GETDENTS64: {Wait: spentFile},
	unix.SYS_READLINK: {Wait: spentFile}, unix.SYS_READLINKAT: {Wait: spentFile},
	unix.SYS_RENAME: {Wait: spentFile}, unix.SYS_RENAMEAT: {Wait: spentFile}, unix.SYS_RENAMEAT2: {Wait: spentFile},
	unix.SYS_UNLINK: {Wait: spentFile}, unix.SYS_UNLINKAT: {Wait: spentFile}, unix.SYS_LINK: {Wait: spentFile}, unix.SYS_LINKAT: {Wait: spentFile},
	unix.SYS_SYMLINK: {Wait: spentFile}, unix.SYS_SYMLINKAT: {Wait: spentFile},
	unix.SYS_MKDIR: {Wait: spentFile}, unix.SYS_MKDIRAT: {Wait: spentFile}, unix.SYS_RMDIR: {Wait: spentFile}, unix.SYS_CHDIR: {Wait: spentFile},
	unix.SYS_CHMOD: {Wait: spentFile}, unix.SYS_FCHMOD: {Wait: spentFile}, unix.SYS_FCHMODAT: {Wait: spentFile},
	unix.SYS_CHOWN: {Wait: spentFile}, unix.SYS_FCHOWN: {Wait: spentFile}, unix.SYS_FCHOWNAT: {Wait: spentFile},
	unix.SYS_TRUNCATE: {Wait: spentFile}, unix.SYS_FTRUNCATE: {Wait: spentFile}, unix.SYS_FALLOCATE: {Wait: spentFile},
	unix.SYS_UTIMENSAT: {Wait: spentFile}, unix.SYS_COPY_FILE_RANGE: {Wait: spentFile}, unix.SYS_LSEEK: {Wait: spentFile},
	unix.SYS_MOUNT: {Wait: spentFile}, unix.SYS_UMOUNT2: {Wait: spentFile},
	unix.SYS_IO_SUBMIT: {Wait: spentFile}, unix.SYS_IO_GETEVENTS: {Wait: spentFile}, unix.SYS_IO_PGETEVENTS: {Wait: spentFile},
	unix.SYS_EXECVE: {Wait: spentFile}, unix.SYS_EXECVEAT: {Wait: spentFile},

	unix.SYS_NANOSLEEP: {Wait: spentSleep}, unix.SYS_CLOCK_NANOSLEEP: {Wait: spentSleep}, unix.SYS_PAUSE: {Wait: spentSleep},
	unix.SYS_SELECT: {Wait: bySelect}, unix.SYS_PSELECT6: {Wait: bySelect},
	unix.SYS_POLL: {Wait: byPolling}, unix.SYS_PPOLL: {Wait: byPolling},
	unix.SYS_EPOLL_WAIT: {Wait: spentPoll}, unix.SYS_EPOLL_PWAIT: {Wait: spentPoll}, unix.SYS_EPOLL_PWAIT2: {Wait: spentPoll},
}

// describeCalls tells the kernel side what system calls wait for.
func (s *Session) describeCalls() error {
	for nr, c := range calls {
		if err := s.maps["dt_calls"].Put(uint32(nr), c); err != nil {
			return fmt.Errorf("map dt_calls: %w", err)
		}
	}
	return nil
}

// SetWait makes waits of at least d long ones, which have a record of their
// own; 0 stands for DefaultWait. It may be called before Attach(Wait) and after.
func (s *Session) SetWait(d time.Duration) error {
	if d <= 0 {
		d = DefaultWait
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return errClosed
	}
	s.longNs = uint64(d)
	if s.conf.WaitNs == 0 {
		return nil
	}
	return s.configure(s.longNs)
}

// beginWaits forgets what was known of threads and devices, which says nothing
// about those of now, and lets the other probes end stretches.
func (s *Session) beginWaits() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, name := range []string{"dt_threads", "dt_fds"} {
		if err := clearMap(s.maps[name]); err != nil {
			return fmt.Errorf("probe %s: map %s: %w", Wait, name, err)
		}
	}
	if s.longNs == 0 {
		s.longNs = uint64(DefaultWait)
	}
	return s.configure(s.longNs)
}

// endWaits needs s.mu.
func (s *Session) endWaits() error { return s.configure(0) }

// configure needs s.mu.
func (s *Session) configure(waitNs uint64) error {
	if s.closed {
		return nil
	}
	s.conf.WaitNs = waitNs
	if err := s.maps["dt_config"].Put(uint32(0), s.conf); err != nil {
		return fmt.Errorf("map dt_config: %w", err)
	}
	return nil
}

// Device is what waits on a descriptor are for that its kind of file does not
// tell.
type Device uint8

// Devices.
const (
	EventChannels Device = spentEventChan // /dev/xen/evtchn
	Xenstore      Device = spentXenstore  // a device of xenstore, or a socket to xenstored
)

// SeedDevice makes a descriptor that a target opened before Attach(Wait) known
// as d. link is what /proc/PID/fd showed for it: when it shows something else
// by now, nothing is done.
func (s *Session) SeedDevice(tgid uint32, fd int32, link string, d Device) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return errClosed
	}
	key := connKey{tgid, fd}
	if err := s.maps["dt_fds"].Put(key, uint8(d)); err != nil {
		return fmt.Errorf("descriptor %d of process %d: %w", fd, tgid, err)
	}
	// It may have been closed since the caller looked, before the entry was there.
	if now, err := os.Readlink(fmt.Sprintf("/proc/%d/fd/%d", tgid, fd)); err != nil || now != link {
		s.maps["dt_fds"].Delete(key)
	}
	return nil
}

// sweepThreads forgets the threads and devices of processes that are no targets
// any more, and threads whose end was not seen. It needs s.mu.
func (s *Session) sweepThreads() error {
	all, err := s.targets()
	if err != nil {
		return err
	}
	watched := func(tgid uint32) bool { return all[tgid].Watch&WatchWait != 0 || all[tgid].State&targetGone != 0 }
	tids, err := mapKeys[uint32](s.maps["dt_threads"])
	if err != nil {
		return fmt.Errorf("map dt_threads: %w", err)
	}
	for _, tid := range tids {
		var t thread
		if s.maps["dt_threads"].Lookup(tid, &t) != nil {
			continue
		}
		if watched(t.TGID) && !errors.Is(unix.Tgkill(int(t.TGID), int(tid), 0), unix.ESRCH) {
			continue
		}
		s.maps["dt_threads"].Delete(tid)
	}
	keys, err := mapKeys[connKey](s.maps["dt_fds"])
	if err != nil {
		return fmt.Errorf("map dt_fds: %w", err)
	}
	for _, k := range keys {
		if !watched(k.TGID) {
			s.maps["dt_fds"].Delete(k)
		}
	}
	return nil
}
