package main

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"strings"

	"github.com/spf13/cobra"

	"github.com/xenserver/dtagent/cmd/dtagent/agent"
	"github.com/xenserver/dtagent/observer"
	"github.com/xenserver/dtagent/observer/bugtool"
	"github.com/xenserver/dtagent/observer/spanlog"
	"github.com/xenserver/dtagent/observer/xapi"
	"github.com/xenserver/dtagent/probes/xenstore"
)

// defaultState is where the agent keeps what outlives it.
const defaultState = "/var/lib/dtagent"

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
	var level, experimental string
	flags := cmd.Flags()
	flags.StringVar(&c.ObserversDir, "observers-dir", observer.DefaultDir, "directory of the local Observers")
	flags.StringVar(&c.Control, "control", defaultControl, "socket for dtagent status, trace and record")
	flags.StringVar(&c.XAPISocket, "xapi-socket", xapi.DefaultSocket, "XAPI's socket, for the Observers of the pool; empty: only local ones")
	flags.StringVar(&c.StateDir, "state-dir", defaultState, "directory of what outlives the agent: spans not delivered yet, and the pool's last Observers; empty: nothing does")
	flags.StringVar(&c.SpanLog, "span-log", spanlog.DefaultPath, "file of the log records that Observers with dtagent.logs ask for")
	flags.StringVar(&c.Metrics, "metrics", "", "address of the metrics page: unix:PATH, or a loopback address and port; empty: none")
	flags.StringVar(&c.CAFile, "ca-file", "", "PEM file of further CAs for https receivers, beside the system's and the pool's")
	flags.StringVar(&experimental, "experimental-components", "", "components left out even when an Observer names them, separated by commas; xapi.conf: those that XAPI leaves out")
	flags.StringVar(&c.BugtoolDir, "bugtool-dir", bugtool.DefaultDir, "directory of the bugtool's files")
	flags.BoolVar(&c.Legacy, "legacy", false, "load the programs for Linux 4.19 even where the modern ones work")
	flags.StringArrayVar(&c.Xenstore, "xenstore", nil, "xenstored's socket or device, for dtagent io (default: "+strings.Join(xenstore.Paths, ", ")+")")
	flags.StringVar(&c.SMDir, "sm-dir", "", "further directory of SM scripts")
	flags.StringVar(&c.Proc, "proc", "/proc", "proc file system, or a directory of links to the processes in it that may be traced")
	flags.StringVar(&c.Host.UUID, "host-uuid", "", "uuid of this host (default: INSTALLATION_UUID in "+agent.Inventory+")")
	flags.StringVar(&c.Host.Name, "host-name", "", "name of this host (default: XAPI's, else the kernel's)")
	flags.StringVar(&c.Host.PoolUUID, "pool-uuid", "", "uuid of the pool (default: XAPI's)")
	flags.DurationVar(&c.ClockOffset, "clock-offset", 0, "added to wall time, for tests of pools")
	_ = flags.MarkHidden("clock-offset") // it exists
	flags.IntVar(&c.BufferBytes, "buffer-bytes", 0, "of the kernel's buffer, for tests of losses")
	flags.IntVar(&c.QueueEvents, "queue-events", 0, "that wait for the engine at most, for tests of losses")
	_ = errors.Join(flags.MarkHidden("buffer-bytes"), flags.MarkHidden("queue-events")) // they exist
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
		var err error
		if c.Experimental, err = experimentalComponents(experimental); err != nil {
			return &verbError{verb: "run", code: exitUsage, err: err}
		}
		c.Known, err = agent.ReadHost(agent.Inventory)
		if err != nil && c.Host.UUID == "" {
			c.Log.Warn("this host's uuid is not known: spans carry none, and Observers for certain hosts do nothing; give --host-uuid", "err", err)
		}
		if c.Known.Name == "" {
			c.Known.Name, _ = os.Hostname()
		}
		return agent.Run(cmd.Context(), c)
	})
	return cmd
}
