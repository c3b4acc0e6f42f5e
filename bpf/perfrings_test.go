//go:build linux

package bpf

import (
	"encoding/binary"
	"math/rand/v2"
	"slices"
	"sync/atomic"
	"testing"

	"github.com/go-quicktest/qt"
	"golang.org/x/sys/unix"
)

// fakeRing is a perf buffer as the kernel fills it.
type fakeRing struct {
	perfRing
	made uint64
}

func newFakeRing(size int) *fakeRing {
	return &fakeRing{perfRing: perfRing{meta: new(unix.PerfEventMmapPage), data: make([]byte, size)}}
}

// put writes bytes of one perf event; false if they do not fit.
func (f *fakeRing) put(kind uint32, payload []byte) bool {
	size := (perfRaw + len(payload) + 7) &^ 7
	if f.made+uint64(size)-atomic.LoadUint64(&f.meta.Data_tail) > uint64(len(f.data)) {
		return false
	}
	b := make([]byte, perfHeader, size)
	binary.NativeEndian.PutUint32(b, kind)
	binary.NativeEndian.PutUint16(b[6:], uint16(size))
	b = binary.NativeEndian.AppendUint32(b, uint32(len(payload)))
	b = append(b, payload...)
	for i, c := range b[:cap(b)] {
		f.data[(f.made+uint64(i))&f.mask()] = c
	}
	f.made += uint64(size)
	atomic.StoreUint64(&f.meta.Data_head, f.made)
	return true
}

// recordAt is a record that says when it was made and which it is.
func recordAt(time uint64, n, size int) []byte {
	b := make([]byte, max(size, hdrSize+8))
	binary.NativeEndian.PutUint64(b, time)
	binary.NativeEndian.PutUint64(b[hdrSize:], uint64(n))
	return b
}

func fakeRings(cpus, size int) (*perfRings, []*fakeRing) {
	b, all := new(perfRings), make([]*fakeRing, cpus)
	for i := range all {
		all[i] = newFakeRing(size)
		b.rings = append(b.rings, &all[i].perfRing)
	}
	return b, all
}

// drain takes what may go at that time.
func (b *perfRings) drain(now uint64) (times []uint64) {
	b.lookAt(now)
	for {
		raw, ok := b.take()
		if !ok {
			return times
		}
		times = append(times, binary.NativeEndian.Uint64(raw))
	}
}

// TestPerfRingsOrder: a reader that comes seldom finds seconds of several CPUs'
// records, whose clock says which goes first. Each arrives once, whole, in that
// order, wherever the buffers wrap.
func TestPerfRingsOrder(t *testing.T) {
	const cpus, ms = 4, 1_000_000
	for seed := range uint64(50) {
		random := rand.New(rand.NewPCG(seed, 1))
		b, rings := fakeRings(cpus, 1<<16)
		type made struct {
			time uint64
			n    int
		}
		var want []made
		var got []uint64
		now, n, cpu := uint64(1e9), 0, 0
		for range 200 {
			// what is made until the reader comes: a thread that moves, and others
			for range random.IntN(60) {
				now += random.Uint64N(3 * ms)
				if random.IntN(3) == 0 {
					cpu = random.IntN(cpus)
				}
				if random.IntN(10) == 0 {
					rings[cpu].put(unix.PERF_RECORD_LOST, make([]byte, 12))
				}
				raw := recordAt(now, n, random.IntN(900))
				if !rings[cpu].put(unix.PERF_RECORD_SAMPLE, raw) {
					continue
				}
				want = append(want, made{now, n})
				n++
			}
			b.lookAt(now)
			for {
				raw, ok := b.take()
				if !ok {
					break
				}
				w := want[len(got)]
				qt.Assert(t, qt.Equals(binary.NativeEndian.Uint64(raw), w.time), qt.Commentf("seed %d, record %d", seed, w.n))
				qt.Assert(t, qt.Equals(binary.NativeEndian.Uint64(raw[hdrSize:]), uint64(w.n)))
				got = append(got, w.time)
			}
			if early, _ := b.order(); early == 0 && len(got) < len(want) {
				qt.Assert(t, qt.IsTrue(want[len(got)].time > now-uint64(settleTime)), qt.Commentf("a record waits for too long"))
			}
		}
		b.end = errFlushed
		got = append(got, b.drain(now)...)
		qt.Check(t, qt.HasLen(got, len(want)))
		_, late := b.order()
		qt.Check(t, qt.Equals(late, 0))
		for _, r := range rings {
			qt.Check(t, qt.Equals(atomic.LoadUint64(&r.meta.Data_tail), r.made))
		}
	}
}

