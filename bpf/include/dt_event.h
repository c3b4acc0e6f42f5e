/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * The wire contract: every record that leaves the kernel. Its Go mirror is
 * bpf/wire.go; a test compares the two field by field through the BTF of the
 * compiled objects. Fixed widths, explicit padding, no bitfields, no pointers,
 * 8-byte aligned, little endian.
 */
#ifndef DT_EVENT_H
#define DT_EVENT_H

#define DT_WIRE_VERSION 1

/* Same numbers as event.Kind. */
enum dt_kind {
	DT_DATA = 1,  /* bytes of one direction of one socket */
	DT_LOG = 2,   /* one datagram to the system log */
	DT_OPEN = 3,  /* a socket that became known */
	DT_CLOSE = 4, /* a known socket closed by its process */
	DT_FORK = 5,  /* a new thread or process */
	DT_EXEC = 6,  /* a successful execve */
	DT_EXIT = 7,  /* end of a thread */
	DT_TIME = 9,  /* how a thread spent a stretch of time; 8 is made in user space */
	DT_REQUEST = 10, /* a guest's disk request */
};

/* Same numbers as event.Dir. */
enum dt_dir {
	DT_IN = 1,  /* read by the process */
	DT_OUT = 2, /* written by the process */
};

/* Same numbers as event.How. */
enum dt_how {
	DT_SEEDED = 1,    /* was open before the probe was; found in /proc */
	DT_ACCEPTED = 2,  /* accept, accept4 */
	DT_CONNECTED = 3, /* connect */
	DT_PAIRED = 4,    /* socketpair */
	DT_PASSED = 5,    /* received by SCM_RIGHTS */
};

/* How a thread spends its time, the same numbers as event.Spent. */
enum dt_spent {
	DT_ON_CPU = 0,
	DT_RUNQ = 1, /* those after it are waits */
	DT_HYPERCALL = 2,
	DT_XENSTORE = 3,
	DT_EVTCHN = 4,
	DT_LOCK = 5,
	DT_CHILD = 6,
	DT_FSYNC = 7,
	DT_FLOCK = 8,
	DT_FILE = 9,
	DT_CONNECTING = 10,
	DT_NETWORK = 11,
	DT_SLEEP = 12,
	DT_POLL = 13,
	DT_PIPE = 14,
	DT_OTHER = 15,
	DT_SPENT = 16, /* a power of two: the programs mask with it */
};

/* dt_hdr.flags, the same bits as event.Flags. */
#define DT_F_CUT      0x0001 /* bytes were moved that head and tail do not hold */
#define DT_F_MORE     0x0002 /* goes on a message whose start an earlier record held */
#define DT_F_NOENTER  0x0004 /* the start of the system call was not seen */
#define DT_F_EOF      0x0008 /* DT_DATA: the other side closed */
#define DT_F_THREAD   0x0010 /* DT_FORK: a thread of the same process */
#define DT_F_LEADER   0x0020 /* DT_EXIT: the thread group leader */
#define DT_F_NOCODE   0x0040 /* DT_EXIT: code is not known */
#define DT_F_NOCPU    0x0080 /* DT_EXIT: cpu_ns is not known */

struct dt_hdr {
	__u64 ktime; /* when the record was made; CLOCK_MONOTONIC, ns */
	__u32 tgid;
	__u32 tid;
	__u32 size; /* of the whole record, payload included */
	__u32 seq;  /* counts the records of this CPU and probe */
	__u16 kind;
	__u16 flags;
	__u16 cpu;
	__u8 component; /* event.Component of the target process */
	__u8 version;   /* DT_WIRE_VERSION */
};

/*
 * Payload: head_len bytes from the start, then tail_len bytes from the end of
 * the bytes moved. Many small calls make one record (calls > 1).
 */
struct dt_data {
	struct dt_hdr h;
	__u64 born;  /* with (tgid, fd) the socket's identity: ktime at which it became known */
	__u64 ino;   /* inode of the socket, 0 if not known */
	__u64 first; /* read: the first byte was there; write: the first call began */
	__u64 last;  /* end of the last call */
	__u64 bytes; /* moved by all calls of the record */
	__s32 fd;
	__u32 calls;
	__u16 head_len;
	__u16 tail_len;
	__u8 dir;
	__u8 pad[3];
};

/* Payload: head_len bytes. bytes is the datagram's length. */
struct dt_log {
	struct dt_hdr h;
	__u32 bytes;
	__u16 head_len;
	__u16 pad;
};

struct dt_open {
	struct dt_hdr h;
	__u64 born;
	__u64 ino;
	__s32 fd;
	__s32 listen_fd; /* DT_ACCEPTED: of the listener, else -1 */
	__u16 how;
	__u16 family;    /* AF_UNIX, AF_INET, AF_INET6, 0 if not known */
	__u16 peer_port; /* host order */
	__u16 pad;
	/*
	 * AF_INET, AF_INET6: IPv6, or IPv4 mapped. AF_UNIX, DT_ACCEPTED: inode (8
	 * bytes) of the socket at the other end and tgid (4) of who connected it.
	 * Zero if not known.
	 */
	__u8 peer[16];
};

struct dt_close {
	struct dt_hdr h;
	__u64 born;
	__u64 bytes_in;
	__u64 bytes_out;
	__s32 fd;
	__u32 pad;
};

/* h.tid is the thread that called clone, fork or vfork. */
struct dt_fork {
	struct dt_hdr h;
	__u32 child_tgid;
	__u32 child_tid;
};

#define DT_ARGS 6
#define DT_ARG_LEN 128

/* Strings as execve was given them, cut, NUL-padded. argv[0] is left out. */
struct dt_exec {
	struct dt_hdr h;
	char comm[16];
	char filename[DT_ARG_LEN];
	char arg[DT_ARGS][DT_ARG_LEN];
};

struct dt_exit {
	struct dt_hdr h;
	__u64 cpu_ns; /* of the thread; of the whole process if DT_F_LEADER */
	__s32 code;   /* as wait(2) gives it: exit status << 8 | signal */
	__u32 pad;
};

/*
 * How thread h.tid spent the stretch from first to last. A stretch ends with
 * each record that its thread makes, and around a long wait, which is a stretch
 * of its own.
 */
struct dt_time {
	struct dt_hdr h;
	__u64 first;
	__u64 last;
	__u64 spent[DT_SPENT]; /* ns, by enum dt_spent */
	__u64 runnable;        /* of a long wait: when the thread could run again, else 0 */
	__u64 detail;          /* DT_HYPERCALL: its number, domctl's command << 32 */
	__s32 nr;              /* of a long wait: of the system call, -1 if not known */
	__u8 wait;             /* enum dt_spent of the long wait that it is, 0 if it is none */
	__u8 pad[3];
};

/* dt_request.flags */
#define DT_R_WRITE   1
#define DT_R_SLOW    2  /* took longer than was asked for; else it is a sample */
#define DT_R_MERGED  4  /* shares its I/O with other requests */
#define DT_R_FAILED  8
#define DT_R_UNSPLIT 16 /* no block request of it was seen */

#define DT_C_TAPDISK 15 /* event.Tapdisk */

/* A request of a guest that h.tgid, a tapdisk, served. */
struct dt_request {
	struct dt_hdr h;
	__u64 first;
	__u64 last;
	__u64 layer[9]; /* ns, by enum dt_layer */
	__u64 offset;   /* in the image */
	__u32 bytes;
	__u16 ios;
	__u16 flags;
};

#endif
