//go:build linux

package testenv_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/go-quicktest/qt"

	"github.com/xenserver/dtagent/testenv"
	"github.com/xenserver/dtagent/testenv/client"
	"github.com/xenserver/dtagent/testenv/config"
)

// comm is the name of a process.
func comm(t *testing.T, pid int) string {
	t.Helper()
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/comm", pid))
	qt.Assert(t, qt.IsNil(err))
	return string(bytes.TrimSpace(b))
}

// shown are the pids in a directory like /proc.
func shown(t *testing.T, dir string) map[int]bool {
	t.Helper()
	all, err := os.ReadDir(dir)
	qt.Assert(t, qt.IsNil(err))
	out := map[int]bool{}
	for _, e := range all {
		if pid, err := strconv.Atoi(e.Name()); err == nil {
			out[pid] = true
			_, err := os.Stat(filepath.Join(dir, e.Name(), "stat"))
			qt.Check(t, qt.IsNil(err), qt.Commentf("%s is not there", e.Name()))
		}
	}
	return out
}

// dialled connects to path until stop is closed, and tells in which order it went
// through the ways in which that ends.
func dialled(path string, stop <-chan struct{}) <-chan []string {
	out := make(chan []string, 1)
	go func() {
		var seen []string
		for {
			state := "connected"
			c, err := net.Dial("unix", path)
			switch {
			case err == nil:
				c.Close()
			case errors.Is(err, syscall.ENOENT):
				state = "ENOENT"
			case errors.Is(err, syscall.ECONNREFUSED):
				state = "ECONNREFUSED"
			default:
				state = err.Error()
			}
			if len(seen) == 0 || seen[len(seen)-1] != state {
				seen = append(seen, state)
			}
			select {
			case <-stop:
				out <- seen
				return
			case <-time.After(2 * time.Millisecond):
			}
		}
	}()
	return out
}