// TestPerfRingsInFlight: a record that is written a while after its time, as by
// a processor that was taken away, still finds its place; one that comes too
// late is counted.
func TestPerfRingsInFlight(t *testing.T) {
	const ms = 1_000_000
	b, rings := fakeRings(2, 1<<12)
	start := uint64(1e9)
	at := func(f *fakeRing, ms_ uint64) {
		qt.Assert(t, qt.IsTrue(f.put(unix.PERF_RECORD_SAMPLE, recordAt(start+ms_*ms, 0, 0))))
	}
	at(rings[1], 2)
	at(rings[1], 3)
	qt.Check(t, qt.HasLen(b.drain(start+15*ms), 0))
	at(rings[0], 1) // 14 ms late
	qt.Check(t, qt.DeepEquals(b.drain(start+22*ms), []uint64{start + 1*ms, start + 2*ms}))
	at(rings[0], 2) // at the same time as one that has gone
	qt.Check(t, qt.DeepEquals(b.drain(start+25*ms), []uint64{start + 2*ms, start + 3*ms}))
	at(rings[0], 2)
	qt.Check(t, qt.DeepEquals(b.drain(start+26*ms), []uint64{start + 2*ms}))
	early, late := b.order()
	qt.Check(t, qt.Equals(early, 0))
	qt.Check(t, qt.Equals(late, 1))
}

// TestPerfRingsFull: a buffer that is half full does not wait, for then records
// are lost; it goes on being read in the order of the clock.
func TestPerfRingsFull(t *testing.T) {
	b, rings := fakeRings(2, 1<<12)
	n := 0
	for ; rings[0].put(unix.PERF_RECORD_SAMPLE, recordAt(uint64(1000+2*n), n, 100)); n++ {
	}
	for i := range 4 {
		qt.Assert(t, qt.IsTrue(rings[1].put(unix.PERF_RECORD_SAMPLE, recordAt(uint64(1001+2*i), n, 100))))
	}
	got := b.drain(1000 + uint64(settleTime) - 1)
	qt.Check(t, qt.IsTrue(slices.IsSorted(got)))
	qt.Check(t, qt.IsTrue(len(got) > n/2 && len(got) < n))
	early, late := b.order()
	qt.Check(t, qt.Equals(early, uint64(len(got))))
	qt.Check(t, qt.Equals(late, 0))
	got = append(got, b.drain(2000+uint64(settleTime))...)
	qt.Check(t, qt.HasLen(got, n+4))
	qt.Check(t, qt.IsTrue(slices.IsSorted(got)))
}

func TestPerfRingsAllocateNothing(t *testing.T) {
	b, rings := fakeRings(4, 1<<16)
	raw := recordAt(1, 0, 700)
	run := func() {
		for _, r := range rings {
			for range 50 {
				r.put(unix.PERF_RECORD_SAMPLE, raw)
			}
		}
		b.lookAt(1e9)
		for {
			if _, ok := b.take(); !ok {
				return
			}
		}
	}
	puts := testing.AllocsPerRun(10, func() {
		for range 200 {
			newFakeRing(1<<12).put(unix.PERF_RECORD_SAMPLE, raw)
		}
	})
	run()
	if n := testing.AllocsPerRun(100, run); n > puts { // those of put
		t.Errorf("%v allocations", n)
	}
}

// FuzzPerfRings fills the buffers with what the kernel would not write: nothing
// panics, nothing is read twice or from elsewhere, and all is given back.
func FuzzPerfRings(f *testing.F) {
	r := newFakeRing(1 << 12)
	for i := range 5 {
		r.put(unix.PERF_RECORD_SAMPLE, recordAt(uint64(i), i, 100*i))
	}
	f.Add(r.data[:r.made], uint16(0))
	f.Add(r.data[:r.made], uint16(4090/8))
	f.Add([]byte{9, 0, 0, 0, 0, 0, 12, 0, 255, 255, 255, 255}, uint16(1))
	f.Add([]byte{9, 0, 0, 0, 0, 0, 0, 0}, uint16(1))
	f.Fuzz(func(t *testing.T, data []byte, at uint16) {
		b, rings := fakeRings(2, 1<<12)
		for i, f := range rings {
			half := data[i*(len(data)/2):][:len(data)/2]
			half = half[:min(len(half), len(f.data))]
			f.tail = uint64(at) * 8
			for i, c := range half {
				f.data[(f.tail+uint64(i))&f.mask()] = c
			}
			f.made = f.tail + uint64(len(half))
			f.meta.Data_head, f.meta.Data_tail = f.made, f.tail
		}
		b.end = errFlushed
		b.lookAt(0)
		total := 0
		for {
			raw, ok := b.take()
			if !ok {
				break
			}
			total += len(raw)
		}
		if total > len(data) {
			t.Fatalf("%d bytes of %d", total, len(data))
		}
		for _, f := range rings {
			if f.has || f.meta.Data_tail != f.made {
				t.Fatalf("left at %d of %d", f.meta.Data_tail, f.made)
			}
		}
	})
}

func BenchmarkPerfRings(bench *testing.B) {
	b, rings := fakeRings(16, 1<<18)
	raw := recordAt(1, 0, 300)
	for bench.Loop() {
		for _, r := range rings {
			r.put(unix.PERF_RECORD_SAMPLE, raw)
		}
		b.lookAt(1e9)
		for range rings {
			b.take()
		}
	}
	bench.ReportMetric(float64(bench.Elapsed().Nanoseconds())/float64(bench.N*len(rings)), "ns/record")
}
