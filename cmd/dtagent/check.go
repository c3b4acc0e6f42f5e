package main

import (
	"github.com/spf13/cobra"

	"github.com/xenserver/dtagent/cmd/dtagent/check"
	"github.com/xenserver/dtagent/observer"
	"github.com/xenserver/dtagent/observer/bugtool"
	"github.com/xenserver/dtagent/observer/spanlog"
	"github.com/xenserver/dtagent/observer/xapi"
)

func newCheck() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "check",
		Short: "Say what this kernel and host allow, and what is missing",
		Long: `Say what this kernel and host allow, which daemons of the toolstack run, what
Observers ask for and whether their endpoints take it. Nothing stays attached, and
nothing is changed; receivers get a request without spans.

The exit status is 0 when all that the agent needs to trace works, 1 when something
of it does not. With --strict it is 1, too, when an Observer, an endpoint or
something else that is configured does not work.

Give the flags of dtagent run that the agent runs with.

With --components it says what Observers can ask for: each component's programs,
what is watched of them, the spans it gives and what it costs.`,
		Args: cobra.NoArgs,
	}
	o := check.Options{Version: version}
	flags := cmd.Flags()
	flags.BoolVar(&o.Legacy, "legacy", false, "check the programs for Linux 4.19 even where the modern ones work")
	flags.StringVar(&o.ObserversDir, "observers-dir", observer.DefaultDir, "directory of the local Observers")
	flags.StringVar(&o.XAPISocket, "xapi-socket", xapi.DefaultSocket, "XAPI's socket, for the Observers of the pool; empty: only local ones")
	flags.StringVar(&o.BugtoolDir, "bugtool-dir", bugtool.DefaultDir, "directory of the bugtool's files")
	flags.StringVar(&o.SpanLog, "span-log", spanlog.DefaultPath, "file of the log records that Observers with dtagent.logs ask for")
	flags.StringVar(&o.StateDir, "state-dir", defaultState, "directory of what outlives the agent; empty: none")
	flags.StringVar(&o.CAFile, "ca-file", "", "PEM file of further CAs for https receivers, beside the system's and the pool's")
	flags.StringVar(&o.Control, "control", defaultControl, "socket of the agent")
	flags.StringVar(&o.Proc, "proc", "/proc", "proc file system, or a directory of links to the processes in it that may be traced")
	flags.StringVar(&o.HostUUID, "host-uuid", "", "uuid of this host (default: INSTALLATION_UUID in "+check.Inventory+")")
	flags.StringVar(&o.SMDir, "sm-dir", "", "further directory of SM scripts")
	flags.BoolVar(&o.Offline, "offline", false, "do not connect to receivers")
	components := flags.Bool("components", false, "say what Observers can ask for, and what of it runs now")
	hooks := flags.Bool("hooks", false, "list all hooks, not only those that are absent or work by a wider way")
	strict := flags.Bool("strict", false, "exit with 1 also when something that is configured does not work")
	cmd.RunE = work(func(cmd *cobra.Command, _ []string) error {
		if *components {
			return checkComponents(cmd, "")
		}
		r := check.Run(cmd.Context(), o)
		if asJSON(cmd) {
			if err := printJSON(cmd, r); err != nil {
				return err
			}
		} else {
			r.Print(cmd.OutOrStdout(), *hooks)
		}
		if !r.OK || *strict && !r.Strict() {
			return &verbError{verb: "check", code: exitFailed}
		}
		return nil
	})
	return cmd
}