func TestRestart(t *testing.T) {
	d := start(t, testenv.Options{EndpointHTTP: true})
	ctx := timeout(t, 60*time.Second)
	c := client.Unix(d.XapiSocket(), client.Options{Shape: client.Node, KeepAlive: true})
	s, err := c.Observers(ctx)
	qt.Assert(t, qt.IsNil(err))
	want := client.Observer{Name: "kept", Hosts: []string{d.HostRef()}, Attributes: map[string]string{"a.b": "c"}, Endpoints: []string{"bugtool", "http://h:1/"}, Components: []string{"xapi"}, Enabled: true}
	ref, err := s.Create(ctx, want)
	qt.Assert(t, qt.IsNil(err))
	gone, err := s.Create(ctx, client.Observer{Name: "gone"})
	qt.Assert(t, qt.IsNil(err))
	qt.Assert(t, qt.IsNil(s.Destroy(ctx, gone)))
	events, err := c.Events(ctx, s.Session(), "", time.Second, "observer")
	qt.Assert(t, qt.IsNil(err))
	qt.Assert(t, qt.HasLen(events.Events, 1))

	for name, one := range map[string]struct {
		o    testenv.Outage
		want []string
	}{
		"clean":                    {testenv.Outage{}, []string{"connected", "ENOENT", "ECONNREFUSED", "connected"}},
		"killed, socket left over": {testenv.Outage{Signal: syscall.SIGKILL, Gone: -1, Refused: -1}, []string{"connected", "ECONNREFUSED", "connected"}},
	} {
		t.Run(name, func(t *testing.T) {
			old := d.Processes()
			waiter := client.Unix(d.XapiSocket(), client.Options{Shape: client.Node})
			session, err := waiter.Login(ctx)
			qt.Assert(t, qt.IsNil(err))
			waiting := make(chan error, 1)
			go func() {
				_, err := waiter.Events(ctx, session, events.Token, 30*time.Second, "observer")
				waiting <- err
			}()
			stop := make(chan struct{})
			seen := dialled(d.XapiSocket(), stop)
			time.Sleep(200 * time.Millisecond)
			qt.Assert(t, qt.IsNil(d.Restart(config.Xapi, one.o)))
			time.Sleep(20 * time.Millisecond)
			close(stop)
			states := <-seen
			if name == "clean" {
				qt.Check(t, qt.DeepEquals(states, one.want))
			} else { // the new process takes the socket away for a moment
				qt.Check(t, qt.DeepEquals(without(states, "ENOENT"), one.want))
			}
			qt.Check(t, qt.ErrorIs(<-waiting, io.EOF))

			now := d.Processes()
			qt.Check(t, qt.HasLen(now, len(old)))
			pids := shown(t, d.ProcDir())
			qt.Check(t, qt.HasLen(pids, len(now)))
			for name, pid := range now {
				qt.Check(t, qt.Equals(pid != old[name], name == "xapi"), qt.Commentf("%s", name))
				qt.Check(t, qt.IsTrue(pids[pid]), qt.Commentf("%s is not shown", name))
			}
			qt.Check(t, qt.Equals(comm(t, d.PID("xapi")), "xapi"))

			_, err = s.All(ctx)
			qt.Check(t, qt.Equals(failure(t, err).Code, "SESSION_INVALID"))
			if s, err = c.Observers(ctx); err != nil {
				t.Fatal(err)
			}
			all, err := s.All(ctx)
			qt.Assert(t, qt.IsNil(err))
			want.UUID = all[ref].UUID
			qt.Check(t, qt.DeepEquals(all, map[string]client.Observer{ref: want}))
			// A token of before is still understood; what has happened since comes.
			qt.Assert(t, qt.IsNil(s.SetName(ctx, ref, name)))
			want.Name = name
			since, err := c.Events(ctx, s.Session(), events.Token, 10*time.Second, "observer")
			qt.Assert(t, qt.IsNil(err))
			qt.Assert(t, qt.HasLen(since.Events, 1))
			qt.Check(t, qt.Equals(since.Events[0].Ref, ref))
			qt.Check(t, qt.Equals(since.Events[0].Operation, "mod"))
			qt.Check(t, qt.Equals(since.Events[0].Snapshot["name_label"], any(name)))
			events = since

			// The work goes on.
			vm := d.VMs()[0].Ref
			for _, call := range [][]any{{"VM.start", s.Session(), vm, false, false}, {"VM.hard_shutdown", s.Session(), vm}} {
				_, err := c.Call(ctx, call[0].(string), call[1:]...)
				qt.Assert(t, qt.IsNil(err))
			}
		})
	}
	qt.Check(t, qt.ErrorMatches(d.Restart("nothing", testenv.Outage{}), `.*"nothing" cannot be restarted`))
}

func without(all []string, one string) []string {
	var out []string
	for _, s := range all {
		if s != one {
			out = append(out, s)
		}
	}
	var merged []string
	for _, s := range out {
		if len(merged) == 0 || merged[len(merged)-1] != s {
			merged = append(merged, s)
		}
	}
	return merged
}

func TestRestartToolstack(t *testing.T) {
	d := start(t, testenv.Options{})
	ctx := timeout(t, 60*time.Second)
	vm := d.VMs()[0].Ref
	for range 2 {
		old := d.Processes()
		qt.Assert(t, qt.IsNil(d.Restart(config.Toolstack, testenv.Outage{})))
		for name, pid := range d.Processes() {
			changed := name == "xapi" || name == "xenopsd-xc" || name == "message-switch"
			qt.Check(t, qt.Equals(pid != old[name], changed), qt.Commentf("%s", name))
			if changed {
				qt.Check(t, qt.Equals(comm(t, pid), name))
			}
		}
		c := client.TCP(d.Addr().String(), client.Options{})
		session, err := c.Login(ctx)
		qt.Assert(t, qt.IsNil(err))
		for _, call := range [][]any{{"VM.start", session, vm, false, false}, {"VM.hard_shutdown", session, vm}} {
			_, err := c.Call(ctx, call[0].(string), call[1:]...)
			qt.Assert(t, qt.IsNil(err))
		}
	}
}

