//go:build linux

package testenv_test

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/go-quicktest/qt"

	"github.com/xenserver/dtagent/testenv"
	"github.com/xenserver/dtagent/testenv/capture/strace"
	"github.com/xenserver/dtagent/testenv/client"
	"github.com/xenserver/dtagent/testenv/config"
	"github.com/xenserver/dtagent/testenv/truth"
)

func startPool(t *testing.T, o testenv.PoolOptions) *testenv.Pool {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root: mount and network namespaces")
	}
	o.Binary = binary
	o.Dir = t.TempDir()
	p, err := testenv.StartPool(context.Background(), o)
	qt.Assert(t, qt.IsNil(err))
	t.Cleanup(func() {
		qt.Check(t, qt.IsNil(p.Close()))
		if t.Failed() {
			logs, _ := filepath.Glob(filepath.Join(o.Dir, "*", "*.log"))
			for _, name := range logs {
				if b, _ := os.ReadFile(name); len(b) > 0 {
					t.Logf("%s: %.4000s", name, b)
				}
			}
		}
	})
	return p
}

func TestPoolComesUp(t *testing.T) {
	p := startPool(t, testenv.PoolOptions{})
	ctx := timeout(t, 20*time.Second)
	qt.Assert(t, qt.Not(qt.Equals(p.Coordinator.HostUUID(), p.Member.HostUUID())))
	qt.Assert(t, qt.Equals(p.Coordinator.PoolUUID(), p.Member.PoolUUID()))
	for _, d := range p.Hosts() {
		conn, err := d.Dial(ctx, "tcp", d.TLSAddr().String())
		qt.Assert(t, qt.IsNil(err))
		qt.Check(t, qt.IsNil(conn.Close()))
		for _, shape := range []client.Shape{client.Python, client.Node} {
			c := client.Unix(d.XapiSocket(), client.Options{Shape: shape})
			session, err := c.Login(ctx)
			qt.Assert(t, qt.IsNil(err))
			hosts, err := c.Call(ctx, "host.get_all", session)
			qt.Assert(t, qt.IsNil(err))
			qt.Check(t, qt.DeepEquals(hosts.([]any), []any{p.Coordinator.HostRef(), p.Member.HostRef()}))
			_, err = c.Call(ctx, "VM.get_uuid", session, "OpaqueRef:none")
			qt.Check(t, qt.ErrorMatches(err, ".*HANDLE_INVALID.*"))
			_, err = c.Call(ctx, "session.logout", session)
			qt.Check(t, qt.IsNil(err))
			_, err = c.Call(ctx, "VM.get_all", session)
			qt.Check(t, qt.ErrorMatches(err, ".*SESSION_INVALID.*"))
		}
	}
}

// TestPoolMemberFromOutside calls the member as those do who take it for the
// coordinator.
func TestPoolMemberFromOutside(t *testing.T) {
	p := startPool(t, testenv.PoolOptions{})
	ctx := timeout(t, 20*time.Second)
	outside := func(d *testenv.Dom0, shape client.Shape) *client.Client {
		return client.Dial(func(ctx context.Context) (net.Conn, error) { return d.Dial(ctx, "tcp", d.Addr().String()) }, client.Options{Shape: shape})
	}
	for _, shape := range []client.Shape{client.Python, client.Node, client.JSON1} {
		_, err := outside(p.Member, shape).Login(ctx)
		qt.Check(t, qt.ErrorMatches(err, ".*HOST_IS_SLAVE 10.197.0.1"))
		session, err := outside(p.Coordinator, shape).Login(ctx)
		qt.Assert(t, qt.IsNil(err))
		_, err = outside(p.Member, shape).Call(ctx, "VM.get_all", session)
		qt.Check(t, qt.ErrorMatches(err, ".*HOST_IS_SLAVE 10.197.0.1"))
		_, err = outside(p.Member, shape).Call(ctx, "VM.get_all", "OpaqueRef:none")
		qt.Check(t, qt.ErrorMatches(err, ".*SESSION_INVALID OpaqueRef:none"))
	}
}

