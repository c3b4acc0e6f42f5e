//go:build linux

package bpf

import (
	"bytes"
	_ "embed"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"
	"unsafe"

	"github.com/go-quicktest/qt"
	"github.com/klauspost/compress/zstd"
	"golang.org/x/sys/unix"

	"github.com/xenserver/dtagent/testenv/loop"
)

// blockIO makes I/O past the page cache, as a disk backend does.
func blockIO(o order) (uintptr, syscall.Errno) {
	size := o.N
	if o.Do == "submit" {
		size *= o.Count
	}
	buf := []byte{0}
	if size > 0 {
		var err error
		if buf, err = unix.Mmap(-1, 0, size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS|unix.MAP_POPULATE); err != nil {
			return 0, unix.ENOMEM
		}
		defer unix.Munmap(buf)
	}
	fd, at, n := uintptr(o.FD), uintptr(o.At), uintptr(o.N)
	call := func(nr, a, b, c, d uintptr) (uintptr, syscall.Errno) {
		r, _, e := unix.Syscall6(nr, a, b, c, d, 0, 0)
		return r, e
	}
	switch o.Do {
	case "pread":
		return call(unix.SYS_PREAD64, fd, uintptr(unsafe.Pointer(&buf[0])), n, at)
	case "pwrite":
		return call(unix.SYS_PWRITE64, fd, uintptr(unsafe.Pointer(&buf[0])), n, at)
	case "fsync":
		return call(unix.SYS_FSYNC, fd, 0, 0, 0)
	case "discard", "zero":
		nr := uintptr(0x1277) // BLKDISCARD
		if o.Do == "zero" {
			nr = 0x127f // BLKZEROOUT
		}
		span := [2]uint64{uint64(o.At), uint64(o.Count)}
		return call(unix.SYS_IOCTL, fd, nr, uintptr(unsafe.Pointer(&span)), 0)
	}
	// Count writes of N bytes each with one io_submit, as tapdisk and qemu do. A
	// negative At lets all go to the beginning.
	type iocb struct {
		_   [2]uint64 // data, key, rw_flags
		op  uint16
		_   int16 // priority
		fd  uint32
		buf uint64
		n   uint64
		at  int64
		_   [2]uint64 // reserved, flags, resfd
	}
	type event struct{ data, obj, res, res2 uint64 }
	var ctx uintptr
	if _, e := call(unix.SYS_IO_SETUP, uintptr(o.Count), uintptr(unsafe.Pointer(&ctx)), 0, 0); e != 0 {
		return 0, e
	}
	defer call(unix.SYS_IO_DESTROY, ctx, 0, 0, 0)
	cbs, ptrs, evs := make([]iocb, o.Count), make([]*iocb, o.Count), make([]event, o.Count)
	for i := range cbs {
		cbs[i] = iocb{op: 1, fd: uint32(o.FD), buf: uint64(uintptr(unsafe.Pointer(&buf[i*o.N]))), n: uint64(o.N), at: max(o.At, 0)}
		if o.At >= 0 {
			cbs[i].at += int64(i * o.N)
		}
		ptrs[i] = &cbs[i]
	}
	got, e := call(unix.SYS_IO_SUBMIT, ctx, uintptr(o.Count), uintptr(unsafe.Pointer(&ptrs[0])), 0)
	if e != 0 {
		return 0, e
	}
	got, _, e = unix.Syscall6(unix.SYS_IO_GETEVENTS, ctx, got, got, uintptr(unsafe.Pointer(&evs[0])), 0, 0)
	runtime.KeepAlive(ptrs)
	for _, ev := range evs {
		if ev.res != uint64(o.N) {
			return got, unix.EIO
		}
	}
	return got, e
}

// loopDevice is a block device of which the bytes are a file's.
type loopDevice struct {
	*loop.Device
	t   testing.TB
	dev uint32
}

