package capture

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"

	"github.com/go-quicktest/qt"
	"github.com/xenserver/dtagent/correlate"
	"github.com/xenserver/dtagent/probes/event"
	"go.opentelemetry.io/otel/trace"
)

// natives are the spans that the toolstack wrote in a run.
type natives struct {
	spans []*NativeSpan
	byID  map[string]*NativeSpan
}

func newNatives(spans []NativeSpan) *natives {
	n := &natives{byID: make(map[string]*NativeSpan)}
	for i := range spans {
		n.spans = append(n.spans, &spans[i])
		n.byID[spans[i].ID] = &spans[i]
	}
	return n
}

// call returns the API call that a span works for, nil if there is none.
func (n *natives) call(s *NativeSpan) *NativeSpan {
	for s != nil && s.Tags["xs.xapi.task.origin"] != "http" {
		s = n.byID[s.ParentID]
	}
	return s
}

// command tells whether a span works for a command of xe.
func (n *natives) command(s *NativeSpan) bool {
	for s = n.byID[s.ParentID]; s != nil; s = n.byID[s.ParentID] {
		if strings.HasPrefix(s.Name, "xe ") {
			return true
		}
	}
	return false
}

// root returns the farthest ancestor.
func (n *natives) root(s *NativeSpan) *NativeSpan {
	for n.byID[s.ParentID] != nil {
		s = n.byID[s.ParentID]
	}
	return s
}

// method returns the method of a PRODUCER span: its parent's is named after it.
func (n *natives) method(s *NativeSpan) string {
	if p := n.byID[s.ParentID]; p != nil {
		return strings.TrimPrefix(p.Name, "message_switch/")
	}
	return ""
}

// drift is how far times lie apart, in ns.
type drift []int64

func (d drift) String() string {
	if len(d) == 0 {
		return "none"
	}
	d = slices.Clone(d)
	slices.Sort(d)
	return fmt.Sprintf("%d: min %.3f median %.3f p95 %.3f max %.3f ms", len(d), float64(d[0])/1e6, float64(d[len(d)/2])/1e6,
		float64(d[len(d)*95/100])/1e6, float64(d[len(d)-1])/1e6)
}

func (d drift) within(n int64) int {
	in := 0
	for _, v := range d {
		if near(v, 0, n) {
			in++
		}
	}
	return in
}

// TestNative compares the correlator's spans with the toolstack's own: the same
// calls, RPCs, operations and steps, in the same traces, under the same calls,
// at the same times.
func TestNative(t *testing.T) {
	for _, name := range []string{"lifecycle-on", "lifecycle-three"} {
		t.Run(name, func(t *testing.T) {
			k := know(t, name)
			c := compare(k, k.r.Events())
			c.problems = nil // TestRecordings tells them
			n := newNatives(c.r.Native)
			pairs := c.pair(t, n)
			compared, right := c.sameTrees(n, pairs)
			t.Logf("%d of %d parents are those of the native traces", right, compared)
			qt.Check(t, qt.IsTrue(compared > 100))
			qt.Check(t, qt.IsTrue(ratio(right, compared) >= 0.99), qt.Commentf("%d of %d parents are those of the native traces", right, compared))
			c.sameTimes(t, n, pairs)
			c.report(t)
		})
	}
}

// pair finds the span of each native one: the nth of a name in a trace is the
// nth of that name in that trace.
func (c *comparison) pair(t *testing.T, n *natives) map[*NativeSpan]*correlate.Span {
	pairs := make(map[*NativeSpan]*correlate.Span)
	type group struct {
		what, trace string
	}
	ours := make(map[group][]*correlate.Span)
	for _, s := range c.o.spans {
		what := ""
		switch {
		case s.Kind == trace.SpanKindServer && s.Component == event.Xapi:
			if !c.callers[s.TraceID.String()] {
				// Without a traceparent xapi's spans are in a trace that no wire shows.
				ours[group{"call " + s.Name, ""}] = append(ours[group{"call " + s.Name, ""}], s)
				continue
			}
			what = "call " + s.Name
		case s.Kind == trace.SpanKindProducer:
			what = "send " + attribute(s, "rpc.method")
		case s.Kind == trace.SpanKindConsumer:
			what = "process " + s.Name
		case s.Component == event.Xenopsd:
			what = "work " + s.Name
		default:
			continue
		}
		g := group{what, s.TraceID.String()}
		ours[g] = append(ours[g], s)
	}
	theirs := make(map[group]int)
	kinds := make(map[string][2]int) // found, of
	for _, s := range n.spans {
		what := ""
		switch {
		case s.Tags["xs.xapi.task.origin"] == "http":
			if n.command(s) {
				continue // xe's calls are made inside xapi
			}
			what = "call " + s.Name
		case strings.HasPrefix(s.Name, "xe "):
			what = "call " + s.Name
		case s.Kind == "PRODUCER":
			if n.byID[s.ParentID] == nil {
				continue // the call was not over when the recording ended
			}
			what = "send " + n.method(s)
		case s.Kind == "CONSUMER":
			what = s.Name
		case s.Endpoint.ServiceName == "xenopsd" && !nested(n, s):
			what = "work " + s.Name
		default:
			continue
		}
		g := group{what, s.TraceID}
		if strings.HasPrefix(what, "call ") && !c.callers[s.TraceID] {
			g.trace = ""
		}
		kind, _, _ := strings.Cut(what, " ")
		count := kinds[kind]
		count[1]++
		if i := theirs[g]; i < len(ours[g]) {
			pairs[s] = ours[g][i]
			count[0]++
		} else {
			c.problem("native %s of %s in trace %s has no counterpart", what, at(event.Time(s.Start())), s.TraceID)
		}
		kinds[kind] = count
		theirs[g]++
	}
	for g, spans := range ours {
		for _, s := range spans[min(theirs[g], len(spans)):] {
			if s.Incomplete == "" {
				c.problem("%s of %s in trace %s has no native counterpart", g.what, at(event.Time(s.Start)), s.TraceID)
			}
		}
	}
	t.Logf("native spans with a counterpart: %v", kinds)
	return pairs
}

