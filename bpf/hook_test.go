//go:build linux

package bpf

import (
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/go-quicktest/qt"
)

// later are the system calls among the hooks that Linux 4.19 does not have.
var later = []string{"sys_enter_close_range", "sys_enter_clone3"}

// tracefsOf419 has the tracepoints that the probes use and Linux 4.19 has.
func tracefsOf419(t *testing.T) string {
	dir := t.TempDir()
	for _, p := range allProbes {
		for _, h := range hooks[p] {
			if slices.Contains(later, h.name) {
				continue
			}
			for _, w := range h.ways {
				group, name := found{h, w}.tracepoint()
				event := filepath.Join(dir, "events", group, name)
				qt.Assert(t, qt.IsNil(os.MkdirAll(event, 0o755)))
				qt.Assert(t, qt.IsNil(os.WriteFile(filepath.Join(event, "id"), []byte("1\n"), 0o644)))
			}
		}
	}
	return dir
}

// No kernel that the tests run on lacks a tracepoint; Linux 4.19 does.
func TestFindHooksOf419(t *testing.T) {
	tracefs := tracefsOf419(t)
	all := func(way) error { return nil }
	k := &Kernel{hooks: map[Probe][]found{}}
	detail, err := k.findHooks(tracefs, Stream, all)
	qt.Assert(t, qt.IsNil(err))
	qt.Check(t, qt.Equals(detail, "32 there; this kernel has no sys_enter_close_range, nor the system call"))
	detail, err = k.findHooks(tracefs, Process, all)
	qt.Assert(t, qt.IsNil(err))
	qt.Check(t, qt.Equals(detail, "11 there; this kernel has no sys_enter_clone3, nor the system call"))
	for _, have := range k.hooks {
		qt.Check(t, qt.IsFalse(slices.ContainsFunc(have, func(h found) bool { return slices.Contains(later, h.name) })))
	}

	qt.Assert(t, qt.IsNil(os.RemoveAll(filepath.Join(tracefs, "events", "syscalls", "sys_enter_read"))))
	k = &Kernel{hooks: map[Probe][]found{}}
	_, err = k.findHooks(tracefs, Stream, all)
	qt.Check(t, qt.ErrorMatches(err, "syscalls:sys_enter_read: the kernel has no such tracepoint"))
	last := k.Hooks()[len(k.Hooks())-1]
	qt.Check(t, qt.IsFalse(last.OK()))
	qt.Check(t, qt.Equals(last.Advice, "the kernel needs CONFIG_FTRACE_SYSCALLS"))
}
