//go:build linux

package bpf

// Way is how a program is attached to a hook.
type Way string

// Ways, the narrowest first.
const (
	// ByRawTracepoint is handed the tracepoint's own arguments. It costs less than
	// ByTracepoint, and runs in interrupts that come while another program runs.
	// Needs Linux 4.17.
	ByRawTracepoint Way = "raw tracepoint"
	// ByTracepoint goes through a perf event. The kernel skips the program when
	// another one of perf events is running on the CPU.
	ByTracepoint Way = "tracepoint"
	// ByDispatcher is by the tracepoint of all system calls, where a program calls
	// that of the one at hand. All calls of all processes pay for it. It is taken
	// from Linux 7 on, which takes the CPU from programs at the calls' own
	// tracepoints.
	ByDispatcher Way = "dispatcher"
	// ByKprobe is at a function of the kernel, with the arguments that it is given.
	// Who does not call it pays nothing, while a program at the tracepoint of one
	// system call takes all processes by the slow path for all of theirs.
	ByKprobe Way = "kprobe"
	// ByKretprobe is where a function returns.
	ByKretprobe Way = "kretprobe"
)

// hook is a tracepoint, or something else that happens, and the programs that can go
// there. Several hooks can share a program.
type hook struct {
	group, name string // of the tracepoint; else the probe and what is watched
	ways        []way  // the narrowest first
	optional    bool   // system calls that some kernels lack
}

// way is one way to attach to a hook, and what is attached.
type way struct {
	by      Way
	program string
	task    bool // it has to know where things are in a task_struct
	btf     bool // it has to know structs that only BTF describes: the modern tier's
	calls   bool // it is at a tracepoint of system calls, where it may lose the CPU from Linux 7 on

	symbol string // the function, of ByKprobe and ByKretprobe
	module string // which has the function or the tracepoint, "" if the kernel itself has
	event  string // the tracepoint, "group:name", "" if the hook is named after it
}

// function tells whether it leads to a function of the kernel.
func (w way) function() bool { return w.by == ByKprobe || w.by == ByKretprobe }

// place is what the way leads to, as cannot be told by the name of the hook.
func (w way) place() string {
	if w.symbol != "" {
		return string(w.by) + " " + w.symbol
	}
	if w.event != "" {
		return string(w.by) + " " + w.event
	}
	return string(w.by)
}

func (h hook) String() string { return h.group + ":" + h.name }

// at is a hook for a program of the tracepoint.
func at(group, name, program string) hook {
	h := hook{group: group, name: name, ways: []way{{by: ByTracepoint, program: program}}}
	if group == "syscalls" {
		h.ways[0].calls = true
		h.ways = append(h.ways, way{by: ByDispatcher, program: program})
	}
	return h
}

// maybe is one for a system call that older kernels lack.
func maybe(group, name, program string) hook {
	h := at(group, name, program)
	h.optional = true
	return h
}

// entering is the way to where a function of the kernel begins, leaving to where it
// ends. A function of a module is not there until the module is loaded.
func entering(symbol, module, program string) way {
	return way{by: ByKprobe, symbol: symbol, module: module, program: program}
}

func leaving(symbol, module, program string) way {
	return way{by: ByKretprobe, symbol: symbol, module: module, program: program}
}

// seen is a hook that is no tracepoint: what a probe watches by functions, or else by
// the tracepoint of a system call.
func seen(p Probe, what, event, program string, functions ...way) hook {
	h := hook{group: p.String(), name: what, ways: functions}
	return h.otherwise(event, program)
}

// otherwise adds the tracepoint of a system call to the ways.
func (h hook) otherwise(event, program string) hook {
	h.ways = append(h.ways,
		way{by: ByTracepoint, event: "syscalls:" + event, program: program, calls: true},
		way{by: ByDispatcher, event: "syscalls:" + event, program: program})
	return h
}

