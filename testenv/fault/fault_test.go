//go:build linux

package fault

import (
	"testing"

	"github.com/go-quicktest/qt"
)

// TestOpenUnknown names the kinds there are.
func TestOpenUnknown(t *testing.T) {
	_, err := Open(t.Context(), "floppy", Options{})
	qt.Assert(t, qt.ErrorMatches(err, `fault: no kind "floppy"; there are throttle, dm-delay, .*`))
	_, err = Open(t.Context(), "nbd", Options{Size: 4096})
	qt.Assert(t, qt.ErrorMatches(err, `fault nbd: size 4096 is no multiple of 1 MiB`))
}
