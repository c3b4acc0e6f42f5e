//go:build linux

package probes

import (
	"context"
	"time"

	"github.com/xenserver/dtagent/bpf"
)

// Measure watches for d what the attached programs cost: see bpf.Session.Measure.
func (m *Manager) Measure(ctx context.Context, d time.Duration) (bpf.Costs, error) {
	return m.session.Measure(ctx, d)
}
