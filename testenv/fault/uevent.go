//go:build linux

package fault

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// newDisk returns the name of the SCSI disk that comes from what make does, once
// its driver has looked at it and at its partitions: before that the two of them and
// the disk's user are in each other's way. The path of the disk in /sys has to
// contain a text, which is asked for after make.
func newDisk(ctx context.Context, make func() error, contains func() string) (name string, err error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_KOBJECT_UEVENT)
	if err != nil {
		return "", fmt.Errorf("uevents: %w", err)
	}
	defer unix.Close(fd)
	const kernel = 1 // the group that gets its events
	step := unix.NsecToTimeval(int64(100 * time.Millisecond))
	if err := errors.Join(
		unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK, Groups: kernel}),
		unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, mebi),
		unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &step)); err != nil {
		return "", fmt.Errorf("uevents: %w", err)
	}
	if err := make(); err != nil {
		return "", err
	}
	text := contains()
	disk, buf := "", [8192]byte{}
	for ctx.Err() == nil {
		n, from, err := unix.Recvfrom(fd, buf[:], 0)
		if err == unix.EINTR || err == unix.EAGAIN {
			continue
		}
		if err != nil {
			return "", fmt.Errorf("uevents: %w", err)
		}
		if a, ok := from.(*unix.SockaddrNetlink); !ok || a.Pid != 0 {
			continue
		}
		field := map[string]string{}
		for f := range strings.SplitSeq(string(buf[:n]), "\x00") {
			key, value, _ := strings.Cut(f, "=")
			field[key] = value
		}
		path := field["DEVPATH"]
		switch {
		case field["ACTION"] == "add" && field["DEVTYPE"] == "disk" && strings.Contains(path, text):
			name, disk = field["DEVNAME"], path
		case field["ACTION"] == "bind" && name != "" && strings.HasPrefix(disk, path+"/"):
			return name, nil
		}
	}
	return "", fmt.Errorf("no disk came: %w", ctx.Err())
}
