//go:build linux

// Package loop makes block devices of files, for tests.
package loop

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"unsafe"

	"golang.org/x/sys/unix"
)

// ErrNone says that loop devices cannot be had here.
var ErrNone = errors.New("needs loop devices")

// Device is a block device of which the bytes are a file's.
type Device struct {
	Path         string // /dev/loopN
	Name         string // loopN
	Major, Minor uint32
	file         *os.File
}

// New makes one of the file at path. It goes with its last user, even when a test
// does not come to its end.
func New(path string) (*Device, error) {
	control, err := os.OpenFile("/dev/loop-control", os.O_RDWR, 0)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrNone, err)
	}
	defer control.Close()
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	for range 100 {
		n, _, e := unix.Syscall(unix.SYS_IOCTL, control.Fd(), unix.LOOP_CTL_GET_FREE, 0)
		if e != 0 {
			return nil, fmt.Errorf("%w: %w", ErrNone, e)
		}
		d := &Device{Name: fmt.Sprintf("loop%d", n)}
		d.Path = "/dev/" + d.Name
		if d.file, err = os.OpenFile(d.Path, os.O_RDWR, 0); err != nil {
			return nil, fmt.Errorf("%w: %w", ErrNone, err)
		}
		_, _, e = unix.Syscall(unix.SYS_IOCTL, d.file.Fd(), unix.LOOP_SET_FD, f.Fd())
		if e == unix.EBUSY { // another was quicker
			d.file.Close()
			continue
		}
		var st unix.Stat_t
		if e == 0 {
			info := unix.LoopInfo64{Flags: unix.LO_FLAGS_AUTOCLEAR}
			_, _, e = unix.Syscall(unix.SYS_IOCTL, d.file.Fd(), unix.LOOP_SET_STATUS64, uintptr(unsafe.Pointer(&info)))
		}
		if e != 0 {
			d.file.Close()
			return nil, fmt.Errorf("%s: %w", d.Path, e)
		}
		if err := unix.Fstat(int(d.file.Fd()), &st); err != nil {
			d.file.Close()
			return nil, fmt.Errorf("%s: %w", d.Path, err)
		}
		d.Major, d.Minor = unix.Major(st.Rdev), unix.Minor(st.Rdev)
		return d, nil
	}
	return nil, errors.New("no loop device stays free")
}

// Set sets a parameter of its queue.
func (d *Device) Set(name, value string) error {
	return os.WriteFile(filepath.Join("/sys/block", d.Name, "queue", name), []byte(value), 0o644)
}

// Close leaves the device, which goes when nobody else uses it. It may be called twice.
func (d *Device) Close() error { return d.file.Close() }

// File makes a file of n bytes of zeroes in dir, for New.
func File(dir string, n int64) (string, error) {
	f, err := os.CreateTemp(dir, "disk")
	if err != nil {
		return "", err
	}
	return f.Name(), errors.Join(f.Truncate(n), f.Close())
}
