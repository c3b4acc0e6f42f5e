package e2e

import (
	"context"
	"strings"
	"testing"
	"time"

	"github.com/go-quicktest/qt"

	"github.com/xenserver/dtagent/cmd/dtagent/control"
	"github.com/xenserver/dtagent/cmd/dtagent/zipkin"
	"github.com/xenserver/dtagent/testenv"
	"github.com/xenserver/dtagent/testenv/client"
)

// TestProcessors: of the same work, each Observer sends what its settings
// leave: slow trees, failed trees, both whole; and spans by their names, with
// attributes redacted and renamed.
func TestProcessors(t *testing.T) {
	l := newLab(t, testenv.Options{VMs: 3, Knobs: testenv.Knobs{AtomTime: map[string]time.Duration{"VM_build": 1500 * time.Millisecond}}})
	slow, failed, chosen := newZipkinServer(t), newZipkinServer(t), newZipkinServer(t)
	l.observe() // everything, to the bugtool's files
	to := func(z *zipkinServer) string { return "endpoints=" + z.URL + "/api/v2/spans" }
	ids := []string{
		l.observe(to(slow), "attributes:dtagent.keep.slow=1s"),
		l.observe(to(failed), "attributes:dtagent.keep.errors=true"),
		l.observe(to(chosen), "attributes:dtagent.drop=V*;session.*;send?*", "attributes:dtagent.redact=process.*", "attributes:dtagent.rename=xs.host.uuid=host.id"),
	}
	session := l.session()
	call := func(method string, params ...any) error {
		_, err := l.dial("unix", client.Options{Shape: client.Node}).Call(context.Background(), method, append([]any{session}, params...)...)
		return err
	}
	vm := l.dom0.VMs()[0].Ref
	qt.Assert(t, qt.IsNil(call("VM.start", vm, false, false)))
	qt.Assert(t, qt.IsNotNil(call("VM.start", vm, false, false))) // it runs already
	l.calls(50)
	_ = l.traces() // the bugtool has it all

	// What the other Observers must have is told by the bugtool's spans.
	type extent struct {
		start, end int64
		failed     bool
		spans      map[string]bool
	}
	trees := map[string]*extent{} // by trace id: no caller has sent one, so a trace is a local tree
	for _, s := range l.spans() {
		e := trees[s.TraceID]
		if e == nil {
			e = &extent{start: s.Timestamp, spans: map[string]bool{}}
			trees[s.TraceID] = e
		}
		e.start, e.end = min(e.start, s.Timestamp), max(e.end, s.Timestamp+s.Duration)
		e.failed = e.failed || s.Tags["error"] != ""
		e.spans[s.ID] = true
	}
	wantSlow, wantFailed := map[string]bool{}, map[string]bool{}
	for _, e := range trees {
		for id := range e.spans {
			if e.end-e.start >= 1e6 {
				wantSlow[id] = true
			}
			if e.failed {
				wantFailed[id] = true
			}
		}
	}
	qt.Assert(t, qt.IsTrue(len(wantSlow) > 10 && len(wantFailed) > 0 && len(trees) > 50), qt.Commentf("%d of slow trees, %d of failed ones, %d trees", len(wantSlow), len(wantFailed), len(trees)))
	t.Logf("%d trees; %d spans in slow ones, %d in failed ones", len(trees), len(wantSlow), len(wantFailed))

	l.wait("nothing held any more", func(s *control.Status) bool {
		for _, o := range s.Observers {
			if p := o.Processors; p != nil && p.Held > 0 {
				return false
			}
		}
		return true
	})
	_ = l.traces()
	same := func(what string, z *zipkinServer, want map[string]bool) {
		t.Helper()
		got := map[string]bool{}
		for _, s := range z.received() {
			got[s.ID] = true
			if !want[s.ID] {
				t.Errorf("%s: %s %s of %d µs is not one of them", what, s.Service(), s.Name, s.Duration)
			}
		}
		qt.Check(t, qt.Equals(len(got), len(want)), qt.Commentf("%s", what))
	}
	same("slow", slow, wantSlow)
	same("failed", failed, wantFailed)

	want := 0
	dropped := func(name string) bool {
		return strings.HasPrefix(name, "V") || strings.HasPrefix(name, "session.") || strings.HasPrefix(name, "send ")
	}
	for _, s := range l.spans() {
		if !dropped(s.Name) {
			want++
		}
	}
	got := chosen.received()
	qt.Check(t, qt.Equals(len(got), want))
	for _, s := range got {
		ok := !dropped(s.Name) && s.Tags["host.id"] == l.dom0.HostUUID() && s.Tags["xs.host.uuid"] == "" && redacted(s)
		qt.Check(t, qt.IsTrue(ok), qt.Commentf("%s %v", s.Name, s.Tags))
	}

	// All of it is accounted for.
	for _, o := range l.status().Observers {
		p := o.Processors
		if p == nil {
			continue
		}
		sum := p.Passed + p.Held
		for _, n := range p.Filtered {
			sum += n
		}
		qt.Check(t, qt.Equals(sum, p.Received))
		qt.Check(t, qt.Equals(o.Endpoints[0].Sent, p.Passed))
		qt.Check(t, qt.HasLen(o.Warnings, 0))
		t.Logf("%v: %d received, %d passed, filtered %v", o.Endpoints[0].Endpoint, p.Received, p.Passed, p.FilteredByCause())
	}

	// A mistake is told, and filters nothing.
	_, err := l.agent.Run(context.Background(), "observer", "param-set", "uuid="+ids[0], "attributes:dtagent.keep.slow=1")
	qt.Assert(t, qt.IsNil(err))
	l.wait("a warning", func(s *control.Status) bool {
		for _, o := range s.Observers {
			if o.UUID == ids[0] {
				return len(o.Warnings) == 1 && strings.Contains(o.Warnings[0], `"1" is not a duration; write a number with a unit`)
			}
		}
		return false
	})
	before := len(slow.received())
	l.calls(10)
	l.wait("fast calls sent, too", func(*control.Status) bool { return len(slow.received()) >= before+10 })
}

// redacted tells whether no attribute of a process is left readable.
func redacted(s zipkin.Span) bool {
	for k, v := range s.Tags {
		if strings.HasPrefix(k, "process.") && v != "[redacted]" {
			return false
		}
	}
	return true
}
