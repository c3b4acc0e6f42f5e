//go:build linux

package bpf

import (
	"fmt"
	"io"
	"os/exec"
	"testing"

	"github.com/go-quicktest/qt"
)

// shell starts a shell that is a target and waits for commands.
func (c *collector) shell() (pid uint32, in io.WriteCloser, wait func() error) {
	c.t.Helper()
	cmd := exec.Command("/bin/sh")
	in, err := cmd.StdinPipe()
	qt.Assert(c.t, qt.IsNil(err))
	out, err := cmd.StdoutPipe()
	qt.Assert(c.t, qt.IsNil(err))
	qt.Assert(c.t, qt.IsNil(cmd.Start()))
	c.t.Cleanup(func() { cmd.Process.Kill(); cmd.Wait() })
	fmt.Fprintln(in, "echo ready") // Start returns before the exec is quite done
	_, err = io.ReadFull(out, make([]byte, len("ready\n")))
	qt.Assert(c.t, qt.IsNil(err))
	pid = uint32(cmd.Process.Pid)
	qt.Assert(c.t, qt.IsNil(c.s.SetTarget(pid, Target{Component: 4, Watch: WatchProcess})))
	return pid, in, cmd.Wait
}

// all returns all records, in order, once no more come.
func (c *collector) all() []got {
	c.t.Helper()
	c.settle()
	c.mu.Lock()
	defer c.mu.Unlock()
	out := sorted(c.got)
	c.got = nil
	return out
}

func ofKind(recs []got, k Kind) (out []got) {
	for _, r := range recs {
		if r.Kind == k {
			out = append(out, r)
		}
	}
	return out
}

func TestForkExecExitKernel(t *testing.T) {
	inTiers(t, func(t *testing.T, c *collector) {
		sh, in, wait := c.shell()
		fmt.Fprintf(in, "/bin/sh -c 'exit 7' one two three\n")
		fmt.Fprintf(in, "/bin/sh -c 'kill -9 $$'\n")
		fmt.Fprintf(in, "exit 3\n")
		wait()
		recs := c.all()
		forks := ofKind(recs, KindFork)
		qt.Assert(t, qt.HasLen(forks, 2), qt.Commentf("%v", recs))
		var children [2]uint32
		for i, f := range forks {
			qt.Check(t, qt.Equals(f.TGID, sh))
			qt.Check(t, qt.Equals(f.TID, sh))
			qt.Check(t, qt.Equals(f.Flags, 0))
			qt.Check(t, qt.Equals(f.Component, 4))
			qt.Check(t, qt.Equals(f.Fork.ChildTGID, f.Fork.ChildTID))
			children[i] = f.Fork.ChildTGID
		}
		execs := ofKind(recs, KindExec)
		qt.Assert(t, qt.HasLen(execs, 2))
		qt.Check(t, qt.Equals(execs[0].TGID, children[0]))
		qt.Check(t, qt.Equals(cstring(execs[0].Exec.Filename[:]), "/bin/sh"))
		qt.Check(t, qt.Equals(cstring(execs[0].Exec.Comm[:]), "sh"))
		for i, want := range []string{"-c", "exit 7", "one", "two", "three", ""} {
			qt.Check(t, qt.Equals(cstring(execs[0].Exec.Arg[i][:]), want))
		}
		exits := ofKind(recs, KindExit)
		qt.Assert(t, qt.HasLen(exits, 3), qt.Commentf("%v", recs))
		for i, want := range []struct {
			tgid uint32
			code int32
		}{{children[0], 7 << 8}, {children[1], 9}, {sh, 3 << 8}} {
			e := exits[i]
			qt.Check(t, qt.Equals(e.TGID, want.tgid))
			qt.Check(t, qt.Equals(e.Flags&FlagLeader, FlagLeader))
			if c.s.tier == Legacy && want.code == 9 {
				qt.Check(t, qt.Equals(e.Flags&FlagNoCode, FlagNoCode)) // no exit_group before a signal
			} else {
				qt.Check(t, qt.Equals(e.Exit.Code, want.code))
				qt.Check(t, qt.Equals(e.Flags&FlagNoCode, 0))
			}
			qt.Check(t, qt.Equals(e.Flags&FlagNoCPU != 0, c.s.tier == Legacy))
		}
		// In order: forked, executed, ended.
		qt.Check(t, qt.IsTrue(forks[0].Ktime < execs[0].Ktime && execs[0].Ktime < exits[0].Ktime && exits[0].Ktime < forks[1].Ktime))
		targets, err := c.s.Targets()
		qt.Assert(t, qt.IsNil(err))
		qt.Check(t, qt.HasLen(targets, 0), qt.Commentf("ended processes are no targets"))
		c.noLosses()
	})
}

