// Command dtagent traces the XenServer and XCP-ng toolstack from the kernel
// side, with eBPF.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"runtime"
	"runtime/debug"
	"strings"
	"syscall"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/xenserver/dtagent/cmd/dtagent/control"
)

// version is set by the linker.
var version = "devel"

// Exit codes; docs/cli.md explains them.
const (
	exitFailed     = 1  // the verb could not do its work, or check found something that is needed missing
	exitUsage      = 2  // words or flags that dtagent does not know
	exitNotRunning = 3  // status, trace, io, record: no agent runs
	exitFound      = 4  // io --verdict: something holds requests up
	exitConfig     = 78 // run: the configuration file is wrong; EX_CONFIG of sysexits(3), after which systemd is told not to try again
)

// defaultControl is the agent's socket.
const defaultControl = "/run/dtagent/control.sock"

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	os.Exit(execute(ctx, os.Args[1:], os.Stdout, os.Stderr))
}

// execute runs one command line and returns its exit code.
func execute(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	root := newRoot()
	root.SetArgs(args)
	root.SetOut(stdout)
	root.SetErr(stderr)
	err := root.ExecuteContext(ctx)
	if err == nil {
		return 0
	}
	var failed *verbError
	if !errors.As(err, &failed) { // cobra's own: it never came to a verb's work
		fmt.Fprintf(stderr, "dtagent: %v\nSee dtagent --help.\n", err)
		return exitUsage
	}
	if failed.err != nil {
		fmt.Fprintf(stderr, "dtagent %s\n", failed)
	}
	return failed.code
}

// verbError is a failure of a verb's work and the exit code it gives. Without
// an error everything has been said already.
type verbError struct {
	verb string
	code int
	err  error
}

func (e *verbError) Error() string {
	if e.err == nil {
		return e.verb + " failed"
	}
	return fmt.Sprintf("%s: %v", e.verb, e.err)
}

func (e *verbError) Unwrap() error { return e.err }

// work makes a verb's RunE: what fn returns becomes a verbError with the exit
// code that its kind has.
func work(fn func(cmd *cobra.Command, args []string) error) func(*cobra.Command, []string) error {
	return func(cmd *cobra.Command, args []string) error {
		err := fn(cmd, args)
		var v *verbError
		if err == nil || errors.As(err, &v) {
			return err
		}
		v = &verbError{verb: strings.TrimPrefix(cmd.CommandPath(), "dtagent "), code: exitFailed, err: err}
		if errors.Is(err, control.ErrNotRunning) {
			v.code = exitNotRunning
			v.err = fmt.Errorf("%w\nStart it with `systemctl start dtagent` or, by hand and as root, `dtagent run`; `dtagent check` says whether this host lets it work. --control names another socket", err)
		}
		return v
	}
}

func newRoot() *cobra.Command {
	root := &cobra.Command{
		Use:   "dtagent",
		Short: "Trace XAPI calls through the toolstack of a XenServer or XCP-ng host, with eBPF",
		Long: `dtagent traces XAPI calls through the toolstack of a XenServer or XCP-ng host. It
looks from the kernel side, with eBPF, and changes nothing in the toolstack. Its
spans join the traces of callers that send a W3C traceparent, and go where
Observers say: to files for the bugtool, to zipkin and OTLP receivers. Of the guests'
disks it says what they do, and which layer of dom0 makes one slow.`,
		SilenceUsage:  true,
		SilenceErrors: true,
		Args:          cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			_ = cmd.Help()
			return &verbError{verb: "", code: exitUsage}
		},
	}
	root.CompletionOptions.DisableDefaultCmd = true
	root.PersistentFlags().Bool("json", false, "answer in JSON")
	root.AddCommand(newRun(), newCheck(), newStatus(), newTrace(), newIO(), newRecord(), newReplay(), newObserver(), newPush(), newVersion())
	return root
}

func newVersion() *cobra.Command {
	return &cobra.Command{
		Use:   "version",
		Short: "Print the version",
		Args:  cobra.NoArgs,
		RunE: work(func(cmd *cobra.Command, _ []string) error {
			v := struct {
				Version  string `json:"version"`
				Revision string `json:"revision,omitempty"`
				Go       string `json:"go"`
				Platform string `json:"platform"`
			}{Version: version, Go: runtime.Version(), Platform: runtime.GOOS + "/" + runtime.GOARCH}
			if info, ok := debug.ReadBuildInfo(); ok {
				for _, s := range info.Settings {
					if s.Key == "vcs.revision" {
						v.Revision = s.Value
					}
				}
			}
			if asJSON(cmd) {
				return printJSON(cmd, v)
			}
			_, err := fmt.Fprintf(cmd.OutOrStdout(), "dtagent %s %s %s\n", v.Version, v.Go, v.Platform)
			return err
		}),
	}
}

func asJSON(cmd *cobra.Command) bool {
	b, _ := cmd.Flags().GetBool("json")
	return b
}

func printJSON(cmd *cobra.Command, v any) error {
	enc := json.NewEncoder(cmd.OutOrStdout())
	enc.SetIndent("", "  ")
	enc.SetEscapeHTML(false)
	return enc.Encode(v)
}

// onTerminal tells whether colours make sense on w.
func onTerminal(w io.Writer) bool {
	f, ok := w.(*os.File)
	if !ok || os.Getenv("NO_COLOR") != "" || os.Getenv("TERM") == "dumb" {
		return false
	}
	_, err := unix.IoctlGetTermios(int(f.Fd()), unix.TCGETS)
	return err == nil
}
