package glob

import (
	"path"
	"strings"
	"testing"

	"github.com/go-quicktest/qt"
)

func TestMatch(t *testing.T) {
	for _, c := range []struct {
		pattern, name string
		want          bool
	}{
		{"VM.*", "VM.start", true}, {"VM.*", "VM.", true}, {"VM.*", "Async.VM.start", false}, {"*VM.*", "Async.VM.start", true}, {"*.start", "VM.start", true},
		{"*.start", "VM.start2", false}, {"VM.start", "VM.start", true}, {"VM.start", "VM.start2", false}, {"vm.*", "VM.start", false},
		{"GET *", "GET /a/b/c", true}, {"GET?/a*", "GET /a/b", true}, {"GET /*/c", "GET /a/b/c", true}, {"GET /a", "GET /a/b", false}, {"*/*", "ab", false},
		{"*", "", true}, {"**", "a/b", true}, {"", "", true}, {"", "a", false}, {"?", "é", true}, {"?", "", false},
		{"[A-Z]*_plug", "VBD_plug", true}, {"[^A-Z]*", "VBD_plug", false}, {`\*`, "*", true}, {`\*`, "a", false}, {`a\**`, "a*b", true}, {`a\*`, "a*", true}, {`a\*`, `a\b`, false},
		{"a**b", "a/x/b", true},
	} {
		p, err := Parse(c.pattern)
		qt.Assert(t, qt.IsNil(err))
		qt.Check(t, qt.Equals(p.Match(c.name), c.want), qt.Commentf("%q %q", c.pattern, c.name))
	}
	for _, s := range []string{"[", "a[b", `\`, "[]", "[a-]", "ok*[", "x/[/"} {
		_, err := Parse(s)
		qt.Check(t, qt.ErrorMatches(err, `pattern ".*" is malformed: .*`), qt.Commentf("%q", s))
	}
	ps := ParseAll([]string{"a*", "[", "b"})
	qt.Check(t, qt.HasLen(ps, 2))
	qt.Check(t, qt.IsTrue(ps.Match("b") && ps.Match("ax") && !ps.Match("[")))
	qt.Check(t, qt.IsFalse(Patterns(nil).Match("")))

	// Many stars cost no more than length times length: else this would not end.
	p, err := Parse(strings.Repeat("*a", 2000) + "b")
	qt.Assert(t, qt.IsNil(err))
	qt.Check(t, qt.IsFalse(p.Match(strings.Repeat("a", 20_000))))
}

// FuzzMatch: without '/' it is path.Match.
func FuzzMatch(f *testing.F) {
	for _, s := range []string{"*", "a*", "*a", "*a*", "a?", `\*`, "[a-c]*", "a[", "**", `*\`, `\**`} {
		f.Add(s, "abc")
	}
	f.Fuzz(func(t *testing.T, pattern, name string) {
		if strings.Contains(pattern+name, "\x01") { // stands for '/'
			return
		}
		p, err := Parse(pattern)
		want, wantErr := path.Match(flat(pattern), flat(name))
		if (err == nil) != (wantErr == nil) && err == nil {
			t.Fatalf("%q: %v, path.Match says %v", pattern, err, wantErr)
		}
		if err == nil && p.Match(name) != want {
			t.Fatalf("%q %q: path.Match says %v", pattern, name, want)
		}
	})
}
