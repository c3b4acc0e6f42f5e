//go:build ignore

// SPDX-License-Identifier: GPL-2.0-only
/*
 * The disk probe: the block I/O of owners, which are guests' disks. Counters and
 * histograms stay in maps; no record is made.
 *
 * Who owns a piece of I/O is known when it is queued, by the thread that queues it
 * and the device that it is queued for: who is current when it is issued or done
 * says nothing. What is done is linked to what was queued by (disk, kind, sector):
 * a request is as many bios as were merged into it, one after the other, and a bio
 * that was split is done when all its parts are. Only I/O at the device that the
 * backend opened is counted: that of devices below it is the same I/O once more.
 */
#define DT_PROBE DT_DISK
#include "dt_bucket.h"
#include "dt_bio.h"
#include "dt_tap.h"

char LICENSE[] SEC("license") = "GPL";

/* Bios that one request is followed through, merged as they are. */
#define DT_BIOS_MAX 48

/* Whose I/O it is. */
struct dt_owner_key {
	__u32 tgid; /* 0: whoever queues it */
	__u32 dev;
};

/* comm: only threads whose name is comm where mask has bits. */
struct dt_owner {
	__u32 slot; /* in dt_disk_stats */
	__u32 pad;
	__u64 comm[2];
	__u64 mask[2];
};

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 4096);
	__type(key, struct dt_owner_key);
	__type(value, struct dt_owner);
} dt_owners SEC(".maps");

struct dt_disk_array {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, DT_DISK_STATS);
	__uint(key_size, sizeof(__u32)); /* enum dt_disk_op, or DT_DEVICE + DT_READ or DT_WRITE */
	__uint(value_size, sizeof(struct dt_disk_stat));
};

/* Each owner's counters: there is memory for those that there are. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY_OF_MAPS);
	__uint(max_entries, 512);
	__type(key, __u32); /* slot */
	__array(values, struct dt_disk_array);
} dt_disk_stats SEC(".maps");

/* Context of block_split. */
struct dt_split {
	__u64 common;
	__u32 dev;
	__u32 pad;
	__u64 sector;
	__u64 new_sector;
};

static __always_inline struct dt_disk_stat *dt_stat(__u32 slot, __u32 what)
{
	void *stats = bpf_map_lookup_elem(&dt_disk_stats, &slot);

	return stats ? bpf_map_lookup_elem(stats, &what) : 0;
}

/* ---- queued ---- */

/* The place of a bio among those of its kind at its sector. */
static __noinline int dt_d_same(struct dt_bio_key *key, struct dt_bio *b)
{
	struct dt_bio *first = bpf_map_lookup_elem(&dt_bios, key);

	if (!first) { /* done meanwhile, or there is no room */
		if (bpf_map_update_elem(&dt_bios, key, b, BPF_NOEXIST))
			dt_lost(DT_LOSS_BIOS);
		return 0;
	}
	if (first->younger >= DT_SAME_MAX - 1) {
		dt_lost(DT_LOSS_SAME);
		return 0;
	}
	key->at = first->younger + 1;
	b->head_at = key->at;
	if (bpf_map_update_elem(&dt_bios, key, b, BPF_NOEXIST)) {
		if (!bpf_map_lookup_elem(&dt_bios, key)) {
			dt_lost(DT_LOSS_BIOS);
			return 0;
		}
		dt_lost(DT_LOSS_UNENDED); /* left from one whose end was not seen */
		if (bpf_map_update_elem(&dt_bios, key, b, BPF_ANY))
			return 0;
	}
	__sync_fetch_and_add(&first->younger, 1);
	return 0;
}

/* Whether a bio is of the file system itself, by rwbs: the thread's I/O waits for it, and is another. */
static __always_inline int dt_of_fs(const void *ctx, __u32 at)
{
	char c[6] = {};

	if (dt_read_kernel(c, sizeof(c), (__u64)ctx + at))
		return 0;
	return c[1] == 'M' || c[2] == 'M' || c[3] == 'M' || c[4] == 'M';
}

static __always_inline struct dt_owner *dt_owner(__u32 tgid, __u32 dev)
{
	struct dt_owner_key k = { .tgid = tgid, .dev = dev };
	struct dt_owner *o = bpf_map_lookup_elem(&dt_owners, &k);
	__u64 comm[2] = {};

	if (!o) {
		k.tgid = 0;
		o = bpf_map_lookup_elem(&dt_owners, &k);
	}
	if (!o || !o->mask[0])
		return o;
	bpf_get_current_comm(comm, sizeof(comm));
	if ((comm[0] & o->mask[0]) != o->comm[0] || (comm[1] & o->mask[1]) != o->comm[1])
		return 0;
	return o;
}

