package spanlog

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"syscall"

	"github.com/xenserver/dtagent/observer/export"
)

// Observer is whose spans are logged.
type Observer struct {
	UUID, Name                   string
	HostUUID, HostName, PoolUUID string // for OTLP; "": not known
}

// maxChunk is how many bytes are written at once; the file is rotated only
// between two writes.
const maxChunk = 64 << 10

// Exporter returns an exporter that writes the spans of that Observer. Closing
// it leaves the Log open.
func (l *Log) Exporter(ob Observer) export.Exporter {
	e := &fileExporter{log: l}
	e.json = slog.NewJSONHandler(&e.chunk, nil).WithAttrs([]slog.Attr{
		slog.String("xs.observer.name", ob.Name), slog.String("xs.observer.uuid", ob.UUID),
	})
	return e
}

type fileExporter struct {
	log   *Log
	json  slog.Handler // writes to chunk
	chunk bytes.Buffer
	ends  []int // of the spans in chunk
	span  span  // scratch
}

// Export writes the batch. What could not be written is lost and counted in the
// Failure: a full disk is not waited for. The file never keeps half a line or
// one record of a span without the other.
func (e *fileExporter) Export(ctx context.Context, batch []*export.Record) error {
	var lost int
	var errs error
	flush := func() {
		n, err := e.log.write(e.chunk.Bytes(), e.ends)
		lost += len(e.ends) - n
		if errs == nil {
			errs = err
		}
		e.chunk.Reset()
		e.ends = e.ends[:0]
	}
	for _, r := range batch {
		e.span.set(r)
		// The handler fails only when its writer does, and a buffer does not.
		_ = e.json.Handle(ctx, e.span.begin())
		_ = e.json.Handle(ctx, e.span.end())
		e.ends = append(e.ends, e.chunk.Len())
		if e.chunk.Len() >= maxChunk {
			flush()
		}
	}
	if len(e.ends) > 0 {
		flush()
	}
	e.span.clear()
	if lost == 0 {
		return nil
	}
	cause := export.WriteError
	if errors.Is(errs, syscall.ENOSPC) || errors.Is(errs, syscall.EDQUOT) || errors.Is(errs, syscall.EFBIG) {
		cause = export.DiskFull
	}
	return &export.Failure{Err: fmt.Errorf("span log: %w", errs), Cause: cause, Lost: lost}
}

func (e *fileExporter) Close() error { return nil }
