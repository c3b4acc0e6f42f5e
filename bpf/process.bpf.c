//go:build ignore

// SPDX-License-Identifier: GPL-2.0-only
/*
 * The process probe: fork, exec and exit of targets and of their children,
 * which become targets here, at the fork, before they can do anything.
 */
#define DT_PROBE DT_PROCESS
#include "dt_maps.h"

char LICENSE[] SEC("license") = "GPL";

/* Flags that a thread gave to clone, until sched_process_fork asks for them. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 4096);
	__type(key, __u64); /* pid_tgid */
	__type(value, __u64);
} dt_clones SEC(".maps");

/* What a process gave to execve, a record in the making. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 1024);
	__type(key, __u32); /* tgid: an exec changes the tid of a thread that is not the leader */
	__type(value, struct dt_exec);
} dt_execs SEC(".maps");

/* What an entry of dt_execs starts from: too large for the stack. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct dt_exec);
} dt_exec_zero SEC(".maps");

static __always_inline struct dt_exec *dt_exec_entry(__u32 tgid)
{
	__u32 k = 0;
	struct dt_exec *e = bpf_map_lookup_elem(&dt_exec_zero, &k);

	if (!e)
		return 0;
	bpf_map_update_elem(&dt_execs, &tgid, e, BPF_ANY);
	e = bpf_map_lookup_elem(&dt_execs, &tgid);
	if (!e)
		dt_lost(DT_LOSS_EXECS);
	return e;
}

static __always_inline void dt_head(struct dt_hdr *h, __u16 kind, __u16 flags, __u8 component, __u64 id)
{
	h->kind = kind;
	h->flags = flags;
	h->component = component;
	h->tgid = id >> 32;
	h->tid = id;
}

static __always_inline int dt_cloning(__u64 flags)
{
	__u64 id = bpf_get_current_pid_tgid();

	if (dt_target(id >> 32, DT_WATCH_PROCESS) && bpf_map_update_elem(&dt_clones, &id, &flags, BPF_ANY))
		dt_lost(DT_LOSS_CLONES);
	return 0;
}

SEC("tracepoint/syscalls/sys_enter_clone")
int dt_e_clone(struct dt_sys_enter *ctx)
{
	return dt_cloning(ctx->arg[0]);
}

SEC("tracepoint/syscalls/sys_enter_clone3")
int dt_e_clone3(struct dt_sys_enter *ctx)
{
	__u64 flags = 0;

	if (!dt_target(bpf_get_current_pid_tgid() >> 32, DT_WATCH_PROCESS))
		return 0;
	if (dt_read_user(&flags, sizeof(flags), ctx->arg[0])) { /* struct clone_args begins with them */
		dt_lost(DT_LOSS_FAULT);
		return 0;
	}
	return dt_cloning(flags);
}

/* fork and vfork */
SEC("tracepoint/syscalls/sys_enter_vfork")
int dt_e_fork(void *ctx)
{
	return dt_cloning(0);
}

SEC("tracepoint/sched/sched_process_fork")
int dt_fork(void *ctx)
{
	__u64 id = bpf_get_current_pid_tgid();
	struct dt_target *t = dt_target(id >> 32, DT_WATCH_PROCESS);
	struct dt_config *conf;
	struct dt_target child = {};
	struct dt_fork r = {};
	__u64 *flags;
	__u32 tid = 0;

	if (!t)
		return 0;
	conf = dt_conf();
	if (!conf || dt_read_kernel(&tid, sizeof(tid), (__u64)ctx + conf->fork_child)) {
		dt_lost(DT_LOSS_FAULT);
		return 0;
	}
	dt_head(&r.h, DT_FORK, 0, t->component, id);
	r.child_tid = tid;
	flags = bpf_map_lookup_elem(&dt_clones, &id);
	if (!flags) {
		/*
		 * Thread or process? Taken for a process, but not followed: a thread's
		 * entry in dt_targets would never go.
		 */
		r.h.flags = DT_F_NOENTER;
		r.child_tgid = tid;
		t->state |= DT_T_THREADS;
		dt_lost(DT_LOSS_ENTER);
	} else if (*flags & CLONE_THREAD) {
		t->state |= DT_T_THREADS;
		r.h.flags = DT_F_THREAD;
		r.child_tgid = id >> 32;
	} else {
		r.child_tgid = tid;
		child.since = bpf_ktime_get_ns();
		child.component = t->component;
		child.watch = DT_WATCH_PROCESS | (t->watch & DT_WATCH_WAIT);
		if (bpf_map_update_elem(&dt_targets, &tid, &child, BPF_ANY))
			dt_lost(DT_LOSS_TARGETS);
	}
	bpf_map_delete_elem(&dt_clones, &id);
	dt_send(ctx, &r.h, sizeof(r));
	if (flags && t->watch & DT_WATCH_WAIT) {
		struct dt_thread *th = dt_thread_new(r.child_tgid, tid, t->component);

		if (th) { /* it queues for its first CPU */
			th->off = 1;
			th->woken = th->mark;
		}
	}
	return 0;
}

#define DT_READ_ARG(i)                                                                                \
	if (argv) {                                                                                   \
		__u64 p = 0;                                                                          \
                                                                                                      \
		if (dt_read_user(&p, sizeof(p), argv + 8 * ((i) + 1)))                                \
			dt_lost(DT_LOSS_FAULT), argv = 0;                                             \
		else if (!p)                                                                          \
			argv = 0;                                                                     \
		else if (dt_read_user_str(e->arg[i], DT_ARG_LEN, p) < 0)                              \
			dt_lost(DT_LOSS_FAULT);                                                       \
	}

