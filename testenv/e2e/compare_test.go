package e2e

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/xenserver/dtagent/cmd/dtagent/tree"
	"github.com/xenserver/dtagent/testenv/truth"
)

// A process writes its times down before its first system call and after its
// last, so a span lies inside its entry. How far inside is up to the scheduler:
// on a busy machine a thread can wait for long between the two.
const (
	outside = 5 * time.Millisecond  // that a span may begin before or end after its entry
	inside  = 25 * time.Millisecond // that nine in ten begin after or end before it
)

// comparison of the spans of one call with the ground truth.
type comparison struct {
	t       testing.TB
	truth   *truth.Log
	offset  int64                    // ns since 1970 at ktime 0
	began   int64                    // ktime before the client made the call, 0 if it is not known
	ahead   map[string]time.Duration // by host: what its clock is ahead of the others'
	slack   time.Duration            // what a span may be outside beyond that: hosts that share few processors make each other wait
	legacy  bool                     // the agent has the legacy programs: who is at the other end of a socket is not known
	untimed bool                     // nothing is said of times: the machine is emulated, and slow
	spans   int
	waits   int             // spans besides those: see wait
	natives int             // of spans: those of which the toolstack's own span is known
	off     []time.Duration // how far inside, or outside, each start and end is
	bad     []string
}

// links are the methods by which the parent of an entry can be found, by kind,
// in a toolstack without tracing of its own.
var links = map[truth.Kind][]string{
	truth.API:       {"traceparent", "none", "socket", "task"}, // task: of another host
	truth.Client:    {"thread"},
	truth.Task:      {"clone", "task"},
	truth.Send:      {"thread"},
	truth.RPC:       {"queue", "socket"},         // socket: without message-switch
	truth.Operation: {"task", "queue", "thread"}, // thread: those that xenopsd does while it answers
	truth.Atom:      {"thread", "task"},
	truth.Process:   {"fork", "socket"}, // socket: started by forkexecd
}

// subtree compares a span and all below it with an entry and all below it: same
// names, components, parents, link methods that can be, times within the
// tolerance, and nothing missing or added.
func (c *comparison) subtree(e truth.Entry, n *tree.Node, path string) {
	path += "/" + e.Name
	c.spans++
	if n.Name != nameOf(e) {
		c.errorf("%s: span is named %q", path, n.Name)
	}
	if want := e.Component; want != "" && n.Service() != want {
		c.errorf("%s: service is %q, not %q", path, n.Service(), want)
	}
	if !slices.Contains(links[e.Kind], n.Link()) {
		c.errorf("%s: %s was linked by %q, not by one of %v", path, e.Kind, n.Link(), links[e.Kind])
	}
	if n.Incomplete() != "" {
		c.errorf("%s: incomplete: %s", path, n.Incomplete())
	}
	if got := n.Error(); (got != "") != (e.Err != "") || e.Err != "" && !strings.Contains(got, e.Err) {
		c.errorf("%s: error is %q, not %q", path, got, e.Err)
	}
	c.native(e, n, path)
	start, ahead := e.Start, c.ahead[e.Host].Nanoseconds()
	parent, ok := c.truth.ByID(e.Parent)
	switch {
	case ok && (e.Kind == truth.RPC || e.Kind == truth.Task):
		// The span begins when the message was delivered, the thread made; the
		// entry when that thread came to run.
		start = parent.Start
	case ok && e.Kind == truth.API && parent.Kind != truth.Client:
		// A request of a process that the call started, or one passed on: the entry
		// begins when the thread that has read its first bytes comes to run again.
		start = 0
		c.notBefore(path+" start", parent.Start+ahead, n.Timestamp+n.Skew)
	case !ok && e.Kind == truth.API && c.began != 0: // the same, of the client's
		start = 0
		c.notBefore(path+" start", c.began, n.Timestamp+n.Skew)
	}
	// The clocks of a pool's hosts differ; the tree takes that off its times.
	if start != 0 {
		c.time(path+" start", start+ahead, n.Timestamp+n.Skew, 1)
	}
	c.time(path+" end", e.End+ahead, n.End()+n.Skew, -1)

	c.spent(n, path)
	c.below(e, n, path)
}

