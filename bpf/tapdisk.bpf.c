//go:build ignore

// SPDX-License-Identifier: GPL-2.0-only
/*
 * The tapdisk probe: where the time of each request of a guest's disk goes. Seen is
 * what tapdisk asks the kernel for, and nothing in tapdisk itself is looked at:
 *
 *   select              a round of its loop ends and the next begins
 *   GRANT_COPY          a request's data come from the guest, or go there: which
 *                       pages they are in says which I/O it was made
 *   io_submit           the I/O of a round
 *   read, 8 bytes       some I/O is done (eventfd): which says the AIO ring
 *   EVTCHN_NOTIFY       what was done in this round is answered
 *
 * Histograms stay in maps; a record is made of requests that are slow, or samples.
 * All is done in the thread of tapdisk itself, so nothing is counted by two CPUs.
 */
#define DT_PROBE DT_TAPDISK
#include "dt_bucket.h"
#include "dt_bio.h"
#include "dt_func.h"
#include "dt_tap.h"

char LICENSE[] SEC("license") = "GPL";

/* include/uapi/xen/gntdev.h and evtchn.h */
#define GRANT_COPY 0x00104708
#define EVTCHN_NOTIFY 0x00044504
#define GNTCOPY_source_gref 1
#define GNTCOPY_dest_gref 2

struct dt_grant_copy {
	__u32 count;
	__u32 pad;
	__u64 segments;
};

struct dt_segment {
	__u64 source;
	__u64 dest;
	__u16 len;
	__u16 flags;
	__s16 status;
	__u16 pad;
};

/* Pieces of a grant copy: a request has no more segments (BLKIF_MAX_SEGMENTS_PER_REQUEST). */
#define DT_SEGMENTS 11

/* Bytes of a request's buffer. */
#define DT_BUFFER (DT_SEGMENTS * 4096)

/* include/uapi/linux/aio_abi.h */
#define IOCB_CMD_PREAD 0
#define IOCB_CMD_PWRITE 1
#define IOCB_CMD_PREADV 7
#define IOCB_CMD_PWRITEV 8

struct dt_aio {
	__u64 data;
	__u32 key;
	__u32 rw_flags;
	__u16 opcode;
	__s16 prio;
	__u32 fd;
	__u64 buf;
	__u64 nbytes;
	__u64 offset;
};

/* fs/aio.c: struct aio_ring. Its entries begin where it ends. */
struct dt_aio_ring {
	__u32 id;
	__u32 nr;
	__u32 head;
	__u32 tail;
	__u32 magic;
	__u32 compat;
	__u32 incompat;
	__u32 header;
};

#define AIO_RING_MAGIC 0xa10a10a1

struct dt_aio_event {
	__u64 data;
	__u64 obj;
	__s64 res;
	__s64 res2;
};

/*
 * How often one program goes round. Where it does not suffice it goes on with the next.
 * What is done each time is a function of its own, of which the verifier of Linux 5.6
 * and later needs to look at one run only, if it is not static and has no pointers.
 * Older ones look at all, so there are few.
 */
#ifdef DT_LEGACY
#define DT_STEPS 20
#define DT_SUBMIT 48
#define DT_ALL 56 /* where nothing else is to be done, and nothing may be left */
#define DT_CLEANS 8
#define DT_ANSWERS 11
#define DT_FOR(i, n) _Pragma("unroll") for (int i = 0; i < (n); i++)
#define DT_FN static __noinline
#define DT_STEP(name)                                         \
	static __noinline int name(void *ctx, struct dt_tap *t)
#define DT_CALL(name, ctx, t) name(ctx, t)
#else
#define DT_STEPS 512
#define DT_SUBMIT DT_STEPS
#define DT_ALL DT_STEPS
#define DT_CLEANS DT_PICKED
#define DT_ANSWERS DT_BATCH
#define DT_FOR(i, n) for (int i = 0; i < (n); i++)
#define DT_FN __noinline
#define DT_STEP(name)                                                      \
	static __always_inline int name##_of(void *ctx, struct dt_tap *t); \
	__noinline int name(__u32 tgid)                                    \
	{                                                                  \
		struct dt_tap *t = bpf_map_lookup_elem(&dt_taps, &tgid);   \
                                                                           \
		return t ? name##_of(0, t) : 0;                            \
	}                                                                  \
	static __always_inline int name##_of(void *ctx, struct dt_tap *t)
#define DT_CALL(name, ctx, t) name(bpf_get_current_pid_tgid() >> 32)
#endif

/* Parts of a request's buffer where an I/O of it may begin, in pages. */
#define DT_PAGES DT_SEGMENTS

/* Buffers of requests, by the page that they begin in. */
struct dt_part {
	struct dt_moment begun; /* of the request; reads: known with times */
	struct dt_times t;      /* reads: what has become of what reads into it, once it was picked up */
	__u64 copy;             /* writes: what fetching the data took */
	__u32 bytes;            /* writes: of the request; reads: that are read into it */
	__s32 left;             /* writes: bytes that are not written */
	__u32 ios;
	__u32 failed;
};

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 8192);
	__type(key, struct dt_io_key);
	__type(value, struct dt_part);
} dt_parts SEC(".maps");