static __always_inline int dt_execing(__u64 file, __u64 argv)
{
	__u64 id = bpf_get_current_pid_tgid();
	__u32 tgid = id >> 32;
	struct dt_target *t = dt_target(tgid, DT_WATCH_PROCESS);
	struct dt_exec *e;

	if (!t)
		return 0;
	if ((__u32)id != tgid)
		t->state |= DT_T_EXEC;
	e = dt_exec_entry(tgid);
	if (!e)
		return 0;
	/* A constant path may be in no memory yet; dt_exec has another source then. */
	dt_read_user_str(e->filename, DT_ARG_LEN, file);
	DT_READ_ARG(0)
	DT_READ_ARG(1)
	DT_READ_ARG(2)
	DT_READ_ARG(3)
	DT_READ_ARG(4)
	DT_READ_ARG(5)
	return 0;
}

SEC("tracepoint/syscalls/sys_enter_execve")
int dt_e_execve(struct dt_sys_enter *ctx)
{
	return dt_execing(ctx->arg[0], ctx->arg[1]);
}

SEC("tracepoint/syscalls/sys_enter_execveat")
int dt_e_execveat(struct dt_sys_enter *ctx)
{
	return dt_execing(ctx->arg[1], ctx->arg[2]);
}

/* Back from execve or execveat: it failed, or dt_exec has been. */
SEC("tracepoint/syscalls/sys_exit_execve")
int dt_x_execve(struct dt_sys_exit *ctx)
{
	__u32 tgid = bpf_get_current_pid_tgid() >> 32;
	struct dt_target *t = dt_target(tgid, DT_WATCH_PROCESS);

	if (!t)
		return 0;
	t->state &= ~DT_T_EXEC;
	bpf_map_delete_elem(&dt_execs, &tgid);
	return 0;
}

SEC("tracepoint/sched/sched_process_exec")
int dt_exec(void *ctx)
{
	__u64 id = bpf_get_current_pid_tgid();
	__u32 tgid = id >> 32;
	struct dt_target *t = dt_target(tgid, DT_WATCH_PROCESS);
	struct dt_exec *e;
	__u16 flags = 0;

	if (!t)
		return 0;
	t->since = bpf_ktime_get_ns(); /* of the sockets, only those without CLOEXEC are left */
	t->state = 0; /* an exec ends the other threads first */
	e = bpf_map_lookup_elem(&dt_execs, &tgid);
	if (!e) {
		e = dt_exec_entry(tgid);
		if (!e)
			return 0;
		flags = DT_F_NOENTER;
		dt_lost(DT_LOSS_ENTER);
	}
	if (!e->filename[0]) {
		struct dt_config *conf = dt_conf();
		__u32 loc = 0;

		/* __data_loc: offset in the low half */
		if (!conf || dt_read_kernel(&loc, sizeof(loc), (__u64)ctx + conf->exec_filename) ||
		    dt_read_kernel_str(e->filename, DT_ARG_LEN, (__u64)ctx + (loc & 0xffff)) < 0)
			dt_lost(DT_LOSS_FAULT);
	}
	dt_head(&e->h, DT_EXEC, flags, t->component, id);
	bpf_get_current_comm(e->comm, sizeof(e->comm));
	dt_send(ctx, &e->h, sizeof(*e));
	bpf_map_delete_elem(&dt_execs, &tgid);
	return 0;
}

SEC("tracepoint/syscalls/sys_enter_exit_group")
int dt_e_exitgrp(struct dt_sys_enter *ctx)
{
	struct dt_target *t = dt_target(bpf_get_current_pid_tgid() >> 32, DT_WATCH_PROCESS);

	if (t) {
		t->code = (ctx->arg[0] & 0xff) << 8;
		t->state |= DT_T_CODE;
	}
	return 0;
}

SEC("tracepoint/sched/sched_process_exit")
int dt_exit(void *ctx)
{
	__u64 id = bpf_get_current_pid_tgid();
	__u32 tgid = id >> 32;
	__u8 leader = (__u32)id == tgid;
	struct dt_target *t = bpf_map_lookup_elem(&dt_targets, &tgid);
	struct dt_exit r = {};

	if (!t)
		return 0;
	if (t->state & DT_T_EXEC)
		leader = 0; /* the process goes on */
	bpf_map_delete_elem(&dt_clones, &id);
	if (!(t->watch & DT_WATCH_PROCESS) && (leader || !(t->state & DT_T_GONE))) {
		if (leader) /* of a target without process watch, or of another process with the number of one */
			bpf_map_delete_elem(&dt_targets, &tgid);
		return 0;
	}
	dt_head(&r.h, DT_EXIT, leader ? DT_F_LEADER : 0, t->component, id);
	dt_exit_facts(&r, t->code, t->state & DT_T_CODE);
	if (leader) {
		bpf_map_delete_elem(&dt_execs, &tgid);
		if (t->state & DT_T_THREADS) {
			/* User space takes it out a little later. */
			t->watch = 0;
			t->state |= DT_T_GONE;
		} else {
			bpf_map_delete_elem(&dt_targets, &tgid);
		}
	}
	dt_tell_time(ctx);
	dt_send(ctx, &r.h, sizeof(r));
	return 0;
}

/* ---- where programs of system calls do not keep the CPU ---- */

DT_TABLE(dt_p_calls, DT_CALLS);
DT_TABLE(dt_p_rets, DT_CALLS);
DT_DISPATCH(dt_p_call, "sys_enter", dt_p_calls, 0)
DT_DISPATCH(dt_p_ret, "sys_exit", dt_p_rets, 0)