// newLoop makes a loop device of the file at path, in the caller's mount namespace.
func newLoop(t testing.TB, path string) *loopDevice {
	t.Helper()
	d, err := loop.New(path)
	if errors.Is(err, loop.ErrNone) {
		t.Skip(err)
	}
	qt.Assert(t, qt.IsNil(err))
	t.Cleanup(func() { d.Close() })
	return &loopDevice{Device: d, t: t, dev: DevNumber(d.Major, d.Minor)}
}

// set sets one of the queue's parameters.
func (l *loopDevice) set(name, value string) {
	l.t.Helper()
	qt.Assert(l.t, qt.IsNil(l.Set(name, value)))
}

const diskSize = 16 << 20

// plainFile makes a file of n bytes of zeroes.
func plainFile(t testing.TB, dir string, n int64) string {
	t.Helper()
	name, err := loop.File(dir, n)
	qt.Assert(t, qt.IsNil(err))
	return name
}

// diskOf is the disk of the I/O that tgid makes at l.
func (c *collector) diskOf(l *loopDevice, tgid uint32) uint32 {
	c.t.Helper()
	slot, err := c.s.AddDisk([]DiskSource{{TGID: tgid, Dev: l.dev, Whole: l.dev}})
	qt.Assert(c.t, qt.IsNil(err))
	c.t.Cleanup(func() { qt.Check(c.t, qt.IsNil(c.s.RemoveDisk(slot))) })
	return slot
}

func (c *collector) diskStats(slot uint32) DiskStats {
	c.t.Helper()
	var out DiskStats
	qt.Assert(c.t, qt.IsNil(c.s.DiskStats(slot, &out)))
	return out
}

// inFlight counts the I/O of a disk that is not done, as far as was seen: the kernel
// runs no program while another one runs on that CPU, so an end can be missed.
func (c *collector) inFlight(slot uint32, op DiskOp) (n uint64) {
	c.t.Helper()
	c.s.mu.Lock()
	defer c.s.mu.Unlock()
	keys, err := mapKeys[bioKey](c.s.maps["dt_bios"])
	qt.Assert(c.t, qt.IsNil(err))
	for _, k := range keys {
		var b bio
		if c.s.maps["dt_bios"].Lookup(k, &b) == nil && b.Slot == slot && k.Op == op && b.Left > 0 {
			n++
		}
	}
	return n
}

// counted asserts what a disk's counters say of one kind of I/O that has ended.
func (c *collector) counted(slot uint32, op DiskOp, begun, bytes uint64) {
	c.t.Helper()
	st := c.diskStats(slot)
	s := &st.Ops[op]
	note := qt.Commentf("disk %d, kind %d: %d begun, %d bytes, %d done", slot, op, s.Begun, s.Bytes, s.Done)
	qt.Check(c.t, qt.Equals(s.Begun, begun), note)
	qt.Check(c.t, qt.Equals(s.Bytes, bytes), note)
	qt.Check(c.t, qt.Equals(s.Done+c.inFlight(slot, op), begun), note)
	qt.Check(c.t, qt.Equals(s.Failed, 0), note)
	var n uint64
	for _, b := range s.Bucket {
		n += uint64(b)
	}
	qt.Check(c.t, qt.Equals(n, s.Done), note)
	qt.Check(c.t, qt.Equals(s.Done > 0, s.SumNs > 0), note)
	qt.Check(c.t, qt.IsTrue(s.MaxNs <= s.SumNs), note)
}

