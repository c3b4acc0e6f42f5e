package main

import (
	"fmt"
	"io"
	"os"

	"github.com/spf13/cobra"

	"github.com/xenserver/dtagent/bpf"
	"github.com/xenserver/dtagent/observer"
	"github.com/xenserver/dtagent/probes/event"
	"github.com/xenserver/dtagent/probes/target"
)

// checkReport is what `dtagent check --json` prints.
type checkReport struct {
	OK      bool         `json:"ok"` // all that is needed works
	Tier    string       `json:"tier,omitempty"`
	Kernel  []checkItem  `json:"kernel"`
	Targets []checkedPID `json:"targets"`
	Files   checkItem    `json:"observers"`
	Notes   []string     `json:"notes,omitempty"` // what could not be looked at
}

// checkItem is one thing that was tried.
type checkItem struct {
	Name   string `json:"name"`
	OK     bool   `json:"ok"`
	Needed bool   `json:"needed"`
	Detail string `json:"detail,omitempty"`
	Why    string `json:"why,omitempty"`
	Advice string `json:"advice,omitempty"`
}

type checkedPID struct {
	TGID      uint32 `json:"tgid"`
	Component string `json:"component"`
	Program   string `json:"program,omitempty"`
}

func newCheck() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "check",
		Short: "Say what this kernel and host allow, and what is missing",
		Long: `Say what this kernel and host allow, before anything is attached. The exit status
is 0 when all that is needed works, 1 when something that is needed does not.

With --components it says what Observers can ask for: each component's programs,
what is watched of them, the spans it gives and what it costs.`,
		Args: cobra.NoArgs,
	}
	legacy := cmd.Flags().Bool("legacy", false, "check the programs for Linux 4.19 even where the modern ones work")
	dir := cmd.Flags().String("observers-dir", observer.DefaultDir, "directory of the Observer files")
	components := cmd.Flags().Bool("components", false, "say what Observers can ask for, and what of it runs now")
	cmd.RunE = work(func(cmd *cobra.Command, _ []string) error {
		if *components {
			return checkComponents(cmd, "")
		}
		r := runCheck(*legacy, *dir)
		if asJSON(cmd) {
			if err := printJSON(cmd, r); err != nil {
				return err
			}
		} else {
			printCheck(cmd.OutOrStdout(), r)
		}
		if !r.OK {
			return &verbError{verb: "check", code: exitFailed}
		}
		return nil
	})
	return cmd
}

func runCheck(legacy bool, dir string) checkReport {
	r := checkReport{OK: true, Kernel: []checkItem{}, Targets: []checkedPID{}}
	k, err := bpf.Open(bpf.Options{Legacy: legacy})
	if k != nil {
		r.Tier = k.Tier().String()
		for _, c := range k.Checks() {
			r.Kernel = append(r.Kernel, checkItem(c))
			r.OK = r.OK && (c.OK || !c.Needed)
		}
	}
	if err != nil {
		r.OK = false
		r.Notes = append(r.Notes, err.Error())
	}
	if os.Geteuid() != 0 {
		r.Notes = append(r.Notes, "not run as root: eBPF, and which files processes of others run, could not be looked at; run `sudo dtagent check`")
	}
	processes, err := target.NewWatcher(target.Options{}).Scan()
	if err != nil {
		r.Notes = append(r.Notes, fmt.Sprintf("processes: %v", err))
	}
	for _, p := range processes {
		c, _ := target.Plan(event.AllComponents, p.Program)
		r.Targets = append(r.Targets, checkedPID{TGID: p.TGID, Component: c.String(), Program: p.Program})
	}

	entries, err := observer.NewStore(dir).List()
	r.Files = checkItem{Name: "Observers", OK: err == nil, Detail: fmt.Sprintf("%d in %s", len(entries), dir)}
	switch {
	case err != nil:
		r.Files.Why = err.Error()
		r.Files.Advice = "the other Observers work all the same; correct these, or remove them"
	case len(entries) == 0:
		r.Files.Advice = "nothing is traced without an Observer: dtagent observer create name-label=dt enabled=true"
	}
	return r
}

func printCheck(w io.Writer, r checkReport) {
	if r.Tier != "" {
		fmt.Fprintf(w, "Kernel: %s programs\n", r.Tier)
	} else {
		fmt.Fprintln(w, "Kernel")
	}
	for _, c := range r.Kernel {
		printItem(w, c)
	}
	fmt.Fprintln(w, "Processes of the toolstack")
	for _, t := range r.Targets {
		fmt.Fprintf(w, "  ok       %s: pid %d, %s\n", t.Component, t.TGID, t.Program)
	}
	if len(r.Targets) == 0 {
		fmt.Fprintln(w, "  none run now; they are found when they start")
	}
	fmt.Fprintln(w, "Configuration")
	printItem(w, r.Files)
	for _, n := range r.Notes {
		fmt.Fprintln(w, "Note:", n)
	}
	if r.OK {
		fmt.Fprintln(w, "Result: all that is needed works.")
	} else {
		fmt.Fprintln(w, "Result: dtagent cannot trace here; what is marked MISSING says what to do.")
	}
}

func printItem(w io.Writer, c checkItem) {
	state := "ok     "
	if !c.OK {
		state = "absent "
		if c.Needed {
			state = "MISSING"
		}
	}
	fmt.Fprintf(w, "  %s  %s", state, c.Name)
	if c.Detail != "" {
		fmt.Fprintf(w, ": %s", c.Detail)
	}
	fmt.Fprintln(w)
	if c.Why != "" {
		fmt.Fprintf(w, "             why: %s\n", c.Why)
	}
	if c.Advice != "" {
		fmt.Fprintf(w, "             do:  %s\n", c.Advice)
	}
}
