//go:build linux

package testenv_test

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/go-quicktest/qt"

	"github.com/xenserver/dtagent/testenv"
	"github.com/xenserver/dtagent/testenv/client"
)

// post sends one JSON-RPC request as it stands and returns the body of the answer.
func post(t *testing.T, ctx context.Context, d *testenv.Dom0, uri, body string) string {
	t.Helper()
	status, got, err := client.Unix(d.XapiSocket(), client.Options{}).Request(ctx, "POST", uri, []byte(body))
	qt.Assert(t, qt.IsNil(err))
	qt.Assert(t, qt.Equals(status, 200), qt.Commentf("%s", got))
	return string(got)
}

// anyRef and anyUUID stand for what the server makes up.
var (
	anyRef  = regexp.MustCompile(`OpaqueRef:[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}`)
	anyUUID = regexp.MustCompile(`"uuid":"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}"`)
	anyID   = regexp.MustCompile(`"id":"[0-9]+"`)
	anyText = regexp.MustCompile(`[0-9]{20},[0-9]{20}`)
	others  = regexp.MustCompile(`"valid_ref_counts":\{[^}]*"observer":([0-9]+)[^}]*\}`)
)

func masked(s string) string {
	s = anyRef.ReplaceAllString(s, "<ref>")
	s = anyUUID.ReplaceAllString(s, `"uuid":"<uuid>"`)
	s = anyID.ReplaceAllString(s, `"id":"<n>"`)
	s = anyText.ReplaceAllString(s, "<token>")
	return others.ReplaceAllString(s, `"valid_ref_counts":{"observer":$1,…}`)
}

// result is the result of a JSON-RPC answer, a string.
func result(t *testing.T, body string) string {
	t.Helper()
	var r struct{ Result string }
	qt.Assert(t, qt.IsNil(json.Unmarshal([]byte(body), &r)), qt.Commentf("%s", body))
	return r.Result
}

