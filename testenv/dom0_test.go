//go:build linux

package testenv_test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/go-quicktest/qt"

	"github.com/xenserver/dtagent/testenv"
	"github.com/xenserver/dtagent/testenv/client"
	"github.com/xenserver/dtagent/testenv/config"
	"github.com/xenserver/dtagent/testenv/truth"
)

var binary string // built once

func TestMain(m *testing.M) {
	dir, err := os.MkdirTemp("", "dom0-bin-")
	if err == nil && os.Geteuid() == 0 {
		binary, err = testenv.Build(context.Background(), dir)
	}
	code := 1
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
	} else {
		code = m.Run()
	}
	os.RemoveAll(dir)
	os.Exit(code)
}

// start starts a dom0 for one test.
func start(t *testing.T, o testenv.Options) *testenv.Dom0 {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root: mount namespaces")
	}
	o.Binary = binary
	o.Dir = t.TempDir()
	d, err := testenv.Start(context.Background(), o)
	qt.Assert(t, qt.IsNil(err))
	t.Cleanup(func() {
		qt.Check(t, qt.IsNil(d.Close()))
		if t.Failed() {
			for _, name := range []string{"init", "xapi", "xenopsd-xc", "message-switch", "stunnel"} {
				if b, _ := os.ReadFile(filepath.Join(o.Dir, name+".log")); len(b) > 0 {
					t.Logf("%s: %.4000s", name, b)
				}
			}
		}
	})
	return d
}

func timeout(t *testing.T, d time.Duration) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), d)
	t.Cleanup(cancel)
	return ctx
}

func failure(t *testing.T, err error) client.Failure {
	t.Helper()
	var f *client.Failure
	qt.Assert(t, qt.ErrorAs(err, &f))
	return *f
}

const traceparent = "00-3100a3ead5c4210a99c27e3e5578158c-34991b6261208b64-00"

func TestStartStop(t *testing.T) {
	d := start(t, testenv.Options{})
	for _, name := range []string{"xapi", "message-switch", "xenopsd-xc", "stunnel", "rsyslogd"} {
		pid := d.PID(name)
		comm, err := os.ReadFile(fmt.Sprintf("/proc/%d/comm", pid))
		qt.Assert(t, qt.IsNil(err))
		qt.Assert(t, qt.Equals(strings.TrimSpace(string(comm)), name))
		exe, err := os.Readlink(fmt.Sprintf("/proc/%d/exe", pid))
		qt.Assert(t, qt.IsNil(err))
		qt.Assert(t, qt.Equals(filepath.Base(exe), name))
	}
	_, err := os.Stat("/dev/log")
	qt.Check(t, qt.ErrorIs(err, os.ErrNotExist), qt.Commentf("the machine has a /dev/log now"))
	inside, err := d.Command(timeout(t, 10*time.Second), "cat", "/etc/xensource-inventory").CombinedOutput()
	qt.Assert(t, qt.IsNil(err))
	qt.Assert(t, qt.StringContains(string(inside), "INSTALLATION_UUID='"+d.HostUUID()+"'"))
	pids := d.Processes()
	qt.Assert(t, qt.IsNil(d.Close()))
	for name, pid := range pids {
		_, err := os.Stat(fmt.Sprintf("/proc/%d", pid))
		qt.Check(t, qt.ErrorIs(err, os.ErrNotExist), qt.Commentf("%s is still there", name))
	}
}

