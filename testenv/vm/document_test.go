package vm

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/go-quicktest/qt"
)

const page = `# Kernels

<!-- begin tests: written by make kernels -->
old
<!-- end tests -->

between

<!-- begin ways: written by make kernels -->
<!-- end ways -->

below
`

func TestDocument(t *testing.T) {
	file := filepath.Join(t.TempDir(), "kernels.md")
	qt.Assert(t, qt.IsNil(os.WriteFile(file, []byte(page), 0o644)))
	good := func() *Result {
		return judge(t, strings.Replace(said, "^--- PASS: TestBKernel", tell("sched:sched_switch", "fentry", works, "")+"^--- PASS: TestBKernel", 1), "")
	}
	for range 2 { // again, it stays as it is
		qt.Assert(t, qt.IsNil(Document(file, []*Result{good()})))
		b, err := os.ReadFile(file)
		qt.Assert(t, qt.IsNil(err))
		qt.Check(t, qt.Equals(string(b), `# Kernels

<!-- begin tests: written by make kernels -->

    package  test: legacy/modern tier  5.10.0-32-cloud-amd64
    bpf      TestAKernel               ok/ok
    bpf      TestBKernel               ok
             passed, failed, skipped   3, 0, 0

<!-- end tests -->

between

<!-- begin ways: written by make kernels -->

| hook | 5.10.0-32-cloud-amd64 |
|---|---|
| `+"`sched:sched_switch`"+` | fentry |

<!-- end ways -->

below
`))
	}
	failed := good()
	failed.problems = []string{"it died"}
	qt.Check(t, qt.ErrorMatches(Document(file, []*Result{failed}), ".*is left as it was: tests failed on 5.10.0-32-cloud-amd64"))
	qt.Check(t, qt.ErrorMatches(Document(file, []*Result{judge(t, said, "")}), ".*no test said which ways there are to attach on 5.10.0-32-cloud-amd64"))
	qt.Assert(t, qt.IsNil(os.WriteFile(file, []byte(strings.Replace(page, "<!-- end ways -->", "", 1)), 0o644)))
	qt.Check(t, qt.ErrorMatches(Document(file, []*Result{good()}), ".*has no line <!-- end ways --> below it"))
	qt.Assert(t, qt.IsNil(os.WriteFile(file, []byte("# Kernels\n"), 0o644)))
	qt.Check(t, qt.ErrorMatches(Document(file, []*Result{good()}), ".*has no line <!-- begin tests.*"))
}

// A bad line about a way is no good run.
func TestJudgeBadWay(t *testing.T) {
	r := judge(t, strings.Replace(said, "^--- PASS: TestBKernel", "    x_test.go:1: way hook=\"a\"\n^--- PASS: TestBKernel", 1), "")
	qt.Check(t, qt.IsFalse(r.OK()))
}
