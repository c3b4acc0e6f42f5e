package e2e

import (
	"context"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/go-quicktest/qt"

	"github.com/xenserver/dtagent/cmd/dtagent/control"
	"github.com/xenserver/dtagent/testenv"
	"github.com/xenserver/dtagent/testenv/client"
	"github.com/xenserver/dtagent/testenv/config"
)

// TestClockStep has the wall clock of the host step, forward as after a suspend and
// then back, while a VM starts: its spans are as long as the truth says and lie to
// each other as they did. What starts after a step is told by the new clock.
func TestClockStep(t *testing.T) {
	clock := filepath.Join(t.TempDir(), "clock")
	l := newLab(t, testenv.Options{VMs: 3}, "--clock-file", clock)
	step := func(to string, steps uint64) {
		t.Helper()
		qt.Assert(t, qt.IsNil(os.WriteFile(clock+".new", []byte(to), 0o600)))
		qt.Assert(t, qt.IsNil(os.Rename(clock+".new", clock)))
		l.wait("has noticed the step", func(s *control.Status) bool { return s.Steps == steps })
	}
	l.observe()
	session := l.session()
	began, id, parent := l.startVM(session, 0)
	l.compare(began, "VM.start", id, parent)

	// Long enough for the agent, which looks each second, to notice meanwhile. If it
	// does not, on a machine that is very busy, the step is after the call.
	qt.Assert(t, qt.IsNil(l.dom0.Set(testenv.Knobs{Wait: map[string]map[config.Way]time.Duration{"VM_create": {config.WaySleep: 3 * time.Second}}})))
	began = ktime(t)
	done := make(chan error, 1)
	go func() {
		_, err := l.dial("unix", client.Options{Shape: client.Node}).Call(context.Background(), "VM.start", session, l.dom0.VMs()[1].Ref, false, false)
		done <- err
	}()
	l.wait("sees the call", func(s *control.Status) bool { return s.Engine.Activities > 0 })
	step("1h", 1)
	qt.Assert(t, qt.IsNil(<-done))
	l.compare(began, "VM.start", "", "") // by the clock of before

	qt.Assert(t, qt.IsNil(l.dom0.Set(testenv.Knobs{})))
	step("-30m", 2)
	l.ahead = -30 * time.Minute
	began, id, parent = l.startVM(session, 2)
	l.compare(began, "VM.start", id, parent)
	l.noLosses()
}