func TestCalls(t *testing.T) {
	d := start(t, testenv.Options{VMs: 2})
	ctx := timeout(t, 30*time.Second)
	ways := map[string]func(client.Options) *client.Client{
		"unix": func(o client.Options) *client.Client { return client.Unix(d.XapiSocket(), o) },
		"tcp":  func(o client.Options) *client.Client { return client.TCP(d.Addr().String(), o) },
		"tcp6": func(o client.Options) *client.Client { return client.TCP(d.Addr6().String(), o) },
		"tls":  func(o client.Options) *client.Client { return client.TLS(d.TLSAddr().String(), o) },
	}
	if l, err := net.Listen("tcp6", "[::1]:0"); err != nil {
		t.Logf("tcp6 left out: needs IPv6: %v", err)
		delete(ways, "tcp6")
	} else {
		l.Close()
	}
	for way, dial := range ways {
		for _, o := range []client.Options{
			{}, {KeepAlive: true}, {Shape: client.Node, KeepAlive: true}, {Shape: client.JSON1}, {Framed: true, Traceparent: traceparent},
		} {
			t.Run(fmt.Sprintf("%s/%d/keep=%v/framed=%v", way, o.Shape, o.KeepAlive, o.Framed), func(t *testing.T) {
				c := dial(o)
				defer c.Close()
				session, err := c.Login(ctx)
				qt.Assert(t, qt.IsNil(err))
				vms, err := c.Call(ctx, "VM.get_by_name_label", session, "vm-2")
				qt.Assert(t, qt.IsNil(err))
				qt.Assert(t, qt.DeepEquals(vms, any([]any{d.VMs()[1].Ref})))
				rec, err := c.Call(ctx, "VM.get_record", session, d.VMs()[1].Ref)
				qt.Assert(t, qt.IsNil(err))
				qt.Assert(t, qt.Equals(rec.(map[string]any)["power_state"], any("Halted")))

				_, err = c.Call(ctx, "VM.get_record", session, "OpaqueRef:nonsense")
				qt.Assert(t, qt.DeepEquals(failure(t, err), client.Failure{Code: "HANDLE_INVALID", Params: []string{"VM", "OpaqueRef:nonsense"}}))
				_, err = c.Call(ctx, "VM.get_all", "OpaqueRef:old")
				qt.Assert(t, qt.Equals(failure(t, err).Code, "SESSION_INVALID"))
				_, err = c.Call(ctx, "VM.fly", session)
				qt.Assert(t, qt.DeepEquals(failure(t, err), client.Failure{Code: "MESSAGE_METHOD_UNKNOWN", Params: []string{"VM.fly"}}))
				_, err = c.Call(ctx, "VM.hard_shutdown", session, d.VMs()[1].Ref)
				qt.Assert(t, qt.DeepEquals(failure(t, err), client.Failure{Code: "VM_BAD_POWER_STATE", Params: []string{d.VMs()[1].Ref, "running", "halted"}}))
				_, err = c.Call(ctx, "session.logout", session)
				qt.Assert(t, qt.IsNil(err))
			})
		}
	}
}

// startTree is what lies below VM.start, by kind and name, as far as it is the same
// each time.
var startTree = []string{
	"send org.xen.xapi.xenops.classic VM.exists", "send org.xen.xapi.xenops.classic VM.import_metadata",
	"send org.xen.xapi.xenops.classic VM.start", "send org.xen.xapi.xenops.classic VM.unpause",
	"send org.xen.xapi.xenops.classic UPDATES.last_id", "send org.xen.xapi.xenops.classic Task.stat",
	"send org.xen.xapi.xenops.classic Task.destroy", "send org.xen.xapi.xenops.classic UPDATES.refresh_vm",
	"send org.xen.xapi.xenops.classic UPDATES.inject_barrier",
	"VM.exists", "VM.import_metadata", "Atomic (VM_import_metadata)", "VM_import_metadata", "VM.start", "VM.unpause",
	"VM_start", "VM_hook_script", "VM_create", "VM_build", "xenguest", "VBD_set_active", "VBD_plug", "VIF_set_active", "VIF_plug",
	"VM_create_device_model", "VM_set_domain_action_request", "Atomic (VM_unpause)", "VM_unpause",
	"send org.xen.xapi.storage VDI.attach3", "VDI.attach3", "send org.xen.xapi.storage.lvm VDI.attach3",
	"LVMSR vdi_attach", "LVMSR vdi_activate", "VDI.get_by_uuid", "VDI.get_sm_config", "tap-ctl",
}

