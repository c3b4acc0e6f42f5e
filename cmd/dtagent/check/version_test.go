package check

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"testing/iotest"

	"github.com/go-quicktest/qt"
)

// field is dune's for a version.
func field(v string) string { return fmt.Sprintf("%-64s", fmt.Sprintf("=%d:%s", len(v), v)) }

func TestDuneVersion(t *testing.T) {
	pad := func(n int) string { return strings.Repeat("\x00=3:", n/4) }
	for _, c := range []struct{ name, text, version string }{
		{"one", "x" + field("v25.33.1") + "y", "25.33.1"},
		{"two alike", field("v26.8.0") + pad(100) + field("v26.8.0"), "26.8.0"},
		{"two that differ", field("v26.8.0") + pad(100) + field("v1.0"), ""},
		{"not filled in", "%%DUNE_PLACEHOLDER:64:vcs-describe:1:a" + strings.Repeat("%", 26), ""},
		{"of a commit", field("v26.8.0-12-gabcdef0"), "26.8.0-12-gabcdef0"},
		{"wrong length", fmt.Sprintf("%-64s", "=9:v25.33.1"), ""},
		{"not filled up", "=8:v25.33.1  \x00" + pad(100), ""},
		{"cut off", "=8:v25.33.1     ", ""},
		{"across pieces", pad(1<<20-20) + field("v25.33.1") + pad(100), "25.33.1"},
		{"at the end", pad(2<<20) + field("v25.33.1"), "25.33.1"},
		{"none", pad(3 << 20), ""},
		{"nothing", "", ""},
	} {
		qt.Check(t, qt.Equals(duneVersion(strings.NewReader(c.text)), c.version), qt.Commentf(c.name))
		qt.Check(t, qt.Equals(duneVersion(iotest.HalfReader(strings.NewReader(c.text))), c.version), qt.Commentf(c.name))
	}
}

func FuzzDuneVersion(f *testing.F) {
	f.Add(field("v25.33.1"))
	f.Add("=1:=2:=3:v1.1 ")
	f.Fuzz(func(t *testing.T, s string) {
		if v := duneVersion(strings.NewReader(s)); v != "" && !strings.Contains(s, v) {
			t.Fatalf("%q is not in it", v)
		}
	})
}

// This test's own program is an ELF file; the Go linker makes a build-id when told
// to, and the C one does.
func TestExecutable(t *testing.T) {
	e := readExecutable("/proc/self/exe")
	qt.Check(t, qt.Equals(e.version, "")) // dune has not made it
	qt.Check(t, qt.Matches(e.buildID, `|[0-9a-f]{8,}`))
	found := 0
	for _, p := range []string{"/bin/sh", "/bin/ls", "/bin/busybox", "/lib64/ld-linux-x86-64.so.2"} {
		if id := readExecutable(p).buildID; id != "" {
			qt.Check(t, qt.IsTrue(regexp.MustCompile(`^[0-9a-f]{40}$`).MatchString(id)), qt.Commentf("%s: %s", p, id))
			found++
		}
	}
	t.Logf("%d programs of this machine have one", found)
	qt.Check(t, qt.Equals(readExecutable(filepath.Join(t.TempDir(), "none")), executable{}))
	text := filepath.Join(t.TempDir(), "script")
	qt.Assert(t, qt.IsNil(os.WriteFile(text, []byte("#!/bin/sh\n"), 0o755)))
	qt.Check(t, qt.Equals(readExecutable(text), executable{}))
}

func TestAskRPM(t *testing.T) {
	dir := t.TempDir()
	tool := filepath.Join(dir, "rpm")
	script := `#!/bin/sh
case "$4" in
/usr/sbin/xapi) echo xapi-core-25.33.1-2.1.xcpng8.3; echo other-1-1 ;;
/evil) printf 'a\033[31mb\n' ;;
*) echo "file $4 is not owned by any package"; exit 1 ;;
esac
[ "$1 $2 $3" = "-qf --qf %{NAME}-%{VERSION}-%{RELEASE}\n" ] || exit 2
`
	qt.Assert(t, qt.IsNil(os.WriteFile(tool, []byte(script), 0o755)))
	ctx := context.Background()
	qt.Check(t, qt.Equals(askRPM(ctx, tool, "/usr/sbin/xapi"), "xapi-core-25.33.1-2.1.xcpng8.3"))
	qt.Check(t, qt.Equals(askRPM(ctx, tool, "/evil"), ""))
	qt.Check(t, qt.Equals(askRPM(ctx, tool, "/none"), ""))
	qt.Check(t, qt.Equals(askRPM(ctx, filepath.Join(dir, "none"), "/none"), ""))
}
