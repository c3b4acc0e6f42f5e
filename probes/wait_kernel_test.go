//go:build linux

package probes

import (
	"cmp"
	"slices"
	"testing"

	"github.com/go-quicktest/qt"

	"github.com/xenserver/dtagent/bpf"
	"github.com/xenserver/dtagent/probes/event"
)

// waited returns a condition: a thread told a wait of that kind by itself.
func waited(w event.Spent) func([]event.Event) bool {
	return func(all []event.Event) bool {
		for _, e := range all {
			if e.Kind == event.KindTime && e.Wait == w && e.Spent[w] > 0 {
				return true
			}
		}
		return false
	}
}

// hooks counts what is attached, dispatchers left out: only they are at all exits.
func hooks(s Stats) (n int) {
	for _, a := range s.Attachments {
		if a.Hook != "raw_syscalls:sys_exit" {
			n++
		}
	}
	return n
}

// Waits are told while they are wanted, whatever is wanted first, and of
// children, too.
func TestSetWaitsKernel(t *testing.T) {
	inTiers(t, func(t *testing.T, tier bpf.Tier) {
		v := startVictim(t, "xapi")
		c := collect(t, tier, Options{SMDirs: []string{v.dir + "/sm"}})
		qt.Assert(t, qt.IsNil(c.Want(event.Of(event.Xapi))))
		without := hooks(c.Stats())
		cl := v.dial()
		cl.call("VM.get_all", session)
		c.wait(v.tgid, "request", holds(event.KindData, "VM.get_all"))
		for _, e := range c.of(v.tgid) {
			qt.Check(t, qt.Not(qt.Equals(e.Kind, event.KindTime)))
		}

		qt.Assert(t, qt.IsNil(c.SetWaits(true, 1))) // 1 ns: each wait is long
		qt.Assert(t, qt.IsNil(c.SetWaits(true, 1)))
		qt.Check(t, qt.Equals(hooks(c.Stats()), without+7))
		cl.call("SR.scan", session)
		cl.call("VM.get_all_records", session)
		c.wait(v.tgid, "wait for a child", waited(event.Child))
		c.wait(v.tgid, "wait for the next request", func(all []event.Event) bool {
			cl.call("VM.get_all", session) // a wait is told when it has ended
			return waited(event.Network)(all)
		})
		// The time of the script itself is told from its fork on. It need not be the only
		// process that the victim made, nor the first that it waited for.
		script := uint32(0)
		c.wait(v.tgid, "script", func(all []event.Event) bool {
			script = c.scriptOf(all)
			return script != 0
		})
		c.wait(script, "time of the script", func(all []event.Event) bool {
			for _, e := range all {
				if e.Kind == event.KindTime && e.Spent.Total() > 0 && e.Component == event.SMAPI {
					return true
				}
			}
			return false
		})
		// A thread's stretches come in order.
		last := map[uint32]event.Time{}
		all := c.of(v.tgid)
		slices.SortStableFunc(all, func(a, b event.Event) int { return cmp.Compare(a.Time, b.Time) })
		for _, e := range all {
			if e.Kind == event.KindTime {
				qt.Check(t, qt.IsTrue(e.First >= last[e.TID]), qt.Commentf("%+v", e))
				last[e.TID] = e.Last
			}
		}

		qt.Assert(t, qt.IsNil(c.SetWaits(false, 0)))
		qt.Check(t, qt.Equals(hooks(c.Stats()), without))
		cl.call("VM.get_all_records", session)
		qt.Assert(t, qt.IsNil(c.Want(0)))
		qt.Assert(t, qt.IsNil(c.SetWaits(true, 0)))
		qt.Check(t, qt.HasLen(c.Stats().Attachments, 0)) // nothing is wanted
		qt.Assert(t, qt.IsNil(c.Want(event.Of(event.Xapi))))
		qt.Check(t, qt.Equals(hooks(c.Stats()), without+7))
	})
}
