package e2e

import (
	"context"
	"encoding/json"
	"errors"
	"os/exec"
	"testing"

	"github.com/go-quicktest/qt"

	"github.com/xenserver/dtagent/cmd/dtagent/check"
	"github.com/xenserver/dtagent/testenv"
	"github.com/xenserver/dtagent/testenv/client"
)

// check runs `dtagent check --json` for the lab's dom0 and agent.
func (l *lab) check(args ...string) (r check.Report, code int) {
	l.t.Helper()
	out, err := l.agent.Run(context.Background(), append([]string{"check", "--json", "--observers-dir", l.agent.ObserversDir(), "--control", l.agent.Control(),
		"--bugtool-dir", l.agent.SpansDir(), "--state-dir", l.agent.StateDir(), "--xapi-socket", l.dom0.XapiSocket(), "--proc", l.dom0.ProcDir(), "--host-uuid", l.dom0.HostUUID()}, args...)...)
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		code, err = exit.ExitCode(), nil
	}
	qt.Assert(l.t, qt.IsNil(err))
	qt.Assert(l.t, qt.IsNil(json.Unmarshal([]byte(out), &r)), qt.Commentf("%s", out))
	return r, code
}

// TestCheck looks at a whole dom0 with an agent: every daemon, the Observers of XAPI
// and of a file, their endpoints, and what goes when the dom0 and a receiver go.
func TestCheck(t *testing.T) {
	l := newLab(t, testenv.Options{Squeezed: true, EndpointHTTP: true})
	r := newReceiver(t)
	l.observe("endpoints=bugtool," + r.url())
	ctx := context.Background()
	admin, err := client.Unix(l.dom0.XapiSocket(), client.Options{Shape: client.Node}).Observers(ctx)
	qt.Assert(t, qt.IsNil(err))
	_, err = admin.Create(ctx, client.Observer{Name: "pool", Hosts: []string{l.dom0.HostRef()}, Endpoints: []string{r.url() + "?key=1"}, Enabled: true})
	qt.Assert(t, qt.IsNil(err))

	got, code := l.check("--strict")
	qt.Check(t, qt.Equals(code, 0), qt.Commentf("%+v", got))
	qt.Check(t, qt.IsTrue(got.OK))
	versions := map[string]string{}
	for _, p := range got.Targets {
		qt.Check(t, qt.Equals(p.State, check.Works), qt.Commentf("%+v", p))
		qt.Check(t, qt.Equals(int(p.TGID), l.dom0.PID(p.Program)))
		versions[p.Component+" "+p.Program] = p.Version
	}
	// The stand-ins have no versions of their own, xapi's database has one.
	qt.Check(t, qt.DeepEquals(versions, map[string]string{"xapi xapi": "26.17.0", "xenopsd xenopsd-xc": "", "message-switch message-switch": "", "squeezed squeezed": ""}))
	qt.Check(t, qt.StringContains(got.Sources[0].Detail, "1 Observers, pool "+l.dom0.PoolUUID()))
	qt.Assert(t, qt.HasLen(got.Observers, 2))
	qt.Check(t, qt.Equals(got.Observers[0].Source, "xapi"))
	qt.Check(t, qt.IsTrue(got.Observers[0].Here))
	qt.Assert(t, qt.HasLen(got.Endpoints, 3))
	for _, e := range got.Endpoints {
		qt.Check(t, qt.Equals(e.State, check.Works), qt.Commentf("%+v", e))
	}
	qt.Check(t, qt.StringContains(got.Agent[2].Detail, "runs, pid "))
	// What the agent says of the kernel is what check says.
	restrictions := check.Kernel{Items: got.Kernel, Hooks: got.Hooks}.Restrictions()
	s := l.status()
	qt.Assert(t, qt.HasLen(s.Restrictions, len(restrictions)))
	for i, r := range s.Restrictions {
		qt.Check(t, qt.Equals(r.Name+": "+r.Why, restrictions[i].Name+": "+restrictions[i].Why))
	}

	r.srv.Listener.Close()
	got, code = l.check()
	qt.Check(t, qt.Equals(code, 0)) // spans wait
	qt.Check(t, qt.StringContains(got.Endpoints[2].Why, "connection refused"))
	_, code = l.check("--strict")
	qt.Check(t, qt.Equals(code, 1))
	_, code = l.check("--strict", "--offline")
	qt.Check(t, qt.Equals(code, 0))
}