func TestDiskKernel(t *testing.T) {
	inTiers(t, func(t *testing.T, c *collector) {
		a, b := newLoop(t, plainFile(t, t.TempDir(), diskSize)), newLoop(t, plainFile(t, t.TempDir(), diskSize))
		one, two := startVictim(t), startVictim(t)
		// The first has disks on both devices, the second one on the first; nobody has the rest.
		oneA, oneB, twoA := c.diskOf(a, one.pid()), c.diskOf(b, one.pid()), c.diskOf(a, two.pid())
		fd := func(v *victim, l *loopDevice) int { return v.must(order{Do: "open-direct", Path: l.Path}).Ret }
		fdOneA, fdOneB, fdTwoA, fdTwoB := fd(one, a), fd(one, b), fd(two, a), fd(two, b)
		before := c.diskStats(twoA)
		for i := range 20 {
			at := int64(i * 65536)
			one.start(order{Do: "pread", FD: fdOneA, N: 4096, At: at})
			two.start(order{Do: "pread", FD: fdTwoA, N: 8192, At: at}) // the same sectors at the same time
			one.wait()
			two.wait()
			one.start(order{Do: "pwrite", FD: fdOneA, N: 16384, At: at, Thread: 1})
			one.start(order{Do: "pwrite", FD: fdOneB, N: 512, At: at, Thread: 2})
			two.must(order{Do: "pwrite", FD: fdTwoA, N: 4096, At: at + 32768})
			two.must(order{Do: "pwrite", FD: fdTwoB, N: 4096, At: at})
			one.wait()
			one.wait()
		}
		for range 3 {
			one.must(order{Do: "fsync", FD: fdOneA})
		}
		two.must(order{Do: "fsync", FD: fdTwoA})
		qt.Check(t, qt.Equals(before.Ops[DiskRead].Begun, 0)) // opening reads nothing for it
		c.counted(oneA, DiskRead, 20, 20*4096)
		c.counted(oneA, DiskWrite, 20, 20*16384)
		c.counted(oneA, DiskFlush, 3, 0)
		c.counted(oneA, DiskDiscard, 0, 0)
		c.counted(oneB, DiskRead, 0, 0)
		c.counted(oneB, DiskWrite, 20, 20*512)
		c.counted(oneB, DiskFlush, 0, 0)
		c.counted(twoA, DiskRead, 20, 20*8192)
		c.counted(twoA, DiskWrite, 20, 20*4096)
		c.counted(twoA, DiskFlush, 1, 0)
		if n := c.diskStats(oneA).Device[DiskRead].Done; n == 0 {
			t.Error("no read was seen to be given to the driver")
		}
		c.noLosses()
	})
}

// Zeroes and discards have no data; what they cover is not counted as written.
func TestDiskDiscardKernel(t *testing.T) {
	inTiers(t, func(t *testing.T, c *collector) {
		l := newLoop(t, plainFile(t, t.TempDir(), diskSize))
		v := startVictim(t)
		slot := c.diskOf(l, v.pid())
		fd := v.must(order{Do: "open-direct", Path: l.Path}).Ret
		if r := v.do(order{Do: "discard", FD: fd, At: 4096, Count: 1 << 20}); r.Errno == int(unix.EOPNOTSUPP) {
			t.Skip("needs a loop device that discards: the file system of its file does not")
		}
		c.counted(slot, DiskDiscard, 1, 1<<20)
		c.counted(slot, DiskWrite, 0, 0)
		v.must(order{Do: "zero", FD: fd, At: 2 << 20, Count: 65536})
		st := c.diskStats(slot)
		discards, writes := &st.Ops[DiskDiscard], &st.Ops[DiskWrite]
		qt.Check(t, qt.Equals(discards.Begun, 2))
		qt.Check(t, qt.Equals(discards.Bytes, 1<<20+65536))
		// A loop device cannot for files of some kinds: then the kernel writes zeroes.
		qt.Check(t, qt.Equals(writes.Bytes, discards.Failed*65536))
		c.noLosses()
	})
}

