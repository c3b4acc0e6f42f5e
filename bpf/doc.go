// Package bpf holds the kernel side of dtagent: the C programs, their
// generated objects for both tiers, the wire contract and the loader.
//
// Every program exists in two tiers from one source. Legacy runs from Linux
// 4.19 on, without BTF, over perf buffers. Modern needs a ring buffer (Linux
// 5.8) and the kernel's BTF, and adds the inode of sockets, who connected a unix
// socket, sockets passed on by SCM_RIGHTS, exit codes of every thread and CPU time.
//
// Open finds out what the kernel allows by trying it, Load loads everything and
// attaches nothing, Attach and Detach switch one probe on and off. What a record
// holds is in include/dt_event.h, mirrored by the structs of wire.go.
package bpf
