package main

import (
	"fmt"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/xenserver/dtagent/bpf"
	"github.com/xenserver/dtagent/cmd/dtagent/control"
)

// showCost has the agent measure what its programs cost, and prints it.
func showCost(cmd *cobra.Command, client *control.Client, d time.Duration) error {
	// The agent as a service may not ask for them. Where there are none it needs none,
	// or says what is missing.
	if stats, err := bpf.KeepStats(); err == nil {
		defer stats.Close()
	}
	c, err := client.Cost(cmd.Context(), d)
	if err != nil {
		return err
	}
	if asJSON(cmd) {
		return printJSON(cmd, c)
	}
	out := cmd.OutOrStdout()
	if len(c.Probes) == 0 {
		_, err := fmt.Fprintln(out, "Nothing is attached: there is no cost.")
		return err
	}
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(w, "probe\truns/s\tns a run\tof them the way in\tof a CPU\t")
	for _, p := range c.Probes {
		runs := float64(max(p.Runs, 1))
		fmt.Fprintf(w, "%s\t%.0f\t%.0f\t%.0f\t%.2f %%\t\n", p.Probe, float64(p.Runs)/c.Seconds,
			float64(p.Own+p.Entry)/runs, float64(p.Entry)/runs, float64(p.Own+p.Entry)/1e7/c.Seconds)
	}
	if err := w.Flush(); err != nil {
		return err
	}
	how := "by the kernel's statistics"
	if c.Estimated {
		how = "estimated from runs and records"
	}
	_, err = fmt.Fprintf(out, "%.2f %% of the machine's %d CPUs, measured for %.1f s, %s\n", 100*c.Share(), c.CPUs, c.Seconds, how)
	return err
}