// TestObserverShapes compares answers with what the toolstack's code makes of the
// calls, byte by byte.
func TestObserverShapes(t *testing.T) {
	d := start(t, testenv.Options{})
	ctx := timeout(t, 30*time.Second)
	login := post(t, ctx, d, "/jsonrpc", `{"jsonrpc":"2.0","id":1,"method":"session.login_with_password","params":["dtagent","","1.0","dtagent"]}`)
	qt.Assert(t, qt.Equals(masked(login), `{"jsonrpc":"2.0","result":"<ref>","id":1}`))
	s := result(t, login)
	call := func(id, method string, params ...string) string {
		t.Helper()
		return post(t, ctx, d, "/jsonrpc", fmt.Sprintf(`{"jsonrpc":"2.0","id":%s,"method":%q,"params":[%s]}`, id, method, strings.Join(append([]string{`"` + s + `"`}, params...), ",")))
	}
	qt.Check(t, qt.Equals(call("2", "Observer.get_all_records"), `{"jsonrpc":"2.0","result":{},"id":2}`))
	qt.Check(t, qt.Equals(masked(call("3", "event.from", `["observer"]`, `""`, "0.0")),
		`{"jsonrpc":"2.0","result":{"events":[],"valid_ref_counts":{"observer":0,…},"token":"<token>"},"id":3}`))

	created := call(`"x"`, "Observer.create", `{"name_label":"dt","name_description":"","hosts":[],"attributes":{"b.c":"v=1","a.b":""},"endpoints":["bugtool"],"components":["xapi"],"enabled":true}`)
	qt.Assert(t, qt.Equals(masked(created), `{"jsonrpc":"2.0","result":"<ref>","id":"x"}`))
	ref := result(t, created)
	const record = `{"uuid":"<uuid>","name_label":"dt","name_description":"","hosts":[],"attributes":{"a.b":"","b.c":"v=1"},"endpoints":["bugtool"],"components":["xapi"],"enabled":true}`
	qt.Check(t, qt.Equals(masked(call("4", "Observer.get_all_records")), `{"jsonrpc":"2.0","result":{"<ref>":`+record+`},"id":4}`))
	from := call("5", "event.from", `["Observer"]`, `""`, "30.0")
	qt.Check(t, qt.Equals(masked(from), `{"jsonrpc":"2.0","result":{"events":[{"id":"<n>","timestamp":"0.0","class":"observer","operation":"add","ref":"<ref>","snapshot":`+
		record+`}],"valid_ref_counts":{"observer":1,…},"token":"<token>"},"id":5}`))
	token := anyText.FindString(from)
	qt.Check(t, qt.Equals(token[20:], ",00000000000000000000"))
	counts := others.FindString(from)
	for _, class := range []string{`"host":1`, `"pool":1`, `"vm":1`, `"session":1`} {
		qt.Check(t, qt.StringContains(counts, class))
	}

	call("6", "Observer.set_enabled", `"`+ref+`"`, "false")
	mod := call("7", "event.from", `["observer/`+ref+`"]`, `"`+token+`"`, "30.0")
	qt.Check(t, qt.Equals(masked(mod), `{"jsonrpc":"2.0","result":{"events":[{"id":"<n>","timestamp":"0.0","class":"observer","operation":"mod","ref":"<ref>","snapshot":`+
		strings.Replace(record, "true", "false", 1)+`}],"valid_ref_counts":{"observer":1,…},"token":"<token>"},"id":7}`))
	qt.Check(t, qt.Equals(call("8", "Observer.destroy", `"`+ref+`"`), `{"jsonrpc":"2.0","result":"","id":8}`))
	gone := call("9", "event.from", `["Observer", "pool"]`, `"`+anyText.FindString(mod)+`"`, "30.0")
	qt.Check(t, qt.Equals(masked(gone), `{"jsonrpc":"2.0","result":{"events":[{"id":"<n>","timestamp":"0.0","class":"observer","operation":"del","ref":"<ref>"}],"valid_ref_counts":{"observer":0,…},"token":"<token>"},"id":9}`))

	// All classes at once: every object that there is, and of sessions nothing.
	var everything struct{ Result client.Events }
	qt.Assert(t, qt.IsNil(json.Unmarshal([]byte(call("10", "event.from", `["*"]`, `""`, "0.0")), &everything)))
	classes := map[string]int{}
	for _, e := range everything.Result.Events {
		classes[e.Class+" "+e.Operation]++
	}
	qt.Check(t, qt.DeepEquals(classes, map[string]int{"vm add": 1, "host add": 1, "pool add": 1}))

	// Errors of JSON-RPC 2.0 have the code as message and the parameters as data; those
	// of 1.0 have both in a list.
	qt.Check(t, qt.Equals(post(t, ctx, d, "/jsonrpc", `{"jsonrpc":"2.0","id":1,"method":"Observer.get_all","params":["OpaqueRef:x"]}`),
		`{"jsonrpc":"2.0","error":{"code":1,"message":"SESSION_INVALID","data":["OpaqueRef:x"]},"id":1}`))
	qt.Check(t, qt.Equals(post(t, ctx, d, "/jsonrpc", `{"id":1,"method":"Observer.get_all","params":["OpaqueRef:x"]}`),
		`{"result":null,"error":["SESSION_INVALID","OpaqueRef:x"],"id":1}`))
	qt.Check(t, qt.Equals(call("1", "event.from", `["observer"]`, `"12,x"`, "1.0"),
		`{"jsonrpc":"2.0","error":{"code":1,"message":"EVENT_FROM_TOKEN_PARSE_FAILURE","data":["12,x"]},"id":1}`))
	qt.Check(t, qt.Equals(post(t, ctx, d, "/jsonrpc", `{"method":"Observer_get_all","params":["`+s+`"],"id":7}`), `{"result":[],"error":null,"id":7}`))

	// XML-RPC, at three places.
	for _, uri := range []string{"/", "/RPC2", "/json"} {
		body := `<?xml version="1.0"?><methodCall><methodName>event.from</methodName><params><param><value>` + s +
			`</value></param><param><value><array><data><value>observer</value></data></array></value></param><param><value></value></param><param><value><double>0.</double></value></param></params></methodCall>`
		got := post(t, ctx, d, uri, body)
		qt.Check(t, qt.IsTrue(strings.HasPrefix(got, `<?xml version="1.0"?><methodResponse><params><param><value><struct><member><name>Status</name><value>Success</value></member><member><name>Value</name><value><struct><member><name>events</name><value><array><data></data></array></value></member><member><name>valid_ref_counts</name><value><struct><member><name>`)), qt.Commentf("%s", got))
		qt.Check(t, qt.StringContains(got, `<member><name>observer</name><value><i4>0</i4></value></member>`))
		qt.Check(t, qt.IsTrue(strings.HasSuffix(got, `</struct></value></member></struct></value></param></params></methodResponse>`)), qt.Commentf("%s", got))
	}
}

