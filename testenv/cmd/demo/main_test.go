package main

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"

	"github.com/go-quicktest/qt"

	"github.com/xenserver/dtagent/testenv/daemon"
)

// reachable returns a directory for temporary files that other users get to.
func reachable(t *testing.T) string {
	t.Helper()
	for _, dir := range []string{os.TempDir(), "/tmp", "/var/tmp"} {
		ok := true
		for p := filepath.Clean(dir); ok && p != "/" && p != "."; p = filepath.Dir(p) {
			info, err := os.Stat(p)
			ok = err == nil && info.Mode()&1 != 0
		}
		if ok {
			return dir
		}
	}
	t.Fatal("no directory for temporary files that other users get to")
	return ""
}

// TestWithoutEBPF runs the demonstration where eBPF is not allowed: as a user who
// may not.
func TestWithoutEBPF(t *testing.T) {
	dir, err := os.MkdirTemp(reachable(t), "dtagent-demo-test-")
	qt.Assert(t, qt.IsNil(err))
	defer os.RemoveAll(dir)
	qt.Assert(t, qt.IsNil(os.Chmod(dir, 0o755)))
	binary, err := daemon.Build(t.Context(), dir)
	qt.Assert(t, qt.IsNil(err))
	demo := filepath.Join(dir, "demo")
	out, err := exec.Command("go", "build", "-o", demo, "github.com/xenserver/dtagent/testenv/cmd/demo").CombinedOutput()
	qt.Assert(t, qt.IsNil(err), qt.Commentf("%s", out))
	work := filepath.Join(dir, "work")
	qt.Assert(t, qt.IsNil(os.Mkdir(work, 0o777)))
	qt.Assert(t, qt.IsNil(os.Chmod(work, 0o777)))
	run := func(args ...string) (code int, stdout, stderr string) {
		cmd := exec.Command(demo, append([]string{"--dtagent", binary}, args...)...)
		var out, errs bytes.Buffer
		cmd.Dir, cmd.Env, cmd.Stdout, cmd.Stderr = work, append(os.Environ(), "TMPDIR="+work), &out, &errs
		if os.Geteuid() == 0 {
			cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
		}
		err := cmd.Run()
		qt.Assert(t, qt.IsNotNil(cmd.ProcessState), qt.Commentf("%v", err))
		return cmd.ProcessState.ExitCode(), out.String(), errs.String()
	}

	code, stdout, stderr := run()
	qt.Assert(t, qt.Equals(code, 0), qt.Commentf("%s%s", stdout, stderr))
	for _, text := range []string{
		"dtagent cannot trace on this machine. What is missing:\n  ", "\n    do:  ", // what, and how to get it
		"RECORDED: what follows was seen on 20",
		"\ntrace " + shutdownTrace, "VM.shutdown", "VM_poweroff", "\ntrace " + startTrace, "Async.VM.start", "LVMSR vdi_attach",
		"RECORDED: these traces were not made on this machine",
	} {
		qt.Check(t, qt.StringContains(stdout, text))
	}

	code, stdout, stderr = run("--live")
	qt.Check(t, qt.Equals(code, 1))
	qt.Check(t, qt.StringContains(stdout, "What is missing:"))
	qt.Check(t, qt.StringContains(stderr, "the real thing was asked for"))
	qt.Check(t, qt.IsFalse(bytes.Contains([]byte(stdout), []byte("RECORDED"))))
}
