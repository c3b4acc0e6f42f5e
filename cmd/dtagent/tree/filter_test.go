package tree

import (
	"testing"
	"time"

	"github.com/go-quicktest/qt"
)

func TestFilter(t *testing.T) {
	spans := shutdown()
	spans[2].Tags["xs.xapi.task.id"] = "R:8ae06e1ea3d1"
	spans[3].Tags["xs.vm.uuid"] = "11111111-2222-3333-4444-555555555555"
	spans[3].Name = "Async.VM.shutdown"
	tr := Build(spans)[0]
	for _, c := range []struct {
		f    Filter
		want bool
	}{
		{Filter{}, true},
		{Filter{Method: "VM.shutdown"}, true},
		{Filter{Method: "Async.VM.shutdown"}, true},
		{Filter{Method: "VM.*"}, true},
		{Filter{Method: "VM.start"}, false},
		{Filter{Task: "R:8ae06e1ea3d1"}, true},
		{Filter{Task: "OpaqueRef:8ae06e1e-a3d1-1234-1234-123412341234"}, true},
		{Filter{Task: "R:000000000000"}, false},
		{Filter{VM: "11111111-2222-3333-4444-555555555555"}, true},
		{Filter{VM: "21111111-2222-3333-4444-555555555555"}, false},
		{Filter{TraceID: "3100A3"}, true},
		{Filter{TraceID: "4100"}, false},
		{Filter{MinDuration: 130 * time.Millisecond}, true},
		{Filter{MinDuration: 131 * time.Millisecond}, false},
		{Filter{Method: "VM.shutdown", VM: "none"}, false},
	} {
		qt.Check(t, qt.Equals(c.f.Match(tr), c.want), qt.Commentf("%+v", c.f))
	}
	qt.Assert(t, qt.IsNotNil(Filter{Method: "["}.Check()))
	qt.Assert(t, qt.IsNil(Filter{Method: "VM.*"}.Check()))
}
