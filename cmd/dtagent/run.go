package main

import (
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"slices"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/xenserver/dtagent/cmd/dtagent/agent"
	"github.com/xenserver/dtagent/observer"
	"github.com/xenserver/dtagent/observer/bugtool"
	"github.com/xenserver/dtagent/observer/spanlog"
	"github.com/xenserver/dtagent/observer/xapi"
	"github.com/xenserver/dtagent/probes/xenstore"
)

// defaultState is where the agent keeps what outlives it.
const defaultState = "/var/lib/dtagent"

// mostBuffer is the largest --buffer-bytes.
const mostBuffer = 256 << 20

// runSettings are the flags of run that the configuration file can set, too, and
// those for tests.
type runSettings struct {
	agent        agent.Config
	experimental string
	buffer       byteSize
	memory       byteSize
	level        choice
	format       choice
}

// flags binds the settings to f, each with its default.
func (s *runSettings) flags(f *pflag.FlagSet) {
	c := &s.agent
	f.StringVar(&c.ObserversDir, "observers-dir", observer.DefaultDir, "directory of the local Observers")
	f.StringVar(&c.Control, "control", defaultControl, "socket for dtagent status, trace and record")
	f.StringVar(&c.XAPISocket, "xapi-socket", xapi.DefaultSocket, "XAPI's socket, for the Observers of the pool; empty: only local ones")
	f.StringVar(&c.StateDir, "state-dir", defaultState, "directory of what outlives the agent: spans not delivered yet, the pool's last Observers, what is usual for guests' disks; empty: nothing does")
	f.StringVar(&c.SpanLog, "span-log", spanlog.DefaultPath, "file of the log records that Observers with dtagent.logs ask for")
	f.StringVar(&c.Metrics, "metrics", "", "address of the metrics page: unix:PATH, or a loopback address and port; empty: none")
	f.StringVar(&c.CAFile, "ca-file", "", "PEM file of further CAs for https receivers, beside the system's and the pool's")
	f.StringVar(&s.experimental, "experimental-components", "", "components left out even when an Observer names them, separated by commas; xapi.conf: those that XAPI leaves out")
	f.StringVar(&c.BugtoolDir, "bugtool-dir", bugtool.DefaultDir, "directory of the bugtool's files")
	f.BoolVar(&c.Legacy, "legacy", false, "load the programs for Linux 4.19 even where the modern ones work")
	f.StringVar(&c.Xenstore, "xenstore", "", "xenstored's socket or device, for dtagent io and the component tapdisk; empty: the first that is there of "+strings.Join(xenstore.Paths, ", "))
	f.StringVar(&c.SMDir, "sm-dir", "", "further directory of SM scripts")
	f.StringVar(&c.Proc, "proc", "/proc", "proc file system, or a directory of links to the processes in it that may be traced")
	f.StringVar(&c.Host.UUID, "host-uuid", "", "uuid of this host (default: INSTALLATION_UUID in "+agent.Inventory+")")
	f.StringVar(&c.Host.Name, "host-name", "", "name of this host (default: XAPI's, else the kernel's)")
	f.StringVar(&c.Host.PoolUUID, "pool-uuid", "", "uuid of the pool (default: XAPI's)")
	s.memory = agent.DefaultMemory
	f.Var(&s.memory, "memory-limit", "what the agent's own memory is kept below by collecting garbage more often; 0: as it grows")
	f.Var(&s.buffer, "buffer-bytes", "of the kernel's buffer, of each CPU's in the legacy tier; 0: 4MiB, in the legacy tier 16MiB for all CPUs together, but 1MiB to 4MiB for each")
	f.IntVar(&c.QueueEvents, "queue-events", agent.DefaultQueue, "events that wait for correlation at most; more are dropped and counted")
	s.level = choice{"info", []string{"debug", "info", "warn", "error"}}
	f.Var(&s.level, "log-level", "debug, info, warn or error")
	s.format = choice{"text", []string{"text", "json"}}
	f.Var(&s.format, "log-format", "text or json; --json means json")
	f.DurationVar(&c.ClockOffset, "clock-offset", 0, "added to wall time, for tests of pools")
	f.StringVar(&c.ClockFile, "clock-file", "", "file of what is added to wall time, for tests of steps")
	_ = errors.Join(f.MarkHidden("clock-offset"), f.MarkHidden("clock-file")) // they exist
	s.checks(f)
}

