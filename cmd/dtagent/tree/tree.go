// Package tree puts the spans of a trace into their tree and prints it for
// people: who called whom, how long it took, how the agent knows, and where
// the time went.
package tree

import (
	"cmp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/xenserver/dtagent/cmd/dtagent/zipkin"
)

// Node is a span with the spans below it, in the order in which they began.
type Node struct {
	zipkin.Span
	Children []*Node
	Skew     int64 // µs by which the clock of its host is ahead of that of the trace's first; taken off Timestamp

	outlives bool // ends after its parent
}

// Trace is what is known of one trace.
type Trace struct {
	ID        string
	Joined    []string // further traces that hang below a call of this one
	Roots     []*Node  // spans whose parent is not among those of the trace, in order of time
	Spans     int
	Start     int64 // µs since 1970, of the first span
	End       int64 // µs since 1970, of the last span to end
	Continued bool  // other spans of the trace were shown before
}

// Build makes the trees of all traces in spans, in order of their beginnings.
// A span that is there more than once, as two Observers write it, counts once.
func Build(spans []zipkin.Span) []*Trace {
	type key struct{ trace, id string }
	nodes := make(map[key]*Node, len(spans))
	traces := map[string]*Trace{}
	var order []*Trace
	var all []*Node
	for _, s := range spans {
		k := key{s.TraceID, s.ID}
		if nodes[k] != nil {
			continue
		}
		n := &Node{Span: s}
		nodes[k] = n
		all = append(all, n)
		t := traces[s.TraceID]
		if t == nil {
			t = &Trace{ID: s.TraceID}
			traces[s.TraceID] = t
			order = append(order, t)
		}
		t.Spans++
	}
	slices.SortStableFunc(all, func(a, b *Node) int { return cmp.Compare(a.Timestamp, b.Timestamp) })
	calls := passed{}
	for _, n := range all {
		calls.add(n)
	}
	for _, n := range all {
		if c := calls.parent(n); c != nil && nodes[key{n.TraceID, n.ParentID}] == nil {
			order = join(traces, order, c.TraceID, n.TraceID)
		}
	}
	parentOf := func(n *Node) *Node {
		if p := nodes[key{n.TraceID, n.ParentID}]; p != nil {
			return p
		}
		if p := calls.parent(n); p != nil {
			return p
		}
		if p := nodes[key{n.TraceID, n.Tags[localSpan]}]; p != nil {
			return p
		}
		return nodes[key{n.TraceID, n.Tags[remoteSpan]}]
	}
	for _, n := range all {
		parent := parentOf(n)
		if n.ParentID == "" || parent == nil || parent == n {
			t := traces[n.TraceID]
			t.Roots = append(t.Roots, n)
		} else {
			parent.Children = append(parent.Children, n)
		}
	}
	// A file can claim that spans are each other's parents. Such a ring hangs
	// below no root: it is opened at its first span.
	reached := make(map[*Node]bool, len(all))
	for _, t := range order {
		reach(t.Roots, reached)
	}
	for _, n := range all {
		if reached[n] {
			continue
		}
		parent, t := parentOf(n), traces[n.TraceID]
		parent.Children = slices.DeleteFunc(parent.Children, func(c *Node) bool { return c == n })
		t.Roots = append(t.Roots, n)
		reach([]*Node{n}, reached)
	}
	for _, t := range order {
		for _, r := range t.Roots {
			align(r)
		}
		t.measure()
	}
	slices.SortStableFunc(order, func(a, b *Trace) int { return cmp.Compare(a.Start, b.Start) })
	return order
}

// join makes the trace from part of the trace into.
func join(traces map[string]*Trace, order []*Trace, into, from string) []*Trace {
	t, f := traces[into], traces[from]
	if t == f {
		return order
	}
	t.Spans += f.Spans
	t.Joined = append(append(t.Joined, f.ID), f.Joined...)
	for id, x := range traces {
		if x == f {
			traces[id] = t
		}
	}
	return slices.DeleteFunc(order, func(x *Trace) bool { return x == f })
}

// measure sets when the trace began and ended.
func (t *Trace) measure() {
	first := true
	t.All(func(n *Node) {
		if first || n.Timestamp < t.Start {
			t.Start = n.Timestamp
		}
		if first || n.End() > t.End {
			t.End = n.End()
		}
		first = false
	})
}

// reach marks the nodes and all below them.
func reach(nodes []*Node, reached map[*Node]bool) {
	for stack := slices.Clone(nodes); len(stack) > 0; {
		n := stack[len(stack)-1]
		stack = stack[:len(stack)-1]
		reached[n] = true
		for _, c := range n.Children {
			if !reached[c] {
				stack = append(stack, c)
			}
		}
	}
}

// Total is the time from the start of the trace's first span to the end of
// its last.
func (t *Trace) Total() time.Duration { return time.Duration(t.End-t.Start) * time.Microsecond }

// All calls fn for every span of the trace, parents first.
func (t *Trace) All(fn func(n *Node)) {
	stack := slices.Clone(t.Roots)
	slices.Reverse(stack)
	for len(stack) > 0 {
		n := stack[len(stack)-1]
		stack = stack[:len(stack)-1]
		fn(n)
		for _, c := range slices.Backward(n.Children) {
			stack = append(stack, c)
		}
	}
}