SEC("tracepoint/block/block_bio_queue")
int dt_d_queue(struct dt_block *ctx)
{
	__u32 dev = ctx->dev, nr = ctx->nr, op;
	__u32 *disk = bpf_map_lookup_elem(&dt_disks, &dev);
	struct dt_bio_key key = {};
	struct dt_bio b = {};
	struct dt_disk_stat *s;
	struct dt_owner *o;
	__u32 tgid = bpf_get_current_pid_tgid() >> 32;

	if (!disk)
		return 0;
	o = dt_owner(tgid, dev);
	if (!o)
		return 0;
	op = dt_op(ctx, DT_RWBS_QUEUE, nr);
	if (op >= DT_DISK_OPS)
		return 0;
	s = dt_stat(o->slot, op);
	if (!s)
		return 0;
	s->begun += 1;
	s->bytes += (__u64)nr << 9;

	if (op == DT_FLUSH)
		nr = 1; /* which is done as a whole */
	key.sector = ctx->sector;
	key.disk = *disk;
	key.op = op;
	b.slot = o->slot;
	b.head = key.sector;
	b.len = nr;
	b.left = nr;
	b.start = bpf_ktime_get_ns();
	if (op < DT_DEVICE_OPS && !dt_of_fs(ctx, DT_RWBS_QUEUE)) {
		b.tgid = tgid;
		b.iocb = dt_piece_of(tgid, nr << 9, b.start);
	}
	if (bpf_map_update_elem(&dt_bios, &key, &b, BPF_NOEXIST))
		dt_d_same(&key, &b);
	return 0;
}

/* The rest of a bio or part, which begins at sector. */
static __always_inline void dt_rest(const struct dt_bio_key *of, const struct dt_bio *b, __u64 sector, __u32 len)
{
	struct dt_bio_key key = { .sector = sector, .disk = of->disk, .op = of->op };
	struct dt_bio rest = {
		.start = b->start, .head = b->head, .head_at = b->head_at, .slot = b->slot, .len = len, .iocb = b->iocb, .tgid = b->tgid,
	};

	if (bpf_map_update_elem(&dt_bios, &key, &rest, BPF_NOEXIST))
		dt_lost(DT_LOSS_SAME);
}

SEC("tracepoint/block/block_split")
int dt_d_split(struct dt_split *ctx)
{
	__u32 dev = ctx->dev;
	__u32 *disk = bpf_map_lookup_elem(&dt_disks, &dev);
	struct dt_bio_key key = {};
	struct dt_bio *b;
	__u64 len;
	__u32 op;

	if (!disk)
		return 0;
	op = dt_op(ctx, DT_RWBS_BIO, 1);
	if (op >= DT_DISK_OPS)
		return 0;
	key.sector = ctx->sector;
	key.disk = *disk;
	key.op = op;
	b = dt_youngest(&key);
	len = ctx->new_sector - ctx->sector;
	if (!b || len >= b->len)
		return 0;
	dt_rest(&key, b, ctx->new_sector, b->len - len);
	b->len = len;
	return 0;
}

/* ---- issued ---- */

SEC("tracepoint/block/block_rq_issue")
int dt_d_issue(struct dt_block *ctx)
{
	__u32 dev = ctx->dev, zero = 0, op;
	__u32 *disk = bpf_map_lookup_elem(&dt_disks, &dev);
	struct dt_block_conf *conf = bpf_map_lookup_elem(&dt_block_conf, &zero);
	struct dt_bio_key key = {};
	struct dt_bio *b;

	if (!disk || !conf)
		return 0;
	op = dt_op(ctx, conf->issue, ctx->nr);
	if (op >= DT_DISK_OPS)
		return 0;
	key.sector = ctx->sector;
	key.disk = *disk;
	key.op = op;
	b = dt_youngest(&key);
	if (b && !b->issued) {
		b->issued = bpf_ktime_get_ns();
		if (b->iocb)
			dt_piece_issued(b->tgid, b->iocb, b->start, b->issued);
	}
	return 0;
}

/* ---- done ---- */

