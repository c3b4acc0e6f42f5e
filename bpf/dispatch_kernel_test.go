//go:build linux

package bpf

import (
	"fmt"
	"os"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/link"
	"github.com/go-quicktest/qt"
	"golang.org/x/sys/unix"
)

// Behind dispatchers, programs tell what they tell at the system calls' own
// tracepoints.
func TestDispatchKernel(t *testing.T) {
	for _, tier := range []Tier{Legacy, Modern} {
		t.Run(tier.String(), func(t *testing.T) {
			own := tellAll(t, collect(t, openKernel(t, tier, Options{})))
			k := openKernel(t, tier, Options{dispatch: true})
			for _, h := range k.Hooks() {
				if strings.HasPrefix(h.Hook, "syscalls:") && h.Way != "" {
					qt.Check(t, qt.Equals(h.Way, ByDispatcher), qt.Commentf("%s", h.Hook))
				}
			}
			dispatched := tellAll(t, collect(t, k))
			qt.Check(t, qt.DeepEquals(dispatched, own))
			t.Log(strings.Join(own, "\n"))
		})
	}
}

// tellAll returns what is told of a process that makes calls of many hooks, one of
// them with two programs.
func tellAll(t *testing.T, c *collector) (told []string) {
	t.Helper()
	for _, p := range allProbes {
		qt.Assert(t, qt.IsNil(c.s.Attach(p)))
	}
	v, peer := c.pair(streamAndLog | WatchProcess | WatchWait)
	send(t, peer, header(200))
	v.read(3, 1000)
	v.write(3, strings.Repeat("r", 300))
	two, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	qt.Assert(t, qt.IsNil(err))
	ours, theirs := os.NewFile(uintptr(two[0]), "ours"), os.NewFile(uintptr(two[1]), "theirs")
	defer ours.Close()
	defer theirs.Close()
	conn, err := peer.SyscallConn()
	qt.Assert(t, qt.IsNil(err))
	qt.Assert(t, qt.IsNil(conn.Control(func(fd uintptr) {
		qt.Check(t, qt.IsNil(unix.Sendmsg(int(fd), []byte(header(100)), unix.UnixRights(int(theirs.Fd())), nil, 0)))
	})))
	passed := v.must(order{Do: "receive", FD: 3, N: 16384}).Ret2
	v.write(passed, strings.Repeat("s", 300))
	pair := v.must(order{Do: "pair"})
	v.must(order{Do: "close", FD: pair.Ret})
	v.must(order{Do: "exec", Parts: []string{"/bin/true"}})
	for _, r := range c.all() {
		// How much there is of time and of threads depends on the Go runtime of the victim.
		if r.Kind == KindTime || r.Kind == KindFork && r.Flags&FlagThread != 0 || r.Kind == KindExit && r.Flags&FlagLeader == 0 {
			continue
		}
		told = append(told, fmt.Sprintf("kind %d fd %d how %d dir %d calls %d bytes %d closes %d head %q", r.Kind, r.Data.FD, r.Open.How,
			r.Data.Dir, r.Data.Calls, r.Data.Bytes, r.Close.FD, r.Head))
	}
	for _, p := range allProbes {
		qt.Assert(t, qt.IsNil(c.s.Detach(p)))
	}
	c.noLosses()
	return told
}

// Every hook of a system call has a place of its own in a table.
func TestEntries(t *testing.T) {
	for _, p := range allProbes {
		var calls []found
		for _, h := range hooks[p] {
			if last := h.ways[len(h.ways)-1]; last.by == ByDispatcher {
				calls = append(calls, found{h, last})
			}
		}
		got, err := entries(p, calls)
		qt.Assert(t, qt.IsNil(err))
		places := map[string]string{}
		for i, e := range got {
			qt.Check(t, qt.Equals(e.program, calls[i].program))
			place := fmt.Sprint(e.table, e.index)
			qt.Check(t, qt.Equals(places[place], ""), qt.Commentf("%s, as well as %s", e.program, places[place]))
			places[place] = e.program
		}
	}
	_, err := entries(Stream, []found{{hook: at("syscalls", "sys_enter_reboot", "x")}})
	qt.Check(t, qt.ErrorMatches(err, "syscalls:sys_enter_reboot is no hook of a known system call"))
	read := found{hook: at("syscalls", "sys_enter_read", "x")}
	_, err = entries(Stream, []found{read, read})
	qt.Check(t, qt.ErrorMatches(err, "no dispatcher calls program 2 of syscalls:sys_enter_read"))
}