func TestExpiredSessions(t *testing.T) {
	d := start(t, testenv.Options{})
	ctx := timeout(t, time.Minute)
	c := client.Unix(d.XapiSocket(), client.Options{Shape: client.JSON1, KeepAlive: true})
	s, err := c.Observers(ctx)
	qt.Assert(t, qt.IsNil(err))
	waiting := make(chan error, 1)
	go func() {
		_, err := c.With(client.Options{}).Events(ctx, s.Session(), "", 40*time.Second, "observer")
		waiting <- err
	}()
	time.Sleep(200 * time.Millisecond)
	begin := time.Now()
	qt.Assert(t, qt.IsNil(d.ExpireSessions()))
	qt.Check(t, qt.DeepEquals(failure(t, <-waiting), client.Failure{Code: "SESSION_INVALID", Params: []string{s.Session()}}))
	qt.Check(t, qt.IsTrue(time.Since(begin) < 20*time.Second)) // by itself after 40
	_, err = s.All(ctx)
	qt.Check(t, qt.Equals(failure(t, err).Code, "SESSION_INVALID"))
	_, err = c.Observers(ctx)
	qt.Assert(t, qt.IsNil(err))
}

func TestForgottenEvents(t *testing.T) {
	d := start(t, testenv.Options{})
	ctx := timeout(t, 30*time.Second)
	c := client.Unix(d.XapiSocket(), client.Options{KeepAlive: true})
	s, err := c.Observers(ctx)
	qt.Assert(t, qt.IsNil(err))
	ref, err := s.Create(ctx, client.Observer{Name: "n"})
	qt.Assert(t, qt.IsNil(err))
	for range 50 { // so that the token is far in the future then
		qt.Assert(t, qt.IsNil(s.SetName(ctx, ref, "m")))
	}
	old, err := c.Events(ctx, s.Session(), "", time.Second, "observer")
	qt.Assert(t, qt.IsNil(err))
	qt.Assert(t, qt.IsNil(d.ForgetEvents()))
	qt.Assert(t, qt.IsNil(s.SetEnabled(ctx, ref, true)))
	e, err := c.Events(ctx, s.Session(), old.Token, 300*time.Millisecond, "observer")
	qt.Assert(t, qt.IsNil(err))
	qt.Check(t, qt.HasLen(e.Events, 0)) // nobody is told that events are missing
	qt.Check(t, qt.Equals(e.Token, old.Token))
	qt.Check(t, qt.Equals(e.Counts["observer"], 1))
	e, err = c.Events(ctx, s.Session(), "", time.Second, "observer")
	qt.Assert(t, qt.IsNil(err))
	qt.Assert(t, qt.HasLen(e.Events, 1))
	qt.Check(t, qt.Equals(e.Events[0].Snapshot["enabled"], any(true)))
	qt.Check(t, qt.IsTrue(e.Token < old.Token))
}

// TestForgottenDeletions has more objects go than xapi remembers.
func TestForgottenDeletions(t *testing.T) {
	d := start(t, testenv.Options{})
	ctx := timeout(t, 60*time.Second)
	c := client.Unix(d.XapiSocket(), client.Options{Shape: client.Node, KeepAlive: true})
	s, err := c.Observers(ctx)
	qt.Assert(t, qt.IsNil(err))
	var refs []string
	for range 600 {
		ref, err := s.Create(ctx, client.Observer{})
		qt.Assert(t, qt.IsNil(err))
		refs = append(refs, ref)
	}
	e, err := c.Events(ctx, s.Session(), "", time.Second, "observer")
	qt.Assert(t, qt.IsNil(err))
	qt.Assert(t, qt.HasLen(e.Events, 600))
	for _, ref := range refs {
		qt.Assert(t, qt.IsNil(s.Destroy(ctx, ref)))
	}
	e, err = c.Events(ctx, s.Session(), e.Token, time.Second, "observer")
	qt.Assert(t, qt.IsNil(err))
	n := len(e.Events)
	qt.Check(t, qt.IsTrue(n >= 256 && n < 512), qt.Commentf("%d deletions are remembered", n))
	qt.Check(t, qt.Equals(e.Counts["observer"], 0))
}

