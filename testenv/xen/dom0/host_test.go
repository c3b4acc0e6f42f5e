//go:build linux

package dom0

import (
	"os"
	"strings"
	"testing"
)

// needDom0 skips a test that this machine cannot run.
func needDom0(t testing.TB) {
	t.Helper()
	b, err := os.ReadFile("/proc/xen/capabilities")
	if err != nil || !strings.Contains(string(b), "control_d") {
		t.Skip("needs the dom0 of a Xen host: make xentest")
	}
}