/* What user space wants of a tapdisk: struct TapdiskConfig. */
struct dt_tap_conf {
	__u64 slow[2]; /* ns; 0: none is told for that */
	__u32 sample;  /* one of so many is told; 0: none */
	__u32 slot;    /* in dt_tap_hists */
	__u32 nodev;   /* its files are on no block device */
	__u32 pad;
	struct dt_hist hists[0]; /* only named here so that the object's BTF holds it */
};

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 512);
	__type(key, __u32); /* tgid */
	__type(value, struct dt_tap_conf);
} dt_tap_confs SEC(".maps");

struct dt_hist_array {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, DT_HISTS);
	__uint(key_size, sizeof(__u32));
	__uint(value_size, sizeof(struct dt_hist));
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY_OF_MAPS);
	__uint(max_entries, 512);
	__type(key, __u32); /* slot */
	__array(values, struct dt_hist_array);
} dt_tap_hists SEC(".maps");

#define DT_PAGE(address) ((address) & ~4095ULL)

static __always_inline struct dt_tap *dt_tap(void)
{
	__u32 tgid = bpf_get_current_pid_tgid() >> 32;

	return bpf_map_lookup_elem(&dt_taps, &tgid);
}

static __always_inline struct dt_tap_conf *dt_tap_conf(void)
{
	__u32 tgid = bpf_get_current_pid_tgid() >> 32;

	return bpf_map_lookup_elem(&dt_tap_confs, &tgid);
}

static __always_inline struct dt_part *dt_part(__u64 page, __u32 write)
{
	struct dt_io_key k = { .at = page, .tgid = bpf_get_current_pid_tgid() >> 32, .write = write };

	return bpf_map_lookup_elem(&dt_parts, &k);
}

static __always_inline void dt_unpart(__u64 page, __u32 write)
{
	struct dt_io_key k = { .at = page, .tgid = bpf_get_current_pid_tgid() >> 32, .write = write };

	bpf_map_delete_elem(&dt_parts, &k);
}

static __always_inline void dt_forget(__u64 iocb)
{
	struct dt_io_key k = { .at = iocb, .tgid = bpf_get_current_pid_tgid() >> 32 };

	bpf_map_delete_elem(&dt_iocbs, &k);
}

static __always_inline struct dt_iocb *dt_own(__u64 iocb)
{
	return dt_iocb(bpf_get_current_pid_tgid() >> 32, iocb);
}

/* ---- what is counted ---- */

DT_FN int dt_t_hist(__u32 slot, __u32 what, __u64 ns)
{
	void *all = bpf_map_lookup_elem(&dt_tap_hists, &slot);
	struct dt_hist *h;
	__u32 i = dt_bucket(ns);

	if (!all)
		return 0;
	h = bpf_map_lookup_elem(all, &what);
	if (!h)
		return 0;
	h->count += 1;
	h->sum_ns += ns;
	if (ns > h->max_ns)
		h->max_ns = ns;
	DT_KEEP(i);
	if (i < DT_BUCKETS)
		h->bucket[i] += 1;
	return 0;
}

/* Tells of a request, which is answered now. */
static __noinline int dt_t_tell(void *ctx, const struct dt_finished *f)
{
	struct dt_config *conf = dt_conf();
	struct dt_request r = {};
	__u64 id = bpf_get_current_pid_tgid();

	r.h.kind = DT_REQUEST;
	r.h.component = DT_C_TAPDISK;
	r.h.tgid = id >> 32;
	r.h.tid = id;
	r.first = f->begun;
	r.last = f->begun + f->layer[DT_L_TOTAL];
	__builtin_memcpy(r.layer, f->layer, sizeof(r.layer));
	r.offset = f->offset;
	r.bytes = f->bytes;
	r.ios = f->ios;
	r.flags = f->flags;
	dt_send_by(DT_TAPDISK, ctx, &r.h, sizeof(r), conf);
	return 0;
}

/* Counts the request that is t->told; it is answered now. */
DT_STEP(dt_t_answer)
{
	struct dt_finished *f = &t->finished[t->told & (DT_BATCH - 1)];
	struct dt_tap_conf *c = dt_tap_conf();
	__u32 write = f->flags & DT_R_WRITE ? 1 : 0;
	__u64 total, rest, slow;
	__u32 slot;

	if (t->told >= t->answered || !c)
		return 0;
	t->told += 1;
	total = dt_since(t->answered_at, f->begun);
	f->layer[DT_L_RUNQ] += dt_since(t->answered_queued, f->queued);
	f->layer[DT_L_TOTAL] = total;
	rest = f->layer[DT_L_RUNQ] + f->layer[DT_L_METADATA] + f->layer[DT_L_COPY] + f->layer[DT_L_SUBMIT] + f->layer[DT_L_QUEUE] +
	       f->layer[DT_L_DEVICE] + f->layer[DT_L_PICKUP];
	f->layer[DT_L_TAPDISK] = dt_since(total, rest);

	t->counts[write].bytes += f->bytes;
	if (f->flags & DT_R_FAILED)
		t->counts[write].failed += 1;
	if (f->flags & DT_R_MERGED)
		t->counts[write].merged += 1;
	if (f->flags & DT_R_UNSPLIT)
		t->counts[write].unsplit += 1;
	slot = c->slot;
#pragma unroll
	for (int l = 0; l < DT_LAYERS; l++)
		dt_t_hist(slot, write * DT_LAYERS + l, f->layer[l]);

	slow = c->slow[write];
	t->requests += 1;
	if (slow && total >= slow) {
		f->flags |= DT_R_SLOW;
		dt_t_tell(ctx, f);
	} else if (c->sample && t->requests % c->sample == 0) {
		dt_t_tell(ctx, f);
	}
	return 1;
}