func TestEmergency(t *testing.T) {
	d := start(t, testenv.Options{})
	ctx := timeout(t, 30*time.Second)
	qt.Assert(t, qt.IsNil(d.Set(testenv.Knobs{Emergency: config.Emergency})))
	// The error is raised where xapi does not know the call's id and version yet.
	for _, body := range []string{
		`{"jsonrpc":"2.0","id":5,"method":"session.login_with_password","params":["root","","1.0","x"]}`,
		`{"id":5,"method":"Observer.get_all","params":["OpaqueRef:x"]}`,
	} {
		qt.Check(t, qt.Equals(post(t, ctx, d, "/jsonrpc", body), `{"jsonrpc":"2.0","error":["HOST_STILL_BOOTING"],"id":0}`))
	}
	_, err := client.Unix(d.XapiSocket(), client.Options{}).Login(ctx)
	qt.Check(t, qt.DeepEquals(failure(t, err), client.Failure{Code: "HOST_STILL_BOOTING"}))
	qt.Assert(t, qt.IsNil(d.Set(testenv.Knobs{Emergency: "HOST_UNKNOWN_TO_MASTER"})))
	_, err = client.Unix(d.XapiSocket(), client.Options{}).Login(ctx)
	qt.Check(t, qt.DeepEquals(failure(t, err), client.Failure{Code: "HOST_UNKNOWN_TO_MASTER", Params: []string{d.HostUUID()}}))
	qt.Assert(t, qt.IsNil(d.Set(testenv.Knobs{})))
	_, err = client.Unix(d.XapiSocket(), client.Options{}).Login(ctx)
	qt.Assert(t, qt.IsNil(err))
}

func TestBrokenReplies(t *testing.T) {
	d := start(t, testenv.Options{})
	ctx := timeout(t, 60*time.Second)
	for name, o := range ways {
		t.Run(name, func(t *testing.T) {
			qt.Assert(t, qt.IsNil(d.Set(testenv.Knobs{})))
			c := client.Unix(d.XapiSocket(), o)
			s, err := c.Observers(ctx)
			qt.Assert(t, qt.IsNil(err))
			defer c.Close()
			set := func(k testenv.Knobs) { qt.Assert(t, qt.IsNil(d.Set(k))) }
			broken := func(r config.Reply) error {
				t.Helper()
				set(testenv.Knobs{Reply: map[string]config.Reply{"Observer.get_all_records": r}})
				_, err := s.All(ctx)
				qt.Assert(t, qt.IsNotNil(err), qt.Commentf("%s", r))
				var f *client.Failure
				qt.Check(t, qt.IsFalse(errors.As(err, &f)), qt.Commentf("%s: %v", r, err))
				_, err = c.Call(ctx, "Observer.get_all", s.Session()) // others are well
				qt.Check(t, qt.IsNil(err), qt.Commentf("%s", r))
				return errors.Join(err, func() error { _, err := s.All(ctx); return err }())
			}
			var syntax *json.SyntaxError
			err = broken(config.ReplyGarbage)
			qt.Check(t, qt.Equals(errors.As(err, &syntax), o.Shape != client.Python), qt.Commentf("%v", err))
			qt.Check(t, qt.ErrorIs(broken(config.ReplyHalf), io.ErrUnexpectedEOF))
			qt.Check(t, qt.ErrorMatches(broken(config.ReplyError), "(?s).*HTTP status 500.*"))
			set(testenv.Knobs{Reply: map[string]config.Reply{"*": config.ReplyNothing}})
			_, err = c.With(o).Login(ctx)
			qt.Check(t, qt.ErrorIs(err, io.EOF))
			set(testenv.Knobs{})
			_, err = s.All(ctx)
			qt.Check(t, qt.IsNil(err))

			const long = 400 * time.Millisecond
			set(testenv.Knobs{Slow: map[string]time.Duration{"Observer.get_all_records": long}})
			begin := time.Now()
			_, err = s.All(ctx)
			qt.Check(t, qt.IsNil(err))
			qt.Check(t, qt.IsTrue(time.Since(begin) >= long))
			short, cancel := context.WithTimeout(ctx, long/4)
			defer cancel()
			_, err = c.With(o).Call(short, "Observer.get_all_records", s.Session())
			var late net.Error
			qt.Check(t, qt.IsTrue(errors.As(err, &late) && late.Timeout()), qt.Commentf("%v", err))

			for _, method := range []string{"event.from", "session.login_with_password"} {
				set(testenv.Knobs{Fail: map[string]string{method: "EVENT_FROM_TOKEN_PARSE_FAILURE"}})
				_, err = c.Call(ctx, method, s.Session(), []any{"observer"}, "", 0.0)
				qt.Check(t, qt.Equals(failure(t, err).Code, "EVENT_FROM_TOKEN_PARSE_FAILURE"), qt.Commentf("%s", method))
			}
		})
	}
}