// ways are the two protocols.
var ways = map[string]client.Options{"XML": {KeepAlive: true}, "JSON 2": {Shape: client.Node, KeepAlive: true}, "JSON 1": {Shape: client.JSON1, KeepAlive: true}}

func TestObserverCalls(t *testing.T) {
	d := start(t, testenv.Options{EndpointHTTP: true})
	ctx := timeout(t, 60*time.Second)
	for name, o := range ways {
		t.Run(name, func(t *testing.T) {
			c := client.Unix(d.XapiSocket(), o)
			s, err := c.Observers(ctx)
			qt.Assert(t, qt.IsNil(err))
			want := client.Observer{
				Name: "a <&>'\" ü", Description: "d", Hosts: []string{d.HostRef()}, Attributes: map[string]string{"dtagent.components": "qemu, xenguest", "x.y": ""},
				Endpoints: []string{"bugtool", "http://10.0.0.9:9411/api/v2/spans", "https://[::1]/", "http://collector.example"}, Components: []string{"xapi", "smapi"}, Enabled: true,
			}
			ref, err := s.Create(ctx, want)
			qt.Assert(t, qt.IsNil(err))
			all, err := s.All(ctx)
			qt.Assert(t, qt.IsNil(err))
			want.UUID = all[ref].UUID
			qt.Assert(t, qt.DeepEquals(all, map[string]client.Observer{ref: want}))

			for _, err := range []error{
				s.SetName(ctx, ref, "b"), s.SetHosts(ctx, ref), s.SetAttributes(ctx, ref, nil), s.SetEndpoints(ctx, ref), s.SetComponents(ctx, ref), s.SetEnabled(ctx, ref, false),
			} {
				qt.Assert(t, qt.IsNil(err))
			}
			all, err = s.All(ctx)
			qt.Assert(t, qt.IsNil(err))
			none := []string{}
			qt.Assert(t, qt.DeepEquals(all[ref], client.Observer{UUID: want.UUID, Name: "b", Description: "d", Hosts: none, Attributes: map[string]string{}, Endpoints: none, Components: none}))
			for method, want := range map[string]any{
				"get_uuid": want.UUID, "get_name_label": "b", "get_name_description": "d", "get_hosts": []any{}, "get_attributes": map[string]any{},
				"get_endpoints": []any{}, "get_components": []any{}, "get_enabled": false,
			} {
				got, err := c.Call(ctx, "Observer."+method, s.Session(), ref)
				qt.Assert(t, qt.IsNil(err))
				qt.Check(t, qt.DeepEquals(got, want), qt.Commentf("%s", method))
			}
			got, err := c.Call(ctx, "Observer.get_by_uuid", s.Session(), want.UUID)
			qt.Assert(t, qt.IsNil(err))
			qt.Check(t, qt.Equals(got, any(ref)))
			got, err = c.Call(ctx, "Observer.get_by_name_label", s.Session(), "b")
			qt.Assert(t, qt.IsNil(err))
			qt.Check(t, qt.DeepEquals(got, any([]any{ref})))

			for _, bad := range []struct {
				err  error
				want client.Failure
			}{
				{s.SetComponents(ctx, ref, "xapi", "qemu"), client.Failure{Code: "INVALID_VALUE", Params: []string{"component", "qemu"}}},
				{s.SetEndpoints(ctx, ref, "otlp+http://x"), client.Failure{Code: "INVALID_VALUE", Params: []string{"endpoint", "otlp+http://x"}}},
				{s.SetEndpoints(ctx, ref, "HTTP://x"), client.Failure{Code: "INVALID_VALUE", Params: []string{"endpoint", "HTTP://x"}}},
				{s.SetEndpoints(ctx, ref, "http:///path"), client.Failure{Code: "INVALID_VALUE", Params: []string{"endpoint", "http:///path"}}},
				{s.SetHosts(ctx, ref, "OpaqueRef:x"), client.Failure{Code: "INVALID_VALUE", Params: []string{"host", "OpaqueRef:x"}}},
				{s.SetAttributes(ctx, ref, map[string]string{"a": "v"}), client.Failure{Code: "INVALID_VALUE", Params: []string{"attributes", "a:v"}}},
				{s.SetAttributes(ctx, ref, map[string]string{"A.b": "v"}), client.Failure{Code: "INVALID_VALUE", Params: []string{"attributes", "A.b:v"}}},
				{s.SetAttributes(ctx, ref, map[string]string{"a.b": strings.Repeat("v", 4096)}), client.Failure{Code: "INVALID_VALUE", Params: []string{"attributes", "a.b:" + strings.Repeat("v", 4096)}}},
				{s.SetEnabled(ctx, "OpaqueRef:x", true), client.Failure{Code: "HANDLE_INVALID", Params: []string{"Observer", "OpaqueRef:x"}}},
			} {
				qt.Check(t, qt.DeepEquals(failure(t, bad.err), bad.want))
			}
			qt.Assert(t, qt.IsNil(s.SetAttributes(ctx, ref, map[string]string{strings.Repeat("k", 255): strings.Repeat("v", 4095)})))
			qt.Assert(t, qt.IsNil(s.Destroy(ctx, ref)))
			qt.Check(t, qt.Equals(failure(t, s.Destroy(ctx, ref)).Code, "HANDLE_INVALID"))
			qt.Assert(t, qt.IsNil(s.Close(ctx)))
		})
	}
}

