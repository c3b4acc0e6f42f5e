//go:build linux

package target

import (
	"os"
	"strconv"
	"strings"
)

// Device is an open descriptor whose waits are for something that its kind of
// file does not tell.
type Device struct {
	FD       int32
	Link     string // what /proc/PID/fd shows
	Xenstore bool   // a device of xenstore or a socket to xenstored, else event channels
}

// Devices lists the event channel and xenstore devices that a process has open,
// and those of its sockets whose inodes are in xenstored. A process that has
// ended has none.
func (p Proc) Devices(tgid uint32, xenstored map[uint64]bool) []Device {
	dir := p.path(tgid, "fd")
	f, err := os.Open(dir)
	if err != nil {
		return nil
	}
	defer f.Close()
	names, _ := f.Readdirnames(maxSockets)
	var out []Device
	for _, name := range names {
		fd, err := strconv.ParseInt(name, 10, 32)
		if err != nil {
			continue
		}
		link, err := os.Readlink(dir + "/" + name)
		if err != nil {
			continue
		}
		switch link {
		case "/dev/xen/evtchn":
			out = append(out, Device{FD: int32(fd), Link: link})
		case "/dev/xen/xenbus", "/dev/xen/xenstore", "/proc/xen/xenbus":
			out = append(out, Device{FD: int32(fd), Link: link, Xenstore: true})
		default:
			digits, ok := strings.CutPrefix(link, "socket:[")
			ino, err := strconv.ParseUint(strings.TrimSuffix(digits, "]"), 10, 64)
			if ok && err == nil && xenstored[ino] {
				out = append(out, Device{FD: int32(fd), Link: link, Xenstore: true})
			}
		}
	}
	return out
}
