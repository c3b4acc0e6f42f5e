package tracecontext

import (
	"fmt"
	"strings"
	"testing"

	"github.com/go-quicktest/qt"
)

func TestBaggage(t *testing.T) {
	for _, test := range []struct {
		in    string
		pairs []string
		depth int // -1: none
	}{
		{"", nil, -1},
		{"span.depth=11", []string{"span.depth→11"}, 11},
		{"user=42; span.depth = 3 ;other=x", []string{"user→42", "span.depth→3", "other→x"}, 3},
		{"a=1,b=2", []string{"a→1,b=2"}, -1}, // not the W3C's separator
		{"a=b=c", []string{"a→b=c"}, -1},
		{"a=%20", []string{"a→%20"}, -1},
		{"a;b=1;;c=", []string{"b→1", "c→"}, -1},
		{"a=1;a=2", []string{"a→1", "a→2"}, -1},
		{"span.depth=x", []string{"span.depth→x"}, -1},
		{"span.depth=;span.depth=3", []string{"span.depth→", "span.depth→3"}, -1},
		{"span.depth=99999999999999999999", []string{"span.depth→99999999999999999999"}, -1},
		{"span.depth=-1", []string{"span.depth→-1"}, -1},
	} {
		var pairs []string
		for k, v := range Baggage(test.in).All() {
			pairs = append(pairs, fmt.Sprintf("%s→%s", k, v))
		}
		qt.Check(t, qt.DeepEquals(pairs, test.pairs), qt.Commentf("%q", test.in))
		depth, ok := Baggage(test.in).Depth()
		qt.Check(t, qt.Equals(ok, test.depth >= 0), qt.Commentf("%q", test.in))
		if ok {
			qt.Check(t, qt.Equals(depth, test.depth))
		}
	}
}

func TestTrimTracestate(t *testing.T) {
	member := "vendor=" + strings.Repeat("x", 92) + "," // 100 bytes
	for _, test := range []struct{ in, want string }{
		{"", ""},
		{"  congo=t61rcWkgMzE,rojo=00f067aa0ba902b7 ", "congo=t61rcWkgMzE,rojo=00f067aa0ba902b7"},
		{strings.Repeat("y", MaxTracestate), strings.Repeat("y", MaxTracestate)},
		{strings.Repeat("y", MaxTracestate+1), ""},
		{strings.Repeat(member, 6), strings.Repeat(member, 5)[:499]},
		{strings.Repeat("y", MaxTracestate) + ",z=1", strings.Repeat("y", MaxTracestate)},
	} {
		qt.Check(t, qt.Equals(string(TrimTracestate([]byte(test.in))), test.want))
	}
}

func FuzzBaggage(f *testing.F) {
	f.Add([]byte("user=42; span.depth=3;other=x"))
	f.Add([]byte(";;=;a"))
	f.Fuzz(func(t *testing.T, b []byte) {
		size := 0
		for k, v := range Baggage(b).All() {
			size += len(k) + len(v)
		}
		Baggage(b).Depth()
		if s := TrimTracestate(b); size > len(b) || len(s) > MaxTracestate {
			t.Fatal(size, len(s), len(b))
		}
	})
}
