// Package spanlog writes the begin and the end of spans as log records: JSON
// lines in a file that is rotated and bounded, or OTLP log records.
//
// Both records of a span are made when it is known, at its end. The record of
// its begin bears the time of the begin and stands just before that of its end;
// so the file is in the order in which spans ended.
package spanlog

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"syscall"

	"gopkg.in/natefinch/lumberjack.v2"
)

// DefaultPath is where the records are written.
const DefaultPath = "/var/log/dtagent/spans.jsonl"

// Options of a Log. Zero values mean the defaults.
type Options struct {
	Path       string // DefaultPath
	MaxMB      int    // size from which on the file is rotated; 16 MiB
	Backups    int    // rotated files that are kept; 4
	NoCompress bool   // leave rotated files as they are, not in gzip
	Log        *slog.Logger
}

// Log is the file of the records of all Observers of the agent. It has mode
// 0600. Its methods may be called by several goroutines at once.
type Log struct {
	path string

	mu   sync.Mutex
	file *lumberjack.Logger
	last fs.FileInfo // of the file that was written; nil: not known
}

// New returns a Log. It touches no file before the first span.
func New(o Options) *Log {
	if o.Path == "" {
		o.Path = DefaultPath
	}
	if o.MaxMB <= 0 {
		o.MaxMB = 16
	}
	if o.Backups <= 0 {
		o.Backups = 4
	}
	return &Log{path: o.Path, file: &lumberjack.Logger{Filename: o.Path, MaxSize: o.MaxMB, MaxBackups: o.Backups, Compress: !o.NoCompress}}
}

// Close closes the file. A later write opens it again.
func (l *Log) Close() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.last = nil
	return l.file.Close()
}

// write appends p, which consists of parts that end at those offsets and are
// written whole or not at all. It returns how many were.
func (l *Log) write(p []byte, ends []int) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if err := l.open(); err != nil {
		return 0, err
	}
	n, err := l.file.Write(p)
	if err == nil {
		if l.last == nil {
			l.last, _ = os.Lstat(l.path)
		}
		return len(ends), nil
	}
	whole, end := 0, 0
	for whole < len(ends) && ends[whole] <= n {
		end = ends[whole]
		whole++
	}
	l.last = nil
	// lumberjack does not append to a file that it made, but writes on where it
	// was: so it has to open the file anew after it is cut.
	_ = l.file.Close()
	if n > end {
		if cut := l.cut(int64(n - end)); cut != nil {
			err = errors.Join(err, cut)
		}
	}
	return whole, err
}

// open makes ready for a write. The file may be another than last time: rotated,
// deleted by an operator, or left by an agent before with half a line.
func (l *Log) open() error {
	if l.last != nil {
		if now, err := os.Lstat(l.path); err == nil && os.SameFile(l.last, now) {
			return nil
		}
		l.last = nil
		_ = l.file.Close()
	}
	if err := os.MkdirAll(filepath.Dir(l.path), 0o700); err != nil {
		return err
	}
	return mend(l.path)
}

// cut takes n bytes off the end of the file.
func (l *Log) cut(n int64) error {
	info, err := os.Lstat(l.path)
	if err != nil {
		return err
	}
	return os.Truncate(l.path, max(info.Size()-n, 0))
}

// mend cuts off what follows the last line of the file and gives it its mode. A
// path that is no regular file is an error.
func mend(path string) error {
	info, err := os.Lstat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	if !info.Mode().IsRegular() {
		return fmt.Errorf("%s is no regular file", path)
	}
	f, err := os.OpenFile(path, os.O_RDWR|syscall.O_NOFOLLOW, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := f.Chmod(0o600); err != nil {
		return err
	}
	var buf [4 << 10]byte
	for end := info.Size(); end > 0; {
		start := max(end-int64(len(buf)), 0)
		n, err := f.ReadAt(buf[:end-start], start)
		if err != nil && !errors.Is(err, io.EOF) {
			return err
		}
		for i := n - 1; i >= 0; i-- {
			if buf[i] != '\n' {
				continue
			}
			if size := start + int64(i) + 1; size < info.Size() {
				return f.Truncate(size)
			}
			return nil
		}
		end = start
	}
	return f.Truncate(0)
}
