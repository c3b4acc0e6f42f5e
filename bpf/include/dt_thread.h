/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * How the threads of targets spend their time. The wait probe keeps the account
 * of each. Who makes a record with which a span can end (bytes written, a log
 * line, the end of a thread) has the account told first, so that the span knows
 * what lies before its end.
 */
#ifndef DT_THREAD_H
#define DT_THREAD_H

/* A stretch is not ended by a record when it is shorter than this. */
#define DT_SHORT_NS 10000

/* One thread of a target. r is the record in the making. */
struct dt_thread {
	struct dt_time r;
	__u64 mark;   /* until here it is accounted for */
	__u64 woken;  /* when the wait that it is in ended, 0: not yet */
	__u64 hyper;  /* when its hypercall began, 0: it is in none */
	__u64 queued; /* r.spent[DT_RUNQ] then */
	__u64 held;   /* detail of its hypercall */
	__u64 arg[2]; /* of its system call */
	__s32 call;   /* number of its system call; it may have come back from it */
	__u8 off;     /* it has no CPU, as far as was seen */
	__u8 state;   /* off: enum dt_spent of the wait that it is or was in; 0: it was preempted */
	__u8 opening; /* enum dt_spent of the device that it opens, 0: none */
	__u8 pad;
};

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 16384);
	__type(key, __u32); /* tid */
	__type(value, struct dt_thread);
} dt_threads SEC(".maps");

/* One zeroed entry from which new ones start. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct dt_thread);
} dt_thread_zero SEC(".maps");

/* A thread whose time is to be told from now on. */
static __always_inline struct dt_thread *dt_thread_new(__u32 tgid, __u32 tid, __u8 component)
{
	__u32 k = 0;
	struct dt_thread *th = bpf_map_lookup_elem(&dt_thread_zero, &k);

	if (!th)
		return 0;
	bpf_map_update_elem(&dt_threads, &tid, th, BPF_ANY);
	th = bpf_map_lookup_elem(&dt_threads, &tid);
	if (!th) {
		dt_lost_by(DT_WAIT, DT_LOSS_THREADS);
		return 0;
	}
	th->r.h.kind = DT_TIME;
	th->r.h.component = component;
	th->r.h.tgid = tgid;
	th->r.h.tid = tid;
	th->call = -1;
	th->mark = bpf_ktime_get_ns();
	th->r.first = th->mark;
	return th;
}

/* Sends the record of th, which ends at last, and begins another at next. */
static __always_inline void dt_tell(void *ctx, struct dt_thread *th, __u64 last, __u64 next, const struct dt_config *conf)
{
	th->r.last = last;
	dt_send_by(DT_WAIT, ctx, &th->r.h, sizeof(th->r), conf);
	__builtin_memset(th->r.spent, 0, sizeof(th->r.spent));
	th->r.runnable = 0;
	th->r.detail = 0;
	th->r.nr = 0;
	th->r.wait = 0;
	th->r.first = next;
}

/* Tells a long wait, and before it what was before it. */
static __always_inline void dt_tell_wait(void *ctx, struct dt_thread *th, __u8 wait, __u64 first, __u64 runnable, __u64 last,
					 __u64 spent, __u64 queued, const struct dt_config *conf)
{
	if (first > th->r.first)
		dt_tell(ctx, th, first, first, conf);
	th->r.spent[wait & (DT_SPENT - 1)] += spent;
	th->r.spent[DT_RUNQ] += queued;
	th->r.runnable = runnable;
	th->r.nr = th->call;
	th->r.wait = wait;
	th->r.detail = wait == DT_HYPERCALL ? th->held : 0;
	dt_tell(ctx, th, last, last, conf);
}

/*
 * The thread has a CPU again since last. What it waited for until th->woken
 * and what it queued for after that goes into its account, or is told if the
 * wait was long. In a hypercall only the queueing counts: the rest is reckoned
 * when that ends.
 */
static __always_inline void dt_goes_on(void *ctx, struct dt_thread *th, __u64 last, const struct dt_config *conf)
{
	__u64 first = th->mark, woken = th->woken, spent;
	__u8 wait = th->state;

	th->off = 0;
	th->mark = last;
	if (!woken || woken > last)
		woken = last;
	if (woken < first)
		woken = first;
	spent = woken - first;
	if (wait && !th->hyper && spent >= conf->wait_ns) {
		dt_tell_wait(ctx, th, wait, first, woken, last, spent, last - woken, conf);
		return;
	}
	if (!th->hyper)
		th->r.spent[wait & (DT_SPENT - 1)] += spent;
	th->r.spent[DT_RUNQ] += last - woken;
}

/*
 * The thread that is running was thought to have no CPU: its switch to it was
 * not seen. How long it queued is not known. If it was not seen either that its
 * wait ended, the wait is taken to have lasted until now: it has done nothing
 * since that a hook saw.
 */
static __always_inline void dt_found_running(void *ctx, struct dt_thread *th, __u64 now, const struct dt_config *conf)
{
	dt_lost_by(DT_WAIT, DT_LOSS_SWITCH);
	if (!th->state) { /* preempted */
		th->off = 0;
		th->mark = now;
		return;
	}
	dt_goes_on(ctx, th, th->woken ? th->woken : now, conf);
	th->mark = now;
}

/* Adds the time since th->mark, in which the running thread had the CPU. */
static __always_inline void dt_ran(struct dt_thread *th, __u64 now)
{
	if (!th->hyper && now > th->mark)
		th->r.spent[DT_ON_CPU] += now - th->mark;
	th->mark = now;
}

/* The account of the running thread, if there is one. */
static __always_inline struct dt_thread *dt_thread_self(void)
{
	__u64 id = bpf_get_current_pid_tgid();
	__u32 tid = id;
	struct dt_thread *th = bpf_map_lookup_elem(&dt_threads, &tid);

	return th && th->r.h.tgid == id >> 32 ? th : 0;
}

static __noinline int dt_stretch(void *ctx)
{
	struct dt_thread *th = dt_thread_self();
	struct dt_config *conf = dt_conf();
	__u64 now;

	if (!th || !conf)
		return 0;
	now = bpf_ktime_get_ns();
	if (th->off)
		dt_found_running(ctx, th, now, conf);
	if (th->hyper || now < th->r.first + DT_SHORT_NS)
		return 0;
	dt_ran(th, now);
	dt_tell(ctx, th, now, now, conf);
	return 0;
}

/* The running thread is about to make a record with which a span can end. */
static __always_inline void dt_tell_time(void *ctx)
{
	struct dt_config *conf = dt_conf();

	if (conf && conf->wait_ns)
		dt_stretch(ctx);
}

#endif
