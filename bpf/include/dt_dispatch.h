/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * From Linux 7 on, other threads may take the CPU from a program of
 * syscalls:sys_enter_* or sys_exit_*, and the kernel skips a program that another
 * thread on that CPU is in. At raw_syscalls:* programs still keep the CPU, and are
 * given the same. So there, the program of a system call is called by one of
 * raw_syscalls:*, from a table that the loader fills.
 *
 * The system calls of 32-bit programs have other numbers there; they are left out,
 * as they are at the calls' own tracepoints. The legacy tier cannot tell them, and
 * takes them for others.
 */
#ifndef DT_DISPATCH_H
#define DT_DISPATCH_H

#include "dt_compat.h"

#define DT_CALLS 512 /* numbers of system calls; bpf/dispatch.go: maxCalls */

#define DT_TABLE(name, entries)                        \
	struct {                                       \
		__uint(type, BPF_MAP_TYPE_PROG_ARRAY); \
		__uint(max_entries, (entries));        \
		__uint(key_size, sizeof(__u32));       \
		__uint(value_size, sizeof(__u32));     \
	} name SEC(".maps")

/* program calls those of a table, from entry first on. */
#define DT_DISPATCH(program, hook, table, first)            \
	SEC("tracepoint/raw_syscalls/" hook)                \
	int program(struct dt_sys_enter *ctx)               \
	{                                                   \
		__u32 nr = ctx->nr;                         \
                                                            \
		if (nr < DT_CALLS && !dt_compat_call())     \
			bpf_tail_call(ctx, &table, (first) + nr); \
		return 0;                                   \
	}

#endif
