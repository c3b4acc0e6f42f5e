/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Maps that both probes share and what they hold. The loader gives the map of
 * one object to the other, and sets max_entries by its options. All hash maps
 * are preallocated: inserting never asks the allocator in a victim's context.
 */
#ifndef DT_MAPS_H
#define DT_MAPS_H

#include "dt_compat.h"
#include "dt_dispatch.h"

/* dt_target.watch, the same bits as bpf.Watch. */
#define DT_WATCH_STREAM 1
#define DT_WATCH_LOG 2
#define DT_WATCH_PROCESS 4
#define DT_WATCH_WAIT 8

/* dt_target.state */
#define DT_T_CODE 1    /* code is set */
#define DT_T_THREADS 2 /* may have more threads than its leader */
#define DT_T_EXEC 8    /* a thread that is not the leader is in execve: it will take the leader's place */
#define DT_T_GONE 4    /* the leader ended; kept for the ends of the other threads, watch is 0 */

struct dt_target {
	__u64 since; /* ktime; sockets that became known before are not this program's */
	__s32 code;  /* as given to exit_group */
	__u8 component;
	__u8 watch;
	__u8 state;
	__u8 pad;
};

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 16384);
	__type(key, __u32); /* tgid */
	__type(value, struct dt_target);
} dt_targets SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct dt_config);
} dt_config SEC(".maps");

/* Counters of each CPU; the loader makes room for all CPUs. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, DT_PROBES * DT_LOSS_CAUSES);
	__type(key, __u32);
	__type(value, __u64);
} dt_loss SEC(".maps");

/* Number of records that each probe made. */
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, DT_PROBES);
	__type(key, __u32);
	__type(value, __u64);
} dt_seq SEC(".maps");

static __always_inline void dt_lost_by(__u32 probe, __u32 cause)
{
	__u32 k = (bpf_get_smp_processor_id() * DT_PROBES + probe) * DT_LOSS_CAUSES + cause;
	__u64 *n = bpf_map_lookup_elem(&dt_loss, &k);

	if (n)
		*n += 1; /* of this CPU, which programs keep: see dt_dispatch.h */
}

static __always_inline void dt_lost(__u32 cause)
{
	dt_lost_by(DT_PROBE, cause);
}

static __always_inline struct dt_config *dt_conf(void)
{
	__u32 k = 0;

	return bpf_map_lookup_elem(&dt_config, &k);
}

static __always_inline struct dt_target *dt_target(__u32 tgid, __u8 watch)
{
	struct dt_target *t = bpf_map_lookup_elem(&dt_targets, &tgid);

	return t && (t->watch & watch) ? t : 0;
}

/*
 * Sends a record of size bytes whose header's own fields are filled in here.
 * The caller has set kind, flags, component, tgid and tid. rec must have size
 * bytes behind it in the verifier's eyes.
 */
static __always_inline void dt_send_by(__u32 probe, void *ctx, struct dt_hdr *h, __u64 size, const struct dt_config *conf)
{
	__u64 *seq = bpf_map_lookup_elem(&dt_seq, &probe);
	long err;

	if (!seq)
		return;
	h->ktime = bpf_ktime_get_ns();
	h->size = size;
	h->seq = *seq;
	h->cpu = bpf_get_smp_processor_id();
	h->version = DT_WIRE_VERSION;
	err = dt_output(ctx, h, size, conf);
	if (DT_SEQ_MOVES(err))
		*seq += 1;
	if (DT_OUTPUT_LOST(err))
		dt_lost_by(probe, DT_LOSS_OUTPUT);
}

static __always_inline void dt_send(void *ctx, struct dt_hdr *h, __u64 size)
{
	dt_send_by(DT_PROBE, ctx, h, size, dt_conf());
}

#include "dt_thread.h"

#endif
