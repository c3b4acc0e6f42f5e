package main

import (
	"cmp"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/xenserver/dtagent/cmd/dtagent/control"
	"github.com/xenserver/dtagent/observer"
	"github.com/xenserver/dtagent/observer/xapi"
)

func newStatus() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "status",
		Short: "Show what the running agent watches, sends and loses",
		Args:  cobra.NoArgs,
	}
	socket := cmd.Flags().String("control", defaultControl, "socket of the agent")
	cost := cmd.Flags().Duration("cost", 0, "measure for so long what the programs in the kernel cost, 10m at most; alone: 2s")
	cmd.Flags().Lookup("cost").NoOptDefVal = "2s"
	cmd.RunE = work(func(cmd *cobra.Command, _ []string) error {
		client := control.NewClient(*socket)
		if cmd.Flags().Changed("cost") {
			return showCost(cmd, client, *cost)
		}
		s, err := client.Status(cmd.Context())
		if err != nil {
			return err
		}
		if asJSON(cmd) {
			return printJSON(cmd, s)
		}
		return printStatus(cmd.OutOrStdout(), s)
	})
	return cmd
}

// printStatus prints the status for people: what is on first, then what went
// wrong, then what it costs.
func printStatus(out io.Writer, s *control.Status) error {
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	fmt.Fprintf(w, "dtagent\t%s, pid %d, up %s\n", s.Version, s.PID, (time.Duration(s.UptimeSeconds) * time.Second).String())
	components := strings.Join(s.Components, ", ")
	if components == "" {
		components = "none: no enabled Observer wants any"
	}
	fmt.Fprintf(w, "components\t%s\n", components)
	if s.Trouble != "" {
		fmt.Fprintf(w, "trouble\t%s\n", s.Trouble)
	}

	byWay := map[string]int{}
	for _, p := range s.Probes {
		byWay[p.Probe+"\t"+p.Way]++
	}
	fmt.Fprintf(w, "probes\t%s programs\n", s.Tier)
	for _, k := range slices.Sorted(maps.Keys(byWay)) {
		probe, way, _ := strings.Cut(k, "\t")
		fmt.Fprintf(w, "\t%s: %d attached by %s\n", probe, byWay[k], way)
	}
	if len(byWay) == 0 {
		fmt.Fprintf(w, "\tnothing is attached\n")
	}

	for _, r := range s.Restrictions {
		fmt.Fprintf(w, "\t%s: %s", r.State, r.Name)
		if r.Detail != "" {
			fmt.Fprintf(w, ": %s", r.Detail)
		}
		fmt.Fprintf(w, " (%s)\n", strings.ReplaceAll(r.Why, "\n", "; "))
	}

	byComponent := map[string][]string{}
	for _, t := range s.Targets {
		byComponent[t.Component] = append(byComponent[t.Component], fmt.Sprint(t.TGID))
	}
	fmt.Fprintf(w, "processes\t%d watched, and %d children of theirs\n", len(s.Targets), s.Children)
	for _, c := range slices.Sorted(maps.Keys(byComponent)) {
		fmt.Fprintf(w, "\t%s: %s\n", c, cutList(byComponent[c], 8))
	}

	fmt.Fprintf(w, "events\t%s\n", counts(s.Events))
	fmt.Fprintf(w, "spans\t%d made, %d incomplete, %d open now\n", s.Engine.Spans, s.Engine.Incomplete, s.Engine.Activities)
	links := map[string]uint64{}
	for l, n := range s.Engine.Links {
		links[string(l)] = n
	}
	fmt.Fprintf(w, "\tlinks: %s\n", counts(links))
	if e := &s.Engine; e.Stretches > 0 {
		fmt.Fprintf(w, "\tlong waits: %d spans, %d for answers to calls with spans of their own, %d of idle threads, %d dropped\n",
			e.Waits.Spans, e.Waits.Answered, e.Waits.Idle, e.Waits.Dropped)
	}
	if r := &s.Engine.Requests; r.Told > 0 {
		fmt.Fprintf(w, "\tguests' disk requests: %d spans with %d links, %d waiting, %d beyond the limit\n", r.Spans, r.Links, r.Held, r.Limited)
		if odd := r.Bad + r.Unknown; odd > 0 {
			fmt.Fprintf(w, "\t(%d that cannot be, %d of disks that nobody knew)\n", r.Bad, r.Unknown)
		}
	}

	fmt.Fprintf(w, "lost events\t%d\n", s.Lost())
	slices.SortStableFunc(s.Losses, func(a, b control.Loss) int { return cmp.Compare(b.Count, a.Count) })
	for _, l := range s.Losses {
		switch {
		case l.Count == 0:
		case l.Cause == control.CauseNoStart:
			fmt.Fprintf(w, "\t(%s: %d came without the start of their call, which was before the probes were attached)\n", l.Probe, l.Count)
		case l.Cause == control.CauseNoSwitch:
			fmt.Fprintf(w, "\t(%s: %d times it was not seen that a thread got or lost its CPU: how it spent that time is not known)\n", l.Probe, l.Count)
		case l.Cause == control.CauseNoWakeup:
			fmt.Fprintf(w, "\t(%s: %d times it was not seen when a wait of a thread ended: it counts until the thread had a CPU)\n", l.Probe, l.Count)
		case l.Cause == control.CauseSkipped:
			fmt.Fprintf(w, "\t(%s: %d times the kernel did not run a program as others used eBPF on that CPU, for whichever process: events may be missing)\n", l.Probe, l.Count)
		default:
			fmt.Fprintf(w, "\t%s: %s: %d\n", l.Probe, l.Cause, l.Count)
		}
	}
	if s.Handover.Dropped > 0 {
		fmt.Fprintf(w, "\tqueue to the correlation full: %d\n", s.Handover.Dropped)
	}
	if r := s.Recordings; r.Active > 0 || r.Lost > 0 {
		fmt.Fprintf(w, "recordings\t%d being made; %d events lost to slow recorders\n", r.Active, r.Lost)
	}

	if s.Steps > 0 {
		fmt.Fprintf(w, "clock\tstepped %d times\n", s.Steps)
	}
	printXAPI(w, s.XAPI)
	fmt.Fprintf(w, "observers\t%d; local ones are in %s\n", len(s.Observers), s.ObserversDir)
	for _, o := range s.Observers {
		state := "enabled"
		if !o.Enabled {
			state = "disabled"
		} else if !o.Here {
			state = "enabled, for other hosts"
		}
		switch o.Source {
		case "": // with a queue on disk, perhaps for a while
			fmt.Fprintf(w, "\t%s: gone, its endpoints finish\n", o.UUID)
		case sourceLocal:
			fmt.Fprintf(w, "\t%s %s: %s, components %s\n", o.UUID, o.NameLabel, state, cmp.Or(o.Components, "none"))
		default:
			fmt.Fprintf(w, "\t%s %s: %s, from %s, components %s\n", o.UUID, o.NameLabel, state, o.Source, cmp.Or(o.Components, "none"))
		}
		if p := o.Processors; p != nil && p.Received != p.Passed {
			fmt.Fprintf(w, "\t  processors: %d spans, %d passed, %d held; filtered: %s\n", p.Received, p.Passed, p.Held, counts(p.FilteredByCause()))
		}
		for _, e := range o.Endpoints {
			printEndpoint(w, "\t  ", e)
		}
		for _, m := range o.Warnings {
			fmt.Fprintf(w, "\t  note: %s\n", m)
		}
	}
	if len(s.Observers) > 1 {
		printEndpoint(w, "\t", s.Totals)
	}
	for _, m := range s.Mistakes {
		kept := "it is left out"
		if m.Kept {
			kept = "its last good state is in force"
		}
		fmt.Fprintf(w, "mistake\t%s (%s)\n", strings.ReplaceAll(m.Error, "\n", "; "), kept)
	}
	fmt.Fprintf(w, "bugtool files\t%s\n", s.BugtoolDir)
	if s.Metrics != "" {
		fmt.Fprintf(w, "metrics\t%s\n", s.Metrics)
	}
	fmt.Fprintf(w, "cost\t%.1f MiB resident, %.2f s CPU, %d goroutines\n",
		float64(s.Process.RSSBytes)/(1<<20), s.Process.CPUSeconds, s.Process.Goroutines)
	return w.Flush()
}

