//go:build linux

package bpf

// hook is a tracepoint and the program that goes there. Several hooks can share
// a program.
type hook struct {
	group, name string
	program     string
	optional    bool // system calls that some kernels lack
}

func (h hook) String() string { return h.group + ":" + h.name }

// hooks lists the attach points of each probe in the order of attaching: those
// that only forget come first, exits before enters, so that no call is begun
// whose end nobody sees. Detaching goes the other way.
var hooks = map[Probe][]hook{
	Stream: {
		{"sched", "sched_process_exit", "dt_s_exit", false},
		{"syscalls", "sys_enter_close", "dt_e_close", false},
		{"syscalls", "sys_enter_dup2", "dt_e_dup", false},
		{"syscalls", "sys_enter_dup3", "dt_e_dup", false},
		{"syscalls", "sys_enter_close_range", "dt_e_closerange", true}, // 5.9
		{"syscalls", "sys_exit_read", "dt_x_moved", false},
		{"syscalls", "sys_exit_write", "dt_x_moved", false},
		{"syscalls", "sys_exit_readv", "dt_x_moved", false},
		{"syscalls", "sys_exit_writev", "dt_x_moved", false},
		{"syscalls", "sys_exit_recvfrom", "dt_x_moved", false},
		{"syscalls", "sys_exit_sendto", "dt_x_moved", false},
		{"syscalls", "sys_exit_recvmsg", "dt_x_moved", false},
		{"syscalls", "sys_exit_recvmsg", "dt_x_rights", false},
		{"syscalls", "sys_exit_sendmsg", "dt_x_moved", false},
		{"syscalls", "sys_exit_accept", "dt_x_accept", false},
		{"syscalls", "sys_exit_accept4", "dt_x_accept", false},
		{"syscalls", "sys_exit_connect", "dt_x_connect", false},
		{"syscalls", "sys_exit_socket", "dt_x_socket", false},
		{"syscalls", "sys_exit_socketpair", "dt_x_pair", false},
		{"syscalls", "sys_enter_read", "dt_e_read", false},
		{"syscalls", "sys_enter_write", "dt_e_write", false},
		{"syscalls", "sys_enter_readv", "dt_e_readv", false},
		{"syscalls", "sys_enter_writev", "dt_e_writev", false},
		{"syscalls", "sys_enter_recvfrom", "dt_e_recvfrom", false},
		{"syscalls", "sys_enter_sendto", "dt_e_write", false},
		{"syscalls", "sys_enter_recvmsg", "dt_e_recvmsg", false},
		{"syscalls", "sys_enter_sendmsg", "dt_e_sendmsg", false},
		{"syscalls", "sys_enter_shutdown", "dt_e_shutdown", false},
		{"syscalls", "sys_enter_accept", "dt_e_accept", false},
		{"syscalls", "sys_enter_accept4", "dt_e_accept", false},
		{"syscalls", "sys_enter_connect", "dt_e_connect", false},
		{"syscalls", "sys_enter_socket", "dt_e_socket", false},
		{"syscalls", "sys_enter_socketpair", "dt_e_pair", false},
	},
	Process: {
		{"sched", "sched_process_exit", "dt_exit", false},
		{"sched", "sched_process_exec", "dt_exec", false},
		{"syscalls", "sys_exit_execve", "dt_x_execve", false},
		{"syscalls", "sys_exit_execveat", "dt_x_execve", false},
		{"syscalls", "sys_enter_execve", "dt_e_execve", false},
		{"syscalls", "sys_enter_execveat", "dt_e_execveat", false},
		{"syscalls", "sys_enter_exit_group", "dt_e_exitgrp", false},
		{"syscalls", "sys_enter_clone", "dt_e_clone", false},
		{"syscalls", "sys_enter_clone3", "dt_e_clone3", true}, // 5.3
		{"syscalls", "sys_enter_fork", "dt_e_fork", false},
		{"syscalls", "sys_enter_vfork", "dt_e_fork", false},
		{"sched", "sched_process_fork", "dt_fork", false},
	},
	Wait: {
		{"sched", "sched_process_exit", "dt_w_exit", false},
		{"syscalls", "sys_exit_ioctl", "dt_w_called", false},
		{"syscalls", "sys_exit_open", "dt_w_opened", false},
		{"syscalls", "sys_exit_openat", "dt_w_opened", false},
		{"sched", "sched_wakeup", "dt_w_wakeup", false},
		{"sched", "sched_switch", "dt_w_switch", false},
		{"raw_syscalls", "sys_enter", "dt_w_enter", false},
	},
	Disk: {
		{"block", "block_rq_complete", "dt_d_done", false},
		{"block", "block_bio_complete", "dt_d_end", false},
		{"block", "block_rq_issue", "dt_d_issue", false},
		{"block", "block_split", "dt_d_split", false},
		{"block", "block_bio_queue", "dt_d_queue", false},
	},
}
