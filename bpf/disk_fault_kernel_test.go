//go:build linux

package bpf

import (
	"errors"
	"os"
	"testing"
	"time"

	"github.com/go-quicktest/qt"
	"golang.org/x/sys/unix"

	"github.com/xenserver/dtagent/testenv/fault"
)

// slowDisks are the kinds of block devices that lose their time after I/O is queued
// for them: whatever driver or mapper makes it, it is counted once, and so long.
var slowDisks = []string{"dm-delay", "null_blk", "nbd", "loop-fuse", "scsi_debug"}

func TestDiskOfEveryKindKernel(t *testing.T) {
	for _, kind := range slowDisks {
		t.Run(kind, func(t *testing.T) {
			openKernel(t, Legacy, Options{})
			d, err := fault.Open(t.Context(), kind, fault.Options{Delay: injectedDelay})
			if missing := (*fault.MissingError)(nil); errors.As(err, &missing) {
				t.Skip(err)
			}
			qt.Assert(t, qt.IsNil(err))
			t.Cleanup(func() { qt.Check(t, qt.IsNil(d.Close())) })
			inTiers(t, func(t *testing.T, c *collector) { slowDisk(t, c, d) })
		})
	}
}

const injectedDelay = 20 * time.Millisecond

func slowDisk(t *testing.T, c *collector, d fault.Device) {
	f, err := os.OpenFile(d.Path(), os.O_RDWR|unix.O_DIRECT, 0)
	qt.Assert(t, qt.IsNil(err))
	defer f.Close()
	var st unix.Stat_t
	qt.Assert(t, qt.IsNil(unix.Fstat(int(f.Fd()), &st)))
	dev := DevNumber(unix.Major(st.Rdev), unix.Minor(st.Rdev))
	slot, err := c.s.AddDisk([]DiskSource{{TGID: uint32(os.Getpid()), Dev: dev, Whole: dev}})
	qt.Assert(t, qt.IsNil(err))
	defer func() { qt.Check(t, qt.IsNil(c.s.RemoveDisk(slot))) }()
	mem, err := unix.Mmap(-1, 0, 1<<16, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
	qt.Assert(t, qt.IsNil(err))
	defer unix.Munmap(mem)

	const each = 5
	for i := range int64(each) {
		_, err := f.ReadAt(mem[:4096], i<<16)
		qt.Assert(t, qt.IsNil(err))
		_, err = f.WriteAt(mem, i<<16)
		qt.Assert(t, qt.IsNil(err))
	}
	c.counted(slot, DiskRead, each, each*4096)
	c.counted(slot, DiskWrite, each, each<<16)
	st2 := c.diskStats(slot)
	for op := range diskDeviceOps {
		s := &st2.Ops[op]
		for i, n := range s.Bucket {
			// The clock of a driver's timer is not ours: half of the delay is surely its.
			if _, to := DiskBucket(i); n > 0 && to < injectedDelay/2 {
				t.Errorf("kind %d: %d took less than %s", op, n, to)
			}
		}
		device := st2.Device[op].Done
		if d.Layer() == fault.DeviceMapper {
			qt.Check(t, qt.Equals(device, 0)) // it has no requests
		} else {
			qt.Check(t, qt.IsTrue(device > 0))
		}
	}
	c.noLosses()
}
