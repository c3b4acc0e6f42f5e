package capture

import (
	"cmp"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/go-quicktest/qt"
	"github.com/xenserver/dtagent/correlate"
	"github.com/xenserver/dtagent/probes/event"
	"go.opentelemetry.io/otel/trace"
)

// outcome is what the correlator made of a recording.
type outcome struct {
	spans []*correlate.Span
	byID  map[trace.SpanID]*correlate.Span
	kids  map[trace.SpanID][]*correlate.Span
	stats correlate.Stats
}

// run hands events to the correlator as the agent does: through a Sorter, with
// the time told ten times a second.
func run(events []event.Event) *outcome {
	const window = 20 * time.Millisecond
	o := &outcome{byID: make(map[trace.SpanID]*correlate.Span), kids: make(map[trace.SpanID][]*correlate.Span)}
	random := rand.New(rand.NewPCG(1, 2))
	engine := correlate.New(correlate.Config{
		Wall: Wall,
		Emit: func(s *correlate.Span) { o.spans = append(o.spans, s) },
		Rand: random.Uint64,
	})
	sorter := correlate.NewSorter(window, 1<<16, engine.Handle)
	var now event.Time
	advance := func(to event.Time) {
		for now == 0 || now+1e8 < to {
			now = max(now+1e8, to-1e10)
			sorter.Advance(now)
			engine.Advance(now - event.Time(window))
		}
	}
	for i := range events {
		advance(events[i].Time)
		sorter.Add(&events[i])
	}
	advance(events[len(events)-1].Time + 5e9)
	sorter.Drain()
	engine.Drain()
	o.stats = engine.Stats()
	for _, s := range o.spans {
		o.byID[s.SpanID] = s
		if s.ParentID.IsValid() {
			o.kids[s.ParentID] = append(o.kids[s.ParentID], s)
		}
	}
	slices.SortStableFunc(o.spans, func(a, b *correlate.Span) int { return cmp.Compare(a.Start, b.Start) })
	for _, k := range o.kids {
		slices.SortStableFunc(k, func(a, b *correlate.Span) int { return cmp.Compare(a.Start, b.Start) })
	}
	return o
}

// attribute returns a span's attribute as text, "" if it has none.
func attribute(s *correlate.Span, key string) string {
	for _, kv := range s.Attributes {
		if string(kv.Key) == key {
			return kv.Value.String()
		}
	}
	return ""
}

// above returns the nearest ancestor that is of the kind, nil if there is none.
func (o *outcome) above(s *correlate.Span, kind trace.SpanKind) *correlate.Span {
	for range 100 {
		if s = o.byID[s.ParentID]; s == nil || s.Kind == kind {
			return s
		}
	}
	return nil
}

// path writes a span with its ancestors.
func (o *outcome) path(s *correlate.Span) string {
	var names []string
	for range 100 {
		if s == nil {
			break
		}
		names = append(names, fmt.Sprintf("%s(%s)", s.Name, s.Link))
		s = o.byID[s.ParentID]
	}
	slices.Reverse(names)
	return strings.Join(names, " > ")
}

// tree writes all spans that have no parent among them with what is below.
func (o *outcome) tree() string {
	var b strings.Builder
	var show func(s *correlate.Span, depth int)
	show = func(s *correlate.Span, depth int) {
		fmt.Fprintf(&b, "%s%-*s %s %.3f ms", strings.Repeat("  ", depth), 60-2*depth, s.Name, s.Link, float64(s.End-s.Start)/1e6)
		if depth == 0 {
			fmt.Fprintf(&b, " trace %s parent %s", s.TraceID, s.ParentID)
		}
		if s.Error != "" {
			fmt.Fprintf(&b, " error %q", s.Error)
		}
		if s.Incomplete != "" {
			fmt.Fprintf(&b, " incomplete %q", s.Incomplete)
		}
		b.WriteByte('\n')
		for _, k := range o.kids[s.SpanID] {
			show(k, depth+1)
		}
	}
	for _, s := range o.spans {
		if o.byID[s.ParentID] == nil {
			show(s, 0)
		}
	}
	return b.String()
}