/* A range of sectors that is done, and what is being done with the bios in it. */
struct dt_range {
	__u64 sector;
	__u64 now;
	__u64 head;   /* the bio that its first part is of */
	__u64 ns;     /* that is to be counted */
	__u32 n;      /* sectors */
	__u32 disk;
	__u32 op;
	__u32 error; /* 1 or 0 */
	__u32 head_at;
	__u32 taken; /* sectors */
	__u32 slot;  /* where something is to be counted, and as what */
	__u32 what;
	__u32 failed;
	__u32 bucket;
	__u32 busy;
};

/*
 * One for each of the two hooks, and one more for each where an interrupt comes while
 * the first is in use. In a map, since of memory the verifier knows
 * nothing: on the stack each way through a function would be another one to what
 * comes after it.
 */
#define DT_RANGES 2

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 2 * DT_RANGES);
	__type(key, __u32);
	__type(value, struct dt_range);
} dt_ranges SEC(".maps");

static __noinline int dt_d_count(struct dt_range *r)
{
	struct dt_disk_stat *s;
	__u32 i;

	r->bucket = dt_bucket(r->ns);
	DT_RELOAD();
	s = dt_stat(r->slot, r->what);
	if (!s)
		return 0; /* it has been detached since */
	s->done += 1;
	s->sum_ns += r->ns;
	s->failed += r->failed;
	if (r->ns > s->max_ns)
		s->max_ns = r->ns;
	i = r->bucket;
	DT_KEEP(i);
	if (i < DT_BUCKETS)
		s->bucket[i] += 1;
	return 0;
}

/* Counts what the driver was given: that is one request, however many bios it is. */
static __noinline int dt_d_driver(struct dt_range *r)
{
	struct dt_bio_key key = { .sector = r->sector, .disk = r->disk, .op = r->op };
	struct dt_bio *b;

	if (r->op >= DT_DEVICE_OPS)
		return 0;
	b = dt_youngest(&key);
	if (!b || !b->issued)
		return 0;
	r->slot = b->slot;
	r->what = DT_DEVICE + r->op;
	r->ns = r->now - b->issued;
	r->failed = r->error;
	return dt_d_count(r);
}

/* Takes the bio or part at the beginning of the range off it; 0: there is none. */
static __noinline int dt_d_part(struct dt_range *r)
{
	struct dt_bio_key key = { .sector = r->sector, .disk = r->disk, .op = r->op };
	struct dt_bio *b = dt_youngest(&key);
	__u32 n;

	if (!b || !b->len) /* 0: it is done, and waits for its other parts */
		return 0;
	r->head = b->head;
	r->head_at = b->head_at;
	n = b->len;
	if (n > r->n) {
		n = r->n;
		dt_rest(&key, b, key.sector + n, b->len - n);
	}
	b->len = 0;
	r->sector += n;
	r->n -= n;
	r->taken = n;
	if (b->head != key.sector || b->head_at != key.at)
		bpf_map_delete_elem(&dt_bios, &key);
	return 1;
}

/* Counts the bio of which a part was taken if that was the last. */
static __noinline int dt_d_whole(struct dt_range *r)
{
	struct dt_bio_key key = { .sector = r->head, .disk = r->disk, .op = r->op, .at = r->head_at };
	struct dt_bio *head = bpf_map_lookup_elem(&dt_bios, &key);

	if (!head)
		return 0;
	head->failed |= r->error;
	__sync_fetch_and_add(&head->left, -r->taken);
	if (head->left)
		return 0;
	r->slot = head->slot;
	r->failed = head->failed;
	r->ns = r->now - head->start;
	if (head->iocb)
		dt_piece_done(head->tgid, head->iocb, head->start, head->failed, r->now);
	if (!head->younger) /* else it is there for them */
		bpf_map_delete_elem(&dt_bios, &key);
	r->what = r->op;
	dt_d_count(r);
	return r->head_at;
}

/* Takes a bio that came after the first at its place from those that are there. */
static __noinline int dt_d_younger(struct dt_range *r)
{
	struct dt_bio_key key = { .sector = r->head, .disk = r->disk, .op = r->op };
	struct dt_bio *first = bpf_map_lookup_elem(&dt_bios, &key);

	if (!first)
		return 0;
	__sync_fetch_and_add(&first->younger, -1);
	if (!first->younger && !first->left)
		bpf_map_delete_elem(&dt_bios, &key);
	return 0;
}