// hooks lists the attach points of each probe in the order of attaching: those
// that only forget come first, exits before enters, so that no call is begun
// whose end nobody sees. Detaching goes the other way.
var hooks = map[Probe][]hook{
	Stream: {
		at("sched", "sched_process_exit", "dt_s_exit"),
		at("syscalls", "sys_enter_close", "dt_e_close"),
		at("syscalls", "sys_enter_dup2", "dt_e_dup"),
		at("syscalls", "sys_enter_dup3", "dt_e_dup"),
		maybe("syscalls", "sys_enter_close_range", "dt_e_closerange"), // 5.9
		at("syscalls", "sys_exit_read", "dt_x_moved"),
		at("syscalls", "sys_exit_write", "dt_x_moved"),
		at("syscalls", "sys_exit_readv", "dt_x_moved"),
		at("syscalls", "sys_exit_writev", "dt_x_moved"),
		at("syscalls", "sys_exit_recvfrom", "dt_x_moved"),
		at("syscalls", "sys_exit_sendto", "dt_x_moved"),
		at("syscalls", "sys_exit_recvmsg", "dt_x_moved"),
		at("syscalls", "sys_exit_recvmsg", "dt_x_rights"),
		at("syscalls", "sys_exit_sendmsg", "dt_x_moved"),
		at("syscalls", "sys_exit_accept", "dt_x_accept"),
		at("syscalls", "sys_exit_accept4", "dt_x_accept"),
		at("syscalls", "sys_exit_connect", "dt_x_connect"),
		at("syscalls", "sys_exit_socket", "dt_x_socket"),
		at("syscalls", "sys_exit_socketpair", "dt_x_pair"),
		at("syscalls", "sys_enter_read", "dt_e_read"),
		at("syscalls", "sys_enter_write", "dt_e_write"),
		at("syscalls", "sys_enter_readv", "dt_e_readv"),
		at("syscalls", "sys_enter_writev", "dt_e_writev"),
		at("syscalls", "sys_enter_recvfrom", "dt_e_recvfrom"),
		at("syscalls", "sys_enter_sendto", "dt_e_write"),
		at("syscalls", "sys_enter_recvmsg", "dt_e_recvmsg"),
		at("syscalls", "sys_enter_sendmsg", "dt_e_sendmsg"),
		at("syscalls", "sys_enter_shutdown", "dt_e_shutdown"),
		at("syscalls", "sys_enter_accept", "dt_e_accept"),
		at("syscalls", "sys_enter_accept4", "dt_e_accept"),
		at("syscalls", "sys_enter_connect", "dt_e_connect"),
		at("syscalls", "sys_enter_socket", "dt_e_socket"),
		at("syscalls", "sys_enter_socketpair", "dt_e_pair"),
	},
	Process: {
		at("sched", "sched_process_exit", "dt_exit"),
		at("sched", "sched_process_exec", "dt_exec"),
		at("syscalls", "sys_exit_execve", "dt_x_execve"),
		at("syscalls", "sys_exit_execveat", "dt_x_execve"),
		at("syscalls", "sys_enter_execve", "dt_e_execve"),
		at("syscalls", "sys_enter_execveat", "dt_e_execveat"),
		at("syscalls", "sys_enter_exit_group", "dt_e_exitgrp"),
		at("syscalls", "sys_enter_clone", "dt_e_clone"),
		maybe("syscalls", "sys_enter_clone3", "dt_e_clone3"), // 5.3
		at("syscalls", "sys_enter_fork", "dt_e_fork"),
		at("syscalls", "sys_enter_vfork", "dt_e_fork"),
		at("sched", "sched_process_fork", "dt_fork"),
	},
	Wait: {
		at("sched", "sched_process_exit", "dt_w_exit"),
		at("syscalls", "sys_exit_ioctl", "dt_w_called"),
		at("syscalls", "sys_exit_open", "dt_w_opened"),
		at("syscalls", "sys_exit_openat", "dt_w_opened"),
		{group: "sched", name: "sched_wakeup", ways: []way{{by: ByRawTracepoint, program: "dt_w_rwakeup", task: true}, {by: ByTracepoint, program: "dt_w_wakeup"}}},
		at("sched", "sched_switch", "dt_w_switch"),
		{group: "raw_syscalls", name: "sys_enter", ways: []way{{by: ByRawTracepoint, program: "dt_w_enter", calls: true}, {by: ByTracepoint, program: "dt_w_tenter"}}},
	},
	Disk: {
		{group: "block", name: "block_rq_complete", ways: []way{{by: ByRawTracepoint, program: "dt_d_rdone", btf: true}, {by: ByTracepoint, program: "dt_d_done"}}},
		{group: "block", name: "block_bio_complete", ways: []way{{by: ByRawTracepoint, program: "dt_d_rend", btf: true}, {by: ByTracepoint, program: "dt_d_end"}}},
		at("block", "block_rq_issue", "dt_d_issue"),
		at("block", "block_split", "dt_d_split"),
		at("block", "block_bio_queue", "dt_d_queue"),
	},
	Tapdisk: {
		seen(Tapdisk, "end of grant copy", "sys_exit_ioctl", "dt_t_ioctled",
			leaving("gntdev_ioctl", "xen_gntdev", "dt_t_kioctled"), leaving("__x64_sys_ioctl", "", "dt_t_kioctled")),
		seen(Tapdisk, "end of io_submit", "sys_exit_io_submit", "dt_t_submitd", leaving("__x64_sys_io_submit", "", "dt_t_ksubmitd")),
		seen(Tapdisk, "eventfd read", "sys_exit_read", "dt_t_read", leaving("eventfd_read", "", "dt_t_keventfd")),
		seen(Tapdisk, "end of select", "sys_exit_select", "dt_t_selectd", leaving("__x64_sys_select", "", "dt_t_kselectd")),
		seen(Tapdisk, "end of pselect6", "sys_exit_pselect6", "dt_t_selectd", leaving("__x64_sys_pselect6", "", "dt_t_kselectd")),
		{group: "sched", name: "sched_wakeup", ways: []way{{by: ByRawTracepoint, program: "dt_t_rwakeup", task: true}, {by: ByTracepoint, program: "dt_t_wakeup"}}},
		at("sched", "sched_switch", "dt_t_switch"),
		at("block", "block_rq_issue", "dt_t_issue"),
		at("block", "block_bio_remap", "dt_t_remap"),
		seen(Tapdisk, "grant copy", "sys_enter_ioctl", "dt_t_ioctl",
			entering("gntdev_ioctl", "xen_gntdev", "dt_t_kcopy"), entering("__x64_sys_ioctl", "", "dt_t_scopy")),
		seen(Tapdisk, "notify", "sys_enter_ioctl", "dt_t_notify",
			entering("evtchn_ioctl", "xen_evtchn", "dt_t_knotify"), entering("__x64_sys_ioctl", "", "dt_t_snotify")),
		seen(Tapdisk, "done before io_submit", "sys_enter_io_submit", "dt_t_take", entering("__x64_sys_io_submit", "", "dt_t_ktake")),
		seen(Tapdisk, "io_submit", "sys_enter_io_submit", "dt_t_submit", entering("__x64_sys_io_submit", "", "dt_t_ksubmit")),
		seen(Tapdisk, "select", "sys_enter_select", "dt_t_select", entering("__x64_sys_select", "", "dt_t_kselect")),
		seen(Tapdisk, "sleep in select", "sys_enter_select", "dt_t_doze", entering("__x64_sys_select", "", "dt_t_kdoze")),
		seen(Tapdisk, "pselect6", "sys_enter_pselect6", "dt_t_select", entering("__x64_sys_pselect6", "", "dt_t_kselect")),
		seen(Tapdisk, "sleep in pselect6", "sys_enter_pselect6", "dt_t_doze", entering("__x64_sys_pselect6", "", "dt_t_kdoze")),
	},
}
