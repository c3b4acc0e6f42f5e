package tracecontext

import (
	"bytes"
	"encoding/hex"
	"testing"

	"github.com/go-quicktest/qt"
)

func TestParseTraceparent(t *testing.T) {
	const trace, span = "9dda2bd691624f9e2fce578f3a941b87", "d3ee4b91c27d703a"
	for _, test := range []struct {
		name, in    string
		trace, span string // "" for no context
	}{
		{"as xapi sends it", "00-" + trace + "-" + span + "-01", trace, span},
		{"flags are ignored", "00-" + trace + "-" + span + "-00", trace, span},
		{"any flags", "00-" + trace + "-" + span + "-zz top", trace, span},
		{"no flags", "00-" + trace + "-" + span + "-", trace, span},
		{"blanks around", " \t00-" + trace + "-" + span + "-01\r\n", trace, span},
		{"upper case", "00-9DDA2BD691624F9E2FCE578F3A941B87-D3EE4B91C27D703A-01", trace, span},
		{"digits behind the trace id", "00-" + trace + "abcdef-" + span + "-01", trace, span},
		{"garbage behind the trace id", "00-" + trace + "xyz-" + span + "-01", trace, span},
		{"short second half", "00-9dda2bd691624f9eff-" + span + "-01", "9dda2bd691624f9e00000000000000ff", span},
		{"garbage in the second half", "00-9dda2bd691624f9effxff-" + span + "-01", "9dda2bd691624f9e00000000000000ff", span},
		{"short span id", "00-" + trace + "-1f-01", trace, "000000000000001f"},
		{"garbage behind the span id", "00-" + trace + "-1fxyz-01", trace, "000000000000001f"},
		{"zeros before the span id", "00-" + trace + "-0000" + span + "-01", trace, span},
		{"underscore", "00-" + trace + "-1_f-01", trace, "000000000000001f"},

		{"empty", "", "", ""},
		{"three parts", "00-" + trace + "-" + span, "", ""},
		{"five parts", "00-" + trace + "-" + span + "-01-x", "", ""},
		{"version 01", "01-" + trace + "-" + span + "-01", "", ""},
		{"version 0", "0-" + trace + "-" + span + "-01", "", ""},
		{"version ff", "ff-" + trace + "-" + span + "-01", "", ""},
		{"blank in the version", "00 -" + trace + "-" + span + "-01", "", ""},
		{"zero trace id", "00-00000000000000000000000000000000-" + span + "-01", "", ""},
		{"zero span id", "00-" + trace + "-0000000000000000-01", "", ""},
		{"trace id of one half", "00-9dda2bd691624f9e-" + span + "-01", "", ""},
		{"short trace id", "00-9dda-" + span + "-01", "", ""},
		{"no trace id", "00--" + span + "-01", "", ""},
		{"trace id is no hex", "00-xyz-" + span + "-01", "", ""},
		{"span id above 64 bits", "00-" + trace + "-1" + span + "-01", "", ""},
		{"span id is no hex", "00-" + trace + "-x-01", "", ""},
		{"no span id", "00-" + trace + "--01", "", ""},
		{"masked", "00-********************************-****************-01", "", ""},
	} {
		t.Run(test.name, func(t *testing.T) {
			c, ok := ParseTraceparent([]byte(test.in))
			qt.Assert(t, qt.Equals(ok, test.trace != ""))
			qt.Check(t, qt.Equals(c.IsValid(), ok))
			if ok {
				qt.Check(t, qt.Equals(c.TraceID.String(), test.trace))
				qt.Check(t, qt.Equals(c.SpanID.String(), test.span))
			} else {
				qt.Check(t, qt.Equals(c, Context{}))
			}
		})
	}
}

// No prefix of a traceparent is one, except where only flags are missing.
func TestParseTraceparentCut(t *testing.T) {
	whole := []byte("00-9dda2bd691624f9e2fce578f3a941b87-d3ee4b91c27d703a-01")
	want, _ := ParseTraceparent(whole)
	for n := range whole {
		c, ok := ParseTraceparent(whole[:n:n])
		if ok {
			qt.Check(t, qt.Equals(c, want))
			qt.Check(t, qt.IsTrue(n >= len(whole)-2))
		}
	}
}

func FuzzParseTraceparent(f *testing.F) {
	f.Add([]byte("00-9dda2bd691624f9e2fce578f3a941b87-d3ee4b91c27d703a-01"))
	f.Add([]byte("00-9DDA2BD691624F9EFF_0-1-"))
	f.Add([]byte("----"))
	f.Fuzz(func(t *testing.T, b []byte) {
		c, ok := ParseTraceparent(b)
		if ok != c.IsValid() {
			t.Fatalf("%q: %v %v", b, c, ok)
		}
		if !ok {
			return
		}
		// What xapi sends on is read the same.
		again, ok := ParseTraceparent([]byte("00-" + hex.EncodeToString(c.TraceID[:]) + "-" + hex.EncodeToString(c.SpanID[:]) + "-01"))
		if !ok || again != c {
			t.Fatalf("%q: %v, then %v", b, c, again)
		}
	})
}

func TestNoAllocation(t *testing.T) {
	traceparent := []byte("00-9dda2bd691624f9e2fce578f3a941b87-d3ee4b91c27d703a-01")
	baggage := Baggage("user=42; span.depth=3;other=x")
	n := testing.AllocsPerRun(100, func() {
		ParseTraceparent(traceparent)
		baggage.Depth()
		for k, v := range baggage.All() {
			_, _ = k, v
		}
		TrimTracestate(baggage)
	})
	qt.Assert(t, qt.Equals(n, 0))
}

func BenchmarkParseTraceparent(b *testing.B) {
	traceparent := []byte("00-9dda2bd691624f9e2fce578f3a941b87-d3ee4b91c27d703a-01")
	b.ReportAllocs()
	for b.Loop() {
		ParseTraceparent(traceparent)
	}
}

func FuzzTrimTracestate(f *testing.F) {
	f.Add([]byte("a=b,vendor=x y"))
	f.Add(bytes.Repeat([]byte("key=value,"), 100))
	f.Add([]byte(" \t,,=\x00"))
	f.Fuzz(func(t *testing.T, b []byte) {
		out := TrimTracestate(bytes.Clone(b))
		if len(out) > len(b) || !bytes.Contains(b, out) {
			t.Fatalf("%q of %q", out, b)
		}
	})
}