/* 0: there is no more to be done. */
static __always_inline int dt_step(struct dt_range *r)
{
	if (!dt_d_part(r))
		return 0;
	if (dt_d_whole(r))
		dt_d_younger(r);
	return r->n != 0;
}

static __always_inline int dt_walk(struct dt_range *r)
{
#pragma unroll
	for (int i = 0; i < DT_BIOS_MAX; i++)
		if (!dt_step(r))
			return 0;
	dt_lost(DT_LOSS_PIECES);
	return 0;
}

/* Sectors of a disk of which some I/O is done. */
static __always_inline int dt_done(__u32 disk, __u32 op, __u64 sector, __u32 n, __u32 error, __u32 program)
{
	struct dt_range *r = bpf_map_lookup_elem(&dt_ranges, &program);

	if (r && r->busy) { /* an interrupt while the same program ran on this CPU */
		program += DT_RANGES;
		r = bpf_map_lookup_elem(&dt_ranges, &program);
	}
	if (!r)
		return 0;
	r->busy = 1;
	r->sector = sector;
	r->now = bpf_ktime_get_ns();
	r->n = op == DT_FLUSH ? 1 : n;
	r->disk = disk;
	r->op = op;
	r->error = error != 0;
	dt_d_driver(r);
	dt_walk(r);
	r->busy = 0;
	return 0;
}

/*
 * What ends does so in interrupts mostly. As a raw tracepoint the program is also
 * run when they come while another one runs; the kernel's structs it knows by BTF.
 */

/* The kind of a request or bio, by its flags: rwbs is made of them. */
static __always_inline __u32 dt_op_of(const struct dt_io *io)
{
	__u32 op = io->opf & REQ_OP_MASK;

	if (!io->n)
		return op == REQ_OP_WRITE && io->flush ? DT_FLUSH : DT_DISK_OPS;
	if (op == REQ_OP_READ)
		return DT_READ;
	if (op == REQ_OP_WRITE || op == REQ_OP_WRITE_SAME)
		return DT_WRITE;
	if (op == REQ_OP_DISCARD || op == REQ_OP_SECURE_ERASE || op == REQ_OP_WRITE_ZEROES)
		return DT_DISCARD;
	return DT_DISK_OPS;
}

static __always_inline int dt_ended(const struct dt_io *io, __u32 program)
{
	__u32 dev = io->dev, op;
	__u32 *disk = bpf_map_lookup_elem(&dt_disks, &dev);

	if (!disk)
		return 0;
	op = dt_op_of(io);
	if (op >= DT_DISK_OPS)
		return 0;
	return dt_done(*disk, op, io->sector, io->n, io->error, program);
}

/* Given the request, its error and the bytes that are done. */
SEC("raw_tracepoint/block_rq_complete")
int dt_d_rdone(struct dt_raw *ctx)
{
	struct dt_io io = {};

	if (!dt_request(&io, ctx->arg[0]))
		return 0;
	io.error = ctx->arg[1];
	io.n = (__u32)ctx->arg[2] >> 9;
	return dt_ended(&io, 0);
}

/* Of devices without requests, as those of the device mapper. Given its queue and the bio. */
SEC("raw_tracepoint/block_bio_complete")
int dt_d_rend(struct dt_raw *ctx)
{
	struct dt_io io = {};

	return dt_bio_ended(&io, ctx->arg[1]) ? dt_ended(&io, 1) : 0;
}

static __always_inline int dt_ended_by(struct dt_block *ctx, __u32 rwbs, __u32 program)
{
	__u32 dev = ctx->dev, op;
	__u32 *disk = bpf_map_lookup_elem(&dt_disks, &dev);

	if (!disk)
		return 0;
	op = dt_op(ctx, rwbs, ctx->nr);
	if (op >= DT_DISK_OPS)
		return 0;
	return dt_done(*disk, op, ctx->sector, ctx->nr, ctx->error, program);
}

SEC("tracepoint/block/block_rq_complete")
int dt_d_done(struct dt_block *ctx)
{
	__u32 zero = 0;
	struct dt_block_conf *conf = bpf_map_lookup_elem(&dt_block_conf, &zero);

	return conf ? dt_ended_by(ctx, conf->done, 0) : 0;
}

SEC("tracepoint/block/block_bio_complete")
int dt_d_end(struct dt_block *ctx)
{
	return dt_ended_by(ctx, DT_RWBS_BIO, 1);
}
