package e2e

import (
	"context"
	"fmt"
	"testing"

	"github.com/go-quicktest/qt"

	"github.com/xenserver/dtagent/testenv"
	"github.com/xenserver/dtagent/testenv/client"
)

// TestVMStartKernel is what `make vmtest` runs on other kernels: VM.start and
// Async.VM.start in both tiers, with a trace context and without, equal to the
// ground truth in all but times, which an emulated machine stretches.
func TestVMStartKernel(t *testing.T) {
	for _, tier := range []string{"legacy", "modern"} {
		t.Run(tier, func(t *testing.T) {
			var args []string
			if tier == "legacy" {
				args = append(args, "--legacy")
			}
			l := newLab(t, testenv.Options{VMs: 4}, args...)
			l.legacy, l.untimed = tier == "legacy", true
			qt.Assert(t, qt.Equals(l.status().Tier, tier))
			l.observe()
			session := l.session()
			type call struct {
				name, method, id, parent string
				began, until             int64
			}
			var calls []call
			for i, method := range []string{"VM.start", "Async.VM.start", "VM.start", "Async.VM.start"} {
				c := call{name: method, method: method, began: ktime(t)}
				o := client.Options{Shape: client.Node}
				if i < 2 {
					c.name += " with a traceparent"
					c.id, c.parent = fmt.Sprintf("%032x", 0xcafe00+i), fmt.Sprintf("%016x", 0xbeef00+i)
					o.Traceparent, o.Tracestate = "00-"+c.id+"-"+c.parent+"-01", "vendor=x"
				}
				got, err := l.dial("unix", o).Call(context.Background(), method, session, l.dom0.VMs()[i].Ref, false, false)
				qt.Assert(t, qt.IsNil(err))
				if method == "Async.VM.start" {
					qt.Assert(t, qt.Equals(l.task(session, fmt.Sprint(got)), "success"))
				}
				c.until = ktime(t)
				calls = append(calls, c)
			}
			traces, log := l.traces(), l.truth()
			for _, c := range calls {
				t.Run(c.name, func(t *testing.T) {
					l.t = t
					l.compareIn(traces, log, c.began, c.until, c.method, c.id, c.parent)
				})
			}
			l.t = t
			l.noLosses()
		})
	}
}
