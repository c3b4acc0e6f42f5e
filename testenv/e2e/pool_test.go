//go:build linux

package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/go-quicktest/qt"

	"github.com/xenserver/dtagent/cmd/dtagent/control"
	"github.com/xenserver/dtagent/cmd/dtagent/tree"
	"github.com/xenserver/dtagent/cmd/dtagent/zipkin"
	"github.com/xenserver/dtagent/testenv"
	"github.com/xenserver/dtagent/testenv/client"
	"github.com/xenserver/dtagent/testenv/config"
	"github.com/xenserver/dtagent/testenv/daemon"
	"github.com/xenserver/dtagent/testenv/truth"
)

// ahead is what the member's clock is ahead of the coordinator's.
const ahead = 5 * time.Second

// poolLab is a simulated pool with an agent on each of its two hosts, which
// follow the pool's Observers.
type poolLab struct {
	t      testing.TB
	pool   *testenv.Pool
	agents []*daemon.Daemon // as pool.Hosts
}

func newPoolLab(t testing.TB, o testenv.Options) *poolLab {
	t.Helper()
	needRoot(t)
	dtagent, dom0 := binaries(t)
	l := &poolLab{t: t}
	o.Binary, o.Dir = dom0, t.TempDir()
	var err error
	l.pool, err = testenv.StartPool(context.Background(), testenv.PoolOptions{Options: o})
	qt.Assert(t, qt.IsNil(err))
	t.Cleanup(func() { qt.Check(t, qt.IsNil(l.pool.Close())) })
	dir := t.TempDir()
	for _, h := range l.pool.Hosts() {
		args := []string{"--host-uuid", h.HostUUID(), "--host-name", h.HostName()}
		if h == l.pool.Member {
			args = append(args, "--clock-offset", ahead.String())
		}
		a, err := daemon.Start(context.Background(), daemon.Options{
			Binary: dtagent, Dir: filepath.Join(dir, h.HostName()), Only: pids(h), Args: args,
			XAPISocket: h.XapiSocket(), In: h.InNetwork,
		})
		qt.Assert(t, qt.IsNil(err))
		l.agents = append(l.agents, a)
		t.Cleanup(func() {
			var shown []byte
			if s, err := a.Status(context.Background()); err == nil {
				s.Probes = nil
				shown, _ = json.MarshalIndent(s, "", " ") // it came as JSON
			}
			qt.Check(t, qt.IsNil(a.Stop()))
			if t.Failed() {
				t.Logf("%s: the agent's status:\n%s\nits log:\n%s", h.HostName(), shown, a.Log())
			}
		})
	}
	return l
}

// observe creates an Observer in the pool's database and waits until both agents
// watch their host's toolstack for it.
func (l *poolLab) observe() {
	l.t.Helper()
	c := client.Unix(l.pool.Member.XapiSocket(), client.Options{Shape: client.Node}) // which forwards it
	o, err := c.Observers(context.Background())
	qt.Assert(l.t, qt.IsNil(err))
	_, err = o.Create(context.Background(), client.Observer{Name: "pool", Endpoints: []string{"bugtool"}, Enabled: true})
	qt.Assert(l.t, qt.IsNil(err))
	for i, a := range l.agents {
		err := a.Wait(context.Background(), 15*time.Second, "watches xapi and xenopsd", func(s *control.Status) bool {
			found := map[string]bool{}
			for _, t := range s.Targets {
				found[t.Component] = true
			}
			return len(s.Probes) > 0 && found["xapi"] && found["xenopsd"]
		})
		qt.Assert(l.t, qt.IsNil(err), qt.Commentf("%s", l.pool.Hosts()[i].HostName()))
	}
}

// forwardedCall is one VM.start that the coordinator has the member do.
type forwardedCall struct {
	name   string
	at     *testenv.Dom0 // whose socket the caller uses
	method string
	began  int64
	id     string // trace id of the caller
	parent string // span id of the same
	native bool
}

