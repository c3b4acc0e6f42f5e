package score

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/xenserver/dtagent/cmd/dtagent/zipkin"
	"github.com/xenserver/dtagent/testenv/truth"
)

// expected is the link method of a kind when nothing is missed, without tracing
// by the toolstack itself.
var expected = map[truth.Kind]string{
	truth.API: "traceparent", truth.Client: "thread", truth.Task: "clone", truth.Send: "thread", truth.RPC: "queue",
	truth.Operation: "task", truth.Atom: "thread", truth.Process: "fork",
}

// maxExamples bounds what a Report shows.
const maxExamples = 40

// comparison is a Report in the making.
type comparison struct {
	*matcher
	Trial
	bound map[string][]time.Duration
	*Report
}

// Trial is what is known of the time in which spans were made.
type Trial struct {
	Since, Until int64 // ktime; what happened before or after does not count
	Offset       int64 // added to ktime gives ns since 1970; the hosts' clocks are the same
	Native       bool  // XAPI's own tracing was on: roots can hang under spans of its own
	Legacy       bool  // the kernel side cannot say who is at the other end of a socket
}

// Compare compares the spans of all hosts with the truth. Spans of waits are left
// out: what processes wait for is no part of the truth.
func Compare(log *truth.Log, spans []zipkin.Span, t Trial) *Report {
	spans = slices.DeleteFunc(slices.Clone(spans), func(s zipkin.Span) bool { return s.Tags["dt.wait.class"] != "" })
	c := &comparison{matcher: newMatcher(log, spans, t.Offset), Trial: t, bound: map[string][]time.Duration{},
		Report: &Report{Methods: map[string]*Links{}, Kinds: map[string]*Links{}, Bounds: map[string]*Bounds{}}}
	callers := map[string]map[string]bool{} // by trace
	for i := range log.Entries {
		e := &log.Entries[i]
		caller, known := c.caller(e)
		if e.End == 0 || e.End > t.Until || !c.counts(e) {
			continue
		}
		s := c.span[i]
		if s != nil && known {
			if callers[s.TraceID] == nil {
				callers[s.TraceID] = map[string]bool{}
			}
			callers[s.TraceID][caller] = true
		}
		if silent(log, e) {
			continue
		}
		c.Entries++
		c.link(e, s, false)
		switch {
		case s == nil:
			c.Absent++
		default:
			c.Spans++
			if s.Incomplete() != "" {
				c.Incomplete++
			} else {
				c.bounds(e, s)
			}
		}
	}
	for _, s := range c.pieces {
		if e := &log.Entries[c.entry[s]]; e.End <= t.Until && c.counts(e) {
			c.link(e, s, true)
		}
	}
	c.Extra = len(c.byID) - len(c.entry)
	for id, all := range callers {
		c.Traces++
		if len(all) > 1 {
			c.Joined++
			c.example(&c.Mistakes, "trace %s joins %d callers: %v", id, len(all), slices.Sorted(keys(all)))
		}
	}
	c.finishBounds()
	return c.Report
}

func keys(m map[string]bool) func(func(string) bool) {
	return func(yield func(string) bool) {
		for k := range m {
			if !yield(k) {
				return
			}
		}
	}
}

// counts tells whether the call that e belongs to is in the truth from its
// beginning, which the agent saw. What has not ended is not in the truth.
func (c *comparison) counts(e *truth.Entry) bool {
	for n := 0; n < 100; n++ {
		if e.Start < c.Since {
			return false
		}
		p, ok := c.log.ByID(e.Parent)
		if !ok {
			return e.Parent == ""
		}
		e = &p
	}
	return false
}

// background is the caller of all that nobody called for.
const background = "background"

// caller names whose work e is. It is not known where the truth has the other end
// of a connection between hosts only.
func (c *comparison) caller(e *truth.Entry) (string, bool) {
	for n := 0; n < 100; n++ {
		if e.Background {
			return background, true
		}
		p, ok := c.log.ByID(e.Parent)
		if !ok {
			return e.ID, !strings.HasPrefix(e.ParentKey, truth.Between) && e.Kind == truth.API
		}
		e = &p
	}
	return "", false
}

// above returns the nearest ancestor of e that can be seen, nil if there is none.
func (c *comparison) above(e *truth.Entry) *truth.Entry {
	for n := 0; n < 100; n++ {
		p, ok := c.log.ByID(e.Parent)
		if !ok {
			return nil
		}
		if e = &p; !silent(c.log, e) {
			return e
		}
	}
	return nil
}

// untold tells whether nothing that goes between p and e, its child, says that it is: SM
// scripts call xapi in a session of their own, so that only their end of the socket
// names them; a call that one host makes to another without a trace context or a
// task looks like those of others.
func (c *comparison) untold(e, p *truth.Entry) bool {
	if e.Kind != truth.API {
		return false
	}
	direct, _ := c.log.ByID(e.Parent)
	switch {
	case direct.Kind == truth.Process:
		return c.Legacy
	case direct.Kind != truth.Client || silent(c.log, &direct):
		return true
	}
	return e.Traceparent == "" && !strings.HasPrefix(direct.Tag, "R:")
}

