package agent

import (
	"context"
	"fmt"
	"os"
	"runtime"
	"runtime/metrics"
	"time"

	"golang.org/x/sys/unix"

	"github.com/xenserver/dtagent/cmd/dtagent/control"
)

// cost is what this process takes. What cannot be read is 0.
func cost() control.Process {
	p := control.Process{Goroutines: runtime.NumGoroutine()}
	if b, err := os.ReadFile("/proc/self/statm"); err == nil {
		var size, resident uint64
		if _, err := fmt.Sscan(string(b), &size, &resident); err == nil {
			p.RSSBytes = resident * uint64(os.Getpagesize())
		}
	}
	var ru unix.Rusage
	if unix.Getrusage(unix.RUSAGE_SELF, &ru) == nil {
		p.CPUSeconds = (time.Duration(ru.Utime.Nano()) + time.Duration(ru.Stime.Nano())).Seconds()
	}
	sample := []metrics.Sample{{Name: "/memory/classes/heap/objects:bytes"}}
	if metrics.Read(sample); sample[0].Value.Kind() == metrics.KindUint64 {
		p.HeapBytes = sample[0].Value.Uint64()
	}
	return p
}

// measure watches for d what the programs in the kernel cost.
func (a *agent) measure(ctx context.Context, d time.Duration) (control.Cost, error) {
	costs, err := a.manager.Measure(ctx, d)
	if err != nil {
		return control.Cost{}, err
	}
	c := control.Cost{Seconds: costs.Over.Seconds(), CPUs: runtime.NumCPU(), Estimated: costs.Estimated, Probes: []control.ProbeCost{}}
	for _, p := range costs.Probes {
		c.Probes = append(c.Probes, control.ProbeCost{Probe: p.Probe.String(), Runs: p.Runs, Own: uint64(p.Own), Entry: uint64(p.Entry)})
	}
	return c, nil
}