// score counts links by method: right, wrong, and those that should have been
// and were not.
type score struct {
	right, wrong, missing int
}

type scores map[correlate.Link]*score

func (m scores) of(l correlate.Link) *score {
	if m[l] == nil {
		m[l] = &score{}
	}
	return m[l]
}

func (m scores) String() string {
	var b strings.Builder
	for _, l := range slices.Sorted(maps.Keys(m)) {
		s := m[l]
		fmt.Fprintf(&b, "\n%-12s %4d right %3d wrong %3d missing: precision %.3f recall %.3f", l, s.right, s.wrong, s.missing,
			ratio(s.right, s.right+s.wrong), ratio(s.right, s.right+s.wrong+s.missing))
	}
	return b.String()
}

func (m scores) total() score {
	var t score
	for _, s := range m {
		t.right += s.right
		t.wrong += s.wrong
		t.missing += s.missing
	}
	return t
}

func ratio(a, b int) float64 {
	if b == 0 {
		return 1
	}
	return float64(a) / float64(b)
}

const millisecond = int64(1e6)

func near(a, b, tolerance int64) bool { return a-b <= tolerance && b-a <= tolerance }

// comparison holds a run's spans against what the recording is known to hold.
type comparison struct {
	r        *Recording
	x        *Expected
	o        *outcome
	scores   scores
	calls    map[*Call]*correlate.Span
	rpcs     map[*Message]*correlate.Span
	sends    map[*Message]*correlate.Span
	ops      map[*Operation]*correlate.Span
	explain  map[*correlate.Span]bool // spans that have a counterpart
	callers  map[string]bool          // trace ids that clients sent
	problems []string
}

// known is a recording and what it is known to hold.
type known struct {
	r *Recording
	x *Expected
}

func know(t *testing.T, name string) known {
	t.Helper()
	r, err := Load(name)
	qt.Assert(t, qt.IsNil(err))
	return known{r, r.Expect()}
}

func compare(k known, events []event.Event) *comparison {
	c := &comparison{
		r: k.r, x: k.x, o: run(events), scores: make(scores),
		calls: make(map[*Call]*correlate.Span), rpcs: make(map[*Message]*correlate.Span), sends: make(map[*Message]*correlate.Span),
		ops: make(map[*Operation]*correlate.Span), explain: make(map[*correlate.Span]bool), callers: make(map[string]bool),
	}
	for _, call := range c.x.Calls {
		if call.TraceID != "" {
			c.callers[call.TraceID] = true
		}
	}
	c.matchCalls()
	c.matchTasks()
	c.matchMessages()
	c.matchOperations()
	for _, s := range c.o.spans {
		p := c.o.byID[s.ParentID]
		if p == nil {
			continue
		}
		if p.TraceID != s.TraceID {
			c.problem("%s is in trace %s, its parent in %s", c.o.path(s), s.TraceID, p.TraceID)
		}
		if s.Start < p.Start {
			c.problem("%s begins %.3f ms before its parent", c.o.path(s), float64(p.Start-s.Start)/1e6)
		}
	}
	return c
}

// problem notes a difference.
func (c *comparison) problem(format string, args ...any) {
	c.problems = append(c.problems, fmt.Sprintf(format, args...))
}

// find returns the span of that kind and name that begins at the time.
func (c *comparison) find(kind trace.SpanKind, comp event.Component, name string, start event.Time) *correlate.Span {
	for _, s := range c.o.spans {
		if s.Kind == kind && s.Component == comp && s.Name == name && near(s.Start, int64(start), 2000) && !c.explain[s] {
			c.explain[s] = true
			return s
		}
	}
	return nil
}

