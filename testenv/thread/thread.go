// Package thread starts kernel threads from the calling thread, as OCaml's
// systhreads do: pthread_create on the caller, so that the kernel sees the caller
// clone the new thread. Go's own runtime clones from whichever thread is at hand.
//
// It needs cgo.
package thread

/*
#cgo CFLAGS: -O2 -Wall
#cgo LDFLAGS: -lpthread
#include <stdint.h>
int dtStartThread(uintptr_t handle);
*/
import "C"

import (
	"fmt"
	"runtime"
	"runtime/cgo"
	"syscall"
)

// Start runs f in a new kernel thread that the calling thread clones. f stays
// on that thread, which ends when f returns. Inside f, blocking system calls
// block the thread; channels and locks park it on a futex.
func Start(f func()) error {
	runtime.LockOSThread() // the clone must come from the thread that the caller sees as its own
	defer runtime.UnlockOSThread()
	h := cgo.NewHandle(f)
	if errno := C.dtStartThread(C.uintptr_t(h)); errno != 0 {
		h.Delete()
		return fmt.Errorf("thread: %w", syscall.Errno(errno))
	}
	return nil
}

//export dtThreadBody
func dtThreadBody(handle C.uintptr_t) {
	h := cgo.Handle(handle)
	f := h.Value().(func())
	h.Delete()
	// A locked thread is not used by the runtime to clone threads of its own: these come
	// from its template thread.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	f()
}

// Reserve makes the Go runtime start n threads for itself now. Without idle ones it
// would clone what it needs from whatever thread is running, one of Start's too.
func Reserve(n int) {
	held, release := make(chan struct{}), make(chan struct{})
	for range n {
		go func() {
			runtime.LockOSThread() // occupies its thread while it waits
			held <- struct{}{}
			<-release
			runtime.UnlockOSThread()
		}()
	}
	for range n {
		<-held
	}
	close(release)
}
