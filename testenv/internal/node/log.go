//go:build linux

package node

import (
	"fmt"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/xenserver/dtagent/testenv/internal/sys"
)

// systemLog is the connection to /dev/log as glibc's syslog(3) has it: one that the
// log daemon has left is made anew when something is to be sent.
type systemLog struct {
	mu sync.RWMutex // for reading while something is sent
	fd int
}

// open connects.
func (l *systemLog) open() error {
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("log: %w", err)
	}
	if err := unix.Connect(fd, &unix.SockaddrUnix{Name: "/dev/log"}); err != nil {
		unix.Close(fd)
		return fmt.Errorf("connect /dev/log: %w", err)
	}
	l.fd = fd
	return nil
}

// send sends a line. Nobody is told when it got lost.
func (l *systemLog) send(b []byte) {
	l.mu.RLock()
	fd, err := l.fd, sys.Send(l.fd, b)
	l.mu.RUnlock()
	if err == nil {
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.fd == fd { // nobody was faster
		old := l.fd
		if l.open() != nil {
			return // next time
		}
		unix.Close(old)
	}
	_ = sys.Send(l.fd, b)
}