func (c *comparison) matchCalls() {
	for _, call := range c.x.Calls {
		s := c.find(trace.SpanKindServer, event.Xapi, call.Name, call.Start)
		if s == nil {
			c.problem("no span for call %s of %s", call.Name, at(call.Start))
			if call.TraceID != "" {
				c.scores.of(correlate.LinkTraceparent).missing++
			}
			continue
		}
		c.calls[call] = s
		if call.TraceID == "" {
			if s.ParentID.IsValid() || s.Link != correlate.LinkNone {
				c.problem("call %s of %s without traceparent has a parent: %s", call.Name, at(call.Start), c.o.path(s))
				c.scores.of(s.Link).wrong++
			}
			if c.callers[s.TraceID.String()] {
				c.problem("call %s of %s without traceparent is in trace %s", call.Name, at(call.Start), s.TraceID)
			}
		} else if s.TraceID.String() == call.TraceID && s.ParentID.String() == call.ParentID && s.Link == correlate.LinkTraceparent {
			c.scores.of(correlate.LinkTraceparent).right++
		} else {
			c.scores.of(s.Link).wrong++
			c.problem("call %s of %s is %s/%s by %s, caller sent %s/%s", call.Name, at(call.Start), s.TraceID, s.ParentID, s.Link, call.TraceID, call.ParentID)
		}
		if !near(s.End, int64(call.End), millisecond/10) && !strings.HasPrefix(call.Name, "xe ") {
			c.problem("call %s of %s ends %.3f ms from its last write", call.Name, at(call.Start), float64(s.End-int64(call.End))/1e6)
		}
		if (s.Error != "") != call.Failed {
			c.problem("call %s of %s: error %q, failed %v", call.Name, at(call.Start), s.Error, call.Failed)
		}
		if s.Incomplete != "" {
			c.problem("call %s of %s is incomplete: %s", call.Name, at(call.Start), s.Incomplete)
		}
	}
	for _, s := range c.o.spans {
		if s.Kind == trace.SpanKindServer && s.Component == event.Xapi && !c.explain[s] {
			c.problem("span %s of %s is no call", s.Name, at(event.Time(s.Start)))
		}
	}
}

// matchTasks looks for the task of each Async call.
func (c *comparison) matchTasks() {
	for _, call := range c.x.Calls {
		if !strings.HasPrefix(call.Name, "Async.") || c.calls[call] == nil {
			continue
		}
		kids := slices.DeleteFunc(slices.Clone(c.o.kids[c.calls[call].SpanID]), func(s *correlate.Span) bool {
			return s.Kind != trace.SpanKindInternal || s.Component != event.Xapi
		})
		if len(kids) != 1 || kids[0].TraceID != c.calls[call].TraceID {
			c.scores.of(correlate.LinkClone).missing++
			c.problem("call %s of %s has %d tasks", call.Name, at(call.Start), len(kids))
			continue
		}
		c.explain[kids[0]] = true
		c.scores.of(kids[0].Link).right++
	}
}

// work tells whether s is the work of an API call (itself or its task).
func work(s *correlate.Span) bool {
	return s != nil && s.Component == event.Xapi && (s.Kind == trace.SpanKindServer || s.Kind == trace.SpanKindInternal)
}

