//go:build linux

package packaging

import (
	"context"
	"debug/elf"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/go-quicktest/qt"
)

// entry is a file or directory of a package.
type entry struct {
	mode string // as ls shows it
	path string
}

// listed returns what is in a package.
func listed(t testing.TB, k Kind, path string) []entry {
	t.Helper()
	var cmd *exec.Cmd
	if k.Format == "deb" {
		needCommand(t, "dpkg-deb", "dpkg")
		cmd = exec.Command("dpkg-deb", "--contents", path)
	} else {
		needCommand(t, "rpm", "rpm")
		cmd = exec.Command("rpm", "-qplv", path)
	}
	out, err := cmd.Output()
	qt.Assert(t, qt.IsNil(err))
	var all []entry
	for line := range strings.Lines(string(out)) {
		w := strings.Fields(line)
		qt.Check(t, qt.StringContains(line, "root")) // the owner
		name := w[len(w)-1]
		if k.Format == "deb" {
			name = strings.TrimPrefix(strings.TrimSuffix(name, "/"), ".")
		}
		all = append(all, entry{w[0], name})
	}
	return all
}

// files is what all packages have in common, but for licences and documentation.
var files = []entry{
	{"-rw-r--r--", "/etc/dtagent/dtagent.conf"},
	{"-rw-r--r--", "/usr/lib/systemd/system/dtagent.service"},
	{"-rw-r--r--", "/usr/share/doc/dtagent/README.md"},
	{"-rw-r--r--", "/usr/share/doc/dtagent/docs/packaging.md"},
	{"-rwxr-xr-x", "/usr/sbin/dtagent"},
	{"drwx------", "/var/lib/dtagent"},
	{"drwxr-xr-x", "/etc/dtagent"},
	{"drwxr-xr-x", "/etc/dtagent/observers.d"},
}

func TestContents(t *testing.T) {
	for _, k := range Kinds {
		t.Run(k.name(), func(t *testing.T) {
			got := listed(t, k, pack(t, k, first))
			for _, want := range files {
				qt.Check(t, qt.SliceContains(got, want))
			}
			for _, name := range []string{"LICENSE", "GPL-2.0-only.txt", "BSD-2-Clause.txt", "third-party.txt"} {
				qt.Check(t, qt.SliceContains(got, entry{"-rw-r--r--", k.licenses() + "/" + name}))
			}
			old := entry{"-rw-r--r--", "/usr/lib/systemd/system/dtagent.service.d/10-el7.conf"}
			qt.Check(t, qt.Equals(slices.Contains(got, old), k.Dist == "el7"))
			for _, e := range got {
				// The agent bounds and rotates what it writes by itself.
				qt.Check(t, qt.IsFalse(strings.Contains(e.path, "logrotate") || strings.Contains(e.path, "cron")), qt.Commentf("%s", e.path))
				qt.Check(t, qt.IsFalse(strings.HasPrefix(e.path, "/usr/local") || strings.HasPrefix(e.path, "/opt")), qt.Commentf("%s", e.path))
			}
		})
	}
}

// What rpm 4.11 of CentOS 7 could not read or resolve is in no RPM.
func TestRPM(t *testing.T) {
	needCommand(t, "rpm", "rpm")
	for _, k := range Kinds {
		if k.Format != "rpm" {
			continue
		}
		t.Run(k.name(), func(t *testing.T) {
			path := pack(t, k, second)
			query := func(args ...string) string {
				out, err := exec.Command("rpm", append([]string{"-qp"}, append(args, path)...)...).Output()
				qt.Assert(t, qt.IsNil(err))
				return string(out)
			}
			qt.Check(t, qt.Equals(query("--qf", `%{NAME} %{VERSION} %{RELEASE} %{ARCH} %{PAYLOADFORMAT} %{PAYLOADCOMPRESSOR} %{FILEDIGESTALGO}`),
				"dtagent 1.1.0+2.gabc1234 1."+k.Dist+" x86_64 cpio gzip 8")) // 8: SHA-256
			qt.Check(t, qt.Equals(filepath.Base(path), "dtagent-1.1.0+2.gabc1234-1."+k.Dist+".x86_64.rpm"))
			for line := range strings.Lines(query("--requires")) {
				qt.Check(t, qt.IsTrue(strings.HasPrefix(line, "rpmlib(") || strings.HasPrefix(line, "/bin/sh")), qt.Commentf("%s", line))
			}
			for _, weak := range []string{"--recommends", "--suggests", "--supplements", "--enhances", "--conflicts", "--obsoletes"} {
				qt.Check(t, qt.Equals(query(weak), ""))
			}
			qt.Check(t, qt.StringContains(query("--qf", `[%{FILENAMES} %{FILEFLAGS:fflags}\n]`), "/etc/dtagent/dtagent.conf cn\n")) // config, noreplace
			qt.Check(t, qt.Equals(query("--qf", "%{BUILDTIME}"), fmt.Sprint(commitTime.Unix())))
			qt.Check(t, qt.Equals(query("--qf", "%{BUILDHOST}"), "dtagent"))
			out, err := exec.Command("rpm", "-K", path).CombinedOutput()
			qt.Check(t, qt.IsNil(err), qt.Commentf("%s", out))
		})
	}
}