// ancestors are the entries from the root to e, as "host kind name".
func ancestors(l *truth.Log, e truth.Entry) string {
	var out []string
	for _, a := range l.Path(e.ID) {
		out = append(out, fmt.Sprintf("%s %s %s", a.Host, a.Kind, a.Name))
	}
	return strings.Join(out, " / ")
}

func TestPoolForwards(t *testing.T) {
	p := startPool(t, testenv.PoolOptions{Options: testenv.Options{VMs: 4}})
	ctx := timeout(t, 60*time.Second)
	c := client.Unix(p.Coordinator.XapiSocket(), client.Options{})
	session, err := c.Login(ctx)
	qt.Assert(t, qt.IsNil(err))

	// The first VM that is at home on the member, by itself; the next one in the background.
	call(t, ctx, c, false, "VM.start", session, p.VMs()[1].Ref, false, false)
	call(t, ctx, c, true, "VM.start", session, p.VMs()[3].Ref, false, false)
	// One that is at home on the coordinator, told to run on the member.
	call(t, ctx, c, false, "VM.start_on", session, p.VMs()[0].Ref, p.Member.HostRef(), false, false)
	// And one that stays.
	call(t, ctx, c, false, "VM.start", session, p.VMs()[2].Ref, false, false)
	home, err := c.Call(ctx, "VM.get_record", session, p.VMs()[0].Ref)
	qt.Assert(t, qt.IsNil(err))
	qt.Check(t, qt.Equals(home.(map[string]any)["resident_on"], any(p.Member.HostRef())))
	qt.Check(t, qt.Equals(home.(map[string]any)["power_state"], any("Running")))
	// A call that finds its host by where the VM is.
	call(t, ctx, c, false, "VM.hard_shutdown", session, p.VMs()[0].Ref)

	l, err := p.Truth()
	qt.Assert(t, qt.IsNil(err))
	var got []string
	for _, e := range l.Find(truth.Operation, "VM_start") {
		got = append(got, ancestors(l, e))
	}
	rest := " / member send send org.xen.xapi.xenops.classic VM.start / member rpc VM.start / member operation VM_start"
	qt.Check(t, qt.DeepEquals(got, []string{
		"coordinator api VM.start / coordinator client VM.start / member api VM.start" + rest,
		"coordinator api Async.VM.start / coordinator task Async.VM.start / coordinator client VM.start / member api VM.start" + rest,
		"coordinator api VM.start_on / coordinator client VM.start / member api VM.start" + rest,
		"coordinator api VM.start" + strings.ReplaceAll(rest, "member", "coordinator"),
	}))
	// The member's part has the task's reference.
	for _, name := range []string{"VM.start", "Async.VM.start", "VM.start_on"} {
		tag := l.Find(truth.API, name)[0].Tag
		if name == "Async.VM.start" {
			tag = l.Find(truth.Task, name)[0].Tag
		}
		found := false
		for _, e := range l.Find(truth.API, "VM.start") {
			found = found || e.Host == "member" && e.Tag == tag
		}
		qt.Check(t, qt.IsTrue(found), qt.Commentf("%s %s", name, tag))
		devlog, err := os.ReadFile(filepath.Join(p.Member.Dir(), "devlog"))
		qt.Assert(t, qt.IsNil(err))
		qt.Check(t, qt.StringContains(string(devlog), "|"+name+" "+tag+"|"))
	}
	// Each call that a host makes is one that the other serves.
	for _, e := range l.Entries {
		if e.Kind == truth.Client {
			children := l.Children(e.ID)
			qt.Assert(t, qt.HasLen(children, 1), qt.Commentf("%+v", e))
			qt.Check(t, qt.Equals(children[0].Kind, truth.API))
			qt.Check(t, qt.Equals(children[0].Name, e.Name))
			qt.Check(t, qt.Not(qt.Equals(children[0].Host, e.Host)))
		}
	}
}

