package main

import (
	"fmt"
	"io"
	"time"

	"github.com/xenserver/dtagent/probes/event"
	"github.com/xenserver/dtagent/probes/guestio"
)

// layerFigures are what can be shown of a layer.
var layerFigures = map[string]func(*guestio.Latency) float64{
	"mean": func(l *guestio.Latency) float64 { return l.Mean },
	"p50":  func(l *guestio.Latency) float64 { return l.P50 },
	"p99":  func(l *guestio.Latency) float64 { return l.P99 },
	"max":  func(l *guestio.Latency) float64 { return l.Max },
}

// requestsOf are the guest's requests of a kind; nil when layers are not seen.
func requestsOf(v *guestio.VBD, write, totals bool) *guestio.Requests {
	if v.Layers == nil {
		return nil
	}
	io := &v.Layers.Read
	if write {
		io = &v.Layers.Write
	}
	if totals {
		return &io.Total
	}
	return &io.Interval
}

// layerMean is the larger of a layer's means of reads and writes.
func layerMean(l event.Layer) func(*guestio.VBD) float64 {
	return func(v *guestio.VBD) float64 {
		us := 0.0
		for _, write := range []bool{false, true} {
			if r := requestsOf(v, write, false); r != nil {
				us = max(us, r.Layers[l.String()].Mean)
			}
		}
		return us
	}
}

// printLayers prints a sample as a table of layers, a row for reads and one for writes
// of each disk.
func printLayers(out io.Writer, s *guestio.Sample, zone *time.Location, figure string, totals, again bool) error {
	from, unit := samplePeriod(s, zone, totals)
	p := newIOPage(s, again, fmt.Sprintf("%s, %d disks, %s; %s of each layer in ms", s.Time.In(zone).Format(time.TimeOnly), len(s.VBDs), from, figure))
	fmt.Fprintf(p.rows, "dom\tname\tdisk\tI/O\tn%s\t", unit)
	for l := event.LayerTotal; l < event.NumLayers; l++ {
		fmt.Fprintf(p.rows, "%s\t", l)
	}
	fmt.Fprintln(p.rows)
	for i := range s.VBDs {
		v := &s.VBDs[i]
		if v.Layers == nil {
			p.disk(v)
			p.nothing(int(event.NumLayers) + 2)
			p.note(v, noLayers(v))
			continue
		}
		for _, write := range []bool{false, true} {
			r := requestsOf(v, write, totals)
			name := "read"
			if write {
				name = "write"
			}
			n := float64(r.Requests)
			if !totals && s.Seconds > 0 {
				n /= s.Seconds
			}
			p.disk(v)
			fmt.Fprintf(p.rows, "%s\t%.0f\t", name, n)
			for l := event.LayerTotal; l < event.NumLayers; l++ {
				h, ok := r.Layers[l.String()]
				if !ok || h.Count == 0 {
					fmt.Fprint(p.rows, "-\t")
					continue
				}
				fmt.Fprintf(p.rows, "%s\t", milliseconds(layerFigures[figure](&h.Latency)))
			}
			fmt.Fprintln(p.rows)
		}
	}
	return p.print(out, latenciesMissing(s.Losses))
}

// noLayers says why a disk has none.
func noLayers(v *guestio.VBD) string {
	switch {
	case v.LayersWhy != "":
		return v.LayersWhy
	case v.Kind == guestio.Tapdisk:
		return "its tapdisk is not seen by layer yet"
	}
	return "only tapdisks are seen by layer, its backend is " + v.Kind
}
