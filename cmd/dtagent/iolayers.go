package main

import (
	"fmt"
	"io"
	"strconv"
	"strings"
	"text/tabwriter"
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
	var b strings.Builder
	if again {
		b.WriteString("\x1b[H\x1b[2J")
	}
	from := fmt.Sprintf("in %s", duration(s.Seconds))
	if totals {
		from = fmt.Sprintf("since %s", s.Since.In(zone).Format(time.TimeOnly))
	}
	fmt.Fprintf(&b, "%s, %d disks, %s; %s of each layer in ms\n", s.Time.In(zone).Format(time.TimeOnly), len(s.VBDs), from, figure)
	if s.Trouble != "" {
		fmt.Fprintf(&b, "trouble: %s\n", plain(s.Trouble))
	}
	w := tabwriter.NewWriter(&b, 0, 0, 2, ' ', tabwriter.AlignRight)
	unit := "/s"
	if totals {
		unit = ""
	}
	fmt.Fprintf(w, "dom\tname\tdisk\tI/O\tn%s\t", unit)
	for l := event.LayerTotal; l < event.NumLayers; l++ {
		fmt.Fprintf(w, "%s\t", l)
	}
	fmt.Fprint(w, "\n")
	var notes []string
	for i := range s.VBDs {
		v := &s.VBDs[i]
		disk := v.Device
		if disk == "" {
			disk = strconv.FormatUint(uint64(v.Devid), 10)
		}
		if v.Layers == nil {
			fmt.Fprintf(w, "%d\t%s\t%s\t%s\n", v.Domid, cut(plain(v.Domain), 20), plain(disk), strings.Repeat("-\t", int(event.NumLayers)+2))
			why := v.LayersWhy
			switch {
			case why != "":
			case v.Kind == "vbd3":
				why = "its tapdisk is not seen by layer yet"
			default:
				why = "only tapdisks are seen by layer, its backend is " + v.Kind
			}
			notes = append(notes, fmt.Sprintf("%d %s: %s", v.Domid, plain(disk), plain(why)))
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
			fmt.Fprintf(w, "%d\t%s\t%s\t%s\t%.0f\t", v.Domid, cut(plain(v.Domain), 20), plain(disk), name, n)
			for l := event.LayerTotal; l < event.NumLayers; l++ {
				h, ok := r.Layers[l.String()]
				if !ok || h.Count == 0 {
					fmt.Fprint(w, "-\t")
					continue
				}
				fmt.Fprintf(w, "%s\t", milliseconds(layerFigures[figure](&h.Latency)))
			}
			fmt.Fprint(w, "\n")
		}
	}
	if err := w.Flush(); err != nil {
		return err
	}
	if len(s.VBDs) == 0 {
		b.WriteString("no guest has a disk\n")
	}
	for _, n := range notes {
		fmt.Fprintln(&b, n)
	}
	for _, l := range s.Losses {
		fmt.Fprintf(&b, "latencies missing: %s: %d\n", l.Cause, l.Count)
	}
	if !again {
		b.WriteByte('\n')
	}
	_, err := io.WriteString(out, b.String())
	return err
}