// What a system call takes with programs at its own tracepoints, and with those of
// the dispatchers, is told as parts of what it takes without: nothing is asserted of
// it. docs/cost.md has the figures.
func TestDispatchCostKernel(t *testing.T) {
	for _, tier := range []Tier{Legacy, Modern} {
		t.Run(tier.String(), func(t *testing.T) { tellDispatchCost(t, tier) })
	}
}

func tellDispatchCost(t *testing.T, tier Tier) {
	c := collect(t, openKernel(t, tier, Options{dispatch: true}))
	empty, err := ebpf.NewProgram(&ebpf.ProgramSpec{
		Name: "dt_try", Type: ebpf.TracePoint, License: "GPL", Instructions: asm.Instructions{asm.Mov.Imm(asm.R0, 0), asm.Return()},
	})
	qt.Assert(t, qt.IsNil(err))
	defer empty.Close()
	at := func(group, name string, p *ebpf.Program) link.Link {
		l, err := link.Tracepoint(group, name, p, nil)
		qt.Assert(t, qt.IsNil(err))
		return l
	}
	own := func(call string) []link.Link {
		return []link.Link{at("syscalls", "sys_enter_"+call, empty), at("syscalls", "sys_exit_"+call, empty)}
	}
	dispatchers := func(nr uint32) (out []link.Link) {
		for _, table := range []string{"dt_s_calls", "dt_s_rets"} {
			qt.Assert(t, qt.IsNil(c.s.maps[table].Put(nr, empty)))
		}
		out = append(out, at("raw_syscalls", "sys_exit", c.s.progs[Stream]["dt_s_ret"]))
		return append(out, at("raw_syscalls", "sys_enter", c.s.progs[Stream]["dt_s_call"]))
	}
	least := map[string]time.Duration{}
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	cases := []struct {
		name   string
		attach func() []link.Link
	}{
		{"nothing", func() []link.Link { return nil }},
		{"its own tracepoints", func() []link.Link { return own("getppid") }},
		{"dispatchers", func() []link.Link { return dispatchers(unix.SYS_GETPPID) }},
		{"another call's tracepoints", func() []link.Link { return own("getpgid") }},
		{"dispatchers of another call", func() []link.Link { return dispatchers(unix.SYS_GETPGID) }},
	}
	for range 5 {
		for _, x := range cases {
			links := x.attach()
			d := callTime()
			if was, ok := least[x.name]; !ok || d < was {
				least[x.name] = d
			}
			for _, l := range links {
				qt.Assert(t, qt.IsNil(l.Close()))
			}
			for _, table := range []string{"dt_s_calls", "dt_s_rets"} {
				c.s.maps[table].Delete(uint32(unix.SYS_GETPPID))
				c.s.maps[table].Delete(uint32(unix.SYS_GETPGID))
			}
		}
	}
	for _, p := range allProbes {
		qt.Assert(t, qt.IsNil(c.s.Attach(p)))
	}
	const all = "all probes, of no target"
	least[all] = callTime()
	for range 4 {
		least[all] = min(least[all], callTime())
	}
	cases = append(cases, struct {
		name   string
		attach func() []link.Link
	}{name: all})
	for _, x := range cases {
		t.Logf("%-28s %8v, %.2f of a call with nothing", x.name, least[x.name], float64(least[x.name])/float64(least["nothing"]))
	}
	more := func(name string) float64 { return float64(least[name] - least["nothing"]) }
	t.Logf("dispatchers add %.2f of what the call's own tracepoints add", more("dispatchers")/more("its own tracepoints"))
}