static __always_inline void dt_answer(void *ctx, struct dt_tap *t, __u64 now)
{
	if (!t->batch)
		return;
	if (t->told >= t->answered) { /* else there was more than one program can count */
		t->answered = t->batch;
		t->answered_at = now;
		t->answered_queued = t->queued;
	}
	DT_FOR(i, DT_ANSWERS)
		if (!DT_CALL(dt_t_answer, ctx, t))
			break;
	if (t->told < t->batch)
		return;
	t->told = 0;
	t->answered = 0;
	t->batch = 0;
}

/* What is known of a request whose data have come or gone. */
struct dt_ended {
	struct dt_moment begun;
	__u64 copy;
	__u32 bytes;
	__u32 ios;
	__u32 write;
};

/*
 * Puts a request that is done among those to be answered. b is what became of its I/O
 * that was done last, 0 if none was needed.
 */
static __always_inline void dt_finish(struct dt_tap *t, const struct dt_times *b, const struct dt_ended *e, __u32 failed)
{
	struct dt_tap_conf *c = dt_tap_conf();
	__u64 from, queued, runq = 0;
	struct dt_finished *f;
	__u32 i = t->batch;

	if (i >= DT_BATCH || !c) {
		dt_lost(DT_LOSS_ANSWERS);
		return;
	}
	t->batch = i + 1;
	f = &t->finished[i & (DT_BATCH - 1)];
	__builtin_memset(f, 0, sizeof(*f));
	f->begun = e->begun.at;
	f->bytes = e->bytes;
	f->ios = e->ios;
	f->layer[DT_L_COPY] = e->copy;
	f->queued = e->begun.queued;
	if (e->write)
		f->flags |= DT_R_WRITE;
	if (failed)
		f->flags |= DT_R_FAILED;
	if (!b)
		return;
	f->offset = b->offset;
	if (b->vectors > 1 && b->bytes > e->bytes)
		f->flags |= DT_R_MERGED;
	f->layer[DT_L_METADATA] = dt_since(b->submitted.asleep, e->begun.asleep);
	runq = dt_since(b->submitted.queued, e->begun.queued);
	if (b->done && !b->pieces) {
		__u64 issued = b->issued;

		if (issued < b->entered || issued > b->done)
			issued = b->entered;
		queued = dt_since(b->entered_queued, b->submitted.queued);
		f->layer[DT_L_SUBMIT] = dt_since(b->entered, b->submitted.at + queued);
		f->layer[DT_L_QUEUE] = issued - b->entered;
		f->layer[DT_L_DEVICE] = b->done - issued;
		runq += queued;
		queued = dt_since(b->picked.queued, b->done_queued);
		f->layer[DT_L_PICKUP] = dt_since(b->picked.at, b->done + queued);
		runq += queued;
	} else {
		from = t->submits - b->nth < DT_SUBMITS ? t->returned[b->nth & (DT_SUBMITS - 1)] : 0;
		if (from < b->submitted.at)
			from = b->submitted.at;
		f->layer[DT_L_SUBMIT] = from - b->submitted.at;
		f->layer[c->nodev ? DT_L_DEVICE : DT_L_QUEUE] = dt_since(b->picked.at, from);
		f->flags |= DT_R_UNSPLIT;
	}
	f->queued = b->picked.queued;
	f->layer[DT_L_RUNQ] = runq;
}

/* What is seen first of a tapdisk may be within a round. */
static __always_inline void dt_known(struct dt_tap *t, __u64 now)
{
	if (!t->round.at)
		t->round.at = now;
}

/* ---- some I/O is done ---- */

/* A vector of a write that is done. */
static __always_inline void dt_written(struct dt_tap *t, struct dt_iocb *b, __u32 i)
{
	__u64 page = b->part[i];
	struct dt_ended e = {};
	struct dt_part *p;

	if (!page)
		return;
	p = dt_part(page, 1);
	if (!p)
		return;
	p->left -= b->len[i];
	p->ios += 1;
	p->failed |= b->t.failed;
	if (p->left > 0)
		return;
	e.begun = p->begun;
	e.copy = p->copy;
	e.bytes = p->bytes;
	e.ios = p->ios;
	e.write = 1;
	dt_finish(t, &b->t, &e, p->failed);
	dt_unpart(page, 1);
}

/* A vector of a read that is done: the request that its data are for is to be seen when they are copied. */
static __always_inline void dt_was_read(struct dt_tap *t, struct dt_iocb *b, __u32 i)
{
	__u64 page = b->part[i];
	struct dt_part *p = dt_part(page, 0);

	if (!p)
		return;
	p->t = b->t;
	p->begun = b->begun;
	if (b->own && t->picked_to - t->picked_from < DT_PICKED) {
		t->picked[t->picked_to & (DT_PICKED - 1)] = page;
		t->picked_to += 1;
	}
}

static __always_inline void dt_count_own(const struct dt_times *b)
{
	struct dt_tap_conf *c = dt_tap_conf();

	if (c)
		dt_t_hist(c->slot, DT_OWN_IO, dt_since(b->picked.at, b->submitted.at));
}

