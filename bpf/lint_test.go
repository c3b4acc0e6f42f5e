//go:build linux

package bpf

import (
	"fmt"
	"strings"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/btf"
	"github.com/go-quicktest/qt"
)

// What Linux 4.19 has: include/uapi/linux/bpf.h and kernel/bpf/verifier.c of
// that version.
const (
	maxInsns419   = 4096
	lastHelper419 = 83 // bpf_skb_ancestor_cgroup_id
	maxStack419   = 512
	maxName       = 15
	maxPerCPU     = 32 << 10 // PCPU_MIN_UNIT_SIZE: a per-CPU value has to fit in a page unit
)

var mapTypes419 = map[ebpf.MapType]bool{
	ebpf.Hash: true, ebpf.Array: true, ebpf.ProgramArray: true, ebpf.PerfEventArray: true, ebpf.PerCPUHash: true,
	ebpf.PerCPUArray: true, ebpf.StackTrace: true, ebpf.CGroupArray: true, ebpf.LRUHash: true, ebpf.LRUCPUHash: true,
	ebpf.LPMTrie: true, ebpf.ArrayOfMaps: true, ebpf.HashOfMaps: true,
}

// lint419 returns everything in an object that Linux 4.19 refuses.
func lint419(spec *ebpf.CollectionSpec) (wrong []string) {
	say := func(format string, args ...any) { wrong = append(wrong, fmt.Sprintf(format, args...)) }
	for name, m := range spec.Maps {
		if strings.HasPrefix(name, ".") {
			say("map %s: 4.19 has no global data", name)
			continue
		}
		if !strings.HasPrefix(name, "dt_") || len(name) > maxName {
			say("map %s: name", name)
		}
		if !mapTypes419[m.Type] {
			say("map %s: type %s", name, m.Type)
		}
		if m.Flags != 0 {
			say("map %s: flags %#x", name, m.Flags)
		}
		if m.KeySize > maxStack419 || m.KeySize == 0 {
			say("map %s: key of %d bytes", name, m.KeySize)
		}
		if m.Type == ebpf.PerCPUArray && m.ValueSize > maxPerCPU {
			say("map %s: per-CPU value of %d bytes", name, m.ValueSize)
		}
	}
	for name, p := range spec.Programs {
		if !strings.HasPrefix(name, "dt_") || len(name) > maxName {
			say("program %s: name", name)
		}
		if p.Type != ebpf.TracePoint && p.Type != ebpf.RawTracepoint && p.Type != ebpf.Kprobe {
			say("program %s: type %s", name, p.Type)
		}
		if p.License != "GPL" {
			say("program %s: licence %q", name, p.License)
		}
		for _, w := range lintInsns419(p.Instructions) {
			say("program %s: %s", name, w)
		}
	}
	return wrong
}

// lintInsns419 checks a program with its subprograms, as they are laid one
// after the other.
func lintInsns419(insns asm.Instructions) (wrong []string) {
	say := func(format string, args ...any) { wrong = append(wrong, fmt.Sprintf(format, args...)) }
	var size asm.RawInstructionOffset
	for it := insns.Iterate(); it.Next(); {
		ins := it.Ins
		size = it.Offset + asm.RawInstructionOffset(ins.Size()/asm.InstructionSize)
		op := ins.OpCode
		switch class := op.Class(); {
		case class == asm.Jump32Class:
			say("%d: %v: no 32-bit jumps", it.Offset, ins)
		case class == asm.JumpClass && ins.IsFunctionCall():
			// bpf to bpf, 4.16
		case class == asm.JumpClass && op.JumpOp() == asm.Call:
			if ins.Src == asm.PseudoKfuncCall {
				say("%d: %v: no kernel functions", it.Offset, ins)
			} else if ins.Constant > lastHelper419 || ins.Constant <= 0 {
				say("%d: helper %v", it.Offset, asm.BuiltinFunc(ins.Constant))
			}
		case class == asm.StXClass && op.Mode() == asm.AtomicMode:
			if op.AtomicOp() != asm.AddAtomic {
				say("%d: %v: the only atomic is add", it.Offset, ins)
			}
		case class.IsALU() && op.ALUOp() > asm.Swap:
			say("%d: %v: opcode of ISA v4", it.Offset, ins)
		case class.IsLoad() && op.Mode() == asm.MemSXMode:
			say("%d: %v: sign-extending load", it.Offset, ins)
		}
		base := ins.Dst
		if op.Class().IsLoad() {
			base = ins.Src
		}
		if (op.Class().IsLoad() || op.Class().IsStore()) && base == asm.RFP && ins.Offset < -maxStack419 {
			say("%d: %v: beyond the stack", it.Offset, ins)
		}
	}
	if size > maxInsns419 {
		say("%d instructions", size)
	}
	return append(wrong, lintFlow419(insns)...)
}

