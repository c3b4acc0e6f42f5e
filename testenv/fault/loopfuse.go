//go:build linux

package fault

import (
	"context"
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"github.com/xenserver/dtagent/testenv/internal/slowfile"
)

// openLoopFUSE makes a loop device of a file whose FUSE server takes its time. It is
// for kernels that have no other driver to spare, as that of a container or of a
// small virtual machine.
func openLoopFUSE(_ context.Context, o Options, d *device) error {
	mount, dev, err := slowfile.MountDisk()
	if errors.Is(err, unix.ENODEV) || errors.Is(err, unix.ENOENT) {
		return missingModule("fuse", err)
	}
	if err != nil {
		return err
	}
	defer unix.Close(mount) // the open file keeps the file system
	fuse := os.NewFile(uintptr(dev), "/dev/fuse")
	defer fuse.Close()
	if d.set, err = d.serve(serverFUSE, o.Size, fuse); err != nil {
		return err
	}
	fuse.Close() // so that the file system ends with the server
	file, err := unix.Open(fmt.Sprintf("/proc/self/fd/%d", mount), unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("the file below the loop device: %w", err)
	}
	var st unix.Stat_t // which has the kernel ask the server for the size
	if err := unix.Fstat(file, &st); err != nil {
		return errors.Join(fmt.Errorf("the file below the loop device: %w", err), unix.Close(file))
	}
	number, err := d.loop(file)
	if err := errors.Join(err, unix.Close(file)); err != nil {
		return err
	}
	d.block = fmt.Sprintf("loop%d", number)
	d.path = "/dev/" + d.block
	return nil
}
