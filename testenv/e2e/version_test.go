package e2e

import (
	"context"
	"fmt"
	"testing"

	"github.com/go-quicktest/qt"

	"github.com/xenserver/dtagent/testenv"
	"github.com/xenserver/dtagent/testenv/client"
	"github.com/xenserver/dtagent/testenv/config"
)

// TestVersions starts VMs on toolstacks as they were in the field: with and without
// message-switch; with programs started by forkexecd (before 25.14) and by
// vfork_helper; without tracing of their own, with a bare traceparent in
// debug_info (before 25.8), with JSON in it (25.8), and with the trace in log lines
// besides (26.8). Whatever a toolstack does, the trees are those of the ground
// truth.
func TestVersions(t *testing.T) {
	type version struct {
		name  string
		knobs testenv.Knobs
	}
	versions := []version{
		{"no tracing", testenv.Knobs{}},
		{"bare traceparent", testenv.Knobs{Native: config.NativeBare}},
		{"JSON", testenv.Knobs{Native: config.NativeOn}},
		{"JSON, trace in log lines", testenv.Knobs{Native: config.NativeOn, LogTrace: true}},
		{"JSON, SM scripts observed, all that is logged", testenv.Knobs{Native: config.NativeOn, LogTrace: true, SMAPI: true, Verbose: true}},
	}
	for _, host := range []struct {
		name     string
		options  testenv.Options
		versions []version
	}{
		{"message-switch true", testenv.Options{}, versions},
		{"message-switch false", testenv.Options{NoSwitch: true}, versions},
		{"forkexecd", testenv.Options{Forkexecd: true}, versions[:2]},
	} {
		t.Run(host.name, func(t *testing.T) {
			versions := host.versions
			host.options.VMs = 2 * len(versions)
			l := newLab(t, host.options)
			l.observe()
			session := l.session()
			type call struct {
				name, method, id, parent string
				native                   bool
				began, until             int64
			}
			var calls []call
			for i, v := range versions {
				qt.Assert(t, qt.IsNil(l.dom0.Set(v.knobs)))
				for j, method := range []string{"VM.start", "Async.VM.start"} {
					c := call{name: v.name + ", " + method, method: method, native: v.knobs.Native != config.NativeOff, began: ktime(t)}
					o := client.Options{Shape: client.Node}
					if (i+j)%2 == 0 {
						c.id, c.parent = fmt.Sprintf("%032x", 0xace000+2*i+j), fmt.Sprintf("%016x", 0xbad000+2*i+j)
						o.Traceparent, o.Tracestate = "00-"+c.id+"-"+c.parent+"-01", "vendor=x"
						c.name += " with a traceparent"
					}
					got, err := l.dial("unix", o).Call(context.Background(), method, session, l.dom0.VMs()[2*i+j].Ref, false, false)
					qt.Assert(t, qt.IsNil(err))
					if j == 1 {
						qt.Assert(t, qt.Equals(l.task(session, fmt.Sprint(got)), "success"))
					}
					c.until = ktime(t)
					calls = append(calls, c)
				}
			}
			traces, log := l.traces(), l.truth()
			for _, c := range calls {
				t.Run(c.name, func(t *testing.T) {
					l.t = t
					natives := l.compareIn(traces, log, c.began, c.until, c.method, c.id, c.parent)
					qt.Check(t, qt.Equals(natives > 0, c.native))
				})
			}
			l.t = t
			made := map[string]int{} // programs of calls, by how they were linked
			for _, s := range l.spans() {
				if s.Tags["process.executable.name"] == "xenguest" || s.Tags["process.executable.name"] == "LVMSR" {
					made[s.Link()]++
				}
			}
			qt.Check(t, qt.Equals(made["socket"] > 0, host.options.Forkexecd), qt.Commentf("%v", made))
			qt.Check(t, qt.Equals(made["fork"] > 0, !host.options.Forkexecd), qt.Commentf("%v", made))
			qt.Check(t, qt.Equals(made["none"], 0), qt.Commentf("%v", made))
			if host.options.Forkexecd {
				qt.Check(t, qt.Equals(l.status().Engine.BadHeads, 0)) // what it is asked is no HTTP
			}
			l.noLosses()
		})
	}
}
