//go:build linux

package e2e

import (
	"context"
	"os"
	"strconv"
	"testing"
	"time"

	"github.com/go-quicktest/qt"

	"github.com/xenserver/dtagent/testenv"
	"github.com/xenserver/dtagent/testenv/score"
)

// trial runs a mixed load on a pool and compares what both agents say with the truth.
func trial(t *testing.T, o score.Options) *score.Result {
	t.Helper()
	needRoot(t)
	o.Agent, o.Dom0 = binaries(t)
	dir, err := os.MkdirTemp("", "trial-") // a test's own has a name that is too long for sockets
	qt.Assert(t, qt.IsNil(err))
	defer os.RemoveAll(dir)
	o.Dir = dir
	o.Knobs = testenv.Knobs{AtomTime: map[string]time.Duration{"*": time.Millisecond}}
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Minute)
	defer cancel()
	r, err := score.Run(ctx, o)
	qt.Assert(t, qt.IsNil(err))
	t.Logf("%d calls in %v (%s); %d events lost (%s)", r.Calls, r.Took.Round(time.Millisecond), r.Kinds, r.Lost(), r.Losses())
	var b logWriter
	qt.Assert(t, qt.IsNil(r.Print(&b)))
	t.Logf("\n%s", b)
	for _, m := range r.Mistakes {
		t.Logf("wrong: %s", m)
	}
	return r
}

// logWriter gathers what is written for a test's log.
type logWriter []byte

func (w *logWriter) Write(p []byte) (int, error) {
	*w = append(*w, p...)
	return len(p), nil
}

// TestAccuracy: under a mixed load, with calls that fail and calls that are cut
// off, links are right and no trace joins callers. `make accuracy` does it with
// many more callers.
//
// Where a machine is so busy that events get lost all the same, links may be missing
// and no more.
func TestAccuracy(t *testing.T) {
	for _, test := range []struct {
		name              string
		traced            bool
		precision, recall float64
	}{
		{"with a trace context", true, 0.999, 0.98},
		{"without", false, 0.995, 0.95},
	} {
		t.Run(test.name, func(t *testing.T) {
			r := trial(t, score.Options{Traceparent: test.traced, Callers: 24, Rate: 40, Calls: 300})
			all := r.Total()
			qt.Check(t, qt.Equals(r.Joined, 0))
			if r.Lost() > 0 {
				qt.Check(t, qt.Equals(all.Wrong, 0))
				return
			}
			qt.Check(t, qt.IsTrue(all.Precision() >= test.precision), qt.Commentf("%+v", all))
			qt.Check(t, qt.IsTrue(all.Recall() >= test.recall), qt.Commentf("%+v", all))
			qt.Check(t, qt.Equals(r.Guessed, 0))
			qt.Check(t, qt.IsTrue(all.Right > 2000), qt.Commentf("%+v", all)) // it was some load
		})
	}
}

// TestHonesty loses events on purpose: what the agent cannot know it does not say.
// No span hangs under what is none of its ancestors, and no trace joins callers.
func TestHonesty(t *testing.T) {
	for _, test := range []struct {
		name string
		rate float64
		args []string
	}{
		{"a buffer that is too small", 60, []string{"--buffer-bytes", strconv.Itoa(8 << 10)}},
		{"a queue that is too short for the load", 0, []string{"--queue-events", "64"}},
	} {
		t.Run(test.name, func(t *testing.T) {
			r := trial(t, score.Options{Traceparent: true, Callers: 32, Rate: test.rate, Calls: 300, AgentArgs: test.args})
			all := r.Total()
			qt.Check(t, qt.IsTrue(r.Lost() > 0), qt.Commentf("nothing was lost"))
			qt.Check(t, qt.Equals(all.Wrong, 0))
			qt.Check(t, qt.Equals(r.Guessed, 0))
			qt.Check(t, qt.Equals(r.Joined, 0))
			qt.Check(t, qt.IsTrue(r.Incomplete > 0))
			qt.Check(t, qt.IsTrue(all.Right > 0), qt.Commentf("nothing is left"))
		})
	}
}
