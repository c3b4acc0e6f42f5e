package vm

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"github.com/go-quicktest/qt"
)

func TestRenewed(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "bookworm")
	fills := 0
	fill := func(content string, err error) func(string) error {
		return func(tmp string) error {
			fills++
			return errors.Join(err, os.WriteFile(filepath.Join(tmp, "vmlinuz"), []byte(content), 0o644))
		}
	}
	has := func(want string) {
		t.Helper()
		b, err := os.ReadFile(filepath.Join(dir, "vmlinuz"))
		qt.Assert(t, qt.IsNil(err))
		qt.Check(t, qt.Equals(string(b), want))
	}
	qt.Assert(t, qt.IsNil(renewed(dir, "6.1.1", fill("one", nil))))
	qt.Assert(t, qt.IsNil(renewed(dir, "6.1.1", fill("two", nil))))
	qt.Check(t, qt.Equals(fills, 1))
	has("one")
	qt.Assert(t, qt.IsNotNil(renewed(dir, "6.1.2", fill("half", errors.New("the mirror is gone")))))
	has("one")
	qt.Assert(t, qt.IsNil(renewed(dir, "6.1.2", fill("three", nil))))
	has("three")
}

func TestCacheDir(t *testing.T) {
	t.Setenv("DTAGENT_CACHE", "/somewhere/else")
	d, err := CacheDir()
	qt.Assert(t, qt.IsNil(err))
	qt.Check(t, qt.Equals(d, "/somewhere/else"))
	t.Setenv("DTAGENT_CACHE", "")
	t.Setenv("XDG_CACHE_HOME", "/home/x/.cache")
	d, err = CacheDir()
	qt.Assert(t, qt.IsNil(err))
	qt.Check(t, qt.Equals(d, "/home/x/.cache/dtagent"))
}

func TestKeep(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "sid")
	var said []string
	c := &Cache{log: func(line string) { said = append(said, line) }}
	gone := errors.New("the mirror is gone")
	qt.Check(t, qt.ErrorMatches(c.keep(dir, "kernel of sid", func() error { return gone }), "kernel of sid: the mirror is gone"))
	qt.Check(t, qt.HasLen(said, 0))
	qt.Assert(t, qt.IsNil(renewed(dir, "linux 7.2.13", func(string) error { return nil })))
	qt.Check(t, qt.IsNil(c.keep(dir, "kernel of sid", func() error { return gone })))
	qt.Assert(t, qt.HasLen(said, 1))
	qt.Check(t, qt.StringContains(said[0], "kernel of sid: going on with what is in the cache (linux 7.2.13): the mirror is gone"))
}
