//go:build linux

package fault

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"runtime"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// The device mapper, as of include/uapi/linux/dm-ioctl.h.
const (
	dmDevCreate  = 3
	dmDevRemove  = 4
	dmDevSuspend = 6 // resumes without dmSuspendFlag
	dmTableLoad  = 9

	dmDeferred = 1 << 17 // removes a device when the last who has it open closes it

	dmHeader = 312 // struct dm_ioctl
	dmIoctl  = 3<<30 | dmHeader<<16 | 0xfd<<8
)

// dmCommand is struct dm_ioctl.
type dmCommand struct {
	Version             [3]uint32
	DataSize, DataStart uint32
	TargetCount         uint32
	OpenCount           int32
	Flags, EventNr, _   uint32
	Dev                 uint64
	Name                [128]byte
	UUID                [129]byte
	_                   [7]byte
}

// dmTarget is struct dm_target_spec.
type dmTarget struct {
	Start, Length uint64 // sectors
	Status        int32
	Next          uint32
	Type          [16]byte
}

// openMapper makes a dm-delay on a loop device of memory.
func openMapper(_ context.Context, o Options, d *device) error {
	base, err := d.memory(o.Size)
	if err != nil {
		return err
	}
	control, err := unix.Open("/dev/mapper/control", unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return missingModule("dm_mod", fmt.Errorf("/dev/mapper/control: %w", err))
	}
	d.onClose(func() error { return unix.Close(control) })
	name := uniqueName()
	dm := func(nr uintptr, flags, targets uint32, payload []byte) (*dmCommand, error) {
		return dmCall(control, nr, dmCommand{Flags: flags, TargetCount: targets}, name, payload)
	}
	made, err := dm(dmDevCreate, 0, 0, nil)
	if err != nil {
		return fmt.Errorf("device mapper: create %s: %w", name, err)
	}
	d.onClose(func() error {
		if _, err := dm(dmDevRemove, dmDeferred, 0, nil); err != nil {
			return fmt.Errorf("device mapper: remove %s: %w", name, err)
		}
		return nil
	})
	d.set = func(delay time.Duration) error {
		spec := dmTarget{Length: uint64(o.Size) / 512}
		copy(spec.Type[:], "delay")
		payload, err := binary.Append(nil, binary.NativeEndian, spec)
		if err != nil {
			return err
		}
		payload = append(payload, fmt.Sprintf("/dev/loop%d 0 %d\x00", base, delay.Milliseconds())...)
		if _, err := dm(dmTableLoad, 0, 1, payload); err != nil {
			if errors.Is(err, unix.EINVAL) && module("dm_delay") != nil {
				return missingModule("dm_delay", err)
			}
			return fmt.Errorf("device mapper: load a table of %s: %w", name, err)
		}
		if _, err := dm(dmDevSuspend, 0, 0, nil); err != nil {
			return fmt.Errorf("device mapper: resume %s: %w", name, err)
		}
		return nil
	}
	if err := d.set(0); err != nil {
		return err
	}
	d.base = fmt.Sprintf("loop%d", base)
	d.block = fmt.Sprintf("dm-%d", made.Dev&0xff|made.Dev>>12&0xfff00)
	d.path = "/dev/" + d.block
	return nil
}

// dmCall gives one command to the device mapper, and returns what it answers.
func dmCall(control int, nr uintptr, c dmCommand, name string, payload []byte) (*dmCommand, error) {
	c.Version, c.DataSize, c.DataStart = [3]uint32{4, 0, 0}, uint32(dmHeader+len(payload)), dmHeader
	copy(c.Name[:len(c.Name)-1], name)
	b, err := binary.Append(nil, binary.NativeEndian, c)
	if err != nil {
		return nil, err
	}
	b = append(b, payload...)
	_, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(control), dmIoctl|nr, uintptr(unsafe.Pointer(&b[0])))
	runtime.KeepAlive(b)
	if errno != 0 {
		return nil, errno
	}
	_, err = binary.Decode(b, binary.NativeEndian, &c)
	return &c, err
}
