//go:build linux

package tapdiskd

import (
	"runtime"
	"runtime/debug"
	"syscall"
	"unsafe"

	"os"

	"golang.org/x/sys/unix"
)

// Env is the variable that makes a process a tapdisk: Options in JSON.
const Env = "DTAGENT_TAPDISK"

func init() {
	if os.Getenv(Env) != "" {
		runtime.LockOSThread() // the main goroutine stays on the thread whose number is the process's
	}
}

// procPin has the scheduler leave the calling goroutine on its thread and its processor.
// Without it a loop that makes raw system calls looks to the runtime as if it had been
// running all the time, and is made to yield to another thread.
//
//go:linkname procPin runtime.procPin
func procPin() int

// nanotime returns CLOCK_MONOTONIC in ns, without a system call where the kernel has a vDSO.
//
//go:linkname nanotime runtime.nanotime
func nanotime() int64

// alone makes the runtime leave the calling thread alone from now on. What blocks a
// goroutine may not be used any more.
func alone() {
	debug.SetGCPercent(-1)
	procPin()
}

func call(nr uintptr, args ...uintptr) (uintptr, syscall.Errno) {
	var a [6]uintptr
	copy(a[:], args)
	r, _, e := unix.RawSyscall6(nr, a[0], a[1], a[2], a[3], a[4], a[5])
	return r, e
}

// addr returns the address of what p points to, which is never moved: it lives as long
// as the process.
func addr[T any](p *T) uintptr { return uintptr(unsafe.Pointer(p)) }

// at returns what is at an address of memory that is not Go's.
func at[T any](a uintptr) *T { return *(**T)(unsafe.Pointer(&a)) }

// bytesAt returns n bytes from an address.
func bytesAt(a uintptr, n int) []byte { return unsafe.Slice(at[byte](a), n) }
