/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* What is counted of a disk. bpf/disk.go has it in Go; a test compares the two. */
#ifndef DT_DISK_H
#define DT_DISK_H

enum dt_disk_op {
	DT_READ = 0,
	DT_WRITE = 1,
	DT_FLUSH = 2,
	DT_DISCARD = 3, /* zeroes without data, too */
	DT_DISK_OPS = 4,
};

/* Reads and writes have a second entry: of requests, from their issue until they are done. */
#define DT_DEVICE 4
#define DT_DEVICE_OPS 2
#define DT_DISK_STATS 6

/*
 * Latencies of 256 ns, in 16 buckets for each power of two, so none is wider than
 * a sixteenth of what it holds; the last holds all from 65 s on.
 */
#define DT_UNIT_SHIFT 8
#define DT_SUB_LOG 4
#define DT_SUB 16
#define DT_UNITS_MAX 0xfffffff /* 28 bits */
#define DT_BUCKETS 400

struct dt_disk_stat {
	__u64 begun; /* queued */
	__u64 bytes; /* of those; of a discard what it covers */
	__u64 done;
	__u64 failed; /* of those done */
	__u64 sum_ns; /* of those done, from queued to done */
	__u64 max_ns;
	__u32 bucket[DT_BUCKETS];
};

#endif
