package check

import (
	"context"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"path/filepath"
	"testing"

	"github.com/go-quicktest/qt"

	"github.com/xenserver/dtagent/observer"
	"github.com/xenserver/dtagent/observer/xapi"
)

const (
	thisHost = "3f6c0000-0000-4000-8000-000000000001"
	poolUUID = "9001aaaa-0000-4000-8000-000000000009"
)

// fakeXAPI answers the calls of a look with answers, JSON by method.
func fakeXAPI(t testing.TB, answers map[string]string) (socket string) {
	t.Helper()
	socket = filepath.Join(t.TempDir(), "xapi")
	l, err := net.Listen("unix", socket)
	qt.Assert(t, qt.IsNil(err))
	srv := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		var call struct {
			ID     uint64
			Method string
		}
		_ = json.NewDecoder(r.Body).Decode(&call)
		if a, ok := answers[call.Method]; ok {
			fmt.Fprintf(w, `{"jsonrpc":"2.0","id":%d,"result":%s}`, call.ID, a)
			return
		}
		fmt.Fprintf(w, `{"jsonrpc":"2.0","id":%d,"error":{"code":1,"message":"MESSAGE_METHOD_UNKNOWN","data":[%q]}}`, call.ID, call.Method)
	})}
	go srv.Serve(l)
	t.Cleanup(func() { srv.Close() })
	return socket
}

func record(uuid, name, more string) string {
	return fmt.Sprintf(`{"uuid":%q,"name_label":%q,"name_description":"","hosts":[],"attributes":{},"endpoints":["bugtool"],"components":[],"enabled":true%s}`, uuid, name, more)
}

// answers of an XAPI 25.33 with Observers.
func answers(observers string) map[string]string {
	return map[string]string{
		"session.login_with_password": `"OpaqueRef:session"`, "session.logout": `""`,
		"host.get_by_uuid": `"OpaqueRef:host"`, "host.get_name_label": `"dom0-1"`,
		"host.get_software_version": `{"xapi_build":"25.33.1","product_version":"8.4.0"}`,
		"pool.get_all_records":      `{"OpaqueRef:pool":{"uuid":"` + poolUUID + `","name_label":""}}`,
		"Observer.get_all_records":  observers,
	}
}

func TestXAPISource(t *testing.T) {
	ctx := context.Background()
	o := xapi.Options{HostUUID: thisHost, Version: "v1"}
	a := answers(`{"OpaqueRef:1":` + record("0f0e0000-0000-4000-8000-000000000001", "good", "") + `,"OpaqueRef:2":` + record("0f0e0000-0000-4000-8000-000000000002", "bad", `,"components":["nonsense","xapi"]`) + `}`)
	o.Socket = fakeXAPI(t, a)
	items, sight := xapiSource(ctx, o)
	qt.Assert(t, qt.HasLen(items, 2))
	qt.Check(t, qt.Equals(items[0].State, Works))
	qt.Check(t, qt.Equals(items[0].Detail, "logged in on "+o.Socket+", 2 Observers, pool "+poolUUID+`, this host is "dom0-1", version 25.33.1: its traces are told in debug_info, not in log lines (26.8)`))
	qt.Check(t, qt.Equals(items[1].Name, "XAPI, Observer bad"))
	qt.Check(t, qt.Equals(items[1].State, Wider))
	qt.Check(t, qt.StringContains(items[1].Why, "nonsense"))
	qt.Check(t, qt.Equals(sight.Software["xapi_build"], "25.33.1"))

	delete(a, "Observer.get_all_records")
	o.Socket = fakeXAPI(t, a)
	items, _ = xapiSource(ctx, o)
	qt.Check(t, qt.Equals(items[0].State, Wider))
	qt.Check(t, qt.StringContains(items[0].Why, "no Observers"))

	a = answers("{}")
	a["session.login_with_password"] = "null"
	o.Socket = fakeXAPI(t, a)
	items, sight = xapiSource(ctx, o)
	qt.Check(t, qt.Equals(items[0].State, Fails))
	qt.Check(t, qt.StringContains(items[0].Why, "not a session"))
	qt.Check(t, qt.IsNil(sight))

	o.Socket = filepath.Join(t.TempDir(), "none")
	items, _ = xapiSource(ctx, o)
	qt.Check(t, qt.Equals(items[0].State, Absent))

	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: o.Socket, Net: "unix"})
	qt.Assert(t, qt.IsNil(err))
	l.SetUnlinkOnClose(false)
	qt.Assert(t, qt.IsNil(l.Close()))
	items, _ = xapiSource(ctx, o)
	qt.Check(t, qt.Equals(items[0].State, Fails))
	qt.Check(t, qt.StringContains(items[0].Why, "nobody listens"))
}

func TestObservers(t *testing.T) {
	one := observer.Observer{UUID: "a", NameLabel: "one", Enabled: true, Endpoints: []string{"http://u:secret@h/x"}}
	twin := observer.Observer{UUID: "A", NameLabel: "twin", Enabled: true}
	elsewhere := observer.Observer{UUID: "b", Enabled: true, Hosts: []string{"c0ffee00-0000-4000-8000-000000000001"}, Endpoints: []string{"bugtool"}}
	off := observer.Observer{UUID: "c", Endpoints: []string{"bugtool"}}
	odd := observer.Observer{UUID: "d", Enabled: true, Attributes: map[string]string{"dtagent.nonsense": "1"}, Endpoints: []string{"bugtool"}}
	got := observers([]observer.Observer{one, off}, []observer.Observer{twin, elsewhere, odd}, thisHost)
	qt.Assert(t, qt.HasLen(got, 4))
	qt.Check(t, qt.Equals(got[0].State, Works))
	qt.Check(t, qt.DeepEquals(got[0].Endpoints, []string{"http://u:xxxxx@h/x"}))
	qt.Check(t, qt.StringContains(got[0].Detail, "xapi, components xapi,"))
	qt.Check(t, qt.Equals(got[1].Why, "it is disabled"))
	qt.Check(t, qt.Equals(got[1].Advice, "xe observer-param-set enabled=true uuid=c"))
	qt.Check(t, qt.Equals(got[2].Why, "it is for other hosts"))
	qt.Check(t, qt.Equals(got[2].Source, sourceLocal))
	qt.Check(t, qt.Equals(got[3].State, Wider))
	qt.Check(t, qt.StringContains(got[3].Why, "dtagent.nonsense"))
	text, err := json.Marshal(got)
	qt.Assert(t, qt.IsNil(err))
	qt.Check(t, qt.Not(qt.StringContains(string(text), "secret")))
}