// lintFlow419 walks as check_cfg of 4.19 does: no jump may lead back to an
// instruction that is still on the path to it, and none may be out of reach. A
// jump to a lower address is no harm as such.
func lintFlow419(insns asm.Instructions) (wrong []string) {
	var (
		byLabel  = map[string]int{}
		byOffset = map[asm.RawInstructionOffset]int{}
		offset   = make([]asm.RawInstructionOffset, len(insns))
	)
	for it := insns.Iterate(); it.Next(); {
		if s := it.Ins.Symbol(); s != "" {
			byLabel[s] = it.Index
		}
		byOffset[it.Offset] = it.Index
		offset[it.Index] = it.Offset
	}
	edges := func(i int) []int {
		ins := insns[i]
		op := ins.OpCode
		if !op.Class().IsJump() || op.JumpOp() == asm.Call && !ins.IsFunctionCall() {
			return []int{i + 1}
		}
		if op.JumpOp() == asm.Exit {
			return nil
		}
		to, ok := byLabel[ins.Reference()]
		if !ok {
			to, ok = byOffset[offset[i]+1+asm.RawInstructionOffset(ins.Offset)]
		}
		if !ok {
			to = -1
		}
		if op.JumpOp() == asm.Ja {
			return []int{to}
		}
		return []int{i + 1, to}
	}
	const onPath, done = 1, 2
	state := make([]int, len(insns))
	type step struct {
		at   int
		rest []int
	}
	path := []step{{0, edges(0)}}
	state[0] = onPath
	for len(path) > 0 {
		s := &path[len(path)-1]
		if len(s.rest) == 0 {
			state[s.at] = done
			path = path[:len(path)-1]
			continue
		}
		to := s.rest[0]
		s.rest = s.rest[1:]
		switch {
		case to < 0 || to >= len(insns):
			wrong = append(wrong, fmt.Sprintf("%d: %v: jump out of range", offset[s.at], insns[s.at]))
		case state[to] == onPath:
			wrong = append(wrong, fmt.Sprintf("%d: %v: back edge", offset[s.at], insns[s.at]))
		case state[to] == 0:
			state[to] = onPath
			path = append(path, step{to, edges(to)})
		}
	}
	for i, st := range state {
		if st == 0 {
			wrong = append(wrong, fmt.Sprintf("%d: %v: out of reach", offset[i], insns[i]))
			break
		}
	}
	return wrong
}

func TestLegacyRunsOnLinux419(t *testing.T) {
	objects, err := specs(Legacy)
	qt.Assert(t, qt.IsNil(err))
	for p, spec := range objects {
		for name, prog := range spec.Programs {
			spec.Programs[name] = counted(prog, 0, 0) // as it is loaded
		}
		qt.Check(t, qt.HasLen(lint419(spec), 0), qt.Commentf("probe %s", p))
		for name, prog := range spec.Programs {
			n := 0
			for i := range prog.Instructions {
				n += int(prog.Instructions[i].Size() / asm.InstructionSize)
			}
			t.Logf("%s: %d instructions", name, n)
		}
	}
}

