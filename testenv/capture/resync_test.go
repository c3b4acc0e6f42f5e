package capture

import (
	"slices"
	"strings"
	"testing"

	"github.com/go-quicktest/qt"
	"github.com/xenserver/dtagent/probes/event"
)

// TestOneLostEventCostsOneCall leaves out the events of a kept-alive connection
// one at a time. Only the call that it belongs to may suffer.
func TestOneLostEventCostsOneCall(t *testing.T) {
	k := know(t, "lifecycle-three")
	all := k.r.Events()
	// The JSON-RPC client made 42 calls on one connection.
	i := slices.IndexFunc(all, func(e event.Event) bool { return strings.HasPrefix(string(e.Head), "POST /jsonrpc") })
	qt.Assert(t, qt.IsTrue(i >= 0))
	conn := all[i].Conn
	dropped := 0
	for n, lost := range all[:min(len(all), i+2000)] {
		if lost.Kind != event.KindData || lost.Conn != conn || dropped == 24 {
			continue
		}
		dropped++
		c := compare(k, slices.Concat(all[:n], all[n+1:]))
		var missing, extra []string
		for _, p := range c.problems {
			switch {
			case strings.HasPrefix(p, "no span for call"):
				missing = append(missing, p)
			case strings.HasSuffix(p, "is no call"):
				extra = append(extra, p)
			}
		}
		if len(missing) > 1 || len(extra) > 1 {
			t.Errorf("lost %s %.40q (flags %#x, dir %d): %d calls missing, %d spans that are none", at(lost.Time), lost.Head, lost.Flags, lost.Dir, len(missing), len(extra))
		}
	}
	qt.Assert(t, qt.Equals(dropped, 24))
}
