package tree

import (
	"testing"

	"github.com/go-quicktest/qt"

	"github.com/xenserver/dtagent/cmd/dtagent/zipkin"
)

// A span that hangs under one of the toolstack's own is shown there when that is
// in the files, too, and else where it was in dtagent's own tree.
func TestUnderNative(t *testing.T) {
	ours := []zipkin.Span{
		span("a", "", "xapi", "SERVER", "VM.start", 0, 100_000),
		span("c", "e", "xapi", "PRODUCER", "send", 20_000, 70_000, "dt.local.span_id", "000000000000000a"),
		span("d", "c", "xenopsd", "CONSUMER", "VM.start", 30_000, 50_000),
	}
	theirs := span("e", "f", "xapi", "INTERNAL", "Xapi_xenops.start", 10_000, 85_000)

	alone := Build(ours)
	qt.Assert(t, qt.HasLen(alone, 1))
	qt.Assert(t, qt.HasLen(alone[0].Roots, 1))
	qt.Check(t, qt.Equals(alone[0].Roots[0].Children[0].Name, "send"))

	both := Build(append(ours, theirs))
	qt.Assert(t, qt.HasLen(both, 1))
	qt.Assert(t, qt.HasLen(both[0].Roots, 2))
	qt.Check(t, qt.HasLen(both[0].Roots[0].Children, 0))
	send := both[0].Roots[1].Children[0]
	qt.Check(t, qt.Equals(send.Name, "send"))
	qt.Check(t, qt.Equals(send.Children[0].Name, "VM.start"))
}
