package vm

import (
	"bytes"
	"strings"
	"testing"

	"github.com/go-quicktest/qt"

	"github.com/xenserver/dtagent/testenv/vm/plan"
)

// said is what a guest says, with ^ for the byte by which test binaries mark
// their lines.
const said = `
@@vm {"Release":"5.10.0-32-cloud-amd64","Seconds":2}

@@vm {"Begin":"dtagent check"}
ok
@@vm {"End":"dtagent check","Seconds":1}

@@vm {"Begin":"bpf"}
^=== RUN   TestAKernel
^=== RUN   TestAKernel/legacy
    a_test.go:3: said
^--- PASS: TestAKernel/legacy (0.00s)
^=== NAME  TestAKernel
^=== RUN   TestAKernel/modern
^--- PASS: TestAKernel/modern (0.00s)
^=== NAME  TestAKernel
^--- PASS: TestAKernel (0.00s)
^=== NAME  
^=== RUN   TestBKernel
^--- PASS: TestBKernel (0.00s)
^=== NAME  
^PASS

@@vm {"End":"bpf","Seconds":12.5}

@@vm {"Done":true}
`

// judge returns the result of a guest that said this.
func judge(t *testing.T, said, console string) *Result {
	t.Helper()
	s := &Suite{Binary: []TestBinary{{Package: Package{"bpf", "Kernel$"}, Tests: []string{"TestAKernel", "TestBKernel"}}}}
	r := newResult(&Kernel{Suite: "bullseye", Package: "linux-image"}, s)
	alive := false
	r.read(t.Context(), strings.NewReader(strings.ReplaceAll(said, "^", "\x16")), func() { alive = true })
	qt.Check(t, qt.IsTrue(alive))
	r.console = console
	r.finish()
	return r
}

func TestJudge(t *testing.T) {
	replace := func(old, new string) string {
		out := strings.Replace(said, old, new, 1)
		qt.Assert(t, qt.Not(qt.Equals(out, said)))
		return out
	}
	for _, c := range []struct {
		name, said, console string
		ok                  bool
		prints              string
	}{
		{"all passed", said, "", true, "legacy  1       0       0        12.5"},
		{"a test failed", replace("--- PASS: TestAKernel/modern", "--- FAIL: TestAKernel/modern"), "", false, "failed: bpf TestAKernel/modern"},
		{"a test was skipped", replace("^--- PASS: TestBKernel", "    a_test.go:7: needs root\n^--- SKIP: TestBKernel"), "", false, "TestBKernel: needs root"},
		{"a test did not run", replace("^=== RUN   TestBKernel\n^--- PASS: TestBKernel (0.00s)\n", ""), "", false, "TestBKernel did not run"},
		{"a test did not end", replace("^--- PASS: TestBKernel (0.00s)\n^=== NAME  \n^PASS\n", "panic: x\n"), "", false, "failed: bpf TestBKernel"},
		{"a bad exit", replace(`"Seconds":12.5`, `"Exit":2,"Seconds":12.5`), "", false, "exit status 2"},
		{"check failed", replace(`"End":"dtagent check"`, `"Exit":1,"End":"dtagent check"`), "", false, "dtagent check: exit status 1"},
		{"the guest gave up", replace(`{"Done":true}`, `{"Error":"module x: no"}`), "", false, "module x: no"},
		{"the guest died", said[:strings.Index(said, "^=== RUN   TestBKernel")], "", false, "TestBKernel did not run"},
		{"the kernel warns", said, "[ 1.0] WARNING: CPU: 1 PID: 7 at kernel/bpf/x.c\n", false, "kernel: [ 1.0] WARNING"},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := judge(t, c.said, c.console)
			qt.Check(t, qt.Equals(r.OK(), c.ok))
			var b bytes.Buffer
			r.Print(&b)
			qt.Check(t, qt.StringContains(b.String(), c.prints))
			qt.Check(t, qt.Equals(strings.Contains(b.String(), "console of"), !c.ok)) // the console is for failures
		})
	}
}

// What a test says beside a subtest that failed, too, is not lost.
func TestJudgeErrorOfParent(t *testing.T) {
	failed := strings.NewReplacer("--- PASS: TestAKernel", "--- FAIL: TestAKernel",
		"^--- PASS: TestAKernel (0.00s)", "    a_test.go:9: \n        error:\n          lost\n^--- FAIL: TestAKernel (0.00s)").Replace(said)
	for said, want := range map[string]int{failed: 1, strings.Replace(failed, "a_test.go:9", "no place", 1): 0} {
		n := 0
		for _, test := range judge(t, said, "").Tests {
			if test.Name == "TestAKernel" {
				n++
			}
		}
		qt.Check(t, qt.Equals(n, want))
	}
}

func TestSummary(t *testing.T) {
	failed := strings.ReplaceAll(said, "--- PASS: TestAKernel/modern", "--- FAIL: TestAKernel/modern")
	var b bytes.Buffer
	Summary(&b, []*Result{judge(t, said, ""), judge(t, failed, "")})
	var got []string
	for line := range strings.Lines(b.String()) {
		got = append(got, strings.Join(strings.Fields(line), " "))
	}
	qt.Check(t, qt.DeepEquals(got, []string{
		"package test: legacy/modern tier 5.10.0-32-cloud-amd64 5.10.0-32-cloud-amd64",
		"bpf TestAKernel ok/ok ok/FAIL",
		"bpf TestBKernel ok ok",
		"passed, failed, skipped 3, 0, 0 2, 1, 0 FAILED",
		"seconds 0 0",
	}))
}

func TestMark(t *testing.T) {
	m := plan.Mark{End: "probes/target", Exit: -1, Seconds: 1.5}
	got, ok := plan.ParseMark(m.String())
	qt.Check(t, qt.IsTrue(ok))
	qt.Check(t, qt.Equals(got, m))
	_, ok = plan.ParseMark("PASS")
	qt.Check(t, qt.IsFalse(ok))
	_, ok = plan.ParseMark("@@vm {")
	qt.Check(t, qt.IsFalse(ok))
}
