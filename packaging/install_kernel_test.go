//go:build linux

package packaging

import (
	"bufio"
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/go-quicktest/qt"

	"github.com/xenserver/dtagent/cmd/dtagent/control"
	"github.com/xenserver/dtagent/cmd/dtagent/zipkin"
	"github.com/xenserver/dtagent/testenv"
	"github.com/xenserver/dtagent/testenv/client"
)

// needRoot skips tests that load eBPF and install packages.
func needRoot(t testing.TB) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root, for eBPF, for a mount namespace and to install packages in it")
	}
}

// newDom0 starts a simulated dom0, the processes that agents see.
func newDom0(t testing.TB) *testenv.Dom0 {
	t.Helper()
	needCommand(t, "gcc", "gcc")
	bin, err := testenv.Build(context.Background(), t.TempDir())
	qt.Assert(t, qt.IsNil(err))
	d, err := testenv.Start(context.Background(), testenv.Options{Binary: bin})
	qt.Assert(t, qt.IsNil(err))
	t.Cleanup(func() { qt.Check(t, qt.IsNil(d.Close())) })
	return d
}

// settings is what an administrator changes in the shipped file.
const settings = `
proc = "/dom0"
xapi-socket = ""
host-uuid = "6f0a4c9e-3f2a-4d0a-9d0e-0a2b8f4a7c11"
log-level = "debug"
`

// The whole life of each package: installed, configured, started as its unit says,
// upgraded while it traces, and removed with nothing left but spans.
func TestInstallKernel(t *testing.T) {
	needRoot(t)
	dom0 := newDom0(t)
	for _, k := range Kinds {
		t.Run(k.name(), func(t *testing.T) {
			if k.Format == "rpm" {
				needCommand(t, "rpm", "rpm")
			} else {
				needCommand(t, "dpkg", "dpkg")
				needCommand(t, "deb-systemd-helper", "init-system-helpers")
				needCommand(t, "systemctl", "systemd")
			}
			testLife(t, k, dom0)
		})
	}
}

