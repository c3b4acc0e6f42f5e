package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/xenserver/dtagent/cmd/dtagent/control"
	"github.com/xenserver/dtagent/cmd/dtagent/tree"
	"github.com/xenserver/dtagent/cmd/dtagent/zipkin"
)

func newTrace() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "trace",
		Short: "Print traces as trees, as they finish or from bugtool files",
		Long: `Print traces as trees: live from the running agent, as they finish, or from the
bugtool's files with --file. Each line is a span: its name, service, start
after the trace's own, duration, how its parent was found, and where its time
went: to itself or to the work below it that took longest. Calls that repeat
and have nothing to tell, as polling for the end of a task, share a line:
"×14", their time together, and the longest of them.`,
		Args: cobra.NoArgs,
	}
	var show shower
	var quiet time.Duration
	flags := cmd.Flags()
	socket := flags.String("control", defaultControl, "socket of the agent")
	file := flags.String("file", "", "read a file (.ndjson, .zst) or a directory of them, not the agent")
	show.flags(flags)
	flags.DurationVar(&quiet, "quiet", 2*time.Second, "live: how long a trace gets nothing new before it is printed")

	cmd.RunE = work(func(cmd *cobra.Command, _ []string) error {
		ctx, stop := context.WithCancel(cmd.Context())
		defer stop()
		if err := show.begin(cmd, stop); err != nil {
			return err
		}
		if *file != "" {
			err := showFiles(*file, show.trace)
			if err == nil && show.shown == 0 {
				fmt.Fprintf(cmd.ErrOrStderr(), "dtagent trace: %s holds no trace that suits\n", *file)
			}
			return errors.Join(err, show.err)
		}
		err := follow(ctx, control.NewClient(*socket), quiet, show.trace, func() {
			fmt.Fprintln(cmd.ErrOrStderr(), "dtagent trace: waiting for traces to finish; Ctrl-C ends it")
		})
		return errors.Join(err, show.err)
	})
	return cmd
}

// shower prints the traces that its flags choose.
type shower struct {
	filter tree.Filter
	all    bool
	count  int

	cmd   *cobra.Command
	style tree.Style
	stop  func() // called when no more are wanted
	shown int
	err   error // after it nothing is printed
}

// flags adds the flags that choose.
func (s *shower) flags(flags *pflag.FlagSet) {
	flags.StringVar(&s.filter.Method, "method", "", "only traces with a span of that name, such as VM.start or 'VM.*'")
	flags.StringVar(&s.filter.Task, "task", "", "only traces of that task: R:…, OpaqueRef:… or uuid")
	flags.StringVar(&s.filter.VM, "vm", "", "only traces that concern the VM of that uuid")
	flags.StringVar(&s.filter.TraceID, "trace-id", "", "only the trace whose id begins so")
	flags.DurationVar(&s.filter.MinDuration, "min-duration", 0, "only traces with a span at least that long, such as 100ms")
	flags.BoolVar(&s.all, "all", false, "a line for every span: calls that repeat, as polling does, are not put on one")
	flags.IntVar(&s.count, "count", 0, "stop after that many traces (0: never)")
}

// begin checks the flags. stop is called when no more traces are wanted.
func (s *shower) begin(cmd *cobra.Command, stop func()) error {
	if err := s.filter.Check(); err != nil {
		return &verbError{verb: cmd.Name(), code: exitUsage, err: fmt.Errorf("--method %q: %w", s.filter.Method, err)}
	}
	s.cmd, s.stop = cmd, stop
	s.style = tree.Style{Colour: onTerminal(cmd.OutOrStdout()), Zone: time.Local, All: s.all}
	return nil
}

// trace prints t, if it is chosen.
func (s *shower) trace(t *tree.Trace) {
	if s.err != nil || s.enough() || !s.filter.Match(t) {
		return
	}
	out := s.cmd.OutOrStdout()
	if asJSON(s.cmd) {
		s.err = json.NewEncoder(out).Encode(t)
	} else if s.err = tree.Print(out, t, s.style); s.err == nil {
		_, s.err = fmt.Fprintln(out)
	}
	if s.shown++; s.err != nil || s.enough() {
		s.stop()
	}
}

// enough tells whether as many were printed as were asked for.
func (s *shower) enough() bool { return s.count > 0 && s.shown >= s.count }

// showFiles shows the traces of a file or directory. What can be read is shown
// also when some of it cannot.
func showFiles(path string, show func(*tree.Trace)) error {
	var spans []zipkin.Span
	err := zipkin.ReadPath(path, func(s zipkin.Span) { spans = append(spans, s) })
	for _, t := range tree.Build(spans) {
		show(t)
	}
	return err
}

// follow shows traces as they finish, until ctx ends or the agent does.
func follow(ctx context.Context, c *control.Client, quiet time.Duration, show func(*tree.Trace), ready func()) error {
	spans := make(chan zipkin.Span, 1024)
	done := make(chan error, 1)
	go func() {
		done <- c.Trace(ctx, ready, func(s zipkin.Span) {
			select {
			case spans <- s:
			case <-ctx.Done():
			}
		})
	}()
	traces := tree.NewCollector(tree.Options{Quiet: quiet}, show)
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	for {
		select {
		case s := <-spans:
			traces.Add(time.Now(), s)
		case now := <-tick.C:
			traces.Advance(now)
		case err := <-done:
			for len(spans) > 0 {
				traces.Add(time.Now(), <-spans)
			}
			traces.Drain(time.Now())
			return err
		}
	}
}
