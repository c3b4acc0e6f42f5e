//go:build ignore

// SPDX-License-Identifier: GPL-2.0-only
/*
 * The wait probe: what the threads of targets spend their time with. Which
 * system call a thread is in is noted when it enters one; the scheduler says
 * when it stops, could go on, and goes on. What it waits for follows from the
 * call and, for reads and writes, from the descriptor.
 */
#define DT_PROBE DT_WAIT
#include "dt_conn.h"

char LICENSE[] SEC("license") = "GPL";

/* dt_calls: what is to be done when a thread enters a system call. */
#define DT_CALL_IOCTL 1
#define DT_CALL_OPEN 2   /* the path is arg[0] */
#define DT_CALL_OPENAT 3 /* the path is arg[1] */
#define DT_CALL_CLOSE 4
#define DT_CALL_CONNECT 5

/* dt_call.wait beyond enum dt_spent: what decides what a wait in it is for. */
#define DT_BY_FD 16   /* the descriptor arg[0] */
#define DT_SELECT 17  /* a sleep when it is given no descriptors: arg[0] is 0 */
#define DT_POLLING 18 /* the same with arg[1] */

/* A system call, as user space describes it. */
struct dt_call {
	__u8 wait;  /* enum dt_spent or one of the above */
	__u8 enter; /* DT_CALL_*, 0: nothing */
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 512);
	__type(key, __u32); /* number of the system call */
	__type(value, struct dt_call);
} dt_calls SEC(".maps");

/* Descriptors whose waits are for something that their kind of file does not tell. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 4096);
	__type(key, struct dt_conn_key);
	__type(value, __u8); /* enum dt_spent */
} dt_fds SEC(".maps");

/* ---- enter ---- */

/* xen/include/uapi: IOCTL_PRIVCMD_HYPERCALL, what it is given, and domctl's number */
#define PRIVCMD_HYPERCALL 0x00305000
#define HYPERVISOR_DOMCTL 36

struct dt_hypercall {
	__u64 op;
	__u64 arg0;
};

static __always_inline void dt_hypercall(struct dt_thread *th, __u64 arg)
{
	struct dt_hypercall h = {};
	__u32 cmd = 0;

	if (dt_read_user(&h, sizeof(h), arg))
		dt_lost(DT_LOSS_FAULT);
	if (h.op == HYPERVISOR_DOMCTL && dt_read_user(&cmd, sizeof(cmd), h.arg0))
		dt_lost(DT_LOSS_FAULT);
	th->held = (h.op & 0xffffffff) | (__u64)cmd << 32;
	th->queued = th->r.spent[DT_RUNQ];
	dt_ran(th, bpf_ktime_get_ns());
	th->hyper = th->mark;
}

/* The device at path, by what waits on it are for. */
static __always_inline __u8 dt_device(__u64 path)
{
	__u64 w[2] = {};

	if (dt_read_user(w, sizeof(w), path))
		return 0;
	if (w[0] == DT_W('/', 'd', 'e', 'v', '/', 'x', 'e', 'n')) {
		if (w[1] == DT_W('/', 'e', 'v', 't', 'c', 'h', 'n', 0))
			return DT_EVTCHN;
		if (w[1] == DT_W('/', 'x', 'e', 'n', 'b', 'u', 's', 0) || w[1] == DT_W('/', 'x', 'e', 'n', 's', 't', 'o', 'r'))
			return DT_XENSTORE;
	}
	if (w[0] == DT_W('/', 'p', 'r', 'o', 'c', '/', 'x', 'e') && w[1] == DT_W('n', '/', 'x', 'e', 'n', 'b', 'u', 's'))
		return DT_XENSTORE;
	return 0;
}

/* [/var]/run/xenstored/socket */
static __always_inline int dt_is_xenstored(__u64 addr)
{
	struct {
		__u16 family;
		char path[22];
	} a = {};
	__u64 w;

	if (dt_read_user(&a, sizeof(a), addr) || a.family != AF_UNIX)
		return 0;
	__builtin_memcpy(&w, a.path, sizeof(w));
	if (w == DT_W('/', 'v', 'a', 'r', '/', 'r', 'u', 'n')) {
		__builtin_memcpy(&w, a.path + 8, sizeof(w));
		return w == DT_W('/', 'x', 'e', 'n', 's', 't', 'o', 'r');
	}
	if (w != DT_W('/', 'r', 'u', 'n', '/', 'x', 'e', 'n'))
		return 0;
	__builtin_memcpy(&w, a.path + 8, sizeof(w));
	return w == DT_W('s', 't', 'o', 'r', 'e', 'd', '/', 's');
}

static __always_inline void dt_is_for(__u32 tgid, __s32 fd, __u8 wait)
{
	struct dt_conn_key key = { .tgid = tgid, .fd = fd };

	if (bpf_map_update_elem(&dt_fds, &key, &wait, BPF_ANY))
		dt_lost(DT_LOSS_FDS);
}

