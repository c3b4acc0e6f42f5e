package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/xenserver/dtagent/cmd/dtagent/control"
	"github.com/xenserver/dtagent/probes/recording"
)

// recordSummary is what `dtagent record --json` prints.
type recordSummary struct {
	File    string  `json:"file"`
	ID      string  `json:"id"`
	Bytes   int64   `json:"bytes"`
	Events  uint64  `json:"events"`
	Lost    uint64  `json:"lost"`    // events for which this verb or the disk was too slow
	Missing uint64  `json:"missing"` // events that the agent itself had missed
	Seconds float64 `json:"seconds"`
	Reason  string  `json:"reason"` // why it ended
}

// byteSize is a flag such as 64MiB.
type byteSize int64

// String is exact, and what Set takes.
func (s *byteSize) String() string {
	for _, unit := range []struct {
		shift uint
		name  string
	}{{30, "GiB"}, {20, "MiB"}, {10, "KiB"}} {
		if n := int64(*s) >> unit.shift; n > 0 && n<<unit.shift == int64(*s) {
			return fmt.Sprint(n, unit.name)
		}
	}
	return fmt.Sprint(int64(*s))
}

func (s *byteSize) Type() string { return "size" }

func (s *byteSize) Set(text string) error {
	digits := strings.TrimRight(text, "iBKMGkmg")
	n, err := strconv.ParseInt(strings.TrimSpace(digits), 10, 64)
	shift, ok := map[string]uint{"": 0, "b": 0, "k": 10, "kib": 10, "m": 20, "mib": 20, "g": 30, "gib": 30}[strings.ToLower(text[len(digits):])]
	if err != nil || !ok || n < 0 || n > 1<<62>>shift {
		return fmt.Errorf("%q is no size such as 64MiB or 1GiB", text)
	}
	*s = byteSize(n << shift)
	return nil
}

// leastRecording is the smallest --max-size: some blocks and the header.
const leastRecording = 1 << 20

func newRecord() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "record FILE",
		Short: "Record what the running agent sees, to be played back",
		Long: `Record the events that the running agent sees, redacted as they are in the agent,
into a new file: all that correlation makes spans of, no matter which Observer gets
them. dtagent replay makes the spans of it again, here or elsewhere.

It ends after --for, at --max-size, when the agent stops, or with Ctrl-C. What has
been recorded by then is good, and so it is after a crash.`,
		Example: `  dtagent record /tmp/slow-start.dtrec --for 2m
  dtagent replay /tmp/slow-start.dtrec --method VM.start`,
		Args: cobra.ExactArgs(1),
	}
	size := byteSize(1 << 30)
	flags := cmd.Flags()
	socket := flags.String("control", defaultControl, "socket of the agent")
	length := flags.Duration("for", 0, "how long to record, such as 30s (0: until Ctrl-C)")
	flags.Var(&size, "max-size", "end before the file is larger than that")
	note := flags.String("note", "", "a remark that is kept in the recording and shown with it")
	cmd.RunE = work(func(cmd *cobra.Command, args []string) error {
		if size < leastRecording {
			return &verbError{verb: "record", code: exitUsage, err: fmt.Errorf("--max-size %s: at least 1 MiB is needed", &size)}
		}
		if *length < 0 {
			return &verbError{verb: "record", code: exitUsage, err: fmt.Errorf("--for %s is less than nothing", *length)}
		}
		r := recorder{path: args[0], limit: int64(size), length: *length, note: *note, errs: cmd.ErrOrStderr()}
		sum, err := r.run(cmd.Context(), control.NewClient(*socket), !asJSON(cmd))
		if sum.ID == "" { // it never began
			return err
		}
		if asJSON(cmd) {
			return errors.Join(err, printJSON(cmd, sum))
		}
		fmt.Fprintln(cmd.OutOrStdout(), sum.line())
		return err
	})
	return cmd
}

// line is the summary in one line.
func (s *recordSummary) line() string {
	out := fmt.Sprintf("%s: %d events of %s in %s, %d lost; ended: %s", s.File, s.Events, duration(s.Seconds), bytesText(s.Bytes), s.Lost, s.Reason)
	if s.Missing > 0 {
		out += fmt.Sprintf("; the agent itself missed %d", s.Missing)
	}
	return out
}

func duration(seconds float64) time.Duration {
	return time.Duration(seconds * float64(time.Second)).Round(100 * time.Millisecond)
}