/* Takes note of one more vector of what the AIO ring says is done; 0: there is none. */
DT_STEP(dt_t_done)
{
	struct dt_ring *r = &t->ring[t->taking & (DT_RINGS - 1)];
	struct dt_aio_event ev = {};
	struct dt_iocb *b;
	__u32 i;

	(void)ctx;
	if (!t->done_iocb) {
		if (t->taking >= DT_RINGS)
			return 0;
		if (!r->at || r->seen == r->head) {
			t->taking += 1;
			return 1;
		}
		if (dt_read_user(&ev, sizeof(ev), r->at + sizeof(struct dt_aio_ring) + r->seen * sizeof(ev)))
			dt_lost(DT_LOSS_FAULT);
		r->seen = r->seen + 1 < r->entries ? r->seen + 1 : 0;
		b = dt_own(ev.obj);
		if (!b) /* submitted before it was looked at */
			return 1;
		b->t.picked.at = t->picking;
		b->t.picked.asleep = t->asleep;
		b->t.picked.queued = t->picking_queued;
		if (ev.res < 0)
			b->t.failed = 1;
		if (b->own && b->write)
			dt_count_own(&b->t);
		if (b->own && !b->write) {
			i = t->owns & (DT_OWNS - 1);
			t->own[i].offset = b->t.offset;
			t->own[i].begun = b->begun;
			t->owns += 1;
		}
		t->done_iocb = ev.obj;
		t->link = 0;
	} else {
		b = dt_own(t->done_iocb);
		if (!b) {
			t->done_iocb = 0;
			return 1;
		}
	}
	i = t->link & (DT_VECTORS - 1);
	if (b->write)
		dt_written(t, b, i);
	else
		dt_was_read(t, b, i);
	t->link = i + 1;
	if (i + 1 >= b->t.vectors) {
		dt_forget(t->done_iocb);
		t->done_iocb = 0;
	}
	return 1;
}

/* How far tapdisk has come in an AIO ring. */
static __always_inline void dt_look(struct dt_ring *r)
{
	struct dt_aio_ring ring = {};

	if (!r->at)
		return;
	if (dt_read_user(&ring, sizeof(ring), r->at) || ring.magic != AIO_RING_MAGIC || ring.header != sizeof(ring) || ring.head >= ring.nr) {
		if (r->entries)
			dt_lost(DT_LOSS_FAULT);
		else
			r->untouched = 1; /* tapdisk has not looked at it yet either */
		return;
	}
	if (r->entries != ring.nr) { /* the first time: what is taken out already is nobody's */
		r->entries = ring.nr;
		r->seen = r->untouched ? 0 : ring.head;
	}
	r->head = ring.head;
}

/* How far tapdisk has come in all its AIO rings. */
static __always_inline void dt_look_all(struct dt_tap *t)
{
#pragma unroll
	for (int i = 0; i < DT_RINGS; i++)
		dt_look(&t->ring[i]);
	t->taking = 0;
}

/*
 * Takes note of what tapdisk has taken out of its AIO rings since they were looked at
 * last. That is done before all that may come of it: before an iocb is used again
 * in particular.
 */
#define DT_TAKE_UP(ctx, t, steps)                         \
	do {                                              \
		dt_look_all(t);                           \
		DT_FOR(i, steps)                          \
			if (!DT_CALL(dt_t_done, ctx, t))  \
				break;                    \
	} while (0)

/* The ring of a context that is used now. */
static __always_inline void dt_ring(struct dt_tap *t, __u64 at)
{
	struct dt_ring *r;

#pragma unroll
	for (int i = 0; i < DT_RINGS; i++)
		if (t->ring[i].at == at)
			return;
	r = &t->ring[t->rings & (DT_RINGS - 1)]; /* of more the oldest goes */
	t->rings += 1;
	r->at = at;
	r->entries = 0;
	r->seen = 0;
	r->head = 0;
	r->untouched = 0;
	dt_look(r);
}

static __always_inline int dt_pickup(void)
{
	struct dt_tap *t = dt_tap();

	if (t) {
		t->picking = bpf_ktime_get_ns();
		t->picking_queued = t->queued;
	}
	return 0;
}

/* ---- io_submit ---- */

/* The write whose data are in the buffer: it may begin some pages before. */
static __noinline int dt_t_source(struct dt_tap *t, __u64 buffer)
{
	__u64 page = DT_PAGE(buffer);
	struct dt_part *p;

	t->claim = 0;
	DT_FOR(i, DT_PAGES) {
		p = dt_part(page, 1);
		if (p) {
			if (buffer < page + 4096 + p->bytes)
				t->claim = page;
			return 0;
		}
		page -= 4096;
	}
	return 0;
}

/* Bytes behind a VHD's bitmap that it is of: a block and itself. */
#define DT_BLOCK ((2 << 20) + 4096)

/*
 * When a read was begun: in this round, if it did not wait for what says where its
 * data are. That was read just before, from just before them.
 */
static __always_inline void dt_begun(struct dt_tap *t, __u64 offset)
{
	t->io.begun = t->round;
#pragma unroll
	for (__u32 i = 0; i < DT_OWNS; i++)
		if (i < t->owns && offset - t->own[i].offset < DT_BLOCK)
			t->io.begun = t->own[i].begun;
}

