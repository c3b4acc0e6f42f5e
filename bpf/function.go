//go:build linux

package bpf

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/link"
)

// maxReturning is how many threads at once can be in a function that is watched by
// ByKretprobe: the kernel does not see the returns of more. All that sleep in it
// count, of any process; what the kernel would allow by itself is twice the CPUs.
// More it does not allow.
const maxReturning = 4096

// returnsPrefix is what the groups of the kernel's events for that begin with, before
// the number of the process. They outlive one that is killed: see dropReturns.
const returnsPrefix = "dtagent_"

// dropReturns removes the events of processes that are no more. The kernel keeps those
// that are in use.
func dropReturns(tracefs string) {
	f, err := os.OpenFile(filepath.Join(tracefs, "kprobe_events"), os.O_RDWR|os.O_APPEND, 0)
	if err != nil {
		return // the kernel has none
	}
	defer f.Close()
	var gone []string
	for in := bufio.NewScanner(f); in.Scan(); {
		// r4096:dtagent_123_0123456789abcdef/vfs_fsync_range vfs_fsync_range
		_, event, _ := strings.Cut(in.Text(), ":")
		event, _, _ = strings.Cut(event, " ")
		owner, ours := strings.CutPrefix(event, returnsPrefix)
		owner, _, _ = strings.Cut(owner, "_")
		if _, err := os.Stat("/proc/" + owner); ours && errors.Is(err, fs.ErrNotExist) {
			gone = append(gone, "-:"+event+"\n")
		}
	}
	for _, g := range gone {
		_, _ = f.WriteString(g)
	}
}

// someFunction is one that each kernel has and that is called rarely.
const someFunction = "vfs_fsync_range"

// functions are those of the kernel that hooks name: which of them a program can be
// attached to.
type functions struct {
	none    map[Way]error // why no function can be
	symbols map[string]symbol
	wrong   error // why these are not known
	program *ebpf.Program
	tried   []link.Link
}

// symbol is what the kernel says of the functions of a name.
type symbol struct {
	places map[string]bool // their addresses
	part   string          // the name of one that is a part of it, or a variant
}

// findFunctions looks for the functions in the kernel. Only those that it is asked
// for are tried.
func findFunctions(hooks map[Probe][]hook) *functions {
	f := &functions{none: map[Way]error{}}
	wanted := map[string]symbol{}
	for _, all := range hooks {
		for _, h := range all {
			for _, w := range h.ways {
				if w.function() {
					wanted[w.symbol] = symbol{places: map[string]bool{}}
				}
			}
		}
	}
	if len(wanted) == 0 {
		return f
	}
	var err error
	f.program, err = ebpf.NewProgram(&ebpf.ProgramSpec{
		Name: "dt_try", Type: ebpf.Kprobe, License: "GPL", Instructions: asm.Instructions{asm.Mov.Imm(asm.R0, 0), asm.Return()},
	})
	for _, by := range []Way{ByKprobe, ByKretprobe} {
		f.none[by] = err
		if err == nil {
			f.none[by] = f.try(way{by: by, symbol: someFunction})
		}
		if errors.Is(f.none[by], ebpf.ErrNotSupported) || errors.Is(f.none[by], fs.ErrNotExist) {
			f.none[by] = errors.New("the kernel has none (CONFIG_KPROBE_EVENTS)")
		}
	}
	if f.none[ByKprobe] == nil {
		f.symbols, f.wrong = readSymbols(wanted)
	}
	return f
}

// cannot says why a program cannot be attached by the way, if it cannot.
func (f *functions) cannot(w way) error {
	if err := f.none[w.by]; err != nil {
		return err
	}
	if f.wrong != nil {
		return f.wrong
	}
	s := f.symbols[w.symbol]
	switch {
	case len(s.places) == 0 && w.module != "" && !hasModule(w.module):
		return noModule(w.module)
	case len(s.places) == 0 && s.part != "":
		return fmt.Errorf("the kernel has no such function as a whole, only %s", s.part)
	case len(s.places) == 0:
		return errors.New("the kernel has no such function")
	case len(s.places) > 1:
		return fmt.Errorf("the kernel has %d functions of that name", len(s.places))
	}
	if err := f.try(way{by: ByKprobe, symbol: w.symbol}); err != nil {
		return fmt.Errorf("the kernel has it, but attaching failed: %w", err)
	}
	return nil
}

// try attaches a program that does nothing. Detaching waits for all CPUs, so it is
// left to close.
func (f *functions) try(w way) error {
	l, err := found{way: w}.attach(f.program)
	if err == nil {
		f.tried = append(f.tried, l)
	}
	return err
}

// close detaches what was tried.
func (f *functions) close() {
	var wg sync.WaitGroup
	for _, l := range f.tried {
		wg.Go(func() { l.Close() })
	}
	wg.Wait()
	if f.program != nil {
		f.program.Close()
	}
}

// readSymbols finds functions in the kernel's list of symbols.
func readSymbols(wanted map[string]symbol) (map[string]symbol, error) {
	f, err := os.Open("/proc/kallsyms")
	if err != nil {
		return nil, fmt.Errorf("symbols of the kernel: %w", err)
	}
	defer f.Close()
	return wanted, parseSymbols(f, wanted)
}

// parseSymbols reads lines as of /proc/kallsyms: address, type, name, and the module
// in brackets.
func parseSymbols(r io.Reader, wanted map[string]symbol) error {
	in := bufio.NewScanner(r)
	for in.Scan() {
		address, rest, _ := strings.Cut(in.Text(), " ")
		kind, name, ok := strings.Cut(rest, " ")
		if !ok || !strings.ContainsAny(kind, "tTwW") {
			continue
		}
		name, _, _ = strings.Cut(name, "\t")
		whole, suffix, _ := strings.Cut(name, ".")
		s, ok := wanted[whole]
		if !ok {
			continue
		}
		if suffix == "" {
			s.places[address] = true
		} else {
			s.part = name
			wanted[whole] = s
		}
	}
	if err := in.Err(); err != nil {
		return fmt.Errorf("symbols of the kernel: %w", err)
	}
	return nil
}

// noModule is the module that a way waits for.
type noModule string

func (m noModule) Error() string { return "module " + string(m) + " is not loaded" }

// hasModule tells whether a module is loaded.
func hasModule(name string) bool {
	_, err := os.Stat("/sys/module/" + name)
	return err == nil
}
