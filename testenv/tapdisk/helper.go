//go:build linux

package tapdisk

import (
	"fmt"
	"io"
	"os"
	"runtime"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/xenserver/dtagent/testenv/internal/blkif"
	"github.com/xenserver/dtagent/testenv/internal/slowfile"
)

// helperEnv is the variable that makes a process a helper: which, and its task.
const helperEnv = "DTAGENT_TAPDISK_HELPER"

// help is the life of one.
func help(task string) error {
	var name string
	if _, err := fmt.Sscan(task, &name); err != nil {
		return err
	}
	switch name {
	case "hog":
		var cpu int
		var size time.Duration
		if _, err := fmt.Sscanf(task, "hog %d %d", &cpu, &size); err != nil {
			return err
		}
		return beHog(cpu, size)
	case "grants":
		var pages int
		if _, err := fmt.Sscanf(task, "grants %d", &pages); err != nil {
			return err
		}
		return beGrants(pages)
	}
	return fmt.Errorf("no helper %q", name)
}

// up tells who has started it that it works.
func up() error {
	_, err := os.Stdout.Write([]byte{1})
	return err
}

// beHog runs on a CPU for size, before everything that is not of real time, and sleeps
// for as long, until the input ends.
func beHog(cpu int, size time.Duration) error {
	runtime.LockOSThread()
	var one unix.CPUSet
	one.Set(cpu)
	if err := unix.SchedSetaffinity(0, &one); err != nil {
		return err
	}
	// Where that is not allowed it is one of many, and as good as them.
	attr := unix.SchedAttr{Size: unix.SizeofSchedAttr, Policy: unix.SCHED_FIFO, Priority: 1}
	if unix.SchedSetAttr(0, &attr, 0) != nil {
		_ = unix.Setpriority(unix.PRIO_PROCESS, 0, -20)
	}
	var ended atomic.Bool
	go func() {
		_, _ = io.Copy(io.Discard, os.Stdin)
		ended.Store(true)
	}()
	if err := up(); err != nil {
		return err
	}
	for !ended.Load() {
		for begin := monotonic(); monotonic()-begin < int64(size); {
		}
		time.Sleep(size)
	}
	return nil
}

// beGrants answers the ioctls on a device of grants, descriptor 3, as late as the
// guest's memory, descriptor 4, says.
func beGrants(pages int) error {
	mem, err := blkif.Map(4, pages)
	if err != nil {
		return err
	}
	if err := up(); err != nil {
		return err
	}
	go func() {
		_, _ = io.Copy(io.Discard, os.Stdin)
		os.Exit(0)
	}()
	return slowfile.ServeLate(3, 0, func() time.Duration { return time.Duration(mem.Knobs().GrantNs.Load()) })
}
