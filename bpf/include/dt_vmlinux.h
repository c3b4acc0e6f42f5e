/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * The few kernel types that the programs need, so that a build asks for no
 * kernel headers and is the same on every machine. Structs that CO-RE relocates
 * name only the fields that are read; their offsets here mean nothing.
 */
#ifndef DT_VMLINUX_H
#define DT_VMLINUX_H

typedef unsigned char __u8;
typedef unsigned short __u16;
typedef unsigned int __u32;
typedef unsigned long long __u64;
typedef signed char __s8;
typedef short __s16;
typedef int __s32;
typedef long long __s64;
typedef __u16 __be16;
typedef __u32 __be32;
typedef __u64 __be64;
typedef __u32 __wsum;

/* include/uapi/linux/bpf.h */
enum {
	BPF_MAP_TYPE_HASH = 1,
	BPF_MAP_TYPE_ARRAY = 2,
	BPF_MAP_TYPE_PROG_ARRAY = 3,
	BPF_MAP_TYPE_PERF_EVENT_ARRAY = 4,
	BPF_MAP_TYPE_PERCPU_ARRAY = 6,
	BPF_MAP_TYPE_LRU_HASH = 9,
	BPF_MAP_TYPE_ARRAY_OF_MAPS = 12,
	BPF_MAP_TYPE_RINGBUF = 27,
};

enum {
	BPF_ANY = 0,
	BPF_NOEXIST = 1,
};

#define BPF_F_CURRENT_CPU 0xffffffffULL
#define BPF_RB_NO_WAKEUP 1
#define BPF_RB_FORCE_WAKEUP 2
#define BPF_RB_AVAIL_DATA 0

/* Context of syscalls:sys_enter_*; the loader compares it with the format files. */
struct dt_sys_enter {
	__u64 common;
	__s32 nr;
	__u32 pad;
	__u64 arg[6];
};

/* Context of syscalls:sys_exit_*. */
struct dt_sys_exit {
	__u64 common;
	__s32 nr;
	__u32 pad;
	__s64 ret;
};

/* Context of a raw tracepoint: its arguments. */
struct dt_raw {
	__u64 arg[4];
};

/* arch/x86/include/asm/ptrace.h: the first arguments of a system call, which lie at DT_REGS_DX of pt_regs. */
struct dt_regs {
	__u64 dx; /* the third */
	__u64 si; /* the second */
	__u64 di; /* the first */
};

#define DT_REGS_DX 96

/* include/linux/sched.h: of prev_state. All that lies above was preempted. */
#define TASK_UNINTERRUPTIBLE 2
#define TASK_BLOCKED 0xff

/* include/uapi/linux/uio.h, socket.h, sched.h: what system calls are given. */
struct dt_iovec {
	__u64 base;
	__u64 len;
};

struct dt_msghdr {
	__u64 name;
	__u64 namelen;
	__u64 iov;
	__u64 iovlen;
	__u64 control;
	__u64 controllen;
};

/* include/linux/socket.h: struct cmsghdr and the first descriptor of SCM_RIGHTS. */
struct dt_rights {
	__u64 len;
	__s32 level;
	__s32 type;
	__s32 fd;
	__s32 pad;
};

struct dt_sockaddr {
	__u16 family;
	__u8 port[2]; /* network order */
	__u8 addr4[4];
	__u8 addr6[16]; /* sin6_addr: after sin6_flowinfo, which lies where sin_addr does */
};

#define AF_UNIX 1
#define SOL_SOCKET 1
#define SCM_RIGHTS 1
#define AF_INET 2
#define AF_INET6 10
#define SOCK_STREAM 1
#define SOCK_TYPE_MASK 0xf
#define MSG_PEEK 2
#define EINPROGRESS 115
#define ENOSPC 28
#define CLONE_THREAD 0x00010000
#define CLOSE_RANGE_CLOEXEC 4

/* include/linux/blk_types.h: of bi_opf and cmd_flags, as they are since 4.10. */
#define REQ_OP_MASK 0xff
#define REQ_OP_READ 0
#define REQ_OP_WRITE 1
#define REQ_OP_DISCARD 3
#define REQ_OP_SECURE_ERASE 5
#define REQ_OP_WRITE_SAME 7 /* until 5.17 */
#define REQ_OP_WRITE_ZEROES 9

#ifndef DT_LEGACY

enum req_flag_bits {
	__REQ_PREFLUSH = 18,
};

#pragma clang attribute push(__attribute__((preserve_access_index)), apply_to = record)

struct inode {
	unsigned short i_mode;
	unsigned long i_ino;
};

struct file {
	struct inode *f_inode;
	void *private_data;
};

struct fdtable {
	unsigned int max_fds;
	struct file **fd;
};

struct files_struct {
	struct fdtable *fdt;
};

struct sock_common {
	unsigned short skc_family;
};

struct upid {
	int nr;
};

struct pid {
	struct upid numbers[1];
};

struct socket;

struct sock {
	struct sock_common __sk_common;
	struct socket *sk_socket;
	struct pid *sk_peer_pid;
};

struct unix_sock {
	struct sock *peer;
};

struct socket {
	short type;
	struct file *file;
	struct sock *sk;
};

struct sched_entity {
	__u64 sum_exec_runtime;
};

struct signal_struct {
	unsigned long long sum_sched_runtime;
};

struct gendisk {
	int major;
	int first_minor;
};

struct request_queue {
	struct gendisk *disk; /* 5.17 */
};

struct request {
	struct request_queue *q;
	unsigned int cmd_flags;
	__u64 __sector;
};

struct request___old {
	struct gendisk *rq_disk; /* until 5.16 */
};

struct block_device {
	unsigned int bd_dev;
};

struct bvec_iter {
	__u64 bi_sector;
	unsigned int bi_size;
};

struct bio {
	struct block_device *bi_bdev; /* 5.12 */
	unsigned int bi_opf;
	unsigned char bi_status;
	struct bvec_iter bi_iter;
};

struct bio___old {
	struct gendisk *bi_disk; /* until 5.11 */
};

enum bpf_func_id {
	BPF_FUNC_get_current_task_btf = 158,
};

struct thread_info {
	__u32 status;
};

struct task_struct {
	struct thread_info thread_info;
	struct files_struct *files;
	struct signal_struct *signal;
	struct sched_entity se;
	int pid;
	int exit_code;
};

#pragma clang attribute pop

#endif

#endif
