/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * The two tiers. Everything in which they differ is in this header (and in the
 * CO-RE structs of dt_vmlinux.h): programs know nothing of tiers.
 *
 * Legacy, Linux 4.19: perf buffers, bpf_probe_read for user and kernel memory,
 * nothing known of the kernel's structs. No globals, no string literals, no
 * loops, at most 4,096 instructions a program.
 * Modern, Linux 5.8 with BTF: one ring buffer, CO-RE.
 */
#ifndef DT_COMPAT_H
#define DT_COMPAT_H

#include "dt_vmlinux.h"
#include <bpf/bpf_helpers.h>
#include "dt_event.h"
#include "dt_loss.h"

/*
 * For the verifier's sake. DT_RELOAD makes the compiler read from memory again
 * what it has in registers: of memory the verifier knows nothing, so all paths
 * to here look alike to it. DT_KEEP makes the register that is checked next the
 * one that is used.
 */
#define DT_RELOAD() asm volatile("" ::: "memory")
#define DT_KEEP(x) asm volatile("" : "+r"(x))

/* Eight bytes of text as the word that memory holds: strings are compared so, for literals are global data. */
#define DT_W(a, b, c, d, e, f, g, h)                                                                          \
	((__u64)(a) | (__u64)(b) << 8 | (__u64)(c) << 16 | (__u64)(d) << 24 | (__u64)(e) << 32 | (__u64)(f) << 40 | \
	 (__u64)(g) << 48 | (__u64)(h) << 56)

/* Only named here so that each object's BTF holds the whole wire contract. */
union dt_record {
	struct dt_hdr hdr;
	struct dt_data data;
	struct dt_log log;
	struct dt_open open;
	struct dt_close close;
	struct dt_fork fork;
	struct dt_exec exec;
	struct dt_exit exit;
	struct dt_time time;
	struct dt_request request;
};

/* What the loader found out about this kernel. */
struct dt_config {
	__u32 fork_child;    /* offset of child_pid in sched:sched_process_fork */
	__u32 exec_filename; /* offset of filename in sched:sched_process_exec */
	__u32 wake;          /* bytes in the ring buffer at which the reader is woken */
	__u32 switch_state;  /* offset of prev_state in sched:sched_switch */
	__u32 switch_next;   /* offset of next_pid in it */
	__u32 wakeup_pid;    /* offset of pid in sched:sched_wakeup */
	__u32 task_pid;      /* offset of pid in struct task_struct; 0 where BTF tells it */
	__u32 pad;
	__u64 wait_ns;       /* a wait of so many ns is told by itself; 0: the wait probe is off */
	union dt_record records[0];
};

/* A request or bio that ends. */
struct dt_io {
	__u64 sector;
	__u32 n; /* sectors */
	__u32 dev;
	__u32 opf;   /* REQ_* */
	__u32 flush; /* it asks for one first */
	__u32 error;
};

#ifdef DT_LEGACY

struct {
	__uint(type, BPF_MAP_TYPE_PERF_EVENT_ARRAY);
	__uint(key_size, sizeof(__u32));
	__uint(value_size, sizeof(__u32));
} dt_events SEC(".maps");

static __always_inline long dt_output(void *ctx, void *rec, __u64 size, const struct dt_config *c)
{
	(void)c;
	return bpf_perf_event_output(ctx, &dt_events, BPF_F_CURRENT_CPU, rec, size);
}

/*
 * A full perf buffer gives -ENOSPC, before 5.1 nothing at all. The reader sees
 * it as a gap in seq on all kernels, so it is not counted here.
 */
#define DT_SEQ_MOVES(err) (!(err) || (err) == -ENOSPC)
#define DT_OUTPUT_LOST(err) ((err) && (err) != -ENOSPC)

#define dt_read_user(dst, size, src) bpf_probe_read((dst), (size), (const void *)(src))
#define dt_read_kernel(dst, size, src) bpf_probe_read((dst), (size), (const void *)(src))
#define dt_read_user_str(dst, size, src) bpf_probe_read_str((dst), (size), (const void *)(src))
#define dt_read_kernel_str(dst, size, src) bpf_probe_read_str((dst), (size), (const void *)(src))

/* Not known without BTF. */
static __always_inline int dt_compat_call(void)
{
	return 0;
}

/* The number of a thread, 0 if it cannot be read. */
static __always_inline __u32 dt_task_pid(__u64 task, const struct dt_config *c)
{
	__u32 pid = 0;

	dt_read_kernel(&pid, sizeof(pid), task + c->task_pid);
	return pid;
}

static __always_inline int dt_request(struct dt_io *io, __u64 rq)
{
	(void)io;
	(void)rq;
	return 0;
}