func (c *comparison) matchMessages() {
	for _, m := range c.x.Messages {
		what := fmt.Sprintf("message %d %s of %s for %s %s", m.ID, m.Method, at(m.Sent), m.Label, m.Task)
		send := c.find(trace.SpanKindProducer, event.Xapi, "send "+m.Queue+" "+m.Method, m.Sent)
		rpc := c.find(trace.SpanKindConsumer, event.Xenopsd, m.Method, m.Delivered)
		c.sends[m], c.rpcs[m] = send, rpc
		if send == nil {
			c.problem("%s: no send span", what)
		}
		if rpc == nil {
			c.problem("%s: no RPC span", what)
		}
		c.sendParent(m, send, what)
		switch {
		case rpc == nil || send == nil:
			c.scores.of(correlate.LinkQueue).missing++
		case rpc.ParentID == send.SpanID && rpc.TraceID == send.TraceID:
			c.scores.of(rpc.Link).right++
		case rpc.Link == correlate.LinkTraceparent && rpc.TraceID.String() == m.TraceID:
			c.scores.of(correlate.LinkQueue).missing++
			c.problem("%s: RPC is only in the right trace", what)
		case rpc.Link == correlate.LinkTask && c.serves(rpc, m):
			c.scores.of(correlate.LinkQueue).missing++
			c.problem("%s: RPC is %s, which is above the right place", what, c.o.path(rpc))
		case rpc.ParentID.IsValid():
			c.scores.of(rpc.Link).wrong++
			c.problem("%s: RPC is %s", what, c.o.path(rpc))
		default:
			c.scores.of(correlate.LinkQueue).missing++
			c.problem("%s: RPC has no parent", what)
		}
		for _, s := range []*correlate.Span{send, rpc} {
			if s == nil {
				continue
			}
			if !m.Real() && c.callers[s.TraceID.String()] {
				c.problem("%s: background work in the caller's trace %s: %s", what, s.TraceID, c.o.path(s))
			}
			if m.TraceID != "" && s.TraceID.String() != m.TraceID {
				c.problem("%s: %s is in trace %s, debug_info says %s", what, s.Name, s.TraceID, m.TraceID)
			}
		}
		if send != nil && m.Returned != 0 && !near(send.End, int64(m.Returned), millisecond/10) {
			c.problem("%s: send ends %.3f ms from its answer", what, float64(send.End-int64(m.Returned))/1e6)
		}
		if rpc != nil && m.Answered != 0 && !near(rpc.End, int64(m.Answered), millisecond/10) {
			c.problem("%s: RPC ends %.3f ms from its answer", what, float64(rpc.End-int64(m.Answered))/1e6)
		}
		for _, s := range []*correlate.Span{send, rpc} {
			if s != nil && m.Answered != 0 && m.Returned != 0 && s.Incomplete != "" {
				c.problem("%s: %s is incomplete: %s", what, s.Name, s.Incomplete)
			}
			if s != nil && m.Answered == 0 && m.Returned == 0 && s.Incomplete == "" {
				c.problem("%s: %s was not answered and is complete", what, s.Name)
			}
		}
	}
	for _, s := range c.o.spans {
		if (s.Kind == trace.SpanKindProducer || s.Kind == trace.SpanKindConsumer) && !c.explain[s] {
			c.problem("span %s of %s is no message", s.Name, at(event.Time(s.Start)))
		}
	}
}

// serves tells whether s is below the call that m is sent for.
func (c *comparison) serves(s *correlate.Span, m *Message) bool {
	call := c.o.above(s, trace.SpanKindServer)
	return call != nil && call.Name == m.Label && attribute(call, "xs.xapi.task.id") == m.Task
}

func (c *comparison) sendParent(m *Message, send *correlate.Span, what string) {
	if !m.Real() {
		// A background thread works for no call.
		if send != nil && work(c.o.byID[send.ParentID]) {
			c.scores.of(send.Link).wrong++
			c.problem("%s: background work under %s", what, c.o.path(send))
		}
		return
	}
	if send == nil {
		c.scores.of(correlate.LinkThread).missing++
		return
	}
	parent := c.o.byID[send.ParentID]
	if !work(parent) {
		c.scores.of(correlate.LinkThread).missing++
		c.problem("%s: send hangs under no call: %s", what, c.o.path(send))
		return
	}
	call := parent
	if parent.Kind != trace.SpanKindServer {
		call = c.o.above(parent, trace.SpanKindServer)
	}
	if call == nil {
		c.scores.of(correlate.LinkThread).missing++
		c.problem("%s: send hangs under a task without its call: %s", what, c.o.path(send))
		return
	}
	task := attribute(call, "xs.xapi.task.id")
	if call.Name != m.Label || m.TraceID != "" && send.TraceID.String() != m.TraceID {
		c.scores.of(send.Link).wrong++
		c.problem("%s: send hangs under %s", what, c.o.path(parent))
		return
	}
	if task != m.Task {
		c.problem("%s: its call is said to be task %q", what, task)
	}
	c.scores.of(send.Link).right++
}

