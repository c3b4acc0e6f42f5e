package check

import (
	"cmp"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
)

// Print writes the report for people. The hooks that just work are summed up unless
// all are wanted.
func (r *Report) Print(w io.Writer, allHooks bool) {
	title := "Kernel"
	if r.Tier != "" {
		title += ": " + r.Tier + " programs"
	}
	section(w, title, r.Kernel)
	if len(r.Hooks) > 0 {
		fmt.Fprintln(w, "Hooks")
		r.printHooks(w, allHooks)
	}
	section(w, "Toolstack", r.Toolstack)
	for _, t := range r.Targets {
		t.print(w)
	}
	section(w, "Sources of Observers", r.Sources)
	fmt.Fprintln(w, "Observers")
	inForce := false
	for _, o := range r.Observers {
		inForce = inForce || o.inForce()
		o.print(w)
	}
	if !inForce {
		fmt.Fprintln(w, "  none is in force, so nothing is traced: dtagent observer create name-label=dt enabled=true")
	}
	if len(r.Endpoints) > 0 {
		fmt.Fprintln(w, "Endpoints")
		for _, e := range r.Endpoints {
			e.print(w)
		}
	}
	section(w, "Agent", r.Agent)
	for _, n := range r.Notes {
		fmt.Fprintln(w, "Note:", n)
	}
	fmt.Fprintln(w, "Result:", r.result())
}

func section(w io.Writer, title string, items []Item) {
	fmt.Fprintln(w, title)
	for _, i := range items {
		i.print(w)
	}
}

// result sums it up.
func (r *Report) result() string {
	if !r.OK {
		return "dtagent cannot trace here; what is marked MISSING says what to do."
	}
	failed := 0
	for _, i := range r.all() {
		if i.State == Fails {
			failed++
		}
	}
	if failed > 0 {
		return fmt.Sprintf("all that is needed works. What is marked FAILS (%d) says what to do.", failed)
	}
	return "all that is needed works."
}

// printHooks sums up the hooks of each probe by way, and lists those that do not
// just work, those that say the same together, or all.
func (r *Report) printHooks(w io.Writer, all bool) {
	var probes []string
	for _, h := range r.Hooks {
		if !slices.Contains(probes, h.Probe) {
			probes = append(probes, h.Probe)
		}
	}
	for _, p := range probes {
		byWay := map[string]int{}
		stops := false
		for _, h := range r.Hooks {
			if h.Probe == p {
				byWay[cmp.Or(h.Way, "absent")]++
				stops = stops || h.stops()
			}
		}
		var words []string
		for _, way := range slices.Sorted(maps.Keys(byWay)) {
			if way == "absent" {
				words = append(words, fmt.Sprintf("%d not there", byWay[way]))
			} else {
				words = append(words, fmt.Sprintf("%d by %s", byWay[way], way))
			}
		}
		sum := works(p, strings.Join(words, ", "))
		if stops {
			sum = Item{Name: p, State: Fails, Needed: true, Detail: sum.Detail}
		}
		sum.print(w)
	}
	if all {
		for _, h := range r.Hooks {
			h.print(w)
		}
		return
	}
	for _, i := range together(r.Hooks) {
		if i.State != Works {
			i.print(w)
		}
	}
}