func testLife(t *testing.T, k Kind, dom0 *testenv.Dom0) {
	h := newHost(t, dom0.ProcDir())
	before := h.files()

	// Nobody touched anything: nothing is left, and another installation begins anew.
	qt.Assert(t, qt.IsNil(h.install(k, pack(t, k, first))))
	qt.Assert(t, qt.Not(qt.DeepEquals(h.files(), before)))
	qt.Assert(t, qt.IsNil(h.remove(k)))
	qt.Assert(t, qt.DeepEquals(trimEmpty(h.files()), before))
	h.said()

	m := &manager{h: h}
	if k.Dist == "el7" {
		m.without = []string{"CAP_BPF", "CAP_PERFMON"} // Linux 4.19 does not know them
	}
	h.manage(m)
	t.Cleanup(func() {
		s, _ := m.now()
		qt.Check(t, qt.IsNil(m.do("stop")))
		if t.Failed() && s != nil {
			t.Logf("the agent's log:\n%s", s.log.String())
		}
	})

	// Installed: an RPM leaves it to presets and the administrator whether it runs.
	qt.Assert(t, qt.IsNil(h.install(k, pack(t, k, first))))
	switch k.Format {
	case "rpm":
		qt.Assert(t, qt.DeepEquals(h.said(), []string{"daemon-reload", "preset dtagent.service"}))
		s, _ := m.now()
		qt.Assert(t, qt.IsNil(s))
	case "deb":
		calls := h.said()
		qt.Assert(t, qt.IsTrue(slices.Contains(calls, "start dtagent.service")), qt.Commentf("%q", calls))
		s, _ := m.now()
		qt.Assert(t, qt.IsNotNil(s))
		_, err := os.Lstat(filepath.Join(h.root, "etc/systemd/system/multi-user.target.wants/dtagent.service"))
		qt.Assert(t, qt.IsNil(err))
	}

	// Configured, and started as the unit says.
	config := filepath.Join(h.root, "etc/dtagent/dtagent.conf")
	text, err := os.ReadFile(config)
	qt.Assert(t, qt.IsNil(err))
	changed := string(text) + settings
	if k.Dist == "el7" {
		// Perf buffers count as locked memory, which the test may not be allowed to raise.
		changed += "legacy = true\nbuffer-bytes = \"1MiB\"\n"
	}
	qt.Assert(t, qt.IsNil(os.WriteFile(config, []byte(changed), 0o644)))
	qt.Assert(t, qt.IsNil(m.do("stop")))
	qt.Assert(t, qt.IsNil(m.do("start")))
	s, _ := m.now()
	_, err = h.run("/usr/sbin/dtagent", "observer", "create", "name-label=packaging", "enabled=true")
	qt.Assert(t, qt.IsNil(err))
	attached := func(s *control.Status) bool {
		found := map[string]bool{}
		for _, target := range s.Targets {
			found[target.Component] = true
		}
		return len(s.Probes) > 0 && s.Trouble == "" && found["xapi"] && found["xenopsd"]
	}
	qt.Assert(t, qt.IsNil(s.until("traces the toolstack", attached)))
	st, err := s.status()
	qt.Assert(t, qt.IsNil(err))
	qt.Assert(t, qt.Equals(st.Version, first))
	qt.Assert(t, qt.Equals(st.Tier == "legacy", k.Dist == "el7"))
	h.traces(t, dom0, s)
	// The service may not ask for the kernel's statistics of programs; who asks it may.
	cost, err := h.run("/usr/sbin/dtagent", "status", "--cost=100ms", "--json")
	qt.Assert(t, qt.IsNil(err))
	qt.Assert(t, qt.StringContains(cost, `"probe": "stream"`))
	qt.Assert(t, qt.IsNil(s.hears("WATCHDOG=1")))
	h.said()

	// Upgraded while it runs.
	old := s.cmd.Process.Pid
	programs := programsOf(t, old)
	qt.Assert(t, qt.Not(qt.HasLen(programs, 0)))
	_, starts := m.now()
	qt.Assert(t, qt.IsNil(h.install(k, pack(t, k, second))))
	calls := h.said()
	restart := map[string]string{"rpm": "try-restart dtagent.service", "deb": "restart dtagent.service"}[k.Format]
	qt.Assert(t, qt.IsTrue(slices.Contains(calls, restart)), qt.Commentf("%q", calls))
	for _, c := range calls {
		qt.Check(t, qt.IsFalse(strings.HasPrefix(c, "stop ") || strings.HasPrefix(c, "disable ") || strings.HasPrefix(c, "preset ")), qt.Commentf("%q", calls))
	}
	s, again := m.now()
	qt.Assert(t, qt.Equals(again, starts+1))
	qt.Assert(t, qt.IsNil(s.until("traces the toolstack after the upgrade", attached)))
	st, err = s.status()
	qt.Assert(t, qt.IsNil(err))
	qt.Assert(t, qt.Equals(st.Version, second))
	now, err := os.ReadFile(config)
	qt.Assert(t, qt.IsNil(err))
	qt.Assert(t, qt.Equals(string(now), changed))
	gone(t, programs)
	h.traces(t, dom0, s)

	// Removed.
	programs = programsOf(t, s.cmd.Process.Pid)
	h.said()
	qt.Assert(t, qt.IsNil(h.remove(k)))
	calls = h.said()
	qt.Assert(t, qt.IsTrue(slices.Contains(calls, "stop dtagent.service")), qt.Commentf("%q", calls))
	s, _ = m.now()
	qt.Assert(t, qt.IsNil(s))
	gone(t, programs)
	spans := 0
	var left []string
	for _, f := range trimEmpty(h.files()) {
		switch {
		case strings.HasPrefix(f, "/var/log/dt/") || f == "/var/log/dt":
			spans++
		case k.Format == "rpm" && (f == "/etc/dtagent" || f == "/etc/dtagent/observers.d"):
		case k.Format == "rpm" && strings.HasPrefix(f, "/etc/dtagent/") && strings.HasSuffix(f, ".rpmsave"):
			left = append(left, filepath.Base(f))
		default:
			if !slices.Contains(before, f) {
				t.Errorf("%s is left", f)
			}
		}
	}
	qt.Check(t, qt.IsTrue(spans > 1)) // and they are
	if k.Format == "rpm" {            // what was changed is saved: the settings and the Observer
		qt.Check(t, qt.HasLen(left, 2))
		saved, err := os.ReadFile(config + ".rpmsave")
		qt.Assert(t, qt.IsNil(err))
		qt.Check(t, qt.Equals(string(saved), changed))
	}
	pinned(t)
}

