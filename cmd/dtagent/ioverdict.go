package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"github.com/xenserver/dtagent/cmd/dtagent/control"
	"github.com/xenserver/dtagent/cmd/dtagent/judge"
	"github.com/xenserver/dtagent/correlate/verdict"
)

// judge has the agent say what holds disks up.
func (f *ioFlags) judge(cmd *cobra.Command) error {
	var tell func(time.Duration)
	done := func() {}
	if e, ok := cmd.ErrOrStderr().(*os.File); ok && term.IsTerminal(int(e.Fd())) {
		tell = func(d time.Duration) {
			fmt.Fprintf(e, "\rwatching the disks: %.0f s of %.0f s ", d.Seconds(), f.length.Seconds())
		}
		done = func() { fmt.Fprintf(e, "\r%s\r", strings.Repeat(" ", 48)) }
		tell(0)
	}
	r, err := control.NewClient(f.control).Verdict(cmd.Context(), f.length, tell)
	done()
	if errors.Is(err, context.Canceled) {
		return &verbError{verb: "io", code: exitFailed, err: errors.New("stopped before it had watched for long enough: no verdict. A shorter time is --for 10s")}
	}
	if err != nil {
		return err
	}
	if err := f.chooseFindings(r); err != nil {
		return err
	}
	if asJSON(cmd) {
		err = printJSON(cmd, r)
	} else {
		err = printVerdict(cmd.OutOrStdout(), r, f.verdict == "all")
	}
	if err == nil && slices.ContainsFunc(r.Findings, func(f verdict.Finding) bool { return f.Cause.Fault() }) {
		return &verbError{verb: "io", code: exitFound}
	}
	return err
}

// chooseFindings leaves those that were asked for, the worst first.
func (f *ioFlags) chooseFindings(r *judge.Report) error {
	chosen := func(w *verdict.Who) bool {
		return (f.verdict == "all" || judge.IsVM(w, f.verdict) || judge.IsSR(w, f.verdict) || judge.IsVBD(w, f.verdict)) &&
			(f.vm == "" || judge.IsVM(w, f.vm)) && (f.sr == "" || judge.IsSR(w, f.sr)) && (f.vbd == "" || judge.IsVBD(w, f.vbd))
	}
	var who []verdict.Who
	for i := range r.Findings {
		who = append(who, r.Findings[i].Disk)
	}
	for i := range r.Unseen {
		who = append(who, r.Unseen[i].Who)
	}
	r.Findings = slices.DeleteFunc(r.Findings, func(f verdict.Finding) bool { return !chosen(&f.Disk) })
	r.Unseen = slices.DeleteFunc(r.Unseen, func(u judge.Unseen) bool { return !chosen(&u.Who) })
	if len(r.Findings)+len(r.Unseen) == 0 && r.Trouble == "" && (f.verdict != "all" || f.vm+f.sr+f.vbd != "") {
		return noDisk(who)
	}
	rank := func(c verdict.Cause) int {
		switch {
		case c.Fault():
			return 0
		case c == verdict.OwnLoad:
			return 1
		case c == verdict.Healthy:
			return 2
		}
		return 3
	}
	slices.SortStableFunc(r.Findings, func(a, b verdict.Finding) int {
		return cmp.Or(cmp.Compare(rank(a.Cause), rank(b.Cause)), cmp.Compare(float64(b.Added)*float64(b.Requests), float64(a.Added)*float64(a.Requests)))
	})
	return nil
}

// printVerdict prints a report. In short, disks of which there is nothing to say are
// counted only.
func printVerdict(out io.Writer, r *judge.Report, short bool) error {
	var b strings.Builder
	count := map[verdict.Cause]int{}
	held := 0
	for i := range r.Findings {
		f := &r.Findings[i]
		count[f.Cause]++
		if f.Cause.Fault() {
			held++
		}
		if short && (f.Cause == verdict.Healthy || f.Cause == verdict.TooFew) {
			continue
		}
		for line := range strings.Lines(f.Text()) {
			b.WriteString(plain(strings.TrimSuffix(line, "\n")) + "\n")
		}
		b.WriteByte('\n')
	}
	for i := range r.Unseen {
		fmt.Fprintf(&b, "%s: not seen: %s\n", plain(r.Unseen[i].Who.String()), plain(r.Unseen[i].Why))
	}
	for _, l := range r.Losses {
		fmt.Fprintf(&b, "latencies missing: %s: %d\n", l.Cause, l.Count)
	}
	if r.Trouble != "" {
		fmt.Fprintf(&b, "trouble: %s\n", plain(r.Trouble))
	}
	var parts []string
	for _, c := range verdict.Causes() {
		if n := count[c]; n > 0 {
			parts = append(parts, fmt.Sprintf("%d %s", n, c))
		}
	}
	switch {
	case len(r.Findings)+len(r.Unseen) == 0:
		fmt.Fprintf(&b, "no guest has a disk\n")
	case len(parts) > 0:
		fmt.Fprintf(&b, "%d disks in %s, %d held up: %s\n", len(r.Findings), duration(r.Seconds), held, strings.Join(parts, ", "))
	}
	_, err := io.WriteString(out, b.String())
	return err
}