// Where is the part of a span that took most of its time.
type Where struct {
	What  string  `json:"what"`  // "self", the name of a child, or a way of spending time
	Share float64 `json:"share"` // of the span's duration, 0 to 1
}

// Self is what Where calls time of a span in which no child of it ran.
const Self = "self"

// Where says where the time of the span went: to the work below it that took
// longest, to the way of spending time with the largest dt.time.<way>_us if the
// span has such attributes, or to itself, which is what neither explains. Work below
// it is its children, spans of waits left out, and what they left to run after
// their own end, as xenopsd's workers do. Time outside the span does not count. Of
// a wait it tells the queueing for a CPU at its end.
func (n *Node) Where() Where {
	w, _ := n.where()
	return w
}

// where is Where, and the other ways in which a good part of the time was spent,
// longest first.
func (n *Node) where() (w Where, others []Where) {
	if n.Duration <= 0 {
		return Where{}, nil
	}
	longest, covered := n.work()
	ways := n.ways(covered)
	w = Where{What: Self, Share: float64(n.Duration - covered)}
	for _, x := range ways {
		w.Share -= x.Share
	}
	if len(ways) > 0 && (ways[0].Share >= w.Share || n.isWait()) {
		w, ways = ways[0], ways[1:]
	}
	if longest != nil && float64(longest.within(n)) > w.Share {
		if w.What != Self {
			ways = append([]Where{w}, ways...)
		}
		w = Where{What: longest.Name, Share: float64(longest.within(n))}
	}
	w.Share = min(w.Share/float64(n.Duration), 1)
	if n.isWait() && (w.What == Self || w.Share < goodPart) {
		return Where{}, nil
	}
	for _, x := range ways {
		if x.Share /= float64(n.Duration); x.Share >= goodPart && len(others) < maxOthers {
			others = append(others, x)
		}
	}
	return w, others
}

const (
	goodPart  = 0.1 // of a span's time, to be shown besides the longest part
	maxOthers = 2
)

// work returns what took longest of the work below n, nil if there is none, and
// how long any of it ran, in µs.
func (n *Node) work() (longest *Node, covered int64) {
	var work []*Node
	seen := 0
	for stack := slices.Clone(n.Children); len(stack) > 0 && seen < maxBelow; seen++ {
		c := stack[len(stack)-1]
		stack = append(stack[:len(stack)-1], c.Children...)
		if c.within(n) <= 0 || c.isWait() {
			continue
		}
		if c.ParentID == n.ID || c.outlives {
			work = append(work, c)
		}
	}
	slices.SortStableFunc(work, func(a, b *Node) int { return cmp.Compare(a.Timestamp, b.Timestamp) })
	until := n.Timestamp
	for _, c := range work {
		if longest == nil || c.within(n) > longest.within(n) {
			longest = c
		}
		if to := min(c.End(), n.End()); to > until {
			covered += to - max(c.Timestamp, until)
			until = to
		}
	}
	return longest, covered
}

// isWait tells that the span is a wait, not work.
func (n *Node) isWait() bool { return n.Tags["dt.wait.class"] != "" }

// maxBelow bounds how far Where looks down.
const maxBelow = 10_000

// within is how long c ran while n did, in µs, not more than 0 if it did not.
func (c *Node) within(n *Node) int64 {
	return min(c.End(), n.End()) - max(c.Timestamp, n.Timestamp)
}

// idle are the ways of spending time that can be waiting for work below a span.
var idle = []string{"lock", "child", "network", "poll", "pipe", "sleep", "other"}

// ways returns how n's thread spent its time, in µs, longest first, as far as it
// was not for work below it, which took covered: while that runs, who has asked for
// it waits in one of the idle ways.
func (n *Node) ways(covered int64) (ways []Where) {
	var sum int64
	for k, v := range n.Tags {
		way, ok := strings.CutPrefix(k, "dt.time.")
		if !ok {
			continue
		}
		way, ok = strings.CutSuffix(way, "_us")
		us, err := strconv.ParseInt(v, 10, 64)
		if !ok || err != nil || us <= 0 || way == "rest" {
			continue
		}
		ways = append(ways, Where{way, float64(min(us, n.Duration))}) // of several threads it can be more
	}
	slices.SortFunc(ways, func(a, b Where) int {
		return cmp.Or(cmp.Compare(b.Share, a.Share), cmp.Compare(a.What, b.What))
	})
	left := float64(covered)
	for i := range ways {
		w := &ways[i]
		if slices.Contains(idle, w.What) {
			d := min(w.Share, left)
			w.Share -= d
			left -= d
		}
		w.Share = min(w.Share, float64(n.Duration-sum))
		sum += int64(w.Share)
	}
	ways = slices.DeleteFunc(ways, func(w Where) bool { return w.Share <= 0 })
	slices.SortStableFunc(ways, func(a, b Where) int { return cmp.Compare(b.Share, a.Share) })
	return ways
}
