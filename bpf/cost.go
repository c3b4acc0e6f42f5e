//go:build linux

package bpf

import (
	"context"
	"errors"
	"fmt"
	"io"
	"runtime"
	"slices"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"golang.org/x/sys/unix"
)

// Cost is what the attached programs of a probe took, on all CPUs.
type Cost struct {
	Probe Probe
	Runs  uint64
	Own   time.Duration // in the programs
	Entry time.Duration // on the kernel's way to them and back
}

// Costs is what Measure saw.
type Costs struct {
	Over      time.Duration // how long was measured
	Estimated bool          // Own is runs and records times what they usually take: the kernel has no statistics, or the legacy tier is loaded
	Probes    []Cost        // of those attached
}

// What a run of a program of the legacy tier and a record take on average, in system
// calls that do nothing, which Load times where it runs: of BenchmarkMeasure on Linux
// 6.18, 18 and 340 ns where such a call took 90.
const (
	runCost    = 0.2
	recordCost = 3.8
)

// Measure watches for d what the attached programs cost. Meanwhile, in the modern
// tier, the kernel keeps statistics of all its programs (Linux 5.8), which adds
// some 30 ns to each of their runs. Asking for that needs CAP_SYS_ADMIN; another
// process may do it, see KeepStats. It also attaches an empty program, to a system
// call that nobody makes much, to see what the way to one takes.
func (s *Session) Measure(ctx context.Context, d time.Duration) (c Costs, err error) {
	var noStats error
	if s.tier == Modern {
		stats, err := ebpf.EnableStats(unix.BPF_STATS_RUN_TIME)
		if noStats = err; err == nil {
			defer stats.Close()
		}
	}
	m, err := calibrate(s.ways())
	if err != nil {
		return c, err
	}
	if noStats != nil && m.empty == 0 { // nobody else has them kept, either
		return c, fmt.Errorf("statistics of programs: %w", noStats)
	}
	before, err := s.spent()
	if err != nil {
		return c, err
	}
	start := time.Now()
	select {
	case <-ctx.Done():
		return c, ctx.Err()
	case <-time.After(d):
	}
	after, err := s.spent()
	if err != nil {
		return c, err
	}
	c.Over, c.Estimated = time.Since(start), s.tier == Legacy
	for _, p := range allProbes {
		if len(s.attachedTo(p)) == 0 {
			continue
		}
		cost := Cost{Probe: p}
		var records uint64
		var own time.Duration
		for name, now := range after[p] {
			was := before[p][name]
			runs := now.runs - was.runs
			cost.Runs += runs
			cost.Entry += time.Duration(runs) * m.entry[now.by]
			own += now.own - was.own - time.Duration(runs)*m.empty
			records += now.records - was.records
		}
		if s.tier == Legacy {
			own = time.Duration((float64(cost.Runs)*runCost + float64(records)*recordCost) * float64(s.call))
		}
		cost.Own = max(own, 0)
		c.Probes = append(c.Probes, cost)
	}
	return c, nil
}

// KeepStats has the kernel keep statistics of all its programs until the Closer is
// closed, for who runs Measure without the right to ask for them. It needs Linux 5.8
// and CAP_SYS_ADMIN.
func KeepStats() (io.Closer, error) { return ebpf.EnableStats(unix.BPF_STATS_RUN_TIME) }

// spending is what a program has taken since Load; records is that of its probe,
// told with one of them.
type spending struct {
	by      Way
	runs    uint64
	own     time.Duration
	records uint64
}

