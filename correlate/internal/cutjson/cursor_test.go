package cutjson

import (
	"bytes"
	"encoding/json"
	"strings"
	"testing"

	"github.com/go-quicktest/qt"
)

func TestWalk(t *testing.T) {
	c := At([]byte(` { "a" : [1, "x\"]", {"b": null}, true] , "n":42,"s":"51","e\u0061":"v","z":-1.5e3 } tail`))
	qt.Assert(t, qt.IsTrue(c.Enter('{')))
	key, ok := c.Key()
	qt.Assert(t, qt.IsTrue(ok))
	qt.Check(t, qt.Equals(string(key), "a"))
	qt.Assert(t, qt.IsTrue(c.Enter('[')))
	elements := 0
	for c.More() {
		qt.Assert(t, qt.IsTrue(c.Skip()))
		elements++
	}
	qt.Check(t, qt.Equals(elements, 4))
	_, ok = c.Key()
	qt.Assert(t, qt.IsTrue(ok))
	n, ok := c.Uint()
	qt.Check(t, qt.IsTrue(ok && n == 42))
	_, ok = c.Key()
	qt.Assert(t, qt.IsTrue(ok))
	n, ok = c.Uint()
	qt.Check(t, qt.IsTrue(ok && n == 51))
	key, ok = c.Key()
	qt.Assert(t, qt.IsTrue(ok && Is(key, "ea") && !Is(key, "eb")))
	value, ok := c.String()
	qt.Check(t, qt.IsTrue(ok && string(value) == "v"))
	_, ok = c.Key()
	qt.Assert(t, qt.IsTrue(ok && !c.Null() && c.Skip()))
	_, ok = c.Key()
	qt.Check(t, qt.IsFalse(ok))
	qt.Check(t, qt.IsFalse(c.Cut()))
	qt.Check(t, qt.Equals(string(c.Rest()), " tail"))
}

// A value that is skipped whole is never cut, and a prefix of it always is.
func TestSkipCut(t *testing.T) {
	for _, text := range []string{`"a\\\"b"`, `{"a":[1,{"b":"}"}],"c":"]"}`, `[]`, `[[[["x"]]],{}]`} {
		c := At([]byte(text))
		qt.Check(t, qt.IsTrue(c.Skip()))
		qt.Check(t, qt.Equals(c.Pos(), len(text)))
		for n := range text {
			c := At([]byte(text[:n]))
			qt.Check(t, qt.IsFalse(c.Skip()), qt.Commentf("%s", text[:n]))
			qt.Check(t, qt.IsTrue(c.Cut()), qt.Commentf("%s", text[:n]))
		}
	}
}

func TestUint(t *testing.T) {
	for _, test := range []struct {
		in string
		n  uint64
		ok bool
	}{
		{"0,", 0, true},
		{"18446744073709551615]", 1<<64 - 1, true},
		{"18446744073709551616]", 0, false},
		{"99999999999999999999999]", 0, false},
		{`"51"`, 51, true},
		{`"51x"`, 0, false},
		{`""`, 0, false},
		{"-1,", 0, false},
		{"12", 0, false}, // the next digit may be behind the cut
		{`"12`, 0, false},
		{"", 0, false},
	} {
		c := At([]byte(test.in))
		n, ok := c.Uint()
		qt.Check(t, qt.Equals(ok, test.ok), qt.Commentf("%s", test.in))
		if ok {
			qt.Check(t, qt.Equals(n, test.n))
		}
	}
}

func TestAppendUnescaped(t *testing.T) {
	for _, test := range []struct{ raw, want string }{
		{``, ""},
		{`plain`, "plain"},
		{`a\nb\t\r\b\f\/\\\"`, "a\nb\t\r\b\f/\\\""},
		{`\u0041\u00e9\u20ac`, "Aé€"},
		{`\ud83d\ude00`, "😀"},
		{`\ud83dx`, "\ufffdx"},
		{`\udc00`, "\ufffd"},
		{`cut\`, "cut"},
		{`cut\u00`, "cut"},
		{`\uzzzzx`, "\ufffdx"},
		{`\q`, "q"},
	} {
		qt.Check(t, qt.Equals(string(AppendUnescaped(nil, []byte(test.raw))), test.want))
	}
}

func TestLoggedStrings(t *testing.T) {
	// The log doubles the backslashes of ["a\"b","c\\"] rest
	c := AtLogged([]byte(`["a\\"b","c\\\\"] rest`))
	qt.Assert(t, qt.IsTrue(c.Skip()))
	qt.Check(t, qt.Equals(string(c.Rest()), " rest"))
}

// What encoding/json takes is walked to its end, and its strings mean the same.
func FuzzCursor(f *testing.F) {
	f.Add([]byte(`{"method":"VM.start","params":[{"id":"x","debug_info":"a\nb\u0041\\"}],"id":77}`))
	f.Add([]byte(`[1,"\ud83d\ude00",null,true,[],{}]`))
	f.Add([]byte(`{"a`))
	f.Fuzz(func(t *testing.T, b []byte) {
		c := At(b)
		walk(&c, 0)
		c = AtLogged(b)
		c.Skip()
		c = At(b)
		whole := c.Skip()
		b = bytes.TrimSpace(b)
		if len(b) == 0 || !json.Valid(b) {
			return
		}
		if strings.IndexByte(`{["`, b[0]) >= 0 && !whole {
			t.Fatalf("%q was not skipped", b)
		}
		var s string
		if b[0] == '"' && json.Unmarshal(b, &s) == nil {
			c = At(b)
			raw, ok := c.String()
			if got := AppendUnescaped(nil, raw); !ok || string(bytes.ToValidUTF8(got, []byte("\ufffd"))) != string(bytes.ToValidUTF8([]byte(s), []byte("\ufffd"))) {
				if !bytes.ContainsRune(got, '\ufffd') && !strings.ContainsRune(s, '\ufffd') {
					t.Fatalf("%q: %q, not %q", b, got, s)
				}
			}
		}
	})
}

// walk goes through everything that can be gone through.
func walk(c *Cursor, depth int) {
	switch {
	case depth > 50:
		c.Skip()
	case c.Enter('{'):
		for {
			if _, ok := c.Key(); !ok {
				return
			}
			walk(c, depth+1)
		}
	case c.Enter('['):
		for pos := -1; c.Pos() > pos && c.More(); {
			pos = c.Pos()
			walk(c, depth+1)
		}
	case c.Peek() == '"':
		c.String()
	default:
		if _, ok := c.Uint(); !ok && !c.Null() {
			c.Skip()
		}
	}
}
