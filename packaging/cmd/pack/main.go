// Command pack writes packages of an agent that is built. It is run in the root of
// the repository; `make rpm` and `make deb` do.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"slices"

	"github.com/xenserver/dtagent/packaging"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	if err := run(ctx, os.Args[1:]); err != nil && !errors.Is(err, flag.ErrHelp) {
		fmt.Fprintln(os.Stderr, "pack:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string) error {
	f := flag.NewFlagSet("pack", flag.ContinueOnError)
	binary := f.String("binary", "bin/dtagent", "the agent")
	describe := f.String("version", "", "version, as git describe --tags --always --dirty says it")
	out := f.String("out", "bin", "directory of the packages")
	if err := f.Parse(args); err != nil {
		return err
	}
	t, err := packaging.SourceTime(ctx, ".")
	if err != nil {
		return err
	}
	version, err := packaging.Version(*describe, t)
	if err != nil {
		return err
	}
	formats := f.Args()
	for _, k := range packaging.Kinds {
		if len(formats) > 0 && !slices.Contains(formats, k.Format) {
			continue
		}
		path, err := packaging.Build(ctx, k, packaging.Options{Source: ".", Binary: *binary, Version: version, Time: t, Out: *out})
		if err != nil {
			return err
		}
		fmt.Println(path)
	}
	return nil
}