// spent asks the kernel, or the counters of the legacy tier, for the programs of
// attached probes.
func (s *Session) spent() (map[Probe]map[string]spending, error) {
	out := map[Probe]map[string]spending{}
	for _, p := range allProbes {
		attached := s.attachedTo(p)
		out[p] = map[string]spending{}
		for i, a := range attached {
			sp := spending{by: a.by}
			if i == 0 {
				n, err := s.counter("dt_seq", uint32(p-1))
				if err != nil {
					return nil, err
				}
				sp.records = n
			}
			if s.tier == Legacy {
				s.mu.Lock()
				entry := s.runs[a.program]
				s.mu.Unlock()
				n, err := s.counter(runsMap, entry)
				if err != nil {
					return nil, err
				}
				sp.runs = n
			} else {
				s.mu.Lock()
				prog := s.progs[p][a.program]
				s.mu.Unlock()
				st, err := prog.Stats()
				if err != nil {
					return nil, fmt.Errorf("statistics of %s: %w", a.program, err)
				}
				sp.runs, sp.own = st.RunCount, st.Runtime
			}
			if old, ok := out[p][a.program]; ok { // on several hooks
				sp.records += old.records
			}
			out[p][a.program] = sp
		}
	}
	return out, nil
}

// counter sums up an entry of a per-CPU array.
func (s *Session) counter(name string, entry uint32) (n uint64, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return 0, errClosed
	}
	var perCPU []uint64
	if err := s.maps[name].Lookup(entry, &perCPU); err != nil {
		return 0, fmt.Errorf("map %s: %w", name, err)
	}
	for _, v := range perCPU {
		n += v
	}
	return n, nil
}

// prices are what things cost on this machine.
type prices struct {
	call  time.Duration         // a system call that does nothing
	entry map[Way]time.Duration // the way to an empty program
	empty time.Duration         // what the kernel's statistics say that such a program takes, where they are kept
}

// ways returns those by which something is attached, and that of tracepoints.
func (s *Session) ways() []Way {
	out := []Way{ByTracepoint}
	for _, p := range allProbes {
		for _, a := range s.attachedTo(p) {
			if !slices.Contains(out, a.by) {
				out = append(out, a.by)
			}
		}
	}
	return out
}

// calibrate finds the prices. Other work on the machine makes things look dearer,
// so each is the least that was seen, with and without in turn.
func calibrate(ways []Way) (m prices, err error) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	m.call, m.entry = callTime(), map[Way]time.Duration{}
	with := map[Way]time.Duration{}
	for range 3 {
		for _, by := range ways {
			t, stats, err := hookedTime(by)
			if err != nil {
				return m, fmt.Errorf("calibrate: %w", err)
			}
			m.empty = stats
			if with[by] == 0 || t < with[by] {
				with[by] = t
			}
			m.call = min(m.call, callTime())
		}
	}
	for by, t := range with {
		m.entry[by] = max(t-m.call-m.empty, m.call/8) // so little it is nowhere
	}
	return m, nil
}

// hookedTime is callTime while an empty program is on the way of the call, and what
// the kernel's statistics say of that.
func hookedTime(by Way) (t, stats time.Duration, err error) {
	spec := &ebpf.ProgramSpec{Name: "dt_try", Type: ebpf.TracePoint, License: "GPL", Instructions: asm.Instructions{asm.Mov.Imm(asm.R0, 0), asm.Return()}}
	f := found{hook{group: "syscalls", name: "sys_enter_getppid"}, way{by: by}}
	switch {
	case by == ByRawTracepoint:
		f.name, spec.Type = "sys_enter", ebpf.RawTracepoint
	case f.function():
		f.symbol, spec.Type = "__x64_sys_getppid", ebpf.Kprobe
	}
	p, err := ebpf.NewProgram(spec)
	if err != nil {
		return 0, 0, err
	}
	l, err := f.attach(p)
	if err != nil {
		return 0, 0, errors.Join(err, p.Close())
	}
	t = callTime()
	if st, err := p.Stats(); err == nil && st.RunCount > 0 {
		stats = st.Runtime / time.Duration(st.RunCount)
	}
	return t, stats, errors.Join(l.Close(), p.Close())
}

// callTime returns the least time that a system call took that does nothing.
func callTime() time.Duration {
	const rounds, calls = 9, 1000
	least := time.Duration(1<<63 - 1)
	for range rounds {
		start := time.Now()
		for range calls {
			unix.Getppid()
		}
		least = min(least, time.Since(start))
	}
	return least / calls
}
