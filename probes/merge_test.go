//go:build linux

package probes

import (
	"encoding/binary"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"

	"github.com/go-quicktest/qt"

	"github.com/xenserver/dtagent/bpf"
	"github.com/xenserver/dtagent/probes/event"
)

func rawAt(t uint64, size int) []byte {
	b := make([]byte, max(size, sizeHdr))
	binary.LittleEndian.PutUint64(b, t)
	return b
}

// TestMergeOrders reads the buffers of four CPUs in turns, as perf buffers are.
func TestMergeOrders(t *testing.T) {
	g := newMerge()
	queues := make([][]uint64, 4)
	for i := range 4000 {
		cpu := rand.IntN(4)
		queues[cpu] = append(queues[cpu], uint64(i)*1000)
	}
	var out []event.Time
	take := func(limit event.Time) {
		var rec bpf.Record
		for g.take(&rec, limit) {
			out = append(out, timeOf(rec.Raw))
			g.done(&rec)
		}
	}
	for now := uint64(0); now < 5_000_000; now += 100_000 {
		for cpu, q := range queues {
			for len(q) > 0 && q[0] < now {
				g.put(&bpf.Record{CPU: cpu, Raw: rawAt(q[0], 100)})
				q = q[1:]
			}
			queues[cpu] = q
		}
		take(event.Time(now) - 150_000)
	}
	g.close()
	take(0)
	qt.Check(t, qt.HasLen(out, 4000))
	qt.Check(t, qt.IsTrue(slices.IsSorted(out)))
	qt.Check(t, qt.Equals(g.held, 0))
	qt.Check(t, qt.Equals(g.hurried(), 0))
}

// TestMergeBounds: records that nobody may take yet go out when there is no
// room, and all of them once.
func TestMergeBounds(t *testing.T) {
	g := newMerge()
	const n = 50_000
	var wg sync.WaitGroup
	wg.Go(func() {
		for i := range n {
			g.put(&bpf.Record{CPU: i & 1, Raw: rawAt(uint64(i)+1, 4096), Lost: uint64(i)})
		}
		g.close()
	})
	seen, last := 0, event.Time(0)
	var rec bpf.Record
	for seen < n {
		if !g.take(&rec, 0) {
			continue
		}
		qt.Assert(t, qt.IsTrue(timeOf(rec.Raw) > last || rec.CPU != 0))
		qt.Assert(t, qt.Equals(rec.Lost+1, uint64(timeOf(rec.Raw))))
		g.mu.Lock()
		held := g.held
		g.mu.Unlock()
		qt.Assert(t, qt.IsTrue(held <= mergeBytes))
		g.done(&rec)
		seen++
	}
	wg.Wait()
	qt.Check(t, qt.IsTrue(g.hurried() > 0))
}

func TestMergeAllocations(t *testing.T) {
	g := newMerge()
	raws := [][]byte{rawAt(1, 1000), rawAt(1, 17000)}
	var rec bpf.Record
	run := func() {
		for i := range 100 {
			g.put(&bpf.Record{CPU: 1, Raw: raws[i%4/3]})
		}
		for g.take(&rec, 2) {
			g.done(&rec)
		}
	}
	run()
	run()
	if n := testing.AllocsPerRun(100, run); n > 0 {
		t.Errorf("%v allocations", n)
	}
}
