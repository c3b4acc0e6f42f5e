package tree

import (
	"github.com/xenserver/dtagent/cmd/dtagent/zipkin"
	"github.com/xenserver/dtagent/observer/export"
)

// A call that one host of a pool passes on to another is a CLIENT span there and
// a SERVER span here. The hosts' agents do not talk, so two things are left to
// who reads the spans of both: the receiving host may not have known the
// trace, and its clock may be off.

// remoteSpan is the tag with the parent that a call from another host has when
// that host's CLIENT span is in no file: see package correlate.
const remoteSpan = "dt.remote.span_id"

// localSpan is the tag with the parent of a span that hangs under one of the
// toolstack's own, in a file without those: see export.KeyLocalSpan.
const localSpan = string(export.KeyLocalSpan)

// passed finds the CLIENT spans below which calls of other traces hang.
type passed map[string]*Node // by span id; nil: more than one has it

func (p passed) add(n *Node) {
	if n.Kind != "CLIENT" {
		return
	}
	if _, twice := p[n.ID]; twice {
		p[n.ID] = nil
		return
	}
	p[n.ID] = n
}

// parent returns the span that passed n on, nil if there is none in another
// trace.
func (p passed) parent(n *Node) *Node {
	if n.Kind != "SERVER" || n.ParentID == "" {
		return nil
	}
	c := p[n.ParentID]
	if c == nil || c.TraceID == n.TraceID {
		return nil
	}
	return c
}

// host is the uuid of the host on which a span ran, "" if it does not say.
func host(s *zipkin.Span) string { return s.Tags["xs.host.uuid"] }

// align moves what another host has done below a call that was passed on to it
// to where it can have been by the caller's clock: if its call does not lie
// within the caller's, both ways of the network get the same time. Skew says how
// far it was moved.
func align(n *Node) {
	for stack := []*Node{n}; len(stack) > 0; {
		p := stack[len(stack)-1]
		stack = stack[:len(stack)-1]
		for _, c := range p.Children {
			c.Skew = p.Skew
			if p.Kind == "CLIENT" && c.Kind == "SERVER" && host(&p.Span) != host(&c.Span) {
				c.Skew = skew(p, c)
			}
			c.Timestamp -= c.Skew
			c.outlives = c.End() > p.End()
			stack = append(stack, c)
		}
	}
}

// skew returns by how many µs the clock of c's host is ahead of that of p's, as
// far as can be told: 0 when c lies within p.
func skew(p, c *Node) int64 {
	if c.Timestamp >= p.Timestamp && c.End() <= p.End() || c.Duration > p.Duration {
		return 0
	}
	return c.Timestamp - p.Timestamp - (p.Duration-c.Duration)/2
}
