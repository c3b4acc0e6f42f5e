//go:build linux

package fault

import (
	"crypto/rand"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// busyLimit is how long something may be busy.
const busyLimit = 30 * time.Second

// isGone tells that a process is no more.
func isGone(err error) bool { return errors.Is(err, unix.ESRCH) }

func isBusy(err error) bool { return errors.Is(err, unix.EBUSY) || errors.Is(err, unix.EAGAIN) }

// module returns the error that tells of a module, unless it is there.
func module(name string) error {
	if _, err := os.Stat(filepath.Join("/sys/module", name)); err != nil {
		return missingModule(name, nil)
	}
	return nil
}

func missingModule(name string, cause error) error {
	return &MissingError{What: "the kernel module " + name, Err: cause}
}

// detached mounts a file system where nobody else sees it, and returns the path of
// its root. It goes with the device, and with the process however that ends.
func (d *device) detached(fstype string, options ...string) (root string, err error) {
	fd, err := mountFd(fstype, options...)
	if err != nil {
		return "", err
	}
	d.onClose(func() error { return unix.Close(fd) })
	return fmt.Sprintf("/proc/self/fd/%d", fd), nil
}

// mountFd returns the descriptor of a mount. Options are names, or name=value.
func mountFd(fstype string, options ...string) (int, error) {
	fs, err := unix.Fsopen(fstype, unix.FSOPEN_CLOEXEC)
	if errors.Is(err, unix.ENODEV) || errors.Is(err, unix.ENOSYS) {
		return -1, &MissingError{What: "the file system " + fstype, Err: fmt.Errorf("fsopen: %w", err)}
	}
	if err != nil {
		return -1, fmt.Errorf("file system %s: fsopen: %w", fstype, err)
	}
	defer unix.Close(fs)
	for _, o := range options {
		if name, value, ok := strings.Cut(o, "="); ok {
			err = unix.FsconfigSetString(fs, name, value)
		} else {
			err = unix.FsconfigSetFlag(fs, name)
		}
		if err != nil {
			return -1, fmt.Errorf("file system %s: option %s: %w", fstype, o, err)
		}
	}
	if err := unix.FsconfigCreate(fs); err != nil {
		return -1, fmt.Errorf("file system %s: %w", fstype, err)
	}
	fd, err := unix.Fsmount(fs, unix.FSMOUNT_CLOEXEC, 0)
	if err != nil {
		return -1, fmt.Errorf("file system %s: fsmount: %w", fstype, err)
	}
	return fd, nil
}

// set writes a value to a file by which the kernel is told things.
func set(file string, value any) error {
	f, err := os.OpenFile(file, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	if _, err := fmt.Fprint(f, value); err != nil {
		return fmt.Errorf("%v: %w", value, err)
	}
	return nil
}

// mkdir makes a directory that goes with the device. In configfs and in control
// groups a directory is a thing of the kernel's.
func (d *device) mkdir(dir string) error {
	if err := os.Mkdir(dir, 0o755); err != nil {
		return err
	}
	d.onClose(func() error { return unbusy(func() error { return os.Remove(dir) }) })
	return nil
}

// ownPrefix begins the names of this process's devices where names are the machine's.
func ownPrefix() string { return fmt.Sprintf("dtfault-%d-", os.Getpid()) }

// uniqueName is one for a device, of less than the 32 bytes that a disk's may have.
func uniqueName() string { return ownPrefix() + strings.ToLower(rand.Text()[:10]) }
