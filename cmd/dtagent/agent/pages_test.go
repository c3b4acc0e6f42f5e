package agent

import (
	"fmt"
	"os"
	"strings"
	"testing"

	"github.com/go-quicktest/qt"
)

func TestForgetProgram(t *testing.T) {
	resident := func() (kB int) {
		t.Helper()
		b, err := os.ReadFile("/proc/self/status")
		qt.Assert(t, qt.IsNil(err))
		for line := range strings.Lines(string(b)) {
			if n, _ := fmt.Sscanf(line, "RssFile: %d kB", &kB); n == 1 {
				return kB
			}
		}
		t.Skip("needs RssFile in /proc/self/status (Linux 4.5)")
		return 0
	}
	before := resident()
	qt.Assert(t, qt.IsNil(forgetProgram()))
	after := resident()
	t.Logf("%d kB of files resident before, %d kB after", before, after)
	qt.Check(t, qt.IsTrue(after < before))
}
