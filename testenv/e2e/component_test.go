package e2e

import (
	"context"
	"fmt"
	"strings"
	"testing"

	"github.com/go-quicktest/qt"

	"github.com/xenserver/dtagent/cmd/dtagent/control"
	"github.com/xenserver/dtagent/cmd/dtagent/tree"
	"github.com/xenserver/dtagent/testenv"
	"github.com/xenserver/dtagent/testenv/client"
	"github.com/xenserver/dtagent/testenv/config"
	"github.com/xenserver/dtagent/testenv/truth"
)

// observeOnly creates an Observer of components and waits until exactly the
// processes are watched.
func (l *lab) observeOnly(components string, targets ...string) {
	l.t.Helper()
	_, err := l.agent.Run(context.Background(), "observer", "create", "name-label=e2e", "enabled=true", "components="+components)
	qt.Assert(l.t, qt.IsNil(err))
	l.wait("watches "+strings.Join(targets, " and "), func(s *control.Status) bool {
		found := map[string]bool{}
		for _, t := range s.Targets {
			found[t.Component] = true
		}
		for _, name := range targets {
			if !found[name] {
				return false
			}
		}
		return len(s.Probes) > 0 && len(found) == len(targets)
	})
}

// startVM starts a VM as a caller with a trace context does, and returns when
// it began, its trace id and its span id.
func (l *lab) startVM(session string, n int) (began int64, id, parent string) {
	l.t.Helper()
	id, parent = fmt.Sprintf("%032x", 0xc0de00+n), fmt.Sprintf("%016x", 0xbea700+n)
	began = ktime(l.t)
	_, err := l.dial("unix", client.Options{Shape: client.Node, Traceparent: "00-" + id + "-" + parent + "-01", Tracestate: "vendor=x"}).
		Call(context.Background(), "VM.start", session, l.dom0.VMs()[n].Ref, false, false)
	qt.Assert(l.t, qt.IsNil(err))
	return began, id, parent
}

// TestDaemonsTree starts VMs on a dom0 with squeezed and xcp-networkd, and
// compares the whole tree with the ground truth.
func TestDaemonsTree(t *testing.T) {
	for _, tracing := range []struct {
		name  string
		knobs testenv.Knobs
	}{
		{"the toolstack's tracing off", testenv.Knobs{}},
		{"and on", testenv.Knobs{Native: config.NativeOn, LogTrace: true}},
	} {
		t.Run(tracing.name, func(t *testing.T) {
			l := newLab(t, testenv.Options{VMs: 2, Squeezed: true, Networkd: true, Knobs: tracing.knobs})
			l.observeOnly("xapi,xenopsd,smapi,squeezed,xcp-networkd", "xapi", "xenopsd", "squeezed", "xcp-networkd")
			session := l.session()
			for n, want := range []map[string]string{
				{
					"login": "squeezed", "reserve_memory_range": "squeezed", "transfer_reservation_to_domain": "squeezed",
					"Network.Bridge.get_all": "xcp-networkd", "Network.Bridge.create": "xcp-networkd", "Network.Bridge.set_persistent": "xcp-networkd",
				},
				{ // the session is there already, and so is the bridge
					"reserve_memory_range": "squeezed", "transfer_reservation_to_domain": "squeezed",
					"Network.Bridge.get_all": "xcp-networkd",
				},
			} {
				began, id, parent := l.startVM(session, n)
				l.compare(began, "VM.start", id, parent)
				got := map[string]string{}
				for _, s := range l.spans() {
					if s.TraceID == id && s.Tags["dt.wait.class"] == "" && (s.Service() == "squeezed" || s.Service() == "xcp-networkd") {
						got[s.Name] = s.Service()
						qt.Check(t, qt.Equals(s.Kind, "CONSUMER"))
						qt.Check(t, qt.Equals(s.Link(), "queue"))
						qt.Check(t, qt.Equals(s.Tags["process.pid"], fmt.Sprint(l.dom0.PID(s.Service()))))
					}
				}
				qt.Check(t, qt.DeepEquals(got, want))
			}
			l.noLosses()
		})
	}
}

