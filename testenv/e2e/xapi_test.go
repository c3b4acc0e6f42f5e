package e2e

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/go-quicktest/qt"

	"github.com/xenserver/dtagent/cmd/dtagent/control"
	"github.com/xenserver/dtagent/observer/xapi"
	"github.com/xenserver/dtagent/testenv"
	"github.com/xenserver/dtagent/testenv/client"
	"github.com/xenserver/dtagent/testenv/config"
)

// newXapiLab is a lab whose agent follows the Observers of the pool, and is told
// nothing else about the host but its uuid.
func newXapiLab(t testing.TB, o testenv.Options, args ...string) *lab {
	t.Helper()
	o.NativeByObserver, o.EndpointHTTP = true, true
	l := prepare(t, o)
	l.args = append([]string{"--host-uuid", l.dom0.HostUUID()}, args...)
	l.xapi = l.dom0.XapiSocket()
	l.start()
	return l
}

// admin is a session in which Observers are changed.
func (l *lab) admin() *client.Observers {
	l.t.Helper()
	a, err := l.dial("unix", client.Options{Shape: client.Node, KeepAlive: true}).Observers(context.Background())
	qt.Assert(l.t, qt.IsNil(err))
	return a
}

// connected waits until the agent follows XAPI.
func (l *lab) connected() {
	l.t.Helper()
	l.waitLong("follows XAPI", func(s *control.Status) bool { return s.XAPI != nil && s.XAPI.State == xapi.Connected })
}

// watching waits until the probes watch xapi.
func (l *lab) watching() {
	l.t.Helper()
	l.waitLong("watches xapi", func(s *control.Status) bool {
		return len(s.Probes) > 0 && slices.ContainsFunc(s.Targets, func(t control.Target) bool {
			return t.Component == "xapi" && int(t.TGID) == l.dom0.PID("xapi")
		})
	})
}

// TestXapiObservers follows one Observer of the pool through its life: every
// change is in force soon, the spans carry what the database says, and the agent's
// own calls are not among them.
func TestXapiObservers(t *testing.T) {
	l := newXapiLab(t, testenv.Options{})
	ctx := context.Background()
	a := l.admin()
	l.connected()
	ref, err := a.Create(ctx, client.Observer{Name: "pool's", Attributes: map[string]string{"ticket": "4711"}, Endpoints: []string{"bugtool"}, Enabled: true})
	qt.Assert(t, qt.IsNil(err))
	l.watching()
	session := l.session()
	const caller = "00-3100a3ead5c4210a99c27e3e5578158c-34991b6261208b64-00"
	_, err = l.dial("unix", client.Options{Traceparent: caller}).Call(ctx, "VM.start", session, l.dom0.VMs()[0].Ref, false, false)
	qt.Assert(t, qt.IsNil(err))

	qt.Assert(t, qt.IsNil(a.SetName(ctx, ref, "renamed")))
	l.wait("knows the new name", func(s *control.Status) bool { return len(s.Observers) == 1 && s.Observers[0].NameLabel == "renamed" })
	_, err = l.dial("unix", client.Options{}).Call(ctx, "VM.get_all", session)
	qt.Assert(t, qt.IsNil(err))
	l.traces()
	records, err := a.All(ctx)
	qt.Assert(t, qt.IsNil(err))
	names := map[string]int{}
	for _, s := range l.spans() {
		names[s.Tags["xs.observer.name"]]++
		qt.Check(t, qt.Equals(s.Tags["xs.observer.uuid"], records[ref].UUID))
		qt.Check(t, qt.Equals(s.Tags["xs.pool.uuid"], l.dom0.PoolUUID()))
		qt.Check(t, qt.Equals(s.Tags["xs.host.uuid"], l.dom0.HostUUID()))
		qt.Check(t, qt.Equals(s.Tags["xs.host.name"], l.dom0.HostName()))
		qt.Check(t, qt.Equals(s.Tags["ticket"], "4711"))
		qt.Check(t, qt.IsFalse(strings.HasPrefix(s.Tags["user_agent.original"], "dtagent/")), qt.Commentf("%s", s.Name))
		qt.Check(t, qt.Not(qt.Equals(s.Name, "event.from")))
	}
	qt.Check(t, qt.IsTrue(names["pool's"] > 20 && names["renamed"] >= 1), qt.Commentf("%v", names))

	// set_hosts, which the toolstack's own tracing does not follow.
	qt.Assert(t, qt.IsNil(a.SetHosts(ctx, ref, l.dom0.HostRef())))
	l.wait("is still meant", func(s *control.Status) bool { return s.Observers[0].Here && len(s.Probes) > 0 })
	qt.Assert(t, qt.IsNil(a.SetComponents(ctx, ref, "xenopsd")))
	l.wait("watches xenopsd alone", func(s *control.Status) bool { return slices.Equal(s.Components, []string{"xenopsd"}) })
	qt.Assert(t, qt.IsNil(a.SetComponents(ctx, ref)))
	qt.Assert(t, qt.IsNil(a.SetEnabled(ctx, ref, false)))
	l.wait("has detached", func(s *control.Status) bool { return len(s.Probes) == 0 && !s.Observers[0].Enabled })
	qt.Assert(t, qt.IsNil(a.SetEnabled(ctx, ref, true)))
	l.watching()
	qt.Assert(t, qt.IsNil(a.Destroy(ctx, ref)))
	l.wait("has detached", func(s *control.Status) bool { return len(s.Probes) == 0 && len(s.Observers) == 0 })
	c := l.exact()
	qt.Check(t, qt.Equals(c.Lost(), 0))
	qt.Check(t, qt.IsTrue(l.status().Engine.OwnCalls > 0))
	qt.Check(t, qt.Equals(l.status().XAPI.Reconnects, 0))
}

