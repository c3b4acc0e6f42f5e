//go:build linux

package packaging

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/go-quicktest/qt"
)

// line is a setting of a unit.
type line struct{ name, value string }

// readUnit reads unit files one after another, as systemd does a unit and its
// drop-ins.
func readUnit(files ...string) (all []line, err error) {
	for _, f := range files {
		text, err := os.ReadFile(f)
		if err != nil {
			return nil, err
		}
		for l := range strings.Lines(string(text)) {
			l = strings.TrimSpace(l)
			if l == "" || strings.HasPrefix(l, "#") || strings.HasPrefix(l, "[") {
				continue
			}
			name, value, ok := strings.Cut(l, "=")
			if !ok {
				return nil, fmt.Errorf("%s: %s", f, l)
			}
			all = append(all, line{name, value})
		}
	}
	return all, nil
}

func unitLines(t testing.TB, files ...string) []line {
	t.Helper()
	all, err := readUnit(files...)
	qt.Assert(t, qt.IsNil(err))
	return all
}

// last returns the value that counts.
func last(lines []line, name string) string {
	for _, l := range slices.Backward(lines) {
		if l.name == name {
			return l.value
		}
	}
	return ""
}

// words returns the values of all lines of a name: those of a list add up.
func words(lines []line, name string) (all []string) {
	for _, l := range lines {
		if l.name == name {
			all = append(all, strings.Fields(l.value)...)
		}
	}
	return all
}

// systemd knows each line of the unit; older ones pass some over.
func TestUnitVerify(t *testing.T) {
	needCommand(t, "systemd-analyze", "systemd")
	root := t.TempDir()
	units := filepath.Join(root, "usr/lib/systemd/system")
	qt.Assert(t, qt.IsNil(os.MkdirAll(filepath.Join(root, "usr/sbin"), 0o755)))
	qt.Assert(t, qt.IsNil(os.MkdirAll(units, 0o755)))
	qt.Assert(t, qt.IsNil(os.WriteFile(filepath.Join(root, "usr/sbin/dtagent"), []byte("#!/bin/sh\n"), 0o755)))
	copyFile(t, "dtagent.service", filepath.Join(units, "dtagent.service"), 0o644)
	for _, target := range []string{"sysinit", "basic", "shutdown", "multi-user", "network"} {
		qt.Assert(t, qt.IsNil(os.WriteFile(filepath.Join(units, target+".target"), []byte("[Unit]\nDescription="+target+"\n"), 0o644)))
	}
	out, err := exec.Command("systemd-analyze", "verify", "--man=no", "--root="+root, "dtagent.service").CombinedOutput()
	if err != nil && strings.Contains(string(out), "--root") {
		t.Skipf("needs a systemd-analyze that verifies below --root (systemd 250): %s", out)
	}
	qt.Assert(t, qt.IsNil(err), qt.Commentf("%s", out))
	for l := range strings.Lines(string(out)) {
		qt.Check(t, qt.IsFalse(strings.Contains(l, "dtagent")), qt.Commentf("%s", l))
	}
}

// docs/packaging.md says of each line of the unit why it is there.
func TestUnitDocumented(t *testing.T) {
	doc, err := os.ReadFile("../docs/packaging.md")
	qt.Assert(t, qt.IsNil(err))
	for _, l := range unitLines(t, "dtagent.service", "10-el7.conf") {
		switch l.name {
		case "Description", "Documentation", "WantedBy":
			continue
		}
		qt.Check(t, qt.IsTrue(strings.Contains(string(doc), "`"+l.name)), qt.Commentf("%s", l.name))
	}
	for _, c := range words(unitLines(t, "dtagent.service", "10-el7.conf"), "CapabilityBoundingSet") {
		qt.Check(t, qt.IsTrue(strings.Contains(string(doc), "`"+c+"`")), qt.Commentf("%s", c))
	}
}
