package observer

import (
	"time"
)

// Limits bound what one endpoint of one Observer may hold and how long it may
// take. Zero values mean the defaults.
type Limits struct {
	QueueSpans    int           // 10,000, as max-spans of xapi.conf
	QueueBytes    int           // of the spans kept in the queue, about; 16 MiB
	TotalBytes    int           // of the spans kept in all queues of the Set, about; 64 MiB
	BatchSpans    int           // most spans in one Export; 512
	FlushEvery    time.Duration // longest time that a span waits for others; 1 s
	ExportTimeout time.Duration // of one Export; 15 s
	DrainTimeout  time.Duration // to flush the queue of an endpoint no longer named; 5 s
	CloseTimeout  time.Duration // at Close, to flush what stays on disk for the next agent anyway; 300 ms
	CloseGrace    time.Duration // at Close, beyond these two, until an exporter that has not ended is taken to hang, as on a file system that does; 1 s
	Linger        time.Duration // how late a span may come that ended before its Observer was given up; 3 s, < 0: not at all
	BackoffMin    time.Duration // pause after a first failure, doubled each time; 200 ms
	BackoffMax    time.Duration // 30 s
	RetryAfterMax time.Duration // longest pause that a receiver may ask for; 2 min
}

func (l Limits) withDefaults() Limits {
	ints := func(v *int, def int) {
		if *v <= 0 {
			*v = def
		}
	}
	times := func(v *time.Duration, def time.Duration) {
		if *v <= 0 {
			*v = def
		}
	}
	ints(&l.QueueSpans, 10_000)
	ints(&l.QueueBytes, 16<<20)
	ints(&l.TotalBytes, 64<<20)
	ints(&l.BatchSpans, 512)
	l.BatchSpans = min(l.BatchSpans, l.QueueSpans)
	times(&l.FlushEvery, time.Second)
	times(&l.ExportTimeout, 15*time.Second)
	times(&l.DrainTimeout, 5*time.Second)
	times(&l.CloseTimeout, 300*time.Millisecond)
	times(&l.CloseGrace, time.Second)
	if l.Linger == 0 {
		l.Linger = 3 * time.Second // correlate holds spans for 2 s
	}
	times(&l.BackoffMin, 200*time.Millisecond)
	times(&l.BackoffMax, 30*time.Second)
	times(&l.RetryAfterMax, 2*time.Minute)
	return l
}

// maxLeaving bounds the endpoints that are flushed in the background after
// their Observers gave them up. Beyond it those that have had the longest time
// are told to end at once.
const maxLeaving = 256
