package guest

import (
	"testing"

	"github.com/go-quicktest/qt"
)

func TestDone(t *testing.T) {
	d := Done{Kernel: Stat{Reads: 3, ReadBytes: 12288, Writes: 1, WriteBytes: 4096}}
	got, ok := ParseDone("[    1.2] random: crng init done " + d.String() + "\r\n")
	qt.Check(t, qt.IsTrue(ok))
	qt.Check(t, qt.Equals(got, d))
	for _, line := range []string{"", "Linux version 6.1", "@@domu ", "@@domu {"} {
		_, ok := ParseDone(line)
		qt.Check(t, qt.IsFalse(ok), qt.Commentf("%q", line))
	}
}

func TestSub(t *testing.T) {
	qt.Check(t, qt.Equals(Stat{5, 50, 7, 70}.Sub(Stat{2, 20, 3, 30}), Stat{3, 30, 4, 40}))
}
