/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* State of the stream probe: known sockets, gathered pieces, calls going on. */
#ifndef DT_STREAM_H
#define DT_STREAM_H

#include "dt_conn.h"

#define DT_SMALL_IN 64      /* a read that asks for no more is gathered */
#define DT_SMALL_OUT 256    /* a write of no more is gathered */
#define DT_GATHER 1024      /* bytes gathered into one record */
#define DT_HEAD 4096        /* taken from the start of a large piece */
#define DT_HEAD_SWITCH 16384 /* the same on a message-switch socket */
#define DT_TAIL 1024        /* taken from its end */
#define DT_BULK 65536       /* bytes of one direction after which pieces are only counted */
#define DT_LOG_HEAD 1024    /* taken of a log line */
#define DT_IOVS 4           /* vectors looked at */

/* A record in the making. The room beyond DT_GATHER is for the verifier. */
struct dt_gather {
	struct dt_data d;
	__u8 buf[DT_GATHER + DT_SMALL_OUT];
};

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 4096);
	__type(key, struct dt_conn_key);
	__type(value, struct dt_gather);
} dt_gathers SEC(".maps");

/* One zeroed entry: too large for the stack, and new entries start from it. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct dt_gather);
} dt_gather_zero SEC(".maps");

/* What the system call is that a thread is in. */
enum dt_op {
	DT_OP_NONE = 0, /* none that is watched: the entry is idle */
	DT_OP_READ = 1,
	DT_OP_WRITE = 2,
	DT_OP_READV = 3, /* buf and len are the vectors and their number */
	DT_OP_WRITEV = 4,
	DT_OP_LOG = 5,
	DT_OP_LOGV = 6,
	DT_OP_ACCEPT = 7, /* buf is the address given, 0 if none */
	DT_OP_CONNECT = 8,
	DT_OP_SOCKET = 9,
	DT_OP_PAIR = 10,
};

/*
 * One for each thread of a target that has called. Taking it out at the exit of
 * each call would cost more than the rest of the hook, so it only becomes idle;
 * it goes when the thread ends.
 */
struct dt_inflight {
	__u64 first; /* ktime of the enter, of writes only */
	__u64 buf;
	__u64 len;
	__u64 born; /* of the socket at enter */
	__u64 msg;  /* recvmsg: its msghdr, else 0 */
	__s32 fd;
	__s32 nr; /* of the system call */
	__u8 op;
	__u8 component;
	__u8 noenter; /* made by user space for a thread that was in the call already */
	__u8 pad[5];
};

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 16384);
	__type(key, __u64); /* pid_tgid */
	__type(value, struct dt_inflight);
} dt_inflight SEC(".maps");

/*
 * One call that has moved bytes. It lies in a map and not on the stack so that
 * the verifier forgets what it knows of the numbers: else it follows each
 * combination of them to the end, and 4.19 gives up after 131,072 steps.
 */
struct dt_moved {
	__u64 id; /* pid_tgid */
	__u64 first;
	__u64 last;
	__u64 bytes;
	__u64 asked;
	__u64 before; /* bytes of this direction before the call */
	__u64 off;
	__u64 left;
	__u64 head;
	__u64 tail;
	struct dt_iovec iov[DT_IOVS];
	__u16 flags;
	__u8 dir;
	__u8 pad[5];
};

/* Where large pieces and log lines become records: d, then buf. */
struct dt_scratch {
	struct dt_moved m;
	struct dt_data d;
	__u8 buf[DT_HEAD_SWITCH + DT_HEAD + DT_TAIL];
};

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct dt_scratch);
} dt_scratch SEC(".maps");

#endif
