package main

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"
	"unicode"

	"github.com/spf13/cobra"

	"github.com/xenserver/dtagent/cmd/dtagent/control"
	"github.com/xenserver/dtagent/cmd/dtagent/judge"
	"github.com/xenserver/dtagent/correlate/verdict"
	"github.com/xenserver/dtagent/probes/event"
	"github.com/xenserver/dtagent/probes/guestio"
)

// ioFlags are what `dtagent io` was told.
type ioFlags struct {
	control     string
	interval    time.Duration
	count       int
	once        bool
	totals      bool
	sort        string
	vm, sr, vbd string
	heatmap     string
	layers      string
	figures     bool
	direct      bool
	xenstore    string
	verdict     string
	length      time.Duration
}

func newIO() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "io",
		Short: "Show what the guests' disks do: requests, latencies, and which layer is slow",
		Long: `Show what the disks of the guests do, from the running agent: requests and bytes a
second and how long they took, for each disk. They are watched while this runs, by
tracepoints of the block layer in dom0 and xenstore; it needs no Observer.

With --layers it shows where the requests' time went on their way through dom0. With
--heatmap it draws how the latencies are spread, a line for each interval.
With --figures it shows what tapdisks and dom0 tell of themselves: how full the rings
are, CPU time, pauses, the way to NFS and iSCSI. That needs no eBPF; with --direct it
needs no agent either.
With --verdict it watches for some time, says which layer of a disk's way through
dom0 holds its requests up, and why, and ends: with exit code 4 when it found
something.`,
		Example: `  dtagent io
  dtagent io --once --interval 10s --json
  dtagent io --vm web --sort p99
  dtagent io --layers=p99 --sort device
  dtagent io --heatmap --vbd web/xvda
  dtagent io --verdict all --for 1m`,
		Args: cobra.NoArgs,
	}
	var f ioFlags
	flags := cmd.Flags()
	flags.StringVar(&f.control, "control", defaultControl, "socket of the agent")
	flags.DurationVar(&f.interval, "interval", time.Second, "between samples")
	flags.IntVar(&f.count, "count", 0, "end after so many samples (0: Ctrl-C ends it)")
	flags.BoolVar(&f.once, "once", false, "one sample of one interval")
	flags.BoolVar(&f.totals, "totals", false, "show what was counted since the agent began to watch, not the last interval")
	flags.StringVar(&f.sort, "sort", "", "column by which the disks are in order, the largest first: "+strings.Join(sortColumns(), ", "))
	flags.StringVar(&f.vm, "vm", "", "only disks of this VM: uuid or name")
	flags.StringVar(&f.sr, "sr", "", "only disks on this SR: uuid")
	flags.StringVar(&f.vbd, "vbd", "", "only this disk: uuid of its VBD or VDI, or VM/device")
	flags.StringVar(&f.layers, "layers", "", "show how long requests were in each layer: mean, p50, p99, max")
	flags.Lookup("layers").NoOptDefVal = "mean"
	flags.StringVar(&f.heatmap, "heatmap", "", "draw the latencies of all I/O, or of that kind: all, read, write")
	flags.Lookup("heatmap").NoOptDefVal = "all"
	flags.BoolVar(&f.figures, "figures", false, "show what tapdisks and dom0 tell of themselves, without eBPF")
	flags.BoolVar(&f.direct, "direct", false, "look without the agent, and so without eBPF; shows --figures")
	flags.StringVar(&f.xenstore, "xenstore", "", "with --direct: xenstored's socket or device")
	flags.StringVar(&f.verdict, "verdict", "", "say what holds up the disks of this VM, VBD or SR, or all")
	flags.DurationVar(&f.length, "for", 30*time.Second, "how long --verdict watches")
	cmd.RunE = work(func(cmd *cobra.Command, _ []string) error {
		if err := f.check(flags.Changed("for")); err != nil {
			return &verbError{verb: "io", code: exitUsage, err: err}
		}
		switch {
		case f.verdict != "":
			return f.judge(cmd)
		case f.heatmap != "":
			return f.heat(cmd)
		}
		out := cmd.OutOrStdout()
		show := func(s *guestio.Sample) error {
			if f.figures {
				return printFigures(out, s, time.Local, onTerminal(out) && f.count != 1)
			}
			if f.layers != "" {
				return printLayers(out, s, time.Local, f.layers, f.totals, onTerminal(out) && f.count != 1)
			}
			return printIO(out, s, time.Local, f.totals, onTerminal(out) && f.count != 1)
		}
		if asJSON(cmd) {
			enc := json.NewEncoder(out)
			enc.SetEscapeHTML(false)
			show = func(s *guestio.Sample) error { return enc.Encode(s) }
		}
		return f.samples(cmd, show)
	})
	return cmd
}