/* The calling thread, if it is a target's. */
static __always_inline struct dt_thread *dt_caller(void *ctx)
{
	__u64 id = bpf_get_current_pid_tgid();
	__u32 tgid = id >> 32, tid = id;
	struct dt_target *t = dt_target(tgid, DT_WATCH_WAIT);
	struct dt_config *conf;
	struct dt_thread *th;

	if (!t)
		return 0;
	th = bpf_map_lookup_elem(&dt_threads, &tid);
	if (!th || th->r.h.tgid != tgid)
		return dt_thread_new(tgid, tid, t->component);
	if (!th->off)
		return th;
	conf = dt_conf();
	if (conf)
		dt_found_running(ctx, th, bpf_ktime_get_ns(), conf);
	return th;
}

static __always_inline int dt_calling(struct dt_thread *th, __u32 nr, const struct dt_regs *regs)
{
	struct dt_call *call = bpf_map_lookup_elem(&dt_calls, &nr);

	th->hyper = 0;
	th->call = nr;
	th->arg[0] = regs->di;
	th->arg[1] = regs->si;
	if (!call || !call->enter)
		return 0;
	if (call->enter == DT_CALL_CLOSE) {
		struct dt_conn_key key = { .tgid = th->r.h.tgid, .fd = (__s32)th->arg[0] };

		bpf_map_delete_elem(&dt_fds, &key);
	} else if (call->enter == DT_CALL_IOCTL) {
		if (th->arg[1] == PRIVCMD_HYPERCALL)
			dt_hypercall(th, regs->dx);
	} else if (call->enter == DT_CALL_CONNECT) {
		if (dt_is_xenstored(th->arg[1]))
			dt_is_for(th->r.h.tgid, th->arg[0], DT_XENSTORE);
	} else {
		th->opening = dt_device(call->enter == DT_CALL_OPEN ? th->arg[0] : th->arg[1]);
	}
	return 0;
}

/* What a call of a 32-bit program waits for is not known: its number is of no call. */
static __always_inline __u32 dt_call_nr(__u32 nr)
{
	return dt_compat_call() ? -1 : nr;
}

/* Given the registers of the thread and the number of the call. */
SEC("raw_tracepoint/sys_enter")
int dt_w_enter(struct dt_raw *ctx)
{
	struct dt_thread *th = dt_caller(ctx);
	struct dt_regs regs = {};

	if (!th)
		return 0;
	if (dt_read_kernel(&regs, sizeof(regs), ctx->arg[0] + DT_REGS_DX))
		dt_lost(DT_LOSS_FAULT);
	return dt_calling(th, dt_call_nr(ctx->arg[1]), &regs);
}

/* The same where that one does not keep the CPU. */
SEC("tracepoint/raw_syscalls/sys_enter")
int dt_w_tenter(struct dt_sys_enter *ctx)
{
	struct dt_thread *th = dt_caller(ctx);
	struct dt_regs regs = { .di = ctx->arg[0], .si = ctx->arg[1], .dx = ctx->arg[2] };

	return th ? dt_calling(th, dt_call_nr(ctx->nr), &regs) : 0;
}

/* open and openat */
SEC("tracepoint/syscalls/sys_exit_openat")
int dt_w_opened(struct dt_sys_exit *ctx)
{
	struct dt_thread *th = dt_thread_self();

	if (!th || !th->opening)
		return 0;
	if (ctx->ret >= 0)
		dt_is_for(th->r.h.tgid, ctx->ret, th->opening);
	th->opening = 0;
	return 0;
}

/* Back from a hypercall. */
SEC("tracepoint/syscalls/sys_exit_ioctl")
int dt_w_called(void *ctx)
{
	struct dt_thread *th = dt_thread_self();
	struct dt_config *conf;
	__u64 now, first, queued, spent;

	if (!th || !th->hyper)
		return 0;
	conf = dt_conf();
	if (!conf)
		return 0;
	now = bpf_ktime_get_ns();
	if (th->off)
		dt_found_running(ctx, th, now, conf);
	first = th->hyper;
	th->hyper = 0;
	th->mark = now;
	queued = th->r.spent[DT_RUNQ] - th->queued;
	spent = now - first;
	if (queued > spent)
		queued = spent;
	spent -= queued;
	if (spent < conf->wait_ns) {
		th->r.spent[DT_HYPERCALL] += spent;
		return 0;
	}
	th->r.spent[DT_RUNQ] -= queued;
	dt_tell_wait(ctx, th, DT_HYPERCALL, first, now, now, spent, queued, conf);
	return 0;
}

/* ---- the scheduler ---- */

/* Waits that are open to signals: a thread that sleeps deeper is not in one. */
#define DT_OPEN_WAITS \
	(1 << DT_XENSTORE | 1 << DT_EVTCHN | 1 << DT_LOCK | 1 << DT_NETWORK | 1 << DT_SLEEP | 1 << DT_POLL | 1 << DT_PIPE)

