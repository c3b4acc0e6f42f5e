/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * What the disk probe and the tapdisk probe have in common: the processes that are
 * tapdisks and the I/O that these have submitted and not yet taken notice of. The
 * tapdisk probe keeps it; the disk probe says what becomes of it in the block layer.
 */
#ifndef DT_TAP_H
#define DT_TAP_H

#include "dt_maps.h"
#include "dt_tapdisk.h"

/* Vectors of one iocb: blktap merges no more (drivers/io-optimize.c). */
#define DT_VECTORS 8

/* A moment of a process, with how its time went until then. */
struct dt_moment {
	__u64 at;
	__u64 asleep; /* ns in select */
	__u64 queued; /* ns on the run queue */
};

/* A process and something in its memory. */
struct dt_io_key {
	__u64 at;   /* iocb; dt_parts: page of a buffer */
	__u32 tgid;
	__u32 write; /* dt_parts only */
};

/* What becomes of an iocb. */
struct dt_times {
	struct dt_moment submitted; /* io_submit was called */
	struct dt_moment picked;    /* tapdisk was told that it is done */
	__u64 entered;              /* the block layer was given the first piece */
	__u64 entered_queued;
	__u64 issued; /* the driver was given the first */
	__u64 done;   /* the last was done */
	__u64 done_queued;
	__u64 offset;
	__u32 bytes;
	__u32 pieces; /* that the block layer has not done */
	__u32 nth;    /* which io_submit of the process it was */
	__u16 vectors;
	__u8 failed;
	__u8 pad;
};

/* An iocb, from io_submit until it is picked up: from then on it may be used again. */
struct dt_iocb {
	struct dt_times t;
	struct dt_moment begun; /* reads: of the requests that it was made for */
	__u64 part[DT_VECTORS]; /* the keys of its buffers in dt_parts, 0: no guest's */
	__u32 len[DT_VECTORS];
	__u8 write;
	__u8 own; /* it is no guest's; reads: by where its buffers are, which is a guess */
	__u16 pad;
	__u32 pad2;
};

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 8192);
	__type(key, struct dt_io_key);
	__type(value, struct dt_iocb);
} dt_iocbs SEC(".maps");

/* A request that is done, until it is answered. */
struct dt_finished {
	__u64 begun;
	__u64 queued; /* of the process when tapdisk was told that it is done */
	__u64 layer[DT_LAYERS];
	__u64 offset;
	__u32 bytes;
	__u16 ios;
	__u16 flags; /* DT_R_* */
};

/* Powers of two: the programs mask with them. */
#ifdef DT_LEGACY
#define DT_BATCH 32   /* requests done and not answered */
#else
#define DT_BATCH 64
#endif
#define DT_PICKED 64  /* reads picked up in a round */
#define DT_SUBMITS 8  /* calls of io_submit whose ends are remembered */
#define DT_OWNS 8     /* reads of its own that were picked up in a round */

/* A read of tapdisk's own, which others may have waited for. */
struct dt_own_read {
	__u64 offset;
	struct dt_moment begun;
};

struct dt_counts {
	__u64 bytes;
	__u64 failed;
	__u64 merged;
	__u64 unsplit;
};

/* Rings of AIO contexts. Tapdisk has one for itself and one for images with cached reads. */
#define DT_RINGS 4

struct dt_ring {
	__u64 at;      /* address, 0: none */
	__u32 entries; /* that it has, 0: not known */
	__u32 seen;    /* up to which it was looked at */
	__u32 head;    /* and up to which tapdisk has taken them out */
	__u32 untouched; /* it was in no memory when it was looked at first */
};

/*
 * A tapdisk: what it is at. It has one thread that all this is done by; qcow2 images
 * have a second one for io_submit and what comes of it, which keeps to fields of
 * its own as far as that is known.
 */
struct dt_tap {
	struct dt_moment round; /* since its last select was over, or could have been */
	__u64 asleep;
	__u64 queued;
	__u64 dozing; /* since when it has been in select, 0: it is not */
	__u64 dozing_queued;
	__u64 woken; /* when it was woken from that */
	__u64 woken_queued;
	__u64 waiting; /* since when it has waited for a CPU, 0: it has not */
	struct dt_ring ring[DT_RINGS];
	__u32 rings; /* that there were */
	__u8 off;     /* it has no CPU */
	__u8 threads; /* io_submit is another one's business */
	__u16 pad;

	/* the grant copy that it is in */
	__u64 copying; /* since, 0: none */
	__u64 copying_queued;
	__u64 buffer;
	__u32 copied; /* bytes */
	__u32 writes;
	__u64 low; /* where the buffers lie that there were */
	__u64 high;

