//go:build linux

package verdicts_test

import (
	"errors"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/go-quicktest/qt"

	"github.com/xenserver/dtagent/bpf"
	"github.com/xenserver/dtagent/testenv/tapdisk"
	"github.com/xenserver/dtagent/testenv/verdicts"
)

func TestMain(m *testing.M) {
	tapdisk.Main()
	os.Exit(m.Run())
}

// A slow device is named, and a pause is, in the small. What is said
// while nothing is injected is for the command: a machine may be busy.
func TestVerdictsKernel(t *testing.T) {
	r, err := verdicts.Run(t.Context(), verdicts.Options{Cases: []string{"device", "pause"}, Times: []int{50}, Window: time.Second, Windows: 9, Look: 4 * time.Second, Tell: t.Logf})
	if errors.Is(err, bpf.ErrKernel) {
		t.Skip("needs eBPF: " + strings.ReplaceAll(err.Error(), "\n", "; "))
	}
	qt.Assert(t, qt.IsNil(err))
	for c, why := range r.Skipped {
		t.Logf("%s: %s", c, why)
	}
	if len(r.Skipped) == 2 {
		t.Skip("needs devices that can be made slow: ", r.Skipped)
	}
	for _, trial := range r.Trials {
		qt.Check(t, qt.IsTrue(trial.Right), qt.Commentf("%s: %s", trial.Case, trial.Finding.Text()))
		qt.Check(t, qt.IsTrue(!trial.Told || trial.Inside >= 0.9), qt.Commentf("%s: %s", trial.Case, trial.Finding.Text()))
	}
}
