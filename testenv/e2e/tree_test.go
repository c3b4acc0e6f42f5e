package e2e

import (
	"context"
	"fmt"
	"math"
	"strings"
	"testing"

	"github.com/go-quicktest/qt"

	"github.com/xenserver/dtagent/cmd/dtagent/tree"
	"github.com/xenserver/dtagent/testenv"
	"github.com/xenserver/dtagent/testenv/client"
	"github.com/xenserver/dtagent/testenv/config"
	"github.com/xenserver/dtagent/testenv/truth"
)

// TestVMStartTree starts a VM in every way in which callers do and compares the
// whole tree with the ground truth.
func TestVMStartTree(t *testing.T) {
	l := newLab(t, testenv.Options{VMs: 24})
	l.observe()
	session := l.session()
	vm := 0
	for _, shape := range []struct {
		name  string
		shape client.Shape
	}{{"xml", client.Python}, {"json", client.Node}} {
		for _, transport := range []string{"unix", "tcp", "tls"} {
			for _, flags := range []string{"", "00", "01"} {
				method := "VM.start"
				if vm%2 == 1 {
					method = "Async.VM.start"
				}
				name := fmt.Sprintf("%s %s over %s, flags %q", method, shape.name, transport, flags)
				id, parent := "", ""
				o := client.Options{Shape: shape.shape}
				if flags != "" {
					id, parent = fmt.Sprintf("%032x", 0xabc000+vm), fmt.Sprintf("%016x", 0xdef000+vm)
					o.Traceparent = "00-" + id + "-" + parent + "-" + flags
					o.Tracestate = "vendor=x"
				}
				target := l.dom0.VMs()[vm]
				vm++
				t.Run(name, func(t *testing.T) {
					l.t = t
					began := ktime(t)
					got, err := l.dial(transport, o).Call(context.Background(), method, session, target.Ref, false, false)
					qt.Assert(t, qt.IsNil(err))
					if method == "Async.VM.start" {
						qt.Assert(t, qt.Equals(l.task(session, fmt.Sprint(got)), "success"))
					}
					l.compare(began, method, id, parent)
				})
			}
		}
	}
	l.t = t
	l.noLosses()
}

// TestVMStartTreeBesideToolstackTracing does it with the toolstack's own tracing
// on, in both forms of debug_info that carry a trace context, and with requests
// as member hosts frame them. A trace that no caller gave is the toolstack's. Where
// spans hang under the toolstack's own, dtagent's tree is made of what they say.
func TestVMStartTreeBesideToolstackTracing(t *testing.T) {
	for _, tracing := range []struct {
		name  string
		knobs testenv.Knobs
		words []string
	}{
		{"debug_info with JSON, log lines with the context", testenv.Knobs{Native: config.NativeOn, LogTrace: true}, []string{"attributes:dtagent.native_parent=true"}},
		{"debug_info with a bare traceparent", testenv.Knobs{Native: config.NativeBare}, nil},
	} {
		t.Run(tracing.name, func(t *testing.T) {
			l := newLab(t, testenv.Options{VMs: 4, Knobs: tracing.knobs})
			l.observe(tracing.words...)
			session := l.session()
			vm := 0
			for _, framed := range []bool{false, true} {
				for _, flags := range []string{"", "01"} {
					id, parent := "", ""
					o := client.Options{Shape: client.Node, Framed: framed}
					if flags != "" {
						id, parent = fmt.Sprintf("%032x", 0xfed000+vm), fmt.Sprintf("%016x", 0xcba000+vm)
						o.Traceparent = "00-" + id + "-" + parent + "-" + flags
						o.Tracestate = "vendor=x"
					}
					target := l.dom0.VMs()[vm]
					vm++
					t.Run(fmt.Sprintf("framed %v, flags %q", framed, flags), func(t *testing.T) {
						l.t = t
						began := ktime(t)
						_, err := l.dial("unix", o).Call(context.Background(), "VM.start", session, target.Ref, false, false)
						qt.Assert(t, qt.IsNil(err))
						qt.Check(t, qt.IsTrue(l.compare(began, "VM.start", id, parent) > 0))
					})
				}
			}
			l.t = t
			l.noLosses()
		})
	}
}

// compare finds the one call of method since began, in ground truth and spans,
// and compares them. id and parent are the caller's, "" if it sent none. It
// returns of how many spans the toolstack's own is known.
func (l *lab) compare(began int64, method, id, parent string) (natives int) {
	l.t.Helper()
	return l.compareIn(l.traces(), l.truth(), began, math.MaxInt64, method, id, parent)
}

// compareIn is compare with what is known already, for the call that began before
// until.
func (l *lab) compareIn(traces []*tree.Trace, log *truth.Log, began, until int64, method, id, parent string) (natives int) {
	t := l.t
	t.Helper()
	c := &comparison{t: t, truth: log, offset: wallOffset(t) + l.ahead.Nanoseconds(), began: began, legacy: l.legacy, untimed: l.untimed}
	var entry *truth.Entry
	for _, e := range c.truth.Find(truth.API, method) {
		if e.Start >= began && e.Start < until && e.Parent == "" {
			qt.Assert(t, qt.IsNil(entry), qt.Commentf("the ground truth has two calls of %s", method))
			entry = &e
		}
	}
	qt.Assert(t, qt.IsNotNil(entry), qt.Commentf("the ground truth has no call of %s", method))
	var root *tree.Node
	var of *tree.Trace
	for _, tr := range traces {
		if i := c.nearest(*entry, tr.Roots); i >= 0 {
			n := tr.Roots[i]
			if n.Tags["process.pid"] != fmt.Sprint(entry.TGID) || n.Tags["thread.id"] != fmt.Sprint(entry.TID) {
				continue // of another dom0 on this machine, or of another call
			}
			// A thread can have served another call of that name, before or later.
			if n.Timestamp*1000 < entry.End+c.offset && n.End()*1000 > entry.Start+c.offset && n.Kind == "SERVER" {
				qt.Assert(t, qt.IsNil(root), qt.Commentf("two spans of %s at the same time", method))
				root, of = n, tr
			}
		}
	}
	if root == nil {
		for _, tr := range traces {
			var b strings.Builder
			_ = tree.Print(&b, tr, tree.Style{}) // a Builder does not fail
			t.Log(b.String())
		}
		t.Fatalf("no span of %s; there are %d traces", method, len(traces))
	}
	if id != "" {
		qt.Check(t, qt.Equals(root.TraceID, id))
		qt.Check(t, qt.Equals(root.ParentID, parent))
		qt.Check(t, qt.Equals(root.Link(), "traceparent"))
		qt.Check(t, qt.Equals(root.Tags["w3c.tracestate"], "vendor=x"))
	} else {
		qt.Check(t, qt.Equals(root.ParentID, ""))
		qt.Check(t, qt.Equals(root.Link(), "none"))
	}
	c.subtree(*entry, root, "")
	c.report(*entry, of)
	return c.natives
}
