/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* The known sockets: the stream probe keeps them, the wait probe asks for them. */
#ifndef DT_CONN_H
#define DT_CONN_H

#include "dt_maps.h"

struct dt_conn_key {
	__u32 tgid;
	__s32 fd;
};

/* dt_conn.flags */
#define DT_C_SWITCH 1   /* the process talks to message-switch on it */
#define DT_C_NEW 2      /* seeded by user space, not yet announced by a DT_OPEN */
#define DT_C_PLAIN 4    /* from socket(2), not yet connected: nothing is recorded */
#define DT_C_EOF 8      /* the end was reported */
#define DT_C_BODY 16    /* a header was read: a small piece that follows is not kept waiting */

/* One socket of one process. Threads that use it in turn share this state. */
struct dt_conn {
	__u64 born;
	__u64 ino;
	__u64 bytes_in;
	__u64 bytes_out;
	__u64 run; /* bytes moved since the direction last turned */
	__u64 bulk_bytes;
	__u64 bulk_first;
	__u64 bulk_last;
	__u32 bulk_calls;
	__u32 bulk_tid;
	__u8 dir;    /* enum dt_dir of the bytes moved last, 0: none yet */
	__u8 told;   /* enum dt_dir of the last record */
	__u8 gather; /* enum dt_dir of what waits in dt_gathers, 0: nothing */
	__u8 flags;
	__u8 component;
	__u8 pad[3];
};

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 16384);
	__type(key, struct dt_conn_key);
	__type(value, struct dt_conn);
} dt_conns SEC(".maps");

#endif
