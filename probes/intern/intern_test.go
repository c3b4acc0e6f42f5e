package intern

import (
	"fmt"
	"strconv"
	"strings"
	"testing"

	"github.com/go-quicktest/qt"
)

func TestInternerRepeats(t *testing.T) {
	in := New(64)
	for round := range 3 {
		for i := range 1000 {
			want := fmt.Sprint("name ", i%200)
			qt.Assert(t, qt.Equals(in.String([]byte(want)), want), qt.Commentf("round %d", round))
		}
	}
	a, b := []byte("VM.start"), []byte("VM.start")
	s := in.String(a)
	qt.Check(t, qt.Equals(testing.AllocsPerRun(100, func() { in.String(b) }), 0))
	a[0] = 'X'
	qt.Check(t, qt.Equals(s, "VM.start"))
	qt.Check(t, qt.HasLen(New(0).sets, 1))
	qt.Check(t, qt.HasLen(New(65).sets, 128/internWays))
	qt.Check(t, qt.Equals(in.String(nil), ""))
	long := strings.Repeat("x", maxInterned+1)
	qt.Check(t, qt.Equals(in.String([]byte(long)), long))
}

// Names that repeat cost nothing, even while somebody sends ever new ones: as
// long as those do not come more often, they push each other out.
func TestInternerUnderAttack(t *testing.T) {
	in := New(4096)
	var names [][]byte
	for i := range 300 { // methods, paths and queues of a dom0
		names = append(names, fmt.Appendf(nil, "VM.method_%d", i))
	}
	new, n := make([]byte, 0, 64), 0
	strange := func() {
		n++
		new = strconv.AppendInt(new[:0], int64(n), 10)
		in.String(new)
	}
	round := func() {
		for _, b := range names {
			in.String(b)
			in.String(b)
			strange()
		}
	}
	for range 20 {
		round()
	}
	// What ordinary traffic costs is what a round costs beyond its strange names:
	// each of those is a string.
	perRound := testing.AllocsPerRun(50, round)
	t.Logf("%.1f allocations for %d names twice, and %d strange ones", perRound, len(names), len(names))
	extra := perRound - float64(len(names))
	qt.Check(t, qt.IsTrue(extra <= float64(len(names))/10), qt.Commentf("%.1f allocations for ordinary names", extra))

	quiet := testing.AllocsPerRun(50, func() {
		for _, b := range names {
			in.String(b)
		}
	})
	// Five of them may share a set, and then push each other out.
	qt.Check(t, qt.IsTrue(quiet <= float64(len(names))/10), qt.Commentf("%.1f allocations", quiet))
}

// An Interner holds no more strings than it was made for.
func TestInternerBound(t *testing.T) {
	in := New(64)
	var b []byte
	for i := range 100_000 {
		b = fmt.Appendf(b[:0], "%d", i)
		in.String(b)
	}
	held := 0
	for i := range in.sets {
		for _, s := range in.sets[i].strings {
			if s != "" {
				held++
			}
		}
	}
	qt.Check(t, qt.Equals(held, 64))
}

func BenchmarkInterner(b *testing.B) {
	in := New(4096)
	var names [][]byte
	for i := range 300 {
		names = append(names, fmt.Appendf(nil, "VM.method_%d", i))
	}
	b.ReportAllocs()
	for i := 0; b.Loop(); i++ {
		in.String(names[i%len(names)])
	}
}
