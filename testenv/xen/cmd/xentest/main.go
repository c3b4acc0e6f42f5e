// Command xentest runs the agent and its kernel tests in the dom0 of a Xen host
// under QEMU, with guests that use their disks, and says by its exit status
// whether everything passed.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"regexp"
	"runtime"
	"strings"
	"syscall"
	"time"

	"github.com/xenserver/dtagent/testenv/vm"
	"github.com/xenserver/dtagent/testenv/vm/plan"
	"github.com/xenserver/dtagent/testenv/xen"
)

func main() {
	limit := flag.Duration("limit", 40*time.Minute, "how long the host may run, four times of what it takes on two busy processors")
	filter := flag.String("package", "", "only packages whose path contains this")
	only := flag.String("run", "", "only tests whose names match this regular expression")
	count := flag.Int("count", 1, "how often each package's tests are run")
	verbose := flag.Bool("v", false, "show what dom0 says while it says it")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, *limit, *filter, *only, *count, *verbose); err != nil {
		fmt.Fprintln(os.Stderr, "xentest:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, limit time.Duration, filter, only string, count int, verbose bool) error {
	if runtime.GOARCH != "amd64" || runtime.GOOS != "linux" {
		return errors.New("needs Linux on x86-64")
	}
	tests, err := regexp.Compile(only)
	if err != nil {
		return fmt.Errorf("-run: %w", err)
	}
	say := func(line string) { fmt.Fprintln(os.Stderr, "xentest:", line) }
	start := time.Now()
	dir, err := vm.CacheDir()
	if err != nil {
		return err
	}
	cache, err := vm.OpenCache(dir, say)
	if err != nil {
		return err
	}
	host, err := xen.Fetch(ctx, cache)
	if err != nil {
		return err
	}
	fetched := time.Now()
	say("building the tests and dom0's disk")
	scratch, err := os.MkdirTemp("", "dtagent-xen")
	if err != nil {
		return err
	}
	defer os.RemoveAll(scratch)
	suite, err := vm.BuildPackages(ctx, scratch, xen.Packages, filter, tests)
	if err != nil {
		return err
	}
	suite.Count = count
	machine, err := host.Machine(ctx, scratch, suite)
	if err != nil {
		return err
	}
	built := time.Now()
	say("booting Xen, dom0 and its tests; that takes minutes")
	live := io.Writer(&progress{say: say})
	if verbose {
		live = os.Stderr
	}
	result, err := host.Run(ctx, suite, machine, scratch, limit, live)
	if err != nil {
		return err
	}
	result.Print(os.Stdout)
	round := func(d time.Duration) time.Duration { return d.Round(time.Second) }
	fmt.Printf("%v in all: %v to fetch, %v to build, %v on the Xen host\n", round(time.Since(start)),
		round(fetched.Sub(start)), round(built.Sub(fetched)), round(time.Since(built)))
	passed, failed, skipped := result.Total()
	fmt.Printf("%d passed, %d failed, %d skipped\n", passed, failed, skipped)
	if !result.OK() {
		return errors.New("not all passed")
	}
	return nil
}

// progress tells how far dom0 is, from what it says.
type progress struct {
	say  func(line string)
	line []byte // that has not ended yet
}

func (p *progress) Write(b []byte) (int, error) {
	for _, c := range b {
		if c != '\n' {
			p.line = append(p.line, c)
			continue
		}
		m, ok := plan.ParseMark(strings.TrimSpace(string(p.line)))
		p.line = p.line[:0]
		switch {
		case !ok:
		case m.Release != "":
			p.say(fmt.Sprintf("dom0 is up, Linux %s, after %.0f s", m.Release, m.Seconds))
		case m.Begin != "":
			p.say("dom0 runs " + m.Begin)
		case m.End != "" && m.Exit != 0:
			p.say(fmt.Sprintf("%s FAILED after %.0f s", m.End, m.Seconds))
		}
	}
	return len(b), nil
}
