package control

import (
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"sync"

	"golang.org/x/sys/unix"
)

// lock is held by the agent of a socket, from before it makes the socket until it
// ends, however it ends. Two agents would attach everything twice, and tell
// every span twice.
type lock struct{ release func() }

// takeLock locks the file beside the socket, in which the process id of who has it
// stands. It does not wait.
func takeLock(socket string) (lock, error) {
	path := socket + ".lock"
	for {
		f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|unix.O_NOFOLLOW, 0o600)
		if err != nil {
			return lock{}, err
		}
		if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
			defer f.Close()
			if errors.Is(err, unix.EWOULDBLOCK) {
				return lock{}, fmt.Errorf("an agent is running on %s already%s; stop it, or choose another socket with --control", socket, holder(f))
			}
			return lock{}, fmt.Errorf("%s: %w", path, err)
		}
		// Who had it before may have removed the file after it was opened here.
		if !same(f, path) {
			f.Close()
			continue
		}
		if err := f.Truncate(0); err == nil {
			_, _ = f.WriteString(strconv.Itoa(os.Getpid()) + "\n") // for people
		}
		return lock{sync.OnceFunc(func() {
			_ = os.Remove(path)
			f.Close()
		})}, nil
	}
}

// holder says who has the lock, "" if that is not known.
func holder(f *os.File) string {
	b := make([]byte, 16)
	n, _ := f.ReadAt(b, 0)
	if pid, err := strconv.Atoi(strings.TrimSpace(string(b[:n]))); err == nil {
		return fmt.Sprintf(" (pid %d)", pid)
	}
	return ""
}

// same tells whether path still names the file.
func same(f *os.File, path string) bool {
	here, err := f.Stat()
	if err != nil {
		return false
	}
	there, err := os.Lstat(path)
	return err == nil && os.SameFile(here, there)
}