func TestPoolCommandLine(t *testing.T) {
	p := startPool(t, testenv.PoolOptions{Options: testenv.Options{VMs: 2, Background: true}})
	ctx := timeout(t, 60*time.Second)
	c := client.Unix(p.Member.XapiSocket(), client.Options{Traceparent: "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"})
	for i, v := range p.VMs() {
		out, err := c.Xe(ctx, "vm-start", "uuid="+v.UUID)
		qt.Assert(t, qt.IsNil(err), qt.Commentf("%d: %s", i, out))
	}
	_, err := c.Xe(ctx, "vm-start", "uuid="+p.VMs()[0].UUID)
	qt.Check(t, qt.ErrorIs(err, client.ErrCommand))
	out, err := c.Xe(ctx, "vm-list")
	qt.Assert(t, qt.IsNil(err))
	qt.Check(t, qt.Equals(strings.Count(out, "running"), 2), qt.Commentf("%s", out))
	time.Sleep(1500 * time.Millisecond) // for the member to look after itself

	l, err := p.Truth()
	qt.Assert(t, qt.IsNil(err))
	// Both commands are the coordinator's: one VM runs here, the other comes back.
	var got []string
	for _, e := range l.Find(truth.Operation, "VM_start") {
		got = append(got, ancestors(l, e))
	}
	const began = "member api xe vm-start / member client POST /cli / coordinator api xe vm-start / "
	rest := "coordinator send send org.xen.xapi.xenops.classic VM.start / coordinator rpc VM.start / coordinator operation VM_start"
	qt.Check(t, qt.DeepEquals(got, []string{
		began + rest,
		began + "coordinator client VM.start / member api VM.start / " + strings.ReplaceAll(rest, "coordinator", "member"),
	}))
	for _, e := range l.Find(truth.API, "xe vm-start") {
		qt.Check(t, qt.Equals(e.Traceparent != "", e.Host == "member"))
	}
	for _, name := range []string{"session.slave_login", "event.from", "session.logout"} {
		calls := l.Find(truth.Client, name)
		qt.Assert(t, qt.Not(qt.HasLen(calls, 0)), qt.Commentf("%s", name))
		qt.Check(t, qt.IsTrue(calls[0].Background))
		qt.Check(t, qt.HasLen(l.Children(calls[0].ID), 1), qt.Commentf("%s", name))
		qt.Check(t, qt.Equals(calls[0].Err, ""), qt.Commentf("%s", name))
	}
}

// TestPoolSurvivesRestarts restarts the toolstack of either host: connections
// between them are broken, and made again.
func TestPoolSurvivesRestarts(t *testing.T) {
	p := startPool(t, testenv.PoolOptions{Options: testenv.Options{VMs: 6}})
	ctx := timeout(t, 60*time.Second)
	for i, restart := range []func() error{
		func() error { return nil },
		func() error { return p.Member.Restart(config.Toolstack, testenv.Outage{}) },
		func() error { return p.Coordinator.Restart(config.Xapi, testenv.Outage{}) },
	} {
		qt.Assert(t, qt.IsNil(restart()))
		c := client.Unix(p.Coordinator.XapiSocket(), client.Options{})
		session, err := c.Login(ctx)
		qt.Assert(t, qt.IsNil(err), qt.Commentf("%d", i))
		call(t, ctx, c, false, "VM.start", session, p.VMs()[2*i+1].Ref, false, false)
		m := client.Unix(p.Member.XapiSocket(), client.Options{})
		if session, err = m.Login(ctx); err == nil {
			_, err = m.Call(ctx, "VM.get_all", session)
		}
		qt.Assert(t, qt.IsNil(err), qt.Commentf("%d", i))
	}
}

