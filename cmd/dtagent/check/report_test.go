package check

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/go-quicktest/qt"

	"github.com/xenserver/dtagent/cmd/dtagent/control"
	"github.com/xenserver/dtagent/probes/recording"
)

var update = flag.Bool("update", false, "rewrite the golden files")

// agentOf runs an agent's control socket that tells s.
func agentOf(t testing.TB, s control.Status) (socket string) {
	t.Helper()
	socket = filepath.Join(t.TempDir(), "control.sock")
	l, err := control.Listen(socket)
	qt.Assert(t, qt.IsNil(err))
	srv := control.NewServer(control.Sources{
		Status: func() control.Status { return s },
		Record: func() (*recording.Header, *recording.Tap, error) { return nil, nil, os.ErrInvalid },
	}, slog.New(slog.DiscardHandler))
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = srv.Serve(l)
	}()
	t.Cleanup(func() { _ = srv.Close(); <-done })
	return socket
}

func TestRunning(t *testing.T) {
	ctx := context.Background()
	s := control.Status{Version: "v1", PID: 77, UptimeSeconds: 61}
	qt.Check(t, qt.DeepEquals(running(ctx, agentOf(t, s), "v1"), works("agent", "version v1 runs, pid 77, for 1m1s")))
	i := running(ctx, agentOf(t, s), "v2")
	qt.Check(t, qt.Equals(i.State, Wider))
	qt.Check(t, qt.Equals(i.Why, "this command is version v2"))
	s.Trouble = "probe stream: attach"
	i = running(ctx, agentOf(t, s), "v1")
	qt.Check(t, qt.Equals(i.State, Fails))
	qt.Check(t, qt.Equals(i.Why, "probe stream: attach"))
	qt.Check(t, qt.Equals(running(ctx, filepath.Join(t.TempDir(), "none"), "v1").State, Absent))
}

// scene is a dom0 of version 8 with something wrong at each place.
type scene struct {
	c    checker
	k    Kernel
	dirs map[string]string // what stands for it in golden files
}

func newScene(t testing.TB) *scene {
	t.Helper()
	s := &scene{dirs: map[string]string{}}
	dir := func(name string) string {
		d := t.TempDir()
		s.dirs[d] = name
		return d
	}
	s.c.host = fakeHost(t, with(map[string]string{
		Inventory:                 "PRODUCT_BRAND='XenServer'\nPRODUCT_VERSION='8.4.0'\nINSTALLATION_UUID='" + thisHost + "'\n",
		"/opt/xensource/sm/LVMSR": "x",
		"/usr/lib/systemd/system/dtagent.service": "[Unit]\n",
		"/run/systemd/system/x":                   "x",
	}))
	s.k = Kernel{Tier: "legacy", Items: s.c.facts()}
	items, hooks := fromBPF(oldChecks, oldHooks)
	s.k.Items, s.k.Hooks = append(s.k.Items, items...), hooks

	f := newFakeProc(t)
	bin := dir("/opt/xensource/bin")
	for pid, name := range map[int]string{10: "xapi", 11: "message-switch", 12: "squeezed"} {
		path := filepath.Join(bin, name)
		qt.Assert(t, qt.IsNil(os.WriteFile(path, []byte(field("v25.33.1")), 0o755)))
		if name == "squeezed" {
			path += " (deleted)"
		}
		f.process(pid, name, path)
	}
	local := dir("/etc/dtagent/observers.d")
	receiver := newReceiver(t, http.StatusAccepted, false)
	s.dirs[strings.TrimPrefix(receiver.URL, "http://")] = "127.0.0.1:9411"
	qt.Assert(t, qt.IsNil(os.WriteFile(filepath.Join(local, "a.json"), []byte(`{"name_label":"mine","uuid":"0f0e0000-0000-4000-8000-00000000000a","enabled":true,"endpoints":["`+strings.Replace(receiver.URL, "//", "//u:hunter2@", 1)+`/api/v2/spans"]}`), 0o600)))
	qt.Assert(t, qt.IsNil(os.WriteFile(filepath.Join(local, "b.json"), []byte("{\n  \"enabled\": tru\n}"), 0o600)))
	xapi := fakeXAPI(t, answers(`{"OpaqueRef:1":`+record("0f0e0000-0000-4000-8000-000000000001", "pool", "")+`}`))
	s.dirs[xapi] = "/var/lib/xcp/xapi"
	state := dir("/var/lib/dtagent")
	agent := filepath.Join(dir("/run/dtagent"), "control.sock")
	s.c.o = Options{Version: "v1", Proc: f.dir, ObserversDir: local, BugtoolDir: dir("/var/log/dt/zipkinv2/json"), XAPISocket: xapi, StateDir: state, Control: agent}
	return s
}