// TestOneDaemon wants squeezed alone: nobody else is watched, and its calls are
// roots.
func TestOneDaemon(t *testing.T) {
	l := newLab(t, testenv.Options{Squeezed: true, Networkd: true})
	l.observeOnly("squeezed", "squeezed")
	l.startVM(l.session(), 0)
	var names []string
	for _, tr := range l.traces() {
		for _, n := range tr.Roots {
			names = append(names, n.Service()+" "+n.Name+" "+n.Link())
		}
	}
	qt.Check(t, qt.ContentEquals(names, []string{
		"squeezed login none", "squeezed reserve_memory_range none", "squeezed transfer_reservation_to_domain none",
	}))
	l.noLosses()
}

// TestMessageSwitch has a span of the switch below each call through it.
func TestMessageSwitch(t *testing.T) {
	l := newLab(t, testenv.Options{VMs: 2, Squeezed: true})
	l.observeOnly("xapi,xenopsd,message-switch", "xapi", "xenopsd", "message-switch")
	began, id, _ := l.startVM(l.session(), 0)
	traces := l.traces()
	sends, relays := 0, 0
	var walk func(n *tree.Node)
	walk = func(n *tree.Node) {
		if queue, ok := strings.CutPrefix(n.Name, "send "); ok {
			sends++
			var below []*tree.Node
			for _, c := range n.Children {
				if c.Service() == "message-switch" {
					below = append(below, c)
				}
			}
			if qt.Check(t, qt.HasLen(below, 1), qt.Commentf("%s", n.Name)) {
				r := below[0]
				relays++
				qt.Check(t, qt.Equals(r.Name, "relay "+queue))
				qt.Check(t, qt.Equals(r.Kind, "SERVER"))
				qt.Check(t, qt.Equals(r.Link(), "queue"))
				qt.Check(t, qt.Equals(r.Incomplete(), ""))
				qt.Check(t, qt.Equals(r.Tags["messaging.message.id"], n.Tags["messaging.message.id"]))
				qt.Check(t, qt.Equals(r.Tags["process.pid"], fmt.Sprint(l.dom0.PID("message-switch"))))
				qt.Check(t, qt.IsTrue(r.Timestamp >= n.Timestamp && r.End() <= n.End()), qt.Commentf("%s", n.Name))
			}
		}
		for _, c := range n.Children {
			walk(c)
		}
	}
	for _, tr := range traces {
		if tr.ID != id {
			continue
		}
		for _, n := range tr.Roots {
			walk(n)
		}
	}
	want := 0
	log := l.truth()
	for _, e := range log.Entries {
		if path := log.Path(e.ID); e.Kind == truth.Send && path[0].Name == "VM.start" && path[0].Start >= began {
			want++
		}
	}
	qt.Check(t, qt.Equals(sends, want))
	qt.Check(t, qt.Equals(relays, want))
	t.Logf("%d calls, each with its span at the switch", relays)
	l.noLosses()
}

// TestNoProbe wants what this version has no probe for: nothing is attached.
func TestNoProbe(t *testing.T) {
	l := newLab(t, testenv.Options{})
	_, err := l.agent.Run(context.Background(), "observer", "create", "name-label=e2e", "enabled=true", "components=tapdisk,xenstored")
	qt.Assert(t, qt.IsNil(err))
	l.wait("wants tapdisk", func(s *control.Status) bool { return len(s.Observers) == 1 })
	l.startVM(l.session(), 0)
	s := l.status()
	qt.Check(t, qt.HasLen(s.Probes, 0))
	qt.Check(t, qt.HasLen(s.Targets, 0))
	qt.Check(t, qt.HasLen(attached(t, s.PID), 0))
	qt.Check(t, qt.Equals(s.Engine.Spans, 0))
}

// TestDaemonOfTask leaves out xenopsd, which calls squeezed: the task that the call
// names says whose it is.
func TestDaemonOfTask(t *testing.T) {
	l := newLab(t, testenv.Options{Squeezed: true})
	l.observeOnly("xapi,squeezed", "xapi", "squeezed")
	_, id, _ := l.startVM(l.session(), 0)
	l.traces()
	spans := l.spans()
	byID := map[string]string{}
	for _, s := range spans {
		byID[s.ID] = s.Name
	}
	n := 0
	for _, s := range spans {
		qt.Check(t, qt.Not(qt.Equals(s.Service(), "xenopsd")), qt.Commentf("%s", s.Name))
		if s.Service() == "squeezed" && s.Tags["dt.wait.class"] == "" {
			n++
			qt.Check(t, qt.Equals(s.TraceID, id), qt.Commentf("%s", s.Name))
			qt.Check(t, qt.Equals(byID[s.ParentID], "VM.start"), qt.Commentf("%s", s.Name))
			qt.Check(t, qt.Equals(s.Link(), "task"), qt.Commentf("%s", s.Name))
		}
	}
	qt.Check(t, qt.Equals(n, 3))
	l.noLosses()
}

