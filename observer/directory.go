package observer

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/fsnotify/fsnotify"
)

// DefaultDir holds the local Observers.
const DefaultDir = "/etc/dtagent/observers.d"

const (
	// rescanEvery bounds the time until a change is in force when the kernel
	// did not tell of it: the directory did not exist, or the queue was full.
	rescanEvery = time.Second
	// settleTime gathers the events of one change.
	settleTime = 20 * time.Millisecond
	// maxFiles bounds the files that are read.
	maxFiles = 256
	// youngFile is the age below which a file is read again although its times
	// are the same: they advance in steps of a few milliseconds.
	youngFile = 2 * time.Second
)

// Directory is the source of local Observers: the files *.json of one
// directory, one Observer each. Files whose names begin with a dot are left
// out.
//
// A file that turns bad keeps its last good Observer in force; a file that was
// never good since the start is left out. Both are shown by Problems until the
// file is put right or removed. A directory that does not exist is one without
// files; one that cannot be read keeps what was in force.
type Directory struct {
	path   string
	log    *slog.Logger
	rescan time.Duration // rescanEvery

	files map[string]*observerFile // by base name; owned by Run

	mu       sync.Mutex
	problems []Problem
}

// Problem is a file, or the directory, that cannot be used as it is.
type Problem struct {
	Path string `json:"path"`
	Err  string `json:"error"`
	Kept bool   `json:"kept"` // the last good state is still in force
}

type observerFile struct {
	sum  fileSum
	good *Observer // last good state
	err  error
}

// fileSum changes whenever the file does.
type fileSum struct {
	ino          uint64
	size         int64
	mtime, ctime time.Time
}

// NewDirectory returns the source of the files in path ("": DefaultDir). A nil
// log discards.
func NewDirectory(path string, log *slog.Logger) *Directory {
	if path == "" {
		path = DefaultDir
	}
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	return &Directory{path: path, log: log, rescan: rescanEvery, files: map[string]*observerFile{}}
}

// Problems returns what is wrong at the moment.
func (d *Directory) Problems() []Problem {
	d.mu.Lock()
	defer d.mu.Unlock()
	return slices.Clone(d.problems)
}

// Run calls apply with the Observers that are there, once at the start and
// after each change, within a second of it. Calls do not overlap. It returns nil
// when ctx is done. Run must be called once only.
func (d *Directory) Run(ctx context.Context, apply func([]Observer)) error {
	var events <-chan fsnotify.Event
	var errs <-chan error
	w, err := fsnotify.NewWatcher()
	if err != nil { // out of inotify instances: the rescan does it alone
		d.log.Warn("Observer directory not watched, only read each second", "dir", d.path, "err", err)
	} else {
		defer w.Close()
		events, errs = w.Events, w.Errors
	}
	tick := time.NewTicker(d.rescan)
	defer tick.Stop()
	settle := time.NewTimer(0)
	defer settle.Stop()
	armed := true
	var last []Observer
	first := true
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-events:
			if !armed {
				settle.Reset(settleTime)
				armed = true
			}
			continue
		case <-errs:
			continue // the rescan finds what was missed
		case <-settle.C:
			armed = false
		case <-tick.C:
		}
		if w != nil {
			// Adding it again does nothing to a watch that is there, and is needed
			// when the directory was made, or made anew. Before the scan: what
			// changes after the scan makes an event.
			_ = w.Add(d.path)
		}
		now, ok := d.scan()
		if ok && (first || !reflect.DeepEqual(now, last)) {
			apply(now)
			last, first = now, false
		}
	}
}