func TestXeObserver(t *testing.T) {
	d := start(t, testenv.Options{})
	ctx := timeout(t, 30*time.Second)
	c := client.Unix(d.XapiSocket(), client.Options{})
	s, err := c.Observers(ctx)
	qt.Assert(t, qt.IsNil(err))
	out, err := c.Xe(ctx, "observer-create", "name-label=xe", "enabled=true", "attributes=a.b:c,d.e:f:g", "components=xapi,xenopsd", "host-uuids="+d.HostUUID())
	qt.Assert(t, qt.IsNil(err))
	uuid := strings.TrimSpace(out)
	one := func() client.Observer {
		t.Helper()
		all, err := s.All(ctx)
		qt.Assert(t, qt.IsNil(err))
		qt.Assert(t, qt.HasLen(all, 1))
		for _, o := range all {
			return o
		}
		panic("none")
	}
	want := client.Observer{
		UUID: uuid, Name: "xe", Hosts: []string{d.HostRef()}, Attributes: map[string]string{"a.b": "c"}, Endpoints: []string{"bugtool"}, Components: []string{"xapi", "xenopsd"}, Enabled: true,
	}
	qt.Check(t, qt.DeepEquals(one(), want))
	_, err = c.Xe(ctx, "observer-param-set", "uuid="+uuid, "enabled=false", "attributes:x.y=z", "components=")
	qt.Assert(t, qt.IsNil(err))
	want.Enabled, want.Components, want.Attributes["x.y"] = false, []string{}, "z"
	qt.Check(t, qt.DeepEquals(one(), want))
	out, err = c.Xe(ctx, "observer-list")
	qt.Assert(t, qt.IsNil(err))
	qt.Check(t, qt.StringContains(out, uuid))
	_, err = c.Xe(ctx, "observer-param-set", "uuid="+uuid, "components=qemu")
	qt.Check(t, qt.ErrorIs(err, client.ErrCommand))
	_, err = c.Xe(ctx, "observer-destroy", "uuid="+uuid)
	qt.Assert(t, qt.IsNil(err))
	all, err := s.All(ctx)
	qt.Assert(t, qt.IsNil(err))
	qt.Check(t, qt.HasLen(all, 0))
}

func TestEndpointsSwitchedOff(t *testing.T) {
	d := start(t, testenv.Options{})
	ctx := timeout(t, 30*time.Second)
	s, err := client.Unix(d.XapiSocket(), client.Options{}).Observers(ctx)
	qt.Assert(t, qt.IsNil(err))
	_, err = s.Create(ctx, client.Observer{Name: "n", Endpoints: []string{"http://10.0.0.9:9411"}})
	qt.Check(t, qt.DeepEquals(failure(t, err), client.Failure{Code: "INVALID_VALUE", Params: []string{"endpoint", "http://10.0.0.9:9411"}}))
}

