package processor

import (
	"fmt"
	"path"
	"strings"

	"github.com/xenserver/dtagent/correlate"
)

// tooShort tells whether sp is filtered by MinDuration. What failed is shown
// however short it was, and of an incomplete span nobody knows how long it
// really was.
func (p *Pipeline) tooShort(sp *correlate.Span) bool {
	return sp.End-sp.Start < int64(p.c.MinDuration) && sp.Error == "" && sp.Incomplete == ""
}

func (p *Pipeline) dropped(sp *correlate.Span) bool {
	if len(p.drop) == 0 {
		return false
	}
	name := flat(sp.Name)
	for _, d := range p.drop {
		if d.match(name) {
			return true
		}
	}
	return false
}

// Match tells whether name as a whole matches glob, with upper and lower
// case told apart: * stands for any run of characters, none and '/' among them,
// ? for any one, [a-z] and [^a-z] for one of a set, and \ before a character for
// itself. That is path.Match, but for '/': span names are not paths
// ("PUT /import"). A malformed pattern matches nothing: see CheckPattern.
func Match(glob, name string) bool {
	return pattern(flat(glob)).match(flat(name))
}

// CheckPattern returns what is wrong with a pattern.
func CheckPattern(s string) error {
	if _, err := path.Match(flat(s), ""); err != nil {
		return fmt.Errorf("pattern %q is malformed", s)
	}
	return nil
}

// pattern is a flat one.
type pattern string

func patterns(ss []string) []pattern {
	out := make([]pattern, len(ss))
	for i, s := range ss {
		out[i] = pattern(flat(s))
	}
	return out
}

// match takes a flat name.
func (p pattern) match(name string) bool {
	ok, _ := path.Match(string(p), name)
	return ok
}

// flat takes away from '/' its meaning in path.Match.
func flat(s string) string { return strings.ReplaceAll(s, "/", "\x01") }
