package observer

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/go-quicktest/qt"
)

// watched runs a Directory and keeps the names of what it applied last.
type watched struct {
	*Directory
	mu    sync.Mutex
	names []string
	calls int
}

func watch(t *testing.T, path string) *watched {
	t.Helper()
	return watchEvery(t, path, rescanEvery)
}

func watchEvery(t *testing.T, path string, rescan time.Duration) *watched {
	t.Helper()
	w := &watched{Directory: NewDirectory(path, slog.New(slog.DiscardHandler))}
	w.rescan = rescan
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() {
		done <- w.Run(ctx, func(obs []Observer) {
			w.mu.Lock()
			defer w.mu.Unlock()
			w.calls++
			w.names = nil
			for _, o := range obs {
				w.names = append(w.names, o.NameLabel)
			}
		})
	}()
	t.Cleanup(func() {
		cancel()
		qt.Check(t, qt.IsNil(<-done))
	})
	eventually(t, "the first scan", func() bool { w.mu.Lock(); defer w.mu.Unlock(); return w.calls > 0 })
	return w
}

func (w *watched) expect(t *testing.T, names ...string) {
	t.Helper()
	eventually(t, fmt.Sprintf("%q in force; problems %v", names, w.Problems()), func() bool {
		w.mu.Lock()
		defer w.mu.Unlock()
		return slices.Equal(w.names, names)
	})
}

func write(t *testing.T, path, text string) {
	t.Helper()
	qt.Assert(t, qt.IsNil(os.WriteFile(path, []byte(text), 0o600)))
}

func TestDirectory(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "observers.d")
	w := watch(t, dir) // does not exist yet
	w.expect(t)
	qt.Assert(t, qt.IsNil(os.Mkdir(dir, 0o755)))
	write(t, dir+"/a.json", `{"name_label":"a"}`)
	w.expect(t, "a")
	write(t, dir+"/b.json", `{"name_label":"b"}`)
	write(t, dir+"/.hidden.json", `{"name_label":"hidden"}`)
	write(t, dir+"/note.txt", `no Observer`)
	w.expect(t, "a", "b")
	write(t, dir+"/a.json", `{"name_label":"A"}`) // in place, same size
	w.expect(t, "A", "b")

	// A good one that turns bad stays in force; one that never was good does not.
	write(t, dir+"/b.json", `{"name_label":"b2","endpoints":["ftp://x"]}`)
	write(t, dir+"/c.json", `{"name_label":"c"`)
	eventually(t, "two problems", func() bool { return len(w.Problems()) == 2 })
	w.expect(t, "A", "b")
	ps := w.Problems()
	qt.Check(t, qt.Equals(ps[0].Path, dir+"/b.json"))
	qt.Check(t, qt.IsTrue(ps[0].Kept))
	qt.Check(t, qt.StringContains(ps[0].Err, dir+`/b.json: endpoints: INVALID_VALUE endpoint "ftp://x"`))
	qt.Check(t, qt.IsFalse(ps[1].Kept))
	write(t, dir+"/b.json", `{"name_label":"b3"}`)
	write(t, dir+"/c.json", `{"name_label":"c"}`)
	w.expect(t, "A", "b3", "c")
	eventually(t, "no problems", func() bool { return len(w.Problems()) == 0 })

	// Bad and gone is gone.
	write(t, dir+"/c.json", `garbage`)
	eventually(t, "a problem", func() bool { return len(w.Problems()) == 1 })
	qt.Assert(t, qt.IsNil(os.Remove(dir+"/c.json")))
	w.expect(t, "A", "b3")

	// By another name and back.
	qt.Assert(t, qt.IsNil(os.Rename(dir+"/a.json", dir+"/a.json.off")))
	w.expect(t, "b3")
	qt.Assert(t, qt.IsNil(os.Rename(dir+"/a.json.off", dir+"/a.json")))
	w.expect(t, "A", "b3")

	// Removed and made anew: the watch is on the new one, so a change of the
	// same second is seen.
	qt.Assert(t, qt.IsNil(os.RemoveAll(dir)))
	w.expect(t)
	qt.Assert(t, qt.IsNil(os.Mkdir(dir, 0o755)))
	write(t, dir+"/d.json", `{"name_label":"d"}`)
	w.expect(t, "d")
}

