// Command vmtest runs the kernel tests on Debian's kernels under QEMU and says
// by its exit status whether all of them passed.
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
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/xenserver/dtagent/testenv/vm"
)

func main() {
	kernels := flag.String("kernels", "bullseye,bookworm,bookworm-backports,sid", "suites of Debian whose newest kernels are booted")
	jobs := flag.Int("jobs", 2, "machines at a time; each has two processors")
	limit := flag.Duration("limit", 40*time.Minute, "how long one machine may take, four times of what it takes on two busy processors")
	filter := flag.String("package", "", "only packages whose path contains this")
	only := flag.String("run", "", "only tests whose names match this regular expression")
	count := flag.Int("count", 1, "how often each package's tests are run in a machine")
	write := flag.String("write", "", "also write the tables into this Markdown file, between their comments")
	again := flag.Bool("again", false, "run what failed again, once, in a second guest; what passes there is told, and counts as passed")
	verbose := flag.Bool("v", false, "show what the guests say while they say it")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	err := run(ctx, strings.Split(*kernels, ","), *jobs, *limit, *filter, *only, *count, *again, *write, *verbose)
	if err != nil {
		fmt.Fprintln(os.Stderr, "vmtest:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, suites []string, jobs int, limit time.Duration, filter, only string, count int, again bool, write string, verbose bool) error {
	if runtime.GOARCH != "amd64" || runtime.GOOS != "linux" {
		return errors.New("needs Linux on x86-64")
	}
	tests, err := regexp.Compile(only)
	if err != nil {
		return fmt.Errorf("-run: %w", err)
	}
	start := time.Now()
	dir, err := vm.CacheDir()
	if err != nil {
		return err
	}
	cache, err := vm.OpenCache(dir, func(line string) { fmt.Fprintln(os.Stderr, "vmtest:", line) })
	if err != nil {
		return err
	}
	tools, err := cache.Tools(ctx)
	if err != nil {
		return err
	}
	var kernels []*vm.Kernel
	for _, suite := range suites {
		k, err := cache.Kernel(ctx, suite, vm.Cloud, vm.Modules...)
		if err != nil {
			return err
		}
		kernels = append(kernels, k)
	}
	fetched := time.Now()
	scratch, err := os.MkdirTemp("", "dtagent-vm")
	if err != nil {
		return err
	}
	defer os.RemoveAll(scratch)
	suite, err := vm.BuildSuite(ctx, scratch, filter, tests)
	if err != nil {
		return err
	}
	suite.Count = count
	built := time.Now()

	var live io.Writer
	if verbose {
		live = os.Stderr
	}
	results := make([]*vm.Result, len(kernels))
	errs := make([]error, len(kernels))
	slots := make(chan struct{}, max(jobs, 1))
	var wg sync.WaitGroup
	var printing sync.Mutex
	var mended atomic.Int64
	for i, k := range kernels {
		slots <- struct{}{}
		wg.Go(func() {
			defer func() { <-slots }()
			run := func(s *vm.Suite) (r *vm.Result) {
				if r, errs[i] = s.Run(ctx, k, tools, scratch, limit, live); errs[i] != nil {
					return nil
				}
				printing.Lock()
				defer printing.Unlock()
				r.Print(os.Stdout)
				return r
			}
			if results[i] = run(suite); results[i] == nil || !again {
				return
			}
			if failed := results[i].Failed(); failed != nil {
				if second := run(suite.Only(failed)); second != nil {
					mended.Add(int64(results[i].Mend(second)))
				}
			}
		})
	}
	wg.Wait()
	if err := errors.Join(errs...); err != nil {
		return err
	}
	fmt.Println()
	vm.Sort(results)
	vm.Summary(os.Stdout, results)
	round := func(d time.Duration) time.Duration { return d.Round(time.Second) }
	fmt.Printf("%v in all: %v to fetch, %v to build, %v in %d machines, %d at a time\n", round(time.Since(start)),
		round(fetched.Sub(start)), round(built.Sub(fetched)), round(time.Since(built)), len(kernels), jobs)
	if n := mended.Load(); n > 0 {
		fmt.Printf("%d tests failed in one guest and passed in a second one: their output is above\n", n)
	}
	bad := 0
	for _, r := range results {
		if !r.OK() {
			bad++
		}
	}
	if bad > 0 {
		return fmt.Errorf("tests failed on %d of %d kernels", bad, len(kernels))
	}
	if write != "" {
		return vm.Document(write, results)
	}
	return nil
}
