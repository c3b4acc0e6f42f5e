//go:build linux

package bpf

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"strconv"
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
	Function string // of the kernel that it is attached to, "" if that is a tracepoint
	Wider    bool   // a narrower way than Way does not work here
	Optional bool   // the hook of a system call that this kernel may lack
	Why      string // why not, or why not by a narrower way
	Waits    string // module that has to be loaded for a narrower way
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

// tracepoint returns the names of the tracepoint that the way goes by.
func (f found) tracepoint() (group, name string) {
	if group, name, ok := strings.Cut(f.event, ":"); ok {
		return group, name
	}
	return f.group, f.hook.name
}

// same tells whether the same program goes to the same place.
func (f found) same(o found) bool {
	fg, fn := f.tracepoint()
	og, on := o.tracepoint()
	if f.symbol != "" {
		fg, fn, og, on = "", "", "", ""
	}
	return f.by == o.by && f.program == o.program && f.symbol == o.symbol && fg == og && fn == on
}

// errNoTracepoint is why a way does not work.
var errNoTracepoint = errors.New("the kernel has no such tracepoint")

// lacks tells whether the tracepoint of a way is missing.
func (f found) lacks(tracefs string) error {
	if f.function() {
		return nil
	}
	group, name := f.tracepoint()
	has, err := hasTracepoint(tracefs, group, name)
	if err != nil {
		return fmt.Errorf("tracepoint %s:%s: %w", group, name, err)
	}
	if !has {
		return errNoTracepoint
	}
	return nil
}

// findHooks notes the hooks of a probe that the kernel has, each with the
// narrowest way that works. cannot says why a way does not, if it does not.
func (k *Kernel) findHooks(tracefs string, p Probe, cannot func(way) error) (detail string, err error) {
	var lacks []string
	for _, h := range hooks[p] {
		c := HookCheck{Probe: p, Hook: h.String(), Optional: h.optional}
		k.choose(&c, h, tracefs, cannot)
		if c.Way == "" && h.optional {
			c.Why += ", nor the system call"
			lacks = append(lacks, h.name)
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
func (k *Kernel) choose(c *HookCheck, h hook, tracefs string, cannot func(way) error) {
	var (
		why    []string
		absent = true // the tracepoint, which is all that is wrong
		loses  bool   // the way that is taken instead of others
	)
	for _, w := range h.ways {
		f := found{h, w}
		err := f.lacks(tracefs)
		if err == nil {
			err = cannot(w)
		}
		if err != nil {
			why = append(why, fmt.Sprintf("%s: %v", w.place(), err))
			absent = absent && errors.Is(err, errNoTracepoint)
			var m noModule
			if c.Waits == "" && errors.As(err, &m) {
				c.Waits = string(m)
			}
			c.Wider = c.Wider || !w.calls // the dispatcher that is taken instead of those loses nothing
			loses = loses || !w.calls && !w.function()
			continue
		}
		c.Program, c.Way, c.Function = w.program, w.by, w.symbol
		k.take(c.Probe, f)
		break
	}
	switch {
	case c.Way == "" && absent:
		c.Why = errNoTracepoint.Error()
	case c.Way == "" || c.Wider:
		c.Why = strings.Join(why, "; ")
	}
	switch {
	case c.Way == "":
		c.Wider = false
		if !absent {
			c.Advice = "allow bpf (BPF_RAW_TRACEPOINT_OPEN) in seccomp, or run with CAP_BPF and CAP_PERFMON; it is in Linux 4.17 and later"
		}
	case c.Wider && loses:
		c.Advice = "nothing: it works all the same, at a higher cost and with losses, which are counted"
	case c.Wider && c.Waits != "" && loadedLate(c.Probe):
		c.Advice = "nothing: it works all the same, at a higher cost; the module is looked for again when the first tapdisk is"
	case c.Wider:
		c.Advice = "nothing: it works all the same, at a higher cost"
	}
}

// take notes a way to be gone when its probe is attached. Where several hooks come
// to the same program at the same place it is attached once.
func (k *Kernel) take(p Probe, f found) {
	if slices.ContainsFunc(append(slices.Clone(k.hooks[p]), k.dispatched[p]...), f.same) {
		return
	}
	if f.by == ByDispatcher {
		k.dispatch(p, f)
		return
	}
	at := len(k.hooks[p])
	if f.function() { // of the programs at one place the kernel runs the one that came last first
		if i := slices.IndexFunc(k.hooks[p], func(o found) bool { return o.by == f.by && o.symbol == f.symbol }); i >= 0 {
			at = i
		}
	}
	k.hooks[p] = slices.Insert(k.hooks[p], at, f)
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

// Hooks returns what was found out about the hooks of all probes, in the order of
// attaching: by Open, and for a probe that is loaded late once more then. It is empty
// where Open did not come so far.
func (k *Kernel) Hooks() []HookCheck {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.hookChecks
}

// again looks for the hooks of a probe once more, if one waits for a module; else it
// returns nil.
func (k *Kernel) again(p Probe) *Kernel {
	if !slices.ContainsFunc(k.Hooks(), func(c HookCheck) bool { return c.Probe == p && c.Waits != "" && hasModule(c.Waits) }) {
		return nil
	}
	functions := findFunctions(map[Probe][]hook{p: hooks[p]})
	defer functions.close()
	fresh := &Kernel{hooks: map[Probe][]found{}, dispatched: map[Probe][]found{}}
	if _, err := fresh.findHooks(k.tracefs, p, k.cannot(functions)); err != nil {
		return nil // what was found first still works
	}
	return fresh
}

// adopt takes over what again has found. Nothing of the probe is loaded.
func (k *Kernel) adopt(p Probe, fresh *Kernel) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.hooks[p], k.dispatched[p] = fresh.hooks[p], fresh.dispatched[p]
	var all []HookCheck
	for _, c := range k.hookChecks {
		if c.Probe != p {
			all = append(all, c)
		}
	}
	k.hookChecks = append(all, fresh.hookChecks...)
}

// attach attaches a program that is made for the way.
func (f found) attach(p *ebpf.Program) (link.Link, error) {
	group, name := f.tracepoint()
	switch f.by {
	case ByRawTracepoint:
		return link.AttachRawTracepoint(link.RawTracepointOptions{Name: name, Program: p})
	case ByKprobe:
		return link.Kprobe(f.symbol, p, nil)
	case ByKretprobe:
		return link.Kretprobe(f.symbol, p, &link.KprobeOptions{RetprobeMaxActive: maxReturning, TraceFSPrefix: returnsPrefix + strconv.Itoa(os.Getpid())})
	}
	return link.Tracepoint(group, name, p, nil)
}
