package e2e

import (
	"context"
	"fmt"
	"os"
	"slices"
	"strconv"
	"testing"
	"time"

	"github.com/go-quicktest/qt"

	"github.com/xenserver/dtagent/cmd/dtagent/control"
	"github.com/xenserver/dtagent/cmd/dtagent/tree"
	"github.com/xenserver/dtagent/testenv"
	"github.com/xenserver/dtagent/testenv/client"
	"github.com/xenserver/dtagent/testenv/config"
	"github.com/xenserver/dtagent/testenv/truth"
)

// waitSpans are the names of the spans of waits.
var waitSpans = map[config.Way]string{
	config.WayLock: "lock", config.WayChild: "wait child", config.WayFlock: "flock", config.WayConnect: "connect",
	config.WayNetwork: "network read", config.WayPipe: "pipe read", config.WayPoll: "poll", config.WaySleep: "sleep",
	config.WayFile: "file read", config.WayFsync: "fsync", config.WayHypercall: "hypercall domctl",
}

// TestWaits has a worker of xenopsd wait in each way within one atom: the time
// splits of the atom and of its operation tell how long, and the atom has a span
// of each. An injected wait lasts as long as it was asked for at least, from when
// the thread was seen asleep in it.
func TestWaits(t *testing.T) {
	ways := config.Ways
	if dev, err := os.OpenFile("/dev/fuse", os.O_RDWR, 0); err == nil {
		dev.Close()
	} else {
		slow := []config.Way{config.WayFile, config.WayFsync, config.WayHypercall}
		t.Run(fmt.Sprint(slow), func(t *testing.T) { t.Skipf("needs FUSE: %v", err) })
		ways = slices.DeleteFunc(slices.Clone(ways), func(w config.Way) bool { return slices.Contains(slow, w) })
	}
	t.Run("modern", func(t *testing.T) { testWaits(t, "modern", ways) })
	// What is behind a descriptor is not known there. But the socket was seen when it
	// was made; of the others, a signal can end a read of the pipe and none of the file.
	t.Run("legacy", func(t *testing.T) { testWaits(t, "legacy", ways, "--legacy") })
}

// testWaits waits in the ways.
func testWaits(t *testing.T, tier string, ways []config.Way, args ...string) {
	const injected = 40 * time.Millisecond
	l := newLab(t, testenv.Options{}, args...)
	l.observe()
	session := l.session()
	knobs := testenv.Knobs{Wait: map[string]map[config.Way]time.Duration{"VM_create": {}}}
	for _, way := range ways {
		knobs.Wait["VM_create"][way] = injected
	}
	qt.Assert(t, qt.IsNil(l.dom0.Set(knobs)))
	began := ktime(t)
	_, err := l.dial("unix", client.Options{Shape: client.Node}).Call(context.Background(), "VM.start", session, l.dom0.VMs()[0].Ref, false, false)
	qt.Assert(t, qt.IsNil(err))

	var create, operation *tree.Node
	for _, tr := range l.traces() {
		tr.All(func(n *tree.Node) {
			switch n.Name {
			case "VM_create":
				create = n
			case "VM_start":
				operation = n
			}
		})
	}
	qt.Assert(t, qt.IsNotNil(create))
	qt.Assert(t, qt.IsNotNil(operation))
	waits := map[config.Way]truth.Entry{}
	for _, e := range l.truth().Entries {
		if e.Kind == truth.Delay && e.Start >= began {
			for _, way := range ways {
				if e.Name == "wait "+string(way) {
					waits[way] = e
				}
			}
		}
	}
	qt.Assert(t, qt.HasLen(waits, len(ways)))
	for _, n := range []*tree.Node{create, operation} {
		c := &comparison{t: t}
		c.spent(n, n.Name)
		qt.Check(t, qt.HasLen(c.bad, 0))
	}
	offset := wallOffset(t)
	// Only to tell which wait is meant, which is longer: no clock is judged here.
	const slack = int64(injected / 4 / time.Microsecond)
	for way, e := range waits {
		for _, n := range []*tree.Node{create, operation} {
			us, _ := strconv.ParseInt(n.Tags["dt.time."+string(way)+"_us"], 10, 64)
			// nine tenths: what a thread waited for before it was seen asleep comes on
			// top, what clocks and rounding take away is a few µs
			qt.Check(t, qt.IsTrue(time.Duration(us)*time.Microsecond >= injected*9/10), qt.Commentf("%s spent %d µs in %s", n.Name, us, way))
		}
		found := 0
		for _, n := range create.Children {
			if way == config.WayHypercall && n.Tags["dt.domctl.name"] != "createdomain" {
				continue
			}
			if n.Name == waitSpans[way] && n.Tags["dt.wait.class"] == string(way) &&
				n.Timestamp >= (e.Start+offset)/1000-slack && n.End() <= (e.End+offset)/1000+slack && n.Length() >= injected*9/10 {
				found++
			}
		}
		qt.Check(t, qt.Equals(found, 1), qt.Commentf("spans of wait %s", way))
	}
	s := l.status()
	qt.Check(t, qt.Equals(s.Tier, tier))
	st := s.Engine
	qt.Check(t, qt.IsTrue(st.Stretches > 0))
	qt.Check(t, qt.IsTrue(st.Waits.Spans >= uint64(len(waits))))
	qt.Check(t, qt.Equals(st.BadStretches, 0))
	l.noLosses()
	if t.Failed() {
		t.Log(fmt.Sprint(create.Tags), l.truth().Tree(""))
	}
}

// TestWaitsWanted: an Observer has the waits that it asks for, and the probe for
// them is there while one does.
func TestWaitsWanted(t *testing.T) {
	l := newLab(t, testenv.Options{VMs: 3, Knobs: testenv.Knobs{AtomTime: map[string]time.Duration{"VM_create": 20 * time.Millisecond}}})
	id := l.observe("attributes:dtagent.waits=false")
	session := l.session()
	start := func(n int) (waits, splits int) {
		began := ktime(t)
		_, err := l.dial("unix", client.Options{Shape: client.Node}).Call(context.Background(), "VM.start", session, l.dom0.VMs()[n].Ref, false, false)
		qt.Assert(t, qt.IsNil(err))
		for _, tr := range l.traces() {
			tr.All(func(n *tree.Node) {
				if n.Timestamp < (began+wallOffset(t))/1000 {
					return
				}
				if n.Tags["dt.wait.class"] != "" {
					waits++
				}
				if n.Tags["dt.time.rest_us"] != "" {
					splits++
				}
			})
		}
		return waits, splits
	}
	waits, splits := start(0)
	qt.Check(t, qt.Equals(waits+splits, 0))
	qt.Check(t, qt.Equals(l.status().Engine.Stretches, 0))

	set := func(words ...string) {
		_, err := l.agent.Run(context.Background(), append([]string{"observer", "param-set", "uuid=" + id}, words...)...)
		qt.Assert(t, qt.IsNil(err))
	}
	set("attributes:dtagent.waits=true")
	l.waitLong("tells waits", func(s *control.Status) bool { return s.Engine.Stretches > 0 })
	waits, splits = start(1)
	qt.Check(t, qt.IsTrue(waits > 0))
	qt.Check(t, qt.IsTrue(splits > 0))

	l.noLosses()
}
