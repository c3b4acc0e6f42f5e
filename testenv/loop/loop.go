//go:build linux

// Package loop makes block devices of files, for tests.
package loop

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// ErrNone says that loop devices cannot be had here.
var ErrNone = errors.New("needs loop devices")

// Device is a block device of which the bytes are a file's.
type Device struct {
	Path         string // /dev/loopN
	Name         string // loopN
	Number       int    // N
	Major, Minor uint32
	file         *os.File
}

// New makes one of the file at path.
func New(path string) (*Device, error) {
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return Of(int(f.Fd()))
}

// Of makes one of an open file. It goes with its last user, however a process ends.
func Of(file int) (*Device, error) {
	control, err := unix.Open("/dev/loop-control", unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("%w: /dev/loop-control: %w", ErrNone, err)
	}
	defer unix.Close(control)
	for {
		n, err := unix.IoctlRetInt(control, unix.LOOP_CTL_GET_FREE)
		if err != nil {
			return nil, fmt.Errorf("a free loop device: %w", err)
		}
		d := &Device{Name: fmt.Sprintf("loop%d", n), Number: n}
		d.Path = "/dev/" + d.Name
		if d.file, err = os.OpenFile(d.Path, os.O_RDWR, 0); err != nil {
			return nil, fmt.Errorf("%w: %w", ErrNone, err)
		}
		config := unix.LoopConfig{Fd: uint32(file), Size: 512}
		config.Info.Flags = unix.LO_FLAGS_AUTOCLEAR
		var st unix.Stat_t
		err = unix.IoctlLoopConfigure(int(d.file.Fd()), &config)
		if err == nil {
			err = unix.Fstat(int(d.file.Fd()), &st)
		}
		if err == nil {
			d.Major, d.Minor = unix.Major(st.Rdev), unix.Minor(st.Rdev)
			return d, nil
		}
		d.file.Close()
		if !errors.Is(err, unix.EBUSY) { // another process took it
			return nil, fmt.Errorf("%s: configure: %w", d.Path, err)
		}
	}
}

// Set sets a parameter of its queue.
func (d *Device) Set(name, value string) error {
	return os.WriteFile(filepath.Join("/sys/block", d.Name, "queue", name), []byte(value), 0o644)
}

// Close leaves the device. Who has it open keeps it a little longer; the kernel clears
// it then.
func (d *Device) Close() error { return d.file.Close() }

// File makes a file of n bytes of zeroes in dir, for New.
func File(dir string, n int64) (string, error) {
	f, err := os.CreateTemp(dir, "disk")
	if err != nil {
		return "", err
	}
	return f.Name(), errors.Join(f.Truncate(n), f.Close())
}