func (c *comparison) matchOperations() {
	for _, op := range c.x.Operations {
		what := fmt.Sprintf("task %d %s of %s for %s %s", op.Number, op.Name, at(op.Start), op.Label, op.Task)
		s := c.find(trace.SpanKindInternal, event.Xenopsd, op.Name, op.Start)
		if s == nil {
			c.scores.of(correlate.LinkTask).missing++
			c.problem("%s: no operation span", what)
			continue
		}
		c.ops[op] = s
		if !near(s.End, int64(op.End), millisecond/10) {
			c.problem("%s: ends %.3f ms from its last line", what, float64(s.End-int64(op.End))/1e6)
		}
		rpc := c.rpcs[op.AskedFor]
		switch {
		case op.AskedFor == nil || rpc == nil:
			c.problem("%s: the recording does not tell who asked for it", what)
		case s.ParentID == rpc.SpanID && s.TraceID == rpc.TraceID:
			c.scores.of(s.Link).right++
		case s.Link == correlate.LinkTraceparent && s.TraceID.String() == op.AskedFor.TraceID:
			c.scores.of(correlate.LinkTask).missing++
			c.problem("%s: is only in the right trace", what)
		case strings.HasPrefix(c.o.path(rpc), c.o.path(c.o.byID[s.ParentID])) && s.TraceID == rpc.TraceID:
			c.scores.of(correlate.LinkTask).missing++
			c.problem("%s: is %s, which is above the right place", what, c.o.path(s))
		case s.ParentID.IsValid():
			c.scores.of(s.Link).wrong++
			c.problem("%s: is %s, not under %s", what, c.o.path(s), c.o.path(rpc))
		default:
			c.scores.of(correlate.LinkTask).missing++
			c.problem("%s: has no parent", what)
		}
		for _, atom := range op.Atoms {
			a := c.find(trace.SpanKindInternal, event.Xenopsd, atom.Name, atom.Start)
			switch {
			case a == nil:
				c.scores.of(correlate.LinkThread).missing++
				c.problem("%s: no span for %s of %s", what, atom.Name, at(atom.Start))
			case a.ParentID == s.SpanID && a.TraceID == s.TraceID:
				c.scores.of(a.Link).right++
			default:
				c.scores.of(a.Link).wrong++
				c.problem("%s: %s is %s", what, atom.Name, c.o.path(a))
			}
		}
	}
	for _, s := range c.o.spans {
		if s.Kind == trace.SpanKindInternal && s.Component == event.Xenopsd && !c.explain[s] {
			c.problem("span %s of %s is no operation", s.Name, at(event.Time(s.Start)))
		}
	}
}

func at(t event.Time) string { return time.Unix(0, int64(t)).UTC().Format("15:04:05.000000") }

// report prints the figures, and what differs with the whole forest.
func (c *comparison) report(t *testing.T) {
	t.Helper()
	t.Logf("%d spans for %d calls, %d messages, %d operations%s", len(c.o.spans), len(c.x.Calls), len(c.x.Messages), len(c.x.Operations), c.scores)
	if len(c.problems) > 0 {
		t.Errorf("%d differences:\n%s", len(c.problems), strings.Join(c.problems[:min(40, len(c.problems))], "\n"))
		t.Logf("%+v\n%s", c.o.stats, c.o.tree())
	}
}

