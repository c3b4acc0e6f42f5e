/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* What is counted of a tapdisk's requests. bpf/tapdisk.go has it in Go; a test compares the two. */
#ifndef DT_TAPDISK_H
#define DT_TAPDISK_H

#include "dt_disk.h"

/* The same numbers as event.Layer, which says what each is. */
enum dt_layer {
	DT_L_TOTAL = 0,
	DT_L_RUNQ = 1,
	DT_L_TAPDISK = 2,
	DT_L_METADATA = 3,
	DT_L_COPY = 4,
	DT_L_SUBMIT = 5,
	DT_L_QUEUE = 6,
	DT_L_DEVICE = 7,
	DT_L_PICKUP = 8,
	DT_LAYERS = 9,
};

/* Entries of a tapdisk's histograms: DT_LAYERS of reads, then of writes, then its own I/O. */
#define DT_OWN_IO (2 * DT_LAYERS) /* that is no guest's: from io_submit until it is picked up */
#define DT_HISTS (2 * DT_LAYERS + 1)

struct dt_hist {
	__u64 count;
	__u64 sum_ns;
	__u64 max_ns;
	__u32 bucket[DT_BUCKETS]; /* as those of struct dt_disk_stat */
};

#endif
