//go:build linux

package shm

import (
	"errors"
	"path/filepath"
	"strings"

	"github.com/fsnotify/fsnotify"
)

// Watcher tells when tapdisks and rings come and go, and images are opened and closed.
type Watcher struct {
	dir Dir
	in  *fsnotify.Watcher

	// Changed holds something when something has changed; what, is to be read.
	Changed chan struct{}
}

// Watch begins to watch. The directory has to be there.
func (d Dir) Watch() (*Watcher, error) {
	in, err := fsnotify.NewBufferedWatcher(maxFiles)
	if err != nil {
		return nil, err
	}
	if err := in.Add(string(d)); err != nil {
		return nil, errors.Join(err, in.Close())
	}
	w := &Watcher{dir: d, in: in, Changed: make(chan struct{}, 1)}
	go w.run()
	return w, nil
}

// Follow has the files of a tapdisk watched, too. They are until they go.
func (w *Watcher) Follow(tgid uint32) error { return w.in.Add(w.dir.Of(tgid)) }

// Close ends it. It may be called twice.
func (w *Watcher) Close() error { return w.in.Close() }

func (w *Watcher) run() {
	for {
		select {
		case e, ok := <-w.in.Events:
			if !ok {
				return
			}
			if e.Op&(fsnotify.Create|fsnotify.Remove|fsnotify.Rename) == 0 || !w.ours(e.Name) {
				continue
			}
		case _, ok := <-w.in.Errors: // events were lost
			if !ok {
				return
			}
		}
		select {
		case w.Changed <- struct{}{}:
		default:
		}
	}
}

// ours tells whether a file is one of a tapdisk's.
func (w *Watcher) ours(name string) bool {
	if filepath.Dir(name) != filepath.Clean(string(w.dir)) {
		return true // in a directory that Follow was called for
	}
	base := filepath.Base(name)
	return strings.HasPrefix(base, processPrefix) || strings.HasPrefix(base, ringPrefix)
}