func below(l *truth.Log, id string, seen map[string][]truth.Entry) {
	for _, c := range l.Children(id) {
		seen[c.Name] = append(seen[c.Name], c)
		below(l, c.ID, seen)
	}
}

func TestStartTruth(t *testing.T) {
	d := start(t, testenv.Options{Disks: 2, NICs: 2, Background: true})
	ctx := timeout(t, 60*time.Second)
	for _, native := range []config.Native{config.NativeOff, config.NativeOn, config.NativeBare} {
		for _, async := range []bool{false, true} {
			t.Run(fmt.Sprintf("native=%d/async=%v", native, async), func(t *testing.T) {
				qt.Assert(t, qt.IsNil(d.Set(testenv.Knobs{Native: native, LogTrace: true})))
				c := client.Unix(d.XapiSocket(), client.Options{Traceparent: traceparent})
				session, err := c.Login(ctx)
				qt.Assert(t, qt.IsNil(err))
				vm := d.VMs()[0]
				before, err := d.Truth()
				qt.Assert(t, qt.IsNil(err))
				name := call(t, ctx, c, async, "VM.start", session, vm.Ref, false, false)
				state, err := c.Call(ctx, "VM.get_power_state", session, vm.Ref)
				qt.Assert(t, qt.IsNil(err))
				qt.Assert(t, qt.Equals(state, any("Running")))
				l, err := d.Truth()
				qt.Assert(t, qt.IsNil(err))

				apis := l.Find(truth.API, name)
				api := apis[len(apis)-1]
				qt.Assert(t, qt.Equals(api.Traceparent, traceparent))
				seen := map[string][]truth.Entry{}
				below(l, api.ID, seen)
				for _, want := range startTree {
					qt.Check(t, qt.IsTrue(len(seen[want]) > 0), qt.Commentf("no %s", want))
				}
				qt.Check(t, qt.HasLen(seen["LVMSR vdi_attach"], 2))
				for _, p := range seen["VBD_plug"] { // each in a worker of the nested pool, below VM_start
					var kinds []string
					for _, a := range l.Path(p.ID) {
						kinds = append(kinds, a.Name)
					}
					path := strings.Join(kinds, " > ")
					qt.Check(t, qt.StringContains(path, "VM_start > Parallel ("))
					qt.Check(t, qt.StringContains(path, "Nested_parallel ("))
				}
				for _, e := range l.Entries[len(before.Entries):] {
					qt.Check(t, qt.IsTrue(e.End >= e.Start), qt.Commentf("%+v", e))
					if p, ok := l.ByID(e.Parent); ok {
						qt.Check(t, qt.IsTrue(p.Start <= e.Start), qt.Commentf("%s begins before its parent %s", e.Name, p.Name))
					}
				}
				if t.Failed() {
					t.Log(l.Tree(api.ID))
				}
				call(t, ctx, c, async, "VM.clean_shutdown", session, vm.Ref)
				state, err = c.Call(ctx, "VM.get_power_state", session, vm.Ref)
				qt.Assert(t, qt.IsNil(err))
				qt.Assert(t, qt.Equals(state, any("Halted")))
			})
		}
	}
}

// call makes a call, or the same in the background, and waits for its end.
func call(t *testing.T, ctx context.Context, c *client.Client, async bool, method string, params ...any) string {
	t.Helper()
	if !async {
		_, err := c.Call(ctx, method, params...)
		qt.Assert(t, qt.IsNil(err))
		return method
	}
	task, err := c.Call(ctx, "Async."+method, params...)
	qt.Assert(t, qt.IsNil(err))
	for {
		s, err := c.Call(ctx, "task.get_status", params[0], task)
		qt.Assert(t, qt.IsNil(err))
		if s != "pending" {
			qt.Assert(t, qt.Equals(s, any("success")))
			return "Async." + method
		}
		time.Sleep(5 * time.Millisecond)
	}
}

