//go:build linux

package bpf

import (
	"context"
	"fmt"
	"os"
	"slices"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/go-quicktest/qt"
	"golang.org/x/sys/unix"

	"github.com/xenserver/dtagent/testenv/tapdisk"
)

// BenchmarkTapdisk measures what telling layers costs a tapdisk: a stand-in serves
// random requests of 4 KiB from a loop device whose file is in memory. Rounds without
// the probes, with them, and with 499 tapdisks more that are watched follow each other;
// the ratios are of what a round has to the round without next to it, medians of all:
// of requests a second, and of the CPU time that tapdisk takes for each. ns/… are the
// programs' own time for each request by the kernel's statistics, taken apart; some
// 30 ns of each run are the statistics themselves.
func BenchmarkTapdisk(b *testing.B) {
	for _, tier := range []Tier{Legacy, Modern} {
		for _, depth := range []int{1, 16} {
			b.Run(fmt.Sprintf("%s/depth-%d", tier, depth), func(b *testing.B) { benchTapdisk(b, tier, depth) })
		}
	}
}

const (
	benchRounds   = 5 // of one iteration
	benchTime     = 400 * time.Millisecond
	benchTapdisks = 500
)

func benchTapdisk(b *testing.B, tier Tier, depth int) {
	file, err := os.CreateTemp("/dev/shm", "disk")
	qt.Assert(b, qt.IsNil(err))
	defer os.Remove(file.Name())
	defer file.Close()
	qt.Assert(b, qt.IsNil(file.Truncate(diskSize)))
	l := newLoop(b, file.Name())
	d, err := tapdisk.Start(b.Context(), tapdisk.Options{Image: l.Path})
	qt.Assert(b, qt.IsNil(err))
	defer func() { qt.Check(b, qt.IsNil(d.Close())) }()
	c := collect(b, openKernel(b, tier, Options{}))
	pid := uint32(d.PID())

	var seed uint64
	serve := func() (n, rate, cpu float64) {
		seed++
		ran, _, err := d.Scheduled()
		qt.Assert(b, qt.IsNil(err))
		r, err := d.Guest().Run(context.Background(), tapdisk.Load{Time: benchTime, Depth: depth, Reads: 0.7, Writes: 0.3, Random: true, Span: diskSize, Keep: 1, Seed: seed})
		qt.Assert(b, qt.IsNil(err))
		now, _, err := d.Scheduled()
		qt.Assert(b, qt.IsNil(err))
		n = float64(len(r.Latency[tapdisk.Read]) + len(r.Latency[tapdisk.Write]))
		return n, n / r.Took.Seconds(), float64(now-ran) / n
	}
	on := func() (slot uint32) {
		for _, p := range []Probe{Disk, Tapdisk} {
			qt.Assert(b, qt.IsNil(c.s.Attach(p)))
		}
		slot, err := c.s.AddDisk([]DiskSource{{TGID: pid, Dev: l.dev, Whole: l.dev}})
		qt.Assert(b, qt.IsNil(err))
		qt.Assert(b, qt.IsNil(c.s.AddTapdisk(pid, TapdiskConfig{})))
		return slot
	}
	off := func(slot uint32) {
		qt.Assert(b, qt.IsNil(c.s.RemoveTapdisk(pid)))
		qt.Assert(b, qt.IsNil(c.s.RemoveDisk(slot)))
		for _, p := range []Probe{Tapdisk, Disk} {
			qt.Assert(b, qt.IsNil(c.s.Detach(p)))
		}
	}
	const strangers = 1 << 22 // no process has such a number
	more := func() {
		for i := range uint32(benchTapdisks - 1) {
			qt.Assert(b, qt.IsNil(c.s.AddTapdisk(strangers+i, TapdiskConfig{})))
		}
	}
	fewer := func() {
		for i := range uint32(benchTapdisks - 1) {
			qt.Assert(b, qt.IsNil(c.s.RemoveTapdisk(strangers+i)))
		}
	}

	serve()
	var rates, times, manyRates, manyTimes, offRates []float64
	var last float64
	for b.Loop() {
		for range benchRounds {
			_, r0, t0 := serve()
			slot := on()
			_, r1, t1 := serve()
			more()
			n, r2, t2 := serve()
			last = n
			fewer()
			off(slot)
			_, r3, t3 := serve() // what the machine does meanwhile is the same for both, about
			r0, t0 = (r0+r3)/2, (t0+t3)/2
			offRates = append(offRates, r0)
			rates, times = append(rates, r1/r0), append(times, t1/t0)
			manyRates, manyTimes = append(manyRates, r2/r0), append(manyTimes, t2/t0)
		}
	}
	qt.Assert(b, qt.IsTrue(last > 0))
	middle := func(v []float64) float64 {
		slices.Sort(v)
		return v[len(v)/2]
	}
	b.ReportMetric(middle(offRates), "off-iops")
	b.ReportMetric(middle(rates), "iops-ratio")
	b.ReportMetric(middle(times), "cpu-ratio")
	b.ReportMetric(middle(manyRates), "iops-ratio-500")
	b.ReportMetric(middle(manyTimes), "cpu-ratio-500")
	b.ReportMetric(0, "ns/op")

	stats, err := ebpf.EnableStats(unix.BPF_STATS_RUN_TIME)
	if err != nil {
		b.Log("no times of programs: BPF statistics need Linux 5.8: ", err)
		return
	}
	defer stats.Close()
	slot := on()
	before := map[Probe]map[string]ebpf.ProgramStats{}
	for _, p := range []Probe{Disk, Tapdisk} {
		before[p] = programStats(b, c.s.progs[p])
	}
	n, _, _ := serve()
	var sum float64
	for p, was := range before {
		for name, s := range programStats(b, c.s.progs[p]) {
			ns := float64((s.Runtime - was[name].Runtime).Nanoseconds()) / n
			sum += ns
			if s.RunCount > was[name].RunCount {
				b.ReportMetric(ns, "ns/"+name)
				b.ReportMetric(float64(s.RunCount-was[name].RunCount)/n, "runs/"+name)
			}
		}
	}
	b.ReportMetric(sum, "ns/request")
	var counted TapdiskStats
	qt.Assert(b, qt.IsNil(c.s.TapdiskStats(pid, &counted)))
	b.ReportMetric(float64(counted.Requests[GuestRead].Layers[0].Count+counted.Requests[GuestWrite].Layers[0].Count)/n, "counted/request")
	off(slot)
}
