package verdict

import (
	"math"
	"math/bits"
	"time"
)

// The shape of a Hist, that of bpf.DiskBucket: a bucket below the first octave is 256
// ns wide, above a sixteenth of an octave.
const (
	unitShift = 8
	subLog    = 4
	sub       = 1 << subLog
	unitsMax  = 1<<28 - 1

	// Buckets is how many a Hist can have.
	Buckets = (28-subLog)*sub + sub
)

// Bucket returns the shortest latency that bucket i is of and the shortest that is
// too long for it. The last holds all that are longer.
func Bucket(i int) (from, to time.Duration) { return edge(i), edge(i + 1) }

func edge(i int) time.Duration {
	if i < sub {
		return time.Duration(i) << unitShift
	}
	octave, part := i/sub-1, i%sub
	return time.Duration(sub+part) << (octave + unitShift)
}

// BucketOf returns the bucket of a latency.
func BucketOf(d time.Duration) int {
	v := min(uint64(max(d, 0))>>unitShift, unitsMax)
	if v < sub {
		return int(v)
	}
	log := bits.Len64(v) - 1
	return (log-subLog+1)*sub + int(v>>(log-subLog))&(sub-1)
}

// Hist is a histogram of latencies.
type Hist struct {
	Count   uint64
	Sum     time.Duration
	Max     time.Duration // the longest, or the upper end of its bucket
	Buckets []uint32      // how many are in each, see Bucket; those that are not there are empty
}

// Observe adds a latency.
func (h *Hist) Observe(d time.Duration) {
	h.Count++
	h.Sum += d
	h.Max = max(h.Max, d)
	i := BucketOf(d)
	if i >= len(h.Buckets) {
		h.Buckets = append(h.Buckets, make([]uint32, i+1-len(h.Buckets))...)
	}
	h.Buckets[i]++
}

// Add adds what another counted.
func (h *Hist) Add(o *Hist) {
	h.Count += o.Count
	h.Sum += o.Sum
	h.Max = max(h.Max, o.Max)
	if len(o.Buckets) > len(h.Buckets) {
		h.Buckets = append(h.Buckets, make([]uint32, len(o.Buckets)-len(h.Buckets))...)
	}
	for i, n := range o.Buckets {
		h.Buckets[i] += n
	}
}

// Mean is 0 of nothing.
func (h *Hist) Mean() time.Duration {
	if h.Count == 0 {
		return 0
	}
	return h.Sum / time.Duration(h.Count)
}

// Quantile returns the middle of the bucket in which the part q of the latencies
// ends; 0 of nothing.
func (h *Hist) Quantile(q float64) time.Duration {
	var n uint64
	for _, c := range h.Buckets {
		n += uint64(c)
	}
	rank, seen := max(uint64(math.Ceil(float64(n)*q)), 1), uint64(0)
	for i, c := range h.Buckets {
		if seen += uint64(c); c > 0 && seen >= rank {
			return min(middle(i), max(h.Max, edge(i)))
		}
	}
	return h.Max
}

func middle(i int) time.Duration {
	from, to := Bucket(i)
	return (from + to) / 2
}

// over returns how many latencies lie in buckets that begin at d or later, and about
// how long they are in all.
func (h *Hist) over(d time.Duration) (n uint64, sum time.Duration) {
	for i := BucketOf(d); i < len(h.Buckets); i++ {
		if edge(i) < d {
			continue
		}
		n += uint64(h.Buckets[i])
		sum += time.Duration(h.Buckets[i]) * min(middle(i), max(h.Max, edge(i)))
	}
	return n, sum
}

// deviation is the standard deviation, about.
func (h *Hist) deviation() float64 {
	var n, sum, squares float64
	for i, c := range h.Buckets {
		if c > 0 {
			m := float64(middle(i))
			n += float64(c)
			sum += float64(c) * m
			squares += float64(c) * m * m
		}
	}
	if n < 2 {
		return 0
	}
	mean := sum / n
	return math.Sqrt(max(squares/n-mean*mean, 0))
}
