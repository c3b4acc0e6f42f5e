package main

import (
	"cmp"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"github.com/xenserver/dtagent/probes/event"
	"github.com/xenserver/dtagent/probes/target"
)

// componentRow is a row of the table of components as `dtagent check
// --components --json` prints it.
type componentRow struct {
	Name     string           `json:"name"`
	Is       string           `json:"is"`
	Stored   bool             `json:"stored"`  // XAPI can store the name in an Observer
	Default  bool             `json:"default"` // an Observer without a list means it, too
	Watches  []watchedProgram `json:"watches"`
	Children []string         `json:"children"` // programs that are it when what is watched starts them
	Spans    string           `json:"spans,omitempty"`
	Cost     string           `json:"cost,omitempty"`  // why it is costly
	Lacks    string           `json:"lacks,omitempty"` // the probe that is still missing
	Running  []checkedPID     `json:"running"`
}

type watchedProgram struct {
	Program   string   `json:"program"`
	Component string   `json:"component"` // whose it is
	For       []string `json:"for"`       // streams, logs, processes
}

// checkedPID is a process of a component.
type checkedPID struct {
	TGID      uint32 `json:"tgid"`
	Component string `json:"component"`
	Program   string `json:"program,omitempty"`
}

// componentRows is the table of components with what of each runs now.
func componentRows(running map[event.Component][]target.Process) []componentRow {
	var out []componentRow
	for _, c := range event.AllComponents.All() {
		d := c.Describe()
		r := componentRow{
			Name: d.Name, Is: d.Is, Stored: d.Stored, Default: event.DefaultComponents().Has(c), Spans: d.Spans, Cost: d.Cost, Lacks: d.Lacks,
			Watches: []watchedProgram{}, Children: append([]string{}, d.Children...), Running: []checkedPID{},
		}
		for _, p := range d.Programs {
			r.Watches = append(r.Watches, watchedProgram{Program: p.Name, Component: p.Of.String(), For: p.Watch.Words()})
		}
		for _, p := range running[c] {
			r.Running = append(r.Running, checkedPID{TGID: p.TGID, Component: d.Name, Program: p.Program})
		}
		out = append(out, r)
	}
	return out
}

// checkComponents prints the table of components.
func checkComponents(cmd *cobra.Command, proc string) error {
	running, err := target.NewProc(proc).Running()
	if err != nil {
		return err
	}
	rows := componentRows(running)
	if asJSON(cmd) {
		return printJSON(cmd, map[string]any{"components": rows})
	}
	return printComponents(cmd.OutOrStdout(), rows)
}

func yes(b bool) string {
	if b {
		return "yes"
	}
	return "no"
}

// programs says in words which programs make a component.
func (r *componentRow) programs() string {
	var own []string
	for _, w := range r.Watches {
		if w.Component == r.Name {
			own = append(own, w.Program)
		}
	}
	return strings.Join(append(own, r.Children...), ", ")
}

// watched says in words what is watched of which program; programs of which the
// same is watched stand together.
func (r *componentRow) watched() string {
	var order []string
	programs := map[string][]string{}
	for _, w := range r.Watches {
		what := strings.Join(w.For, ", ")
		if programs[what] == nil {
			order = append(order, what)
		}
		programs[what] = append(programs[what], w.Program)
	}
	for i, what := range order {
		order[i] = what + " of " + strings.Join(programs[what], ", ")
	}
	return strings.Join(order, "; ")
}

func (r *componentRow) runs() string {
	const shown = 4
	var out []string
	for i, p := range r.Running {
		if i == shown {
			out = append(out, fmt.Sprintf("and %d more", len(r.Running)-shown))
			break
		}
		out = append(out, fmt.Sprintf("%s %d", p.Program, p.TGID))
	}
	return strings.Join(out, ", ")
}

// facts are the lines about one component.
func (r *componentRow) facts() [][2]string {
	return [][2]string{{"watched", r.watched()}, {"spans", r.Spans}, {"costly", r.Cost}, {"lacks", r.Lacks}}
}

func printComponents(w io.Writer, rows []componentRow) error {
	t := tabwriter.NewWriter(w, 0, 8, 2, ' ', 0)
	fmt.Fprintln(t, "COMPONENT\tIN XAPI\tDEFAULT\tPROGRAMS\tRUNNING NOW")
	for _, r := range rows {
		fmt.Fprintf(t, "%s\t%s\t%s\t%s\t%s\n", r.Name, yes(r.Stored), yes(r.Default), cmp.Or(r.programs(), "-"), cmp.Or(r.runs(), "-"))
	}
	if err := t.Flush(); err != nil {
		return err
	}
	for _, r := range rows {
		fmt.Fprintf(w, "\n%s: %s\n", r.Name, r.Is)
		t := tabwriter.NewWriter(w, 0, 8, 2, ' ', 0)
		for _, f := range r.facts() {
			if f[1] != "" {
				fmt.Fprintf(t, "  %s\t%s\n", f[0], f[1])
			}
		}
		if err := t.Flush(); err != nil {
			return err
		}
	}
	return nil
}

// componentsPage is docs/components.md.
func componentsPage(rows []componentRow) string {
	var b strings.Builder
	b.WriteString(`# Components

What an Observer can ask for, by the names in its list of components. XAPI stores
some of these names only; the others stand in the Observer's attribute
` + "`dtagent.components`" + `, separated by commas, and the two lists are added up.
Both empty mean all that are marked as default. An Observer file can have every
name in its list.

A span has the component of the process it was made for. The span of a process
that a daemon starts is the daemon's, and besides that of its own program: an
Observer of ` + "`xenguest`" + ` alone gets the processes of that name, and of xenopsd,
which starts them, no more is watched than its children.

` + "`dtagent check --components`" + ` prints this table, and what of it runs now.

| component | what it is | programs | XAPI stores it | default | spans |
|---|---|---|---|---|---|
`)
	for _, r := range rows {
		spans := r.Spans
		if spans == "" {
			spans = "none in this version"
		}
		fmt.Fprintf(&b, "| `%s` | %s | %s | %s | %s | %s |\n", r.Name, r.Is, r.programs(), yes(r.Stored), yes(r.Default), spans)
	}
	b.WriteString("\n## What is watched for each\n\n| component | watched |\n|---|---|\n")
	for _, r := range rows {
		watched := r.watched()
		if watched == "" {
			watched = "nothing"
		}
		fmt.Fprintf(&b, "| `%s` | %s |\n", r.Name, watched)
	}
	b.WriteString("\n## Those that have to be named\n\n")
	for _, r := range rows {
		if r.Cost != "" {
			fmt.Fprintf(&b, "- `%s`: %s.\n", r.Name, r.Cost)
		}
	}
	b.WriteString("\n## What is not seen yet\n\n")
	for _, r := range rows {
		if r.Lacks != "" {
			fmt.Fprintf(&b, "- `%s`: %s.\n", r.Name, r.Lacks)
		}
	}
	return b.String()
}
