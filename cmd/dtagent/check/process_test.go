package check

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"testing"

	"github.com/go-quicktest/qt"

	"github.com/xenserver/dtagent/probes/event"
)

// fakeProc is a proc file system of made-up processes.
type fakeProc struct {
	t   testing.TB
	dir string
}

func newFakeProc(t testing.TB) fakeProc { return fakeProc{t, t.TempDir()} }

// process adds one whose executable is exe, a file that need not be there.
func (f fakeProc) process(pid int, comm, exe string) {
	dir := filepath.Join(f.dir, strconv.Itoa(pid))
	qt.Assert(f.t, qt.IsNil(os.MkdirAll(filepath.Join(dir, "fd"), 0o755)))
	stat := fmt.Sprintf("%d (%s) S 1 1 1 0 -1 4194560 1 0 0 0 0 0 0 0 20 0 1 0 5000 1 1", pid, comm)
	qt.Assert(f.t, qt.IsNil(os.WriteFile(filepath.Join(dir, "stat"), []byte(stat), 0o644)))
	qt.Assert(f.t, qt.IsNil(os.Symlink(exe, filepath.Join(dir, "exe"))))
}

func TestTargets(t *testing.T) {
	bin := t.TempDir()
	program := func(name, text string) string {
		path := filepath.Join(bin, name)
		qt.Assert(t, qt.IsNil(os.WriteFile(path, []byte(text), 0o755)))
		return path
	}
	f := newFakeProc(t)
	f.process(10, "xapi", program("xapi", field("v25.33.1")))
	f.process(11, "xenopsd-xc", program("xenopsd-xc", field("v25.33.1")))
	f.process(12, "message-switch", program("message-switch", "no version"))
	f.process(13, "squeezed", program("squeezed", "none either"))
	f.process(14, "xcp-networkd", program("xcp-networkd", "x")+" (deleted)")
	f.process(15, "forkexecd", program("forkexecd", "x"))
	qt.Assert(t, qt.IsNil(os.RemoveAll(filepath.Join(f.dir, "15", "fd"))))
	asked := map[string]int{}
	v := newVersions(func(_ context.Context, path string) string {
		asked[filepath.Base(path)]++
		if filepath.Base(path) == "message-switch" {
			return "message-switch-25.33.1-2.1.xcpng8.3"
		}
		return ""
	})
	v.xapi = "25.34.0" // it was updated, and has not been started anew
	got, found, err := host{}.targets(context.Background(), f.dir, v)
	qt.Assert(t, qt.IsNil(err))
	want := []struct {
		state                       State
		name, detail, version, from string
		outdated                    bool
	}{
		{Works, "xapi, pid 10", "xapi, version 25.34.0 (xapi)", "25.34.0", "xapi", false},
		{Works, "xenopsd-xc, pid 11", "xenopsd, version 25.33.1 (binary)", "25.33.1", "binary", false},
		{Works, "message-switch, pid 12", "message-switch, version message-switch-25.33.1-2.1.xcpng8.3 (rpm)", "message-switch-25.33.1-2.1.xcpng8.3", "rpm", false},
		{Works, "squeezed, pid 13", "squeezed, version not known", "", "", false},
		{Wider, "xcp-networkd, pid 14", "xcp-networkd, version not known", "", "", true},
		{Unknown, "forkexecd, pid 15", "forkexecd, version not known", "", "", false},
	}
	qt.Assert(t, qt.HasLen(got, len(want)))
	for i, w := range want {
		g := got[i]
		qt.Check(t, qt.Equals(g.State, w.state), qt.Commentf("%+v", g))
		qt.Check(t, qt.Equals(g.Name, w.name))
		qt.Check(t, qt.Equals(g.Detail, w.detail))
		qt.Check(t, qt.Equals(g.Version, w.version))
		qt.Check(t, qt.Equals(g.VersionFrom, w.from))
		qt.Check(t, qt.Equals(g.Outdated, w.outdated))
	}
	qt.Check(t, qt.StringContains(got[4].Why, filepath.Join(bin, "xcp-networkd")+" was updated or removed"))
	qt.Check(t, qt.IsTrue(found[event.Xapi] && found[event.Forkexecd] && !found[event.RRDD]))
	qt.Check(t, qt.Equals(asked["xcp-networkd"], 0)) // the package has another file
	qt.Check(t, qt.Equals(asked["xenopsd-xc"], 0))

	_, _, err = host{}.targets(context.Background(), filepath.Join(bin, "none"), v)
	qt.Check(t, qt.ErrorIs(err, os.ErrNotExist))
}

