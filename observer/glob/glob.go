// Package glob matches the names of spans and the keys of attributes with
// patterns.
package glob

import (
	"fmt"
	"path"
	"strings"
)

// Pattern is matched by whole names, with upper and lower case told apart:
// * stands for any run of characters, none and '/' among them, ? for any one,
// [a-z] and [^a-z] for one of a set, and \ before a character for itself. That is
// path.Match, but for '/': span names such as "PUT /import" are no paths.
//
// The zero Pattern matches the empty name only.
type Pattern struct {
	kind kind
	text string
}

type kind uint8

// Most patterns are of the first four kinds, which cost next to nothing.
const (
	exact    kind = iota
	prefix        // text*
	suffix        // *text
	infix         // *text*
	anything      // text is a pattern of path.Match, without '/'
)

// Parse returns the pattern that s writes.
func Parse(s string) (Pattern, error) {
	if _, err := path.Match(flat(s), ""); err != nil {
		return Pattern{}, fmt.Errorf(`pattern %q is malformed: a [ without ] or a \ at its end`, s)
	}
	body, head := strings.CutPrefix(s, "*")
	body, tail := strings.CutSuffix(body, "*")
	switch {
	case strings.ContainsAny(body, `*?[\`):
		return Pattern{anything, flat(s)}, nil
	case head && (tail || body == ""):
		return Pattern{infix, body}, nil
	case head:
		return Pattern{suffix, body}, nil
	case tail:
		return Pattern{prefix, body}, nil
	}
	return Pattern{exact, s}, nil
}

// Match tells whether name matches. It takes at most the product of both
// lengths.
func (p Pattern) Match(name string) bool {
	switch p.kind {
	case exact:
		return name == p.text
	case prefix:
		return strings.HasPrefix(name, p.text)
	case suffix:
		return strings.HasSuffix(name, p.text)
	case infix:
		return strings.Contains(name, p.text)
	}
	ok, _ := path.Match(p.text, flat(name))
	return ok
}

// flat takes away from '/' its meaning in path.Match.
func flat(s string) string { return strings.ReplaceAll(s, "/", "\x01") }

// Patterns match what one of them matches.
type Patterns []Pattern

// ParseAll returns the patterns that are well-formed.
func ParseAll(ss []string) Patterns {
	var out Patterns
	for _, s := range ss {
		if p, err := Parse(s); err == nil {
			out = append(out, p)
		}
	}
	return out
}

// Match tells whether one of them matches name.
func (ps Patterns) Match(name string) bool {
	for i := range ps {
		if ps[i].Match(name) {
			return true
		}
	}
	return false
}
