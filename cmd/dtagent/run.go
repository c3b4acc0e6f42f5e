package main

import (
	"cmp"
	"errors"
	"fmt"
	"log/slog"
	"os"

	"github.com/spf13/cobra"

	"github.com/xenserver/dtagent/cmd/dtagent/agent"
	"github.com/xenserver/dtagent/observer"
	"github.com/xenserver/dtagent/observer/bugtool"
)

func newRun() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "run",
		Short: "Run the agent, until SIGTERM or SIGINT",
		Long: `Run the agent in the foreground, as root. It does nothing until an enabled
Observer wants a component; then it attaches its probes. SIGTERM or SIGINT ends
it: what is still open is sent, which takes up to five seconds.`,
		Args: cobra.NoArgs,
	}
	c := agent.Config{Version: version}
	var level string
	flags := cmd.Flags()
	flags.StringVar(&c.ObserversDir, "observers-dir", observer.DefaultDir, "directory of the local Observers")
	flags.StringVar(&c.Control, "control", defaultControl, "socket for dtagent status and trace")
	flags.StringVar(&c.BugtoolDir, "bugtool-dir", bugtool.DefaultDir, "directory of the bugtool's files")
	flags.BoolVar(&c.Legacy, "legacy", false, "load the programs for Linux 4.19 even where the modern ones work")
	flags.StringVar(&c.SMDir, "sm-dir", "", "further directory of SM scripts")
	flags.StringVar(&c.Proc, "proc", "/proc", "proc file system, or a directory of links to the processes in it that may be traced")
	flags.StringVar(&c.Host.UUID, "host-uuid", "", "uuid of this host (default: INSTALLATION_UUID in "+agent.Inventory+")")
	flags.StringVar(&c.Host.Name, "host-name", "", "name of this host (default: the kernel's)")
	flags.StringVar(&c.Host.PoolUUID, "pool-uuid", "", "uuid of the pool")
	flags.DurationVar(&c.ClockOffset, "clock-offset", 0, "added to wall time, for tests of pools")
	_ = flags.MarkHidden("clock-offset") // it exists
	flags.StringVar(&level, "log-level", "info", "debug, info, warn or error")
	cmd.RunE = work(func(cmd *cobra.Command, _ []string) error {
		var l slog.Level
		if err := l.UnmarshalText([]byte(level)); err != nil {
			return &verbError{verb: "run", code: exitUsage, err: fmt.Errorf("--log-level %s: there are debug, info, warn and error", level)}
		}
		options := &slog.HandlerOptions{Level: l}
		c.Log = slog.New(slog.NewTextHandler(cmd.ErrOrStderr(), options))
		if asJSON(cmd) {
			c.Log = slog.New(slog.NewJSONHandler(cmd.ErrOrStderr(), options))
		}
		if os.Geteuid() != 0 {
			return errors.New("needs root: eBPF and other users' processes are for root only; run `sudo dtagent run`, or start the service")
		}
		host, err := agent.ReadHost(agent.Inventory)
		if err != nil && c.Host.UUID == "" {
			c.Log.Warn("this host's uuid is not known: spans carry none, and Observers for certain hosts do nothing; give --host-uuid", "err", err)
		}
		c.Host.UUID = cmp.Or(c.Host.UUID, host.UUID)
		if c.Host.Name == "" {
			if c.Host.Name = host.Name; c.Host.Name == "" {
				c.Host.Name, _ = os.Hostname()
			}
		}
		return agent.Run(cmd.Context(), c)
	})
	return cmd
}
