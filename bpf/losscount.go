//go:build linux

package bpf

import (
	"fmt"
	"sync/atomic"
	"unsafe"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/features"
	"golang.org/x/sys/unix"
)

// lossMap is the map with the counters of losses, those of each CPU side by side.
const lossMap = "dt_loss"

// lossCounters reads lossMap without asking the kernel where that is possible (Linux
// 5.5). It is cheaper, but that is not what it is for: while a system call has a map's
// value, kernels skip programs of tracepoints on that CPU, also those of other threads
// where one of them may take the CPU meanwhile.
type lossCounters struct {
	m    *ebpf.Map
	cpus int
	mem  []byte // the map's values; nil: they have to be asked for
}

// perCPULosses is the number of counters of a CPU.
const perCPULosses = numProbes * int(kernelCauses)

// fitLossMap gives the map as many counters as this machine needs, readable in the
// way that this kernel has.
func fitLossMap(spec *ebpf.MapSpec) error {
	cpus, err := ebpf.PossibleCPU()
	if err != nil {
		return fmt.Errorf("number of CPUs: %w", err)
	}
	spec.MaxEntries = uint32(cpus * perCPULosses)
	if features.HaveMapFlag(features.BPF_F_MMAPABLE) == nil {
		spec.Flags |= unix.BPF_F_MMAPABLE
	}
	return nil
}

func newLossCounters(m *ebpf.Map) (*lossCounters, error) {
	l := &lossCounters{m: m, cpus: int(m.MaxEntries()) / perCPULosses}
	if m.Flags()&unix.BPF_F_MMAPABLE == 0 {
		return l, nil
	}
	mem, err := unix.Mmap(m.FD(), 0, 8*int(m.MaxEntries()), unix.PROT_READ, unix.MAP_SHARED)
	if err != nil {
		return nil, fmt.Errorf("map %s: %w", lossMap, err)
	}
	l.mem = mem
	return l, nil
}

// count returns what was lost until now on all CPUs.
func (l *lossCounters) count(p Probe, c lossCause) (n uint64) {
	for cpu := range l.cpus {
		k := uint32(cpu*perCPULosses + int(p-1)*int(kernelCauses) + int(c))
		if l.mem != nil {
			n += atomic.LoadUint64((*uint64)(unsafe.Pointer(&l.mem[8*k])))
			continue
		}
		var v uint64
		if l.m.Lookup(k, &v) == nil {
			n += v
		}
	}
	return n
}

func (l *lossCounters) close() error {
	if l == nil || l.mem == nil {
		return nil
	}
	mem := l.mem
	l.mem = nil
	return unix.Munmap(mem)
}
