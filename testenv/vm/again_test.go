package vm

import (
	"strings"
	"testing"

	"github.com/go-quicktest/qt"
)

// A test counts as passed when it failed once only, and nothing else was wrong.
func TestAgain(t *testing.T) {
	failed := strings.Replace(said, "--- PASS: TestAKernel/modern", "--- FAIL: TestAKernel/modern", 1)
	r := judge(t, failed, "")
	qt.Assert(t, qt.HasLen(r.Failed(), 1))
	only := r.suite.Only(r.Failed())
	qt.Assert(t, qt.HasLen(only.Binary, 1))
	qt.Check(t, qt.DeepEquals(only.Binary[0].Tests, []string{"TestAKernel"}))
	qt.Check(t, qt.HasLen(r.suite.Binary[0].Tests, 2)) // as before

	qt.Check(t, qt.Equals(r.Mend(judge(t, failed, "")), 0)) // again
	qt.Check(t, qt.Equals(r.Mend(judge(t, said, "[ 1.0] WARNING: CPU: 1 PID: 7 at kernel/bpf/x.c\n")), 0))
	qt.Check(t, qt.IsFalse(r.OK()))
	qt.Check(t, qt.Equals(r.Mend(judge(t, said, "")), 1))
	qt.Check(t, qt.IsTrue(r.OK()))
	qt.Check(t, qt.HasLen(r.Failed(), 0))

	// More than a test was wrong: that is no accident of a test.
	qt.Check(t, qt.HasLen(judge(t, failed, "[ 1.0] WARNING: CPU: 1 PID: 7 at kernel/bpf/x.c\n").Failed(), 0))
	qt.Check(t, qt.HasLen(judge(t, strings.Replace(failed, `{"Done":true}`, `{"Error":"module x: no"}`, 1), "").Failed(), 0))
	qt.Check(t, qt.HasLen(judge(t, said, "").Failed(), 0))
}