// check finds what cannot be meant.
func (f *ioFlags) check(length bool) error {
	switch {
	case f.interval < control.MinInterval || f.interval > control.MaxInterval:
		return fmt.Errorf("--interval %s: from %s to %s", f.interval, control.MinInterval, control.MaxInterval)
	case f.count < 0:
		return fmt.Errorf("--count %d is less than nothing", f.count)
	case f.once && f.count > 1:
		return fmt.Errorf("--once and --count %d exclude each other", f.count)
	case f.sort != "" && sorts[f.sort] == nil:
		return fmt.Errorf("--sort %s: one of %s", f.sort, strings.Join(sortColumns(), ", "))
	case f.heatmap != "" && !slices.Contains([]string{"all", "read", "write"}, f.heatmap):
		return fmt.Errorf("--heatmap=%s: all, read or write", f.heatmap)
	case f.layers != "" && layerFigures[f.layers] == nil:
		return fmt.Errorf("--layers=%s: mean, p50, p99 or max", f.layers)
	case f.layers != "" && f.heatmap != "":
		return errors.New("--layers and --heatmap exclude each other")
	case (f.figures || f.direct) && (f.layers != "" || f.heatmap != "" || f.verdict != "" || f.totals):
		return errors.New("--figures and --direct go with none of --layers, --heatmap, --verdict, --totals")
	case f.xenstore != "" && !f.direct:
		return errors.New("--xenstore is for --direct; else the agent knows")
	case f.heatmap != "" && f.totals:
		return errors.New("--heatmap shows intervals, --totals all the time: one of them")
	case f.verdict != "" && (f.heatmap != "" || f.layers != "" || f.totals || f.once || f.count > 0):
		return errors.New("--verdict goes with none of --layers, --heatmap, --totals, --once, --count")
	case length && f.verdict == "":
		return errors.New("--for is how long --verdict watches: name a disk, VM or SR, or --verdict all")
	case f.length < judge.MinTime || f.length > judge.MaxTime:
		return fmt.Errorf("--for %s: from %s to %s", f.length, judge.MinTime, judge.MaxTime)
	}
	if f.once {
		f.count = 1
	}
	f.figures = f.figures || f.direct
	return nil
}

var errNoDisk = errors.New("no such disk")

// samples calls show with the disks that were asked for, in order, until that is enough.
func (f *ioFlags) samples(cmd *cobra.Command, show func(*guestio.Sample) error) error {
	ctx, stop := context.WithCancel(cmd.Context())
	defer stop()
	n := 0
	take := func(s *guestio.Sample) error {
		if err := f.choose(s); err != nil {
			return err
		}
		if err := show(s); err != nil {
			return err
		}
		if n++; n == f.count {
			return errEnough
		}
		return nil
	}
	var err error
	if f.direct {
		err = direct(ctx, f.xenstore, f.interval, take)
	} else {
		err = control.NewClient(f.control).IO(ctx, f.interval, nil, take)
	}
	switch {
	case errors.Is(err, errEnough):
		return nil
	case err != nil || ctx.Err() != nil:
		return err
	case n == 0 || f.count > 0:
		return errors.New("the agent stops")
	}
	fmt.Fprintln(cmd.ErrOrStderr(), "dtagent io: the agent stops")
	return nil
}