static __always_inline int dt_bio_ended(struct dt_io *io, __u64 bio)
{
	(void)io;
	(void)bio;
	return 0;
}

static __always_inline __u64 dt_socket_ino(__s32 fd)
{
	(void)fd;
	return 0;
}

/*
 * What a read or write of fd waits for. Of the fd nothing is known but the way
 * in which the thread sleeps: files and block devices are waited for without
 * being open to signals.
 */
static __always_inline __u8 dt_fd_wait(__s32 fd, __u64 state)
{
	(void)fd;
	return state & TASK_UNINTERRUPTIBLE ? DT_FILE : DT_PIPE;
}

static __always_inline void dt_peer_facts(struct dt_open *o, __s32 fd)
{
	(void)o;
	(void)fd;
}

static __always_inline void dt_exit_facts(struct dt_exit *e, __s32 code, __u8 known)
{
	e->code = code;
	e->h.flags |= known ? DT_F_NOCPU : DT_F_NOCPU | DT_F_NOCODE;
}

#else

#include <bpf/bpf_core_read.h>

struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 8 << 20);
} dt_events SEC(".maps");

/*
 * The wakeup is what costs, not the copy: the reader looks by a timer and is
 * woken only when much has piled up. The window keeps every record beyond the
 * mark from waking it again; it is wider than the largest record.
 */
#define DT_WAKE_WINDOW 65536

static __always_inline long dt_output(void *ctx, void *rec, __u64 size, const struct dt_config *c)
{
	__u64 flags = BPF_RB_NO_WAKEUP;
	__u64 avail = bpf_ringbuf_query(&dt_events, BPF_RB_AVAIL_DATA);

	(void)ctx;
	if (c && avail >= c->wake && avail < (__u64)c->wake + DT_WAKE_WINDOW)
		flags = BPF_RB_FORCE_WAKEUP;
	return bpf_ringbuf_output(&dt_events, rec, size, flags);
}

#define DT_SEQ_MOVES(err) 1
#define DT_OUTPUT_LOST(err) (err)

#define dt_read_user(dst, size, src) bpf_probe_read_user((dst), (size), (const void *)(src))
#define dt_read_kernel(dst, size, src) bpf_probe_read_kernel((dst), (size), (const void *)(src))
#define dt_read_user_str(dst, size, src) bpf_probe_read_user_str((dst), (size), (const void *)(src))
#define dt_read_kernel_str(dst, size, src) bpf_probe_read_kernel_str((dst), (size), (const void *)(src))

#define S_IFMT 0170000
#define S_IFSOCK 0140000
#define S_IFREG 0100000
#define S_IFBLK 0060000
#define S_IFDIR 0040000
#define S_IFIFO 0010000

#define TS_COMPAT 2 /* arch/x86/include/asm/thread_info.h */

/*
 * Whether the system call at raw_syscalls:* is one of 32-bit programs, which have
 * numbers of their own. 64-bit ones can make them, too, by int 0x80. All calls of all
 * processes pay for it: from 5.11 on it takes no helper to read.
 */
static __always_inline int dt_compat_call(void)
{
	struct task_struct *task;

	if (bpf_core_enum_value_exists(enum bpf_func_id, BPF_FUNC_get_current_task_btf)) {
		task = bpf_get_current_task_btf();
		return task->thread_info.status & TS_COMPAT;
	}
	task = (void *)bpf_get_current_task();
	return BPF_CORE_READ(task, thread_info.status) & TS_COMPAT;
}

/* The number of a thread, 0 if it cannot be read. */
static __always_inline __u32 dt_task_pid(__u64 task, const struct dt_config *c)
{
	(void)c;
	return BPF_CORE_READ((struct task_struct *)task, pid);
}

static __always_inline __u32 dt_disk_dev(struct gendisk *disk)
{
	return BPF_CORE_READ(disk, major) << 20 | BPF_CORE_READ(disk, first_minor);
}

static __always_inline __u32 dt_has_flush(__u32 opf)
{
	return opf >> bpf_core_enum_value(enum req_flag_bits, __REQ_PREFLUSH) & 1;
}

/* What a request is for and where it begins; 0 where that is not known. */
static __always_inline int dt_request(struct dt_io *io, __u64 rq)
{
	struct request *r = (void *)rq;

	if (bpf_core_field_exists(((struct request___old *)0)->rq_disk))
		io->dev = dt_disk_dev(BPF_CORE_READ((struct request___old *)rq, rq_disk));
	else
		io->dev = dt_disk_dev(BPF_CORE_READ(r, q, disk));
	io->sector = BPF_CORE_READ(r, __sector);
	io->opf = BPF_CORE_READ(r, cmd_flags);
	io->flush = dt_has_flush(io->opf);
	return 1;
}

