package check

import (
	"cmp"
	"context"
	"fmt"
	"log/slog"
	"slices"
	"strings"

	"github.com/xenserver/dtagent/bpf"
)

// Kernel is what this kernel and host allow.
type Kernel struct {
	Tier  string // of the programs; "" when no bpf.Kernel was given
	Items []Item
	Hooks []Hook
}

// Hook is one attach point of one probe.
type Hook struct {
	Item
	Probe   string `json:"probe"`
	Hook    string `json:"hook"` // group:name of the tracepoint, or what is watched by functions
	Program string `json:"program,omitempty"`
	Way     string `json:"way,omitempty"` // in which the program is attached; "": it cannot be
	At      string `json:"at,omitempty"`  // the kernel's function, where that is no tracepoint
}

// OfKernel says what bpf.Open found out, and the facts of kernel and host besides:
// what is true of this process, its capabilities and its memory limit among it. k
// may be nil; then the facts are all.
func OfKernel(k *bpf.Kernel) Kernel {
	out := Kernel{Items: host{}.facts()}
	if k != nil {
		out.Tier = k.Tier().String()
		items, hooks := fromBPF(k.Checks(), k.Hooks())
		out.Items, out.Hooks = append(out.Items, items...), hooks
	}
	out.Items = append(out.Items, netlinkItems()...)
	return out
}

// fromBPF takes over what bpf found out. The single hooks say what its sum of each
// probe's hooks says.
func fromBPF(checks []bpf.Check, found []bpf.HookCheck) (items []Item, hooks []Hook) {
	summed, failed := map[string]bool{}, map[string]bool{}
	for _, h := range found {
		sum := "hooks of " + h.Probe.String()
		summed[sum], failed[sum] = true, failed[sum] || !h.OK()
		hooks = append(hooks, hookOf(h))
	}
	for _, c := range checks {
		if c.OK && summed[c.Name] || failed[c.Name] {
			continue
		}
		i := Item{Name: c.Name, OK: c.OK, Needed: c.Needed, Detail: c.Detail, Why: c.Why, Advice: c.Advice}
		switch {
		case c.OK:
			i.State = Works
		case c.Needed:
			i.State = Fails
		default:
			i.State = Absent
		}
		items = append(items, i)
	}
	return items, hooks
}

func hookOf(c bpf.HookCheck) Hook {
	h := Hook{
		Item:  Item{Name: c.Probe.String() + ": " + c.Hook, OK: c.Way != "", Needed: !c.Optional, Why: c.Why, Advice: c.Advice},
		Probe: c.Probe.String(), Hook: c.Hook, Program: c.Program, Way: string(c.Way), At: c.Function,
	}
	if h.OK {
		h.Detail = strings.TrimSpace("by " + h.Way + " " + h.At)
	}
	switch {
	case h.OK && c.Wider:
		h.State = Wider
	case h.OK:
		h.State = Works
	case c.Optional:
		h.State = Absent
		h.Advice = cmp.Or(h.Advice, "nothing: there is nothing to watch")
	default:
		h.State = Fails
	}
	return h
}

// All returns the items and those of the hooks.
func (k Kernel) All() []Item {
	out := append([]Item{}, k.Items...)
	for _, h := range k.Hooks {
		out = append(out, h.Item)
	}
	return out
}

// together returns the items of hooks, with one for all hooks of a probe that say the
// same.
func together(hooks []Hook) []Item {
	type same struct {
		probe string
		Item
	}
	var order []same
	count, name := map[same]int{}, map[same]string{}
	for _, h := range hooks {
		s := same{h.Probe, h.Item}
		s.Name = ""
		if count[s] == 0 {
			order, name[s] = append(order, s), h.Name
		}
		count[s]++
	}
	out := make([]Item, len(order))
	for i, s := range order {
		out[i] = s.Item
		if out[i].Name = name[s]; count[s] > 1 {
			out[i].Name = fmt.Sprintf("%s: %d hooks", s.probe, count[s])
		}
	}
	return out
}

// Restrictions returns what does not just work, but for what is not there and
// nothing to do about.
func (k Kernel) Restrictions() []Item {
	var out []Item
	for _, i := range append(slices.Clone(k.Items), together(k.Hooks)...) {
		if i.State == Wider || i.State == Fails || i.State == Unknown {
			out = append(out, i)
		}
	}
	return out
}

// Log logs the restrictions, one line each.
func (k Kernel) Log(log *slog.Logger) {
	for _, i := range k.Restrictions() {
		level := slog.LevelInfo
		if i.stops() {
			level = slog.LevelError
		}
		log.Log(context.Background(), level, i.Name, "state", i.word(), "detail", i.Detail, "why", i.Why, "do", i.Advice)
	}
}
