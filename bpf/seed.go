//go:build linux

package bpf

import (
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"
)

// SeedSocket makes an open, connected stream socket of a target known. A socket
// that the kernel side knows already, or that is no longer fd of tgid, is left
// alone. switchSocket says that its peer is message-switch. The socket's
// KindOpen record comes with its first use. Call it after Attach(Stream) and
// SetTarget, and SeedThreads after it.
func (s *Session) SeedSocket(tgid uint32, fd int32, ino uint64, switchSocket bool) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return errClosed
	}
	var t target
	if err := s.maps["dt_targets"].Lookup(tgid, &t); err != nil {
		return fmt.Errorf("socket %d of process %d: target: %w", fd, tgid, err)
	}
	key := connKey{tgid, fd}
	c := conn{Born: ktime(), Ino: ino, Flags: connNew, Component: t.Component}
	if switchSocket {
		c.Flags |= connSwitch
	}
	if err := s.maps["dt_conns"].Update(key, c, ebpf.UpdateNoExist); errors.Is(err, ebpf.ErrKeyExist) {
		return nil
	} else if err != nil {
		return fmt.Errorf("socket %d of process %d: %w", fd, tgid, err)
	}
	// It may have been closed since the caller looked, before the entry was there.
	if name, err := os.Readlink(fmt.Sprintf("/proc/%d/fd/%d", tgid, fd)); err == nil && name == fmt.Sprintf("socket:[%d]", ino) {
		return nil
	}
	var now conn
	if s.maps["dt_conns"].Lookup(key, &now) == nil && now.Born == c.Born {
		s.maps["dt_conns"].Delete(key)
	}
	return nil
}

// ops are the system calls in which SeedThreads looks for threads.
var ops = map[int64]uint8{
	unix.SYS_READ:     opRead,
	unix.SYS_RECVFROM: opRead,
	unix.SYS_READV:    opReadv,
	unix.SYS_ACCEPT:   opAccept,
	unix.SYS_ACCEPT4:  opAccept,
}

// SeedThreads finds the threads of a target that wait in a read or an accept
// since before the probe was attached, so that what ends their wait is not
// missed. Call it after SeedSocket. The records have FlagNoEnter.
func (s *Session) SeedThreads(tgid uint32) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return errClosed
	}
	var t target
	if err := s.maps["dt_targets"].Lookup(tgid, &t); err != nil {
		return fmt.Errorf("threads of process %d: target: %w", tgid, err)
	}
	tasks, err := os.ReadDir(fmt.Sprintf("/proc/%d/task", tgid))
	if err != nil {
		return fmt.Errorf("threads of process %d: %w", tgid, err)
	}
	for _, task := range tasks {
		tid, err := strconv.ParseUint(task.Name(), 10, 32)
		if err != nil {
			continue
		}
		for range seedLooks {
			if s.seedThread(tgid, uint32(tid), t) {
				break
			}
			time.Sleep(time.Millisecond)
		}
	}
	return nil
}

// seedLooks is how often SeedThreads looks at a thread that has a CPU: a signal, or a
// wakeup for nothing, may take it out of its wait for a moment only.
const seedLooks = 3

// seedThread is told of one thread. It returns whether that was enough: false for
// one that runs, or that moved on while it was looked at.
func (s *Session) seedThread(tgid, tid uint32, t target) bool {
	path := fmt.Sprintf("/proc/%d/task/%d/syscall", tgid, tid)
	before, err := os.ReadFile(path)
	if err != nil {
		return true // it has ended
	}
	nr, args, ok := parseSyscall(string(before))
	if !ok {
		return false
	}
	op := ops[nr]
	if op == opNone {
		return true
	}
	f := inflight{Buf: args[1], Len: args[2], FD: int32(args[0]), NR: int32(nr), Op: op, Component: t.Component, Noenter: 1}
	if op != opAccept {
		var c conn
		if s.maps["dt_conns"].Lookup(connKey{tgid, f.FD}, &c) != nil || c.Flags&connPlain != 0 {
			return true
		}
		f.Born = c.Born
	}
	id := uint64(tgid)<<32 | uint64(tid)
	// An entry that is there is of a call that began since, and is right.
	if s.maps["dt_inflight"].Update(id, f, ebpf.UpdateNoExist) != nil {
		return true
	}
	if after, err := os.ReadFile(path); err != nil || string(after) != string(before) {
		s.maps["dt_inflight"].Delete(id)
		return false
	}
	return true
}

// parseSyscall parses /proc/PID/task/TID/syscall: number, six arguments, stack
// and instruction pointer; "running" when the thread is in none.
func parseSyscall(line string) (nr int64, args [6]uint64, ok bool) {
	w := strings.Fields(line)
	if len(w) < 7 {
		return 0, args, false
	}
	nr, err := strconv.ParseInt(w[0], 10, 64)
	if err != nil || nr < 0 {
		return 0, args, false
	}
	for i := range args {
		if args[i], err = strconv.ParseUint(w[i+1], 0, 64); err != nil {
			return 0, args, false
		}
	}
	return nr, args, true
}