// scan reads what has changed. It returns false when the directory could not
// be read.
func (d *Directory) scan() ([]Observer, bool) {
	entries, err := os.ReadDir(d.path)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		d.show(append(d.fileProblems(nil), Problem{Path: d.path, Err: err.Error(), Kept: true}))
		return nil, false
	}
	var names []string
	for _, e := range entries {
		if n := e.Name(); strings.HasSuffix(n, ".json") && !strings.HasPrefix(n, ".") {
			names = append(names, n)
		}
	}
	var extra []Problem
	if len(names) > maxFiles {
		extra = append(extra, Problem{Path: d.path, Err: fmt.Sprintf("%d files, only the first %d by name are read; remove some", len(names), maxFiles)})
		names = names[:maxFiles]
	}
	for n := range d.files {
		if !slices.Contains(names, n) {
			delete(d.files, n)
		}
	}

	var out []Observer
	owner := map[string]string{} // file by uuid
	for _, n := range names {
		f := d.files[n]
		if f == nil {
			f = &observerFile{}
			d.files[n] = f
		}
		if !f.read(filepath.Join(d.path, n)) {
			delete(d.files, n) // gone since the listing
			continue
		}
		if f.good == nil {
			continue
		}
		if other, ok := owner[f.good.UUID]; ok {
			extra = append(extra, Problem{Path: filepath.Join(d.path, n), Err: fmt.Sprintf("uuid: %s is that of %s too; give this file another one", f.good.UUID, other)})
			continue
		}
		owner[f.good.UUID] = n
		out = append(out, f.good.Clone())
	}
	d.show(d.fileProblems(extra))
	return out, true
}

// read brings f up to date. It returns false when the file is gone.
func (f *observerFile) read(path string) bool {
	st, err := os.Stat(path)
	if errors.Is(err, fs.ErrNotExist) {
		if _, err := os.Lstat(path); err != nil {
			return false
		}
	}
	if err != nil {
		f.err = fmt.Errorf("%s: %w", path, err)
		return true
	}
	sum := sumOf(st)
	if sum == f.sum && time.Since(sum.ctime) > youngFile {
		return true
	}
	data, err := readSmall(path)
	if errors.Is(err, fs.ErrNotExist) {
		return false
	}
	f.sum = sum
	if err != nil {
		f.err = err
		f.sum = fileSum{} // try again
		return true
	}
	o, err := Parse(path, data)
	f.err = err
	if err == nil {
		f.good = &o
	}
	return true
}

func sumOf(st fs.FileInfo) fileSum {
	s := fileSum{size: st.Size(), mtime: st.ModTime()}
	if sys, ok := st.Sys().(*syscall.Stat_t); ok {
		s.ino, s.ctime = sys.Ino, time.Unix(sys.Ctim.Unix())
	}
	return s
}

// readSmall reads a regular file of at most MaxFileBytes and one byte more, so
// that Parse can tell. It does not wait for the writer of a pipe.
func readSmall(path string) ([]byte, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if !st.Mode().IsRegular() {
		return nil, fmt.Errorf("%s: is not a regular file; remove it", path)
	}
	return io.ReadAll(io.LimitReader(f, MaxFileBytes+1))
}

// fileProblems returns extra and the files that are bad.
func (d *Directory) fileProblems(extra []Problem) []Problem {
	for n, f := range d.files {
		if f.err != nil {
			extra = append(extra, Problem{Path: filepath.Join(d.path, n), Err: f.err.Error(), Kept: f.good != nil})
		}
	}
	slices.SortFunc(extra, func(a, b Problem) int { return strings.Compare(a.Path+a.Err, b.Path+b.Err) })
	return extra
}

// show makes ps the current problems and logs what is new and what is over.
func (d *Directory) show(ps []Problem) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, p := range ps {
		if !slices.Contains(d.problems, p) {
			d.log.Warn("Observer not usable as it is", "path", p.Path, "err", p.Err, "last_good_kept", p.Kept)
		}
	}
	for _, old := range d.problems {
		if !slices.ContainsFunc(ps, func(p Problem) bool { return p.Path == old.Path }) {
			d.log.Info("Observer usable again or removed", "path", old.Path)
		}
	}
	d.problems = ps
}
