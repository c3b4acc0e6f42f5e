package replay

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"github.com/xenserver/dtagent/correlate"
	"github.com/xenserver/dtagent/observer"
	"github.com/xenserver/dtagent/observer/bugtool"
	"github.com/xenserver/dtagent/observer/export"
	"github.com/xenserver/dtagent/probes/recording"
	"go.opentelemetry.io/otel/attribute"
)

// batch is how many spans are written at once.
const batch = 512

// Files writes spans to bugtool files, as an Observer named "replay" does whose uuid
// is the recording's id. The names of the files, too, depend on nothing but the
// recording. It is used by one goroutine.
type Files struct {
	out   *bugtool.Exporter
	tags  []attribute.KeyValue
	batch []*export.Record
	now   time.Time
	err   error // the first
}

// NewFiles returns Files in dir, which must be empty if it is there.
func NewFiles(dir string, h *recording.Header) (*Files, error) {
	if err := empty(dir); err != nil {
		return nil, err
	}
	f := &Files{now: h.Started}
	f.out = bugtool.New(bugtool.Options{Dir: dir, HostUUID: h.Host.UUID, Now: func() time.Time { return f.now }})
	o := observer.Observer{UUID: h.ID, NameLabel: "replay"}
	f.tags = o.Tags(observer.Host{UUID: h.Host.UUID, Name: h.Host.Name, PoolUUID: h.Host.PoolUUID})
	return f, nil
}

// empty tells whether there is nothing in dir: spans of two replays do not belong
// together.
func empty(dir string) error {
	d, err := os.Open(dir)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer d.Close()
	switch _, err := d.Readdirnames(1); {
	case err == nil:
		return fmt.Errorf("%s: %w: directory not empty", dir, os.ErrExist)
	case errors.Is(err, io.EOF):
		return nil
	default:
		return err
	}
}

// Span takes a span.
func (f *Files) Span(s *correlate.Span) {
	f.batch = append(f.batch, &export.Record{Span: s, Attributes: f.tags})
	if len(f.batch) >= batch {
		f.flush()
	}
}

// Tick takes the time, for the names of files that come later, and returns the error
// of spans that could not be written.
func (f *Files) Tick(now time.Time) error {
	f.now = now
	return f.err
}

func (f *Files) flush() {
	if f.err == nil && len(f.batch) > 0 {
		f.err = f.out.Export(context.Background(), f.batch)
	}
	clear(f.batch)
	f.batch = f.batch[:0]
}

// Close writes what is left.
func (f *Files) Close() error {
	f.flush()
	return errors.Join(f.err, f.out.Close())
}
