//go:build linux

package bpf

import (
	"maps"
	"os"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"github.com/go-quicktest/qt"
	"golang.org/x/sys/unix"
)

// BenchmarkHooks measures what a pair of system calls on a socket costs its
// process. ns/op is the wall time of one read and one write; ns/enter and
// ns/exit are the programs' own time by the kernel's statistics, of which some
// 30 ns are the statistics themselves; records/op is what leaves the kernel. With
// waits, the wait probe's hooks are attached, too.
func BenchmarkHooks(b *testing.B) {
	for _, tier := range []Tier{0, Legacy, Modern} {
		name := "off"
		if tier != 0 {
			name = tier.String()
		}
		b.Run(name, func(b *testing.B) {
			for _, w := range []struct {
				name                string
				target, seed, waits bool
				read, write         int
			}{
				{"stranger", false, false, false, 4, 4},
				{"stranger-waits", false, false, true, 4, 4},
				{"target-other-fd", true, false, false, 4, 4},
				{"target-small", true, true, false, 4, 4}, // the worst case: each turn sends a record
				{"target-small-waits", true, true, true, 4, 4},
				{"target-header", true, true, false, 4, 200},
				{"target-header-waits", true, true, true, 4, 200},
				{"target-large", true, true, false, 4096, 4096},
			} {
				b.Run(w.name, func(b *testing.B) { benchHooks(b, tier, w.target, w.seed, w.waits, w.read, w.write) })
			}
		})
	}
}

func benchHooks(b *testing.B, tier Tier, target, seed, waits bool, read, write int) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	qt.Assert(b, qt.IsNil(err))
	defer unix.Close(fds[0])
	defer unix.Close(fds[1])
	self := uint32(os.Getpid())
	progs := map[string]*ebpf.Program{}
	var records int
	if tier != 0 {
		stats, err := ebpf.EnableStats(unix.BPF_STATS_RUN_TIME)
		if err != nil {
			b.Skip("needs BPF statistics (Linux 5.8): ", err)
		}
		defer stats.Close()
		c := collectorOf(b, tier)
		c.reset(b)
		maps.Copy(progs, c.s.progs[Stream])
		watch := Watch(streamAndLog)
		if waits {
			qt.Assert(b, qt.IsNil(c.s.Attach(Wait)))
			maps.Copy(progs, c.s.progs[Wait])
			watch |= WatchWait
		} else {
			qt.Assert(b, qt.IsNil(c.s.Detach(Wait)))
		}
		if target {
			qt.Assert(b, qt.IsNil(c.s.SetTarget(self, Target{Watch: watch})))
			defer c.s.DeleteTarget(self)
		}
		if seed {
			qt.Assert(b, qt.IsNil(c.s.SeedSocket(self, int32(fds[0]), inodeOf(b, self, fds[0]), false)))
		}
		defer func() {
			// Reading is time spent, too: there would always be something to tell.
			qt.Assert(b, qt.IsNil(c.s.DeleteTarget(self)))
			c.settle()
			c.mu.Lock()
			records = len(c.got)
			c.mu.Unlock()
			b.ReportMetric(float64(records)/float64(b.N), "records/op")
			var lost uint64
			for _, l := range c.losses() {
				lost += l.Count
			}
			b.ReportMetric(float64(lost)/float64(b.N), "lost/op")
		}()
	}
	before := programStats(b, progs)
	in, out, peer := make([]byte, read), make([]byte, write), make([]byte, 1<<16)
	copy(out[max(len(out)-4, 0):], "\r\n\r\n")
	for b.Loop() {
		// The peer's end is no known socket: its calls are those of another fd.
		unix.Write(fds[1], peer[:read])
		unix.Read(fds[0], in)
		unix.Write(fds[0], out)
		unix.Read(fds[1], peer[:write])
	}
	for name, s := range programStats(b, progs) {
		runs := s.RunCount - before[name].RunCount
		if unit := map[string]string{"dt_e_read": "ns/enter-read", "dt_e_write": "ns/enter-write", "dt_x_moved": "ns/exit",
			"dt_w_enter": "ns/enter-any", "dt_w_switch": "ns/switch"}[name]; unit != "" && runs > 0 {
			b.ReportMetric(float64((s.Runtime-before[name].Runtime).Nanoseconds())/float64(runs), unit)
		}
	}
}

