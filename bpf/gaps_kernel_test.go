//go:build linux

package bpf

import (
	"testing"

	"github.com/cilium/ebpf"
	"github.com/go-quicktest/qt"
)

// TestGaps: what is counted as lost is seen at once, while something is attached.
func TestGaps(t *testing.T) {
	for _, tier := range []Tier{Legacy, Modern} {
		t.Run(tier.String(), func(t *testing.T) {
			s, err := openKernel(t, tier, Options{}).Load()
			qt.Assert(t, qt.IsNil(err))
			defer func() { qt.Check(t, qt.IsNil(s.Close())) }()
			count := func(c lossCause, n uint64) {
				last := ebpf.MustPossibleCPU() - 1
				qt.Assert(t, qt.IsNil(s.maps[lossMap].Put(uint32(last*perCPULosses+int(Process-1)*int(kernelCauses)+int(c)), n)))
			}
			s.active.Store(1) // as Attach does; nothing is a target
			qt.Check(t, qt.Equals(s.Gaps(), 0))
			count(lossClones, 3)
			qt.Check(t, qt.Equals(s.Gaps(), 3))
			count(lossEnter, 5) // says so in its record
			qt.Check(t, qt.Equals(s.Gaps(), 3))
			count(lossOutput, 2)
			qt.Check(t, qt.Equals(s.Gaps(), 5))
			s.active.Store(0)
			count(lossOutput, 9)
			qt.Check(t, qt.Equals(s.Gaps(), 5))
			asked := &lossCounters{m: s.losses.m, cpus: s.losses.cpus} // as before Linux 5.5
			for c := range kernelCauses {
				qt.Check(t, qt.Equals(asked.count(Process, c), s.losses.count(Process, c)))
			}
			qt.Check(t, qt.Equals(asked.count(Process, lossOutput), 9))
		})
	}
}