// TestPoolLeavesNothing looks for a process in the hosts' network namespaces after
// the pool is closed: they are nobody's then, and gone.
func TestPoolLeavesNothing(t *testing.T) {
	p := startPool(t, testenv.PoolOptions{})
	space := func(pid string) string {
		s, _ := os.Readlink(filepath.Join("/proc", pid, "ns/net")) // it may have ended
		return s
	}
	own := map[string]string{}
	for _, d := range p.Hosts() {
		s := space(fmt.Sprint(d.PID("xapi")))
		qt.Assert(t, qt.Not(qt.Equals(s, "")))
		qt.Assert(t, qt.Not(qt.Equals(s, space("self"))))
		own[s] = d.HostName()
	}
	qt.Assert(t, qt.HasLen(own, 2))
	in := func() []string {
		var out []string
		tasks, _ := filepath.Glob("/proc/[0-9]*/task/*/ns/net")
		for _, name := range tasks {
			if s, err := os.Readlink(name); err == nil && own[s] != "" {
				out = append(out, own[s]+" "+name)
			}
		}
		return out
	}
	qt.Assert(t, qt.Not(qt.HasLen(in(), 0)))
	qt.Assert(t, qt.IsNil(p.Close()))
	for range 100 { // stunnel ends by itself, when it has nobody left
		if len(in()) == 0 {
			return
		}
		time.Sleep(20 * time.Millisecond)
	}
	t.Errorf("left: %v", in())
}

// TestPoolChecksCertificates takes the member's certificate out of those that the
// coordinator knows: the member is not talked to.
func TestPoolChecksCertificates(t *testing.T) {
	p := startPool(t, testenv.PoolOptions{Options: testenv.Options{VMs: 2}})
	known := p.Coordinator.Path(config.PoolCertificates)
	b, err := os.ReadFile(known)
	qt.Assert(t, qt.IsNil(err))
	qt.Assert(t, qt.Equals(bytes.Count(b, []byte("BEGIN CERTIFICATE")), 2))
	own, _, _ := bytes.Cut(b, []byte("-----END CERTIFICATE-----\n"))
	qt.Assert(t, qt.IsNil(os.WriteFile(known, append(own, "-----END CERTIFICATE-----\n"...), 0o400)))

	ctx := timeout(t, 60*time.Second)
	c := client.Unix(p.Coordinator.XapiSocket(), client.Options{})
	session, err := c.Login(ctx)
	qt.Assert(t, qt.IsNil(err))
	hasty, cancel := context.WithTimeout(ctx, 2*time.Second) // xapi tries for longer
	defer cancel()
	_, err = client.Unix(p.Coordinator.XapiSocket(), client.Options{}).Call(hasty, "VM.start", session, p.VMs()[1].Ref, false, false)
	qt.Assert(t, qt.IsNotNil(err))
	logs, err := filepath.Glob(filepath.Join(p.Coordinator.Dir(), "stunnel-*.log"))
	qt.Assert(t, qt.IsNil(err))
	qt.Assert(t, qt.HasLen(logs, 1))
	said, err := os.ReadFile(logs[0])
	qt.Assert(t, qt.IsNil(err))
	qt.Check(t, qt.StringContains(string(said), "certificate verify failed"))
	call(t, ctx, c, false, "VM.start", session, p.VMs()[0].Ref, false, false) // the coordinator's own
}

// exchange is what one process does on the first connection on which it writes
// what matches, from there to the end of the answer: what it wrote, and the sizes
// that it asked for while reading.
func exchange(t *testing.T, calls []*strace.Call, match string) (wrote []string, asked []int64, reply string) {
	t.Helper()
	re := regexp.MustCompile(match)
	for i, c := range calls {
		if c.Name != "write" || !re.Match(moved(c)) {
			continue
		}
		for _, d := range calls[i:] {
			if d.TID != c.TID || fdOf(d) != fdOf(c) {
				continue
			}
			switch {
			case d.Name == "write" && reply == "":
				wrote = append(wrote, string(moved(d)))
			case d.Name == "read":
				asked = append(asked, asks(d))
				reply += string(moved(d))
			default:
				return wrote, asked, reply
			}
		}
		return wrote, asked, reply
	}
	t.Fatalf("nobody writes %s", match)
	return nil, nil, ""
}