/* The next iocb of the call; 0: there is none. */
static __noinline int dt_t_iocb(struct dt_tap *t)
{
	struct dt_aio io = {};
	__u64 p = 0;
	__u32 n;

	if (t->at >= t->n)
		return 0;
	if (dt_read_user(&p, sizeof(p), t->iocbs + 8ULL * t->at) || dt_read_user(&io, sizeof(io), p)) {
		dt_lost(DT_LOSS_FAULT);
		t->at = t->n;
		return 0;
	}
	t->at += 1;
	t->next = 0;
	t->vectors = 0;
	t->iocb = p;
	__builtin_memset(&t->io, 0, sizeof(t->io));
	t->io.t.submitted.at = t->now;
	t->io.t.submitted.asleep = t->asleep;
	t->io.t.submitted.queued = t->queued;
	t->io.t.offset = io.offset;
	t->io.t.nth = t->submits;
	dt_begun(t, io.offset);
	if (io.opcode == IOCB_CMD_PREAD || io.opcode == IOCB_CMD_PWRITE) {
		t->vectors = 1;
		t->vector = p + __builtin_offsetof(struct dt_aio, buf); /* and nbytes: as a vector has them */
	} else if (io.opcode == IOCB_CMD_PREADV || io.opcode == IOCB_CMD_PWRITEV) {
		n = io.nbytes;
		if (n > DT_VECTORS) {
			dt_lost(DT_LOSS_IOVEC);
			n = DT_VECTORS;
		}
		t->vectors = n;
		t->vector = io.buf;
	}
	t->io.write = io.opcode == IOCB_CMD_PWRITE || io.opcode == IOCB_CMD_PWRITEV;
	t->io.own = 1;
	t->io.t.vectors = t->vectors;
	return 1;
}

/* Takes note of the next vector; 0: there is none. */
DT_STEP(dt_t_vector)
{
	struct dt_io_key k = { .tgid = bpf_get_current_pid_tgid() >> 32 };
	struct dt_iovec v = {};
	__u32 i;

	(void)ctx;
	if (t->next >= t->vectors && !dt_t_iocb(t))
		return 0;
	if (!t->vectors) /* a sync, say */
		return 1;
	i = t->next & (DT_VECTORS - 1);
	if (dt_read_user(&v, sizeof(v), t->vector + 16ULL * i))
		dt_lost(DT_LOSS_FAULT);
	t->io.len[i] = v.len;
	t->io.t.bytes += v.len;
	if (t->io.write) {
		dt_t_source(t, v.base);
		t->io.part[i] = t->claim;
		if (t->claim)
			t->io.own = 0;
	} else {
		struct dt_part p = { .bytes = v.len };

		k.at = DT_PAGE(v.base);
		t->io.part[i] = k.at;
		if (bpf_map_update_elem(&dt_parts, &k, &p, BPF_ANY))
			dt_lost(DT_LOSS_PARTS);
		if (v.base >= t->low && v.base < t->high)
			t->io.own = 0;
	}
	t->next += 1;
	if (t->next >= t->vectors) {
		k.at = t->iocb;
		if (bpf_map_update_elem(&dt_iocbs, &k, &t->io, BPF_ANY))
			dt_lost(DT_LOSS_IOCBS);
	}
	return 1;
}

/* What was done before: the iocbs that it was done of are used again now. */
static __always_inline int dt_before_submit(void *ctx)
{
	struct dt_tap *t = dt_tap();

	if (t)
		DT_TAKE_UP(ctx, t, DT_ALL);
	return 0;
}

static __always_inline int dt_submit(void *ctx, __u64 ring, __u32 n, __u64 iocbs)
{
	struct dt_tap *t = dt_tap();

	if (!t)
		return 0;
	t->now = bpf_ktime_get_ns();
	dt_known(t, t->now);
	dt_ring(t, ring);
	if ((__u32)bpf_get_current_pid_tgid() != bpf_get_current_pid_tgid() >> 32)
		t->threads = 1;
	t->iocbs = iocbs;
	t->n = n;
	t->at = 0;
	t->next = 0;
	t->vectors = 0;
	t->of_at = 0;
	t->of_left = 0;
	DT_FOR(i, DT_SUBMIT)
		if (!DT_CALL(dt_t_vector, ctx, t))
			break;
	return 0;
}

static __always_inline int dt_submitted(void)
{
	struct dt_tap *t = dt_tap();

	if (!t || !t->iocbs)
		return 0;
	if (t->at < t->n || t->next < t->vectors)
		dt_lost(DT_LOSS_MANY);
	t->returned[t->submits & (DT_SUBMITS - 1)] = bpf_ktime_get_ns();
	t->submits += 1;
	t->iocbs = 0;
	return 0;
}

/* ---- grant copies ---- */

/* Takes the I/O that the next bytes of a read come from; 0: there are no more. */
DT_STEP(dt_t_claim)
{
	struct dt_part *p;
	__u64 page = DT_PAGE(t->claim);
	__u32 len;

	(void)ctx;
	if (!t->claim_left)
		return 0;
	p = dt_part(page, 0);
	if (!p)
		return 0;
	len = p->bytes;
	if (p->t.picked.at && (p->t.picked.at > t->last.picked.at || p->t.done > t->last.done)) {
		t->last = p->t;
		t->claim_begun = p->begun;
	}
	dt_unpart(page, 0);
	t->claim_ios += 1;
	if (!len || len >= t->claim_left) {
		t->claim_left = 0;
		return 0;
	}
	t->claim_left -= len;
	t->claim += len;
	return 1;
}

