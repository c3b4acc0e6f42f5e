//go:build linux

package target

import (
	"testing"

	"github.com/go-quicktest/qt"

	"github.com/xenserver/dtagent/bpf"
	"github.com/xenserver/dtagent/probes/event"
)

// Each program of the table is a target of its component, watched as the table
// says, for whoever wants it alone.
func TestRulesFollowTheTable(t *testing.T) {
	n := 0
	for _, c := range event.AllComponents.All() {
		for _, p := range c.Describe().Programs {
			n++
			is, watch := Plan(event.Of(c), p.Name)
			qt.Check(t, qt.Equals(is, p.Of), qt.Commentf("%s for %s", p.Name, c))
			qt.Check(t, qt.Equals(watch, watchOf(p.Watch)), qt.Commentf("%s for %s", p.Name, c))
			// A tapdisk's requests are followed by its disk, not as a target.
			qt.Check(t, qt.Equals(watch == 0, p.Watch == event.WatchRequests), qt.Commentf("%s for %s", p.Name, c))
			qt.Check(t, qt.Equals(programOf("", p.Name, ""), p.Name))
		}
		qt.Check(t, qt.Equals(Watches(event.Of(c)) == 0, c.Lacks() != "" || c == event.Tapdisk), qt.Commentf("%s", c))
	}
	qt.Check(t, qt.HasLen(rules, n))
	qt.Check(t, qt.Equals(watchOf(event.WatchAll), bpf.WatchStream|bpf.WatchLog|bpf.WatchProcess))
	qt.Check(t, qt.Equals(watchOf(event.WatchStreams), bpf.WatchStream))
	qt.Check(t, qt.Equals(watchOf(event.WatchLogs), bpf.WatchLog))
	qt.Check(t, qt.Equals(watchOf(event.WatchProcesses), bpf.WatchProcess))
}

func TestScriptsFollowTheTable(t *testing.T) {
	qt.Check(t, qt.DeepEquals(SMDirs, []string{"/opt/xensource/sm"}))
	qt.Check(t, qt.IsTrue(IsSM([]byte("/opt/xensource/sm/LVMSR"), SMDirs)))
	qt.Check(t, qt.IsFalse(IsSM([]byte("/opt/xensource/sm/LVM"), SMDirs)))
}

func TestRunning(t *testing.T) {
	f := fakeProc{t, t.TempDir()}
	f.process(100, 1, 5000, "xapi", "/opt/xensource/bin/xapi", "")
	f.process(90, 1, 5001, "xapi", "/opt/xensource/bin/xapi", "")
	f.process(200, 1, 5002, "xenguest", "/usr/libexec/xen/bin/xenguest", "")
	f.process(201, 1, 5003, "qemu-system-i38", "/usr/lib64/xen/bin/qemu-system-i386 (deleted)", "qemu-dm-5\x00")
	f.process(300, 1, 5004, "squeezed", "/usr/sbin/squeezed", "")
	f.process(400, 1, 5005, "bash", "/bin/bash", "")
	got, err := NewProc(f.root).Running()
	qt.Assert(t, qt.IsNil(err))
	qt.Check(t, qt.DeepEquals(got, map[event.Component][]Process{
		event.Xapi:     {{90, 5001, "xapi"}, {100, 5000, "xapi"}},
		event.Xenguest: {{200, 5002, "xenguest"}},
		event.QEMU:     {{201, 5003, "qemu-system-i386"}},
		event.Squeezed: {{300, 5004, "squeezed"}},
	}))
	_, err = NewProc(f.root + "/none").Running()
	qt.Check(t, qt.IsNotNil(err))
}
