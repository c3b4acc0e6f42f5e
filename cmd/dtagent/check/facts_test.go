package check

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/go-quicktest/qt"
)

// fakeHost is a host of files.
func fakeHost(t testing.TB, files map[string]string) host {
	t.Helper()
	h := host{root: t.TempDir()}
	for name, text := range files {
		qt.Assert(t, qt.IsNil(os.MkdirAll(filepath.Dir(h.path(name)), 0o755)))
		qt.Assert(t, qt.IsNil(os.WriteFile(h.path(name), []byte(text), 0o644)))
	}
	return h
}

// notes are a note of another owner with an odd length, then the build-id of kernel.
const notes = "\x05\x00\x00\x00\x03\x00\x00\x00\x01\x00\x00\x00Xenx\x00\x00\x00\x00abc\x00" +
	"\x04\x00\x00\x00\x04\x00\x00\x00\x03\x00\x00\x00GNU\x00\xde\xad\xbe\xef"

// dom0 is a XenServer 8 host as its files tell it.
var dom0 = map[string]string{
	"/proc/sys/kernel/osrelease":    "4.19.0+1\n",
	"/sys/kernel/notes":             notes,
	"/sys/hypervisor/type":          "xen\n",
	"/sys/hypervisor/version/major": "4\n",
	"/sys/hypervisor/version/minor": "17\n",
	"/sys/hypervisor/version/extra": ".6\n",
	"/proc/xen/capabilities":        "control_d\n",
	"/proc/self/status":             "Name:\tdtagent\nCapEff:\t000001ffffffffff\n",
	"/proc/self/cgroup":             "5:cpu,cpuacct:/system.slice\n4:memory:/system.slice/dtagent.service\n1:name=systemd:/system.slice/dtagent.service\n",
	"/sys/fs/cgroup/memory/system.slice/dtagent.service/memory.limit_in_bytes": "134217728\n",
	"/sys/fs/cgroup/memory/memory.limit_in_bytes":                              "9223372036854771712\n",
	"/sys/devices/system/clocksource/clocksource0/current_clocksource":         "tsc\n",
}

// with is dom0 with other files; "" takes one away.
func with(changes map[string]string) map[string]string {
	out := map[string]string{}
	for name, text := range dom0 {
		out[name] = text
	}
	for name, text := range changes {
		out[name] = text
		if text == "" {
			delete(out, name)
		}
	}
	return out
}

func TestFactsOfDom0(t *testing.T) {
	qt.Check(t, qt.DeepEquals(fakeHost(t, dom0).facts(), []Item{
		works("kernel", "4.19.0+1, amd64, build-id deadbeef"),
		works("Xen", "dom0 of Xen 4.17.6"),
		works("clock source", "tsc"),
		absent("bpf statistics", "the kernel does not measure what programs cost (Linux 5.1)", "nothing: tracing does not need them"),
		works("capabilities", "all that are used"),
		works("memory limit", "128 MiB, of control group /system.slice/dtagent.service"),
	}))
}

// fact returns the fact of that name on dom0 with changes.
func fact(t testing.TB, name string, changes map[string]string) Item {
	t.Helper()
	for _, i := range fakeHost(t, with(changes)).facts() {
		if i.Name == name {
			return i
		}
	}
	t.Fatalf("no fact %s", name)
	return Item{}
}

