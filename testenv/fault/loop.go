//go:build linux

package fault

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"github.com/xenserver/dtagent/testenv/loop"
)

// loop makes a block device of a file, which goes with d, and with the process
// however that ends. It returns its number N in /dev/loopN.
func (d *device) loop(file int) (number int, err error) {
	l, err := loop.Of(file)
	if errors.Is(err, loop.ErrNone) {
		return 0, missingModule("loop", err)
	}
	if err != nil {
		return 0, err
	}
	d.onClose(l.Close)
	return l.Number, nil
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
