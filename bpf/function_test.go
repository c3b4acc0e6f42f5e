//go:build linux

package bpf

import (
	"errors"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/go-quicktest/qt"
)

// The kernel has a function when it has one of exactly that name.
func TestParseSymbols(t *testing.T) {
	wanted := map[string]symbol{}
	for _, name := range []string{"evtchn_read", "gntdev_ioctl", "core_sys_select", "eventfd_read", "io_submit_one", "absent"} {
		wanted[name] = symbol{places: map[string]bool{}}
	}
	qt.Assert(t, qt.IsNil(parseSymbols(strings.NewReader(`ffffffff81000000 T _text
ffffffff811c9c10 T core_sys_select
ffffffff811c9c10 t core_sys_select
ffffffff812ad5b0 t eventfd_read
ffffffff812ad5b0 d evtchn_read
ffffffff812bd000 t io_submit_one.constprop.0
ffffffff812bd100 t io_submit_one_more
ffffffffc0400000 t gntdev_ioctl	[xen_gntdev]
ffffffffc0500000 t gntdev_ioctl	[another]
ffffffffc0500000
`), wanted)))
	f := functions{none: map[Way]error{}, symbols: wanted}
	for name, want := range map[string]string{
		"evtchn_read": "the kernel has no such function", "absent": "the kernel has no such function",
		"io_submit_one": "the kernel has no such function as a whole, only io_submit_one.constprop.0",
		"gntdev_ioctl":  "the kernel has 2 functions of that name",
	} {
		qt.Check(t, qt.ErrorMatches(f.cannot(way{by: ByKprobe, symbol: name}), want))
	}
	qt.Check(t, qt.ErrorMatches(f.cannot(entering("absent", "no_module_of_this_name", "")), "module no_module_of_this_name is not loaded"))
	qt.Check(t, qt.HasLen(wanted["core_sys_select"].places, 1))
	qt.Check(t, qt.HasLen(wanted["eventfd_read"].places, 1))
	f.none[ByKretprobe] = errors.New("no")
	qt.Check(t, qt.ErrorMatches(f.cannot(leaving("eventfd_read", "", "")), "no"))
}

// Of several ways the narrowest that works is taken, and why the others are not is told.
func TestChooseFunctions(t *testing.T) {
	tracefs := t.TempDir()
	event := filepath.Join(tracefs, "events", "syscalls", "sys_exit_read")
	qt.Assert(t, qt.IsNil(os.MkdirAll(event, 0o755)))
	qt.Assert(t, qt.IsNil(os.WriteFile(filepath.Join(event, "id"), []byte("1\n"), 0o644)))
	table := []hook{
		seen(Tapdisk, "pickup", "sys_exit_read", "dt_x_read", leaving("eventfd_read", "", "dt_x_eventfd")),
		seen(Tapdisk, "kick", "sys_exit_read", "dt_x_read", leaving("evtchn_read", "xen_evtchn", "dt_x_evtchn")),
		seen(Tapdisk, "round", "sys_exit_select", "dt_x_select", leaving("core_sys_select", "", "dt_x_select")),
	}
	choose := func(cannot func(way) error) (*Kernel, []HookCheck) {
		k := &Kernel{hooks: map[Probe][]found{}, dispatched: map[Probe][]found{}}
		var all []HookCheck
		for _, h := range table {
			c := HookCheck{Probe: Tapdisk, Hook: h.String()}
			k.choose(&c, h, tracefs, cannot)
			all = append(all, c)
		}
		return k, all
	}
	k, all := choose(func(w way) error {
		if w.symbol == "eventfd_read" {
			return nil
		}
		return errors.New("no")
	})
	qt.Check(t, qt.DeepEquals(all[0], HookCheck{Probe: Tapdisk, Hook: "tapdisk:pickup", Program: "dt_x_eventfd", Way: ByKretprobe, Function: "eventfd_read"}))
	qt.Check(t, qt.Equals(all[1].Why, "kretprobe evtchn_read: no; tracepoint syscalls:sys_exit_read: no; dispatcher syscalls:sys_exit_read: no"))
	qt.Check(t, qt.Equals(all[2].Why, "kretprobe core_sys_select: no; tracepoint syscalls:sys_exit_select: the kernel has no such tracepoint; dispatcher syscalls:sys_exit_select: the kernel has no such tracepoint"))
	qt.Check(t, qt.IsFalse(all[2].OK()))
	qt.Check(t, qt.HasLen(k.hooks[Tapdisk], 1))

	// Both reads come to one program at one place.
	k, all = choose(func(w way) error {
		if w.function() {
			return errors.New("the kernel has none")
		}
		return nil
	})
	for i, name := range []string{"eventfd_read", "evtchn_read"} {
		qt.Check(t, qt.Equals(all[i].Way, ByTracepoint))
		qt.Check(t, qt.IsTrue(all[i].Wider))
		qt.Check(t, qt.Equals(all[i].Why, "kretprobe "+name+": the kernel has none"))
		qt.Check(t, qt.Equals(all[i].Advice, "nothing: it works all the same, at a higher cost"))
	}
	qt.Assert(t, qt.HasLen(k.hooks[Tapdisk], 1))
	group, name := k.hooks[Tapdisk][0].tracepoint()
	qt.Check(t, qt.Equals(group+":"+name, "syscalls:sys_exit_read"))

	k, all = choose(func(w way) error {
		if w.function() || w.calls {
			return errors.New("no")
		}
		return nil
	})
	qt.Check(t, qt.Equals(all[1].Way, ByDispatcher))
	qt.Assert(t, qt.HasLen(k.dispatched[Tapdisk], 1))
	calls, err := entries(Tapdisk, k.dispatched[Tapdisk])
	qt.Assert(t, qt.IsNil(err))
	qt.Assert(t, qt.HasLen(calls, 1))
	qt.Check(t, qt.Equals(calls[0], entry{"dt_t_rets", 0, "dt_x_read"}))
}

