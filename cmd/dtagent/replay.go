package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"time"
	"unicode"

	"github.com/spf13/cobra"

	"github.com/xenserver/dtagent/cmd/dtagent/push"
	"github.com/xenserver/dtagent/cmd/dtagent/replay"
	"github.com/xenserver/dtagent/cmd/dtagent/tree"
	"github.com/xenserver/dtagent/cmd/dtagent/zipkin"
	"github.com/xenserver/dtagent/correlate"
	"github.com/xenserver/dtagent/probes/recording"
)

// replaySummary is what `dtagent replay --json` prints with --dir or --to.
type replaySummary struct {
	Recording *recording.Header `json:"recording"`
	replay.Summary
	Sent *push.Summary `json:"sent,omitempty"`
}

func newReplay() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "replay FILE",
		Short: "Make spans of a recording, and print or send them",
		Long: `Give what dtagent record has recorded to correlation again, and print the traces as
dtagent trace does, write bugtool files, or send the spans to a receiver. Needs no
root, no eBPF and no running agent. Two replays give the same spans with the same ids.

A recording that breaks off, as after a crash, is played as far as it goes.`,
		Example: `  dtagent replay slow-start.dtrec --method VM.start
  dtagent replay slow-start.dtrec --dir spans
  dtagent replay slow-start.dtrec --to http://jaeger:9411/api/v2/spans`,
		Args: cobra.ExactArgs(1),
	}
	var show shower
	var quiet time.Duration
	flags := cmd.Flags()
	dir := flags.String("dir", "", "write bugtool files into this new or empty directory")
	to := flags.String("to", "", "send the spans to this receiver: http(s)://… takes zipkin-v2, otlp+http(s)://… OTLP")
	caFile := flags.String("ca-file", "", "PEM file that the certificate of https receivers is checked against (default: the system's and the pool's)")
	speed := flags.Float64("speed", 0, "1: as fast as it was recorded, 10: ten times as fast, 0: as fast as can be")
	show.flags(flags)
	flags.DurationVar(&quiet, "quiet", 2*time.Second, "recorded time for which a trace gets nothing new before it is printed")

	cmd.RunE = work(func(cmd *cobra.Command, args []string) (err error) {
		usage := func(format string, args ...any) error {
			return &verbError{verb: "replay", code: exitUsage, err: fmt.Errorf(format, args...)}
		}
		if *speed < 0 {
			return usage("--speed %v is less than nothing", *speed)
		}
		if *dir != "" && *to != "" {
			return usage("--dir and --to: one of them; dtagent push sends the files later")
		}
		if *dir != "" || *to != "" {
			for _, name := range []string{"method", "task", "vm", "trace-id", "min-duration", "all", "count", "quiet"} {
				if flags.Changed(name) {
					return usage("--%s chooses what is printed; with --dir and --to all spans go there", name)
				}
			}
		}
		ctx, stop := context.WithCancel(cmd.Context())
		defer stop()
		if err := show.begin(cmd, stop); err != nil {
			return err
		}
		var sender *push.Pusher
		if *to != "" {
			if sender, err = push.New(push.Options{URL: *to, CAFile: *caFile}); err != nil {
				return usage("--to: %w", err)
			}
			defer sender.Close()
		}

		f, err := os.Open(args[0])
		if err != nil {
			return err
		}
		defer f.Close()
		in, err := recording.NewReader(f)
		if err != nil {
			return fmt.Errorf("%s: %w", args[0], err)
		}
		defer in.Close()
		named := func(err error) error {
			if err == nil {
				return nil
			}
			return fmt.Errorf("%s: %w", args[0], err)
		}
		tell := func(s *replay.Summary) {
			fmt.Fprintln(cmd.ErrOrStderr(), "dtagent replay: "+replayLine(args[0], in.Header(), s))
		}

		if *dir == "" && *to == "" {
			traces := tree.NewCollector(tree.Options{Quiet: quiet}, show.trace)
			now := in.Header().Started
			sum, err := replay.Run(ctx, in, replay.Options{
				Speed: *speed,
				Emit:  func(s *correlate.Span) { traces.Add(now, zipkin.FromSpan(s)) },
				Tick: func(wall time.Time) error {
					now = wall
					traces.Advance(now)
					return nil
				},
			})
			traces.Drain(now)
			if show.enough() && cmd.Context().Err() == nil {
				return show.err // it was ended here
			}
			tell(&sum)
			return errors.Join(named(err), show.err)
		}

		if *to != "" {
			if *dir, err = os.MkdirTemp("", "dtagent-replay-"); err != nil {
				return err
			}
			defer func() { err = errors.Join(err, os.RemoveAll(*dir)) }()
		}
		files, err := replay.NewFiles(*dir, in.Header())
		if err != nil {
			return err
		}
		out := replaySummary{Recording: in.Header()}
		out.Summary, err = replay.Run(ctx, in, replay.Options{Speed: *speed, Emit: files.Span, Tick: files.Tick})
		err = errors.Join(named(err), files.Close())
		if sender != nil && ctx.Err() == nil && out.Spans > 0 {
			sent, serr := sender.Run(ctx, *dir)
			if serr == nil && sent.Failed() {
				serr = errors.New("not everything was sent: " + firstTrouble(sent))
			}
			out.Sent, err = &sent, errors.Join(err, serr)
		}
		if asJSON(cmd) {
			return errors.Join(err, printJSON(cmd, out))
		}
		tell(&out.Summary)
		if out.Sent != nil {
			fmt.Fprintln(cmd.OutOrStdout(), pushLine(*out.Sent, *to))
		}
		return err
	})
	return cmd
}

// firstTrouble is the first thing that could not be sent.
func firstTrouble(s push.Summary) string {
	if len(s.Troubles) > 0 {
		return s.Troubles[0].Text
	}
	return s.Stopped
}

// replayLine is the summary in one line.
func replayLine(file string, h *recording.Header, s *replay.Summary) string {
	out := fmt.Sprintf("%s: recorded on %s at %s: %d events of %s, %d spans, %d of them incomplete", file, printable(h.Host.Name),
		h.Started.Format(time.RFC3339), s.Events, duration(s.Seconds), s.Spans, s.Incomplete)
	if s.Lost+s.Missing > 0 {
		out += fmt.Sprintf("; %d events lost by the recorder, %d missed by the agent", s.Lost, s.Missing)
	}
	if s.Torn != "" {
		out += "; " + s.Torn
	}
	if h.Note != "" {
		out += "; note: " + printable(h.Note)
	}
	return out
}

// printable is s as a terminal may get it, of a file that can be anybody's.
func printable(s string) string {
	return strings.Map(func(r rune) rune {
		if !unicode.IsPrint(r) {
			return '?'
		}
		return r
	}, s[:min(len(s), 200)])
}