/* What a read or write of a descriptor waits for. */
static __always_inline __u8 dt_wait_on(__u32 tgid, __s32 fd, __u64 state)
{
	struct dt_conn_key key = { .tgid = tgid, .fd = fd };
	__u8 *known = bpf_map_lookup_elem(&dt_fds, &key);
	struct dt_conn *c;

	if (known)
		return *known;
	c = bpf_map_lookup_elem(&dt_conns, &key);
	if (c && !(c->flags & DT_C_PLAIN))
		return DT_NETWORK;
	return dt_fd_wait(fd, state);
}

/* What a thread that stops in that state waits for. */
static __always_inline __u8 dt_wait(const struct dt_thread *th, __u64 state)
{
	__u32 nr = th->call;
	struct dt_call *call;
	__u8 wait;

	if (th->hyper)
		return DT_HYPERCALL;
	call = bpf_map_lookup_elem(&dt_calls, &nr);
	if (!call)
		return DT_OTHER;
	wait = call->wait;
	if (wait == DT_BY_FD)
		wait = dt_wait_on(th->r.h.tgid, th->arg[0], state);
	else if (wait == DT_SELECT)
		wait = th->arg[0] ? DT_POLL : DT_SLEEP;
	else if (wait == DT_POLLING)
		wait = th->arg[1] ? DT_POLL : DT_SLEEP;
	if (wait <= DT_RUNQ || wait >= DT_SPENT)
		return DT_OTHER;
	if (state & TASK_UNINTERRUPTIBLE && 1ULL << wait & DT_OPEN_WAITS)
		return DT_OTHER; /* a page of memory, perhaps, after the call */
	return wait;
}

SEC("tracepoint/sched/sched_switch")
int dt_w_switch(void *ctx)
{
	struct dt_thread *th = dt_thread_self();
	struct dt_config *conf = dt_conf();
	__u64 state = 0, now;
	__u32 next = 0;

	if (!conf)
		return 0;
	if (th) {
		now = bpf_ktime_get_ns();
		if (th->off)
			dt_found_running(ctx, th, now, conf);
		dt_ran(th, now);
		if (dt_read_kernel(&state, sizeof(state), (__u64)ctx + conf->switch_state))
			dt_lost(DT_LOSS_FAULT);
		th->state = 0;
		th->woken = now;
		if (state & TASK_BLOCKED) {
			th->state = dt_wait(th, state);
			th->woken = 0;
		}
		th->off = 1;
	}
	if (dt_read_kernel(&next, sizeof(next), (__u64)ctx + conf->switch_next)) {
		dt_lost(DT_LOSS_FAULT);
		return 0;
	}
	th = bpf_map_lookup_elem(&dt_threads, &next);
	if (!th)
		return 0;
	now = bpf_ktime_get_ns();
	if (!th->off) { /* it was not seen how it lost its CPU: nor when */
		dt_lost(DT_LOSS_SWITCH);
		th->mark = now;
		return 0;
	}
	if (th->state && !th->woken)
		dt_lost(DT_LOSS_WAKEUP);
	dt_goes_on(ctx, th, now, conf);
	return 0;
}

static __always_inline int dt_woken(__u32 tid)
{
	struct dt_thread *th = bpf_map_lookup_elem(&dt_threads, &tid);

	if (th && th->off && !th->woken)
		th->woken = bpf_ktime_get_ns();
	return 0;
}

/* Mostly in interrupts: as a raw tracepoint it is also run when they come while a program runs. */
SEC("raw_tracepoint/sched_wakeup")
int dt_w_rwakeup(struct dt_raw *ctx)
{
	struct dt_config *conf = dt_conf();

	return conf ? dt_woken(dt_task_pid(ctx->arg[0], conf)) : 0;
}

SEC("tracepoint/sched/sched_wakeup")
int dt_w_wakeup(void *ctx)
{
	struct dt_config *conf = dt_conf();
	__u32 pid = 0;

	if (!conf || dt_read_kernel(&pid, sizeof(pid), (__u64)ctx + conf->wakeup_pid))
		return 0;
	return dt_woken(pid);
}

SEC("tracepoint/sched/sched_process_exit")
int dt_w_exit(void *ctx)
{
	struct dt_thread *th = dt_thread_self();
	__u32 tid;

	if (!th)
		return 0;
	th->hyper = 0;
	dt_stretch(ctx);
	tid = bpf_get_current_pid_tgid();
	bpf_map_delete_elem(&dt_threads, &tid);
	return 0;
}

/* ---- where programs of system calls do not keep the CPU ---- */

DT_TABLE(dt_w_rets, DT_CALLS);
DT_DISPATCH(dt_w_ret, "sys_exit", dt_w_rets, 0)