// choose leaves the disks that were asked for. That there is none is an error.
func (f *ioFlags) choose(s *guestio.Sample) error {
	if f.vm != "" || f.sr != "" || f.vbd != "" {
		all := s.VBDs
		s.VBDs = slices.DeleteFunc(slices.Clone(all), func(v guestio.VBD) bool {
			w := judge.WhoOf(&v)
			return f.vm != "" && !judge.IsVM(&w, f.vm) || f.sr != "" && !judge.IsSR(&w, f.sr) || f.vbd != "" && !judge.IsVBD(&w, f.vbd)
		})
		if len(s.VBDs) == 0 && s.Trouble == "" {
			who := make([]verdict.Who, len(all))
			for i := range all {
				who[i] = judge.WhoOf(&all[i])
			}
			return noDisk(who)
		}
	}
	if by := sorts[f.sort]; by != nil {
		slices.SortStableFunc(s.VBDs, func(a, b guestio.VBD) int { return cmp.Compare(by(&b), by(&a)) })
	}
	return nil
}

// noDisk says which there are.
func noDisk(who []verdict.Who) error {
	const most = 10
	var names []string
	for i := range who {
		if len(names) == most {
			names = append(names, fmt.Sprintf("and %d more", len(who)-most))
			break
		}
		names = append(names, plain(cmp.Or(who[i].Name, who[i].VM)+"/"+who[i].Device))
	}
	if len(names) == 0 {
		return fmt.Errorf("%w: no guest of this host has one", errNoDisk)
	}
	return fmt.Errorf("%w on this host: there are %s. A VM is named by uuid or name, a disk by the uuid of its VBD or VDI or as VM/device, an SR by uuid; `dtagent io --json` has them all", errNoDisk, strings.Join(names, ", "))
}

// sorts are the columns by which disks can be sorted.
var sorts = map[string]func(*guestio.VBD) float64{
	"reads":       func(v *guestio.VBD) float64 { return v.Read.Interval.OpsPerSecond },
	"writes":      func(v *guestio.VBD) float64 { return v.Write.Interval.OpsPerSecond },
	"read-bytes":  func(v *guestio.VBD) float64 { return v.Read.Interval.BytesPerSecond },
	"write-bytes": func(v *guestio.VBD) float64 { return v.Write.Interval.BytesPerSecond },
	"flushes":     func(v *guestio.VBD) float64 { return v.Flush.Interval.OpsPerSecond },
	"p50":         longest(func(l *guestio.Latency) float64 { return l.P50 }),
	"p99":         longest(func(l *guestio.Latency) float64 { return l.P99 }),
	"max":         longest(func(l *guestio.Latency) float64 { return l.Max }),
	"mean":        longest(func(l *guestio.Latency) float64 { return l.Mean }),
	"total":       layerMean(event.LayerTotal),
	"runq":        layerMean(event.LayerRunQueue),
	"tapdisk":     layerMean(event.LayerTapdisk),
	"metadata":    layerMean(event.LayerMetadata),
	"copy":        layerMean(event.LayerCopy),
	"submit":      layerMean(event.LayerSubmit),
	"queue":       layerMean(event.LayerQueue),
	"device":      layerMean(event.LayerDevice),
	"pickup":      layerMean(event.LayerPickup),
}

func sortColumns() []string {
	var names []string
	for name := range sorts {
		names = append(names, name)
	}
	slices.Sort(names)
	return names
}

// longest is the larger of what reads and writes have.
func longest(of func(*guestio.Latency) float64) func(*guestio.VBD) float64 {
	return func(v *guestio.VBD) float64 {
		us := 0.0
		for _, io := range []*guestio.IO{&v.Read, &v.Write} {
			if l := io.Interval.Latency; l != nil {
				us = max(us, of(l))
			}
		}
		return us
	}
}