// The modern objects need what the lint forbids: it has to notice.
func TestLintRefusesModern(t *testing.T) {
	objects, err := specs(Modern)
	qt.Assert(t, qt.IsNil(err))
	for p, spec := range objects {
		qt.Check(t, qt.Not(qt.HasLen(lint419(spec), 0)), qt.Commentf("probe %s", p))
	}
}

func TestLintCanFail(t *testing.T) {
	exit := asm.Instructions{asm.Mov.Imm(asm.R0, 0), asm.Return()}
	long := make(asm.Instructions, 0, maxInsns419+1)
	for range maxInsns419 {
		long = append(long, asm.Mov.Imm(asm.R0, 0))
	}
	for what, bad := range map[string]asm.Instructions{
		"32-bit jumps":         {asm.JEq.Imm32(asm.R1, 0, "end"), asm.Mov.Imm(asm.R0, 1), asm.Mov.Imm(asm.R0, 0).WithSymbol("end"), asm.Return()},
		"helper":               append(asm.Instructions{asm.FnRingbufOutput.Call()}, exit...),
		"helper ":              append(asm.Instructions{asm.FnProbeReadUser.Call()}, exit...),
		"back edge":            {asm.Mov.Imm(asm.R0, 0).WithSymbol("again"), asm.JNE.Imm(asm.R1, 0, "again"), asm.Return()},
		"back edge ":           {asm.Mov.Imm(asm.R0, 0), {OpCode: asm.OpCode(asm.JumpClass).SetJumpOp(asm.Ja), Offset: -2}, asm.Return()},
		"only atomic":          append(asm.Instructions{asm.FetchAdd.Mem(asm.RFP, asm.R1, asm.DWord, -8)}, exit...),
		"only atomic ":         append(asm.Instructions{asm.CmpXchg.Mem(asm.RFP, asm.R1, asm.DWord, -8)}, exit...),
		"out of reach":         {asm.Mov.Imm(asm.R0, 0), asm.Return(), asm.Mov.Imm(asm.R0, 0), asm.Return()},
		"out of range":         {asm.Mov.Imm(asm.R0, 0)},
		"recursion: back edge": {asm.Mov.Imm(asm.R0, 0).WithSymbol("self"), asm.Call.Label("self"), asm.Return()},
		"beyond":               append(asm.Instructions{asm.StoreMem(asm.RFP, -520, asm.R1, asm.DWord)}, exit...),
		"beyond ":              append(asm.Instructions{asm.LoadMem(asm.R1, asm.RFP, -520, asm.DWord)}, exit...),
		"instructions":         append(long, asm.Return()),
		"sign-extending":       append(asm.Instructions{asm.LoadMemSX(asm.R1, asm.RFP, -8, asm.Word)}, exit...),
	} {
		wrong := strings.Join(lintInsns419(bad), "\n")
		qt.Check(t, qt.StringContains(wrong, strings.TrimSpace(what[strings.Index(what, ":")+1:])), qt.Commentf("%s", what))
	}
	good := asm.Instructions{
		asm.JEq.Imm(asm.R1, 0, "end"), asm.StoreXAdd(asm.RFP, asm.R1, asm.DWord), asm.FnProbeRead.Call(),
		asm.Mov.Imm(asm.R0, 0).WithSymbol("end"), asm.Return(),
	}
	qt.Check(t, qt.HasLen(lintInsns419(good), 0))
	// A shared end that lies before the jump to it is no loop.
	back := asm.Instructions{
		asm.JEq.Imm(asm.R1, 0, "work"),
		asm.Mov.Imm(asm.R0, 0).WithSymbol("end"), asm.Return(),
		asm.Mov.Imm(asm.R2, 0).WithSymbol("work"), asm.Ja.Label("end"),
	}
	qt.Check(t, qt.HasLen(lintInsns419(back), 0))

	prog := func(p ebpf.ProgramSpec) *ebpf.CollectionSpec {
		return &ebpf.CollectionSpec{Programs: map[string]*ebpf.ProgramSpec{p.Name: &p}}
	}
	oneMap := func(m ebpf.MapSpec) *ebpf.CollectionSpec {
		return &ebpf.CollectionSpec{Maps: map[string]*ebpf.MapSpec{m.Name: &m}}
	}
	for what, bad := range map[string]*ebpf.CollectionSpec{
		"global data":     oneMap(ebpf.MapSpec{Name: ".rodata", Type: ebpf.Array, KeySize: 4, ValueSize: 8}),
		"type":            oneMap(ebpf.MapSpec{Name: "dt_x", Type: ebpf.RingBuf}),
		"name":            oneMap(ebpf.MapSpec{Name: "dt_sixteen_chars", Type: ebpf.Array, KeySize: 4}),
		"flags":           oneMap(ebpf.MapSpec{Name: "dt_x", Type: ebpf.Array, KeySize: 4, Flags: 1 << 10}),
		"key":             oneMap(ebpf.MapSpec{Name: "dt_x", Type: ebpf.Hash, KeySize: 513}),
		"per-CPU":         oneMap(ebpf.MapSpec{Name: "dt_x", Type: ebpf.PerCPUArray, KeySize: 4, ValueSize: 32<<10 + 8}),
		"program x: name": prog(ebpf.ProgramSpec{Name: "x", Type: ebpf.TracePoint, License: "GPL", Instructions: exit}),
		"type ":           prog(ebpf.ProgramSpec{Name: "dt_x", Type: ebpf.Tracing, License: "GPL", Instructions: exit}),
		"licence":         prog(ebpf.ProgramSpec{Name: "dt_x", Type: ebpf.TracePoint, Instructions: exit}),
	} {
		wrong := strings.Join(lint419(bad), "\n")
		qt.Check(t, qt.StringContains(wrong, strings.TrimSpace(what)), qt.Commentf("%s", what))
	}
}

