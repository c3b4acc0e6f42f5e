//go:build linux

package testenv_test

import (
	"context"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"net/http"
	"reflect"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/go-quicktest/qt"

	"github.com/xenserver/dtagent/observer"
	"github.com/xenserver/dtagent/observer/xapi"
	"github.com/xenserver/dtagent/testenv"
	"github.com/xenserver/dtagent/testenv/client"
	"github.com/xenserver/dtagent/testenv/config"
)

// follower is the agent's own source of Observers, following a dom0's.
type follower struct {
	t   *testing.T
	src *xapi.Source

	mu   sync.Mutex
	last xapi.State
}

func follow(t *testing.T, socket, hostUUID string) *follower {
	t.Helper()
	f := &follower{t: t, src: xapi.New(xapi.Options{
		Socket: socket, HostUUID: hostUUID, EventTimeout: time.Second, CallTimeout: time.Second, ApplyEvery: 20 * time.Millisecond,
		BackoffMin: 20 * time.Millisecond, BackoffMax: 200 * time.Millisecond, Version: "test",
	})}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() {
		done <- f.src.Run(ctx, func(s xapi.State) {
			f.mu.Lock()
			defer f.mu.Unlock()
			f.last = s
		})
	}()
	t.Cleanup(func() {
		cancel()
		qt.Check(t, qt.IsNil(<-done))
	})
	return f
}

// wanted are the Observers that there are, as the agent is to know them.
func wanted(t *testing.T, all map[string]client.Observer, hosts map[string]string) []observer.Observer {
	t.Helper()
	out := []observer.Observer{}
	for _, o := range all {
		uuids := []string{}
		for _, h := range o.Hosts {
			uuids = append(uuids, hosts[h])
		}
		out = append(out, observer.Observer{
			UUID: o.UUID, NameLabel: o.Name, NameDescription: o.Description, Hosts: uuids, Attributes: o.Attributes, Endpoints: o.Endpoints, Components: o.Components, Enabled: o.Enabled,
		})
	}
	slices.SortFunc(out, func(a, b observer.Observer) int { return strings.Compare(a.UUID, b.UUID) })
	return out
}

// sees waits until the agent's Observers are those that there are.
func (f *follower) sees(what string, all map[string]client.Observer, hosts map[string]string) {
	f.t.Helper()
	want := wanted(f.t, all, hosts)
	begin := time.Now()
	for {
		f.mu.Lock()
		got := f.last
		f.mu.Unlock()
		if reflect.DeepEqual(got.Observers, want) && f.src.Status().State == xapi.Connected {
			f.t.Logf("%s: seen after %v", what, time.Since(begin).Round(time.Millisecond))
			return
		}
		if time.Since(begin) > 15*time.Second {
			qt.Check(f.t, qt.DeepEquals(got.Observers, want), qt.Commentf("%s", what))
			f.t.Fatalf("%s: not seen; status %+v", what, f.src.Status())
		}
		time.Sleep(5 * time.Millisecond)
	}
}