static __always_inline int dt_copy(void *ctx, __u64 arg)
{
	struct dt_tap *t = dt_tap();
	struct dt_segment seg[DT_SEGMENTS] = {};
	struct dt_grant_copy copy = {};
	__u32 bytes = 0;

	if (!t)
		return 0;
	DT_TAKE_UP(ctx, t, DT_ALL);
	if (dt_read_user(&copy, sizeof(copy), arg)) {
		dt_lost(DT_LOSS_FAULT);
		return 0;
	}
	if (!copy.count || copy.count > DT_SEGMENTS) {
		dt_lost(DT_LOSS_IOVEC);
		return 0;
	}
	if (dt_read_user(seg, (copy.count & 15) * sizeof(seg[0]), copy.segments)) {
		dt_lost(DT_LOSS_FAULT);
		return 0;
	}
#pragma unroll
	for (int i = 0; i < DT_SEGMENTS; i++)
		bytes += seg[i].len;
	t->copied = bytes;
	t->writes = seg[0].flags & GNTCOPY_source_gref ? 1 : 0;
	t->buffer = t->writes ? seg[0].dest : seg[0].source;
	if (!t->low || t->buffer < t->low)
		t->low = DT_PAGE(t->buffer);
	if (t->buffer + DT_BUFFER > t->high)
		t->high = t->buffer + DT_BUFFER;
	t->copying_queued = t->queued;
	t->copying = bpf_ktime_get_ns();
	dt_known(t, t->copying);
	return 0;
}

static __always_inline __u64 dt_copy_took(const struct dt_tap *t, __u64 now)
{
	return dt_since(now - t->copying, t->queued - t->copying_queued);
}

static __always_inline void dt_fetched(struct dt_tap *t, __u64 now)
{
	struct dt_io_key k = { .at = DT_PAGE(t->buffer), .tgid = bpf_get_current_pid_tgid() >> 32, .write = 1 };
	struct dt_part p = { .begun = t->round, .copy = dt_copy_took(t, now), .bytes = t->copied, .left = t->copied };

	if (bpf_map_update_elem(&dt_parts, &k, &p, BPF_ANY))
		dt_lost(DT_LOSS_PARTS);
}

static __always_inline void dt_delivered(void *ctx, struct dt_tap *t, __u64 now)
{
	struct dt_ended e = { .copy = dt_copy_took(t, now), .bytes = t->copied };

	t->claim = t->buffer;
	t->claim_left = t->copied;
	t->claim_ios = 0;
	__builtin_memset(&t->last, 0, sizeof(t->last));
	DT_FOR(i, DT_SEGMENTS)
		if (!DT_CALL(dt_t_claim, ctx, t))
			break;
	e.ios = t->claim_ios;
	if (!t->last.picked.at) { /* it needs no I/O: nothing was ever written there */
		e.begun = t->round;
		dt_finish(t, 0, &e, 0);
		return;
	}
	e.begun = t->claim_begun;
	dt_finish(t, &t->last, &e, t->last.failed);
}

static __always_inline int dt_copied(void *ctx)
{
	struct dt_tap *t = dt_tap();
	__u64 now;

	if (!t || !t->copying)
		return 0;
	now = bpf_ktime_get_ns();
	if (t->writes)
		dt_fetched(t, now);
	else
		dt_delivered(ctx, t, now);
	t->copying = 0;
	return 0;
}

/* A round ends, or the guest is told of what was done in it. */
static __always_inline int dt_answered(void *ctx)
{
	struct dt_tap *t = dt_tap();

	if (!t)
		return 0;
	DT_TAKE_UP(ctx, t, DT_STEPS);
	dt_answer(ctx, t, bpf_ktime_get_ns());
	return 0;
}

/* ---- rounds ---- */

/*
 * Counts what was read in this round if no guest had asked for it: it was not copied.
 * 0: there is no more.
 */
DT_STEP(dt_t_clean)
{
	struct dt_part *p;
	__u64 page;

	(void)ctx;
	if (t->picked_from == t->picked_to)
		return 0;
	page = t->picked[t->picked_from & (DT_PICKED - 1)];
	p = dt_part(page, 0);
	if (p && t->threads && p->t.picked.at >= t->round.at)
		return 0;
	t->picked_from += 1;
	if (!p || !p->t.picked.at)
		return 1;
	dt_count_own(&p->t);
	dt_unpart(page, 0);
	return 1;
}

static __always_inline int dt_doze(void *ctx)
{
	struct dt_tap *t = dt_tap();
	__u64 now;

	if (!t || (__u32)bpf_get_current_pid_tgid() != bpf_get_current_pid_tgid() >> 32)
		return 0;
	DT_TAKE_UP(ctx, t, DT_STEPS);
	now = bpf_ktime_get_ns();
	dt_answer(ctx, t, now);
	DT_FOR(i, DT_CLEANS)
		if (!DT_CALL(dt_t_clean, ctx, t))
			break;
	t->woken = 0;
	t->dozing_queued = t->queued;
	t->dozing = now;
	return 0;
}

static __always_inline int dt_rise(void)
{
	struct dt_tap *t = dt_tap();
	__u64 now, dozing;

	if (!t || (__u32)bpf_get_current_pid_tgid() != bpf_get_current_pid_tgid() >> 32)
		return 0;
	now = bpf_ktime_get_ns();
	dozing = t->dozing;
	t->dozing = 0;
	if (dozing) /* else it was not seen to begin */
		t->asleep += dt_since(now - dozing, t->queued - t->dozing_queued);
	t->round.at = now;
	t->round.queued = t->queued;
	if (dozing && t->woken > dozing) {
		t->round.at = t->woken;
		t->round.queued = t->woken_queued;
	}
	t->round.asleep = t->asleep;
	t->owns = 0;
	return 0;
}

/* ---- the scheduler ---- */