// programTypes are those of the programs that are attached in each way.
var programTypes = map[Way]ebpf.ProgramType{
	ByTracepoint: ebpf.TracePoint, ByDispatcher: ebpf.TracePoint, ByRawTracepoint: ebpf.RawTracepoint, ByKprobe: ebpf.Kprobe, ByKretprobe: ebpf.Kprobe,
}

// Each hook has its program, each program its hook.
func TestHooksAndPrograms(t *testing.T) {
	for _, tier := range []Tier{Legacy, Modern} {
		objects, err := specs(tier)
		qt.Assert(t, qt.IsNil(err))
		for _, p := range allProbes {
			used := map[string]bool{}
			for _, h := range hooks[p] {
				for _, w := range h.ways {
					used[w.program] = true
					spec := objects[p].Programs[w.program]
					qt.Assert(t, qt.IsNotNil(spec), qt.Commentf("%s", h))
					qt.Check(t, qt.Equals(spec.Type, programTypes[w.by]))
				}
			}
			for _, d := range dispatchers[p] {
				program := d.ways[0].program
				used[program] = true
				qt.Check(t, qt.IsNotNil(objects[p].Programs[program]), qt.Commentf("%s", d))
				qt.Check(t, qt.IsNotNil(objects[p].Maps[d.table]), qt.Commentf("%s", d))
			}
			qt.Check(t, qt.HasLen(objects[p].Programs, len(used)), qt.Commentf("%s tier, probe %s", tier, p))
		}
	}
}

// Legacy objects carry no CO-RE relocation: there is nothing to resolve it with.
func TestLegacyHasNoRelocations(t *testing.T) {
	objects, err := specs(Legacy)
	qt.Assert(t, qt.IsNil(err))
	for _, spec := range objects {
		for name, p := range spec.Programs {
			for i := range p.Instructions {
				qt.Check(t, qt.IsNil(btf.CORERelocationMetadata(&p.Instructions[i])), qt.Commentf("%s", name))
			}
		}
	}
}

// specs returns the objects of a tier.
func specs(t Tier) (map[Probe]*ebpf.CollectionSpec, error) {
	out := map[Probe]*ebpf.CollectionSpec{}
	for _, p := range allProbes {
		spec, err := specOf(t, p)
		if err != nil {
			return nil, err
		}
		out[p] = spec
	}
	return out, nil
}