// choice is a flag whose value is one of some words.
type choice struct {
	value string
	of    []string
}

func (c *choice) String() string { return c.value }
func (c *choice) Type() string   { return "word" }

func (c *choice) Set(text string) error {
	if !slices.Contains(c.of, text) {
		last := len(c.of) - 1
		return fmt.Errorf("there are %s and %s", strings.Join(c.of[:last], ", "), c.of[last])
	}
	c.value = text
	return nil
}

// handler writes the log to w.
func (s *runSettings) handler(w io.Writer) slog.Handler {
	options := &slog.HandlerOptions{}
	var level slog.Level
	if level.UnmarshalText([]byte(s.level.value)) == nil { // they are slog's own words
		options.Level = level
	}
	if s.format.value == "json" {
		return slog.NewJSONHandler(w, options)
	}
	return slog.NewTextHandler(w, options)
}

// checked is a flag whose value has to pass a check once it is set.
type checked struct {
	pflag.Value
	check func() error
}

func (c checked) Set(text string) error {
	if err := c.Value.Set(text); err != nil {
		return err
	}
	return c.check()
}

// checks adds to flags what their types do not say.
func (s *runSettings) checks(f *pflag.FlagSet) {
	for name, check := range map[string]func() error{
		"experimental-components": func() (err error) {
			s.agent.Experimental, err = experimentalComponents(s.experimental)
			return err
		},
		"memory-limit": func() error {
			if s.memory != 0 && s.memory < agent.LeastMemory {
				return fmt.Errorf("at least %s is needed; 0 is for no limit", bytesText(agent.LeastMemory))
			}
			return nil
		},
		"buffer-bytes": func() error {
			if s.buffer > mostBuffer {
				return fmt.Errorf("it is at most %s, since this memory cannot be swapped out", bytesText(mostBuffer))
			}
			return nil
		},
		"queue-events": func() error {
			if n := s.agent.QueueEvents; n < 2 || n > agent.MostQueue {
				return fmt.Errorf("it is from 2 to %d", agent.MostQueue)
			}
			return nil
		},
	} {
		flag := f.Lookup(name)
		flag.Value = checked{flag.Value, check}
	}
}

// config is what the agent is told.
func (s *runSettings) config() agent.Config {
	c := s.agent
	c.MemoryLimit, c.BufferBytes = int64(s.memory), int(s.buffer)
	return c
}

// bindRun makes the flags of run.
func bindRun(f *pflag.FlagSet) (s *runSettings, config *string) {
	s = new(runSettings)
	s.flags(f)
	return s, f.String("config", defaultConfig, "file of settings; empty: none is read")
}

func newRun() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "run",
		Short: "Run the agent, until SIGTERM or SIGINT",
		Long: `Run the agent in the foreground, as root. It does nothing until an enabled
Observer wants a component; then it attaches its probes. SIGTERM or SIGINT ends
it: what is still open is sent, which takes up to five seconds.

Settings are read from ` + defaultConfig + ` if that exists, or from the file
that --config names. Each has the name of a flag; a flag goes before the file.`,
		Args: cobra.NoArgs,
	}
	s, path := bindRun(cmd.Flags())
	cmd.RunE = work(func(cmd *cobra.Command, _ []string) error {
		if err := applyConfig(cmd.Flags(), *path); err != nil {
			return &verbError{verb: "run", code: exitConfig, err: err}
		}
		if asJSON(cmd) {
			s.format.value = "json"
		}
		c := s.config()
		c.Version, c.Log = version, slog.New(s.handler(cmd.ErrOrStderr()))
		if os.Geteuid() != 0 {
			return errors.New("needs root: eBPF and other users' processes are for root only; run `sudo dtagent run`, or start the service")
		}
		var err error
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