// Bios that become one request are counted each, and so is one that is split.
func TestDiskMergedAndSplitKernel(t *testing.T) {
	inTiers(t, func(t *testing.T, c *collector) {
		l := newLoop(t, plainFile(t, t.TempDir(), diskSize))
		l.set("nomerges", "0")
		v := startVictim(t)
		slot := c.diskOf(l, v.pid())
		fd := v.must(order{Do: "open-direct", Path: l.Path}).Ret
		v.must(order{Do: "submit", FD: fd, N: 4096, Count: 32})
		c.counted(slot, DiskWrite, 32, 32*4096)
		if n := mergedWrites(t, l); n == 0 {
			t.Error("nothing was merged: this tests nothing")
		}
		l.set("max_sectors_kb", "64")
		v.must(order{Do: "pread", FD: fd, N: 1 << 20, At: 1 << 20}) // 16 requests
		c.counted(slot, DiskRead, 1, 1<<20)
		c.noLosses()

		// More than are followed: the rest is counted as lost, and as begun.
		l.set("max_sectors_kb", "1024")
		v.must(order{Do: "submit", FD: fd, N: 4096, Count: 100, At: 4 << 20})
		st := c.diskStats(slot)
		qt.Check(t, qt.Equals(st.Ops[DiskWrite].Begun, 132))
		qt.Check(t, qt.Equals(st.Ops[DiskWrite].Done+c.inFlight(slot, DiskWrite), 132))
		for _, loss := range c.losses() {
			qt.Check(t, qt.Equals(loss.Cause, lossNames[lossPieces]))
		}
	})
}

// mergedWrites asks the kernel how many writes were merged.
func mergedWrites(t testing.TB, l *loopDevice) int {
	t.Helper()
	b, err := os.ReadFile(filepath.Join("/sys/block", l.Name, "stat"))
	qt.Assert(t, qt.IsNil(err))
	var n [6]int
	_, err = fmt.Sscan(string(b), &n[0], &n[1], &n[2], &n[3], &n[4], &n[5])
	qt.Assert(t, qt.IsNil(err))
	return n[5]
}

// frozen is a loop device whose writes wait while its file's file system is frozen.
type frozen struct {
	*loopDevice
	under *loopDevice
	root  *os.File // of the file system
}

// ext4 is a file system of 8 MiB with a journal, made by mkfs.ext4 -b 1024 -J size=1,
// so that nothing is needed here for it.
//
//go:embed testdata/ext4.img.zst
var ext4 []byte

// newFrozen mounts a file system in a mount namespace of its own, which goes with
// the thread that calls it.
func newFrozen(t testing.TB) *frozen {
	t.Helper()
	file := filepath.Join(t.TempDir(), "ext4")
	z, err := zstd.NewReader(bytes.NewReader(ext4))
	qt.Assert(t, qt.IsNil(err))
	defer z.Close()
	image, err := io.ReadAll(z)
	qt.Assert(t, qt.IsNil(err))
	qt.Assert(t, qt.IsNil(os.WriteFile(file, image, 0o600)))
	runtime.LockOSThread() // and never unlocked: it ends with its namespace
	qt.Assert(t, qt.IsNil(unix.Unshare(unix.CLONE_NEWNS)))
	qt.Assert(t, qt.IsNil(unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, "")))
	f := &frozen{under: newLoop(t, file)}
	dir := t.TempDir()
	if err := unix.Mount(f.under.Path, dir, "ext4", 0, ""); errors.Is(err, unix.ENODEV) {
		t.Skip("needs ext4")
	} else {
		qt.Assert(t, qt.IsNil(err))
	}
	t.Cleanup(func() { qt.Check(t, qt.IsNil(unix.Unmount(dir, 0))) })
	f.root, err = os.Open(dir)
	qt.Assert(t, qt.IsNil(err))
	t.Cleanup(func() { f.root.Close() })
	f.loopDevice = newLoop(t, plainFile(t, dir, 4<<20))
	return f
}

const (
	ioctlFreeze = 0xc0045877 // FIFREEZE
	ioctlThaw   = 0xc0045878 // FITHAW
)

func (f *frozen) freeze() {
	f.t.Helper()
	_, _, e := unix.Syscall(unix.SYS_IOCTL, f.root.Fd(), ioctlFreeze, 0)
	qt.Assert(f.t, qt.Equals(e, 0))
	f.t.Cleanup(f.thaw) // before those that wait for who waits for it
	hang := time.AfterFunc(time.Minute, f.thaw)
	f.t.Cleanup(func() { hang.Stop() })
}

