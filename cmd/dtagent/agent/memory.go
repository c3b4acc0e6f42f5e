package agent

import (
	"context"
	"os"
	"runtime/debug"
	"runtime/metrics"
	"time"
)

// The garbage collector lets the heap grow to twice of what is in use. Most of
// the agent's garbage is short-lived, so that a small heap is collected cheaply:
// while little is in use, all that the Go runtime holds stays below memoryFloor.
// What is in use may be more, when the queues to endpoints fill; then the limit
// leaves half of that free again, for a collector that has to keep to less runs
// without end.
const (
	memoryFloor   = 28 << 20 // bytes; with the program file and the ring buffer some 40 MB resident
	memoryBesides = 8 << 20  // bytes of stacks and what the runtime needs itself
	memoryEvery   = time.Second
)

// DefaultMemory is below what the service may take in all (MemoryMax of the unit),
// by what the kernel holds for the agent: buffers, tables, the program file. With
// less than LeastMemory the collector would run without end.
const (
	DefaultMemory = 192 << 20
	LeastMemory   = 32 << 20
)

// memoryLimit is what the Go runtime may hold when live bytes are in use. Above
// most, if it is not 0, the collector has to work harder.
func memoryLimit(live uint64, most int64) int64 {
	limit := int64(max(memoryFloor, live+live/2+memoryBesides))
	if most > 0 {
		limit = min(limit, most)
	}
	return limit
}

// boundMemory keeps the limit until ctx ends. A limit in the environment goes
// before.
func boundMemory(ctx context.Context, most int64) {
	if os.Getenv("GOMEMLIMIT") != "" {
		return
	}
	before := debug.SetMemoryLimit(memoryFloor)
	defer debug.SetMemoryLimit(before)
	t := time.NewTicker(memoryEvery)
	defer t.Stop()
	for {
		debug.SetMemoryLimit(memoryLimit(liveBytes(), most))
		select {
		case <-ctx.Done():
			return
		case <-t.C:
		}
	}
}

// liveBytes is what the last collection found in use.
func liveBytes() uint64 {
	sample := []metrics.Sample{{Name: "/gc/heap/live:bytes"}}
	if metrics.Read(sample); sample[0].Value.Kind() != metrics.KindUint64 {
		return 0
	}
	return sample[0].Value.Uint64()
}