// nested tells that a span of xenopsd repeats the one above it: "VM_pause" in
// "Best_effort (VM_pause)", or the function that "process VM.stat" calls.
func nested(n *natives, s *NativeSpan) bool {
	if strings.HasPrefix(s.Name, "Xenops_server.") {
		return true
	}
	p := n.byID[s.ParentID]
	return p != nil && strings.HasSuffix(p.Name, " ("+s.Name+")")
}

// sameTrees checks that a pair hangs under the same call, and returns of how
// many the native trace gives a parent, and how many have it.
func (c *comparison) sameTrees(n *natives, pairs map[*NativeSpan]*correlate.Span) (compared, right int) {
	back := make(map[*correlate.Span]*NativeSpan)
	for s, o := range pairs {
		back[o] = s
	}
	for _, s := range n.spans {
		o := pairs[s]
		if o == nil {
			continue
		}
		problems := len(c.problems)
		c.sameTree(n, pairs, back, s, o)
		if s.ParentID != "" {
			compared++
			if len(c.problems) == problems {
				right++
			}
		}
	}
	return compared, right
}

// sameTree notes as a problem what differs between a native span and ours.
func (c *comparison) sameTree(n *natives, pairs map[*NativeSpan]*correlate.Span, back map[*correlate.Span]*NativeSpan, s *NativeSpan, o *correlate.Span) {
	what := fmt.Sprintf("native %s of %s", s.Name, at(event.Time(s.Start())))
	call := n.call(s)
	if call == s {
		// Its first ancestors are the HTTP server's, whose parent is the caller's span.
		if c.callers[s.TraceID] && n.root(s).ParentID != o.ParentID.String() {
			c.problem("%s is under the caller's %s, ours under %s", what, n.root(s).ParentID, o.ParentID)
		}
		return
	}
	above := c.o.above(o, trace.SpanKindServer)
	switch {
	case strings.HasPrefix(s.Name, "xe "):
	case call == nil && above != nil:
		c.problem("%s is under no call, ours under %s", what, c.o.path(o))
	case call != nil && above != pairs[call]:
		c.problem("%s is under call %s, ours under %s", what, call.Name, c.o.path(o))
	}
	// Steps hang under the operation itself.
	if p := n.byID[s.ParentID]; p != nil && pairs[p] != nil && p.Endpoint.ServiceName == "xenopsd" && o.ParentID != pairs[p].SpanID {
		c.problem("%s is under %s, ours is %s", what, p.Name, c.o.path(o))
	}
	// What is asked for by an RPC has the RPC's native parent.
	if rpc := c.o.byID[o.ParentID]; rpc != nil && rpc.Kind == trace.SpanKindConsumer && back[rpc] != nil && back[rpc].ParentID != s.ParentID {
		c.problem("%s and %s have different native parents", what, back[rpc].Name)
	}
}