// thaw may be called more than once.
func (f *frozen) thaw() {
	unix.Syscall(unix.SYS_IOCTL, f.root.Fd(), ioctlThaw, 0)
}

// until waits until f is true; the deadline only ends a hang.
func until(t testing.TB, what string, f func() bool) {
	t.Helper()
	for deadline := time.Now().Add(time.Minute); !f(); time.Sleep(time.Millisecond) {
		qt.Assert(t, qt.IsTrue(time.Now().Before(deadline)), qt.Commentf("not in a minute: %s", what))
	}
}

// What takes long is measured so, also when its owner is killed meanwhile.
func TestDiskSlowKernel(t *testing.T) {
	inTiers(t, func(t *testing.T, c *collector) {
		f := newFrozen(t)
		v := startVictim(t)
		slot := c.diskOf(f.loopDevice, v.pid())
		fd := v.must(order{Do: "open-direct", Path: f.Path}).Ret
		v.must(order{Do: "pwrite", FD: fd, N: 4096})
		c.counted(slot, DiskWrite, 1, 4096)
		f.freeze()
		v.start(order{Do: "submit", FD: fd, N: 4096, Count: 9, At: -1}) // one too many at one place
		until(t, "the writes are begun", func() bool { return c.diskStats(slot).Ops[DiskWrite].Begun == 10 })
		begun := time.Now()
		qt.Check(t, qt.Equals(c.inFlight(slot, DiskWrite), 8))
		qt.Assert(t, qt.IsNil(v.cmd.Process.Kill()))
		const held = 20 * time.Millisecond
		time.Sleep(held - time.Since(begun))
		f.thaw()
		until(t, "they are done", func() bool { return c.inFlight(slot, DiskWrite) == 0 })
		st := c.diskStats(slot).Ops[DiskWrite]
		qt.Check(t, qt.Equals(st.Bytes, 10*4096))
		same := uint64(1)
		if c.s.tier == Legacy && st.Done < 9 { // an end that came while another program ran: its place was not free for one of these
			same += 9 - st.Done
		}
		qt.Check(t, qt.Equals(st.Done, 10-same))
		qt.Check(t, qt.IsTrue(st.MaxNs >= uint64(held)), qt.Commentf("%d ns", st.MaxNs))
		var slow uint64
		for i, n := range st.Bucket {
			if _, to := DiskBucket(i); to > held {
				slow += uint64(n)
			}
		}
		qt.Check(t, qt.IsTrue(slow >= 8), qt.Commentf("%d of 8 took %s", slow, held))
		qt.Check(t, qt.DeepEquals(c.losses(), []Loss{{Disk, lossNames[lossSame], same}}))
	})
}

// A kernel thread owns what it writes, by its name; others at its device do not.
func TestDiskOfKernelThreadKernel(t *testing.T) {
	inTiers(t, func(t *testing.T, c *collector) {
		f := newFrozen(t)
		add := func(name string) uint32 {
			slot, err := c.s.AddDisk([]DiskSource{{Dev: f.under.dev, Whole: f.under.dev, Comm: name}})
			qt.Assert(t, qt.IsNil(err))
			return slot
		}
		wrong := add("jbd2/" + f.under.Name + "x")
		work := func() {
			file := plainFile(t, f.root.Name(), 4096)
			h, err := os.OpenFile(file, os.O_RDWR, 0)
			qt.Assert(t, qt.IsNil(err))
			defer h.Close()
			qt.Assert(t, qt.IsNil(h.Sync()))
			v := startVictim(t)
			v.must(order{Do: "pread", FD: v.must(order{Do: "open-direct", Path: f.under.Path}).Ret, N: 4096})
		}
		work()
		qt.Check(t, qt.Equals(c.diskStats(wrong), DiskStats{}))
		qt.Assert(t, qt.IsNil(c.s.RemoveDisk(wrong)))
		slot := add("jbd2/" + f.under.Name + "-") // the thread of its journal
		work()
		st := c.diskStats(slot)
		qt.Check(t, qt.IsTrue(st.Ops[DiskWrite].Begun > 0))
		qt.Check(t, qt.Equals(st.Ops[DiskRead].Begun, 0))
		qt.Check(t, qt.IsNil(c.s.RemoveDisk(slot)))
	})
}

