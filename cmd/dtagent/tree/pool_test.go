package tree

import (
	"strings"
	"testing"

	"github.com/go-quicktest/qt"

	"github.com/xenserver/dtagent/cmd/dtagent/zipkin"
)

// forwarded is a call that h1 passes on to h2, whose clock is 5 s ahead and
// whose agent did not know the trace if other is set.
func forwarded(other bool) []zipkin.Span {
	spans := []zipkin.Span{
		span("a", "", "xapi", "SERVER", "VM.start", 0, 100_000, "xs.host.uuid", "h1"),
		span("b", "a", "xapi", "CLIENT", "VM.start", 10_000, 80_000, "xs.host.uuid", "h1"),
		span("c", "b", "xapi", "SERVER", "VM.start", 5_012_000, 70_000, "xs.host.uuid", "h2"),
		span("d", "c", "xapi", "PRODUCER", "send", 5_020_000, 10_000, "xs.host.uuid", "h2"),
	}
	if other {
		for i := 2; i < 4; i++ {
			spans[i].TraceID = strings.Repeat("9", 32)
		}
	}
	return spans
}

func TestPassedOn(t *testing.T) {
	for _, other := range []bool{false, true} {
		traces := Build(forwarded(other))
		qt.Assert(t, qt.HasLen(traces, 1))
		tr := traces[0]
		qt.Assert(t, qt.HasLen(tr.Roots, 1))
		qt.Check(t, qt.Equals(tr.Spans, 4))
		qt.Check(t, qt.Equals(len(tr.Joined) == 1, other))
		qt.Check(t, qt.Equals(tr.Total().Milliseconds(), 100))
		server := tr.Roots[0].Children[0].Children[0]
		qt.Check(t, qt.Equals(server.ID, "000000000000000c"))
		qt.Check(t, qt.Equals(server.Skew, 4_997_000)) // 5 ms on each way
		qt.Check(t, qt.Equals(server.Timestamp-tr.Start, 15_000))
		qt.Check(t, qt.Equals(server.Children[0].Timestamp-tr.Start, 23_000))
		var b strings.Builder
		qt.Assert(t, qt.IsNil(Print(&b, tr, Style{})))
		qt.Check(t, qt.StringContains(b.String(), "its host's clock is +4.997 s off"))
	}
}

// TestPassedOnForged: what files claim can be anything.
func TestPassedOnForged(t *testing.T) {
	spans := forwarded(true)
	twin := spans[1]
	twin.TraceID = strings.Repeat("8", 32)
	qt.Check(t, qt.HasLen(Build(append(spans, twin)), 3)) // which of both it was is not known: no join

	ring := forwarded(true) // both traces hang below each other
	ring[0].ParentID, ring[0].Kind = ring[3].ID, "SERVER"
	ring[3].Kind = "CLIENT"
	total := 0
	for _, tr := range Build(ring) {
		tr.All(func(*Node) { total++ })
	}
	qt.Check(t, qt.Equals(total, 4))
}

// TestPassedOnUnseen: nobody watched the host that passed the call on, but its
// toolstack traced it.
func TestPassedOnUnseen(t *testing.T) {
	spans := forwarded(false)
	native := spans[1]
	native.ID = "00000000000000ff"
	spans[1] = native
	spans[2].Tags[remoteSpan] = native.ID
	traces := Build(spans)
	qt.Assert(t, qt.HasLen(traces, 1))
	qt.Assert(t, qt.HasLen(traces[0].Roots, 1))
	qt.Check(t, qt.Equals(traces[0].Roots[0].Children[0].Children[0].ID, spans[2].ID))
}