// TestRecordings runs each recording through the correlator: every call is
// found with the parent its caller sent, everything that xenopsd did hangs
// under the call that asked for it, background work hangs under none, and
// nothing is found that was not there.
func TestRecordings(t *testing.T) {
	qt.Assert(t, qt.DeepEquals(Names(), []string{"lifecycle-off", "lifecycle-on", "lifecycle-three"}))
	for _, name := range Names() {
		t.Run(name, func(t *testing.T) {
			k := know(t, name)
			qt.Assert(t, qt.IsTrue(len(k.x.Calls) > 10 && len(k.x.Messages) > 40 && len(k.x.Operations) >= 5))
			background := slices.ContainsFunc(k.x.Messages, func(m *Message) bool { return !m.Real() })
			qt.Assert(t, qt.IsTrue(background)) // work of xapi's own, which hangs under no call
			c := compare(k, k.r.Events())
			c.matchClients()
			c.report(t)
			total := c.scores.total()
			qt.Check(t, qt.Equals(total.wrong, 0))
			qt.Check(t, qt.Equals(total.missing, 0))
			for _, s := range c.o.spans {
				for _, path := range []string{"/transfer", "/login", "/ack", "/persistent", "/transient", "/request", "/response"} {
					qt.Check(t, qt.IsFalse(strings.Contains(s.Name, path)), qt.Commentf(s.Name))
					qt.Check(t, qt.IsFalse(strings.HasPrefix(attribute(s, "url.path"), path)), qt.Commentf(s.Name))
				}
			}
			qt.Check(t, qt.Equals(c.o.stats.EventsLost+c.o.stats.StaleEvents+c.o.stats.BadHeads+c.o.stats.BadMessages+c.o.stats.UnreadBodies, 0))
		})
	}
}

// matchClients looks for each call of the clients' own logs, in their order and
// in the trace that they sent.
func (c *comparison) matchClients() {
	for _, client := range c.r.Clients {
		if client.TraceID == "" {
			continue
		}
		var found []*correlate.Span
		for _, s := range c.o.spans {
			if s.Kind == trace.SpanKindServer && s.TraceID.String() == client.TraceID {
				found = append(found, s)
			}
		}
		for _, call := range client.Calls {
			i := slices.IndexFunc(found, func(s *correlate.Span) bool { return s.Name == call.Method })
			if i < 0 {
				c.problem("client %s: no span for %s", client.Name, call.Method)
				continue
			}
			// What the client measured includes the way there and back.
			if took := time.Duration(found[i].End - found[i].Start); took > call.Duration {
				c.problem("client %s: %s took %v, the client says %v", client.Name, call.Method, took, call.Duration)
			}
			if (found[i].Error != "") != (call.Status != "Success") {
				c.problem("client %s: %s: error %q, the client says %s", client.Name, call.Method, found[i].Error, call.Status)
			}
			found = found[i+1:]
		}
	}
}

// TestComparisonSeesMistakes proves that the comparison would tell.
func TestComparisonSeesMistakes(t *testing.T) {
	k := know(t, "lifecycle-on")
	edit := func(what string, f func(*event.Event) bool) {
		t.Run(what, func(t *testing.T) {
			var events []event.Event
			for _, e := range k.r.Events() {
				if f(&e) {
					events = append(events, e)
				}
			}
			c := compare(k, events)
			total := c.scores.total()
			t.Logf("%d differences, %d wrong, %d missing", len(c.problems), total.wrong, total.missing)
			qt.Check(t, qt.Not(qt.HasLen(c.problems, 0)))
			qt.Check(t, qt.Not(qt.Equals(total.wrong+total.missing, 0)))
		})
	}
	edit("other trace", func(e *event.Event) bool {
		if i := strings.Index(string(e.Head), "traceparent: 00-"); i >= 0 {
			e.Head[i+20] ^= 1
		}
		return true
	})
	edit("no answers of the switch", func(e *event.Event) bool { return !strings.HasSuffix(string(e.Head), "]]") })
	edit("no log lines", func(e *event.Event) bool { return e.Kind != event.KindLog })
	edit("no forks", func(e *event.Event) bool { return e.Kind != event.KindFork })
	edit("no xenopsd", func(e *event.Event) bool { return e.Component != event.Xenopsd })
	edit("other threads", func(e *event.Event) bool {
		if e.Kind == event.KindData && strings.HasPrefix(string(e.Head), "POST /request") {
			e.TID++
		}
		return true
	})
}

