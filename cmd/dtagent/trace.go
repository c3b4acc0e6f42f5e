package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/spf13/cobra"

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
	var f tree.Filter
	var quiet time.Duration
	var count int
	flags := cmd.Flags()
	socket := flags.String("control", defaultControl, "socket of the agent")
	file := flags.String("file", "", "read a file (.ndjson, .zst) or a directory of them, not the agent")
	flags.StringVar(&f.Method, "method", "", "only traces with a span of that name, such as VM.start or 'VM.*'")
	flags.StringVar(&f.Task, "task", "", "only traces of that task: R:…, OpaqueRef:… or uuid")
	flags.StringVar(&f.VM, "vm", "", "only traces that concern the VM of that uuid")
	flags.StringVar(&f.TraceID, "trace-id", "", "only the trace whose id begins so")
	flags.DurationVar(&f.MinDuration, "min-duration", 0, "only traces with a span at least that long, such as 100ms")
	flags.DurationVar(&quiet, "quiet", 2*time.Second, "live: how long a trace gets nothing new before it is printed")
	all := flags.Bool("all", false, "a line for every span: calls that repeat, as polling does, are not put on one")
	flags.IntVar(&count, "count", 0, "stop after that many traces (0: never)")

	cmd.RunE = work(func(cmd *cobra.Command, _ []string) error {
		if err := f.Check(); err != nil {
			return &verbError{verb: "trace", code: exitUsage, err: fmt.Errorf("--method %q: %w", f.Method, err)}
		}
		ctx, stop := context.WithCancel(cmd.Context())
		defer stop()
		style := tree.Style{Colour: onTerminal(cmd.OutOrStdout()), Zone: time.Local, All: *all}
		shown := 0
		var failed error
		show := func(t *tree.Trace) {
			if failed != nil || count > 0 && shown >= count || !f.Match(t) {
				return
			}
			if asJSON(cmd) {
				failed = json.NewEncoder(cmd.OutOrStdout()).Encode(t)
			} else {
				if failed = tree.Print(cmd.OutOrStdout(), t, style); failed == nil {
					_, failed = fmt.Fprintln(cmd.OutOrStdout())
				}
			}
			if shown++; failed != nil || shown == count {
				stop()
			}
		}
		if *file != "" {
			err := showFiles(*file, show)
			if err == nil && shown == 0 {
				fmt.Fprintf(cmd.ErrOrStderr(), "dtagent trace: %s holds no trace that suits\n", *file)
			}
			return errors.Join(err, failed)
		}
		err := follow(ctx, control.NewClient(*socket), quiet, show, func() {
			fmt.Fprintln(cmd.ErrOrStderr(), "dtagent trace: waiting for traces to finish; Ctrl-C ends it")
		})
		return errors.Join(err, failed)
	})
	return cmd
}

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
