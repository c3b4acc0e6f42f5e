//go:build linux

package target

import (
	"cmp"
	"slices"

	"github.com/xenserver/dtagent/probes/event"
)

// Running returns the processes that run now by the component that they are, also
// those that are one as children of others, by TGID.
func (p Proc) Running() (map[event.Component][]Process, error) {
	out := map[event.Component][]Process{}
	err := p.each(func(tgid uint32) {
		if found, ok := p.Process(tgid); ok {
			is, _ := Plan(event.AllComponents, found.Program)
			out[is] = append(out[is], found)
			return
		}
		program := p.exe(tgid)
		if is := event.ComponentOf(program); is != event.NoComponent {
			if s, ok := p.stat(tgid); ok {
				out[is] = append(out[is], Process{TGID: tgid, Start: s.start, Program: program})
			}
		}
	})
	for _, found := range out {
		slices.SortFunc(found, func(a, b Process) int { return cmp.Compare(a.TGID, b.TGID) })
	}
	return out, err
}
