package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/go-quicktest/qt"

	"github.com/xenserver/dtagent/cmd/dtagent/check"
)

// aloof are flags that keep a check away from what runs on this machine.
func aloof(dir string) []string {
	return []string{"--observers-dir", dir, "--xapi-socket", filepath.Join(dir, "xapi"), "--state-dir", filepath.Join(dir, "state"),
		"--control", filepath.Join(dir, "control.sock"), "--bugtool-dir", filepath.Join(dir, "bugtool")}
}

func TestCheckSaysWhatItSees(t *testing.T) {
	dir := t.TempDir()
	qt.Assert(t, qt.IsNil(os.WriteFile(filepath.Join(dir, "bad.json"), []byte("{"), 0o600)))
	code, out, _ := dtagent(append([]string{"check", "--json"}, aloof(dir)...)...)
	var r check.Report
	qt.Assert(t, qt.IsNil(json.Unmarshal([]byte(out), &r)))
	qt.Assert(t, qt.Equals(code, map[bool]int{true: 0, false: exitFailed}[r.OK]))
	qt.Assert(t, qt.Not(qt.HasLen(r.Kernel, 0)))
	for _, k := range r.Kernel {
		qt.Check(t, qt.Equals(k.OK, k.Why == "" || k.State == check.Wider), qt.Commentf("%+v", k))
		qt.Check(t, qt.Equals(k.Why == "", k.Advice == ""), qt.Commentf("%+v", k))
	}
	qt.Assert(t, qt.HasLen(r.Sources, 2))
	qt.Check(t, qt.Equals(r.Sources[0].State, check.Absent)) // XAPI
	qt.Check(t, qt.Equals(r.Sources[1].Name, filepath.Join(dir, "bad.json")))
	qt.Check(t, qt.Equals(r.Sources[1].State, check.Fails))
	if os.Geteuid() == 0 {
		qt.Check(t, qt.IsTrue(r.OK)) // the tests of package bpf need no less
		qt.Check(t, qt.HasLen(r.Notes, 0))
		qt.Check(t, qt.IsTrue(len(r.Hooks) > 40))
	}
	code, out, _ = dtagent(append([]string{"check", "--strict"}, aloof(dir)...)...) // not with a file that is bad
	qt.Check(t, qt.Equals(code, exitFailed))
	qt.Check(t, qt.StringContains(out, "\nResult: "))
	bad := filepath.Join(t.TempDir(), "dtagent.conf")
	qt.Assert(t, qt.IsNil(os.WriteFile(bad, []byte("legacy = true\nnonsense = 1\n"), 0o600)))
	code, out, _ = dtagent(append([]string{"check", "--config", bad, "--log-level", "debug"}, aloof(dir)...)...)
	qt.Check(t, qt.Equals(code, exitFailed))
	qt.Check(t, qt.StringContains(out, "  MISSING  settings\n             why: "+bad+":2: there is no setting"))
	qt.Assert(t, qt.IsNil(os.WriteFile(bad, []byte("legacy = true\n"), 0o600)))
	_, out, _ = dtagent(append([]string{"check", "--config", bad}, aloof(dir)...)...)
	qt.Check(t, qt.StringContains(out, "Kernel: legacy programs\n"))
	entries, err := os.ReadDir(dir)
	qt.Assert(t, qt.IsNil(err))
	qt.Check(t, qt.HasLen(entries, 1), qt.Commentf("it has made files: %v", entries))
}

// As root the test runs itself as nobody.
func TestCheckUnprivileged(t *testing.T) {
	if os.Geteuid() == 0 {
		cmd := exec.Command("/proc/self/exe", "-test.run=^TestCheckUnprivileged$", "-test.v")
		cmd.Dir = "/"
		cmd.Env = []string{"TMPDIR=/tmp"}
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
		out, err := cmd.CombinedOutput()
		if errors.Is(err, os.ErrPermission) {
			t.Skipf("this kernel does not let nobody run %s: %v", os.Args[0], err)
		}
		qt.Assert(t, qt.IsNil(err), qt.Commentf("%s", out))
		qt.Assert(t, qt.IsTrue(bytes.Contains(out, []byte("--- PASS: TestCheckUnprivileged"))), qt.Commentf("%s", out))
		return
	}
	dir := t.TempDir()
	code, out, _ := dtagent(append([]string{"check", "--json"}, aloof(dir)...)...)
	qt.Assert(t, qt.Equals(code, exitFailed))
	var r check.Report
	qt.Assert(t, qt.IsNil(json.Unmarshal([]byte(out), &r)))
	qt.Assert(t, qt.IsFalse(r.OK))
	qt.Assert(t, qt.StringContains(strings.Join(r.Notes, "\n"), "not run as root"))
	byName := map[string]check.Item{}
	for _, k := range r.Kernel {
		byName[k.Name] = k
	}
	qt.Check(t, qt.IsTrue(byName["bpf system call"].Needed))
	qt.Check(t, qt.Equals(byName["bpf system call"].State, check.Fails))
	qt.Check(t, qt.StringContains(byName["CAP_BPF"].Why, "CAP_BPF or CAP_SYS_ADMIN is not there"))
	code, out, _ = dtagent(append([]string{"check"}, aloof(dir)...)...)
	qt.Check(t, qt.Equals(code, exitFailed))
	qt.Check(t, qt.StringContains(out, "  MISSING  bpf system call\n"))
	qt.Check(t, qt.StringContains(out, "Result: dtagent cannot trace here"))
}