// TestSource lets the agent's source of Observers follow the simulated xapi through
// all its faults.
func TestSource(t *testing.T) {
	d := start(t, testenv.Options{EndpointHTTP: true})
	ctx := timeout(t, 120*time.Second)
	hosts := map[string]string{d.HostRef(): d.HostUUID()}
	c := client.Unix(d.XapiSocket(), client.Options{KeepAlive: true})
	var s *client.Observers
	login := func() {
		t.Helper()
		var err error
		s, err = c.Observers(ctx)
		qt.Assert(t, qt.IsNil(err))
	}
	all := func() map[string]client.Observer {
		t.Helper()
		all, err := s.All(ctx)
		qt.Assert(t, qt.IsNil(err))
		return all
	}
	login()
	f := follow(t, d.XapiSocket(), d.HostUUID())
	f.sees("nothing", all(), hosts)
	f.mu.Lock()
	qt.Check(t, qt.DeepEquals(f.last.Host, observer.Host{UUID: d.HostUUID(), Name: d.HostName(), PoolUUID: d.PoolUUID()}))
	f.mu.Unlock()

	ref, err := s.Create(ctx, client.Observer{
		Name: "ünï <&>", Description: "d", Hosts: []string{d.HostRef()}, Attributes: map[string]string{"dtagent.components": "qemu", "x.y": `"\`},
		Endpoints: []string{"bugtool", "http://10.0.0.9:9411/api/v2/spans"}, Components: []string{"xapi", "xenopsd"}, Enabled: true,
	})
	qt.Assert(t, qt.IsNil(err))
	f.sees("add", all(), hosts)
	qt.Assert(t, qt.IsNil(s.SetAttributes(ctx, ref, map[string]string{"a.b": "c"})))
	f.sees("mod", all(), hosts)
	qt.Assert(t, qt.IsNil(s.Destroy(ctx, ref)))
	f.sees("del", all(), hosts)

	// change is something that cannot be missed.
	change := func() {
		t.Helper()
		var err error
		qt.Assert(t, qt.IsNil(err))
		for ref := range all() {
			if rand.N(3) == 0 {
				qt.Assert(t, qt.IsNil(s.Destroy(ctx, ref)))
			}
		}
		_, err = s.Create(ctx, client.Observer{Name: fmt.Sprint(rand.Uint64()), Enabled: true})
		qt.Assert(t, qt.IsNil(err))
		_, err = s.Create(ctx, client.Observer{Name: fmt.Sprint(rand.Uint64()), Components: []string{"smapi"}})
		qt.Assert(t, qt.IsNil(err))
	}
	change()
	f.sees("some", all(), hosts)

	fault := func(what string, k testenv.Knobs, d2 time.Duration) {
		t.Helper()
		before := f.state()
		qt.Assert(t, qt.IsNil(d.Set(k)))
		time.Sleep(d2)
		qt.Check(t, qt.DeepEquals(f.state(), before), qt.Commentf("%s: what was in force has not stayed so", what))
		qt.Assert(t, qt.IsNil(d.Set(testenv.Knobs{})))
		change()
		f.sees(what, all(), hosts)
	}
	const long = 900 * time.Millisecond
	fault("emergency mode", testenv.Knobs{Emergency: config.Emergency}, long)
	for _, r := range []config.Reply{config.ReplyGarbage, config.ReplyHalf, config.ReplyError, config.ReplyNothing} {
		for _, method := range []string{"event.from", "Observer.get_all_records", "*"} {
			fault("reply "+string(r)+" to "+method, testenv.Knobs{Reply: map[string]config.Reply{method: r}}, long)
		}
	}
	fault("late replies", testenv.Knobs{Slow: map[string]time.Duration{"*": 1200 * time.Millisecond}}, 2*long)
	fault("bad tokens", testenv.Knobs{Fail: map[string]string{"event.from": "EVENT_FROM_TOKEN_PARSE_FAILURE"}}, long)
	fault("no login", testenv.Knobs{Fail: map[string]string{"session.login_with_password": "SESSION_AUTHENTICATION_FAILED"}}, long)

	qt.Assert(t, qt.IsNil(d.ExpireSessions()))
	login()
	change()
	f.sees("sessions expired", all(), hosts)
	qt.Assert(t, qt.IsNil(d.ForgetEvents()))
	change()
	f.sees("events forgotten", all(), hosts)
	for _, one := range []struct {
		what string
		p    testenv.Program
		o    testenv.Outage
	}{
		{"xapi restarted", config.Xapi, testenv.Outage{}},
		{"xapi killed", config.Xapi, testenv.Outage{Signal: syscall.SIGKILL, Gone: -1, Refused: 500 * time.Millisecond}},
		{"xapi gone for long", config.Xapi, testenv.Outage{Gone: 3 * time.Second}},
		{"toolstack restarted", config.Toolstack, testenv.Outage{}},
	} {
		before := f.state()
		qt.Assert(t, qt.IsNil(d.Restart(one.p, one.o)))
		qt.Check(t, qt.DeepEquals(f.state(), before), qt.Commentf("%s", one.what))
		login()
		change()
		f.sees(one.what, all(), hosts)
	}

	// 200 changes a second.
	begin := time.Now()
	refs := slices.Collect(maps.Keys(all()))
	for i := range 600 {
		time.Sleep(time.Until(begin.Add(time.Duration(i) * time.Second / 200)))
		switch i % 4 {
		case 0:
			ref, err := s.Create(ctx, client.Observer{Name: fmt.Sprint(i)})
			qt.Assert(t, qt.IsNil(err))
			refs = append(refs, ref)
		case 1:
			n := rand.N(len(refs))
			qt.Assert(t, qt.IsNil(s.Destroy(ctx, refs[n])))
			refs = slices.Delete(refs, n, n+1)
		default:
			qt.Assert(t, qt.IsNil(s.SetEnabled(ctx, refs[rand.N(len(refs))], i%8 < 4)))
		}
	}
	t.Logf("600 changes in %v", time.Since(begin))
	f.sees("600 changes", all(), hosts)
	st := f.src.Status()
	t.Logf("%d events, %d full reads, %d reconnects, %d applied", st.Events, st.Resyncs, st.Reconnects, st.Applied)
}

func (f *follower) state() xapi.State {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.last
}

// TestSourceOnMember follows the Observers of a pool on both hosts.
func TestSourceOnMember(t *testing.T) {
	p := startPool(t, testenv.PoolOptions{})
	ctx := timeout(t, 60*time.Second)
	hosts := map[string]string{}
	var followers []*follower
	for _, d := range p.Hosts() {
		hosts[d.HostRef()] = d.HostUUID()
		followers = append(followers, follow(t, d.XapiSocket(), d.HostUUID()))
	}
	change := func(name string, d *testenv.Dom0) {
		t.Helper()
		c := client.Unix(d.XapiSocket(), client.Options{KeepAlive: true})
		s, err := c.Observers(ctx)
		qt.Assert(t, qt.IsNil(err))
		seen := func(what string) {
			t.Helper()
			all, err := s.All(ctx)
			qt.Assert(t, qt.IsNil(err))
			for i, f := range followers {
				f.sees(fmt.Sprintf("%s by %s, on host %d", what, name, i), all, hosts)
			}
		}
		ref, err := s.Create(ctx, client.Observer{Name: name, Hosts: []string{p.Member.HostRef()}, Enabled: true})
		qt.Assert(t, qt.IsNil(err))
		seen("create")
		qt.Assert(t, qt.IsNil(s.SetHosts(ctx, ref, p.Coordinator.HostRef(), p.Member.HostRef())))
		seen("set_hosts")
		qt.Check(t, qt.Equals(failure(t, s.SetComponents(ctx, ref, "qemu")).Code, "INVALID_VALUE"))
		qt.Assert(t, qt.IsNil(s.Destroy(ctx, ref)))
		seen("destroy")
		qt.Assert(t, qt.IsNil(s.Close(ctx)))
	}
	change("coordinator", p.Coordinator)
	change("member", p.Member)
	for i, d := range p.Hosts() {
		qt.Assert(t, qt.IsNil(d.Restart(config.Xapi, testenv.Outage{})))
		change("coordinator", p.Coordinator)
		change(fmt.Sprintf("member, after a restart of host %d,", i), p.Member)
	}
	// Only its own host may log in at a member.
	h := http.Client{Transport: &http.Transport{DialContext: p.Member.Dial}}
	defer h.CloseIdleConnections()
	resp, err := h.Post("http://"+p.Member.Addr().String()+"/jsonrpc", "application/json", strings.NewReader(`{"jsonrpc":"2.0","id":1,"method":"session.login_with_password","params":["root","","1.0","x"]}`))
	qt.Assert(t, qt.IsNil(err))
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	qt.Assert(t, qt.IsNil(err))
	qt.Check(t, qt.Matches(string(body), `{"jsonrpc":"2.0","error":{"code":1,"message":"HOST_IS_SLAVE","data":\["10[0-9.]*"\]},"id":1}`))
	for i, f := range followers {
		d := p.Hosts()[i]
		qt.Check(t, qt.DeepEquals(f.state().Host, observer.Host{UUID: d.HostUUID(), Name: d.HostName(), PoolUUID: p.Coordinator.PoolUUID()}))
	}
}
