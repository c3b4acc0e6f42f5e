//go:build linux

package node

import (
	"errors"
	"fmt"
	"path/filepath"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/xenserver/dtagent/testenv/internal/slowfile"
)

// slow is a file of another process, which answers when it may.
func slow(t *Thread, nr uintptr, wait func(fd int) error) (o obstacle, err error) {
	path := filepath.Join(t.P.Setup.Root, fmt.Sprintf("slow.%d", t.TID))
	under, err := unix.Open(path, unix.O_RDONLY|unix.O_CREAT|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return o, err
	}
	unix.Close(under)
	dev, err := slowfile.Mount(path)
	if err != nil {
		return o, err
	}
	pid, end, err := start(slowfile.Server, uintptr(dev))
	unix.Close(dev) // the server's is the last: if it dies, the file fails
	if err != nil {
		return o, errors.Join(err, slowfile.Unmount(path))
	}
	fd, err := unix.Open(path, unix.O_RDWR|unix.O_CLOEXEC, 0)
	clean := func() {
		if slowfile.Unmount(path) == nil {
			unix.Close(fd)
			_ = reap(pid) // it ends with the file
			_ = unix.Unlink(path)
		}
	}
	if err != nil {
		unix.Close(end)
		clean()
		return o, err
	}
	return obstacle{
		wait:   func() error { return again(func() error { return wait(fd) }) },
		call:   call{nr, uintptr(fd)},
		remove: func() error { return unix.Close(end) },
		clean:  clean,
	}, nil
}

// domctl is the beginning of a struct xen_domctl with XEN_DOMCTL_createdomain.
var domctl = [2]uint32{1}

// createDomain calls the hypervisor as libxenctrl does, through a file that is not
// privcmd: there is none without Xen.
func createDomain(fd int) error {
	const privcmdHypercall, hypervisorDomctl = 0x00305000, 36 // IOCTL_PRIVCMD_HYPERCALL, __HYPERVISOR_domctl
	h := [6]uint64{hypervisorDomctl, uint64(uintptr(unsafe.Pointer(&domctl)))}
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), privcmdHypercall, uintptr(unsafe.Pointer(&h))); errno != 0 {
		return errno
	}
	return nil
}
