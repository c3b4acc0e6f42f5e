//go:build linux

package bpf

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/go-quicktest/qt"
)

// The checked-in objects are what their sources compile to. Another clang may
// give other instructions, so this asks for the version that the objects name.
func TestObjectsEqualSources(t *testing.T) {
	const want = "clang version 14."
	out, err := exec.Command("clang", "--version").Output()
	if err != nil {
		t.Skip("needs clang 14 to compile the programs")
	}
	if !bytes.Contains(out, []byte(want)) {
		first, _, _ := strings.Cut(string(out), "\n")
		t.Skipf("needs clang 14, which the objects are made with; there is %s", first)
	}
	for _, need := range []string{"llvm-strip", "/usr/include/bpf/bpf_helpers.h"} {
		if _, err := exec.LookPath(need); err != nil && !strings.HasPrefix(need, "/") {
			t.Skip("needs " + need)
		} else if _, err := os.Stat(need); err != nil && strings.HasPrefix(need, "/") {
			t.Skip("needs " + need + " (libbpf-dev)")
		}
	}

	// A copy inside the module, or go run would not find the pinned bpf2go.
	dir, err := os.MkdirTemp(".", "testdata-generate-")
	qt.Assert(t, qt.IsNil(err))
	defer os.RemoveAll(dir)
	sources, err := filepath.Glob("*.bpf.c")
	qt.Assert(t, qt.IsNil(err))
	headers, err := filepath.Glob("include/*.h")
	qt.Assert(t, qt.IsNil(err))
	qt.Assert(t, qt.IsNil(os.Mkdir(filepath.Join(dir, "include"), 0o755)))
	for _, f := range append(append(sources, headers...), "generate.go") {
		b, err := os.ReadFile(f)
		qt.Assert(t, qt.IsNil(err))
		qt.Assert(t, qt.IsNil(os.WriteFile(filepath.Join(dir, f), b, 0o644)))
	}
	cmd := exec.Command("go", "generate", ".")
	cmd.Dir = dir
	b, err := cmd.CombinedOutput()
	qt.Assert(t, qt.IsNil(err), qt.Commentf("%s", b))

	made, err := filepath.Glob("*_bpfel.*")
	qt.Assert(t, qt.IsNil(err))
	qt.Assert(t, qt.HasLen(made, 20)) // four probes, two tiers, an object and its Go file
	for _, f := range made {
		old, err := os.ReadFile(f)
		qt.Assert(t, qt.IsNil(err))
		now, err := os.ReadFile(filepath.Join(dir, f))
		qt.Assert(t, qt.IsNil(err))
		qt.Check(t, qt.IsTrue(bytes.Equal(old, now)), qt.Commentf("%s is not what its source gives: run go generate ./bpf", f))
		pwd, err := os.Getwd()
		qt.Assert(t, qt.IsNil(err))
		qt.Check(t, qt.IsFalse(bytes.Contains(now, []byte(pwd))), qt.Commentf("%s names a directory of this machine", f))
	}
}
