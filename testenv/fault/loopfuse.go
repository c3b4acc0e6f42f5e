//go:build linux

package fault

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"time"

	"golang.org/x/sys/unix"

	"github.com/xenserver/dtagent/testenv/internal/slowfile"
)

// serverSize makes a process the FUSE server of a disk: the size of it in bytes.
const serverSize = "DTAGENT_FAULT_SERVER"

// Main is to be called first by the main function, or TestMain, of a program that
// opens devices of the kind loop-fuse. It returns, unless the process is one that
// Open has started as a server. Its own process cannot be that: when it was killed
// while it waits for the disk, disk and process would wait for each other.
func Main() {
	size, err := strconv.ParseInt(os.Getenv(serverSize), 10, 64)
	if err != nil {
		return
	}
	if err := slowfile.ServeLate(3, 0, size); err != nil {
		fmt.Fprintln(os.Stderr, "fault: FUSE server:", err)
		os.Exit(1)
	}
	os.Exit(0)
}

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
	read, control, err := os.Pipe()
	if err != nil {
		return err
	}
	defer read.Close()
	// Without Main, it is a program of tests that runs none, or one that does not
	// know the flag.
	server := exec.Command("/proc/self/exe", "-test.run=^$")
	server.Env = append(os.Environ(), fmt.Sprintf("%s=%d", serverSize, o.Size), "GORACE=atexit_sleep_ms=0") // else the race detector waits for 1 s
	server.Stdin, server.Stderr = read, os.Stderr
	server.ExtraFiles = []*os.File{fuse}
	if err := server.Start(); err != nil {
		control.Close()
		return fmt.Errorf("FUSE server: %w", err)
	}
	d.onClose(func() error {
		err := control.Close() // which ends it
		return errors.Join(err, server.Wait())
	})
	fuse.Close() // so that the file system ends with the server
	file, err := unix.Open(fmt.Sprintf("/proc/self/fd/%d", mount), unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("the file below the loop device, whose server is this program itself (see fault.Main): %w", err)
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
	d.set = func(delay time.Duration) error {
		if _, err := control.Write(binary.NativeEndian.AppendUint64(nil, uint64(delay))); err != nil {
			return fmt.Errorf("FUSE server: %w", err)
		}
		return nil
	}
	return nil
}