// As vfork_helper does: two execs in one process.
func TestExecTwiceKernel(t *testing.T) {
	inTiers(t, func(t *testing.T, c *collector) {
		_, in, wait := c.shell()
		fmt.Fprintf(in, "/bin/sh -c 'exec /bin/sh -c \"exec /bin/sleep 0\"'\nexit\n")
		wait()
		execs := ofKind(c.all(), KindExec)
		qt.Assert(t, qt.HasLen(execs, 3))
		for i, want := range []string{"/bin/sh", "/bin/sh", "/bin/sleep"} {
			qt.Check(t, qt.Equals(cstring(execs[i].Exec.Filename[:]), want))
			qt.Check(t, qt.Equals(execs[i].TGID, execs[0].TGID))
		}
		qt.Check(t, qt.Equals(cstring(execs[2].Exec.Arg[0][:]), "0"))
		qt.Check(t, qt.Equals(cstring(execs[2].Exec.Arg[1][:]), ""))
		c.noLosses()
	})
}

// A failed execve gives no record, and nothing of it is left.
func TestExecFailedKernel(t *testing.T) {
	inTiers(t, func(t *testing.T, c *collector) {
		_, in, wait := c.shell()
		fmt.Fprintf(in, "/bin/sh -c 'exec /nonexistent/program secret' 2>/dev/null\nexit\n")
		wait()
		execs := ofKind(c.all(), KindExec)
		qt.Assert(t, qt.HasLen(execs, 1))
		qt.Check(t, qt.Equals(cstring(execs[0].Exec.Filename[:]), "/bin/sh"))
		keys, err := mapKeys[uint32](c.s.maps["dt_execs"])
		qt.Assert(t, qt.IsNil(err))
		qt.Check(t, qt.HasLen(keys, 0))
	})
}

// A grandchild is followed, with the component of the target; its sockets are not.
func TestGrandchildKernel(t *testing.T) {
	inTiers(t, func(t *testing.T, c *collector) {
		sh, in, wait := c.shell()
		fmt.Fprintf(in, "/bin/sh -c '/bin/sh -c \"/bin/true; /bin/true\"; :'\nexit\n")
		wait()
		recs := c.all()
		forks := ofKind(recs, KindFork)
		qt.Assert(t, qt.IsTrue(len(forks) >= 3), qt.Commentf("%v", recs))
		parent := map[uint32]uint32{}
		for _, f := range forks {
			qt.Check(t, qt.Equals(f.Component, 4))
			parent[f.Fork.ChildTGID] = f.TGID
		}
		for _, e := range ofKind(recs, KindExec) {
			p := e.TGID
			for p != sh && p != 0 {
				p = parent[p]
			}
			qt.Check(t, qt.Equals(p, sh), qt.Commentf("%v", e))
		}
		c.noLosses()
	})
}