SEC("tracepoint/sched/sched_switch")
int dt_t_switch(void *ctx)
{
	struct dt_config *conf = dt_conf();
	__u64 id = bpf_get_current_pid_tgid(), state = 0, now;
	struct dt_tap *t;
	__u32 next = 0;

	if (!conf)
		return 0;
	if ((__u32)id == id >> 32) {
		t = dt_tap();
		if (t) {
			if (dt_read_kernel(&state, sizeof(state), (__u64)ctx + conf->switch_state))
				dt_lost(DT_LOSS_FAULT);
			t->off = 1;
			t->waiting = state & TASK_BLOCKED ? 0 : bpf_ktime_get_ns();
		}
	}
	if (dt_read_kernel(&next, sizeof(next), (__u64)ctx + conf->switch_next)) {
		dt_lost(DT_LOSS_FAULT);
		return 0;
	}
	t = bpf_map_lookup_elem(&dt_taps, &next);
	if (!t)
		return 0;
	now = bpf_ktime_get_ns();
	if (t->waiting)
		t->queued += dt_since(now, t->waiting);
	t->waiting = 0;
	t->off = 0;
	dt_known(t, now); /* the end of a select that began before is not seen by a kretprobe */
	return 0;
}

static __always_inline int dt_tap_woken(__u32 tid)
{
	struct dt_tap *t = bpf_map_lookup_elem(&dt_taps, &tid);
	__u64 now;

	if (!t || !t->off || t->waiting)
		return 0;
	now = bpf_ktime_get_ns();
	if (t->dozing && !t->woken) {
		t->woken_queued = t->queued;
		t->woken = now;
	}
	t->waiting = now;
	return 0;
}

SEC("raw_tracepoint/sched_wakeup")
int dt_t_rwakeup(struct dt_raw *ctx)
{
	struct dt_config *conf = dt_conf();

	return conf ? dt_tap_woken(dt_task_pid(ctx->arg[0], conf)) : 0;
}

SEC("tracepoint/sched/sched_wakeup")
int dt_t_wakeup(void *ctx)
{
	struct dt_config *conf = dt_conf();
	__u32 pid = 0;

	if (!conf || dt_read_kernel(&pid, sizeof(pid), (__u64)ctx + conf->wakeup_pid))
		return 0;
	return dt_tap_woken(pid);
}

/* ---- devices below those that tapdisk has opened ---- */

/* Context of block_bio_remap. */
struct dt_remap {
	__u64 common;
	__u32 dev;
	__u32 pad;
	__u64 sector;
	__u32 nr;
	__u32 old_dev;
	__u64 old_sector;
};

#define DT_RWBS_REMAP 40

struct dt_below_key {
	__u64 sector;
	__u32 dev;
	__u32 op;
};

struct dt_below {
	__u64 iocb;
	__u64 queued;
	__u32 tgid;
	__u32 pad;
};

/*
 * I/O that the device mapper, or a partition, has handed down, until a driver has it.
 * What is merged into another request is never given to one by itself: the oldest go.
 */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 8192);
	__type(key, struct dt_below_key);
	__type(value, struct dt_below);
} dt_belows SEC(".maps");

SEC("tracepoint/block/block_bio_remap")
int dt_t_remap(struct dt_remap *ctx)
{
	__u32 old = ctx->old_dev, dev = ctx->dev, op;
	__u32 *disk = bpf_map_lookup_elem(&dt_disks, &old);
	struct dt_below_key from = { .sector = ctx->old_sector, .dev = old }, to = { .sector = ctx->sector, .dev = dev };
	struct dt_bio_key key = { .sector = ctx->old_sector };
	struct dt_below b = {}, *known;
	struct dt_bio *bio = 0;

	op = dt_op(ctx, DT_RWBS_REMAP, ctx->nr);
	if (op >= DT_DEVICE_OPS)
		return 0;
	from.op = op;
	to.op = op;
	if (dev == old && disk) /* of a partition, Linux 5.12 on: the sector is of the disk */
		to.dev = *disk;
	if (disk) {
		key.disk = *disk;
		key.op = op;
		bio = dt_youngest(&key);
	}
	if (bio && bio->iocb) {
		b.iocb = bio->iocb;
		b.queued = bio->start;
		b.tgid = bio->tgid;
	} else {
		known = bpf_map_lookup_elem(&dt_belows, &from);
		if (!known)
			return 0;
		b = *known;
		bpf_map_delete_elem(&dt_belows, &from);
	}
	bpf_map_update_elem(&dt_belows, &to, &b, BPF_ANY);
	return 0;
}

SEC("tracepoint/block/block_rq_issue")
int dt_t_issue(struct dt_block *ctx)
{
	struct dt_below_key k = { .sector = ctx->sector, .dev = ctx->dev };
	struct dt_block_conf *conf;
	struct dt_below *b;
	__u32 zero = 0;

	conf = bpf_map_lookup_elem(&dt_block_conf, &zero);
	if (!conf)
		return 0;
	k.op = dt_op(ctx, conf->issue, ctx->nr);
	if (k.op >= DT_DEVICE_OPS)
		return 0;
	b = bpf_map_lookup_elem(&dt_belows, &k);
	if (!b)
		return 0;
	dt_piece_issued(b->tgid, b->iocb, b->queued, bpf_ktime_get_ns());
	bpf_map_delete_elem(&dt_belows, &k);
	return 0;
}

/* ---- system calls ---- */