func TestPoolAndHostCalls(t *testing.T) {
	d := start(t, testenv.Options{})
	ctx := timeout(t, 30*time.Second)
	c := client.Unix(d.XapiSocket(), client.Options{Shape: client.Node, KeepAlive: true})
	session, err := c.Login(ctx)
	qt.Assert(t, qt.IsNil(err))
	for _, one := range []struct {
		method string
		params []any
		want   any
	}{
		{"host.get_all", nil, []any{d.HostRef()}},
		{"host.get_by_uuid", []any{d.HostUUID()}, d.HostRef()},
		{"host.get_uuid", []any{d.HostRef()}, d.HostUUID()},
		{"host.get_name_label", []any{d.HostRef()}, "dom0"},
		{"pool.get_all", nil, []any{d.PoolRef()}},
		{"pool.get_uuid", []any{d.PoolRef()}, d.PoolUUID()},
	} {
		got, err := c.Call(ctx, one.method, append([]any{session}, one.params...)...)
		qt.Assert(t, qt.IsNil(err), qt.Commentf("%s", one.method))
		qt.Check(t, qt.DeepEquals(got, one.want), qt.Commentf("%s", one.method))
	}
	pools, err := c.Call(ctx, "pool.get_all_records", session)
	qt.Assert(t, qt.IsNil(err))
	pool := pools.(map[string]any)[d.PoolRef()].(map[string]any)
	qt.Check(t, qt.Equals(pool["uuid"], any(d.PoolUUID())))
	qt.Check(t, qt.Equals(pool["master"], any(d.HostRef())))
	hosts, err := c.Call(ctx, "host.get_all_records", session)
	qt.Assert(t, qt.IsNil(err))
	qt.Check(t, qt.Equals(hosts.(map[string]any)[d.HostRef()].(map[string]any)["uuid"], any(d.HostUUID())))
	_, err = c.Call(ctx, "host.get_by_uuid", session, "x")
	qt.Check(t, qt.DeepEquals(failure(t, err), client.Failure{Code: "UUID_INVALID", Params: []string{"host", "x"}}))
}

// TestEventFromBlocks has threads of xapi wait in event.from, and sees that they are
// kernel threads that sleep.
func TestEventFromBlocks(t *testing.T) {
	d := start(t, testenv.Options{})
	ctx := timeout(t, 3*time.Minute)
	for name, o := range ways {
		t.Run(name, func(t *testing.T) {
			c := client.Unix(d.XapiSocket(), o)
			s, err := c.Observers(ctx)
			qt.Assert(t, qt.IsNil(err))
			waiter := c.With(o)
			first, err := waiter.Events(ctx, s.Session(), "", 0, "observer") // with nothing there it would wait
			qt.Assert(t, qt.IsNil(err))

			begin := time.Now()
			empty, err := waiter.Events(ctx, s.Session(), first.Token, 300*time.Millisecond, "observer")
			qt.Assert(t, qt.IsNil(err))
			qt.Check(t, qt.HasLen(empty.Events, 0))
			qt.Check(t, qt.Equals(empty.Token, first.Token))
			took := time.Since(begin)
			qt.Check(t, qt.IsTrue(took >= 300*time.Millisecond), qt.Commentf("%v", took))

			got := make(chan client.Events, 1)
			fail := make(chan error, 1)
			before := threads(t, d.PID("xapi"))
			go func() {
				e, err := c.With(client.Options{Shape: o.Shape}).Events(ctx, s.Session(), first.Token, 40*time.Second, "observer")
				got <- e
				fail <- err
			}()
			time.Sleep(300 * time.Millisecond)
			select {
			case e := <-got:
				t.Fatalf("did not wait: %+v", e)
			default:
			}
			asleep := 0
			for end := time.Now().Add(10 * time.Second); asleep != 1 && time.Now().Before(end); time.Sleep(10 * time.Millisecond) {
				asleep = 0
				for tid, state := range threads(t, d.PID("xapi")) {
					if before[tid] == "" && state == "S" {
						asleep++
					}
				}
			}
			qt.Check(t, qt.Equals(asleep, 1), qt.Commentf("threads of xapi that wait since"))
			// A burst is one batch, its last state in it.
			begin = time.Now()
			var refs []string
			for i := range 5 {
				ref, err := s.Create(ctx, client.Observer{Name: fmt.Sprint(i)})
				qt.Assert(t, qt.IsNil(err))
				refs = append(refs, ref)
			}
			qt.Assert(t, qt.IsNil(<-fail))
			e := <-got
			qt.Check(t, qt.IsTrue(time.Since(begin) < 20*time.Second), qt.Commentf("woken after %v", time.Since(begin))) // by itself after 40
			qt.Assert(t, qt.IsTrue(len(e.Events) >= 1))
			seen := map[string]string{}
			note := func(e client.Events) {
				for _, ev := range e.Events {
					qt.Check(t, qt.Equals(ev.Class, "observer"))
					seen[ev.Ref] += ev.Operation + " "
				}
			}
			note(e)
			for len(seen) < 5 {
				e, err = waiter.Events(ctx, s.Session(), e.Token, 5*time.Second, "observer")
				qt.Assert(t, qt.IsNil(err))
				note(e)
			}
			// What comes and goes between two calls is not seen at all.
			ref, err := s.Create(ctx, client.Observer{Name: "short"})
			qt.Assert(t, qt.IsNil(err))
			qt.Assert(t, qt.IsNil(s.Destroy(ctx, ref)))
			for _, r := range refs {
				qt.Assert(t, qt.IsNil(s.Destroy(ctx, r)))
			}
			for done := 0; done < 5; {
				e, err = waiter.Events(ctx, s.Session(), e.Token, 5*time.Second, "observer")
				qt.Assert(t, qt.IsNil(err))
				for _, ev := range e.Events {
					qt.Check(t, qt.Equals(ev.Operation, "del"))
					qt.Check(t, qt.IsTrue(ev.Snapshot == nil))
					qt.Check(t, qt.Not(qt.Equals(ev.Ref, ref)))
					done++
				}
			}
			// Logging out ends the wait.
			go func() {
				_, err := waiter.Events(ctx, s.Session(), e.Token, 20*time.Second, "observer")
				fail <- err
			}()
			time.Sleep(200 * time.Millisecond)
			qt.Assert(t, qt.IsNil(s.Close(ctx)))
			qt.Check(t, qt.Equals(failure(t, <-fail).Code, "SESSION_INVALID"))
		})
	}
}