func TestThreadKernel(t *testing.T) {
	inTiers(t, func(t *testing.T, c *collector) {
		v := startVictim(t)
		qt.Assert(t, qt.IsNil(c.s.SetTarget(v.pid(), Target{Component: 1, Watch: WatchProcess})))
		// Enough threads at once that the runtime has to make new ones.
		tids := map[uint32]bool{}
		for i := range 8 {
			v.start(order{Thread: 10 + i, Do: "tid"})
		}
		for range 8 {
			tids[uint32(v.wait().TID)] = true
		}
		pid := v.must(order{Thread: 11, Do: "exec", Parts: []string{"/bin/true", "x"}})
		recs := c.all()
		threads, forked := 0, false
		for _, f := range ofKind(recs, KindFork) {
			if f.Flags&FlagThread != 0 {
				threads++
				qt.Check(t, qt.Equals(f.Fork.ChildTGID, v.pid()))
				continue
			}
			if f.Fork.ChildTGID == uint32(pid.Ret) { // the runtime forks for itself, too
				forked = true
				qt.Check(t, qt.Equals(f.TID, uint32(pid.TID)))
			}
		}
		qt.Check(t, qt.IsTrue(forked))
		qt.Check(t, qt.IsTrue(threads >= 5), qt.Commentf("%v", recs))
		qt.Check(t, qt.HasLen(ofKind(recs, KindExec), 1))

		// The end of the process ends all its threads: one record each, one leader.
		v.start(order{Do: "exit", N: 5})
		v.cmd.Wait()
		exits := ofKind(c.all(), KindExit)
		leaders := 0
		for _, e := range exits {
			delete(tids, e.TID)
			if e.Flags&FlagLeader != 0 {
				leaders++
				qt.Check(t, qt.Equals(e.Exit.Code, 5<<8))
				qt.Check(t, qt.Equals(e.TID, e.TGID))
				if c.s.tier == Modern {
					qt.Check(t, qt.IsTrue(e.Exit.CPUNs > 100_000 && e.Exit.CPUNs < 60e9), qt.Commentf("%d", e.Exit.CPUNs))
				}
			}
		}
		qt.Check(t, qt.Equals(leaders, 1))
		qt.Check(t, qt.HasLen(tids, 0), qt.Commentf("threads without an exit record"))
		c.noLosses()
	})
}

// The kernel adds children by itself, for processes only.
func TestChildTargetKernel(t *testing.T) {
	inTiers(t, func(t *testing.T, c *collector) {
		v := startVictim(t)
		qt.Assert(t, qt.IsNil(c.s.SetTarget(v.pid(), Target{Component: 4, Watch: WatchStream | WatchLog | WatchProcess})))
		v.start(order{Do: "exec", Parts: []string{"/bin/sleep", "60"}})
		c.await(KindExec)
		targets, err := c.s.Targets()
		qt.Assert(t, qt.IsNil(err))
		qt.Assert(t, qt.HasLen(targets, 2))
		for tgid, target := range targets {
			if tgid != v.pid() {
				qt.Check(t, qt.Equals(target, Target{Component: 4, Watch: WatchProcess}))
				qt.Check(t, qt.IsNil(exec.Command("kill", fmt.Sprint(tgid)).Run()))
			}
		}
		v.wait()
	})
}

func TestClone3Kernel(t *testing.T) {
	inTiers(t, func(t *testing.T, c *collector) {
		v := startVictim(t)
		qt.Assert(t, qt.IsNil(c.s.SetTarget(v.pid(), Target{Component: 2, Watch: WatchProcess})))
		r := v.do(order{Do: "clone3"})
		if r.Errno != 0 {
			t.Skip("needs clone3 (Linux 5.3)")
		}
		recs := c.all()
		forked := 0
		for _, f := range ofKind(recs, KindFork) {
			if f.Flags == 0 {
				forked++
				qt.Check(t, qt.Equals(f.Fork.ChildTGID, uint32(r.Ret)))
				qt.Check(t, qt.Equals(f.TID, uint32(r.TID)))
			}
		}
		qt.Check(t, qt.Equals(forked, 1), qt.Commentf("%v", recs))
		exits := ofKind(recs, KindExit)
		qt.Assert(t, qt.HasLen(exits, 1))
		qt.Check(t, qt.Equals(exits[0].TGID, uint32(r.Ret)))
		qt.Check(t, qt.Equals(exits[0].Exit.Code, 9<<8))
		c.noLosses()
	})
}
