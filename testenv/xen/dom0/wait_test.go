//go:build linux

package dom0

import (
	"os"
	"os/exec"
	"testing"

	"github.com/go-quicktest/qt"
	"golang.org/x/sys/unix"

	"github.com/xenserver/dtagent/bpf"
	"github.com/xenserver/dtagent/probes/event"
)

// Hypercalls, event channels and xenstore are told as what they are when it is
// the hypervisor that answers: those of a process that is known to the call, and
// those of Xen's own programs.
func TestWaitsDom0(t *testing.T) {
	inTiers(t, func(t *testing.T, w *watcher) {
		self, err := os.Executable()
		qt.Assert(t, qt.IsNil(err))
		caller, out := w.run(nil, self)
		c := checkCaller(t, out)

		config := guestConfig(t, "watched")
		create, _ := w.run(nil, "xl", "create", "-q", "-e", "-p", config)
		t.Cleanup(func() { exec.Command("xl", "destroy", "watched").Run() }) // as a rule it is gone
		list, _ := w.run(nil, "xl", "list")
		unpause, _ := w.run(nil, "xl", "unpause", "watched")
		pause, _ := w.run(nil, "xl", "pause", "watched")
		destroy, _ := w.run(nil, "xl", "destroy", "watched")

		read, _ := w.run(nil, "xenstore-read", "/local/domain/0/name")
		const key = "/dtagent-watched"
		watched, _ := w.run(func(pid int) { // its first event comes at once
			qt.Check(t, qt.IsNil(reads(pid, 0, -1)))
			out, err := exec.Command("xenstore-write", key, "x").CombinedOutput()
			qt.Check(t, qt.IsNil(err), qt.Commentf("%s", out))
		}, "xenstore-watch", "-n", "2", key)
		w.whole()

		var want []uint64
		for range versions {
			want = append(want, opXenVersion)
		}
		for range infos {
			want = append(want, domctl(getDomainInfo))
		}
		qt.Check(t, qt.DeepEquals(w.hypercalls(caller), want))
		for _, kind := range []event.Spent{event.EventChan, event.Xenstore} {
			qt.Check(t, qt.IsTrue(waited(w.waits(caller), c.TID, unix.SYS_READ, kind)), qt.Commentf("%s: %+v", kind, w.waits(caller)))
		}

		for _, p := range []struct {
			what string
			tgid uint32
			call uint64
			n    int // 0: at least one
		}{
			{"create", create, domctl(createDomain), 1},
			{"create", create, domctl(maxVCPUs), 1},
			{"list", list, opSysctl, 0},
			{"unpause", unpause, domctl(unpauseDomain), 1},
			{"pause", pause, domctl(pauseDomain), 1},
			{"destroy", destroy, domctl(destroyDomain), 0}, // once more as long as there is memory to free
		} {
			calls := w.hypercalls(p.tgid)
			n := count(calls, p.call)
			qt.Check(t, qt.IsTrue(n == p.n || p.n == 0 && n > 0), qt.Commentf("xl %s: %d times %#x in %#x", p.what, n, p.call, calls))
		}
		// What only others did is in none of them.
		qt.Check(t, qt.Equals(count(w.hypercalls(list), domctl(createDomain)), 0))
		qt.Check(t, qt.Equals(count(w.hypercalls(pause), domctl(unpauseDomain)), 0))
		qt.Check(t, qt.HasLen(w.hypercalls(read), 0))

		for name, tgid := range map[string]uint32{"xl create": create, "xl list": list, "xl destroy": destroy, "xenstore-read": read, "xenstore-watch": watched} {
			kinds := map[event.Spent]int{}
			for _, r := range w.waits(tgid) {
				kinds[event.Spent(r.Wait)]++
			}
			t.Logf("%s: %v", name, kinds)
			if tgid == create || tgid == destroy { // they ask hundreds of times: not all answers are there at once
				qt.Check(t, qt.IsTrue(kinds[event.Xenstore] > 0), qt.Commentf("%s: %v", name, kinds))
			}
			qt.Check(t, qt.Equals(kinds[event.Network], 0), qt.Commentf("%s has no socket but xenstored's: %v", name, kinds))
		}
		qt.Check(t, qt.IsTrue(waited(w.waits(watched), 0, unix.SYS_READ, event.Xenstore)), qt.Commentf("%+v", w.waits(watched)))
	})
}

// waited tells whether one of these waits, of a thread or of any, is long and as
// expected. The test that made it saw it last for long.
func waited(all []bpf.TimeRec, tid int, nr int32, kind event.Spent) bool {
	for _, r := range all {
		if (tid == 0 || r.TID == uint32(tid)) && r.NR == nr && event.Spent(r.Wait) == kind && r.Last-r.First >= uint64(long) {
			return true
		}
	}
	return false
}