// threads are the states of a process's threads, as /proc has them.
func threads(t *testing.T, pid int) map[string]string {
	t.Helper()
	all, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*", pid))
	qt.Assert(t, qt.IsNil(err))
	out := map[string]string{}
	for _, dir := range all {
		b, err := os.ReadFile(filepath.Join(dir, "stat"))
		if err != nil {
			continue // it has ended
		}
		_, rest, _ := strings.Cut(string(b), ") ")
		out[filepath.Base(dir)], _, _ = strings.Cut(rest, " ")
	}
	return out
}

// TestObserverRate makes 200 changes a second, as fault tests of the agent do, and
// follows them.
func TestObserverRate(t *testing.T) {
	d := start(t, testenv.Options{})
	ctx := timeout(t, 60*time.Second)
	c := client.Unix(d.XapiSocket(), client.Options{Shape: client.Node, KeepAlive: true})
	s, err := c.Observers(ctx)
	qt.Assert(t, qt.IsNil(err))
	var refs []string
	for i := range 50 {
		ref, err := s.Create(ctx, client.Observer{Name: fmt.Sprint(i), Enabled: true})
		qt.Assert(t, qt.IsNil(err))
		refs = append(refs, ref)
	}
	follower := c.With(client.Options{Shape: client.Node, KeepAlive: true})
	e, err := follower.Events(ctx, s.Session(), "", time.Second, "observer")
	qt.Assert(t, qt.IsNil(err))
	qt.Assert(t, qt.HasLen(e.Events, 50))
	last := make(chan map[string]string, 1)
	go func() {
		names := map[string]string{}
		for {
			if e, err = follower.Events(ctx, s.Session(), e.Token, time.Second, "observer"); err != nil || len(e.Events) == 0 {
				last <- names
				return
			}
			for _, ev := range e.Events {
				names[ev.Ref], _ = ev.Snapshot["name_label"].(string)
			}
		}
	}()
	const n = 600
	begin := time.Now()
	for i := range n {
		if d := time.Until(begin.Add(time.Duration(i) * time.Second / 200)); d > 0 {
			time.Sleep(d)
		}
		qt.Assert(t, qt.IsNil(s.SetName(ctx, refs[i%len(refs)], fmt.Sprint(i))))
	}
	rate := n / time.Since(begin).Seconds()
	t.Logf("%.0f changes a second", rate)
	qt.Check(t, qt.IsTrue(rate > 150), qt.Commentf("%.0f changes a second", rate))
	names := <-last
	for i, ref := range refs {
		qt.Check(t, qt.Equals(names[ref], fmt.Sprint(n-len(refs)+i)))
	}
}