// TestNativeByObserver looks at what xapi passes on to xenopsd while Observers come
// and go.
func TestNativeByObserver(t *testing.T) {
	d := start(t, testenv.Options{NativeByObserver: true, Knobs: testenv.Knobs{LogTrace: true}})
	ctx := timeout(t, 60*time.Second)
	o := client.Options{KeepAlive: true, Traceparent: traceparent}
	c := client.Unix(d.XapiSocket(), o)
	s, err := c.Observers(ctx)
	qt.Assert(t, qt.IsNil(err))
	vm, id := d.VMs()[0].Ref, strings.Split(traceparent, "-")[1]
	devlog := filepath.Join(d.Dir(), "devlog")
	// traced tells in whose log lines of a VM's start the caller's trace is.
	traced := func(s *client.Observers) (xapi, xenopsd bool) {
		t.Helper()
		time.Sleep(100 * time.Millisecond) // the log's reader is behind
		before, err := os.ReadFile(devlog)
		qt.Assert(t, qt.IsNil(err))
		for _, call := range [][]any{{"VM.start", s.Session(), vm, false, false}, {"VM.hard_shutdown", s.Session(), vm}} {
			_, err := c.Call(ctx, call[0].(string), call[1:]...)
			qt.Assert(t, qt.IsNil(err))
		}
		time.Sleep(100 * time.Millisecond)
		all, err := os.ReadFile(devlog)
		qt.Assert(t, qt.IsNil(err))
		for _, line := range strings.Split(string(all[len(before):]), "\n") {
			if strings.Contains(line, "|00-"+id+"-") {
				xapi = xapi || strings.Contains(line, " xapi: ")
				xenopsd = xenopsd || strings.Contains(line, " xenopsd-xc: ")
			}
		}
		return xapi, xenopsd
	}
	check := func(s *client.Observers, what string, xapi, xenopsd bool) {
		t.Helper()
		a, b := traced(s)
		qt.Check(t, qt.Equals(a, xapi), qt.Commentf("xapi: %s", what))
		qt.Check(t, qt.Equals(b, xenopsd), qt.Commentf("xenopsd: %s", what))
	}
	check(s, "no Observer", false, false)
	ref, err := s.Create(ctx, client.Observer{Name: "n", Endpoints: []string{"bugtool"}})
	qt.Assert(t, qt.IsNil(err))
	check(s, "one that is disabled", false, false)
	qt.Assert(t, qt.IsNil(s.SetEnabled(ctx, ref, true)))
	check(s, "one of all components", true, true)
	qt.Assert(t, qt.IsNil(s.SetComponents(ctx, ref, "xapi")))
	check(s, "one of xapi", true, false)
	qt.Assert(t, qt.IsNil(s.SetComponents(ctx, ref, "smapi")))
	check(s, "one of smapi", false, false)
	// xenopsd alone gets no context from xapi, which has none.
	qt.Assert(t, qt.IsNil(s.SetComponents(ctx, ref, "xenopsd")))
	check(s, "one of xenopsd", false, false)
	qt.Assert(t, qt.IsNil(s.SetComponents(ctx, ref)))
	check(s, "one of all components again", true, true)

	// A change of hosts shows when xapi starts again.
	other, err := s.Create(ctx, client.Observer{Name: "of no host of ours", Enabled: true, Hosts: []string{d.HostRef()}})
	qt.Assert(t, qt.IsNil(err))
	qt.Assert(t, qt.IsNil(s.SetEnabled(ctx, ref, false)))
	check(s, "another one", true, true)
	qt.Assert(t, qt.IsNil(s.SetEnabled(ctx, other, false)))
	qt.Assert(t, qt.IsNil(s.SetEnabled(ctx, ref, true)))
	qt.Assert(t, qt.IsNil(d.Restart(config.Xapi, testenv.Outage{})))
	s, err = c.Observers(ctx)
	qt.Assert(t, qt.IsNil(err))
	check(s, "after a restart of xapi", true, true)
	qt.Assert(t, qt.IsNil(d.Restart(config.Toolstack, testenv.Outage{})))
	s, err = c.Observers(ctx)
	qt.Assert(t, qt.IsNil(err))
	check(s, "after a restart of all", true, true)
	qt.Assert(t, qt.IsNil(s.Destroy(ctx, ref)))
	check(s, "destroyed", false, false)
}

