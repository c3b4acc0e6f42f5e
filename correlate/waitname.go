package correlate

import (
	"strconv"

	"github.com/xenserver/dtagent/probes/event"
	"go.opentelemetry.io/otel/attribute"
)

// nameWait names the span of w, and says what was waited in.
func (e *Engine) nameWait(s *activity, w *longWait) {
	s.attrs = append(s.attrs, attribute.String("dt.wait.class", w.class.String()))
	call := syscallName(w.syscall)
	if call.name != "" {
		s.attrs = append(s.attrs, attribute.String("dt.wait.syscall", call.name))
	}
	name := waitNames[w.class]
	switch w.class {
	case event.Hypercall:
		name = e.nameHypercall(s, name, uint32(w.detail), uint32(w.detail>>32))
	case event.FileIO, event.Network, event.Pipe:
		if call.verb != "" {
			name = e.phrase(name, call.verb)
		}
	case event.OtherWait:
		if call.name != "" {
			name = e.phrase(name, call.name)
		}
	}
	s.name = name
}

// phrase returns both words with a blank between them; repeated, it is the same string.
func (e *Engine) phrase(a, b string) string {
	e.scratch = append(append(append(e.scratch[:0], a...), ' '), b...)
	return e.strings.String(e.scratch)
}

func (e *Engine) nameHypercall(s *activity, name string, number, command uint32) string {
	s.attrs = append(s.attrs, attribute.Int64("dt.hypercall.number", int64(number)))
	var op string
	if number < uint32(len(hypercalls)) {
		op = hypercalls[number]
	}
	if number == domctlHypercall && command != 0 {
		s.attrs = append(s.attrs, attribute.Int64("dt.domctl.command", int64(command)))
		if command < uint32(len(domctls)) && domctls[command] != "" {
			s.attrs = append(s.attrs, attribute.String("dt.domctl.name", domctls[command]))
		}
	}
	if op != "" {
		return e.phrase(name, op)
	}
	e.scratch = strconv.AppendUint(append(append(e.scratch[:0], name...), ' '), uint64(number), 10)
	return e.strings.String(e.scratch)
}

// waitNames are the names of spans by class.
var waitNames = [event.NumSpent]string{
	event.Hypercall:  "hypercall",
	event.Xenstore:   "xenstore",
	event.EventChan:  "event channel",
	event.Lock:       "lock",
	event.Child:      "wait child",
	event.Fsync:      "fsync",
	event.Flock:      "flock",
	event.FileIO:     "file",
	event.Connecting: "connect",
	event.Network:    "network",
	event.Sleeping:   "sleep",
	event.Polling:    "poll",
	event.Pipe:       "pipe",
	event.OtherWait:  "wait",
}

// domctlHypercall is __HYPERVISOR_domctl.
const domctlHypercall = 36

// hypercalls are the names of Xen's public header xen.h, __HYPERVISOR_*.
var hypercalls = [...]string{
	1: "mmu_update", 7: "platform_op", 12: "memory_op", 13: "multicall", 17: "xen_version", 18: "console_io",
	20: "grant_table_op", 24: "vcpu_op", 26: "mmuext_op", 27: "xsm_op", 29: "sched_op", 31: "xenoprof_op",
	32: "event_channel_op", 33: "physdev_op", 34: "hvm_op", 35: "sysctl", domctlHypercall: "domctl",
	37: "kexec_op", 38: "tmem_op", 39: "argo_op", 40: "xenpmu_op", 41: "dm_op", 42: "hypfs_op",
}

// domctls are the names of Xen's public header domctl.h, XEN_DOMCTL_*. A number
// is never used again for something else.
var domctls = [...]string{
	1: "createdomain", 2: "destroydomain", 3: "pausedomain", 4: "unpausedomain", 5: "getdomaininfo", 6: "getmemlist",
	9: "setvcpuaffinity", 10: "shadow_op", 11: "max_mem", 12: "setvcpucontext", 13: "getvcpucontext", 14: "getvcpuinfo",
	15: "max_vcpus", 16: "scheduler_op", 17: "setdomainhandle", 18: "setdebugging", 19: "irq_permission",
	20: "iomem_permission", 21: "ioport_permission", 22: "hypercall_init", 24: "settimeoffset", 25: "getvcpuaffinity",
	27: "resumedomain", 28: "sendtrigger", 29: "subscribe", 33: "gethvmcontext", 34: "sethvmcontext",
	35: "set_address_size", 36: "get_address_size", 37: "assign_device", 38: "bind_pt_irq", 39: "memory_mapping",
	40: "ioport_mapping", 41: "pin_mem_cacheattr", 42: "set_ext_vcpucontext", 43: "get_ext_vcpucontext",
	45: "test_assign_device", 46: "set_target", 47: "deassign_device", 48: "unbind_pt_irq", 49: "set_cpuid",
	50: "get_device_group", 51: "set_machine_address_size", 52: "get_machine_address_size",
	53: "suppress_spurious_page_faults", 54: "debug_op", 55: "gethvmcontext_partial", 56: "vm_event_op",
	57: "mem_sharing_op", 58: "disable_migrate", 59: "gettscinfo", 60: "settscinfo", 61: "getpageframeinfo3",
	62: "setvcpuextstate", 63: "getvcpuextstate", 64: "set_access_required", 65: "audit_p2m", 66: "set_virq_handler",
	67: "set_broken_page_p2m", 68: "setnodeaffinity", 69: "getnodeaffinity", 70: "set_max_evtchn", 71: "cacheflush",
	72: "get_vcpu_msrs", 73: "set_vcpu_msrs", 74: "setvnumainfo", 75: "psr_cmt_op", 77: "monitor_op", 78: "psr_alloc",
	79: "soft_reset", 81: "vuart_op", 82: "get_cpu_policy", 83: "set_cpu_policy", 84: "vmtrace_op",
	85: "get_paging_mempool_size", 86: "set_paging_mempool_size", 88: "gsi_permission", 89: "get_domain_state",
}

