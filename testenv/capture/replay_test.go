//go:build linux

package capture

import (
	"math/rand/v2"
	"testing"
	"time"

	"github.com/xenserver/dtagent/correlate"
	"github.com/xenserver/dtagent/probes/event"
	"golang.org/x/sys/unix"
)

// cpuTime returns the process's time on CPUs in ns; others' load is not in it.
func cpuTime() int64 {
	var u unix.Rusage
	if unix.Getrusage(unix.RUSAGE_SELF, &u) != nil {
		return 0
	}
	return u.Utime.Nano() + u.Stime.Nano()
}

// BenchmarkReplay runs the events of a recording through Sorter and Engine over
// and over, each time a minute later.
func BenchmarkReplay(b *testing.B) {
	events := Events(b, "lifecycle-three")
	spans := 0
	random := rand.New(rand.NewPCG(1, 2))
	engine := correlate.New(correlate.Config{Wall: Wall, Emit: func(*correlate.Span) { spans++ }, Rand: random.Uint64})
	const window = 20 * time.Millisecond
	sorter := correlate.NewSorter(window, 1<<16, engine.Handle)
	b.ReportAllocs()
	begin := cpuTime()
	rounds := 0
	var e event.Event
	for b.Loop() {
		rounds++
		shift := event.Time(rounds) * event.Time(time.Minute)
		for i := range events {
			e = events[i]
			e.Time += shift
			e.First += shift
			e.Last += shift
			e.Conn.Born += shift
			sorter.Add(&e)
		}
		now := events[len(events)-1].Time + shift + event.Time(10*time.Second)
		sorter.Advance(now)
		engine.Advance(now)
	}
	cpu := cpuTime() - begin
	b.ReportMetric(float64(cpu)/float64(rounds*len(events)), "cpu-ns/event")
	b.ReportMetric(float64(cpu)/float64(max(spans, 1)), "cpu-ns/span")
	b.ReportMetric(float64(spans)/float64(rounds), "spans/op")
}