func TestKnobs(t *testing.T) {
	d := start(t, testenv.Options{})
	ctx := timeout(t, 60*time.Second)
	c := client.Unix(d.XapiSocket(), client.Options{KeepAlive: true})
	defer c.Close()
	session, err := c.Login(ctx)
	qt.Assert(t, qt.IsNil(err))
	vm := d.VMs()[0].Ref
	const long = 80 * time.Millisecond
	layers := []config.Layer{config.LayerAPI, config.LayerFsync, config.LayerLock, config.LayerXenguest, config.LayerSM, config.LayerSwitch}
	for _, l := range layers {
		qt.Assert(t, qt.IsNil(d.Set(testenv.Knobs{Delay: map[config.Layer]time.Duration{l: long}})))
		begin := time.Now()
		_, err := c.Call(ctx, "VM.start", session, vm, false, false)
		qt.Assert(t, qt.IsNil(err))
		qt.Check(t, qt.IsTrue(time.Since(begin) >= long), qt.Commentf("%s", l))
		qt.Assert(t, qt.IsNil(d.Set(testenv.Knobs{})))
		_, err = c.Call(ctx, "VM.hard_shutdown", session, vm)
		qt.Assert(t, qt.IsNil(err))
	}
	log, err := d.Truth()
	qt.Assert(t, qt.IsNil(err))
	for _, l := range []config.Layer{config.LayerAPI, config.LayerFsync, config.LayerLock, config.LayerSwitch} {
		qt.Check(t, qt.IsTrue(len(log.Find(truth.Delay, string(l))) > 0), qt.Commentf("%s", l))
	}
	for _, f := range [][3]string{{"VM_build", "Domain_build_failed", "INTERNAL_ERROR"}, {"vdi_attach", "SR_BACKEND_FAILURE_46", "SR_BACKEND_FAILURE_46"}} {
		qt.Assert(t, qt.IsNil(d.Set(testenv.Knobs{Fail: map[string]string{f[0]: f[1]}})))
		_, err = c.Call(ctx, "VM.start", session, vm, false, false)
		qt.Check(t, qt.Equals(failure(t, err).Code, f[2]), qt.Commentf("%s", f[0]))
		qt.Assert(t, qt.IsNil(d.Set(testenv.Knobs{})))
	}
	qt.Assert(t, qt.IsNil(d.Set(testenv.Knobs{Native: config.NativeOn, SMAPI: true})))
	before := len(log.Find(truth.Process, "LVMSR vdi_attach"))
	_, err = c.Call(ctx, "VM.start", session, vm, false, false)
	qt.Assert(t, qt.IsNil(err))
	log, err = d.Truth()
	qt.Assert(t, qt.IsNil(err))
	qt.Check(t, qt.IsTrue(len(log.Find(truth.Process, "LVMSR vdi_attach")) > before))
	_, err = c.Call(ctx, "VM.hard_shutdown", session, vm)
	qt.Assert(t, qt.IsNil(err))
	qt.Assert(t, qt.IsNil(d.Set(testenv.Knobs{})))
	// Nothing of it has stayed behind.
	_, err = c.Call(ctx, "VM.start", session, vm, false, false)
	qt.Assert(t, qt.IsNil(err))
}

func TestXe(t *testing.T) {
	d := start(t, testenv.Options{})
	ctx := timeout(t, 30*time.Second)
	c := client.Unix(d.XapiSocket(), client.Options{Traceparent: traceparent})
	out, err := c.Xe(ctx, "vm-list", "params=uuid")
	qt.Assert(t, qt.IsNil(err))
	qt.Assert(t, qt.StringContains(out, "uuid ( RO)    : "+d.VMs()[0].UUID))
	_, err = c.Xe(ctx, "vm-start", "uuid="+d.VMs()[0].UUID)
	qt.Assert(t, qt.IsNil(err))
	_, err = c.Xe(ctx, "vm-start", "uuid="+d.VMs()[0].UUID)
	qt.Assert(t, qt.ErrorIs(err, client.ErrCommand))
}