static __always_inline int dt_bio_ended(struct dt_io *io, __u64 bio)
{
	struct bio *b = (void *)bio;

	if (bpf_core_field_exists(((struct bio___old *)0)->bi_disk))
		io->dev = dt_disk_dev(BPF_CORE_READ((struct bio___old *)bio, bi_disk));
	else
		io->dev = BPF_CORE_READ(b, bi_bdev, bd_dev);
	io->sector = BPF_CORE_READ(b, bi_iter.bi_sector);
	io->n = BPF_CORE_READ(b, bi_iter.bi_size) >> 9;
	io->opf = BPF_CORE_READ(b, bi_opf);
	io->flush = dt_has_flush(io->opf);
	io->error = BPF_CORE_READ(b, bi_status);
	return 1;
}

/* An open file of the current process, 0 if there is none. */
static __always_inline struct file *dt_file(__s32 fd)
{
	struct task_struct *task = (void *)bpf_get_current_task();
	struct fdtable *fdt = BPF_CORE_READ(task, files, fdt);
	struct file **slot = BPF_CORE_READ(fdt, fd);
	struct file *file = 0;

	if (fd < 0 || (__u32)fd >= BPF_CORE_READ(fdt, max_fds))
		return 0;
	bpf_probe_read_kernel(&file, sizeof(file), slot + fd);
	return file;
}

/* The inode behind fd of the current process, 0 if there is none. */
static __always_inline struct inode *dt_inode(__s32 fd)
{
	struct file *file = dt_file(fd);

	return BPF_CORE_READ(file, f_inode);
}

static __always_inline __u64 dt_socket_of(const struct inode *inode)
{
	if ((BPF_CORE_READ(inode, i_mode) & S_IFMT) != S_IFSOCK)
		return 0;
	return BPF_CORE_READ(inode, i_ino);
}

/* The inode number of a socket of the current process, 0 if fd is none. */
static __always_inline __u64 dt_socket_ino(__s32 fd)
{
	return dt_socket_of(dt_inode(fd));
}

/*
 * Who is at the other end of an accepted unix socket: the process that connected,
 * and the inode of its socket. Where AF_UNIX is a module, its types are not in the
 * kernel's BTF and there is no inode.
 */
static __always_inline void dt_peer_facts(struct dt_open *o, __s32 fd)
{
	struct file *file = dt_file(fd);
	struct socket *socket = BPF_CORE_READ(file, private_data);
	struct inode *inode;
	struct sock *sk;
	__u32 tgid;
	__u64 ino;

	if (!o->ino) /* no socket */
		return;
	sk = BPF_CORE_READ(socket, sk);
	if (BPF_CORE_READ(sk, __sk_common.skc_family) != AF_UNIX)
		return;
	o->family = AF_UNIX;
	tgid = BPF_CORE_READ(sk, sk_peer_pid, numbers[0].nr);
	__builtin_memcpy(&o->peer[8], &tgid, sizeof(tgid));
	if (!bpf_core_field_exists(((struct unix_sock *)0)->peer))
		return;
	inode = BPF_CORE_READ((struct unix_sock *)sk, peer, sk_socket, file, f_inode);
	ino = dt_socket_of(inode);
	__builtin_memcpy(&o->peer[0], &ino, sizeof(ino));
}

/* What a read or write of fd waits for. */
static __always_inline __u8 dt_fd_wait(__s32 fd, __u64 state)
{
	struct inode *inode = dt_inode(fd);

	(void)state;
	switch (BPF_CORE_READ(inode, i_mode) & S_IFMT) {
	case S_IFREG:
	case S_IFBLK:
	case S_IFDIR:
		return DT_FILE;
	case S_IFSOCK:
		return DT_NETWORK;
	case S_IFIFO:
		return DT_PIPE;
	}
	return DT_OTHER;
}

/*
 * sum_exec_runtime of the running thread lacks the time since it was last
 * accounted, a tick at most.
 */
static __always_inline void dt_exit_facts(struct dt_exit *e, __s32 code, __u8 known)
{
	struct task_struct *task = (void *)bpf_get_current_task();

	(void)code;
	(void)known;
	e->code = BPF_CORE_READ(task, exit_code);
	e->cpu_ns = BPF_CORE_READ(task, se.sum_exec_runtime);
	if (e->h.flags & DT_F_LEADER)
		e->cpu_ns += BPF_CORE_READ(task, signal, sum_sched_runtime);
}

#endif

#endif
