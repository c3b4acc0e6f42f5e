package vm

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os/exec"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/xenserver/dtagent/testenv/vm/plan"
)

// Outcome of a test.
type Outcome string

// Outcomes.
const (
	Passed  Outcome = "pass"
	Failed  Outcome = "fail"
	Skipped Outcome = "skip"
)

// Test is a test without subtests of its own, or a subtest.
type Test struct {
	Package string
	Name    string // with the names of the tests above it
	Outcome Outcome
	Reason  string // of a skip
	Output  string
	Again   bool // it failed, and passed in a second guest
}

// Tier returns the tier that the test ran in, by its name; "" if it has none.
func (t *Test) Tier() string {
	for part := range strings.SplitSeq(t.Name, "/") {
		if part == "legacy" || part == "modern" {
			return part
		}
	}
	return ""
}

// Top returns the name of the test function.
func (t *Test) Top() string {
	top, _, _ := strings.Cut(t.Name, "/")
	return top
}

// Result is what came of a suite on a kernel.
type Result struct {
	Kernel  *Kernel
	Release string // as the guest's uname says
	Tests   []*Test
	Ways    []HookWay // that a test tried
	Runs    []RunResult
	Wall    time.Duration

	suite    *Suite
	problems []string // what failed and is no test
	died     string   // why the guest did not get to its end
	done     bool
	console  string
}

// RunResult is what came of one program.
type RunResult struct {
	Name    string
	Exit    int
	Seconds float64
	Output  string
}

func newResult(k *Kernel, s *Suite) *Result { return &Result{Kernel: k, suite: s} }

// read takes what the guest says until it ends. alive is called at the guest's
// first word.
func (r *Result) read(ctx context.Context, out io.Reader, alive func()) {
	var text strings.Builder
	begun := ""
	err := lines(out, func(line string) {
		m, ok := plan.ParseMark(strings.TrimSpace(line))
		switch {
		case !ok:
			if begun != "" {
				text.WriteString(line)
			}
		case m.Release != "":
			r.Release = m.Release
			alive()
		case m.Begin != "":
			begun = m.Begin
			text.Reset()
		case m.End != "":
			r.Runs = append(r.Runs, RunResult{Name: m.End, Exit: m.Exit, Seconds: m.Seconds, Output: text.String()})
			begun = ""
		case m.Error != "":
			r.problems = append(r.problems, "guest: "+m.Error)
		case m.Done:
			r.done = true
		}
	})
	if err != nil {
		r.problems = append(r.problems, "reading from the guest: "+err.Error())
	}
	if begun != "" { // it died in the midst of a run
		r.Runs = append(r.Runs, RunResult{Name: begun, Exit: -1, Output: text.String()})
	}
	for _, run := range r.Runs {
		if !r.suite.tests(run.Name) {
			if run.Exit != 0 {
				r.problems = append(r.problems, fmt.Sprintf("%s: exit status %d\n%s", run.Name, run.Exit, run.Output))
			}
			continue
		}
		tests, err := parseTests(ctx, run.Name, run.Output)
		if err != nil {
			r.problems = append(r.problems, fmt.Sprintf("package %s: %v", run.Name, err))
		}
		r.Tests = append(r.Tests, tests...)
		ways, bad := parseWays(run.Output)
		r.Ways, r.problems = append(r.Ways, ways...), append(r.problems, bad...)
		if run.Exit != 0 && !slices.ContainsFunc(tests, func(t *Test) bool { return t.Outcome == Failed }) {
			r.problems = append(r.problems, fmt.Sprintf("package %s: exit status %d and no failed test\n%s", run.Name, run.Exit, tail(run.Output, 40)))
		}
	}
}

// maxOutput is about how much of a test's output is kept: its beginning says most.
const maxOutput = 16 << 10

