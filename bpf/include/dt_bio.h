/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Block I/O in flight of guests' disks: the disk probe keeps it, and the tapdisk
 * probe looks it up.
 */
#ifndef DT_BIO_H
#define DT_BIO_H

#include "dt_maps.h"
#include "dt_disk.h"

/* Bios of one kind at one sector that are in flight at the same time. */
#define DT_SAME_MAX 8

/* Where rwbs is in those events in which kernels differ. */
struct dt_block_conf {
	__u32 issue; /* block:block_rq_issue */
	__u32 done;  /* block:block_rq_complete */
	struct dt_disk_stat stats[0]; /* only named here so that the object's BTF holds it */
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct dt_block_conf);
} dt_block_conf SEC(".maps");

/* The devices that are looked at: the whole disk that requests of a device are of. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 2048);
	__type(key, __u32);   /* device */
	__type(value, __u32); /* its disk, itself when it is no partition */
} dt_disks SEC(".maps");

/* A bio in flight, or a part of one that was split, by where it begins. */
struct dt_bio_key {
	__u64 sector;
	__u32 disk;
	__u8 op;
	__u8 at; /* of those of one kind at one sector, the younger after the older */
	__u16 pad;
};

struct dt_bio {
	__u64 start;   /* when it was queued */
	__u64 issued;  /* when the request that begins with it was given to the driver */
	__u64 head;    /* sector of the whole bio: there the account of all its parts is kept */
	__u32 slot;    /* owner */
	__u32 len;     /* sectors from here on that are not done, of this part */
	__u32 left;    /* sectors of the whole bio that are not done; counts in the head only */
	__u32 younger; /* how many at the same place came after the first; counts in the first only */
	__u32 failed;
	__u32 head_at;
	__u64 iocb; /* that it is a piece of, 0: not known */
	__u32 tgid; /* whose */
	__u32 pad;
};

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 8192);
	__type(key, struct dt_bio_key);
	__type(value, struct dt_bio);
} dt_bios SEC(".maps");

/* Context of the block events as far as they are alike; the loader compares it with the format files. */
struct dt_block {
	__u64 common;
	__u32 dev;
	__u32 pad;
	__u64 sector;
	__u32 nr;    /* block_split: the lower half of new_sector */
	__s32 error; /* of block_rq_complete and block_bio_complete */
};

#define DT_RWBS_QUEUE 28 /* block_bio_queue */
#define DT_RWBS_BIO 32   /* block_bio_complete, block_split */

/* What a bio or request of nr sectors does, by rwbs: blk_fill_rwbs() of the kernel. */
static __always_inline __u32 dt_op(const void *ctx, __u32 at, __u32 nr)
{
	char c[4] = {};
	__u32 first;

	if (dt_read_kernel(c, sizeof(c), (__u64)ctx + at)) {
		dt_lost(DT_LOSS_FAULT);
		return DT_DISK_OPS;
	}
	first = c[0];
	if (first == 'F') { /* a flush goes first, and is all where there is nothing else */
		first = c[1];
		if (first == 'F') /* the block layer's own, for several of them */
			return DT_DISK_OPS;
		if (!nr)
			return DT_FLUSH;
	}
	if (!nr)
		return DT_DISK_OPS;
	if (first == 'R')
		return DT_READ;
	if (first == 'W')
		return c[1] == 'Z' ? DT_DISCARD : DT_WRITE;
	if (first == 'D' || first == 'N') /* zeroes, in older kernels */
		return DT_DISCARD;
	return DT_DISK_OPS;
}

/* The bio or part that begins there: of several the youngest, so that one whose end was not seen does no harm to the others. */
static __always_inline struct dt_bio *dt_youngest(struct dt_bio_key *key)
{
	struct dt_bio *b = bpf_map_lookup_elem(&dt_bios, key);
	__u32 younger;

	if (!b)
		return 0;
	younger = b->younger;
	if (!younger)
		return b;
	key->at = younger;
	return bpf_map_lookup_elem(&dt_bios, key);
}

#endif