// below compares all below a span with all below an entry.
func (c *comparison) below(e truth.Entry, n *tree.Node, path string) {
	left := slices.DeleteFunc(slices.Clone(n.Children), func(child *tree.Node) bool { return c.wait(n, child, path) })
	for _, child := range c.visible(e) {
		i := c.nearest(child, left)
		if i < 0 {
			c.errorf("%s: no span for %s %s (%s)", path, child.Kind, child.Name, child.Component)
			continue
		}
		match := left[i]
		left = slices.Delete(left, i, i+1)
		c.subtree(child, match, path)
	}
	for _, extra := range left {
		c.errorf("%s: span %s %q (link %s) is not in the ground truth", path, extra.Service(), extra.Name, extra.Link())
	}
}

// wait tells whether the span, which is below n, is a wait, and looks whether it
// can be: what the processes wait for is no part of the ground truth, but where it
// was injected (wait_test.go).
func (c *comparison) wait(n, wait *tree.Node, path string) bool {
	if wait.Tags["dt.wait.class"] == "" {
		return false
	}
	path += "/" + wait.Name
	c.waits++
	switch {
	case wait.Link() != "thread":
		c.errorf("%s: linked by %q", path, wait.Link())
	case wait.Tags["process.pid"] != n.Tags["process.pid"]:
		c.errorf("%s: is of process %s, not %s", path, wait.Tags["process.pid"], n.Tags["process.pid"])
	case n.Tags["thread.id"] != "" && wait.Tags["thread.id"] != n.Tags["thread.id"]:
		c.errorf("%s: is of thread %s, not %s", path, wait.Tags["thread.id"], n.Tags["thread.id"])
	case wait.Timestamp < n.Timestamp-1 || wait.End() > n.End()+1: // µs, by rounding
		c.errorf("%s: from %d to %d µs of %d", path, wait.Timestamp-n.Timestamp, wait.End()-n.Timestamp, n.Duration)
	case wait.Service() != n.Service():
		c.errorf("%s: service is %q, not %q", path, wait.Service(), n.Service())
	case len(wait.Children) > 0:
		c.errorf("%s: spans hang below a wait", path)
	}
	return true
}

// spent looks whether the time split of a span and the rest are its duration.
func (c *comparison) spent(n *tree.Node, path string) {
	if _, ok := n.Tags["dt.time.rest_us"]; !ok {
		return
	}
	var sum int64
	for k, v := range n.Tags {
		if !strings.HasPrefix(k, "dt.time.") {
			continue
		}
		us, err := strconv.ParseInt(v, 10, 64)
		if err != nil || us < 0 {
			c.errorf("%s: %s is %q", path, k, v)
		}
		sum += us
	}
	if d := sum - n.Duration; d < -1 || d > 1 {
		c.errorf("%s: takes %d µs, its split says %d", path, n.Duration, sum)
	}
}

// native compares the toolstack's own span that a message names, and its trace.
func (c *comparison) native(e truth.Entry, n *tree.Node, path string) {
	if e.Native == "" {
		if n.Tags[nativeSpan] != "" && e.Kind != truth.Client {
			c.errorf("%s: lies under native span %s, of which nothing was sent", path, n.Tags[nativeSpan])
		}
		return
	}
	trace, span := e.Native[3:35], e.Native[36:52]
	if n.TraceID != trace {
		c.errorf("%s: is in trace %s, the toolstack's is %s", path, n.TraceID, trace)
	}
	if n.Tags[nativeSpan] != span {
		c.errorf("%s: lies under native span %q, not %s", path, n.Tags[nativeSpan], span)
	}
	if n.Tags["dt.local.span_id"] != "" && n.ParentID != span {
		c.errorf("%s: hangs under %s, not under native span %s", path, n.ParentID, span)
	}
	c.natives++
}

// nativeSpan is the tag with the toolstack's span that a span lies under.
const nativeSpan = "dt.native.span_id"