// A function of a module that was loaded meanwhile is found when its probe is needed.
func TestHooksAgain(t *testing.T) {
	tracefs := tracefsOf419(t)
	none := func(*functions) func(way) error {
		return func(w way) error {
			switch {
			case w.module != "":
				return noModule("kernel") // which every /sys/module has
			case w.function():
				return errors.New("no")
			}
			return nil
		}
	}
	k := &Kernel{hooks: map[Probe][]found{}, dispatched: map[Probe][]found{}, tracefs: tracefs, cannot: none}
	_, err := k.findHooks(tracefs, Stream, none(nil))
	qt.Assert(t, qt.IsNil(err))
	_, err = k.findHooks(tracefs, Tapdisk, none(nil))
	qt.Assert(t, qt.IsNil(err))
	n := len(k.Hooks())
	copied := func() (c HookCheck) {
		for _, c = range k.Hooks() {
			if c.Hook == "tapdisk:grant copy" {
				return c
			}
		}
		t.Fatal("no grant copy")
		return c
	}
	qt.Check(t, qt.Equals(copied().Waits, "kernel"))
	qt.Check(t, qt.Equals(copied().Way, ByTracepoint))
	qt.Check(t, qt.IsNil(k.again(Stream))) // nothing there waits

	k.cannot = func(*functions) func(way) error { return func(way) error { return nil } }
	fresh := k.again(Tapdisk)
	qt.Assert(t, qt.IsNotNil(fresh))
	k.adopt(Tapdisk, fresh)
	qt.Check(t, qt.HasLen(k.Hooks(), n))
	c := copied()
	qt.Check(t, qt.Equals(c.Way, ByKprobe))
	qt.Check(t, qt.Equals(c.Function, "gntdev_ioctl"))
	qt.Check(t, qt.Equals(c.Waits, ""))
	qt.Check(t, qt.IsNil(k.again(Tapdisk)))
}

// What a process has left behind that was killed goes; what another one uses stays.
func TestDropReturns(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "kprobe_events")
	dead := strconv.Itoa(1 << 22) // no process has this number
	before := "r4096:dtagent_" + dead + "_0a/select core_sys_select\np:kprobes/mine do_exit\nr4096:dtagent_" + strconv.Itoa(os.Getpid()) + "_0b/select core_sys_select\n"
	qt.Assert(t, qt.IsNil(os.WriteFile(file, []byte(before), 0o600)))
	dropReturns(dir)
	after, err := os.ReadFile(file)
	qt.Assert(t, qt.IsNil(err))
	qt.Check(t, qt.Equals(string(after), before+"-:dtagent_"+dead+"_0a/select\n"))
	dropReturns(t.TempDir())
}
