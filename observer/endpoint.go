package observer

import (
	"context"
	"fmt"

	"github.com/xenserver/dtagent/observer/bugtool"
	"github.com/xenserver/dtagent/observer/export"
	"github.com/xenserver/dtagent/observer/zipkin"
)

// newExporter makes the exporter of one of o's endpoints.
func (s *Set) newExporter(_ Observer, endpoint string, _ *export.Ledger) (export.Exporter, error) {
	if endpoint == Bugtool {
		o := bugtool.Options{Dir: s.o.BugtoolDir, HostUUID: s.o.Host.UUID, Log: s.o.Log}
		if s.trim != nil {
			o.Rotated = s.trim.rotated
		}
		return bugtool.New(o), nil
	}
	return zipkin.New(endpoint, zipkin.Options{})
}

// broken stands in for an exporter that could not be made.
type broken struct{ err error }

func (b broken) Export(_ context.Context, batch []*export.Record) error {
	return &export.Failure{Err: fmt.Errorf("endpoint not usable: %w", b.err), Cause: export.Unusable, Lost: len(batch)}
}

func (broken) Close() error { return nil }
