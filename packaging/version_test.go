//go:build linux

package packaging

import (
	"os/exec"
	"regexp"
	"testing"
	"time"

	"github.com/go-quicktest/qt"
)

var commitTime = time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)

// In the order in which they have to sort.
var versions = []struct{ describe, want string }{
	{"697f97d", "0~20260102.030405.g697f97d"},
	{"697f97d-dirty", "0~20260102.030405.g697f97d.dirty"},
	{"v0.9.0", "0.9.0"},
	{"v1.2.0-rc1", "1.2.0~rc1"},
	{"v1.2.0-rc1-3-gabc1234", "1.2.0~rc1+3.gabc1234"},
	{"v1.2.0", "1.2.0"},
	{"v1.2.0-dirty", "1.2.0+dirty"},
	{"1.2.1", "1.2.1"},
	{"v1.2.1-5-g1234567", "1.2.1+5.g1234567"},
	{"v1.2.1-5-g1234567-dirty", "1.2.1+5.g1234567.dirty"},
	{"v1.2.1-12-g0234567", "1.2.1+12.g0234567"},
	{"v1.10.0", "1.10.0"},
}

func TestVersion(t *testing.T) {
	legal := regexp.MustCompile(`^[0-9][0-9A-Za-z.+~]*$`) // of rpm 4.11 and dpkg alike
	for _, c := range versions {
		got, err := Version(c.describe, commitTime)
		qt.Assert(t, qt.IsNil(err))
		qt.Check(t, qt.Equals(got, c.want))
		qt.Check(t, qt.IsTrue(legal.MatchString(got)), qt.Commentf("%s", got))
	}
	for _, all := range []string{"1234567", "devel"} { // a hash may have no letters; no repository
		got, err := Version(all, commitTime)
		qt.Check(t, qt.IsNil(err))
		qt.Check(t, qt.Equals(got, "0~20260102.030405.g"+all))
	}
	for _, bad := range []string{"", "-dirty", "v1", "V1.0.0", "v1.0.0 beta", "v1.0.0-$(id)", "a/b", "v1.0-rc-1", "é"} {
		_, err := Version(bad, commitTime)
		qt.Check(t, qt.ErrorMatches(err, `version ".*" is neither .*`), qt.Commentf("%q", bad))
	}
}

// Both package managers take each for newer than the one before.
func TestVersionOrder(t *testing.T) {
	t.Run("dpkg", func(t *testing.T) {
		needCommand(t, "dpkg", "dpkg")
		for i := range versions[1:] {
			old, young := versions[i].want+"-1", versions[i+1].want+"-1"
			qt.Check(t, qt.IsNil(exec.Command("dpkg", "--compare-versions", old, "lt", young).Run()), qt.Commentf("%s %s", old, young))
		}
	})
	t.Run("rpm", func(t *testing.T) {
		needCommand(t, "rpm", "rpm")
		for i := range versions[1:] {
			old, young := versions[i].want, versions[i+1].want
			out, err := exec.Command("rpm", "--eval", `%{lua: print(rpm.vercmp("`+old+`", "`+young+`"))}`).Output()
			qt.Assert(t, qt.IsNil(err))
			qt.Check(t, qt.Equals(string(out), "-1\n"), qt.Commentf("%s %s", old, young))
		}
	})
}

// needCommand skips where a command is missing.
func needCommand(t testing.TB, name, debian string) {
	t.Helper()
	if _, err := exec.LookPath(name); err != nil {
		t.Skipf("needs %s: Debian's package %s has it", name, debian)
	}
}