// TestNativeOfPool looks at the log of a member while its pool's Observers come and
// go.
func TestNativeOfPool(t *testing.T) {
	p := startPool(t, testenv.PoolOptions{Options: testenv.Options{VMs: 2, NativeByObserver: true, Knobs: testenv.Knobs{LogTrace: true}}})
	ctx := timeout(t, 60*time.Second)
	d, vm, id := p.Member, p.VMs()[1].Ref, strings.Split(traceparent, "-")[1] // at home on the member
	c := client.Unix(p.Coordinator.XapiSocket(), client.Options{KeepAlive: true, Traceparent: traceparent})
	s, err := c.Observers(ctx)
	qt.Assert(t, qt.IsNil(err))
	devlog := filepath.Join(d.Dir(), "devlog")
	check := func(what string, want bool) {
		t.Helper()
		time.Sleep(100 * time.Millisecond) // the log's reader is behind
		before, err := os.ReadFile(devlog)
		qt.Assert(t, qt.IsNil(err))
		for _, call := range [][]any{{"VM.start", s.Session(), vm, false, false}, {"VM.hard_shutdown", s.Session(), vm}} {
			_, err := c.Call(ctx, call[0].(string), call[1:]...)
			qt.Assert(t, qt.IsNil(err))
		}
		time.Sleep(100 * time.Millisecond)
		all, err := os.ReadFile(devlog)
		qt.Assert(t, qt.IsNil(err))
		qt.Check(t, qt.Equals(strings.Contains(string(all[len(before):]), "|00-"+id+"-"), want), qt.Commentf("%s", what))
	}
	check("no Observer", false)
	ref, err := s.Create(ctx, client.Observer{Name: "n", Enabled: true})
	qt.Assert(t, qt.IsNil(err))
	check("one of all hosts", true)
	qt.Assert(t, qt.IsNil(s.SetEnabled(ctx, ref, false)))
	check("disabled", false)
	qt.Assert(t, qt.IsNil(s.SetEnabled(ctx, ref, true)))
	qt.Assert(t, qt.IsNil(s.SetComponents(ctx, ref, "smapi")))
	check("of smapi", false)
	qt.Assert(t, qt.IsNil(s.SetComponents(ctx, ref, "xapi", "xenopsd")))
	check("of xapi and xenopsd", true)
	qt.Assert(t, qt.IsNil(d.Restart(config.Xapi, testenv.Outage{})))
	check("member restarted", true)
	// Hosts that are set are not told.
	qt.Assert(t, qt.IsNil(s.SetHosts(ctx, ref, p.Coordinator.HostRef())))
	check("hosts set", true)
	qt.Assert(t, qt.IsNil(d.Restart(config.Toolstack, testenv.Outage{})))
	check("hosts set, and the member restarted", false)
	qt.Assert(t, qt.IsNil(s.Destroy(ctx, ref)))
	_, err = s.Create(ctx, client.Observer{Name: "n", Enabled: true, Hosts: []string{d.HostRef()}})
	qt.Assert(t, qt.IsNil(err))
	check("one of the member: the coordinator passes nothing on", false)
}