// BenchmarkMeasure compares what Measure makes of runs and records in the legacy
// tier with the kernel's statistics, for a target that reads and one that is none.
func BenchmarkMeasure(b *testing.B) {
	for _, target := range []bool{true, false} {
		b.Run(map[bool]string{true: "target", false: "stranger"}[target], func(b *testing.B) {
			stats, err := ebpf.EnableStats(unix.BPF_STATS_RUN_TIME)
			if err != nil {
				b.Skip("needs BPF statistics (Linux 5.8): ", err)
			}
			defer stats.Close()
			c := collectorOf(b, Legacy)
			c.reset(b)
			fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
			qt.Assert(b, qt.IsNil(err))
			defer unix.Close(fds[0])
			defer unix.Close(fds[1])
			if target {
				self := uint32(os.Getpid())
				qt.Assert(b, qt.IsNil(c.s.SetTarget(self, Target{Watch: streamAndLog | WatchWait})))
				defer c.s.DeleteTarget(self)
				qt.Assert(b, qt.IsNil(c.s.SeedSocket(self, int32(fds[0]), inodeOf(b, self, fds[0]), false)))
			}
			progs := map[string]*ebpf.Program{}
			for _, p := range allProbes {
				maps.Copy(progs, c.s.progs[p])
			}
			m, err := calibrate([]Way{ByTracepoint, ByRawTracepoint})
			qt.Assert(b, qt.IsNil(err))
			before := programStats(b, progs)
			var estimate float64
			measured := make(chan struct{})
			go func() {
				defer close(measured)
				costs, err := c.s.Measure(b.Context(), time.Second)
				qt.Check(b, qt.IsNil(err))
				for _, p := range costs.Probes {
					estimate += float64(p.Own)
				}
			}()
			buf := make([]byte, 4)
			for busy := true; busy; {
				select {
				case <-measured:
					busy = false
				default:
					unix.Write(fds[1], buf)
					unix.Read(fds[0], buf)
					unix.Write(fds[0], buf)
					unix.Read(fds[1], buf)
				}
			}
			var own float64
			for name, s := range programStats(b, progs) {
				own += float64(s.Runtime-before[name].Runtime) - float64(s.RunCount-before[name].RunCount)*float64(m.empty)
			}
			for b.Loop() {
			}
			b.ReportMetric(estimate/own, "estimate/measured")
		})
	}
}

// BenchmarkEmptyHook is what there is to compare with: programs that do nothing
// on the same two hooks.
func BenchmarkEmptyHook(b *testing.B) {
	openKernel(b, Legacy, Options{})
	stats, err := ebpf.EnableStats(unix.BPF_STATS_RUN_TIME)
	if err != nil {
		b.Skip("needs BPF statistics (Linux 5.8): ", err)
	}
	defer stats.Close()
	p, err := smallest()
	qt.Assert(b, qt.IsNil(err))
	defer p.Close()
	for _, name := range []string{"sys_enter_getppid", "sys_exit_getppid"} {
		l, err := link.Tracepoint("syscalls", name, p, nil)
		qt.Assert(b, qt.IsNil(err))
		defer l.Close()
	}
	for b.Loop() {
		unix.Getppid()
	}
	s, err := p.Stats()
	qt.Assert(b, qt.IsNil(err))
	b.ReportMetric(float64(s.Runtime.Nanoseconds())/float64(s.RunCount), "ns/hook")
}

func programStats(b *testing.B, progs map[string]*ebpf.Program) map[string]ebpf.ProgramStats {
	out := map[string]ebpf.ProgramStats{}
	for name, p := range progs {
		s, err := p.Stats()
		qt.Assert(b, qt.IsNil(err))
		out[name] = *s
	}
	return out
}