// printIO prints a sample as a table, over the one before on a terminal.
func printIO(out io.Writer, s *guestio.Sample, zone *time.Location, totals, again bool) error {
	var b strings.Builder
	if again {
		b.WriteString("\x1b[H\x1b[2J")
	}
	from := fmt.Sprintf("in %s", duration(s.Seconds))
	if totals {
		from = fmt.Sprintf("since %s", s.Since.In(zone).Format(time.TimeOnly))
	}
	fmt.Fprintf(&b, "%s, %d disks, %s; latencies in ms\n", s.Time.In(zone).Format(time.TimeOnly), len(s.VBDs), from)
	if s.Trouble != "" {
		fmt.Fprintf(&b, "trouble: %s\n", plain(s.Trouble))
	}
	w := tabwriter.NewWriter(&b, 0, 0, 2, ' ', tabwriter.AlignRight)
	unit := "/s"
	if totals {
		unit = ""
	}
	fmt.Fprintf(w, "dom\tname\tdisk\tbackend\tread%s\tMB%s\tp50\tp99\tmax\twrite%s\tMB%s\tp50\tp99\tmax\tflush%s\tp99\t\n", unit, unit, unit, unit, unit)
	var notes []string
	for i := range s.VBDs {
		v := &s.VBDs[i]
		disk := v.Device
		if disk == "" {
			disk = strconv.FormatUint(uint64(v.Devid), 10)
		}
		fmt.Fprintf(w, "%d\t%s\t%s\t%s\t", v.Domid, cut(plain(v.Domain), 20), plain(disk), v.Kind)
		if v.Why != "" {
			notes = append(notes, fmt.Sprintf("%d %s: %s", v.Domid, plain(disk), plain(v.Why)))
		}
		if !v.Seen {
			fmt.Fprint(w, strings.Repeat("-\t", 12), "\n")
			continue
		}
		row(w, &v.Read, totals, true, 50, 99, 100)
		row(w, &v.Write, totals, true, 50, 99, 100)
		row(w, &v.Flush, totals, false, 99)
		fmt.Fprintln(w)
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

// row prints the cells of one kind of I/O; percentile 100 is the maximum.
func row(w io.Writer, o *guestio.IO, totals, bytes bool, percentiles ...int) {
	c, ops, mb := &o.Interval.Counts, o.Interval.OpsPerSecond, o.Interval.BytesPerSecond/1e6
	if totals {
		c, ops, mb = &o.Total, float64(o.Total.Ops), float64(o.Total.Bytes)/1e6
	}
	fmt.Fprintf(w, "%.0f\t", ops)
	if bytes {
		fmt.Fprintf(w, "%.1f\t", mb)
	}
	for _, p := range percentiles {
		if c.Latency == nil {
			fmt.Fprint(w, "-\t")
			continue
		}
		us := map[int]float64{50: c.Latency.P50, 99: c.Latency.P99, 100: c.Latency.Max}[p]
		fmt.Fprintf(w, "%s\t", milliseconds(us))
	}
}

// milliseconds prints three digits of what matters.
func milliseconds(us float64) string {
	switch ms := us / 1e3; {
	case ms < 10:
		return fmt.Sprintf("%.2f", ms)
	case ms < 100:
		return fmt.Sprintf("%.1f", ms)
	default:
		return fmt.Sprintf("%.0f", ms)
	}
}

// plain takes what a terminal would obey out of a name.
func plain(s string) string {
	return strings.Map(func(r rune) rune {
		if unicode.IsPrint(r) {
			return r
		}
		return '?'
	}, s)
}

func cut(s string, n int) string {
	if r := []rune(s); len(r) > n {
		return string(r[:n-1]) + "…"
	}
	return s
}