// parseTests reads the output of a test binary as go test does.
func parseTests(ctx context.Context, pkg, output string) ([]*Test, error) {
	cmd := exec.CommandContext(context.WithoutCancel(ctx), "go", "tool", "test2json", "-p", pkg)
	cmd.Stdin = strings.NewReader(output)
	out, err := cmd.Output()
	if err != nil {
		return nil, fmt.Errorf("go tool test2json: %w", err)
	}
	byName := map[string]*Test{}
	var all []*Test
	for line := range strings.Lines(string(out)) {
		var e struct{ Action, Test, Output string }
		if err := json.Unmarshal([]byte(line), &e); err != nil {
			return nil, fmt.Errorf("go tool test2json: %w", err)
		}
		if e.Test == "" || e.Action == "start" {
			continue
		}
		t := byName[e.Test]
		if t == nil {
			t = &Test{Package: pkg, Name: e.Test}
			byName[e.Test] = t
			all = append(all, t)
		}
		switch e.Action {
		case "output":
			if len(t.Output) < maxOutput {
				t.Output += e.Output
			}
		case "pass", "fail", "skip":
			t.Outcome = Outcome(e.Action)
		}
	}
	// A test with subtests is told by them, unless it failed beside them.
	failedBelow, parents := map[string]bool{}, map[string]bool{}
	for _, t := range all {
		if t.Outcome == "" {
			t.Outcome = Failed // it began and did not end
		}
		for name := t.Name; ; {
			i := strings.LastIndexByte(name, '/')
			if i < 0 {
				break
			}
			name = name[:i]
			parents[name] = true
			if t.Outcome == Failed {
				failedBelow[name] = true
			}
		}
		if t.Outcome == Skipped {
			t.Reason = skipReason(t.Output)
		}
	}
	return slices.DeleteFunc(all, func(t *Test) bool {
		return parents[t.Name] && (t.Outcome != Failed || failedBelow[t.Name] && !errorLine.MatchString(t.Output))
	}), nil
}

// errorLine is how a test's own error begins.
var errorLine = regexp.MustCompile(`(?m)^\s+\S+_test\.go:\d+: ?\n\s+error:`)

var skipLine = regexp.MustCompile(`(?m)^\s+\S+_test\.go:\d+: (.*)$`)

func skipReason(output string) string {
	if m := skipLine.FindStringSubmatch(output); m != nil {
		return m[1]
	}
	return "no reason given"
}

// trouble are lines of the kernel's console that no test may cause.
var trouble = regexp.MustCompile(`BUG: (?:KASAN|unable|kernel|sleeping|scheduling)|WARNING: CPU|Oops|general protection`)

// finish judges what was read.
func (r *Result) finish() {
	if r.died != "" {
		r.problems = append(r.problems, r.died)
	}
	for _, b := range r.suite.Binary {
		for _, name := range b.Tests {
			if !slices.ContainsFunc(r.Tests, func(t *Test) bool { return t.Package == b.Path && t.Top() == name }) {
				r.problems = append(r.problems, fmt.Sprintf("package %s: %s did not run", b.Path, name))
			}
		}
	}
	for line := range strings.Lines(r.console) {
		if trouble.MatchString(line) {
			r.problems = append(r.problems, "kernel: "+strings.TrimSpace(line))
		}
	}
}

// OK returns whether all that had to run did, and passed. A skip is no pass: the
// guest has the privileges, and these kernels have all that the tests need.
func (r *Result) OK() bool {
	return r.done && len(r.problems) == 0 && !slices.ContainsFunc(r.Tests, func(t *Test) bool { return t.Outcome != Passed })
}

// Count returns the number of tests of a package and tier with an outcome.
func (r *Result) Count(pkg, tier string, o Outcome) (n int) {
	for _, t := range r.Tests {
		if t.Package == pkg && t.Tier() == tier && t.Outcome == o {
			n++
		}
	}
	return n
}

// tail returns the last n lines.
func tail(s string, n int) string {
	all := strings.Split(strings.TrimRight(s, "\n"), "\n")
	return strings.Join(all[max(0, len(all)-n):], "\n")
}

// name is how the table calls the kernel.
func (r *Result) name() string { return cmp.Or(r.Release, r.Kernel.Package) }

// Total counts the tests, and what else had to work: each run that is no test
// and ended well passed, each problem failed.
func (r *Result) Total() (passed, failed, skipped int) {
	for _, t := range r.Tests {
		switch t.Outcome {
		case Passed:
			passed++
		case Skipped:
			skipped++
		default:
			failed++
		}
	}
	for _, run := range r.Runs {
		if !r.suite.tests(run.Name) && run.Exit == 0 {
			passed++
		}
	}
	return passed, failed + len(r.problems), skipped
}
