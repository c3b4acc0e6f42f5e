package xen

import (
	"io/fs"
	"os"
	"path/filepath"
	"testing"

	"github.com/go-quicktest/qt"
)

// Packages have files in both /bin and /usr/bin; a machine has them in one place.
func TestStage(t *testing.T) {
	tree, dir := t.TempDir(), filepath.Join(t.TempDir(), "root")
	for name, mode := range map[string]fs.FileMode{
		"bin/mount": 0o755, "usr/bin/xenstore-read": 0o755, "lib/x86_64-linux-gnu/libc.so.6": 0o644,
		"etc/xen/xl.conf": 0o600, "usr/share/doc/xen/copyright": 0o644, "boot/xen-4.17-amd64.gz": 0o644, "origin": 0o644,
	} {
		file := filepath.Join(tree, name)
		qt.Assert(t, qt.IsNil(os.MkdirAll(filepath.Dir(file), 0o755)))
		qt.Assert(t, qt.IsNil(os.WriteFile(file, []byte(name), mode)))
	}
	qt.Assert(t, qt.IsNil(os.Symlink("libc.so.6", filepath.Join(tree, "lib/x86_64-linux-gnu/libc.so"))))
	qt.Assert(t, qt.IsNil(stage(tree, dir)))
	for _, name := range []string{"bin/mount", "usr/bin/mount", "bin/xenstore-read", "lib/x86_64-linux-gnu/libc.so", "usr/lib/x86_64-linux-gnu/libc.so.6", "etc/xen/xl.conf"} {
		_, err := os.ReadFile(filepath.Join(dir, name))
		qt.Check(t, qt.IsNil(err))
	}
	for _, name := range []string{"usr/share/doc", "boot", "origin"} {
		_, err := os.Lstat(filepath.Join(dir, name))
		qt.Check(t, qt.ErrorIs(err, fs.ErrNotExist), qt.Commentf(name))
	}
	st, err := os.Stat(filepath.Join(dir, "bin/mount"))
	qt.Assert(t, qt.IsNil(err))
	qt.Check(t, qt.Equals(st.Mode().Perm()&0o111, 0o111))
}
