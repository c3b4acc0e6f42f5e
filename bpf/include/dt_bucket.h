/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
#ifndef DT_BUCKET_H
#define DT_BUCKET_H

#include "dt_compat.h"
#include "dt_disk.h"

/* b is negative where x has more bits; the compiler must not see that it is a comparison. */
#define DT_LOG_STEP(shift)         \
	do {                       \
		DT_KEEP(b);        \
		b = b >> 63 << (shift); \
		DT_KEEP(b);        \
		x >>= b;           \
		log += b;          \
	} while (0)

/* The bucket of a latency: linear in the first DT_SUB, then DT_SUB for each power of two. */
static __always_inline __u32 dt_bucket(__u64 ns)
{
	__u64 v = ns >> DT_UNIT_SHIFT, x, b;
	__u32 log;

	if (v > DT_UNITS_MAX)
		v = DT_UNITS_MAX;
	if (v < DT_SUB)
		return v;
	x = v; /* without branches: each would double what the verifier has to look at */
	log = 0;
	b = 0xffffULL - x;
	DT_LOG_STEP(4);
	b = 0xffULL - x;
	DT_LOG_STEP(3);
	b = 0xfULL - x;
	DT_LOG_STEP(2);
	b = 0x3ULL - x;
	DT_LOG_STEP(1);
	b = 0x1ULL - x;
	DT_LOG_STEP(0);
	return (log - DT_SUB_LOG + 1) * DT_SUB + ((v >> (log - DT_SUB_LOG)) & (DT_SUB - 1));
}

#endif