// TestPoolTree starts VMs that are at home on the member in every way in which
// callers do: at the coordinator, which has the member do it, and at the member,
// which asks the coordinator first. The spans of both hosts' files make one tree
// for each call, with the parents that the ground truth has and nobody else's
// spans, although the clocks of the hosts are seconds apart.
func TestPoolTree(t *testing.T) {
	l := newPoolLab(t, testenv.Options{VMs: 46})
	ctx := context.Background()
	login := client.Unix(l.pool.Coordinator.XapiSocket(), client.Options{Shape: client.Node})
	session, err := login.Login(ctx)
	qt.Assert(t, qt.IsNil(err))
	l.observe()

	var calls []forwardedCall
	vm := 1 // every other one is at home on the member
	for _, native := range []config.Native{config.NativeOff, config.NativeOn} {
		qt.Assert(t, qt.IsNil(l.pool.Set(testenv.Knobs{Native: native, LogTrace: true})))
		for _, way := range []struct {
			at     *testenv.Dom0
			method string
			flags  []string
		}{
			{l.pool.Coordinator, "VM.start", []string{"", "00", "01"}},
			{l.pool.Coordinator, "Async.VM.start", []string{"", "00", "01"}},
			// A member passes on nothing that tells calls without a context apart.
			{l.pool.Member, "VM.start", []string{"01"}},
			{l.pool.Member, "Async.VM.start", []string{"00"}},
		} {
			for _, flags := range way.flags {
				c := forwardedCall{
					name: fmt.Sprintf("%s at the %s, flags %q, native %d", way.method, way.at.HostName(), flags, native),
					at:   way.at, method: way.method, began: ktime(t), native: native != config.NativeOff,
				}
				o := client.Options{Shape: client.Shape(vm / 2 % 2)}
				if flags != "" {
					c.id, c.parent = fmt.Sprintf("%032x", 0x9001000+vm), fmt.Sprintf("%016x", 0x9002000+vm)
					o.Traceparent = "00-" + c.id + "-" + c.parent + "-" + flags
				}
				got, err := client.Unix(way.at.XapiSocket(), o).Call(ctx, way.method, session, l.pool.VMs()[vm].Ref, false, false)
				qt.Assert(t, qt.IsNil(err), qt.Commentf("%s", c.name))
				if way.method == "Async.VM.start" {
					l.task(session, fmt.Sprint(got))
				}
				calls = append(calls, c)
				vm += 2
			}
		}
	}

	// Several at once.
	qt.Assert(t, qt.IsNil(l.pool.Set(testenv.Knobs{})))
	var group sync.WaitGroup
	var answers [6]any
	for i := range answers {
		c := forwardedCall{
			name: fmt.Sprintf("together %d", i), at: l.pool.Coordinator, method: []string{"VM.start", "Async.VM.start"}[i%2], began: ktime(t),
			id: fmt.Sprintf("%032x", 0x9001000+vm), parent: fmt.Sprintf("%016x", 0x9002000+vm),
		}
		calls = append(calls, c)
		ref := l.pool.VMs()[vm].Ref
		vm += 2
		group.Go(func() {
			o := client.Options{Traceparent: "00-" + c.id + "-" + c.parent + "-01"}
			var err error
			answers[i], err = client.Unix(c.at.XapiSocket(), o).Call(ctx, c.method, session, ref, false, false)
			qt.Check(t, qt.IsNil(err), qt.Commentf("%s", c.name))
		})
	}
	group.Wait()
	for _, answer := range answers {
		if task, ok := answer.(string); ok && task != "" {
			l.task(session, task)
		}
	}

	// One that the member refuses: both hosts' calls say so.
	qt.Assert(t, qt.IsNil(l.pool.Coordinator.Set(testenv.Knobs{})))
	qt.Assert(t, qt.IsNil(l.pool.Member.Set(testenv.Knobs{Fail: map[string]string{"VM.start": "HOST_DISABLED"}})))
	c := forwardedCall{name: "VM.start that fails", at: l.pool.Coordinator, method: "VM.start", began: ktime(t)}
	_, err = client.Unix(l.pool.Coordinator.XapiSocket(), client.Options{}).Call(ctx, "VM.start", session, l.pool.VMs()[vm].Ref, false, false)
	qt.Assert(t, qt.ErrorMatches(err, ".*HOST_DISABLED.*"))
	calls = append(calls, c)

	var spans []zipkin.Span
	for _, a := range l.agents {
		qt.Assert(t, qt.IsNil(a.Settled(ctx, 20*time.Second)))
		qt.Assert(t, qt.IsNil(zipkin.ReadPath(a.SpansDir(), func(s zipkin.Span) {
			spans = append(spans, s)
			for _, v := range s.Tags {
				qt.Check(t, qt.IsFalse(strings.Contains(v, session) || strings.Contains(v, l.pool.Secret())), qt.Commentf("a secret in %s", s.Name))
			}
		})))
	}
	traces := tree.Build(spans)
	log, err := l.pool.Truth()
	qt.Assert(t, qt.IsNil(err))
	for _, c := range calls {
		t.Run(c.name, func(t *testing.T) { compareForwarded(t, c, log, traces) })
	}
	for i, a := range l.agents {
		noLosses(t, l.pool.Hosts()[i].HostName(), a)
	}
}