// TestXapiIsLost: through every way in which XAPI can be away or answer nonsense
// the Observers stay in force, and soon after it is well the agent follows again.
func TestXapiIsLost(t *testing.T) {
	l := newXapiLab(t, testenv.Options{})
	ctx := context.Background()
	l.connected()
	a := l.admin()
	ref, err := a.Create(ctx, client.Observer{Name: "stays", Endpoints: []string{"bugtool"}, Enabled: true})
	qt.Assert(t, qt.IsNil(err))
	l.watching()
	session := func() *client.Observers {
		qt.Assert(t, qt.IsNil(l.dom0.Set(testenv.Knobs{})))
		return l.admin()
	}
	round := 0
	for _, fault := range []struct {
		name string
		make func() error
	}{
		{"toolstack restart", func() error { return l.dom0.Restart(config.Toolstack, testenv.Outage{}) }},
		{"xapi killed, its socket left", func() error {
			return l.dom0.Restart(config.Xapi, testenv.Outage{Signal: 9, Gone: -1, Refused: time.Second})
		}},
		{"sessions expired", l.dom0.ExpireSessions},
		{"event tokens lost", l.dom0.ForgetEvents},
		{"garbage", func() error {
			return errors.Join(l.dom0.Set(testenv.Knobs{Reply: map[string]config.Reply{"*": config.ReplyGarbage}}), l.dom0.ExpireSessions())
		}},
		{"half replies", func() error {
			return errors.Join(l.dom0.Set(testenv.Knobs{Reply: map[string]config.Reply{"*": config.ReplyHalf}}), l.dom0.ExpireSessions())
		}},
		{"HTTP 500", func() error {
			return errors.Join(l.dom0.Set(testenv.Knobs{Reply: map[string]config.Reply{"*": config.ReplyError}}), l.dom0.ExpireSessions())
		}},
		{"emergency mode", func() error {
			return errors.Join(l.dom0.Set(testenv.Knobs{Emergency: config.Emergency}), l.dom0.ExpireSessions())
		}},
		{"slow replies", func() error {
			return errors.Join(l.dom0.Set(testenv.Knobs{Slow: map[string]time.Duration{"Observer.get_all_records": 3 * time.Second}}), l.dom0.ExpireSessions())
		}},
	} {
		t.Run(fault.name, func(t *testing.T) {
			l := l.in(t)
			qt.Assert(t, qt.IsNil(fault.make()))
			time.Sleep(time.Second)
			s := l.status()
			qt.Assert(t, qt.HasLen(s.Observers, 1))
			qt.Check(t, qt.IsTrue(s.Observers[0].Enabled && s.Observers[0].Here))
			qt.Check(t, qt.Not(qt.HasLen(s.Probes, 0)))

			a := session()
			round++
			name := fmt.Sprintf("round %d", round)
			qt.Assert(t, qt.IsNil(a.SetName(ctx, ref, name)))
			began := time.Now()
			l.waitLong("follows the Observer again", func(s *control.Status) bool {
				return s.XAPI.State == xapi.Connected && len(s.Observers) == 1 && s.Observers[0].NameLabel == name
			})
			t.Logf("the change was in force %v later; last error: %s", time.Since(began).Round(time.Millisecond), l.status().XAPI.LastError)
			l.watching()
			produced := l.exact().Produced
			_, err := l.dial("unix", client.Options{}).Call(ctx, "VM.get_all", a.Session())
			qt.Assert(t, qt.IsNil(err))
			l.wait("records it", func(s *control.Status) bool { return s.Totals.Produced > produced })
			qt.Check(t, qt.Equals(l.exact().Lost(), 0))
		})
	}
	qt.Check(t, qt.IsFalse(strings.Contains(l.agent.Log(), "OpaqueRef:")))
}

