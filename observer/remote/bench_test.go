package remote

import (
	"net/http"
	"testing"
	"time"

	"github.com/xenserver/dtagent/observer/export"
	"github.com/xenserver/dtagent/observer/otlp"
	"github.com/xenserver/dtagent/observer/zipkin"
)

// BenchmarkExport takes batches of 512 spans over and sends them, with the queue
// on disk and everything but the network.
func BenchmarkExport(b *testing.B) {
	for _, enc := range []Encoder{&zipkin.Encoder{}, &otlp.Encoder{}} {
		b.Run(enc.Name(), func(b *testing.B) {
			var wire int64
			e, err := Open(Options{Endpoint: "http://h/", Encoder: enc, Dir: b.TempDir(), Interval: time.Millisecond, Ledger: &export.Ledger{}, BackoffMin: time.Millisecond,
				Transport: roundTrip(func(body []byte, r *http.Request) (*http.Response, error) {
					wire += int64(len(body))
					return reply(202), nil
				})})
			if err != nil {
				b.Fatal(err)
			}
			batch := records(1, 512)
			b.ReportAllocs()
			n := 0
			for b.Loop() {
				if err := e.Export(b.Context(), batch); err != nil {
					b.Fatal(err)
				}
				n += len(batch)
			}
			e.Flush(b.Context())
			b.StopTimer()
			if err := e.Close(); err != nil {
				b.Fatal(err)
			}
			b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(n), "ns/span")
			b.ReportMetric(float64(wire)/float64(n), "wireB/span")
		})
	}
}
