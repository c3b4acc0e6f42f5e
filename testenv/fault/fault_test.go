//go:build linux

package fault

import (
	"slices"
	"strings"
	"testing"

	"github.com/go-quicktest/qt"

	"github.com/xenserver/dtagent/testenv/vm"
)

// TestOpenUnknown names the kinds there are.
func TestOpenUnknown(t *testing.T) {
	_, err := Open(t.Context(), "floppy", Options{})
	qt.Assert(t, qt.ErrorMatches(err, `fault: no kind "floppy"; there are throttle, dm-delay, .*`))
	_, err = Open(t.Context(), "nbd", Options{Size: 4096})
	qt.Assert(t, qt.ErrorMatches(err, `fault nbd: size 4096 is no multiple of 1 MiB`))
}

// TestGuestsHaveModules: the machines of make vmtest have what all kinds need.
func TestGuestsHaveModules(t *testing.T) {
	for _, k := range Kinds() {
		for _, need := range k.Needs {
			if !strings.HasPrefix(need, "CONFIG_") {
				qt.Check(t, qt.IsTrue(slices.Contains(vm.Modules, need)), qt.Commentf("%s needs %s", k.Name, need))
			}
		}
	}
}