// link judges the link of e's span, nil if there is none. Of further pieces of it
// only counts what is wrong.
func (c *comparison) link(e *truth.Entry, s *zipkin.Span, piece bool) {
	method := expected[e.Kind]
	p := c.above(e)
	var made string // id of the span's parent
	if s != nil {
		if made = s.ParentID; made != "" {
			method = s.Link()
		}
	}
	remote := ""
	if p == nil && e.Kind == truth.API {
		if f := strings.Split(e.Traceparent, "-"); len(f) == 4 {
			remote = f[2]
		}
	} else if p != nil && e.Kind == truth.API && made == "" {
		switch {
		case p.Kind == truth.Process:
			method = "socket"
		case e.Traceparent != "":
			method = "traceparent"
		default:
			method = "task"
		}
	}
	l, k := links(c.Methods, method), links(c.Kinds, string(e.Kind))
	count := func(one Links) {
		if piece && one.Wrong == 0 {
			return
		}
		l.add(one)
		k.add(one)
		if one.Missed+one.Above > 0 && s != nil && s.Incomplete() == "" {
			c.Unmarked++
		}
		if one.Right == 0 {
			to := &c.Examples
			if one.Wrong > 0 {
				to = &c.Mistakes
			}
			c.explain(to, e, s, p)
		}
	}
	switch {
	case p == nil && remote == "": // a root
		switch {
		case made == "":
		case c.Native && s.Link() == "traceparent" && c.byID[made] == nil:
			c.OfXapi++
		default:
			count(Links{Wrong: 1})
		}
	case p == nil:
		switch made {
		case remote:
			count(Links{Right: 1})
		case "":
			count(Links{Missed: 1})
		default:
			count(Links{Wrong: 1})
		}
	case c.untold(e, p):
		if !piece {
			c.Untold++
		}
		if made != "" {
			c.Guessed++
			if !c.ancestor(e, made) {
				count(Links{Wrong: 1})
			}
		}
	case made == "":
		count(Links{Missed: 1})
	default:
		parent, ok := c.entryOf(made)
		switch {
		case ok && parent == p.ID:
			count(Links{Right: 1})
		case c.ancestor(e, made):
			count(Links{Above: 1})
		case c.byID[made] == nil && e.Kind == truth.API:
			count(Links{Nowhere: 1})
		default:
			count(Links{Wrong: 1})
		}
	}
}

func (c *comparison) entryOf(id string) (string, bool) {
	s := c.byID[id]
	if s == nil {
		return "", false
	}
	i, ok := c.entry[s]
	if !ok {
		return "", false
	}
	return c.log.Entries[i].ID, true
}

// ancestor tells whether the span of that id is one of an ancestor of e, or that
// of e's caller.
func (c *comparison) ancestor(e *truth.Entry, id string) bool {
	of, ok := c.entryOf(id)
	for n := 0; n < 100; n++ {
		if f := strings.Split(e.Traceparent, "-"); len(f) == 4 && f[2] == id {
			return true
		}
		p, found := c.log.ByID(e.Parent)
		if !found {
			return false
		}
		if e = &p; ok && e.ID == of {
			return true
		}
	}
	return false
}

// bounds compares the start and the end of a span with its entry's.
func (c *comparison) bounds(e *truth.Entry, s *zipkin.Span) {
	start := e.Start
	if p, ok := c.log.ByID(e.Parent); ok && (e.Kind == truth.RPC || e.Kind == truth.Task) {
		start = p.Start // the span begins when the message was delivered, the thread made
	}
	b := c.Report.Bounds[string(e.Kind)]
	if b == nil {
		b = &Bounds{}
		c.Report.Bounds[string(e.Kind)] = b
	}
	for i, inside := range []time.Duration{time.Duration(c.ktime(s.Timestamp) - start), time.Duration(e.End - c.ktime(s.End()))} {
		b.Ends++
		if i == 0 && e.Kind == truth.API {
			inside = inside.Abs() // written down when the thread that was woken by the first byte comes to run
		}
		switch {
		case inside < -Tolerance:
			b.Outside++
			c.example(&c.Examples, "%s: a bound is %v outside; span %s is from %.6f for %v", c.describe(e), -inside, s.ID, float64(c.ktime(s.Timestamp))/1e9, s.Length())
		case inside <= Tolerance:
			b.Within++
		}
		c.bound[string(e.Kind)] = append(c.bound[string(e.Kind)], inside.Abs())
	}
}

func (c *comparison) finishBounds() {
	for name, all := range c.bound {
		slices.Sort(all)
		b := c.Report.Bounds[name]
		b.Median, b.P99 = all[len(all)/2], all[len(all)*99/100]
	}
}

func (c *comparison) example(to *[]string, format string, args ...any) {
	if len(*to) < maxExamples {
		*to = append(*to, fmt.Sprintf(format, args...))
	}
}

// explain keeps a link that is not right as an example.
func (c *comparison) explain(to *[]string, e *truth.Entry, s *zipkin.Span, p *truth.Entry) {
	should := "no parent"
	if p != nil {
		should = c.describe(p)
	} else if e.Traceparent != "" {
		should = "its caller " + e.Traceparent
	}
	switch {
	case s == nil:
		c.example(to, "no span of %s; parent should be %s", c.describe(e), should)
	case s.ParentID == "":
		c.example(to, "%s, span %s (%s), incomplete %q, has no parent; should be %s", c.describe(e), s.ID, s.Link(), s.Incomplete(), should)
	default:
		is := "a span that there is not"
		if q := c.byID[s.ParentID]; q != nil {
			is = fmt.Sprintf("span %s %q of no entry", q.ID, q.Name)
			if i, ok := c.entry[q]; ok {
				is = c.describe(&c.log.Entries[i])
			}
		}
		c.example(to, "%s, span %s (%s), incomplete %q, has the parent %s: %s; should be %s", c.describe(e), s.ID, s.Link(), s.Incomplete(), s.ParentID, is, should)
	}
}

func (c *comparison) describe(e *truth.Entry) string {
	return fmt.Sprintf("[%s %s %s %s %d/%d %s %s at %.6f for %v]", e.Host, e.Component, e.Kind, e.Name, e.TGID, e.TID, e.Tag, e.Detail, float64(e.Start)/1e9, time.Duration(e.End-e.Start).Round(time.Microsecond))
}
