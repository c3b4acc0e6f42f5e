//go:build linux

package bpf

import (
	"slices"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/go-quicktest/qt"
	"golang.org/x/sys/unix"
)

// The legacy programs count their runs as the kernel does.
func TestRunsKernel(t *testing.T) {
	stats, err := ebpf.EnableStats(unix.BPF_STATS_RUN_TIME)
	if err != nil {
		t.Skip("needs BPF statistics (Linux 5.8) and root: ", err)
	}
	defer stats.Close()
	c := collect(t, openKernel(t, Legacy, Options{}))
	for _, p := range allProbes {
		qt.Assert(t, qt.IsNil(c.s.Attach(p)))
	}
	v, peer := c.pair(streamAndLog | WatchProcess | WatchWait)
	for range 20 {
		send(t, peer, "hello")
		v.read(3, 100)
	}
	v.must(order{Do: "exec", Parts: []string{"/bin/true"}})
	for _, p := range allProbes {
		for name, prog := range c.s.progs[p] {
			if name == "dt_e_closerange" || name == "dt_e_clone3" {
				continue // nobody here makes these calls
			}
			entry, counts := c.s.runs[name]
			called := slices.ContainsFunc(c.s.kernel.dispatched[p], func(f found) bool { return f.program == name })
			qt.Check(t, qt.Equals(counts, !called), qt.Commentf("%s", name)) // its dispatcher does
			if !counts {
				continue
			}
			before := runCount(t, prog)
			own, err := c.s.counter(runsMap, entry)
			qt.Assert(t, qt.IsNil(err))
			after := runCount(t, prog)
			// A run is counted by itself first, by the kernel when it is over: one a CPU may be between.
			cpus := uint64(ebpf.MustPossibleCPU())
			qt.Check(t, qt.IsTrue(before <= own && own <= after+cpus), qt.Commentf("%s: the kernel counts %d to %d, the program %d", name, before, after, own))
			qt.Check(t, qt.IsTrue(own > 0 || p == Disk || p == Tapdisk || unmadeBy[name]), qt.Commentf("%s", name))
		}
	}
}

// unmadeBy are the programs whose calls the test does not make, beside those of guests' disks.
var unmadeBy = map[string]bool{
	"dt_e_dup": true, "dt_e_readv": true, "dt_e_writev": true, "dt_e_recvfrom": true, "dt_e_recvmsg": true, "dt_e_sendmsg": true,
	"dt_x_rights": true, "dt_e_accept": true, "dt_x_accept": true, "dt_e_connect": true, "dt_x_connect": true, "dt_e_socket": true,
	"dt_x_socket": true, "dt_e_pair": true, "dt_x_pair": true, "dt_e_shutdown": true, "dt_e_execveat": true, "dt_e_fork": true,
	"dt_w_called": true,
}

func runCount(t *testing.T, p *ebpf.Program) uint64 {
	st, err := p.Stats()
	qt.Assert(t, qt.IsNil(err))
	return st.RunCount
}

// What programs cost is told for those that are attached.
func TestMeasureKernel(t *testing.T) {
	for _, tier := range []Tier{Legacy, Modern} {
		t.Run(tier.String(), func(t *testing.T) {
			c := collect(t, openKernel(t, tier, Options{}))
			costs, err := c.s.Measure(t.Context(), time.Millisecond)
			qt.Assert(t, qt.IsNil(err))
			qt.Check(t, qt.HasLen(costs.Probes, 0)) // nothing is attached
			qt.Assert(t, qt.IsNil(c.s.Attach(Stream)))
			v, peer := c.pair(streamAndLog)
			done := make(chan Costs)
			go func() {
				costs, err := c.s.Measure(t.Context(), 300*time.Millisecond)
				qt.Check(t, qt.IsNil(err))
				done <- costs
			}()
			calls := uint64(0)
			for busy := true; busy; {
				select {
				case costs = <-done:
					busy = false
				default:
					send(t, peer, "hello")
					v.read(3, 100)
					calls++
				}
			}
			qt.Assert(t, qt.HasLen(costs.Probes, 1))
			p := costs.Probes[0]
			t.Logf("%s tier: %+v beside %d reads of a target", tier, costs, calls)
			qt.Check(t, qt.Equals(p.Probe, Stream))
			qt.Check(t, qt.IsTrue(p.Runs > 0))
			qt.Check(t, qt.IsTrue(p.Own > 0 && p.Own < 2*costs.Over*time.Duration(ebpf.MustPossibleCPU())))
			qt.Check(t, qt.Equals(costs.Estimated, tier == Legacy))
			qt.Check(t, qt.IsTrue(costs.Over >= 300*time.Millisecond))
		})
	}
}
