//go:build linux

package bpf

import (
	"fmt"
	"strings"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
)

// HookCheck is what Open found out about one hook.
type HookCheck struct {
	Probe    Probe
	Hook     string // "syscalls:sys_enter_read"
	Program  string // that is attached, "" if none is
	Way      Way    // in which it is attached, "" if it cannot be
	Wider    bool   // a narrower way than Way does not work here
	Optional bool   // the hook of a system call that this kernel may lack
	Why      string // why not, or why not by a narrower way
	Advice   string // what to do about it
}

// OK tells whether nothing is missing: the hook works, or what it watches does
// not exist.
func (c HookCheck) OK() bool { return c.Way != "" || c.Optional }

// found is a hook of this kernel and the way to it.
type found struct {
	hook
	way
}

// findHooks notes the hooks of a probe that the kernel has, each with the
// narrowest way that works. cannot says why a way does not, if it does not.
func (k *Kernel) findHooks(tracefs string, p Probe, cannot func(way) error) (detail string, err error) {
	var lacks []string
	for _, h := range hooks[p] {
		c := HookCheck{Probe: p, Hook: h.String(), Optional: h.optional}
		has, err := hasTracepoint(tracefs, h.group, h.name)
		switch {
		case err != nil:
			return "", fmt.Errorf("tracepoint %s: %w", h, err)
		case has:
			k.choose(&c, h, cannot)
		case h.optional:
			c.Why = "the kernel has no such tracepoint, nor the system call"
			lacks = append(lacks, h.name)
		default:
			c.Why = "the kernel has no such tracepoint"
		}
		if !c.OK() && c.Advice == "" {
			c.Advice = "the kernel needs CONFIG_FTRACE_SYSCALLS"
		}
		k.hookChecks = append(k.hookChecks, c)
		if !c.OK() {
			return "", fmt.Errorf("%s: %s", h, c.Why)
		}
	}
	detail = fmt.Sprintf("all %d there", len(hooks[p]))
	if lacks != nil {
		detail = fmt.Sprintf("%d there; this kernel has no %s, nor the system call", len(hooks[p])-len(lacks), strings.Join(lacks, ", "))
	}
	if n := len(k.dispatched[p]); n > 0 {
		detail += fmt.Sprintf("; %d by %d at raw_syscalls", n, len(dispatchers[p]))
	}
	return detail, nil
}

// choose takes the narrowest way that works.
func (k *Kernel) choose(c *HookCheck, h hook, cannot func(way) error) {
	var why []string
	wider := false
	for _, w := range h.ways {
		if err := cannot(w); err != nil {
			why = append(why, fmt.Sprintf("%s: %v", w.by, err))
			wider = wider || !w.calls // the way that is taken instead of those loses nothing
			continue
		}
		c.Program, c.Way, c.Wider = w.program, w.by, wider
		if w.by == ByDispatcher {
			k.dispatch(c.Probe, found{h, w})
		} else {
			k.hooks[c.Probe] = append(k.hooks[c.Probe], found{h, w})
		}
		break
	}
	if wider || c.Way == "" {
		c.Why = strings.Join(why, "; ")
	}
	switch {
	case c.Wider:
		c.Advice = "nothing: it works all the same, at a higher cost and with losses, which are counted"
	case c.Way == "":
		c.Advice = "allow bpf (BPF_RAW_TRACEPOINT_OPEN) in seccomp, or run with CAP_BPF and CAP_PERFMON; it is in Linux 4.17 and later"
	}
}

// dispatch puts a hook behind the probe's dispatchers, which are attached where the
// first of those hooks would be: exits before enters, as everywhere.
func (k *Kernel) dispatch(p Probe, f found) {
	if len(k.dispatched[p]) == 0 {
		for _, d := range dispatchers[p] {
			k.hooks[p] = append(k.hooks[p], found{d.hook, d.ways[0]})
		}
	}
	k.dispatched[p] = append(k.dispatched[p], f)
}

// Hooks returns what Open found out about the hooks of all probes, in the order of
// attaching. It is empty where Open did not come so far.
func (k *Kernel) Hooks() []HookCheck { return k.hookChecks }

// attach attaches a program that is made for the way.
func (f found) attach(p *ebpf.Program) (link.Link, error) {
	if f.by == ByRawTracepoint {
		return link.AttachRawTracepoint(link.RawTracepointOptions{Name: f.name, Program: p})
	}
	return link.Tracepoint(f.group, f.name, p, nil)
}