	/* the io_submit that it is in, and what of it is done */
	__u64 iocbs; /* address of its array, 0: it is in none */
	__u32 n;
	__u32 at;
	__u64 iocb;
	__u64 vector; /* address of the iocb's vectors */
	__u32 vectors;
	__u32 next; /* vector */
	__u64 now;
	struct dt_iocb io; /* in the making */

	/* which iocb the pieces are of that the block layer is given */
	__u64 of;
	__u32 of_left;
	__u32 of_at;

	__u64 returned[DT_SUBMITS];
	__u32 submits;
	__u32 owns; /* that were picked up in this round */
	struct dt_own_read own[DT_OWNS];

	/* completions */
	__u32 taking; /* from which ring */
	__u32 pad4;
	__u64 picking; /* when it was told of them */
	__u64 picking_queued;
	__u32 link; /* vector of done_iocb that is next */
	__u64 done_iocb;
	__u64 picked[DT_PICKED]; /* pages that it has read into for itself, it seems */
	__u32 picked_from;
	__u32 picked_to;

	/* the read that is put together */
	__u64 claim;
	struct dt_times last; /* of its I/O, what was done last */
	struct dt_moment claim_begun;
	__u32 claim_left;
	__u32 claim_ios;

	__u64 answered_at;
	__u64 answered_queued;
	__u32 answered; /* of the batch, how many were then */
	__u32 batch;
	__u32 told; /* of the batch, how many are counted */
	__u32 pad3;
	__u32 requests;
	__u32 pad2;
	struct dt_finished finished[DT_BATCH];
	struct dt_counts counts[2];
};

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 512);
	__type(key, __u32); /* tgid */
	__type(value, struct dt_tap);
} dt_taps SEC(".maps");

static __always_inline __u64 dt_since(__u64 now, __u64 then)
{
	return now > then ? now - then : 0;
}

/* Run-queue time of a process up to now. */
static __always_inline __u64 dt_tap_queued(const struct dt_tap *t, __u64 now)
{
	__u64 waiting = t->waiting;

	return t->queued + (waiting ? dt_since(now, waiting) : 0);
}

static __always_inline struct dt_iocb *dt_iocb(__u32 tgid, __u64 iocb)
{
	struct dt_io_key k = { .at = iocb, .tgid = tgid };

	return bpf_map_lookup_elem(&dt_iocbs, &k);
}

/*
 * The iocb that a piece of I/O is of, which the running process gives to the block
 * layer; 0: it is not known. Pieces come in the order of the iocbs.
 */
static __always_inline __u64 dt_piece_of(__u32 tgid, __u32 bytes, __u64 now)
{
	struct dt_tap *t = bpf_map_lookup_elem(&dt_taps, &tgid);
	struct dt_iocb *b;
	__u64 p = 0;

	if (!t || !t->iocbs)
		return 0;
	if (!t->of_left) {
		if (t->of_at >= t->n || dt_read_user(&p, sizeof(p), t->iocbs + 8ULL * t->of_at))
			return 0;
		t->of_at += 1;
		t->of = p;
		b = dt_iocb(tgid, p);
		if (!b)
			return 0;
		t->of_left = b->t.bytes;
		b->t.entered = now;
		b->t.entered_queued = t->queued;
	} else {
		p = t->of;
		b = dt_iocb(tgid, p);
		if (!b)
			return 0;
	}
	t->of_left = t->of_left > bytes ? t->of_left - bytes : 0;
	__sync_fetch_and_add(&b->t.pieces, 1);
	return p;
}

static __always_inline void dt_piece_issued(__u32 tgid, __u64 iocb, __u64 queued, __u64 now)
{
	struct dt_iocb *b = dt_iocb(tgid, iocb);

	if (b && !b->t.issued && b->t.submitted.at <= queued)
		b->t.issued = now;
}

/* A piece that was queued then is done. */
static __always_inline void dt_piece_done(__u32 tgid, __u64 iocb, __u64 queued, __u32 failed, __u64 now)
{
	struct dt_iocb *b = dt_iocb(tgid, iocb);
	struct dt_tap *t;

	if (!b || b->t.submitted.at > queued) /* it is another one by now */
		return;
	t = bpf_map_lookup_elem(&dt_taps, &tgid);
	if (!t)
		return;
	b->t.done_queued = dt_tap_queued(t, now);
	b->t.failed |= failed;
	b->t.done = now;
	__sync_fetch_and_add(&b->t.pieces, -1);
}

#endif