// Tables that are full are counted, and no more is lost than what they hold.
func TestDiskFullKernel(t *testing.T) {
	for _, tier := range []Tier{Legacy, Modern} {
		t.Run(tier.String(), func(t *testing.T) {
			c := collect(t, openKernel(t, tier, Options{BiosMax: 4, DisksMax: 2}))
			qt.Assert(t, qt.IsNil(c.s.Attach(Disk)))
			f := newFrozen(t)
			v := startVictim(t)
			slot, other := c.diskOf(f.loopDevice, v.pid()), c.diskOf(f.loopDevice, 1)
			_, err := c.s.AddDisk([]DiskSource{{TGID: 2, Dev: f.dev, Whole: f.dev}})
			qt.Check(t, qt.ErrorIs(err, ErrDisks))
			err = c.s.SetDisk(other, []DiskSource{{TGID: v.pid(), Dev: f.dev, Whole: f.dev}})
			qt.Check(t, qt.ErrorIs(err, ErrDiskTaken))
			var many []DiskSource
			for minor := range uint32(devicesOfDisk*2 + 1) {
				many = append(many, DiskSource{TGID: 1, Dev: DevNumber(4000, minor), Whole: DevNumber(4000, minor)})
			}
			qt.Check(t, qt.ErrorIs(c.s.SetDisk(other, many), ErrDisks))
			qt.Check(t, qt.IsNil(c.s.SetDisk(other, many[:1])))

			fd := v.must(order{Do: "open-direct", Path: f.Path}).Ret
			f.freeze()
			v.start(order{Do: "submit", FD: fd, N: 4096, Count: 16})
			until(t, "the writes are begun", func() bool { return c.diskStats(slot).Ops[DiskWrite].Begun == 16 })
			f.thaw()
			v.wait()
			st := c.diskStats(slot).Ops[DiskWrite]
			lost := map[string]uint64{}
			for _, l := range c.losses() {
				lost[l.Cause] = l.Count
			}
			qt.Check(t, qt.Equals(st.Bytes, 16*4096))
			qt.Check(t, qt.Equals(lost[lossNames[lossDisks]], 1))
			qt.Check(t, qt.IsTrue(lost[lossNames[lossBios]] > 0))
			qt.Check(t, qt.Equals(st.Done+c.inFlight(slot, DiskWrite)+lost[lossNames[lossBios]], 16), qt.Commentf("%d done, %v", st.Done, lost))
			qt.Check(t, qt.HasLen(lost, 2))
		})
	}
}

