package bugtool

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"
)

// TrimLimits are the toolstack's own (xapi-tracing-log-trim.sh).
type TrimLimits struct {
	MaxMB   int // disk usage that is kept, in 1000 KiB; 0: 100
	MaxDays int // whole days after which everything goes; 0: 30
}

// Trimmed tells what a Trim removed.
type Trimmed struct {
	Files, Dirs int
	Bytes       int64 // disk usage
}

// staleTemp is the age from which on a temporary file of a rotation is taken
// for the leftover of a crash.
const staleTemp = time.Hour

// Trim does to the tree below root what the toolstack's hourly script does to
// /var/log/dt: it keeps the files written last until their disk usage passes
// MaxMB and deletes the others, deletes what is older than MaxDays, and then
// the directories that are empty, never root itself. Unlike the script it copes
// with blanks in names. Symbolic links are not followed.
//
// A file that is open for writing gets no exemption, here as there: it is among
// the newest while it is written to; and when it is idle for long enough to be
// deleted its exporter begins another.
//
// The errors of single files do not end it; they are returned joined.
func Trim(root string, l TrimLimits, now time.Time) (Trimmed, error) {
	if l.MaxMB == 0 {
		l.MaxMB = 100
	}
	if l.MaxDays == 0 {
		l.MaxDays = 30
	}
	type entry struct {
		path    string
		mtime   time.Time
		kib     int64
		regular bool
	}
	var (
		files []entry
		dirs  []string
		errs  []error
		done  Trimmed
	)
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			if !errors.Is(err, fs.ErrNotExist) {
				errs = append(errs, err)
			}
			return nil
		}
		if path == root {
			return nil
		}
		if d.IsDir() {
			dirs = append(dirs, path)
			return nil
		}
		st, err := d.Info()
		if err != nil {
			if !errors.Is(err, fs.ErrNotExist) {
				errs = append(errs, err)
			}
			return nil
		}
		e := entry{path: path, mtime: st.ModTime(), kib: (st.Size() + 1023) / 1024, regular: st.Mode().IsRegular()}
		if sys, ok := st.Sys().(*syscall.Stat_t); ok {
			e.kib = (sys.Blocks + 1) / 2 // blocks of 512 bytes
		}
		files = append(files, e)
		return nil
	})
	if err != nil {
		errs = append(errs, err)
	}

	slices.SortFunc(files, func(a, b entry) int { return b.mtime.Compare(a.mtime) })
	var kept int64 // KiB; like the script's sum it counts what is deleted too
	for _, f := range files {
		age := now.Sub(f.mtime)
		gone := age >= time.Duration(l.MaxDays+1)*24*time.Hour || // find's -mtime +30: more than 30 whole days
			age > staleTemp && strings.HasPrefix(filepath.Base(f.path), ".") && strings.HasSuffix(f.path, tempSuffix)
		if f.regular {
			kept += f.kib
			gone = gone || kept > 1000*int64(l.MaxMB)
		}
		if !gone {
			continue
		}
		switch err := os.Remove(f.path); {
		case err == nil:
			done.Files++
			done.Bytes += f.kib << 10
		case !errors.Is(err, fs.ErrNotExist):
			errs = append(errs, err)
		}
	}

	// WalkDir goes top down: from the end every directory comes after what it holds.
	for _, dir := range slices.Backward(dirs) {
		switch err := syscall.Rmdir(dir); {
		case err == nil:
			done.Dirs++
		case errors.Is(err, syscall.ENOTEMPTY), errors.Is(err, syscall.EEXIST), errors.Is(err, syscall.ENOENT):
		default:
			errs = append(errs, &fs.PathError{Op: "rmdir", Path: dir, Err: err})
		}
	}
	return done, errors.Join(errs...)
}
