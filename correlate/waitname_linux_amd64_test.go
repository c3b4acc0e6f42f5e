package correlate

import (
	"testing"

	"github.com/go-quicktest/qt"
	"golang.org/x/sys/unix"
)

// The numbers are the kernel's, as another table has them.
func TestSyscallNumbers(t *testing.T) {
	want := map[int32]string{
		unix.SYS_READ: "read", unix.SYS_WRITE: "write", unix.SYS_OPEN: "open", unix.SYS_CLOSE: "close", unix.SYS_STAT: "stat",
		unix.SYS_FSTAT: "fstat", unix.SYS_LSTAT: "lstat", unix.SYS_POLL: "poll", unix.SYS_MMAP: "mmap", unix.SYS_IOCTL: "ioctl",
		unix.SYS_PREAD64: "pread64", unix.SYS_PWRITE64: "pwrite64", unix.SYS_READV: "readv", unix.SYS_WRITEV: "writev",
		unix.SYS_ACCESS: "access", unix.SYS_SELECT: "select", unix.SYS_MSYNC: "msync", unix.SYS_PAUSE: "pause",
		unix.SYS_NANOSLEEP: "nanosleep", unix.SYS_SENDFILE: "sendfile", unix.SYS_CONNECT: "connect", unix.SYS_ACCEPT: "accept",
		unix.SYS_SENDTO: "sendto", unix.SYS_RECVFROM: "recvfrom", unix.SYS_SENDMSG: "sendmsg", unix.SYS_RECVMSG: "recvmsg",
		unix.SYS_CLONE: "clone", unix.SYS_FORK: "fork", unix.SYS_VFORK: "vfork", unix.SYS_EXECVE: "execve", unix.SYS_EXIT: "exit",
		unix.SYS_WAIT4: "wait4", unix.SYS_KILL: "kill", unix.SYS_SEMOP: "semop", unix.SYS_MSGRCV: "msgrcv", unix.SYS_FCNTL: "fcntl",
		unix.SYS_FLOCK: "flock", unix.SYS_FSYNC: "fsync", unix.SYS_FDATASYNC: "fdatasync", unix.SYS_TRUNCATE: "truncate",
		unix.SYS_FTRUNCATE: "ftruncate", unix.SYS_GETDENTS: "getdents", unix.SYS_RENAME: "rename", unix.SYS_MKDIR: "mkdir",
		unix.SYS_RMDIR: "rmdir", unix.SYS_CREAT: "creat", unix.SYS_UNLINK: "unlink", unix.SYS_READLINK: "readlink",
		unix.SYS_RT_SIGTIMEDWAIT: "rt_sigtimedwait", unix.SYS_RT_SIGSUSPEND: "rt_sigsuspend", unix.SYS_STATFS: "statfs",
		unix.SYS_SYNC: "sync", unix.SYS_MOUNT: "mount", unix.SYS_UMOUNT2: "umount2", unix.SYS_FUTEX: "futex",
		unix.SYS_IO_GETEVENTS: "io_getevents", unix.SYS_IO_SUBMIT: "io_submit", unix.SYS_GETDENTS64: "getdents64",
		unix.SYS_SEMTIMEDOP: "semtimedop", unix.SYS_CLOCK_NANOSLEEP: "clock_nanosleep", unix.SYS_EXIT_GROUP: "exit_group",
		unix.SYS_EPOLL_WAIT: "epoll_wait", unix.SYS_WAITID: "waitid", unix.SYS_OPENAT: "openat", unix.SYS_MKDIRAT: "mkdirat",
		unix.SYS_NEWFSTATAT: "newfstatat", unix.SYS_UNLINKAT: "unlinkat", unix.SYS_RENAMEAT: "renameat",
		unix.SYS_PSELECT6: "pselect6", unix.SYS_PPOLL: "ppoll", unix.SYS_SPLICE: "splice", unix.SYS_TEE: "tee",
		unix.SYS_SYNC_FILE_RANGE: "sync_file_range", unix.SYS_VMSPLICE: "vmsplice", unix.SYS_EPOLL_PWAIT: "epoll_pwait",
		unix.SYS_FALLOCATE: "fallocate", unix.SYS_ACCEPT4: "accept4", unix.SYS_PREADV: "preadv", unix.SYS_PWRITEV: "pwritev",
		unix.SYS_RECVMMSG: "recvmmsg", unix.SYS_SYNCFS: "syncfs", unix.SYS_SENDMMSG: "sendmmsg", unix.SYS_RENAMEAT2: "renameat2",
		unix.SYS_COPY_FILE_RANGE: "copy_file_range", unix.SYS_PREADV2: "preadv2", unix.SYS_PWRITEV2: "pwritev2",
		unix.SYS_STATX: "statx", unix.SYS_IO_PGETEVENTS: "io_pgetevents", unix.SYS_IO_URING_ENTER: "io_uring_enter",
		unix.SYS_CLONE3: "clone3", unix.SYS_OPENAT2: "openat2", unix.SYS_EPOLL_PWAIT2: "epoll_pwait2", unix.SYS_FUTEX_WAITV: "futex_waitv",
	}
	got := make(map[int32]string)
	for n, c := range syscalls {
		got[n] = c.name
	}
	qt.Check(t, qt.DeepEquals(got, want))
}
