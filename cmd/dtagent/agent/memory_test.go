package agent

import (
	"context"
	"runtime"
	"runtime/debug"
	"testing"

	"github.com/go-quicktest/qt"
)

// The limit is never so near to what is in use that the collector cannot keep it.
func TestMemoryLimit(t *testing.T) {
	for _, live := range []uint64{0, 1 << 20, 13 << 20, 14 << 20, 64 << 20, 1 << 30} {
		limit := memoryLimit(live, 0)
		qt.Check(t, qt.IsTrue(limit >= memoryFloor))
		qt.Check(t, qt.IsTrue(uint64(limit) >= live+live/2+memoryBesides))
	}
	qt.Check(t, qt.Equals(memoryLimit(0, 0), memoryFloor))
	qt.Check(t, qt.Equals(memoryLimit(1<<30, DefaultMemory), DefaultMemory))
	qt.Check(t, qt.Equals(memoryLimit(0, LeastMemory), memoryFloor))
}

func TestBoundMemory(t *testing.T) {
	runtime.GC()
	qt.Check(t, qt.IsTrue(liveBytes() > 0))
	before := debug.SetMemoryLimit(-1)
	ctx, stop := context.WithCancel(context.Background())
	stop()
	t.Setenv("GOMEMLIMIT", "")
	boundMemory(ctx, 0) // sets it at least once, and takes it back
	qt.Check(t, qt.Equals(debug.SetMemoryLimit(-1), before))
}