// traces calls xapi and waits until the call's span is in the bugtool's files.
func (h *host) traces(t testing.TB, dom0 *testenv.Dom0, s *service) {
	t.Helper()
	seen := func() int {
		n := 0
		err := zipkin.ReadPath(filepath.Join(h.root, "var/log/dt/zipkinv2/json"), func(s zipkin.Span) {
			if s.Service() == "xapi" && s.Name == "session.login_with_password" {
				n++
			}
		})
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			t.Logf("spans: %v", err) // a line that is not whole yet
		}
		return n
	}
	before := seen()
	c := client.Unix(dom0.XapiSocket(), client.Options{Shape: client.Node})
	for end := time.Now().Add(patience); seen() == before; time.Sleep(200 * time.Millisecond) {
		_, err := c.Login(context.Background())
		qt.Assert(t, qt.IsNil(err))
		if time.Now().After(end) {
			t.Fatalf("no span of a call\n%s", s.log.String())
		}
	}
}

// programsOf returns the ids of the eBPF programs that a process holds.
func programsOf(t testing.TB, pid int) []ebpf.ProgramID {
	t.Helper()
	dir := "/proc/" + strconv.Itoa(pid) + "/fdinfo"
	fds, err := os.ReadDir(dir)
	qt.Assert(t, qt.IsNil(err))
	var ids []ebpf.ProgramID
	for _, fd := range fds {
		f, err := os.Open(filepath.Join(dir, fd.Name()))
		if err != nil {
			continue // closed meanwhile
		}
		for sc := bufio.NewScanner(f); sc.Scan(); {
			if v, ok := strings.CutPrefix(sc.Text(), "prog_id:"); ok {
				id, err := strconv.ParseUint(strings.TrimSpace(v), 10, 32)
				qt.Assert(t, qt.IsNil(err))
				ids = append(ids, ebpf.ProgramID(id))
			}
		}
		f.Close()
	}
	return ids
}

// gone waits until the kernel has let go of programs; it does so some time after
// their last user went.
func gone(t testing.TB, ids []ebpf.ProgramID) {
	t.Helper()
	for end := time.Now().Add(patience); ; time.Sleep(50 * time.Millisecond) {
		ids = slices.DeleteFunc(ids, func(id ebpf.ProgramID) bool {
			p, err := ebpf.NewProgramFromID(id)
			if err == nil {
				p.Close()
			}
			return errors.Is(err, fs.ErrNotExist)
		})
		if len(ids) == 0 {
			return
		}
		if time.Now().After(end) {
			t.Fatalf("programs stay in the kernel: %v", ids)
		}
	}
}

// pinned asserts that nothing of the agent is pinned in a BPF file system.
func pinned(t testing.TB) {
	t.Helper()
	_ = filepath.WalkDir("/sys/fs/bpf", func(path string, d fs.DirEntry, err error) error {
		if err == nil && (strings.HasPrefix(d.Name(), "dt_") || strings.Contains(d.Name(), "dtagent")) {
			t.Errorf("%s is pinned", path)
		}
		return nil
	})
}

// trimEmpty leaves out directories that package managers and deb-systemd-helper make
// and do not take away.
func trimEmpty(files []string) []string {
	return slices.DeleteFunc(files, func(f string) bool {
		for _, d := range []string{"/var/lib/systemd", "/var/lib/systemd/deb-systemd-helper-enabled", "/var/lib/systemd/deb-systemd-helper-masked", "/etc/systemd/system/multi-user.target.wants"} {
			if f == d || f == "/var/lib/systemd/deb-systemd-helper-enabled/multi-user.target.wants" {
				return true
			}
		}
		return false
	})
}

