//go:build linux

// Package helper has the dom0's small programs.
package helper

import (
	"fmt"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"github.com/xenserver/dtagent/testenv/internal/node"
	"github.com/xenserver/dtagent/testenv/internal/sys"
)

// Syslog listens on /dev/log and writes what comes, with its time of arrival, to
// the file devlog of dir.
func Syslog(p *node.Proc) error {
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("socket: %w", err)
	}
	if err := unix.Bind(fd, &unix.SockaddrUnix{Name: "/dev/log"}); err != nil {
		return fmt.Errorf("bind /dev/log: %w", err)
	}
	out, err := os.OpenFile(filepath.Join(p.Setup.Root, "devlog"), os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o644)
	if err != nil {
		return err
	}
	if err := p.Ready(nil); err != nil {
		return err
	}
	buf := make([]byte, 128<<10)
	var line []byte
	for {
		n, err := sys.Read(fd, buf)
		if err != nil {
			continue
		}
		now := time.Now()
		line = fmt.Appendf(line[:0], "%d.%06d ", now.Unix(), now.Nanosecond()/1000)
		line = append(append(line, buf[:n]...), '\n')
		if _, err := out.Write(line); err != nil {
			return err
		}
	}
}
