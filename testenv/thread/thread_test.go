package thread_test

import (
	"fmt"
	"os"
	"runtime"
	"strings"
	"syscall"
	"testing"

	"github.com/go-quicktest/qt"

	"github.com/xenserver/dtagent/testenv/thread"
)

func TestStartIsAnotherThread(t *testing.T) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	tids := make(chan int, 2)
	qt.Assert(t, qt.IsNil(thread.Start(func() {
		tids <- syscall.Gettid()
		runtime.Gosched()
		tids <- syscall.Gettid()
	})))
	a, b := <-tids, <-tids
	qt.Assert(t, qt.Equals(a, b))
	qt.Assert(t, qt.Not(qt.Equals(a, syscall.Gettid())))
}

func TestThreadEnds(t *testing.T) {
	tid := make(chan int)
	qt.Assert(t, qt.IsNil(thread.Start(func() { tid <- syscall.Gettid() })))
	path := fmt.Sprintf("/proc/self/task/%d", <-tid)
	for range 1000 {
		if _, err := os.Stat(path); os.IsNotExist(err) {
			return
		}
		runtime.Gosched()
		_ = syscall.Nanosleep(&syscall.Timespec{Nsec: 1e6}, nil)
	}
	list, _ := os.ReadDir("/proc/self/task")
	t.Fatalf("%s is still there among %d threads", path, len(list))
}

func BenchmarkStart(b *testing.B) {
	done := make(chan struct{})
	for b.Loop() {
		if err := thread.Start(func() { done <- struct{}{} }); err != nil {
			b.Fatal(strings.TrimSpace(err.Error()))
		}
		<-done
	}
}