func TestBadRequests(t *testing.T) {
	d := start(t, testenv.Options{})
	ctx := timeout(t, 30*time.Second)
	unix, tcp := client.Unix(d.XapiSocket(), client.Options{}), client.TCP(d.Addr().String(), client.Options{})
	for name, c := range map[string]struct {
		c    *client.Client
		send string
		want string
	}{
		"long header, unix": {unix, "POST / HTTP/1.1\r\nx: " + strings.Repeat("y", 100<<10) + "\r\n\r\n", "HTTP/1.1 500 "},
		"long header, tcp":  {tcp, "POST / HTTP/1.1\r\nx: " + strings.Repeat("y", 1000) + "\r\n\r\n", "HTTP/1.1 431 "},
		"garbage":           {unix, strings.Repeat("\x00\xff\x01", 20) + "\r\n\r\n", "HTTP/1.1 400 "},
		"half a header":     {unix, "POST / HTTP/1.1\r\nHost:", ""},
		"no URI":            {unix, "GET /nothing/here HTTP/1.1\r\n\r\n", "HTTP/1.1 403 "},
		"no length":         {unix, "POST / HTTP/1.1\r\nHost: x\r\n\r\n", "HTTP/1.1 400 "},
		"no XML":            {unix, "POST / HTTP/1.1\r\ncontent-length: 5\r\n\r\nhello", "HTTP/1.1 500 "},
		"half JSON":         {unix, "POST /jsonrpc HTTP/1.1\r\ncontent-length: 10\r\n\r\n{\"method\":", "HTTP/1.1 500 "},
		"bad depth":         {unix, "POST / HTTP/1.1\r\ntraceparent: " + traceparent + "\r\nbaggage: span.depth=x\r\ncontent-length: 0\r\n\r\n", "HTTP/1.1 500 "},
		"HTTP/1.0":          {unix, "GET /rrd_updates?start=1 HTTP/1.0\r\n\r\n", "HTTP/1.1 200 "},
	} {
		got, err := c.c.Raw(ctx, []byte(c.send))
		if c.want == "" || !strings.HasPrefix(c.want, "HTTP/1.1 2") {
			err = nil // the server may be gone before all was sent
		}
		qt.Check(t, qt.IsNil(err), qt.Commentf("%s", name))
		qt.Check(t, qt.IsTrue(strings.HasPrefix(string(got), c.want)), qt.Commentf("%s: %.100q", name, got))
	}
	status, _, err := unix.Request(ctx, "PUT", "/import?session_id=x&task_id=y", make([]byte, 300<<10))
	qt.Assert(t, qt.IsNil(err))
	qt.Assert(t, qt.Equals(status, 200))
	_, err = unix.Login(ctx) // all of that has done it no harm
	qt.Assert(t, qt.IsNil(err))
}

func TestConcurrentLifecycles(t *testing.T) {
	d := start(t, testenv.Options{VMs: 6})
	ctx := timeout(t, 60*time.Second)
	errs := make(chan error, 6)
	for _, vm := range d.VMs() {
		go func() {
			c := client.TCP(d.Addr().String(), client.Options{Shape: client.Node})
			session, err := c.Login(ctx)
			for range 3 {
				for _, call := range [][]any{{"VM.start", session, vm.Ref, false, false}, {"VM.shutdown", session, vm.Ref}} {
					if err == nil {
						_, err = c.Call(ctx, call[0].(string), call[1:]...)
					}
				}
			}
			errs <- err
		}()
	}
	var all error
	for range d.VMs() {
		all = errors.Join(all, <-errs)
	}
	qt.Assert(t, qt.IsNil(all))
}
