package e2e

import (
	"context"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/go-quicktest/qt"

	"github.com/xenserver/dtagent/testenv"
	"github.com/xenserver/dtagent/testenv/client"
)

// BenchmarkCalls makes XAPI calls at a rate of 2,000 a second, and as fast as
// it goes, with nothing attached and with all probes, and says what was lost and
// what the agent took. Its numbers are custom metrics; ns/op means nothing here.
func BenchmarkCalls(b *testing.B) {
	needRoot(b)
	for _, rate := range []float64{2000, 0} {
		name := "rate=most"
		if rate > 0 {
			name = fmt.Sprintf("rate=%.0f", rate)
		}
		for _, on := range []bool{false, true} {
			b.Run(fmt.Sprintf("%s/agent=%v", name, on), func(b *testing.B) { load(b, rate, on) })
		}
	}
}

func load(b *testing.B, rate float64, on bool) {
	const length = 5 * time.Second
	l := newLab(b, testenv.Options{NoTruth: true})
	if on {
		l.observe()
	}
	c := l.dial("unix", client.Options{Shape: client.Node, KeepAlive: true})
	before := l.status()
	var r client.LoadResult
	for b.Loop() {
		var err error
		r, err = c.Load(context.Background(), client.LoadOptions{Connections: 8, Rate: rate, Duration: length})
		qt.Assert(b, qt.IsNil(err))
	}
	b.ReportMetric(0, "ns/op")
	b.ReportMetric(r.Rate, "calls/s")
	b.ReportMetric(float64(r.P50.Microseconds()), "p50-µs")
	b.ReportMetric(float64(r.P99.Microseconds()), "p99-µs")
	if !on {
		return
	}
	time.Sleep(2 * time.Second) // for the spans held back; asking for them would cost the agent more than they do
	took := l.status().Process.CPUSeconds - before.Process.CPUSeconds
	qt.Assert(b, qt.IsNil(l.agent.Settled(context.Background(), 30*time.Second)))
	after := l.status()
	lost := after.Lost()
	calls := 0
	for _, s := range l.spans() {
		if s.Name == "VM.get_by_name_label" {
			calls++
		}
	}
	spans := after.Engine.Spans - before.Engine.Spans
	b.ReportMetric(float64(lost), "lost-events")
	b.ReportMetric(float64(r.Calls-calls), "missing-spans")
	b.ReportMetric(float64(after.Engine.Events-before.Engine.Events)/float64(r.Calls), "events/call")
	b.ReportMetric(took*1e6/float64(spans), "CPU-µs/span")
	b.ReportMetric(float64(after.Process.RSSBytes)/(1<<20), "RSS-MiB")
	if lost > 0 || r.Calls != calls {
		var causes []string
		for _, loss := range after.Losses {
			if loss.Count > 0 {
				causes = append(causes, fmt.Sprintf("%s: %s: %d", loss.Probe, loss.Cause, loss.Count))
			}
		}
		fmt.Fprintf(os.Stderr, "lost: %s\n", strings.Join(causes, ", "))
	}
}