const sourceLocal = "local"

// printEndpoint prints the accounts of one endpoint.
func printEndpoint(w io.Writer, indent string, e observer.EndpointStats) {
	fmt.Fprintf(w, "%s%s: %s, %d spans, %d sent, %d queued, %d dropped\n", indent, e.Endpoint, e.State, e.Produced, e.Sent, e.Queued, e.Lost())
	if e.Recovered > 0 {
		fmt.Fprintf(w, "%s  %d of them were left on disk by an agent before this one\n", indent, e.Recovered)
	}
	if e.Lost() > 0 {
		fmt.Fprintf(w, "%s  dropped: %s\n", indent, counts(e.DroppedByCause()))
	}
	if e.LastError != "" {
		fmt.Fprintf(w, "%s  last error: %s\n", indent, e.LastError)
	}
}

// printXAPI prints how things stand with the pool's database.
func printXAPI(w io.Writer, s *xapi.Status) {
	if s == nil {
		return
	}
	fmt.Fprintf(w, "xapi\t%s since %s, %d observers", s.State, s.Since.Format(time.DateTime), s.Observers)
	if s.FromStateFile {
		fmt.Fprint(w, ", those last known")
	}
	fmt.Fprintln(w)
	if s.LastError != "" && s.State != xapi.Connected {
		fmt.Fprintf(w, "\tlast error: %s\n", s.LastError)
	}
	for _, m := range s.Mistakes {
		fmt.Fprintf(w, "\tmistake in %s %s: %s\n", m.UUID, m.NameLabel, strings.Join(m.Errors, "; "))
	}
}

func counts(m map[string]uint64) string {
	var out []string
	for _, k := range slices.Sorted(maps.Keys(m)) {
		if m[k] > 0 {
			out = append(out, fmt.Sprintf("%s %d", k, m[k]))
		}
	}
	if len(out) == 0 {
		return "none"
	}
	return strings.Join(out, ", ")
}

func cutList(l []string, n int) string {
	if len(l) <= n {
		return strings.Join(l, ", ")
	}
	return strings.Join(l[:n], ", ") + fmt.Sprintf(" and %d more", len(l)-n)
}
