//go:build linux

// Command verdicts measures how often the agent names what holds up guests' disks, with
// real eBPF, stand-ins of tapdisks and time that is lost on purpose, and fails when
// that is not often enough. It needs root.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"

	"github.com/xenserver/dtagent/testenv/tapdisk"
	"github.com/xenserver/dtagent/testenv/verdicts"
)

func main() {
	tapdisk.Main()
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	err := run(ctx)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "verdicts:", err)
		os.Exit(1)
	}
}

// What must be reached.
const (
	leastNamed  = 0.95
	leastInside = 0.90
)

func run(ctx context.Context) error {
	var o verdicts.Options
	var names []string
	for _, c := range verdicts.Cases() {
		names = append(names, c.Name)
	}
	cases := flag.String("cases", "", "only these, with commas between them: "+strings.Join(names, ", "))
	flag.DurationVar(&o.Window, "window", 3*time.Second, "that the agent learns at a time; as it is installed 10s")
	flag.IntVar(&o.Windows, "windows", 10, "how many it learns before anything is wrong")
	flag.DurationVar(&o.Look, "for", 8*time.Second, "how long a verdict looks")
	flag.BoolVar(&o.Legacy, "legacy", false, "the programs for Linux 4.19")
	flag.BoolVar(&o.First, "first", false, "have the simulated dom0 go before other work of the machine, which would else be found to be in its way")
	asJSON := flag.Bool("json", false, "print all trials and the figures as one JSON document")
	flag.Parse()
	if *cases != "" {
		o.Cases = strings.Split(*cases, ",")
	}
	begin := time.Now()
	o.Tell = func(format string, args ...any) {
		fmt.Fprintf(os.Stderr, "%4.0f s  %s\n", time.Since(begin).Seconds(), fmt.Sprintf(format, args...))
	}
	r, err := verdicts.Run(ctx, o)
	if r == nil {
		return err
	}
	f := r.Figures()
	if *asJSON {
		enc := json.NewEncoder(os.Stdout)
		enc.SetIndent("", "  ")
		err = errors.Join(err, enc.Encode(struct {
			*verdicts.Result
			Figures verdicts.Figures `json:"figures"`
		}{r, f}))
	} else {
		err = errors.Join(err, r.Print(os.Stdout))
	}
	if float64(f.Named) < leastNamed*float64(f.Faults) {
		err = errors.Join(err, fmt.Errorf("%d of %d faults are named: fewer than %.0f %%", f.Named, f.Faults, 100*leastNamed))
	}
	if f.Blamed > 0 {
		err = errors.Join(err, fmt.Errorf("something was found in %d of %d times in which nothing was wrong", f.Blamed, f.Quiet))
	}
	if f.Inside < leastInside {
		err = errors.Join(err, fmt.Errorf("%.1f %% of the added time is in the right layers: less than %.0f %%", 100*f.Inside, 100*leastInside))
	}
	return err
}