// recorder writes one recording.
type recorder struct {
	path   string
	limit  int64
	length time.Duration
	note   string
	errs   io.Writer

	file  *os.File
	out   *recording.Writer
	id    string
	begun time.Time
	shown time.Time
	bar   bool // progress is shown, on a terminal
}

// errEnough ends a recording that is long or large enough.
var errEnough = errors.New("enough")

func (r *recorder) run(ctx context.Context, c *control.Client, talk bool) (recordSummary, error) {
	if _, err := os.Lstat(r.path); err == nil { // before the agent is bothered; open is what decides
		return recordSummary{}, fmt.Errorf("%s: %w; a recording is never written over", r.path, os.ErrExist)
	}
	r.bar = talk && onTerminal(r.errs)
	reason := "interrupted"
	timed, over := context.WithCancel(ctx)
	defer over()
	begin := func(h *recording.Header) error {
		if r.length > 0 { // from now on, however long the agent took to answer
			time.AfterFunc(r.length, over)
		}
		return r.begin(h, talk)
	}
	ended, err := c.Record(timed, begin, func(b *recording.Block) error {
		// What is compressed is hardly ever larger than it was; the end needs room, too.
		if r.out.Bytes()+int64(b.Len())+leastRecording/64 > r.limit {
			reason = "--max-size"
			return errEnough
		}
		if err := r.out.Block(b); err != nil {
			return fmt.Errorf("%s: %w", r.path, err)
		}
		r.progress()
		return nil
	})
	switch {
	case errors.Is(err, errEnough):
		err = nil
	case ended != "":
		reason = ended
	case err != nil:
		reason = err.Error()
	case ctx.Err() == nil && timed.Err() != nil:
		reason = "--for"
	}
	if r.bar && !r.shown.IsZero() {
		fmt.Fprint(r.errs, "\r\x1b[K")
	}
	if r.file == nil {
		return recordSummary{}, cmp.Or(err, errors.New("interrupted before it began"))
	}
	err = r.end(reason, err)
	t := r.out.Totals()
	return recordSummary{
		File: r.path, ID: r.id, Bytes: r.out.Bytes(), Events: t.Events, Lost: t.Lost, Missing: t.Missing,
		Seconds: time.Since(r.begun).Seconds(), Reason: reason,
	}, err
}

// begin makes the file.
func (r *recorder) begin(h *recording.Header, talk bool) error {
	f, err := os.OpenFile(r.path, os.O_WRONLY|os.O_CREATE|os.O_EXCL|os.O_APPEND, 0o600)
	if errors.Is(err, os.ErrExist) {
		return fmt.Errorf("%w; a recording is never written over", err)
	}
	if err != nil {
		return err
	}
	h.Note = r.note
	if r.out, err = recording.NewWriter(f, h, true); err != nil {
		return errors.Join(fmt.Errorf("%s: %w", r.path, err), f.Close())
	}
	r.file, r.id, r.begun = f, h.ID, time.Now()
	if len(h.Components) == 0 {
		fmt.Fprintln(r.errs, "dtagent record: no Observer is enabled, so the agent sees nothing; see dtagent observer create")
	}
	if talk {
		fmt.Fprintf(r.errs, "dtagent record: recording to %s; Ctrl-C ends it\n", r.path)
	}
	return nil
}

// end ends the file. After a write that failed there is no end to be written. It
// returns err and what else went wrong.
func (r *recorder) end(reason string, err error) error {
	werr := r.out.End(reason)
	if werr == nil {
		werr = r.file.Sync()
	}
	switch {
	case werr == nil:
	case errors.Is(err, werr): // the same
		err = fmt.Errorf("%w; what was written before is good", err)
	default:
		err = errors.Join(err, fmt.Errorf("%s: %w; what was written before is good", r.path, werr))
	}
	return errors.Join(err, r.file.Close())
}

// progress shows how far it is, at most a few times a second.
func (r *recorder) progress() {
	if !r.bar || time.Since(r.shown) < 250*time.Millisecond {
		return
	}
	r.shown = time.Now()
	t := r.out.Totals()
	fmt.Fprintf(r.errs, "\r\x1b[K%s: %d events, %s, %d lost", duration(time.Since(r.begun).Seconds()), t.Events, bytesText(r.out.Bytes()), t.Lost)
}