// TestMixedCPUs delivers the events as perf buffers of several CPUs do: each in
// its order, one after the other. The same tree must come out.
func TestMixedCPUs(t *testing.T) {
	for _, name := range Names() {
		t.Run(name, func(t *testing.T) {
			known := know(t, name)
			events := known.r.Events()
			random := rand.New(rand.NewPCG(3, 4))
			cpu := make(map[uint32]int) // a thread stays for a while
			var mixed []event.Event
			for len(events) > 0 {
				n := 1 // what 10 ms bring
				for n < len(events) && events[n].Time < events[0].Time+1e7 {
					n++
				}
				var queues [4][]event.Event
				for _, e := range events[:n] {
					if random.IntN(20) == 0 {
						cpu[e.TID] = random.IntN(len(queues))
					}
					q := &queues[cpu[e.TID]]
					*q = append(*q, e)
				}
				for _, q := range queues {
					mixed = append(mixed, q...)
				}
				events = events[n:]
			}
			c := compare(known, mixed)
			c.report(t)
		})
	}
}

// TestRedactionKeepsWhatIsNeeded compares the spans of the redacted events with
// those of the events as they left the kernel.
func TestRedactionKeepsWhatIsNeeded(t *testing.T) {
	for _, name := range Names() {
		t.Run(name, func(t *testing.T) {
			r, err := Load(name)
			qt.Assert(t, qt.IsNil(err))
			whole, redacted := run(Convert(r.Records, r.Processes).Events), run(r.Events())
			qt.Assert(t, qt.HasLen(redacted.spans, len(whole.spans)))
			for i, s := range redacted.spans {
				w := whole.spans[i]
				qt.Check(t, qt.Equals(redacted.path(s), whole.path(w)))
				qt.Check(t, qt.Equals(s.TraceID.String(), w.TraceID.String()))
				qt.Check(t, qt.Equals(s.Error, w.Error))
				qt.Check(t, qt.Equals(s.End, w.End))
				for _, key := range []string{"xs.xapi.task.id", "dt.vm.uuid", "messaging.message.id", "rpc.method", "dt.xenopsd.task.id"} {
					qt.Check(t, qt.Equals(attribute(s, key), attribute(w, key)), qt.Commentf("%s of %s", key, s.Name))
				}
			}
		})
	}
}

// TestLosses leaves out events at random, as a full buffer does. Links may then
// be missing, but none may be wrong.
func TestLosses(t *testing.T) {
	for _, name := range Names() {
		t.Run(name, func(t *testing.T) {
			k := know(t, name)
			all := k.r.Events()
			sum := make(scores)
			for seed := range uint64(20) {
				random := rand.New(rand.NewPCG(seed, 5))
				var events []event.Event
				for _, e := range all {
					if random.IntN(50) > 0 {
						events = append(events, e)
					} else if random.IntN(2) == 0 {
						events = append(events, event.Event{Kind: event.KindLost, Time: e.Time, Count: 1})
					}
				}
				c := compare(k, events)
				for l, s := range c.scores {
					sum.of(l).right += s.right
					sum.of(l).wrong += s.wrong
					sum.of(l).missing += s.missing
				}
				for _, p := range c.problems {
					if strings.Contains(p, "background work") {
						t.Errorf("seed %d: %s", seed, p)
					}
				}
			}
			t.Logf("2%% of the events lost, 20 times:%s", sum)
			total := sum.total()
			qt.Check(t, qt.IsTrue(ratio(total.right, total.right+total.wrong) >= 0.99))
			qt.Check(t, qt.IsTrue(ratio(total.right, total.right+total.wrong+total.missing) >= 0.85))
		})
	}
}