func TestFacts(t *testing.T) {
	for _, c := range []struct {
		name    string
		changes map[string]string
		state   State
		detail  string
		why     string
	}{
		{"kernel", map[string]string{"/proc/sys/kernel/osrelease": "3.10.0-1160.el7\n", "/sys/kernel/notes": ""}, Wider, "3.10.0-1160.el7, amd64", "dtagent is made for Linux 4.19 and later"},
		{"kernel", map[string]string{"/proc/sys/kernel/osrelease": ""}, Unknown, "", ".*no such file or directory"},
		{"Xen", map[string]string{"/sys/hypervisor/type": ""}, Absent, "", "this is no Xen host"},
		{"Xen", map[string]string{"/proc/xen/capabilities": ""}, Unknown, "", "whether this is the dom0 is not known: .*"},
		{"Xen", map[string]string{"/proc/xen/capabilities": "\n"}, Absent, "", `this is a guest of Xen 4\.17\.6, .*`},
		{"clock source", map[string]string{"/sys/devices/system/clocksource/clocksource0/current_clocksource": "hpet"}, Wider, "hpet", "it is read from a device: .*"},
		{"bpf statistics", map[string]string{"/proc/sys/kernel/bpf_stats_enabled": "0\n"}, Works, "what programs cost can be measured", ""},
		{"CAP_NET_ADMIN", map[string]string{"/proc/self/status": "CapEff:\t000001ffffffefff\n"}, Absent, "", "CAP_NET_ADMIN is not there, which is for noticing .*"},
		{"CAP_BPF", map[string]string{"/proc/self/status": "CapEff:\t0\n"}, Absent, "", "CAP_BPF or CAP_SYS_ADMIN is not there, which is for loading .*"},
		{"CAP_SYS_RESOURCE", map[string]string{"/proc/self/status": "CapEff:\t0\n"}, Absent, "", "CAP_SYS_RESOURCE .*"},
		{"memory limit", map[string]string{"/proc/self/cgroup": ""}, Works, "none for this process", ""},
		{"memory limit", map[string]string{"/proc/self/cgroup": "0::/a/b\n", "/sys/fs/cgroup/a/b/memory.max": "max\n", "/sys/fs/cgroup/a/memory.max": "67108864\n"}, Wider, "64 MiB, of control group /a", "dtagent may need 96 MiB .*"},
		{"memory limit", map[string]string{"/proc/self/cgroup": "0::/a/b\n", "/sys/fs/cgroup/a/b/memory.max": "max\n"}, Works, "none for this process", ""},
	} {
		got := fact(t, c.name, c.changes)
		qt.Check(t, qt.Equals(got.State, c.state), qt.Commentf("%s %v: %+v", c.name, c.changes, got))
		qt.Check(t, qt.Equals(got.Detail, c.detail), qt.Commentf("%s %v", c.name, c.changes))
		qt.Check(t, qt.Matches(got.Why, c.why), qt.Commentf("%s %v", c.name, c.changes))
		qt.Check(t, qt.Equals(got.Advice == "", got.State == Works), qt.Commentf("%+v", got))
	}
	// Linux 5.11 counts maps otherwise, and CAP_SYS_ADMIN does for its parts.
	got := fact(t, "capabilities", map[string]string{"/proc/sys/kernel/osrelease": "6.12.0\n", "/proc/self/status": "CapEff:\t0000000000281004\n"})
	qt.Check(t, qt.Equals(got.State, Works))
}

// FuzzNotes: whatever the kernel's notes are, reading them ends well.
func FuzzNotes(f *testing.F) {
	f.Add([]byte(notes))
	f.Add([]byte("\xff\xff\xff\xff\xff\xff\xff\xff\x03\x00\x00\x00GNU\x00"))
	f.Fuzz(func(t *testing.T, b []byte) {
		h := fakeHost(t, map[string]string{"/sys/kernel/notes": string(b)})
		if id := h.buildID(); len(id) > 2*len(b) {
			t.Fatalf("%d bytes of id", len(id))
		}
	})
}

func TestProduct(t *testing.T) {
	h := fakeHost(t, map[string]string{Inventory: "PRODUCT_BRAND='XenServer'\nPRODUCT_VERSION='8.4.0'\nPLATFORM_NAME='XCP'\nPLATFORM_VERSION='3.4.0'\nBUILD_NUMBER='cloud'\nINSTALLATION_UUID='3f6c'\n"})
	i, uuid := h.product("")
	qt.Check(t, qt.DeepEquals(i, works("host", "XenServer 8.4.0, XCP 3.4.0, cloud, uuid 3f6c")))
	qt.Check(t, qt.Equals(uuid, "3f6c"))
	_, uuid = h.product("given")
	qt.Check(t, qt.Equals(uuid, "given"))
	i, uuid = fakeHost(t, map[string]string{Inventory: "PRODUCT_BRAND='XCP-ng'\n"}).product("")
	qt.Check(t, qt.Equals(i.State, Wider))
	qt.Check(t, qt.StringContains(i.Why, "it has no INSTALLATION_UUID"))
	qt.Check(t, qt.Equals(uuid, ""))
	i, _ = fakeHost(t, nil).product("")
	qt.Check(t, qt.StringContains(i.Why, Inventory+": no such file or directory"))
}

func TestService(t *testing.T) {
	h := fakeHost(t, nil)
	qt.Check(t, qt.StringContains(h.service().Advice, "no systemd runs here"))
	h = fakeHost(t, map[string]string{"/run/systemd/system/x": "", "/usr/lib/systemd/system/dtagent.service": "[Unit]"})
	qt.Check(t, qt.Equals(h.service().State, Absent))
	qt.Check(t, qt.Equals(h.service().Advice, "systemctl enable --now dtagent"))
	wants := h.path("/etc/systemd/system/multi-user.target.wants")
	qt.Assert(t, qt.IsNil(os.MkdirAll(wants, 0o755)))
	qt.Assert(t, qt.IsNil(os.Symlink("/usr/lib/systemd/system/dtagent.service", filepath.Join(wants, unit)))) // dangling, seen from here
	qt.Check(t, qt.DeepEquals(h.service(), works("service", "/usr/lib/systemd/system/dtagent.service, enabled")))
}
