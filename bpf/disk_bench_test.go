//go:build linux

package bpf

import (
	"fmt"
	"os"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/go-quicktest/qt"
	"golang.org/x/sys/unix"
)

// BenchmarkDisk measures what counting costs who does I/O: reads of 4 KiB past the
// page cache, of a loop device whose file is in memory. ns/op is the wall time of one
// read; ns/… are the programs' own time by the kernel's statistics, of which some
// 30 ns are the statistics themselves. A stranger reads a device that is no disk's.
func BenchmarkDisk(b *testing.B) {
	for _, tier := range []Tier{0, Legacy, Modern} {
		name := "off"
		if tier != 0 {
			name = tier.String()
		}
		b.Run(name, func(b *testing.B) {
			for _, disks := range []int{0, 1, 500} {
				if tier == 0 && disks > 0 {
					continue
				}
				b.Run(fmt.Sprintf("disks-%d", disks), func(b *testing.B) { benchDisk(b, tier, disks) })
			}
		})
	}
}

func benchDisk(b *testing.B, tier Tier, disks int) {
	file, err := os.CreateTemp("/dev/shm", "disk")
	qt.Assert(b, qt.IsNil(err))
	defer os.Remove(file.Name())
	defer file.Close()
	qt.Assert(b, qt.IsNil(file.Truncate(4<<20)))
	l := newLoop(b, file.Name())
	disk, err := os.OpenFile(l.Path, os.O_RDWR|unix.O_DIRECT, 0)
	qt.Assert(b, qt.IsNil(err))
	defer disk.Close()
	mem, err := unix.Mmap(-1, 0, 4096, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
	qt.Assert(b, qt.IsNil(err))
	defer unix.Munmap(mem)
	var progs map[string]*ebpf.Program
	if tier != 0 {
		stats, err := ebpf.EnableStats(unix.BPF_STATS_RUN_TIME)
		if err != nil {
			b.Skip("needs BPF statistics (Linux 5.8): ", err)
		}
		defer stats.Close()
		c := collect(b, openKernel(b, tier, Options{}))
		qt.Assert(b, qt.IsNil(c.s.Attach(Disk)))
		progs = c.s.progs[Disk]
		for i := range disks {
			dev := l.dev
			if i > 0 {
				dev = DevNumber(4000, uint32(i))
			}
			slot, err := c.s.AddDisk([]DiskSource{{Dev: dev, Whole: dev}})
			qt.Assert(b, qt.IsNil(err))
			if i == 0 {
				defer func() {
					st := c.diskStats(slot)
					b.ReportMetric(float64(st.Ops[DiskRead].Done)/float64(st.Ops[DiskRead].Begun), "done/begun")
				}()
			}
		}
	}
	before := programStats(b, progs)
	for b.Loop() {
		_, err := disk.ReadAt(mem, 0)
		qt.Assert(b, qt.IsNil(err))
	}
	for name, s := range programStats(b, progs) {
		if runs := s.RunCount - before[name].RunCount; runs > 0 {
			b.ReportMetric(float64((s.Runtime-before[name].Runtime).Nanoseconds())/float64(runs), "ns/"+name)
		}
	}
}