// TestProgramOfAnother wants xenguest alone: xenopsd is watched for its children
// only, and of these the Observer gets the one.
func TestProgramOfAnother(t *testing.T) {
	l := newLab(t, testenv.Options{VMs: 2})
	l.observeOnly("xenguest", "xenopsd")
	session := l.session()
	l.startVM(session, 0)
	for _, name := range attached(t, l.status().PID) {
		qt.Check(t, qt.IsFalse(strings.Contains(name, "read") || strings.Contains(name, "write")), qt.Commentf("%s is attached", name))
	}
	var got []string
	for _, tr := range l.traces() {
		for _, n := range tr.Roots {
			got = append(got, n.Service()+" "+n.Name+" "+n.Link())
		}
		qt.Check(t, qt.Equals(tr.Spans, 1))
	}
	qt.Check(t, qt.DeepEquals(got, []string{"xenopsd xenguest none"}))

	// Beside an Observer of xenopsd both get it, under its place in that one's tree.
	l.observeOnly("xapi,xenopsd", "xapi", "xenopsd")
	_, id, _ := l.startVM(session, 1)
	l.traces()
	n := 0
	for _, s := range l.spans() {
		if s.Name == "xenguest" && s.TraceID == id {
			n++
			qt.Check(t, qt.Equals(s.Link(), "fork"))
		}
	}
	qt.Check(t, qt.Equals(n, 2))
	l.noLosses()
}

// TestSocketDaemon wants xcp-rrdd, which is called on a socket of its own.
func TestSocketDaemon(t *testing.T) {
	l := newLab(t, testenv.Options{RRDD: true})
	l.observeOnly("xcp-rrdd", "xcp-rrdd")
	l.startVM(l.session(), 0)
	var entry *truth.Entry
	l.wait("gets the call", func(s *control.Status) bool { return s.Engine.Spans > 0 })
	for _, e := range l.truth().Find(truth.RPC, "push_rrd_local") {
		entry = &e
	}
	qt.Assert(t, qt.IsNotNil(entry))
	l.traces()
	spans := l.spans()
	qt.Assert(t, qt.HasLen(spans, 1))
	s := spans[0]
	qt.Check(t, qt.Equals(s.Name, "push_rrd_local"))
	qt.Check(t, qt.Equals(s.Service(), "xcp-rrdd"))
	qt.Check(t, qt.Equals(s.Kind, "SERVER"))
	qt.Check(t, qt.Equals(s.Link(), "none"))
	qt.Check(t, qt.Equals(s.Incomplete(), ""))
	qt.Check(t, qt.Equals(s.Error(), ""))
	qt.Check(t, qt.Equals(s.Tags["rpc.system"], "xmlrpc"))
	qt.Check(t, qt.Equals(s.Tags["network.local.address"], "/var/lib/xcp/xcp-rrdd"))
	qt.Check(t, qt.Equals(s.Tags["process.pid"], fmt.Sprint(entry.TGID)))
	l.noLosses()
}

// TestSocketDaemonOfTask has xenopsd call squeezed on its socket: the thread that
// connects says whose work the calls are.
func TestSocketDaemonOfTask(t *testing.T) {
	l := newLab(t, testenv.Options{Squeezed: true, Sockets: true})
	l.observeOnly("xapi,xenopsd,squeezed", "xapi", "xenopsd", "squeezed")
	_, id, _ := l.startVM(l.session(), 0)
	l.traces()
	byID, got := map[string]string{}, map[string]string{}
	spans := l.spans()
	for _, s := range spans {
		byID[s.ID] = s.Name
	}
	for _, s := range spans {
		if s.Service() == "squeezed" && s.Tags["dt.wait.class"] == "" {
			got[s.Name] = s.Kind + " under " + byID[s.ParentID] + " by " + s.Link()
			qt.Check(t, qt.Equals(s.TraceID, id))
			qt.Check(t, qt.Equals(s.Incomplete(), ""))
			qt.Check(t, qt.Equals(s.Tags["network.local.address"], "/var/xapi/memory"))
		}
	}
	under := "SERVER under VM_create by socket"
	qt.Check(t, qt.DeepEquals(got, map[string]string{"login": under, "reserve_memory_range": under, "transfer_reservation_to_domain": under}))
	l.noLosses()
}