// What is asked of a file is asked once.
func TestVersionsRemember(t *testing.T) {
	n := 0
	v := newVersions(func(context.Context, string) string { n++; return "p-1-1" })
	for range 3 {
		qt.Check(t, qt.Equals(v.of(context.Background(), "squeezed", "/proc/self/exe", "/x", false).version, "p-1-1"))
	}
	qt.Check(t, qt.Equals(n, 1))
	qt.Check(t, qt.Equals(v.of(context.Background(), "squeezed", "/proc/self/none", "/x", false), executable{}))
}

func TestMissing(t *testing.T) {
	none := missing(map[event.Component]bool{})
	qt.Assert(t, qt.HasLen(none, 1))
	qt.Check(t, qt.Equals(none[0].State, Absent))

	all := map[event.Component]bool{}
	for _, c := range event.AllComponents.All() {
		all[c] = true
	}
	qt.Check(t, qt.HasLen(missing(all), 0))
	for component, means := range map[event.Component]string{
		event.Xapi: "nothing is traced", event.Xenopsd: "no operations", event.MessageSwitch: "no RPC spans",
	} {
		delete(all, component)
		got := missing(all)
		qt.Assert(t, qt.HasLen(got, 1))
		qt.Check(t, qt.Equals(got[0].State, Fails))
		qt.Check(t, qt.StringContains(got[0].Why, means))
		all[component] = true
	}
	delete(all, event.Squeezed)
	got := missing(all)
	qt.Assert(t, qt.HasLen(got, 1))
	qt.Check(t, qt.Equals(got[0].State, Absent))
	qt.Check(t, qt.StringContains(got[0].Why, "none of its spans (RPCs"))
}

func TestScripts(t *testing.T) {
	h := fakeHost(t, map[string]string{"/opt/xensource/sm/LVMSR": "", "/opt/xensource/sm/NFSSR": "", "/opt/xensource/sm/util.py": ""})
	v := newVersions(func(_ context.Context, path string) string { return "sm-3.2.12-1" })
	qt.Check(t, qt.DeepEquals(h.scripts(context.Background(), "", v), []Item{works("SM scripts", "2 in /opt/xensource/sm, version sm-3.2.12-1 (rpm)")}))
	got := fakeHost(t, nil).scripts(context.Background(), "/further", newVersions(nil))
	qt.Assert(t, qt.HasLen(got, 2))
	qt.Check(t, qt.Equals(got[1].Why, "there are none in /further"))
}

func TestXAPIForms(t *testing.T) {
	for version, want := range map[string]string{
		"": "", "26.17.0": "its traces are told in debug_info and in log lines", "25.33.1": "its traces are told in debug_info, not in log lines (26.8)",
		"24.19.2": "its traces are told in debug_info as a bare traceparent, not in log lines (26.8)", "1.249.41": "it has no Observers of its own (23.14)",
	} {
		qt.Check(t, qt.Equals(xapiForms(version), want))
	}
}

func TestOthers(t *testing.T) {
	bin := t.TempDir()
	f := newFakeProc(t)
	for pid, name := range map[int]string{20: "stunnel", 21: "stunnel", 22: "bash", 23: "xapi"} {
		path := filepath.Join(bin, name)
		qt.Assert(t, qt.IsNil(os.WriteFile(path, nil, 0o755)))
		f.process(pid, name, path)
	}
	v := newVersions(func(_ context.Context, path string) string { return filepath.Base(path) + "-5.60-4" })
	got := host{}.others(context.Background(), f.dir, v)
	qt.Assert(t, qt.HasLen(got, 1))
	qt.Check(t, qt.DeepEquals(got[0], works("stunnel", "2 run, version stunnel-5.60-4 (rpm); TLS to and from xapi: its plain side is seen at xapi")))
	qt.Check(t, qt.HasLen(host{}.others(context.Background(), filepath.Join(bin, "none"), v), 0))
}
