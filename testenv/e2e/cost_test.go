package e2e

import (
	"context"
	"encoding/json"
	"strings"
	"testing"

	"github.com/go-quicktest/qt"

	"github.com/xenserver/dtagent/cmd/dtagent/control"
	"github.com/xenserver/dtagent/testenv"
)

// TestCost asks a running agent what its programs cost, in both tiers: as JSON and
// as text, before anything is attached and after.
func TestCost(t *testing.T) {
	for tier, args := range map[string][]string{"modern": nil, "legacy": {"--legacy"}} {
		t.Run(tier, func(t *testing.T) {
			l := newLab(t, testenv.Options{}, args...)
			cost := func() (c control.Cost) {
				out, err := l.agent.Run(context.Background(), "status", "--cost=200ms", "--json")
				qt.Assert(t, qt.IsNil(err))
				qt.Assert(t, qt.IsNil(json.Unmarshal([]byte(out), &c)))
				return c
			}
			qt.Check(t, qt.HasLen(cost().Probes, 0))
			out, err := l.agent.Run(context.Background(), "status", "--cost=1ms")
			qt.Assert(t, qt.IsNil(err))
			qt.Check(t, qt.Equals(out, "Nothing is attached: there is no cost.\n"))

			l.observe()
			c := cost()
			qt.Check(t, qt.Equals(c.Estimated, tier == "legacy"))
			qt.Check(t, qt.IsTrue(c.Seconds >= 0.2))
			runs := map[string]uint64{}
			for _, p := range c.Probes {
				runs[p.Probe] = p.Runs
				qt.Check(t, qt.IsTrue(p.Runs == 0 || p.Own+p.Entry > 0), qt.Commentf("%+v", p))
			}
			qt.Check(t, qt.HasLen(c.Probes, 3))
			qt.Check(t, qt.IsTrue(runs["wait"] > 0), qt.Commentf("%v", runs)) // every switch and system call runs it
			out, err = l.agent.Run(context.Background(), "status", "--cost=200ms")
			qt.Assert(t, qt.IsNil(err))
			t.Logf("%s", out)
			qt.Check(t, qt.StringContains(out, "of the machine's"))
			qt.Check(t, qt.Equals(strings.Contains(out, "estimated"), tier == "legacy"))
			_, err = l.agent.Run(context.Background(), "status", "--cost=-1s")
			qt.Check(t, qt.IsNotNil(err))
		})
	}
}