// task waits until an XAPI task has succeeded.
func (l *poolLab) task(session, ref string) {
	l.t.Helper()
	c := client.Unix(l.pool.Coordinator.XapiSocket(), client.Options{Shape: client.Node, KeepAlive: true})
	defer c.Close()
	for range 1000 {
		state, err := c.Call(context.Background(), "task.get_status", session, ref)
		qt.Assert(l.t, qt.IsNil(err))
		if state != "pending" {
			qt.Assert(l.t, qt.Equals(state, any("success")))
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	l.t.Fatalf("task %s does not end", ref)
}

// compareForwarded compares the tree of one call with the ground truth.
func compareForwarded(t *testing.T, call forwardedCall, log *truth.Log, traces []*tree.Trace) {
	c := &comparison{t: t, truth: log, offset: wallOffset(t), ahead: map[string]time.Duration{"member": ahead}, slack: 50 * time.Millisecond}
	var entry *truth.Entry
	for _, e := range log.Find(truth.API, call.method) {
		if e.Host == call.at.HostName() && e.Start >= call.began && strings.Contains(e.Traceparent, call.id) {
			entry = &e
			break
		}
	}
	qt.Assert(t, qt.IsNotNil(entry))
	var root *tree.Node
	var of *tree.Trace
	for _, tr := range traces {
		for _, n := range tr.Roots {
			off := time.Duration(n.Timestamp)*time.Microsecond - time.Duration(entry.Start+c.offset) - c.ahead[entry.Host]
			if n.Name == call.method && n.Kind == "SERVER" && n.Tags["process.pid"] == fmt.Sprint(entry.TGID) && off.Abs() < 50*time.Millisecond && n.ParentID == call.parent {
				qt.Assert(t, qt.IsNil(root), qt.Commentf("two spans of %s at the same time", call.method))
				root, of = n, tr
			}
		}
	}
	qt.Assert(t, qt.IsNotNil(root))
	if call.id != "" {
		qt.Check(t, qt.Equals(root.TraceID, call.id))
	}
	c.subtree(*entry, root, "")
	c.report(*entry, of)
	qt.Check(t, qt.HasLen(of.Roots, 1))
	qt.Check(t, qt.Equals(of.Spans, c.spans+c.waits), qt.Commentf("spans of others are in the trace"))

	// One trace id on both hosts, but where the context did not go over the wire.
	hosts := map[string]bool{}
	of.All(func(n *tree.Node) {
		hosts[n.Tags["xs.host.name"]] = true
		if call.id == "" || call.native {
			qt.Check(t, qt.Equals(n.TraceID, root.TraceID), qt.Commentf("%s", n.Name))
		}
	})
	qt.Check(t, qt.DeepEquals(hosts, map[string]bool{"coordinator": true, "member": true}))

	// What one host was asked hangs under the call that the other made to it. The
	// clocks in the files differ.
	hops := map[string]int{}
	of.All(func(n *tree.Node) {
		for _, child := range n.Children {
			from, to := n.Tags["xs.host.name"], child.Tags["xs.host.name"]
			if from == to {
				continue
			}
			hops[from+" to "+to]++
			qt.Check(t, qt.Equals(child.ParentID, n.ID))
			qt.Check(t, qt.Equals(n.Kind, "CLIENT"))
			qt.Check(t, qt.Equals(child.Kind, "SERVER"))
			differ := time.Duration(child.Timestamp+child.Skew-n.Timestamp-n.Skew)*time.Microsecond - c.ahead[to] + c.ahead[from]
			qt.Check(t, qt.IsTrue(differ.Abs() < time.Second), qt.Commentf("%v", differ))
		}
	})
	want := map[string]int{"coordinator to member": 1}
	if entry.Err == "" {
		want["member to coordinator"]++ // where the VM runs now
	}
	if call.at.HostName() == "member" {
		want["member to coordinator"]++
	}
	qt.Check(t, qt.DeepEquals(hops, want))
}

// TestPoolObservers changes an Observer through the member: both hosts' agents
// follow, each for its own host, also when all sessions have been lost meanwhile.
func TestPoolObservers(t *testing.T) {
	l := newPoolLab(t, testenv.Options{})
	ctx := context.Background()
	o, err := client.Unix(l.pool.Member.XapiSocket(), client.Options{Shape: client.Node}).Observers(ctx)
	qt.Assert(t, qt.IsNil(err))
	// follow waits until exactly the agents of those hosts watch the toolstack.
	follow := func(what string, on map[*testenv.Dom0]bool) {
		t.Helper()
		began := time.Now()
		for i, h := range l.pool.Hosts() {
			err := l.agents[i].Wait(ctx, 10*time.Second, what, func(s *control.Status) bool {
				return on[h] == (len(s.Components) > 0 && len(s.Targets) > 0) && on[h] == (len(s.Probes) > 0)
			})
			qt.Assert(t, qt.IsNil(err), qt.Commentf("%s", h.HostName()))
		}
		t.Logf("%s: after %v", what, time.Since(began).Round(time.Millisecond))
	}
	both := map[*testenv.Dom0]bool{l.pool.Coordinator: true, l.pool.Member: true}
	follow("nobody observes", nil)
	ref, err := o.Create(ctx, client.Observer{Name: "both", Endpoints: []string{"bugtool"}, Enabled: true})
	qt.Assert(t, qt.IsNil(err))
	follow("both hosts are observed", both)
	qt.Assert(t, qt.IsNil(o.SetHosts(ctx, ref, l.pool.Member.HostRef())))
	follow("the member is observed", map[*testenv.Dom0]bool{l.pool.Member: true})
	qt.Assert(t, qt.IsNil(o.SetHosts(ctx, ref, l.pool.Coordinator.HostRef())))
	follow("the coordinator is observed", map[*testenv.Dom0]bool{l.pool.Coordinator: true})

	qt.Assert(t, qt.IsNil(l.pool.Coordinator.ExpireSessions()))
	_, err = o.All(ctx)
	qt.Assert(t, qt.ErrorMatches(err, ".*SESSION_INVALID.*"))
	if o, err = client.Unix(l.pool.Member.XapiSocket(), client.Options{Shape: client.Node}).Observers(ctx); err != nil {
		t.Fatal(err)
	}
	qt.Assert(t, qt.IsNil(o.SetHosts(ctx, ref)))
	follow("both hosts are observed again", both)
	qt.Assert(t, qt.IsNil(o.SetEnabled(ctx, ref, false)))
	follow("nobody observes any more", nil)
	for i, h := range l.pool.Hosts() {
		s, err := l.agents[i].Status(ctx)
		qt.Assert(t, qt.IsNil(err))
		qt.Assert(t, qt.HasLen(s.Observers, 1), qt.Commentf("%s", h.HostName()))
		qt.Check(t, qt.Equals(s.Observers[0].NameLabel, "both"))
	}
}

// noLosses asserts that an agent has lost no event.
func noLosses(t testing.TB, name string, a *daemon.Daemon) {
	t.Helper()
	s, err := a.Status(context.Background())
	qt.Assert(t, qt.IsNil(err))
	var lost []string
	for _, loss := range s.Losses {
		if loss.OfEvent() && loss.Count > 0 {
			lost = append(lost, fmt.Sprintf("%s: %s: %d", loss.Probe, loss.Cause, loss.Count))
		}
	}
	qt.Check(t, qt.Equals(strings.Join(lost, "; "), ""), qt.Commentf("%s", name))
	qt.Check(t, qt.Equals(s.Missing, 0), qt.Commentf("%s", name))
	qt.Check(t, qt.Equals(s.Handover.Dropped, 0), qt.Commentf("%s", name))
	qt.Check(t, qt.Equals(s.Engine.EventsLost, 0), qt.Commentf("%s", name))
}
