package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"sync"
	"time"

	"github.com/schollz/progressbar/v3"
	"github.com/spf13/cobra"

	"github.com/xenserver/dtagent/cmd/dtagent/push"
	"github.com/xenserver/dtagent/observer/masked"
)

func newPush() *cobra.Command {
	var o push.Options
	cmd := &cobra.Command{
		Use:   "push FILE|DIR URL",
		Short: "Send bugtool files to a receiver of traces",
		Long: `Send bugtool files to a receiver of traces, as xs-trace cp does: a file (.ndjson,
.zst, or one that is an array of spans), or every .ndjson, .json and .zst below a
directory; those of the toolstack too. The files stay as they are.

http(s)://HOST:PORT/PATH gets zipkin-v2 JSON, otlp+http(s)://HOST:PORT/PATH OTLP.
What is sent twice is the same to a receiver: the spans keep their ids.`,
		Example: `  dtagent push /var/log/dt/zipkinv2/json http://jaeger:9411/api/v2/spans
  dtagent push trace.ndjson.zst otlp+https://collector:4318/v1/traces --ca-file ca.pem`,
		Args: cobra.ExactArgs(2),
	}
	flags := cmd.Flags()
	flags.StringVar(&o.CAFile, "ca-file", "", "PEM file that the certificate of https receivers is checked against (default: the system's and the pool's)")
	flags.DurationVar(&o.Timeout, "timeout", 30*time.Second, "for one request")
	flags.IntVar(&o.Retries, "retries", 8, "how often a request is tried again after 5xx, 429, no answer (0: never)")
	flags.IntVar(&o.BodyBytes, "batch-bytes", 1<<20, "up to how many bytes lines are joined into one request (1: each line is one)")

	cmd.RunE = work(func(cmd *cobra.Command, args []string) error {
		o.URL = args[1]
		if o.Retries == 0 {
			o.Retries = -1
		}
		out := &pushOutput{errs: cmd.ErrOrStderr()}
		if onTerminal(out.errs) && !asJSON(cmd) {
			o.Progress = out.progress
		}
		o.Trouble, o.Retry = out.trouble, out.retry
		p, err := push.New(o)
		if err != nil {
			return &verbError{verb: "push", code: exitUsage, err: err}
		}
		defer p.Close()
		sum, err := p.Run(cmd.Context(), args[0])
		out.finish()
		if errors.Is(err, context.Canceled) {
			err = fmt.Errorf("interrupted: %s", sum.Stopped)
		}
		if asJSON(cmd) {
			if perr := printJSON(cmd, sum); err == nil {
				err = perr
			}
		} else if sum.FilesTotal > 0 {
			fmt.Fprintln(cmd.OutOrStdout(), pushLine(sum, args[1]))
		}
		if err == nil && sum.Failed() {
			err = errors.New("not everything was sent; the messages above say what is missing")
		}
		return err
	})
	return cmd
}

// pushLine is the summary in one line.
func pushLine(s push.Summary, to string) string {
	line := fmt.Sprintf("sent %d spans (%d lines, %s) of %d of %d files to %s in %s", s.Spans, s.Lines, bytesText(s.Bytes), s.Files, s.FilesTotal, masked.Endpoint(to),
		time.Duration(s.Seconds*float64(time.Second)).Round(time.Millisecond))
	var more []string
	for _, c := range []struct {
		n    int
		what string
	}{{s.FailedLines, "lines failed"}, {s.FailedSpans, "spans refused"}, {s.FailedFiles, "files unreadable"}, {s.HalfLines, "half lines left out"}, {s.Retries, "retries"}, {s.Skipped, "other files skipped"}} {
		if c.n > 0 {
			more = append(more, fmt.Sprintf("%d %s", c.n, c.what))
		}
	}
	if len(more) > 0 {
		line += "; " + strings.Join(more, ", ")
	}
	return line
}

func bytesText(n int64) string {
	switch {
	case n >= 1<<20:
		return fmt.Sprintf("%.1f MiB", float64(n)/(1<<20))
	case n >= 1<<10:
		return fmt.Sprintf("%.1f KiB", float64(n)/(1<<10))
	}
	return fmt.Sprintf("%d bytes", n)
}

// pushOutput is what a person sees meanwhile: a bar on a terminal, and troubles
// above it.
type pushOutput struct {
	errs io.Writer

	mu    sync.Mutex
	bar   *progressbar.ProgressBar
	shown int
}

// maxShown is how many troubles are printed; the rest is counted in the end.
const maxShown = 20

func (p *pushOutput) progress(done, total int64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.bar == nil {
		p.bar = progressbar.NewOptions64(max(total, 1), progressbar.OptionSetWriter(p.errs), progressbar.OptionSetDescription("pushing"),
			progressbar.OptionShowBytes(true), progressbar.OptionUseIECUnits(true), progressbar.OptionShowTotalBytes(true), progressbar.OptionSetPredictTime(true),
			progressbar.OptionFullWidth(), progressbar.OptionThrottle(100*time.Millisecond), progressbar.OptionClearOnFinish(), progressbar.OptionSetRenderBlankState(true))
	}
	_ = p.bar.Set64(done)
}

func (p *pushOutput) say(format string, args ...any) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.bar != nil {
		_ = p.bar.Clear()
	}
	fmt.Fprintf(p.errs, "dtagent push: "+format+"\n", args...)
}

func (p *pushOutput) trouble(t push.Trouble) {
	p.shown++
	switch {
	case p.shown <= maxShown:
		p.say("%s", t)
	case p.shown == maxShown+1:
		p.say("more of that kind is counted, not shown; --json lists the first 100")
	}
}

func (p *pushOutput) retry(err error, pause time.Duration) {
	p.say("%v; again in %s", err, pause.Round(10*time.Millisecond))
}

// finish takes the bar away.
func (p *pushOutput) finish() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.bar != nil {
		_ = p.bar.Clear()
	}
}