// What is known of a disk goes with it, and its number is not used again at once.
func TestDiskRemovedKernel(t *testing.T) {
	inTiers(t, func(t *testing.T, c *collector) {
		f := newFrozen(t)
		v := startVictim(t)
		source := DiskSource{TGID: v.pid(), Dev: f.dev, Whole: f.dev}
		slot, err := c.s.AddDisk([]DiskSource{source})
		qt.Assert(t, qt.IsNil(err))
		fd := v.must(order{Do: "open-direct", Path: f.Path}).Ret
		f.freeze()
		v.start(order{Do: "pwrite", FD: fd, N: 4096})
		until(t, "the write is begun", func() bool { return c.inFlight(slot, DiskWrite) == 1 })
		qt.Assert(t, qt.IsNil(c.s.RemoveDisk(slot)))
		qt.Check(t, qt.Equals(c.inFlight(slot, DiskWrite), 0))
		next := c.diskOf(f.loopDevice, v.pid())
		qt.Check(t, qt.Not(qt.Equals(next, slot)))
		f.thaw()
		v.wait()
		qt.Check(t, qt.Equals(c.diskStats(next), DiskStats{})) // the write before it is not its
		qt.Check(t, qt.IsNotNil(c.s.DiskStats(slot, new(DiskStats))))
		qt.Check(t, qt.IsNotNil(c.s.SetDisk(slot, nil)))
		qt.Check(t, qt.IsNil(c.s.RemoveDisk(slot)))

		v.must(order{Do: "pwrite", FD: fd, N: 4096})
		c.counted(next, DiskWrite, 1, 4096)
		qt.Assert(t, qt.IsNil(c.s.SetDisk(next, nil)))
		v.must(order{Do: "pwrite", FD: fd, N: 4096})
		c.counted(next, DiskWrite, 1, 4096)
		devs, err := mapKeys[uint32](c.s.maps["dt_disks"])
		qt.Assert(t, qt.IsNil(err))
		qt.Check(t, qt.IsFalse(slices.Contains(devs, f.dev)))
		qt.Assert(t, qt.IsNil(c.s.SetDisk(next, []DiskSource{source})))
		v.must(order{Do: "pwrite", FD: fd, N: 4096})
		c.counted(next, DiskWrite, 2, 8192)
		c.noLosses()
	})
}

// An end that was not seen is counted some time later.
func TestDiskUnendedKernel(t *testing.T) {
	inTiers(t, func(t *testing.T, c *collector) {
		l := newLoop(t, plainFile(t, t.TempDir(), diskSize))
		v := startVictim(t)
		slot := c.diskOf(l, v.pid())
		b := bio{Start: 1, Slot: slot, Len: 8, Left: 8}
		qt.Assert(t, qt.IsNil(c.s.maps["dt_bios"].Put(bioKey{Sector: 8, Disk: l.dev, Op: DiskRead}, b)))
		fd := v.must(order{Do: "open-direct", Path: l.Path}).Ret
		v.must(order{Do: "pread", FD: fd, N: 4096, At: 4096}) // at the same place
		st := c.diskStats(slot).Ops[DiskRead]
		qt.Check(t, qt.Equals(st.Done, 1))
		qt.Check(t, qt.IsTrue(st.MaxNs < ktime()/2), qt.Commentf("taken for the older one: %d ns", st.MaxNs))
		c.s.mu.Lock()
		err := c.s.sweepBios(time.Duration(ktime() - 2)) // all but what has just begun
		c.s.mu.Unlock()
		qt.Assert(t, qt.IsNil(err))
		qt.Check(t, qt.Equals(c.inFlight(slot, DiskRead), 0))
		qt.Check(t, qt.DeepEquals(c.losses(), []Loss{{Disk, lossNames[lossUnended], 1}}))
	})
}

// The name of a kernel thread of blkback is long enough for the longest domain and device.
func TestCommOfBlkback(t *testing.T) {
	name := "65535.xvdaa-"
	qt.Check(t, qt.IsTrue(len(name) <= 15))
	comm, mask := commWords(name)
	qt.Check(t, qt.Equals(strings.TrimRight(string(unsafe.Slice((*byte)(unsafe.Pointer(&comm)), 16)), "\x00"), name))
	qt.Check(t, qt.Equals(mask[1]>>32, 0))
}

// deviceBehind returns the block device that I/O at a file goes to.
func deviceBehind(t testing.TB, name string) uint32 {
	t.Helper()
	var st unix.Stat_t
	qt.Assert(t, qt.IsNil(unix.Stat(name, &st)))
	dev := st.Dev
	if st.Mode&unix.S_IFMT == unix.S_IFBLK {
		dev = st.Rdev
	}
	return DevNumber(unix.Major(dev), unix.Minor(dev))
}