// A service that stands still is silent; then systemd ends it, so that it says where
// it was, and starts it again.
func TestWatchdogKernel(t *testing.T) {
	needRoot(t)
	needCommand(t, "rpm", "rpm")
	dom0 := newDom0(t)
	k := Kinds[1]
	h := newHost(t, dom0.ProcDir())
	qt.Assert(t, qt.IsNil(h.install(k, pack(t, k, first))))
	config := filepath.Join(h.root, "etc/dtagent/dtagent.conf")
	qt.Assert(t, qt.IsNil(os.WriteFile(config, []byte(settings), 0o644)))
	s := &service{h: h}
	qt.Assert(t, qt.IsNil(s.start()))
	qt.Assert(t, qt.IsNil(s.hears("WATCHDOG=1"))) // without an Observer, when there is nothing to read
	_, err := h.run("/usr/sbin/dtagent", "observer", "create", "name-label=watchdog", "enabled=true")
	qt.Assert(t, qt.IsNil(err))
	h.traces(t, dom0, s)
	for range 2 {
		qt.Assert(t, qt.IsNil(s.hears("WATCHDOG=1")))
	}

	qt.Assert(t, qt.IsNil(s.cmd.Process.Signal(syscall.SIGSTOP)))
	waitStopped(t, s.cmd.Process.Pid)
	for silent, end := false, time.Now().Add(patience); !silent; {
		select {
		case <-s.messages: // told before
			qt.Assert(t, qt.IsTrue(time.Now().Before(end)), qt.Commentf("it tells that it is alive"))
		case <-time.After(testWatchdog): // what systemd waits for
			silent = true
		}
	}
	qt.Assert(t, qt.IsNil(s.cmd.Process.Signal(syscall.SIGABRT))) // WatchdogSignal
	qt.Assert(t, qt.IsNil(s.cmd.Process.Signal(syscall.SIGCONT)))
	qt.Assert(t, qt.IsNil(s.ends()))
	qt.Assert(t, qt.IsTrue(strings.Contains(s.log.String(), "agent.(*agent).correlate")))

	lines := unitLines(t, h.unit()...)
	qt.Assert(t, qt.Equals(last(lines, "Restart"), "on-failure"))
	code := strconv.Itoa(s.cmd.ProcessState.ExitCode())
	qt.Assert(t, qt.IsFalse(slices.Contains(words(lines, "RestartPreventExitStatus"), code)), qt.Commentf("exit status %s", code))
	again := &service{h: h}
	qt.Assert(t, qt.IsNil(again.start()))
	t.Cleanup(func() { qt.Check(t, qt.IsNil(again.stop())) })
	h.traces(t, dom0, again)

	// A wrong file is no reason to try again.
	qt.Assert(t, qt.IsNil(os.WriteFile(config, []byte("log-level = \"loud\"\n"), 0o644)))
	bad := &service{h: h}
	qt.Assert(t, qt.IsNotNil(bad.start()))
	code = strconv.Itoa(bad.cmd.ProcessState.ExitCode())
	qt.Assert(t, qt.SliceContains(words(lines, "RestartPreventExitStatus"), code))
	qt.Assert(t, qt.StringContains(bad.log.String(), "/etc/dtagent/dtagent.conf:1: log-level"))
}

// waitStopped waits until each thread of a process stands still.
func waitStopped(t testing.TB, pid int) {
	t.Helper()
	for end := time.Now().Add(patience); ; time.Sleep(10 * time.Millisecond) {
		states, err := filepath.Glob("/proc/" + strconv.Itoa(pid) + "/task/*/stat")
		qt.Assert(t, qt.IsNil(err))
		stopped := 0
		for _, f := range states {
			b, err := os.ReadFile(f)
			if _, rest, ok := strings.Cut(string(b), ") "); err == nil && ok && strings.HasPrefix(rest, "T") {
				stopped++
			}
		}
		if len(states) > 0 && stopped == len(states) {
			return
		}
		qt.Assert(t, qt.IsTrue(time.Now().Before(end)), qt.Commentf("it does not stop"))
	}
}
