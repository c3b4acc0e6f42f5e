package bugtool

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/go-quicktest/qt"
)

func put(t *testing.T, path string, kib int, age time.Duration, now time.Time) {
	t.Helper()
	qt.Assert(t, qt.IsNil(os.MkdirAll(filepath.Dir(path), 0o700)))
	qt.Assert(t, qt.IsNil(os.WriteFile(path, []byte(strings.Repeat("x", kib<<10)), 0o700)))
	qt.Assert(t, qt.IsNil(os.Chtimes(path, now.Add(-age), now.Add(-age))))
}

func tree(t *testing.T, root string) (out []string) {
	t.Helper()
	qt.Assert(t, qt.IsNil(filepath.WalkDir(root, func(p string, _ os.DirEntry, err error) error {
		if p != root {
			out = append(out, strings.TrimPrefix(p, root+"/"))
		}
		return err
	})))
	slices.Sort(out)
	return out
}

func TestTrim(t *testing.T) {
	root, now := t.TempDir(), time.Now()
	const day = 24 * time.Hour
	put(t, root+"/zipkinv2/json/new one", 400, time.Minute, now)
	put(t, root+"/zipkinv2/json/b", 400, time.Hour, now)
	put(t, root+"/zipkinv2/json/c with  blanks\n", 400, 2*time.Hour, now) // passes the limit
	put(t, root+"/other/small", 4, 3*time.Hour, now)                      // behind it
	put(t, root+"/empty/x/y", 1, 31*day, now)                             // too old, and the only one there
	put(t, root+"/keep/edge", 1, 31*day-time.Minute, now)
	put(t, root+"/.xapi.ndjson.zst.tmp", 1, 30*time.Minute, now)
	qt.Assert(t, qt.IsNil(os.Symlink("/etc/hostname", root+"/link")))
	qt.Assert(t, qt.IsNil(os.Symlink("/etc", root+"/dirlink")))

	got, err := Trim(root, TrimLimits{MaxMB: 100}, now)
	qt.Assert(t, qt.IsNil(err))
	qt.Assert(t, qt.Equals(got.Files, 1)) // only the old one
	qt.Assert(t, qt.Equals(got.Dirs, 2))
	qt.Assert(t, qt.DeepEquals(tree(t, root), []string{".xapi.ndjson.zst.tmp", "dirlink", "keep", "keep/edge", "link", "other", "other/small",
		"zipkinv2", "zipkinv2/json", "zipkinv2/json/b", "zipkinv2/json/c with  blanks\n", "zipkinv2/json/new one"}))

	got, err = Trim(root, TrimLimits{MaxMB: 1}, now.Add(45*time.Minute)) // 1000 KiB
	qt.Assert(t, qt.IsNil(err))
	qt.Assert(t, qt.Equals(got.Files, 4)) // temporary file, c, small, edge
	qt.Assert(t, qt.DeepEquals(tree(t, root), []string{"dirlink", "link", "zipkinv2", "zipkinv2/json", "zipkinv2/json/b", "zipkinv2/json/new one"}))

	got, err = Trim(root, TrimLimits{}, now.Add(40*day))
	qt.Assert(t, qt.IsNil(err))
	qt.Assert(t, qt.HasLen(tree(t, root), 0))
	_, err = os.Stat(root)
	qt.Assert(t, qt.IsNil(err))
	_, err = os.Stat("/etc/hostname")
	qt.Assert(t, qt.IsNil(err))

	_, err = Trim(root+"/nothing", TrimLimits{}, now)
	qt.Assert(t, qt.IsNil(err))
}
