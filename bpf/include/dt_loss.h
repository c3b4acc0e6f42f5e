/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Causes of loss. bpf/loss.go names them; a test compares the two. */
#ifndef DT_LOSS_H
#define DT_LOSS_H

enum dt_loss_cause {
	DT_LOSS_OUTPUT = 0,   /* no room for a record on its way to user space */
	DT_LOSS_CONNS = 1,    /* dt_conns was full: a socket stays unknown */
	DT_LOSS_GATHERS = 2,  /* dt_gathers was full: a small piece went out alone */
	DT_LOSS_INFLIGHT = 3, /* dt_inflight was full: a system call was not followed */
	DT_LOSS_ENTER = 4,    /* the start of a system call was not seen */
	DT_LOSS_FAULT = 5,    /* memory of the process could not be read */
	DT_LOSS_IOVEC = 6,    /* more vectors than DT_IOVS: the rest was not read */
	DT_LOSS_REUSED = 7,   /* a known socket's number came up again, its close was not seen */
	DT_LOSS_STALE = 8,    /* the socket was closed while a call on it was going on */
	DT_LOSS_TARGETS = 9,  /* dt_targets was full: a child is not followed */
	DT_LOSS_CLONES = 10,  /* dt_clones was full: a fork is taken without its flags */
	DT_LOSS_EXECS = 11,   /* dt_execs was full: an exec has no arguments */
	DT_LOSS_FORGOT = 12,  /* sockets forgotten since close_range may have closed them */
	DT_LOSS_THREADS = 13, /* dt_threads was full: a thread's time is not told */
	DT_LOSS_FDS = 14,     /* dt_fds was full: waits on a device count as others */
	DT_LOSS_SWITCH = 15,  /* a thread ran whose switch to the CPU, or from it, was not seen */
	DT_LOSS_WAKEUP = 16,  /* a thread went on whose wakeup was not seen: its wait counts until then */
	DT_LOSS_BIOS = 17,    /* dt_bios was full: a piece of I/O has no latency */
	DT_LOSS_SAME = 18,    /* more I/O of one kind in flight at one sector than is told apart: one has no latency */
	DT_LOSS_UNENDED = 19, /* the end of a piece of I/O was not seen */
	DT_LOSS_PIECES = 20,  /* more pieces in one request than are followed: the rest have no latency */
	DT_LOSS_IOCBS = 21,   /* dt_iocbs was full: a request has no times in the kernel */
	DT_LOSS_PARTS = 22,   /* dt_parts was full: a request is not known */
	DT_LOSS_MANY = 23,    /* more I/O in one io_submit than is followed */
	DT_LOSS_ANSWERS = 24, /* more requests done in one round than are kept until they are answered */
	DT_LOSS_CAUSES = 25,
};

/* Counters of one probe lie side by side in dt_loss, behind those of the CPUs before. */
enum dt_probe {
	DT_STREAM = 0,
	DT_PROCESS = 1,
	DT_WAIT = 2,
	DT_DISK = 3,
	DT_TAPDISK = 4,
	DT_PROBES = 5,
};

#endif
