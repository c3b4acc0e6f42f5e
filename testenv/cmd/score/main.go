// Command score measures how well the agent's traces agree with what really
// happened in the two hosts of a simulated pool under a mixed load, and fails when
// that is not good enough. It needs root.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/xenserver/dtagent/testenv"
	"github.com/xenserver/dtagent/testenv/config"
	"github.com/xenserver/dtagent/testenv/daemon"
	"github.com/xenserver/dtagent/testenv/score"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	err := run(ctx)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "score:", err)
		os.Exit(1)
	}
}

// reach is what must be reached.
type reach struct{ precision, recall float64 }

var (
	withTrace    = reach{0.999, 0.98}
	withoutTrace = reach{0.995, 0.95}
)

func run(ctx context.Context) error {
	var o score.Options
	flag.StringVar(&o.Agent, "dtagent", "", "the agent's binary; empty: it is built")
	flag.IntVar(&o.Callers, "callers", 200, "callers at once")
	flag.Float64Var(&o.Rate, "rate", 150, "calls a second of all together; 0: as many as they can make")
	flag.DurationVar(&o.Duration, "duration", 30*time.Second, "length of each load")
	flag.BoolVar(&o.Recycle, "recycle", true, "have the kernel use the numbers of threads and processes again soon, on the whole machine")
	traced := flag.String("traceparent", "both", "whether calls carry a trace context: yes, no, both")
	ring := flag.Int("buffer", 0, "bytes of the agents' buffer in the kernel: a small one loses events")
	queue := flag.Int("queue", 0, "events that the agents' queue holds: a short one loses events")
	native := flag.String("native", "off", "XAPI's own tracing: off, on, bare (a traceparent without JSON)")
	legacy := flag.Bool("legacy", false, "the agents load the programs for Linux 4.19")
	examples := flag.Int("examples", 10, "links that are not right to be shown")
	flag.Parse()

	dir, err := os.MkdirTemp("", "dtagent-score-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	if o.Agent == "" {
		if o.Agent, err = daemon.Build(ctx, dir); err != nil {
			return err
		}
	}
	if o.Dom0, err = testenv.Build(ctx, dir); err != nil {
		return err
	}
	if *ring > 0 {
		o.AgentArgs = append(o.AgentArgs, "--buffer-bytes", fmt.Sprint(*ring))
	}
	if *queue > 0 {
		o.AgentArgs = append(o.AgentArgs, "--queue-events", fmt.Sprint(*queue))
	}
	switch *native {
	case "off":
	case "on":
		o.Knobs.Native, o.Knobs.LogTrace = config.NativeOn, true
	case "bare":
		o.Knobs.Native = config.NativeBare
	default:
		return fmt.Errorf("-native %s: there are off, on and bare", *native)
	}
	if *legacy {
		o.AgentArgs = append(o.AgentArgs, "--legacy")
	}
	lossy := *ring > 0 || *queue > 0
	o.Knobs.AtomTime = map[string]time.Duration{"*": time.Millisecond}

	var errs []error
	for _, with := range []bool{true, false} {
		if *traced == "yes" && !with || *traced == "no" && with {
			continue
		}
		o.Traceparent = with
		if o.Dir, err = os.MkdirTemp(dir, "trial-"); err != nil {
			return err
		}
		r, err := score.Run(ctx, o)
		if err != nil {
			return err
		}
		what, least := "with", withTrace
		if !with {
			what, least = "without", withoutTrace
		}
		fmt.Printf("Calls %s a trace context: %d in %v by %d callers (%s).\n", what, r.Calls, r.Took.Round(time.Millisecond), o.Callers, r.Kinds)
		fmt.Printf("%d events lost (%s).\n\n", r.Lost(), r.Losses())
		if err := r.Print(os.Stdout); err != nil {
			return err
		}
		for _, m := range r.Mistakes {
			fmt.Println("  wrong:", m)
		}
		for i, e := range r.Examples {
			if i < *examples {
				fmt.Println("  not right:", e)
			}
		}
		fmt.Println()
		errs = append(errs, check(r, what, least, lossy))
	}
	return errors.Join(errs...)
}

// check says what is not good enough.
func check(r *score.Result, what string, least reach, lossy bool) error {
	var errs []error
	fail := func(format string, args ...any) {
		errs = append(errs, fmt.Errorf("%s a trace context: "+format, append([]any{what}, args...)...))
	}
	all := r.Total()
	if r.Joined > 0 {
		fail("%d traces join callers", r.Joined)
	}
	switch {
	case lossy && all.Wrong > 0:
		fail("%d links are wrong because of losses", all.Wrong)
	case lossy:
	case r.Lost() > 0:
		fail("events were lost, so this says nothing: use a lower rate")
	default:
		if p := all.Precision(); p < least.precision {
			fail("the precision of links is %.5f, less than %v", p, least.precision)
		}
		if p := all.Recall(); p < least.recall {
			fail("the recall of links is %.5f, less than %v", p, least.recall)
		}
	}
	return errors.Join(errs...)
}