SEC("tracepoint/syscalls/sys_enter_ioctl")
int dt_t_ioctl(struct dt_sys_enter *ctx)
{
	return (__u32)ctx->arg[1] == GRANT_COPY ? dt_copy(ctx, ctx->arg[2]) : 0;
}

/* A program of its own: what there is to do is too much to do in one. */
SEC("tracepoint/syscalls/sys_enter_ioctl")
int dt_t_notify(struct dt_sys_enter *ctx)
{
	return (__u32)ctx->arg[1] == EVTCHN_NOTIFY ? dt_answered(ctx) : 0;
}

SEC("tracepoint/syscalls/sys_exit_ioctl")
int dt_t_ioctled(void *ctx)
{
	return dt_copied(ctx);
}

/* Before dt_t_submit */
SEC("tracepoint/syscalls/sys_enter_io_submit")
int dt_t_take(void *ctx)
{
	return dt_before_submit(ctx);
}

SEC("tracepoint/syscalls/sys_enter_io_submit")
int dt_t_submit(struct dt_sys_enter *ctx)
{
	return dt_submit(ctx, ctx->arg[0], ctx->arg[1], ctx->arg[2]);
}

SEC("tracepoint/syscalls/sys_exit_io_submit")
int dt_t_submitd(void *ctx)
{
	(void)ctx;
	return dt_submitted();
}

/* Nothing else that tapdisk reads comes in 8 bytes. */
SEC("tracepoint/syscalls/sys_exit_read")
int dt_t_read(struct dt_sys_exit *ctx)
{
	return ctx->ret == 8 ? dt_pickup() : 0;
}

/* select and pselect6 */
SEC("tracepoint/syscalls/sys_enter_select")
int dt_t_select(void *ctx)
{
	return dt_answered(ctx);
}

SEC("tracepoint/syscalls/sys_enter_select")
int dt_t_doze(void *ctx)
{
	return dt_doze(ctx);
}

SEC("tracepoint/syscalls/sys_exit_select")
int dt_t_selectd(void *ctx)
{
	(void)ctx;
	return dt_rise();
}

/* ---- functions of the kernel, where there are kprobes ---- */

SEC("kprobe/gntdev_ioctl")
int dt_t_kcopy(struct dt_pt_regs *ctx)
{
	return (__u32)DT_ARG2(ctx) == GRANT_COPY ? dt_copy(ctx, DT_ARG3(ctx)) : 0;
}

SEC("kprobe/__x64_sys_ioctl")
int dt_t_scopy(struct dt_pt_regs *ctx)
{
	if (!dt_tap() || (__u32)DT_SYS_ARG2(ctx) != GRANT_COPY)
		return 0;
	return dt_copy(ctx, DT_SYS_ARG3(ctx));
}

SEC("kprobe/evtchn_ioctl")
int dt_t_knotify(struct dt_pt_regs *ctx)
{
	return (__u32)DT_ARG2(ctx) == EVTCHN_NOTIFY ? dt_answered(ctx) : 0;
}

SEC("kprobe/__x64_sys_ioctl")
int dt_t_snotify(struct dt_pt_regs *ctx)
{
	if (!dt_tap() || (__u32)DT_SYS_ARG2(ctx) != EVTCHN_NOTIFY)
		return 0;
	return dt_answered(ctx);
}

/* gntdev_ioctl or __x64_sys_ioctl */
SEC("kretprobe/gntdev_ioctl")
int dt_t_kioctled(void *ctx)
{
	return dt_copied(ctx);
}

/* Before dt_t_ksubmit */
SEC("kprobe/__x64_sys_io_submit")
int dt_t_ktake(void *ctx)
{
	return dt_before_submit(ctx);
}

SEC("kprobe/__x64_sys_io_submit")
int dt_t_ksubmit(struct dt_pt_regs *ctx)
{
	__u64 ring, iocbs;
	__u32 n;

	if (!dt_tap())
		return 0;
	ring = DT_SYS_ARG1(ctx);
	n = DT_SYS_ARG2(ctx);
	iocbs = DT_SYS_ARG3(ctx);
	return dt_submit(ctx, ring, n, iocbs);
}

SEC("kretprobe/__x64_sys_io_submit")
int dt_t_ksubmitd(void *ctx)
{
	(void)ctx;
	return dt_submitted();
}

SEC("kretprobe/eventfd_read")
int dt_t_keventfd(struct dt_pt_regs *ctx)
{
	return DT_RESULT(ctx) == 8 ? dt_pickup() : 0;
}

/* __x64_sys_select and __x64_sys_pselect6 */
SEC("kprobe/__x64_sys_select")
int dt_t_kselect(void *ctx)
{
	return dt_answered(ctx);
}

SEC("kprobe/__x64_sys_select")
int dt_t_kdoze(void *ctx)
{
	return dt_doze(ctx);
}

SEC("kretprobe/__x64_sys_select")
int dt_t_kselectd(void *ctx)
{
	(void)ctx;
	return dt_rise();
}

/* ---- where programs of system calls do not keep the CPU ---- */

DT_TABLE(dt_t_rets, DT_CALLS);
DT_DISPATCH(dt_t_ret, "sys_exit", dt_t_rets, 0)
DT_TABLE(dt_t_calls, 2 * DT_CALLS);
DT_DISPATCH(dt_t_call, "sys_enter", dt_t_calls, 0)
DT_DISPATCH(dt_t_call2, "sys_enter", dt_t_calls, DT_CALLS)
