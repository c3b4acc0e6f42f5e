/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * What programs at functions of the kernel are given, on x86-64. The body of such a
 * program takes plain arguments: that of a tracepoint calls it too.
 */
#ifndef DT_FUNC_H
#define DT_FUNC_H

#include "dt_maps.h"

/* arch/x86/include/asm/ptrace.h: struct pt_regs, as all kernels have it. */
struct dt_pt_regs {
	__u64 r15, r14, r13, r12, bp, bx, r11, r10, r9, r8, ax, cx, dx, si, di, orig_ax, ip, cs, flags, sp, ss;
};

/* Of SEC("kprobe/..."): arguments of the function. */
#define DT_ARG1(regs) ((regs)->di)
#define DT_ARG2(regs) ((regs)->si)
#define DT_ARG3(regs) ((regs)->dx)

/* Of SEC("kretprobe/..."): what it returns. */
#define DT_RESULT(regs) ((__s64)(regs)->ax)

/*
 * An argument of a system call, in a program at its __x64_sys_*, which are given the
 * registers of user space. It is a function to have a stack of its own.
 */
static __noinline __u64 dt_sys_arg(__u64 regs, __u32 offset)
{
	__u64 v = 0;

	if (dt_read_kernel(&v, sizeof(v), regs + offset))
		dt_lost(DT_LOSS_FAULT);
	return v;
}

#define DT_SYS_ARG1(regs) dt_sys_arg((regs)->di, __builtin_offsetof(struct dt_pt_regs, di))
#define DT_SYS_ARG2(regs) dt_sys_arg((regs)->di, __builtin_offsetof(struct dt_pt_regs, si))
#define DT_SYS_ARG3(regs) dt_sys_arg((regs)->di, __builtin_offsetof(struct dt_pt_regs, dx))

#endif
