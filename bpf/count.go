//go:build linux

package bpf

import (
	"slices"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/btf"
)

// Kernels before 5.8 keep no statistics of programs that can be asked for, so the
// programs of the legacy tier count their runs themselves. The loader puts the
// counting before them: the modern ones do without, and cost nothing for it.

// runsMap is the name of the map with the runs of each program.
const runsMap = "dt_runs"

// newRuns makes the counters of n programs.
func newRuns(n int) (*ebpf.Map, error) {
	return ebpf.NewMap(&ebpf.MapSpec{Name: runsMap, Type: ebpf.PerCPUArray, KeySize: 4, ValueSize: 8, MaxEntries: uint32(n)})
}

// counted returns a program that adds one to an entry of a map before all else.
// A program is not interrupted by itself, so nothing atomic is needed.
func counted(p *ebpf.ProgramSpec, runs int, entry uint32) *ebpf.ProgramSpec {
	p = p.Copy()
	body := slices.Clone(p.Instructions)
	first := asm.Mov.Reg(asm.R6, asm.R1).WithSymbol(body[0].Symbol()).WithSource(body[0].Source()) // each function begins with a line
	if fn := btf.FuncMetadata(&body[0]); fn != nil {
		first = btf.WithFuncMetadata(first, fn)
		body[0] = btf.WithFuncMetadata(body[0], nil)
	}
	body[0] = body[0].WithSymbol("dt_counted")
	p.Instructions = append(asm.Instructions{
		first,
		asm.StoreImm(asm.RFP, -4, int64(entry), asm.Word),
		asm.Mov.Reg(asm.R2, asm.RFP),
		asm.Add.Imm(asm.R2, -4),
		asm.LoadMapPtr(asm.R1, runs),
		asm.FnMapLookupElem.Call(),
		asm.Mov.Reg(asm.R1, asm.R6),
		asm.JEq.Imm(asm.R0, 0, "dt_counted"),
		asm.LoadMem(asm.R2, asm.R0, 0, asm.DWord),
		asm.Add.Imm(asm.R2, 1),
		asm.StoreMem(asm.R0, 0, asm.R2, asm.DWord),
	}, body...)
	return p
}
