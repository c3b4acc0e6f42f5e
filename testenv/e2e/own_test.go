//go:build linux

package e2e

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/go-quicktest/qt"

	"github.com/xenserver/dtagent/cmd/dtagent/control"
	"github.com/xenserver/dtagent/cmd/dtagent/zipkin"
	"github.com/xenserver/dtagent/testenv"
	"github.com/xenserver/dtagent/testenv/client"
)

// TestOwnCalls changes the pool's Observers, so that both agents ask XAPI again
// and again, the member's through the coordinator: nothing of that is in the
// files of either, all of it is counted, and what others ask is there.
func TestOwnCalls(t *testing.T) {
	l := newPoolLab(t, testenv.Options{})
	ctx := context.Background()
	l.observe()
	c := client.Unix(l.pool.Member.XapiSocket(), client.Options{Shape: client.Node})
	o, err := c.Observers(ctx)
	qt.Assert(t, qt.IsNil(err))
	const rounds = 5
	for i := range rounds {
		_, err := o.Create(ctx, client.Observer{Name: fmt.Sprintf("more %d", i), Endpoints: []string{"bugtool"}, Components: []string{"smapi"}, Enabled: true})
		qt.Assert(t, qt.IsNil(err))
		for _, a := range l.agents {
			qt.Assert(t, qt.IsNil(a.Wait(ctx, 15*time.Second, "knows the Observer", func(s *control.Status) bool { return len(s.Observers) == i+2 })))
		}
	}
	// Somebody who calls himself dtagent and asks for something else.
	other := client.Unix(l.pool.Coordinator.XapiSocket(), client.Options{Shape: client.Node})
	session, err := other.Login(ctx)
	qt.Assert(t, qt.IsNil(err))
	_, err = other.Call(ctx, "host.get_all_records", session)
	qt.Assert(t, qt.IsNil(err))

	for i, a := range l.agents {
		name := l.pool.Hosts()[i].HostName()
		qt.Assert(t, qt.IsNil(a.Settled(ctx, 20*time.Second)))
		found := map[string]int{}
		qt.Assert(t, qt.IsNil(zipkin.ReadPath(a.SpansDir(), func(s zipkin.Span) {
			if s.Tags["xs.observer.name"] != "pool" {
				return
			}
			found[s.Name]++
			qt.Check(t, qt.IsFalse(strings.HasPrefix(s.Tags["user_agent.original"], "dtagent")), qt.Commentf("%s: %s", name, s.Name))
			qt.Check(t, qt.Not(qt.Equals(s.Name, "event.from")), qt.Commentf("%s", name))
			qt.Check(t, qt.Not(qt.Equals(s.Name, "system.isAlive")), qt.Commentf("%s", name))
		})))
		s, err := a.Status(ctx)
		qt.Assert(t, qt.IsNil(err))
		t.Logf("%s: %d own calls, %d probes left out; spans %v", name, s.Engine.OwnCalls, s.Engine.Probes, found)
		qt.Check(t, qt.IsTrue(s.Engine.OwnCalls >= rounds), qt.Commentf("%s: %d", name, s.Engine.OwnCalls))
		qt.Check(t, qt.IsTrue(found["Observer.create"] >= rounds), qt.Commentf("%s", name))
		if i == 0 {
			qt.Check(t, qt.IsTrue(found["host.get_all_records"] > 0))
			qt.Check(t, qt.IsTrue(s.Engine.OwnCalls >= 2*rounds), qt.Commentf("the member's are here, too: %d", s.Engine.OwnCalls))
		}
		noLosses(t, name, a)
	}
}