// systemCall is one that can block.
type systemCall struct {
	name string
	verb string // what it does to a file, socket or pipe
}

func syscallName(n int32) systemCall {
	if n < 0 {
		return systemCall{}
	}
	return syscalls[n]
}

// syscalls are those of x86-64 in which threads of the toolstack were seen to
// wait, or can: dom0 is x86-64.
var syscalls = map[int32]systemCall{
	0: {"read", "read"}, 1: {"write", "write"}, 2: {"open", "open"}, 3: {"close", "close"}, 4: {"stat", "stat"},
	5: {"fstat", "stat"}, 6: {"lstat", "stat"}, 7: {"poll", ""}, 9: {"mmap", "map"}, 16: {"ioctl", "ioctl"},
	17: {"pread64", "read"}, 18: {"pwrite64", "write"}, 19: {"readv", "read"}, 20: {"writev", "write"},
	21: {"access", "stat"}, 23: {"select", ""}, 26: {"msync", "sync"}, 34: {"pause", ""}, 35: {"nanosleep", ""},
	40: {"sendfile", "write"}, 42: {"connect", ""}, 43: {"accept", "accept"}, 44: {"sendto", "write"},
	45: {"recvfrom", "read"}, 46: {"sendmsg", "write"}, 47: {"recvmsg", "read"}, 56: {"clone", ""}, 57: {"fork", ""},
	58: {"vfork", ""}, 59: {"execve", "exec"}, 60: {"exit", ""}, 61: {"wait4", ""}, 62: {"kill", ""},
	65: {"semop", ""}, 70: {"msgrcv", ""}, 72: {"fcntl", "lock"}, 73: {"flock", ""}, 74: {"fsync", "sync"},
	75: {"fdatasync", "sync"}, 76: {"truncate", "truncate"}, 77: {"ftruncate", "truncate"}, 78: {"getdents", "list"},
	82: {"rename", "rename"}, 83: {"mkdir", "mkdir"}, 84: {"rmdir", "rmdir"}, 85: {"creat", "open"},
	87: {"unlink", "unlink"}, 89: {"readlink", "stat"}, 128: {"rt_sigtimedwait", ""}, 130: {"rt_sigsuspend", ""},
	137: {"statfs", "stat"}, 162: {"sync", "sync"}, 165: {"mount", "mount"}, 166: {"umount2", "umount"},
	202: {"futex", ""}, 208: {"io_getevents", "read"}, 209: {"io_submit", "submit"}, 217: {"getdents64", "list"},
	220: {"semtimedop", ""}, 230: {"clock_nanosleep", ""}, 231: {"exit_group", ""}, 232: {"epoll_wait", ""},
	247: {"waitid", ""}, 257: {"openat", "open"}, 258: {"mkdirat", "mkdir"}, 262: {"newfstatat", "stat"},
	263: {"unlinkat", "unlink"}, 264: {"renameat", "rename"}, 270: {"pselect6", ""}, 271: {"ppoll", ""},
	275: {"splice", "write"}, 276: {"tee", "write"}, 277: {"sync_file_range", "sync"}, 278: {"vmsplice", "write"},
	281: {"epoll_pwait", ""}, 285: {"fallocate", "allocate"}, 288: {"accept4", "accept"}, 295: {"preadv", "read"},
	296: {"pwritev", "write"}, 299: {"recvmmsg", "read"}, 306: {"syncfs", "sync"}, 307: {"sendmmsg", "write"},
	316: {"renameat2", "rename"}, 326: {"copy_file_range", "copy"}, 327: {"preadv2", "read"}, 328: {"pwritev2", "write"},
	332: {"statx", "stat"}, 333: {"io_pgetevents", "read"}, 426: {"io_uring_enter", "submit"}, 435: {"clone3", ""},
	437: {"openat2", "open"}, 441: {"epoll_pwait2", ""}, 449: {"futex_waitv", ""},
}
