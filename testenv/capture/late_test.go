package capture

import (
	"strings"
	"testing"

	"github.com/go-quicktest/qt"
	"github.com/xenserver/dtagent/probes/event"
)

// TestLateStart begins in the midst of a recording, as when an Observer is
// enabled while calls go on: what was there before is not known, and nothing
// may hang where it does not belong.
func TestLateStart(t *testing.T) {
	for _, name := range Names() {
		t.Run(name, func(t *testing.T) {
			k := know(t, name)
			all := k.r.Events()
			sum := make(scores)
			for i := 1; i < 20; i++ {
				begin := len(all) * i / 20
				c := compare(k, all[begin:])
				for l, s := range c.scores {
					sum.of(l).right += s.right
					sum.of(l).wrong += s.wrong
				}
				for _, p := range c.problems {
					if strings.Contains(p, "background work") {
						t.Errorf("from event %d: %s", begin, p)
					}
				}
				// Calls that began later are all there.
				for _, call := range k.x.Calls {
					if call.Start > all[begin].Time+event.Time(50*millisecond) && c.calls[call] == nil {
						t.Errorf("from event %d: no span for call %s of %s", begin, call.Name, at(call.Start))
					}
				}
			}
			t.Logf("19 beginnings:%s", sum)
			qt.Check(t, qt.Equals(sum.total().wrong, 0))
		})
	}
}
