//go:build linux

package guestio

import (
	"time"

	"github.com/xenserver/dtagent/bpf"
)

// histSince takes from now what before was already. The maximum of the step is the end
// of its highest bucket, as far as it can be known.
func histSince(now, before *bpf.Hist) bpf.Hist {
	d := *now
	d.Count -= before.Count
	d.SumNs -= before.SumNs
	d.MaxNs = 0
	for i := range d.Bucket {
		if d.Bucket[i] -= before.Bucket[i]; d.Bucket[i] > 0 {
			_, to := bpf.DiskBucket(i)
			d.MaxNs = min(uint64(to), now.MaxNs)
			if i == len(d.Bucket)-1 {
				d.MaxNs = now.MaxNs
			}
		}
	}
	return d
}

// quantile returns the middle of the bucket in which the part q of the latencies ends.
func quantile(h *bpf.Hist, q float64) time.Duration {
	return bucketQuantile(h.Bucket[:], q, time.Duration(h.MaxNs))
}

func bucketQuantile(bucket []uint32, q float64, longest time.Duration) time.Duration {
	var n uint64 // in the buckets: a completion on another CPU may be half counted
	for _, c := range bucket {
		n += uint64(c)
	}
	rank, seen := uint64(float64(n)*q+1-1e-9), uint64(0)
	for i, c := range bucket {
		if seen += uint64(c); seen >= rank && c > 0 {
			from, to := bpf.DiskBucket(i)
			return min((from+to)/2, longest)
		}
	}
	return longest
}
