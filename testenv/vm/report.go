package vm

import (
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"
	"text/tabwriter"
)

// Print tells of one kernel: the numbers, the skips with their reasons, and
// everything about what failed.
func (r *Result) Print(w io.Writer) {
	fmt.Fprintf(w, "\n== %s (%s, %s): %.0f s\n", r.name(), r.Kernel.Suite, r.Kernel.Package, r.Wall.Seconds())
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "package\ttier\tpassed\tfailed\tskipped\tseconds")
	for _, run := range r.runs() {
		seconds := fmt.Sprintf("%.1f", run.Seconds)
		if !r.suite.tests(run.Name) {
			fmt.Fprintf(t, "%s\t-\t%s\t\t\t%s\n", run.Name, map[bool]string{true: "ok", false: "FAILED"}[run.Exit == 0], seconds)
			continue
		}
		for _, tier := range []string{"legacy", "modern", ""} {
			p, f, s := r.Count(run.Name, tier, Passed), r.Count(run.Name, tier, Failed), r.Count(run.Name, tier, Skipped)
			if p+f+s == 0 {
				continue
			}
			if tier == "" {
				tier = "-"
			}
			fmt.Fprintf(t, "%s\t%s\t%d\t%d\t%d\t%s\n", run.Name, tier, p, f, s, seconds)
			seconds = ""
		}
	}
	t.Flush()
	for _, t := range r.Tests {
		if t.Outcome == Skipped {
			fmt.Fprintf(w, "skipped, which counts as failed: %s %s: %s\n", t.Package, t.Name, t.Reason)
		}
	}
	if r.OK() {
		return
	}
	for _, t := range r.Tests {
		if t.Outcome == Failed {
			fmt.Fprintf(w, "\n--- failed: %s %s\n%s", t.Package, t.Name, t.Output)
		}
	}
	for _, p := range r.problems {
		fmt.Fprintln(w, "\n--- failed:", p)
	}
	fmt.Fprintf(w, "\n--- console of %s, its end\n%s\n", r.name(), tail(r.console, 60))
}

// runs returns the runs of each program as one.
func (r *Result) runs() (out []RunResult) {
	for _, run := range r.Runs {
		i := slices.IndexFunc(out, func(o RunResult) bool { return o.Name == run.Name })
		if i < 0 {
			out = append(out, run)
			continue
		}
		out[i].Seconds += run.Seconds
		if run.Exit != 0 {
			out[i].Exit = run.Exit
		}
	}
	return out
}

// Sort puts kernels in the order of their versions.
func Sort(results []*Result) {
	version := func(r *Result) (v []int) {
		for part := range strings.FieldsFuncSeq(r.name(), func(c rune) bool { return c < '0' || c > '9' }) {
			n, err := strconv.Atoi(part)
			if err != nil {
				break
			}
			v = append(v, n)
		}
		return v
	}
	slices.SortStableFunc(results, func(a, b *Result) int { return slices.Compare(version(a), version(b)) })
}

// Summary prints a table of the tests, a column for each kernel. A cell has the
// outcomes in the legacy and the modern tier, or one where the test has no tier.
func Summary(w io.Writer, results []*Result) { table(w, results, true) }

// table is the Summary, with or without how long each kernel took.
func table(w io.Writer, results []*Result, seconds bool) {
	type row struct{ pkg, test string }
	var rows []row
	cells := map[row]map[*Result]string{}
	for _, r := range results {
		for _, t := range r.Tests {
			k := row{t.Package, t.Top()}
			if cells[k] == nil {
				rows = append(rows, k)
				cells[k] = map[*Result]string{}
			}
			cells[k][r] = r.cell(k.pkg, k.test)
		}
	}
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	head := []string{"package", "test: legacy/modern tier"}
	for _, r := range results {
		head = append(head, r.name())
	}
	fmt.Fprintln(t, strings.Join(head, "\t"))
	for _, k := range rows {
		line := []string{k.pkg, k.test}
		for _, r := range results {
			c := cells[k][r]
			if c == "" {
				c = "-"
			}
			line = append(line, c)
		}
		fmt.Fprintln(t, strings.Join(line, "\t"))
	}
	verdicts := []string{"", "passed, failed, skipped"}
	for _, r := range results {
		n := map[Outcome]int{}
		for _, t := range r.Tests {
			n[t.Outcome]++
		}
		v := fmt.Sprintf("%d, %d, %d", n[Passed], n[Failed], n[Skipped])
		if !r.OK() {
			v += " FAILED"
		}
		verdicts = append(verdicts, v)
	}
	fmt.Fprintln(t, strings.Join(verdicts, "\t"))
	if seconds {
		walls := []string{"", "seconds"}
		for _, r := range results {
			walls = append(walls, fmt.Sprintf("%.0f", r.Wall.Seconds()))
		}
		fmt.Fprintln(t, strings.Join(walls, "\t"))
	}
	t.Flush()
}

// cell returns the worst outcome in each tier.
func (r *Result) cell(pkg, test string) string {
	var out []string
	for _, tier := range []string{"legacy", "modern", ""} {
		worst := -1
		order := []Outcome{Passed, Skipped, Failed}
		for _, t := range r.Tests {
			if t.Package == pkg && t.Top() == test && t.Tier() == tier {
				worst = max(worst, slices.Index(order, t.Outcome))
			}
		}
		switch {
		case worst >= 0:
			out = append(out, []string{"ok", "skip", "FAIL"}[worst])
		case tier != "" && len(out) == 0 || tier == "modern":
			out = append(out, "")
		}
	}
	s := strings.Trim(strings.Join(out, "/"), "/")
	return s
}