func TestDeb(t *testing.T) {
	needCommand(t, "dpkg-deb", "dpkg")
	path := pack(t, Kind{Format: "deb"}, second)
	field := func(name string) string {
		out, err := exec.Command("dpkg-deb", "--field", path, name).Output()
		qt.Assert(t, qt.IsNil(err))
		return strings.TrimSpace(string(out))
	}
	qt.Check(t, qt.Equals(field("Version"), "1.1.0+2.gabc1234-1"))
	qt.Check(t, qt.Equals(field("Architecture"), "amd64"))
	qt.Check(t, qt.Equals(field("Depends"), "init-system-helpers"))
	dir := t.TempDir()
	out, err := exec.Command("dpkg-deb", "--control", path, dir).CombinedOutput()
	qt.Assert(t, qt.IsNil(err), qt.Commentf("%s", out))
	conf, err := os.ReadFile(filepath.Join(dir, "conffiles"))
	qt.Assert(t, qt.IsNil(err))
	qt.Check(t, qt.Equals(string(conf), "/etc/dtagent/dtagent.conf\n"))
}

// CentOS 7 has an old glibc: the agent needs none.
func TestStatic(t *testing.T) {
	f, err := elf.Open(binary(t, first))
	qt.Assert(t, qt.IsNil(err))
	defer f.Close()
	for _, p := range f.Progs {
		qt.Check(t, qt.Not(qt.Equals(p.Type, elf.PT_INTERP)))
	}
	libs, err := f.ImportedLibraries()
	qt.Check(t, qt.IsNil(err))
	qt.Check(t, qt.HasLen(libs, 0))
}

// Equal sources give equal packages, whenever and wherever they are built.
func TestReproducible(t *testing.T) {
	bin := binary(t, first)
	elsewhere := filepath.Join(t.TempDir(), "agent")
	copyFile(t, bin, elsewhere, 0o700)
	old := time.Unix(1_000_000_000, 0)
	qt.Assert(t, qt.IsNil(os.Chtimes(elsewhere, old, old)))
	for _, k := range Kinds {
		t.Run(k.name(), func(t *testing.T) {
			one, err := os.ReadFile(pack(t, k, first))
			qt.Assert(t, qt.IsNil(err))
			path, err := Build(context.Background(), k, Options{Source: source, Binary: elsewhere, Version: versionOf(t, first), Time: commitTime, Out: t.TempDir()})
			qt.Assert(t, qt.IsNil(err))
			two, err := os.ReadFile(path)
			qt.Assert(t, qt.IsNil(err))
			qt.Assert(t, qt.IsTrue(string(one) == string(two)))
		})
	}
}

// make install puts the same files to the same places as the packages.
func TestMakeInstall(t *testing.T) {
	needCommand(t, "make", "make")
	root, bin := t.TempDir(), t.TempDir()
	cmd := exec.Command("make", "install", "DESTDIR="+root, "PREFIX=/usr", "BINDIR="+bin)
	cmd.Dir = source
	out, err := cmd.CombinedOutput()
	qt.Assert(t, qt.IsNil(err), qt.Commentf("%s", out))
	var got []string
	qt.Assert(t, qt.IsNil(filepath.WalkDir(root, func(path string, d os.DirEntry, err error) error {
		if err == nil && !d.IsDir() {
			got = append(got, strings.TrimPrefix(path, root))
		}
		return err
	})))
	var want []string
	k := Kind{Format: "rpm", Dist: "el10"}
	for _, e := range listed(t, k, pack(t, k, first)) {
		if e.mode[0] == '-' && filepath.Base(e.path) != "third-party.txt" { // for who passes the program on
			want = append(want, e.path)
		}
	}
	got = slices.DeleteFunc(got, func(p string) bool { return filepath.Base(p) == "10-el7.conf" }) // on Linux 4
	slices.Sort(got)
	slices.Sort(want)
	qt.Assert(t, qt.DeepEquals(got, want))
	unit, err := os.ReadFile(filepath.Join(root, "usr/lib/systemd/system/dtagent.service"))
	qt.Assert(t, qt.IsNil(err))
	shipped, err := os.ReadFile("dtagent.service")
	qt.Assert(t, qt.IsNil(err))
	qt.Assert(t, qt.Equals(string(unit), string(shipped)))
}

// Every module that the agent is linked with has its licence in the packages.
func TestNotices(t *testing.T) {
	text, err := Notices(context.Background(), source)
	qt.Assert(t, qt.IsNil(err))
	for _, m := range []string{"github.com/cilium/ebpf", "github.com/spf13/cobra", "golang.org/x/sys", "Go"} {
		qt.Check(t, qt.IsTrue(strings.Contains(string(text), "\n== "+m+": ")), qt.Commentf("%s", m))
	}
	qt.Check(t, qt.IsFalse(strings.Contains(string(text), "go-quicktest"))) // for tests only
}
