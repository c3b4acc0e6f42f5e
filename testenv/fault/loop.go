//go:build linux

package fault

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// loop makes a block device of a file, which goes with d, and with the process
// however that ends. It returns its number N in /dev/loopN.
func (d *device) loop(file int) (number int, err error) {
	control, err := unix.Open("/dev/loop-control", unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return 0, missingModule("loop", fmt.Errorf("/dev/loop-control: %w", err))
	}
	defer unix.Close(control)
	for {
		n, err := unix.IoctlRetInt(control, unix.LOOP_CTL_GET_FREE)
		if err != nil {
			return 0, fmt.Errorf("a free loop device: %w", err)
		}
		fd, err := unix.Open(fmt.Sprintf("/dev/loop%d", n), unix.O_RDWR|unix.O_CLOEXEC, 0)
		if err != nil {
			return 0, fmt.Errorf("/dev/loop%d: %w", n, err)
		}
		config := unix.LoopConfig{Fd: uint32(file), Size: 512}
		config.Info.Flags = unix.LO_FLAGS_AUTOCLEAR
		err = unix.IoctlLoopConfigure(fd, &config)
		if err == nil {
			// Who has it open at the end keeps it a little longer; the kernel clears it then.
			d.onClose(func() error { return unix.Close(fd) })
			return n, nil
		}
		unix.Close(fd)
		if !errors.Is(err, unix.EBUSY) { // another process took it
			return 0, fmt.Errorf("/dev/loop%d: configure: %w", n, err)
		}
	}
}

// memory makes a loop device of size bytes of memory.
func (d *device) memory(size int64) (number int, err error) {
	fd, err := unix.MemfdCreate("fault", unix.MFD_CLOEXEC)
	if err != nil {
		return 0, fmt.Errorf("memfd: %w", err)
	}
	f := os.NewFile(uintptr(fd), "memfd")
	defer f.Close()
	if err := f.Truncate(size); err != nil {
		return 0, err
	}
	return d.loop(fd)
}
