//go:build linux

package packaging

import (
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"testing"

	"github.com/go-quicktest/qt"
)

// source is the root of the repository.
const source = ".."

// The versions that tests build: one, and the one that it is upgraded to.
const (
	first  = "v1.0.0"
	second = "v1.1.0-2-gabc1234"
)

func TestMain(m *testing.M) {
	if mode := os.Getenv(helperMode); mode != "" {
		err := helpers[mode]()
		fmt.Fprintln(os.Stderr, mode+":", err) // it does not come back otherwise
		os.Exit(125)
	}
	code := m.Run()
	if built.dir != "" {
		os.RemoveAll(built.dir)
	}
	os.Exit(code)
}

// built holds what several tests use.
var built struct {
	mu       sync.Mutex
	dir      string
	packages map[string]string // by kind and version
}

// binary builds the agent as `make` does.
func binary(t testing.TB, version string) string {
	t.Helper()
	built.mu.Lock()
	defer built.mu.Unlock()
	return buildBinary(t, version)
}

func buildBinary(t testing.TB, version string) string {
	t.Helper()
	if built.dir == "" {
		var err error
		built.dir, err = os.MkdirTemp("", "dtagent-packages-")
		qt.Assert(t, qt.IsNil(err))
		built.packages = map[string]string{}
	}
	path := filepath.Join(built.dir, "dtagent-"+version)
	if _, err := os.Stat(path); err == nil {
		return path
	}
	cmd := exec.Command("go", "build", "-trimpath", "-ldflags", "-s -w -X main.version="+version, "-o", path, "./cmd/dtagent")
	cmd.Dir = source
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	out, err := cmd.CombinedOutput()
	qt.Assert(t, qt.IsNil(err), qt.Commentf("%s", out))
	return path
}

// pack builds a package of a version, once.
func pack(t testing.TB, k Kind, describe string) string {
	t.Helper()
	built.mu.Lock()
	defer built.mu.Unlock()
	bin := buildBinary(t, describe)
	key := k.name() + describe
	if built.packages[key] == "" {
		path, err := Build(context.Background(), k, Options{Source: source, Binary: bin, Version: versionOf(t, describe), Time: commitTime, Out: built.dir})
		qt.Assert(t, qt.IsNil(err))
		built.packages[key] = path
	}
	return built.packages[key]
}

func versionOf(t testing.TB, describe string) string {
	t.Helper()
	v, err := Version(describe, commitTime)
	qt.Assert(t, qt.IsNil(err))
	return v
}

// name tells kinds apart in tests.
func (k Kind) name() string {
	if k.Dist != "" {
		return k.Format + "-" + k.Dist
	}
	return k.Format
}

func copyFile(t testing.TB, from, to string, mode os.FileMode) {
	t.Helper()
	in, err := os.Open(from)
	qt.Assert(t, qt.IsNil(err))
	defer in.Close()
	out, err := os.OpenFile(to, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, mode)
	qt.Assert(t, qt.IsNil(err))
	_, err = io.Copy(out, in)
	qt.Assert(t, qt.IsNil(err))
	qt.Assert(t, qt.IsNil(out.Close()))
}