var free = regexp.MustCompile(`[0-9]+ MiB free`)

// plain is text without what differs from run to run.
func (s *scene) plain(text string) string {
	for d, name := range s.dirs {
		text = strings.ReplaceAll(text, d, name)
	}
	return free.ReplaceAllString(text, "4000 MiB free")
}

func golden(t testing.TB, name, got string) {
	t.Helper()
	path := filepath.Join("testdata", name)
	if *update {
		qt.Assert(t, qt.IsNil(os.MkdirAll("testdata", 0o755)))
		qt.Assert(t, qt.IsNil(os.WriteFile(path, []byte(got), 0o644)))
	}
	want, err := os.ReadFile(path)
	qt.Assert(t, qt.IsNil(err))
	qt.Check(t, qt.Equals(got, string(want)))
}

func TestReport(t *testing.T) {
	s := newScene(t)
	r := s.c.report(context.Background(), s.k, nil)
	r.Notes = nil          // whether this test is run as root
	if os.Geteuid() == 0 { // others see less of their directories
		qt.Check(t, qt.IsTrue(r.OK))
		qt.Check(t, qt.IsFalse(r.Strict()))
	}
	var text strings.Builder
	r.Print(&text, false)
	golden(t, "check.txt", s.plain(text.String()))
	text.Reset()
	r.Print(&text, true)
	qt.Check(t, qt.StringContains(text.String(), "stream: syscalls:sys_enter_read: by tracepoint\n"))

	j, err := json.MarshalIndent(r, "", "  ")
	qt.Assert(t, qt.IsNil(err))
	golden(t, "check.json", s.plain(string(j))+"\n")
	qt.Check(t, qt.Not(qt.StringContains(string(j)+text.String(), "hunter2")))
	qt.Check(t, qt.Not(qt.StringContains(string(j)+text.String(), "OpaqueRef:session")))
}

// The exit status is decided by what is needed, and with --strict by what is
// configured.
func TestVerdict(t *testing.T) {
	s := newScene(t)
	s.c.o.ObserversDir = filepath.Join(t.TempDir(), "none")
	good := s.c.report(context.Background(), s.k, nil)
	qt.Check(t, qt.IsTrue(good.OK))
	qt.Check(t, qt.IsTrue(good.Strict()))

	s.c.o.StateDir = "/proc/sys/dtagent" // where no directory can be made
	bad := s.c.report(context.Background(), s.k, nil)
	qt.Check(t, qt.IsFalse(bad.OK))
	qt.Check(t, qt.IsFalse(bad.Strict()))
	s.c.o.StateDir = ""
	s.c.o.SettingsErr = errors.New("x.conf:2: there is no setting")
	bad = s.c.report(context.Background(), s.k, nil)
	qt.Check(t, qt.IsFalse(bad.OK))
	qt.Check(t, qt.Equals(bad.Agent[0].Why, "x.conf:2: there is no setting"))
	s.c.o.SettingsErr = nil
	k := s.k
	k.Hooks = append(k.Hooks, Hook{Item: fails("stream: x", "not there", "").needed(), Probe: "stream"})
	bad = s.c.report(context.Background(), k, nil)
	qt.Check(t, qt.IsFalse(bad.OK))
}

// With nothing there the report is short and says what to do first.
func TestReportOfNothing(t *testing.T) {
	dir := t.TempDir()
	c := checker{host: fakeHost(t, nil), o: Options{Proc: t.TempDir(), ObserversDir: dir, Control: filepath.Join(dir, "none")}}
	r := c.report(context.Background(), Kernel{}, nil)
	var text strings.Builder
	r.Print(&text, false)
	qt.Check(t, qt.StringContains(text.String(), "none is in force, so nothing is traced: dtagent observer create"))
	qt.Check(t, qt.HasLen(r.Endpoints, 0))
	j, err := json.Marshal(r)
	qt.Assert(t, qt.IsNil(err))
	qt.Check(t, qt.Not(qt.StringContains(string(j), "null"))) // lists are lists
}
