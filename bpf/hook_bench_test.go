//go:build linux

package bpf

import (
	"os"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"github.com/go-quicktest/qt"
	"golang.org/x/sys/unix"
)

// BenchmarkHooks measures what a pair of system calls on a socket costs its
// process. ns/op is the wall time of one read and one write; ns/enter and
// ns/exit are the programs' own time by the kernel's statistics, of which some
// 30 ns are the statistics themselves; records/op is what leaves the kernel.
func BenchmarkHooks(b *testing.B) {
	for _, tier := range []Tier{0, Legacy, Modern} {
		name := "off"
		if tier != 0 {
			name = tier.String()
		}
		b.Run(name, func(b *testing.B) {
			for _, w := range []struct {
				name         string
				target, seed bool
				read, write  int
			}{
				{"stranger", false, false, 4, 4},
				{"target-other-fd", true, false, 4, 4},
				{"target-small", true, true, 4, 4}, // the worst case: each turn sends a record
				{"target-header", true, true, 4, 200},
				{"target-large", true, true, 4096, 4096},
			} {
				b.Run(w.name, func(b *testing.B) { benchHooks(b, tier, w.target, w.seed, w.read, w.write) })
			}
		})
	}
}

func benchHooks(b *testing.B, tier Tier, target, seed bool, read, write int) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	qt.Assert(b, qt.IsNil(err))
	defer unix.Close(fds[0])
	defer unix.Close(fds[1])
	self := uint32(os.Getpid())
	var progs map[string]*ebpf.Program
	var records int
	if tier != 0 {
		stats, err := ebpf.EnableStats(unix.BPF_STATS_RUN_TIME)
		if err != nil {
			b.Skip("needs BPF statistics (Linux 5.8): ", err)
		}
		defer stats.Close()
		c := collectorOf(b, tier)
		c.reset(b)
		progs = c.s.progs[Stream]
		if target {
			qt.Assert(b, qt.IsNil(c.s.SetTarget(self, Target{Watch: streamAndLog})))
			defer c.s.DeleteTarget(self)
		}
		if seed {
			qt.Assert(b, qt.IsNil(c.s.SeedSocket(self, int32(fds[0]), inodeOf(b, self, fds[0]), false)))
		}
		defer func() {
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
		if unit := map[string]string{"dt_e_read": "ns/enter-read", "dt_e_write": "ns/enter-write", "dt_x_moved": "ns/exit"}[name]; unit != "" && runs > 0 {
			b.ReportMetric(float64((s.Runtime-before[name].Runtime).Nanoseconds())/float64(runs), unit)
		}
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
