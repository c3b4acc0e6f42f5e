package observer

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/go-quicktest/qt"
	"github.com/xenserver/dtagent/observer/export"
	"github.com/xenserver/dtagent/probes/event"
	"go.opentelemetry.io/otel/attribute"
)

// TestSetExperimental: what is called experimental is left out, also by name.
func TestSetExperimental(t *testing.T) {
	made := 0
	s := NewSet(Options{Host: thisHost, Limits: fast, NoTrim: true, Experimental: event.Of(event.SMAPI),
		NewExporter: func(Observer, string, *export.Ledger) (export.Exporter, error) { made++; return discard{}, nil }})
	only, both := enabled(uuidA, "e"), enabled(uuidB, "e")
	only.Components, both.Components = []string{"smapi"}, []string{"xapi", "smapi"}
	s.Apply([]Observer{only, both})
	qt.Check(t, qt.Equals(s.Wanted().Components, event.Of(event.Xapi)))
	s.Export(span(event.SMAPI, "LVMSR vdi_attach"))
	s.Export(span(event.Xapi, "VM.start"))
	qt.Check(t, qt.Equals(s.Totals().Produced, 1))
	qt.Check(t, qt.Equals(made, 1)) // the first Observer observes nothing
	st := s.Stats()
	qt.Check(t, qt.Equals(st[0].Components, ""))
	qt.Check(t, qt.StringContains(strings.Join(st[0].Warnings, "\n"), "smapi left out as experimental"))
	closeSet(t, s)
}

// TestSetAlso: a span goes to those who want its component or that of its
// program, once.
func TestSetAlso(t *testing.T) {
	b := newBench(fast, nil, nil)
	daemon, program, both := enabled(uuidA, "daemon"), enabled(uuidB, "program"), enabled("cccccccc-0000-4000-8000-000000000003", "both")
	daemon.Components, program.Components, both.Components = []string{"xenopsd"}, []string{"xenguest"}, []string{"xenopsd", "xenguest"}
	b.Apply([]Observer{daemon, program, both})
	sp := span(event.Xenopsd, "xenguest")
	sp.Also = event.Xenguest
	b.Export(sp)
	b.Export(span(event.Xenopsd, "VM_start"))
	closeSet(t, b.Set)
	qt.Check(t, qt.DeepEquals(b.made[0].names, []string{"xenguest", "VM_start"}))
	qt.Check(t, qt.DeepEquals(b.made[1].names, []string{"xenguest"}))
	qt.Check(t, qt.DeepEquals(b.made[2].names, []string{"xenguest", "VM_start"}))
}

// TestTotalBytes: many Observers with dead endpoints share one bound.
func TestTotalBytes(t *testing.T) {
	l := fast
	l.QueueBytes, l.TotalBytes = 1<<20, 2<<20
	b := newBench(l, nil, func(string) func(context.Context, []*Record) error {
		return func(context.Context, []*Record) error { return &export.Failure{Err: errors.New("down"), Retry: true} }
	})
	var obs []Observer
	for i := range 10 {
		obs = append(obs, enabled(fmt.Sprintf("%08d-0000-4000-8000-000000000001", i), "down"))
	}
	b.Apply(obs)
	for range 100 {
		sp := span(event.Xapi, "big")
		sp.Attributes = append(sp.Attributes, attribute.String("v", strings.Repeat("x", 32<<10)))
		b.Export(sp)
		if used := b.budget.Load(); used > 3<<20 { // each queue keeps one span at least
			t.Fatalf("%d bytes queued", used)
		}
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	_ = b.Close(ctx)
	c := b.Totals()
	exact(t, c)
	qt.Check(t, qt.Equals(c.Lost(), 1000))
	qt.Check(t, qt.Equals(b.budget.Load(), 0))
}

// TestSetHostChanges: what XAPI says of the host is on the spans from then on.
func TestSetHostChanges(t *testing.T) {
	b := newBench(fast, nil, nil)
	b.Apply([]Observer{enabled(uuidA, "e")})
	b.Export(span(event.Xapi, "one"))
	b.SetHost(Host{UUID: uuidB, Name: "renamed", PoolUUID: "p2"})
	b.Export(span(event.Xapi, "two"))
	closeSet(t, b.Set)
	qt.Check(t, qt.HasLen(b.made, 1))
	qt.Check(t, qt.Equals(b.made[0].tags[0]["xs.host.name"], "h1"))
	qt.Check(t, qt.Equals(b.made[0].tags[1]["xs.host.name"], "renamed"))
	qt.Check(t, qt.Equals(b.made[0].tags[1]["xs.pool.uuid"], "p2"))
	qt.Check(t, qt.Equals(b.made[0].tags[1]["xs.host.uuid"], hostA)) // which host it is does not change
}