// sameTimes checks when pairs begin and end. A native span lies inside ours: xapi
// begins a call's when the head of the request has been read (under strace that
// takes some ms of its own), xenopsd begins an RPC's when the new thread runs
// and ends it before it waits for the connection to answer on. So the
// comparison is, for
//
//   - calls: the end of the recorded head with Http_svr.read_request's start, our
//     end with Http_svr.handle_one's;
//   - Async calls: our task's end with the native call's;
//   - sends: our start with the PRODUCER span (which has no length), our end with
//     that of message_switch/METHOD;
//   - RPCs, operations and steps: with the span itself.
func (c *comparison) sameTimes(t *testing.T, n *natives, pairs map[*NativeSpan]*correlate.Span) {
	begins, ends := make(map[string]drift), make(map[string]drift)
	note := func(kind string, begin, end int64) {
		begins[kind] = append(begins[kind], begin)
		ends[kind] = append(ends[kind], end)
	}
	calls := make(map[*correlate.Span]*Call)
	for call, s := range c.calls {
		calls[s] = call
	}
	inside := func(s *NativeSpan, o *correlate.Span) {
		const clocks = 200 * 1000 // ns: gettimeofday there, strace here
		if s.Start() < o.Start-clocks || s.End() > o.End+clocks {
			c.problem("native %s of %s to %s is not inside ours, %s to %s", s.Name, at(event.Time(s.Start())), at(event.Time(s.End())),
				at(event.Time(o.Start)), at(event.Time(o.End)))
		}
	}
	for _, s := range n.spans {
		o := pairs[s]
		if o == nil || o.Incomplete != "" {
			continue
		}
		switch {
		case strings.HasPrefix(s.Name, "xe "):
			note("xe", s.Start()-int64(calls[o].Read), s.End()-o.End)
		case s.Kind == "PRODUCER":
			note("send", s.Start()-o.Start, n.byID[s.ParentID].End()-o.End)
		case s.Kind == "CONSUMER":
			inside(s, o)
			note("RPC", s.Start()-o.Start, s.End()-o.End)
		case s.Endpoint.ServiceName == "xenopsd":
			note("operation", s.Start()-o.Start, s.End()-o.End)
		case strings.HasPrefix(s.Name, "Async."):
			if kids := c.o.kids[o.SpanID]; len(kids) == 1 {
				note("task", s.Start()-int64(calls[o].Read), s.End()-kids[0].End)
			}
		default:
			inside(s, o)
			note("call", s.Start()-int64(calls[o].Read), s.End()-o.End)
		}
	}
	// The server's own spans hang under the caller's, in the order of the calls.
	for _, s := range n.spans {
		i := slices.IndexFunc(c.x.Calls, func(call *Call) bool {
			return call.TraceID == s.TraceID && int64(call.Read) <= s.Start()+millisecond && s.Start() <= int64(call.End) &&
				call.ParentID == s.ParentID && within(n, s, call)
		})
		if i < 0 || c.calls[c.x.Calls[i]] == nil {
			continue
		}
		call := c.x.Calls[i]
		switch s.Name {
		case "Http_svr.read_request":
			begins["request"] = append(begins["request"], s.Start()-int64(call.Read))
		case "Http_svr.handle_one":
			ends["request"] = append(ends["request"], s.End()-c.calls[call].End)
		}
	}
	sent := 0
	for _, call := range c.x.Calls {
		if call.TraceID != "" {
			sent++
		}
	}
	if len(begins["request"]) != sent || len(ends["request"]) != sent {
		c.problem("%d calls with a traceparent, %d begin and %d end within 5 ms of the native server's spans", sent, len(begins["request"]), len(ends["request"]))
	}
	for _, kind := range slices.Sorted(maps.Keys(begins)) {
		t.Logf("%-9s native begin - ours: %s\n          native end - ours:   %s", kind, begins[kind], ends[kind])
	}
	// All but the waits that strace made long: for the processor between a
	// message's delivery and its thread, for the one connection that answers go
	// out on, and for the processor again when an answer has come.
	for _, limit := range []struct {
		what  string
		d     drift
		share float64
	}{
		{"begin of a call", begins["call"], 0.95},
		{"end of a call", ends["call"], 1},
		{"begin of xe", begins["xe"], 1},
		{"end of xe", ends["xe"], 1},
		{"begin of a task", begins["task"], 1},
		{"end of a task", ends["task"], 1},
		{"begin of a send", begins["send"], 1},
		{"end of a send", ends["send"], 0.65},
		{"begin of an RPC", begins["RPC"], 0.95},
		{"end of an RPC", ends["RPC"], 0.75},
		{"begin of an operation", begins["operation"], 1},
		{"end of an operation", ends["operation"], 1},
	} {
		in := limit.d.within(5 * millisecond)
		t.Logf("%-22s %3d of %3d within 5 ms", limit.what, in, len(limit.d))
		if ratio(in, len(limit.d)) < limit.share {
			c.problem("%s: %d of %d within 5 ms, %v are expected: %s", limit.what, in, len(limit.d), limit.share, limit.d)
		}
	}
}

// within tells whether s belongs to that call and not to another that goes on
// at the same time.
func within(n *natives, s *NativeSpan, call *Call) bool {
	if s.Name == "Http_svr.read_request" {
		return near(s.Start(), int64(call.Read), 5*millisecond)
	}
	return near(s.End(), int64(call.End), 5*millisecond)
}