// nameOf is the name that the entry's span has: a task is called as the method
// that it does, the call that made it as it was sent.
func nameOf(e truth.Entry) string {
	if e.Kind == truth.Task {
		return strings.TrimPrefix(e.Name, "Async.")
	}
	return e.Name
}

// visible returns what happened below an entry, as far as the kernel side can
// see it. An atom has a log line only when an operation other than Atomic
// performs it; what a silent one did counts as its parent's.
func (c *comparison) visible(e truth.Entry) []truth.Entry {
	var out []truth.Entry
	for _, child := range c.truth.Children(e.ID) {
		switch {
		case child.Kind == truth.Delay:
		case child.Kind == truth.Socket:
			out = append(out, c.visible(child)...)
		case child.Kind == truth.API && e.Kind == truth.Client && c.under(e, truth.Process):
			// A member passes a script's call on as it came, without a trace or a task:
			// nothing tells the coordinator whose it is.
		case child.Kind == truth.API && e.Kind == truth.Process && c.legacy:
			// A script's call is in a trace of its own.
		case child.Kind == truth.Client && (strings.HasPrefix(child.Name, "system.isAlive:") || strings.HasPrefix(child.Name, "POST /remote_db_access")):
			// Probes and members' access to the database are not reported: they are in
			// nobody's trace.
		case child.Kind == truth.Atom && (e.Kind == truth.Atom || strings.HasPrefix(e.Name, "Atomic (")):
			out = append(out, c.visible(child)...)
		default:
			out = append(out, child)
		}
	}
	return out
}

// under tells whether there is an entry of a kind above e.
func (c *comparison) under(e truth.Entry, k truth.Kind) bool {
	for _, a := range c.truth.Path(e.ID) {
		if a.Kind == k {
			return true
		}
	}
	return false
}

// nearest returns the node of the entry's name that began nearest to it.
func (c *comparison) nearest(e truth.Entry, nodes []*tree.Node) int {
	best := -1
	began := (e.Start + c.offset + c.ahead[e.Host].Nanoseconds()) / 1000
	distance := func(n *tree.Node) int64 { d := n.Timestamp + n.Skew - began; return max(d, -d) }
	for i, n := range nodes {
		if n.Name == nameOf(e) && (best < 0 || distance(n) < distance(nodes[best])) {
			best = i
		}
	}
	return best
}

// time compares a start (inwards is 1) or an end (-1).
func (c *comparison) time(what string, ktime, micros, inwards int64) {
	d := time.Duration(inwards) * (time.Duration(micros)*time.Microsecond - time.Duration(ktime+c.offset))
	c.off = append(c.off, d.Abs())
	if d < -outside-c.slack && !c.untimed {
		c.errorf("%s: %v outside", what, -d)
	}
}

// notBefore says that a span cannot begin before a time.
func (c *comparison) notBefore(what string, ktime, micros int64) {
	if d := time.Duration(ktime+c.offset) - time.Duration(micros)*time.Microsecond; d > outside+c.slack && !c.untimed {
		c.errorf("%s: %v outside", what, d)
	}
}

func (c *comparison) errorf(format string, args ...any) {
	c.bad = append(c.bad, fmt.Sprintf(format, args...))
}

// report fails the test with all differences and both trees.
func (c *comparison) report(e truth.Entry, t *tree.Trace) {
	c.t.Helper()
	slices.Sort(c.off)
	p90 := c.off[len(c.off)*9/10]
	if p90 > inside && !c.untimed {
		c.errorf("one time in ten is more than %v off", p90)
	}
	if len(c.bad) == 0 {
		c.t.Logf("%d spans as they should be, nine times in ten within %v, all within %v", c.spans, p90.Round(time.Microsecond), c.off[len(c.off)-1].Round(time.Microsecond))
		return
	}
	var b strings.Builder
	if t != nil {
		_ = tree.Print(&b, t, tree.Style{}) // a Builder does not fail
	}
	c.t.Errorf("%d differences:\n%s\nground truth:\n%s\nspans:\n%s", len(c.bad), strings.Join(c.bad, "\n"), c.truth.Tree(e.ID), b.String())
}