// TestDirectoryIsWatched: changes are seen also when the directory is not read again
// for an hour.
func TestDirectoryIsWatched(t *testing.T) {
	dir := t.TempDir()
	w := watchEvery(t, dir, time.Hour)
	for i := range 4 {
		name := fmt.Sprint("D", i)
		write(t, dir+"/d.json", `{"name_label":"`+name+`"}`)
		w.expect(t, name)
	}
	qt.Assert(t, qt.IsNil(os.Remove(dir+"/d.json")))
	w.expect(t)
}

func TestDirectoryOddFiles(t *testing.T) {
	dir := t.TempDir()
	qt.Assert(t, qt.IsNil(syscall.Mkfifo(dir+"/fifo.json", 0o600)))
	qt.Assert(t, qt.IsNil(os.Mkdir(dir+"/dir.json", 0o700)))
	qt.Assert(t, qt.IsNil(os.Symlink("/nowhere", dir+"/link.json")))
	write(t, dir+"/1.json", `{"name_label":"one","uuid":"`+uuidA+`"}`)
	write(t, dir+"/2.json", `{"name_label":"two","uuid":"`+strings.ToUpper(uuidA)+`"}`)
	write(t, dir+"/big.json", strings.Repeat(" ", MaxFileBytes+1))
	w := watch(t, dir)
	w.expect(t, "one")
	var all []string
	for _, p := range w.Problems() {
		all = append(all, filepath.Base(p.Path)+" "+p.Err)
	}
	text := strings.Join(all, "\n")
	qt.Check(t, qt.HasLen(all, 5))
	for _, want := range []string{"fifo.json", "is not a regular file", "link.json", "2.json uuid: " + uuidA + " is that of 1.json too", "is larger than"} {
		qt.Check(t, qt.StringContains(text, want))
	}
	qt.Assert(t, qt.IsNil(os.Remove(dir+"/1.json")))
	w.expect(t, "two")
}

// TestDirectoryNotReadable keeps what was in force.
func TestDirectoryNotReadable(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "d")
	qt.Assert(t, qt.IsNil(os.Mkdir(dir, 0o755)))
	write(t, dir+"/a.json", `{"name_label":"a"}`)
	w := watch(t, dir)
	w.expect(t, "a")
	qt.Assert(t, qt.IsNil(os.Rename(dir, dir+".old")))
	write(t, dir, "a file where the directory was")
	eventually(t, "a problem", func() bool { return len(w.Problems()) == 1 })
	w.expect(t, "a")
	qt.Check(t, qt.IsTrue(w.Problems()[0].Kept))
}

// TestDirectoryCalls: nothing changed, nothing applied; many changes at once
// are few calls.
func TestDirectoryCalls(t *testing.T) {
	dir := t.TempDir()
	w := watch(t, dir)
	var want []string
	for i := range 100 {
		write(t, fmt.Sprintf("%s/%03d.json", dir, i), fmt.Sprintf(`{"name_label":"%d"}`, i))
		want = append(want, fmt.Sprint(i))
	}
	w.expect(t, want...)
	w.mu.Lock()
	calls := w.calls
	w.mu.Unlock()
	qt.Check(t, qt.IsTrue(calls <= 20))
	for i := range 300 {
		write(t, fmt.Sprintf("%s/%03d.json", dir, maxFiles+i), `{}`)
	}
	eventually(t, "the bound", func() bool {
		ps := w.Problems()
		return len(ps) == 1 && strings.Contains(ps[0].Err, "400 files, only the first 256")
	})
	time.Sleep(1200 * time.Millisecond)
	w.mu.Lock()
	calls = w.calls
	w.mu.Unlock()
	time.Sleep(1200 * time.Millisecond)
	w.mu.Lock()
	defer w.mu.Unlock()
	qt.Check(t, qt.Equals(w.calls, calls))
	qt.Check(t, qt.HasLen(w.names, maxFiles))
}
