package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"
	"unicode"

	"github.com/spf13/cobra"

	"github.com/xenserver/dtagent/cmd/dtagent/control"
	"github.com/xenserver/dtagent/probes/guestio"
)

func newIO() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "io",
		Short: "Show what the guests' disks do: requests, bytes and latencies",
		Long: `Show what the disks of the guests do, from the running agent: requests and bytes a
second and how long they took, for each disk. They are watched while this runs, by
tracepoints of the block layer in dom0 and xenstore; it needs no Observer.`,
		Example: `  dtagent io
  dtagent io --once --interval 10s --json`,
		Args: cobra.NoArgs,
	}
	var interval time.Duration
	var count int
	var once, totals bool
	flags := cmd.Flags()
	socket := flags.String("control", defaultControl, "socket of the agent")
	flags.DurationVar(&interval, "interval", time.Second, "between samples")
	flags.IntVar(&count, "count", 0, "end after so many samples (0: Ctrl-C ends it)")
	flags.BoolVar(&once, "once", false, "one sample of one interval")
	flags.BoolVar(&totals, "totals", false, "show what was counted since the agent began to watch, not the last interval")
	cmd.RunE = work(func(cmd *cobra.Command, _ []string) error {
		usage := func(format string, args ...any) error {
			return &verbError{verb: "io", code: exitUsage, err: fmt.Errorf(format, args...)}
		}
		switch {
		case interval < control.MinInterval || interval > control.MaxInterval:
			return usage("--interval %s: from %s to %s", interval, control.MinInterval, control.MaxInterval)
		case count < 0:
			return usage("--count %d is less than nothing", count)
		case once && count > 1:
			return usage("--once and --count %d exclude each other", count)
		}
		if once {
			count = 1
		}
		ctx, stop := context.WithCancel(cmd.Context())
		defer stop()
		out := cmd.OutOrStdout()
		show := func(s *guestio.Sample) error {
			return printIO(out, s, time.Local, totals, onTerminal(out) && count != 1)
		}
		if asJSON(cmd) {
			enc := json.NewEncoder(out)
			enc.SetEscapeHTML(false)
			show = func(s *guestio.Sample) error { return enc.Encode(s) }
		}
		n := 0
		err := control.NewClient(*socket).IO(ctx, interval, nil, func(s *guestio.Sample) error {
			if err := show(s); err != nil {
				return err
			}
			if n++; n == count {
				return errEnough
			}
			return nil
		})
		switch {
		case errors.Is(err, errEnough):
			return nil
		case err != nil || ctx.Err() != nil:
			return err
		case n == 0 || count > 0:
			return errors.New("the agent stops")
		}
		fmt.Fprintln(cmd.ErrOrStderr(), "dtagent io: the agent stops")
		return nil
	})
	return cmd
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
