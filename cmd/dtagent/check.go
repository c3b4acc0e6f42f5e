package main

import (
	"slices"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/xenserver/dtagent/cmd/dtagent/check"
)

// checkedSettings are the flags of run that matter to check. It takes the others, too,
// so that the service's command line can be given to it.
var checkedSettings = []string{
	"config", "observers-dir", "xapi-socket", "bugtool-dir", "span-log", "state-dir", "ca-file", "control", "proc", "host-uuid", "sm-dir", "legacy",
}

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

Settings are those of dtagent run: from ` + defaultConfig + ` if that exists,
and flags, which go before. All flags of run are taken.

With --components it says what Observers can ask for: each component's programs,
what is watched of them, the spans it gives and what it costs.`,
		Args: cobra.NoArgs,
	}
	flags := cmd.Flags()
	s, path := bindRun(flags)
	flags.VisitAll(func(f *pflag.Flag) { f.Hidden = f.Hidden || !slices.Contains(checkedSettings, f.Name) })
	offline := flags.Bool("offline", false, "do not connect to receivers")
	components := flags.Bool("components", false, "say what Observers can ask for, and what of it runs now")
	hooks := flags.Bool("hooks", false, "list all hooks, not only those that are absent or work by a wider way")
	strict := flags.Bool("strict", false, "exit with 1 also when something that is configured does not work")
	cmd.RunE = work(func(cmd *cobra.Command, _ []string) error {
		if *components {
			return checkComponents(cmd, "")
		}
		err := applyConfig(flags, *path)
		c := &s.agent
		r := check.Run(cmd.Context(), check.Options{
			Version: version, Settings: *path, SettingsErr: err, Legacy: c.Legacy, ObserversDir: c.ObserversDir, BugtoolDir: c.BugtoolDir, SpanLog: c.SpanLog,
			XAPISocket: c.XAPISocket, StateDir: c.StateDir, CAFile: c.CAFile, Control: c.Control, Proc: c.Proc, HostUUID: c.Host.UUID, SMDir: c.SMDir, Offline: *offline,
		})
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