func TestPoolOnTheWire(t *testing.T) {
	const traceparent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-00"
	for _, native := range []config.Native{config.NativeOff, config.NativeOn} {
		t.Run(fmt.Sprint(native), func(t *testing.T) {
			p := startPool(t, testenv.PoolOptions{Options: testenv.Options{VMs: 2, Knobs: testenv.Knobs{Native: native}}})
			ctx := timeout(t, 60*time.Second)
			c := client.Unix(p.Coordinator.XapiSocket(), client.Options{Traceparent: traceparent})
			session, err := c.Login(ctx)
			qt.Assert(t, qt.IsNil(err))
			calls := watch(t, p.Coordinator, []string{"xapi"}, func() {
				call(t, ctx, c, false, "VM.start", session, p.VMs()[1].Ref, false, false)
			})
			trace := ""
			if native != config.NativeOff {
				trace = `traceparent: 00-0af7651916cd43dd8448eb211c80319c-[0-9a-f]{16}-01\r\nbaggage: span.depth=\d+\r\n`
			}
			alive, _, _ := exchange(t, calls, "system.isAlive:")
			qt.Assert(t, qt.HasLen(alive, 1))
			qt.Check(t, qt.Matches(alive[0], `POST / HTTP/1.1\r\ncontent-length: \d+\r\nuser-agent: xen-api-libs/\S+\r\nconnection: keep-alive\r\n\r\n<methodCall><methodName>system.isAlive:\S+</methodName>.*`))
			wrote, asked, reply := exchange(t, calls, `"method":"VM.start"`)
			qt.Assert(t, qt.HasLen(wrote, 1))
			qt.Check(t, qt.Matches(wrote[0], `POST /jsonrpc HTTP/1.1\r\ncontent-length: \d+\r\nuser-agent: xen-api-libs/\S+\r\nconnection: keep-alive\r\ntask-id: OpaqueRef:\S{36}\r\n`+trace+
				`\r\n\{"method":"VM.start","params":\["OpaqueRef:\S{36}","`+p.VMs()[1].Ref+`",false,false\],"id":\d+\}`))
			head, body, ok := strings.Cut(reply, "\r\n\r\n")
			qt.Assert(t, qt.IsTrue(ok))
			qt.Check(t, qt.IsTrue(strings.HasPrefix(head, "HTTP/1.1 200 OK\r\ncontent-length: ")), qt.Commentf("%q", head))
			for i, n := range asked[:len(head)+4] {
				qt.Assert(t, qt.Equals(n, 1), qt.Commentf("read %d", i))
			}
			qt.Check(t, qt.DeepEquals(asked[len(head)+4:], []int64{int64(len(body))}))

			// The other way: headers stay, in xapi's order, behind a FRAME.
			m := client.Unix(p.Member.XapiSocket(), client.Options{Traceparent: traceparent, Baggage: "a=b", Shape: client.Node})
			calls = watch(t, p.Member, []string{"xapi"}, func() {
				call(t, ctx, m, false, "VM.get_uuid", session, p.VMs()[0].Ref)
			})
			wrote, _, reply = exchange(t, calls, `"method":"VM.get_uuid"`)
			qt.Assert(t, qt.HasLen(wrote, 1))
			last := `baggage: a=b\r\ntraceparent: ` + traceparent + `\r\n`
			if native != config.NativeOff {
				last = trace
			}
			qt.Check(t, qt.Matches(wrote[0], `FRAME \d{12}POST /jsonrpc HTTP/1.1\r\naccept: application/json\r\ncontent-length: \d+\r\ncontent-type: application/json\r\nhost: localhost\r\nuser-agent: node\r\nconnection: keep-alive\r\n`+last+
				`\r\n\{"method":"VM.get_uuid","params":\["`+session+`","`+p.VMs()[0].Ref+`"\],"id":\d+\}`))
			qt.Check(t, qt.IsTrue(bytes.HasPrefix([]byte(reply), []byte("FRAME 000000000"))))
		})
	}
}
