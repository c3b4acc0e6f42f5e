package check

import (
	"bytes"
	"log/slog"
	"strings"
	"testing"

	"github.com/go-quicktest/qt"

	"github.com/xenserver/dtagent/bpf"
)

// A kernel without BTF, ring buffer and a system call, with a wider way.
var (
	oldChecks = []bpf.Check{
		{Name: "programs", OK: true, Needed: true, Detail: "load"},
		{Name: "BTF", Why: "no types", Advice: "none needed"},
		{Name: "hooks of stream", OK: true, Needed: true, Detail: "all there"},
		{Name: "hooks of wait", OK: true, Needed: true, Detail: "all there"},
	}
	oldHooks = []bpf.HookCheck{
		{Probe: bpf.Stream, Hook: "syscalls:sys_enter_read", Program: "dt_e_read", Way: bpf.ByTracepoint},
		{Probe: bpf.Stream, Hook: "syscalls:sys_enter_close_range", Optional: true, Why: "the kernel has no such tracepoint, nor the system call"},
		{Probe: bpf.Wait, Hook: "sched:sched_wakeup", Program: "dt_w_wakeup", Way: bpf.ByTracepoint, Wider: true, Why: "raw tracepoint: 2 places", Advice: "nothing"},
	}
)

func TestFromBPF(t *testing.T) {
	items, hooks := fromBPF(oldChecks, oldHooks)
	qt.Check(t, qt.DeepEquals(items, []Item{
		works("programs", "load").needed(),
		absent("BTF", "no types", "none needed"),
	}))
	qt.Assert(t, qt.HasLen(hooks, 3))
	qt.Check(t, qt.DeepEquals(hooks[0].Item, works("stream: syscalls:sys_enter_read", "by tracepoint").needed()))
	qt.Check(t, qt.DeepEquals(hooks[1].Item, absent("stream: syscalls:sys_enter_close_range", "the kernel has no such tracepoint, nor the system call", "nothing: there is nothing to watch")))
	qt.Check(t, qt.Equals(hooks[2].State, Wider))
	qt.Check(t, qt.Equals(hooks[2].Way, "tracepoint"))

	k := Kernel{Items: items, Hooks: hooks}
	qt.Check(t, qt.DeepEquals(k.Restrictions(), []Item{hooks[2].Item}))
	qt.Check(t, qt.IsNil(Refusal(k.All())))
	var log bytes.Buffer
	k.Log(slog.New(slog.NewTextHandler(&log, nil)))
	qt.Check(t, qt.Equals(strings.Count(log.String(), "\n"), 1))
	qt.Check(t, qt.StringContains(log.String(), `msg="wait: sched:sched_wakeup" state=wider detail="by tracepoint" why="raw tracepoint: 2 places" do=nothing`))
}

// Hooks of a probe that say the same are told in one line.
func TestTogether(t *testing.T) {
	hook := func(p bpf.Probe, name, why string) Hook {
		return hookOf(bpf.HookCheck{Probe: p, Hook: name, Program: "dt_" + name, Way: bpf.ByTracepoint, Wider: true, Why: why, Advice: "nothing"})
	}
	all := []Hook{
		hook(bpf.Tapdisk, "a", "no kprobes"), hook(bpf.Wait, "b", "no kprobes"), hook(bpf.Tapdisk, "c", "two of them"), hook(bpf.Tapdisk, "d", "no kprobes"),
	}
	var names []string
	for _, i := range together(all) {
		names = append(names, i.Name+": "+i.Why)
	}
	qt.Check(t, qt.DeepEquals(names, []string{"tapdisk: 2 hooks: no kprobes", "wait: b: no kprobes", "tapdisk: c: two of them"}))
	qt.Check(t, qt.HasLen(Kernel{Hooks: all}.Restrictions(), 3))
}

// What is missing is said once, with the same words by check and by the agent that
// does not start.
func TestRefusal(t *testing.T) {
	checks := []bpf.Check{
		{Name: "programs", Needed: true, Why: "operation not permitted", Advice: "run as root"},
		{Name: "hooks of stream", Needed: true, Why: "syscalls:sys_exit_read: the kernel has no such tracepoint", Advice: "the kernel needs CONFIG_FTRACE_SYSCALLS"},
		{Name: "hooks of wait", Needed: true, Why: "permission denied", Advice: "see tracefs"},
	}
	items, hooks := fromBPF(checks, []bpf.HookCheck{
		{Probe: bpf.Stream, Hook: "syscalls:sys_exit_read", Why: "the kernel has no such tracepoint", Advice: "the kernel needs CONFIG_FTRACE_SYSCALLS"},
		{Probe: bpf.Wait, Hook: "syscalls:sys_exit_open", Program: "dt_w_opened", Way: bpf.ByTracepoint},
	})
	k := Kernel{Tier: "legacy", Items: items, Hooks: hooks}
	err := Refusal(k.All())
	qt.Assert(t, qt.ErrorIs(err, bpf.ErrKernel))
	qt.Check(t, qt.Equals(err.Error(), `eBPF cannot be used here:
  MISSING  programs
             why: operation not permitted
             do:  run as root
  MISSING  hooks of wait
             why: permission denied
             do:  see tracefs
  MISSING  stream: syscalls:sys_exit_read
             why: the kernel has no such tracepoint
             do:  the kernel needs CONFIG_FTRACE_SYSCALLS
`+"`dtagent check` says all that this kernel and host allow"))
	r := Report{Tier: k.Tier, Kernel: k.Items, Hooks: k.Hooks}
	var out strings.Builder
	r.Print(&out, false)
	for line := range strings.Lines(err.Error()) {
		if strings.HasPrefix(line, " ") {
			qt.Check(t, qt.StringContains(out.String(), line))
		}
	}
	qt.Check(t, qt.StringContains(out.String(), "  MISSING  stream: 1 not there\n"))
}
