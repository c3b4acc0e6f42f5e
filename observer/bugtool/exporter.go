// Package bugtool writes spans to the files that XenServer's bugtool collects
// and xs-trace reads, byte for byte in the form of the toolstack's own.
//
// Each line of a file is one zipkin-v2 array. There is one file for each
// service, named <service>-<host uuid>-<RFC3339>.ndjson. A file that has grown to
// 1 MiB is compressed to <name>.zst and a new one is begun; a file that was
// closed is never opened again.
package bugtool

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/xenserver/dtagent/observer/export"
	"go.opentelemetry.io/otel/attribute"
)

// DefaultDir is where the toolstack writes (trace-log-dir of xapi.conf).
const DefaultDir = "/var/log/dt/zipkinv2/json"

// DefaultMaxFileBytes is the size from which on a file is rotated
// (observer-max-file-size of xapi.conf).
const DefaultMaxFileBytes = 1 << 20

const (
	// maxLine keeps a line below what common line readers take (64 KiB), and
	// one write short, so that a kill is unlikely to fall into it. Only a single
	// span larger than this makes a longer line.
	maxLine = 60 << 10
	// maxFiles bounds the files that stay open between two batches; those not
	// written for the longest time are closed.
	maxFiles = 16
)

// Options of an Exporter.
type Options struct {
	Dir          string            // "": DefaultDir
	HostUUID     string            // in file names; "": localhost, as the toolstack does
	MaxFileBytes int64             // 0: DefaultMaxFileBytes
	NoCompress   bool              // leave rotated files as they are
	Log          *slog.Logger      // nil: discarded
	Now          func() time.Time  // nil: time.Now
	Rotated      func(bytes int64) // called after a rotation with the size of the file; may be nil
}

// Exporter writes the spans of one Observer. It implements export.Exporter.
type Exporter struct {
	o     Options
	files map[string]*file
	tags  []attribute.KeyValue // scratch
	span  []byte               // scratch
	uses  uint64
}

// New returns an exporter. It touches no file before the first span.
func New(o Options) *Exporter {
	if o.Dir == "" {
		o.Dir = DefaultDir
	}
	if o.HostUUID == "" {
		o.HostUUID = "localhost"
	}
	if o.MaxFileBytes <= 0 {
		o.MaxFileBytes = DefaultMaxFileBytes
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	return &Exporter{o: o, files: map[string]*file{}}
}

// Export appends the batch to the files of its services. What could not be
// written is lost and counted in the Failure: a full disk is not waited for. A
// file never keeps half a line, and the next Export tries again.
func (e *Exporter) Export(_ context.Context, batch []*export.Record) error {
	var lost int
	var errs error
	flush := func(f *file) {
		n := f.spans
		if err := e.flush(f); err != nil {
			lost += n
			errs = firstErr(errs, err)
		}
	}
	for _, r := range batch {
		f := e.file(r.Span.Service)
		e.tags = r.AppendTags(e.tags[:0])
		e.span = AppendSpan(e.span[:0], r.Span, r.ParentID(), e.tags)
		if f.spans > 0 && len(f.line)+len(e.span)+len(",]\n") > maxLine {
			flush(f)
		}
		if f.spans == 0 {
			f.line = append(f.line[:0], '[')
		} else {
			f.line = append(f.line, ',')
		}
		f.line = append(f.line, e.span...)
		f.spans++
	}
	for _, f := range e.files {
		if f.spans > 0 {
			flush(f)
		}
	}
	for len(e.files) > maxFiles {
		e.closeOldest()
	}
	clear(e.tags[:cap(e.tags)]) // do not keep spans alive through the scratch
	if lost == 0 {
		return nil
	}
	cause := export.WriteError
	if errors.Is(errs, syscall.ENOSPC) || errors.Is(errs, syscall.EDQUOT) || errors.Is(errs, syscall.EFBIG) {
		cause = export.DiskFull
	}
	return &export.Failure{Err: fmt.Errorf("bugtool files: %w", errs), Cause: cause, Lost: lost}
}

// firstErr keeps the first error: the others of one batch have its cause.
func firstErr(first, err error) error {
	if first != nil {
		return first
	}
	return err
}

// Close closes the files. They stay as they are: like the toolstack's, the last
// file of a process is not compressed.
func (e *Exporter) Close() error {
	var err error
	for name, f := range e.files {
		err = firstErr(err, f.close())
		delete(e.files, name)
	}
	return err
}

func (e *Exporter) file(service string) *file {
	e.uses++
	f := e.files[service]
	if f == nil {
		f = &file{service: service}
		e.files[strings.Clone(service)] = f
	}
	f.used = e.uses
	return f
}

// closeOldest closes the file that was not written for the longest time.
func (e *Exporter) closeOldest() {
	var oldest *file
	for _, f := range e.files {
		if oldest == nil || f.used < oldest.used {
			oldest = f
		}
	}
	if err := oldest.close(); err != nil {
		e.o.Log.Warn("bugtool file not closed", "file", oldest.path, "err", err)
	}
	delete(e.files, oldest.service)
}

// flush writes the line of f, and rotates f when it is large enough.
func (e *Exporter) flush(f *file) error {
	f.line = append(f.line, "]\n"...)
	f.spans = 0
	if err := e.write(f, f.line); err != nil {
		return err
	}
	if f.size < e.o.MaxFileBytes {
		return nil
	}
	path, size := f.path, f.size
	if err := f.close(); err != nil {
		e.o.Log.Warn("bugtool file not closed", "file", path, "err", err)
	}
	if !e.o.NoCompress {
		if err := compress(path); err != nil {
			e.o.Log.Warn("bugtool file not compressed", "file", path, "err", err)
		}
	}
	if e.o.Rotated != nil {
		e.o.Rotated(size)
	}
	return nil
}

// write appends line to f, in a new file when f has none or when its file was
// deleted under it: trimming, the toolstack's or an operator's, may do so at
// any time, and the spans would be gone with it.
func (e *Exporter) write(f *file, line []byte) error {
	for range 3 {
		if f.fd == nil {
			if err := f.open(e.o.Dir, e.o.HostUUID, e.o.Now()); err != nil {
				return err
			}
		}
		switch err := f.append(line); {
		case err == errDeleted:
			continue
		case err != nil:
			return err
		default:
			return nil
		}
	}
	return fmt.Errorf("%s: %w each time it is made", filepath.Join(e.o.Dir, f.service), errDeleted)
}

var errDeleted = errors.New("file deleted")
