package e2e

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"github.com/go-quicktest/qt"

	"github.com/xenserver/dtagent/cmd/dtagent/control"
	"github.com/xenserver/dtagent/testenv"
)

// held are the ids of eBPF objects that a process has open.
type held struct {
	programs map[ebpf.ProgramID]bool
	maps     map[ebpf.MapID]bool
}

// holds lists them.
func holds(t testing.TB, pid int) held {
	t.Helper()
	h := held{map[ebpf.ProgramID]bool{}, map[ebpf.MapID]bool{}}
	files, err := filepath.Glob(fmt.Sprintf("/proc/%d/fdinfo/*", pid))
	qt.Assert(t, qt.IsNil(err))
	for _, f := range files {
		b, err := os.ReadFile(f)
		if err != nil {
			continue // closed meanwhile
		}
		for line := range strings.Lines(string(b)) {
			var id uint32
			if n, _ := fmt.Sscanf(line, "prog_id:\t%d", &id); n == 1 {
				h.programs[ebpf.ProgramID(id)] = true
			}
			if n, _ := fmt.Sscanf(line, "map_id:\t%d", &id); n == 1 {
				h.maps[ebpf.MapID(id)] = true
			}
		}
	}
	return h
}

// left returns how many of them the kernel still has: as long as anything holds a
// program, be it a link, a perf event or a pinned file, it is there.
func (h held) left(t testing.TB) (programs, maps, links int) {
	t.Helper()
	for id := range h.programs {
		if p, err := ebpf.NewProgramFromID(id); err == nil {
			p.Close()
			programs++
		}
	}
	for id := range h.maps {
		if m, err := ebpf.NewMapFromID(id); err == nil {
			m.Close()
			maps++
		}
	}
	it := new(link.Iterator)
	defer it.Close()
	for it.Next() {
		if info, err := it.Link.Info(); err == nil && h.programs[info.Program] {
			links++
		}
	}
	return programs, maps, links
}

// gone waits until the kernel has let go of them, which it does after a while.
func (h held) gone(t testing.TB) {
	t.Helper()
	qt.Assert(t, qt.IsTrue(len(h.programs) > 10 && len(h.maps) > 3), qt.Commentf("%d programs and %d maps", len(h.programs), len(h.maps)))
	eventually(t, "the kernel lets go of programs, maps and links", func() bool {
		programs, maps, links := h.left(t)
		return programs+maps+links == 0
	})
}

// TestSecondAgent starts an agent beside one that runs: it is refused, says what to
// do, and nothing is attached twice.
func TestSecondAgent(t *testing.T) {
	l := newLab(t, testenv.Options{})
	l.observe()
	before := holds(t, l.agent.PID())
	second := exec.Command(l.binary, "run", "--observers-dir", l.agent.ObserversDir(), "--control", l.agent.Control(), "--bugtool-dir", l.agent.SpansDir(),
		"--state-dir", l.agent.StateDir(), "--xapi-socket=", "--proc", l.dom0.ProcDir(), "--config=")
	out, err := second.CombinedOutput()
	var exit *exec.ExitError
	qt.Assert(t, qt.IsTrue(errors.As(err, &exit)), qt.Commentf("%v: %s", err, out))
	qt.Check(t, qt.Equals(exit.ExitCode(), 1))
	qt.Check(t, qt.StringContains(string(out), fmt.Sprintf("an agent is running on %s already (pid %d); stop it", l.agent.Control(), l.agent.PID())))
	after := holds(t, l.agent.PID())
	qt.Check(t, qt.DeepEquals(after.programs, before.programs))
	qt.Check(t, qt.DeepEquals(after.maps, before.maps))
	l.calls(20)
	qt.Check(t, qt.Equals(l.status().PID, l.agent.PID())) // its socket is its own
}

// TestUpgrade stops an agent and starts the next while calls go on, as an update of
// the package does: with a receiver that takes spans, and with one that hangs, which
// the old agent must not wait for. Each call that no agent was away for is told once.
// How long none watched is in the log of the test.
func TestUpgrade(t *testing.T) {
	for _, mode := range []string{modeTake, modeHang} {
		t.Run("receiver "+mode, func(t *testing.T) {
			l := newLab(t, testenv.Options{})
			r := newReceiver(t)
			r.set(mode)
			l.observe("endpoints=bugtool," + r.url())
			calls := l.callers(2)
			var away []window
			for range 3 {
				calls.more(100)
				old := holds(t, l.agent.PID())
				w := window{from: ktime(t)}
				qt.Assert(t, qt.IsNil(l.agent.Stop()))
				stopped := ktime(t)
				l.start()
				l.wait("watches xapi and xenopsd again", func(s *control.Status) bool { return len(s.Probes) > 0 && len(s.Targets) >= 2 })
				w.to = ktime(t)
				away = append(away, w)
				old.gone(t)
				t.Logf("away for %v: %v to stop, %v until attached", time.Duration(w.to-w.from).Round(time.Millisecond),
					time.Duration(stopped-w.from).Round(time.Millisecond), time.Duration(w.to-stopped).Round(time.Millisecond))
				calls.more(10)
			}
			made := calls.end()
			if mode == modeHang {
				r.set(modeTake)
				r.srv.CloseClientConnections()
			}
			l.waitLong("has sent what it held", func(s *control.Status) bool { return s.Totals.Queued == 0 })
			l.traces()
			told(t, l.spans(), made, away)
			// The receiver has what the files have: the queue on disk outlives an agent.
			l.everywhere(r)
		})
	}
}

// TestKill ends the agent with SIGKILL while it is attached: the kernel lets go of
// everything by itself, and the next agent starts as if nothing had been.
func TestKill(t *testing.T) {
	l := newLab(t, testenv.Options{VMs: 2})
	l.observe()
	session := l.session()
	l.startVM(session, 0)
	old := holds(t, l.agent.PID())
	qt.Assert(t, qt.IsNil(l.agent.Kill()))
	old.gone(t)
	_, err := os.Stat(l.agent.Control())
	qt.Check(t, qt.IsNil(err)) // it could not clean up: that is the next one's to do
	l.start()
	l.wait("watches xapi and xenopsd again", func(s *control.Status) bool { return len(s.Probes) > 0 && len(s.Targets) >= 2 })
	began, id, parent := l.startVM(session, 1)
	l.compare(began, "VM.start", id, parent)
	l.noLosses()
	qt.Assert(t, qt.IsNil(l.agent.Stop()))
	for _, left := range []string{l.agent.Control(), l.agent.Control() + ".lock"} {
		_, err = os.Stat(left)
		qt.Check(t, qt.ErrorIs(err, os.ErrNotExist))
	}
	l.start() // for the lab's end
	_, err = l.agent.Status(context.Background())
	qt.Assert(t, qt.IsNil(err))
}