// TestStateFile: an agent that starts while XAPI is away goes on with the last
// known Observers; a state file that is damaged is set aside.
func TestStateFile(t *testing.T) {
	l := newXapiLab(t, testenv.Options{})
	ctx := context.Background()
	l.connected()
	a := l.admin()
	_, err := a.Create(ctx, client.Observer{Name: "kept", Endpoints: []string{"bugtool"}, Enabled: true})
	qt.Assert(t, qt.IsNil(err))
	l.watching()
	state := filepath.Join(l.agent.StateDir(), "observers.json")
	eventually(t, "the state file", func() bool {
		b, err := os.ReadFile(state)
		return err == nil && strings.Contains(string(b), `"kept"`)
	})
	qt.Assert(t, qt.IsNil(l.dom0.Set(testenv.Knobs{Emergency: config.Emergency})))
	qt.Assert(t, qt.IsNil(l.dom0.ExpireSessions()))
	qt.Assert(t, qt.IsNil(l.agent.Stop()))

	l.start()
	l.wait("goes on with what it knew", func(s *control.Status) bool {
		return s.XAPI.FromStateFile && len(s.Observers) == 1 && s.Observers[0].NameLabel == "kept" && len(s.Probes) > 0
	})
	qt.Check(t, qt.Equals(l.status().Observers[0].Source, "xapi"))
	info, err := os.Stat(state)
	qt.Assert(t, qt.IsNil(err))
	qt.Check(t, qt.Equals(info.Mode().Perm(), 0o600))
	qt.Assert(t, qt.IsNil(l.agent.Stop()))

	for _, damage := range []string{"", "{\"version\":", "\x00\x01\x02", "[]", strings.Repeat("[", 1<<20)} {
		qt.Assert(t, qt.IsNil(os.WriteFile(state, []byte(damage), 0o600)))
		l.start()
		l.wait("says that XAPI is not there", func(s *control.Status) bool { return s.XAPI.LastError != "" })
		s := l.status()
		qt.Check(t, qt.HasLen(s.Observers, 0))
		qt.Check(t, qt.HasLen(s.Probes, 0))
		aside, err := filepath.Glob(state + ".corrupt*")
		qt.Assert(t, qt.IsNil(err))
		qt.Check(t, qt.HasLen(aside, 1), qt.Commentf("%.20q", damage))
		qt.Assert(t, qt.IsNil(l.agent.Stop()))
	}
	l.start()
	qt.Assert(t, qt.IsNil(l.dom0.Set(testenv.Knobs{})))
	l.connected()
	l.wait("has the Observer again", func(s *control.Status) bool { return len(s.Observers) == 1 && s.Observers[0].NameLabel == "kept" })
}
