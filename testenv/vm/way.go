package vm

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
)

// HookWay is what came of one way to attach to one hook, as a test in the guest
// said in a line of its log:
//
//	way hook="sched:sched_switch" way="kprobe" result="absent" why="…"
type HookWay struct {
	Hook   string // "group:name"
	Way    string // "tracepoint", "fentry" and so on
	Result string // works, refused or absent
	Why    string // not, in the kernel's words
}

// Results of ways.
const (
	works   = "works"
	refused = "refused"
	absent  = "absent"
)

// wayLine is what such a line begins with, behind the place in the test's source.
const wayLine = ": way hook="

// parseWays finds the lines about ways in the output of a test binary. Lines that
// look like such and are none are told in bad.
func parseWays(output string) (ways []HookWay, bad []string) {
	for line := range strings.Lines(output) {
		i := strings.Index(line, wayLine)
		if i < 0 {
			continue
		}
		text := strings.TrimSpace(line[i+len(": way "):])
		w, err := parseWay(text)
		if err != nil {
			bad = append(bad, fmt.Sprintf("line about a way: %v: %.200q", err, text))
			continue
		}
		ways = append(ways, w)
	}
	return ways, bad
}

// parseWay reads the pairs of one line.
func parseWay(text string) (w HookWay, err error) {
	fields := map[string]*string{"hook": &w.Hook, "way": &w.Way, "result": &w.Result, "why": &w.Why}
	for text != "" {
		key, rest, ok := strings.Cut(text, "=")
		field := fields[key]
		if !ok || field == nil {
			return w, fmt.Errorf("%.20q is no pair that is known, or comes twice", key)
		}
		delete(fields, key)
		quoted, err := strconv.QuotedPrefix(rest)
		if err != nil {
			return w, fmt.Errorf("value of %s: %w", key, err)
		}
		if *field, err = strconv.Unquote(quoted); err != nil {
			return w, fmt.Errorf("value of %s: %w", key, err)
		}
		text = strings.TrimLeft(rest[len(quoted):], " ")
	}
	switch {
	case len(fields) > 0:
		return w, fmt.Errorf("%d of its values are missing", len(fields))
	case w.Hook == "" || w.Way == "":
		return w, fmt.Errorf("names nothing")
	case !slices.Contains([]string{works, refused, absent}, w.Result):
		return w, fmt.Errorf("%.20q is no result", w.Result)
	}
	return w, nil
}

// wayTable is the table of kernel, hook and way.
type wayTable struct {
	kernels []string
	ways    []string                                  // in the order in which they were tried
	hooks   []string                                  // the same
	results map[string]map[string]map[string]*HookWay // by hook, kernel and way
}

func newWayTable(results []*Result) *wayTable {
	t := &wayTable{results: map[string]map[string]map[string]*HookWay{}}
	for _, r := range results {
		t.kernels = append(t.kernels, r.name())
		for i := range r.Ways {
			w := &r.Ways[i]
			if !slices.Contains(t.ways, w.Way) {
				t.ways = append(t.ways, w.Way)
			}
			if t.results[w.Hook] == nil {
				t.hooks = append(t.hooks, w.Hook)
				t.results[w.Hook] = map[string]map[string]*HookWay{}
			}
			if t.results[w.Hook][r.name()] == nil {
				t.results[w.Hook][r.name()] = map[string]*HookWay{}
			}
			t.results[w.Hook][r.name()][w.Way] = w
		}
	}
	return t
}

// cell says by which ways a kernel lets programs be attached to a hook.
func (t *wayTable) cell(hook, kernel string) string {
	var good, bad []string
	for _, way := range t.ways {
		w := t.results[hook][kernel][way]
		switch {
		case w == nil: // no such way leads there
		case w.Result == works:
			good = append(good, way)
		default:
			bad = append(bad, way+" "+w.Result)
		}
	}
	if good == nil && bad == nil {
		return "-"
	}
	return strings.Join(append(good, bad...), ", ")
}

// markdown returns the table. Hooks that are alike on all kernels share a row, and
// what did not work is told below, with the reason.
func (t *wayTable) markdown() string {
	type row struct {
		hooks []string
		cells string
	}
	var rows []*row
	byCells := map[string]*row{}
	for _, h := range t.hooks {
		var cells []string
		for _, k := range t.kernels {
			cells = append(cells, t.cell(h, k))
		}
		c := strings.Join(cells, " | ")
		if byCells[c] == nil {
			byCells[c] = &row{cells: c}
			rows = append(rows, byCells[c])
		}
		byCells[c].hooks = append(byCells[c].hooks, h)
	}
	var b strings.Builder
	fmt.Fprintf(&b, "| hook | %s |\n|---|%s\n", strings.Join(t.kernels, " | "), strings.Repeat("---|", len(t.kernels)))
	for _, r := range rows {
		fmt.Fprintf(&b, "| %s | %s |\n", hookNames(r.hooks), r.cells)
	}
	for _, line := range t.reasons() {
		fmt.Fprintf(&b, "\n%s\n", line)
	}
	return b.String()
}

// hookNames writes hooks down in the shortest way, those of system calls by their
// common beginning.
func hookNames(hooks []string) string {
	short := map[string][]string{}
	var order []string
	for _, h := range hooks {
		prefix, name := "", h
		for _, p := range []string{"syscalls:sys_enter_", "syscalls:sys_exit_"} {
			if rest, ok := strings.CutPrefix(h, p); ok {
				prefix, name = p, rest
			}
		}
		if _, ok := short[prefix]; !ok {
			order = append(order, prefix)
		}
		short[prefix] = append(short[prefix], name)
	}
	var out []string
	for _, p := range order {
		switch {
		case p == "":
			out = append(out, "`"+strings.Join(short[p], "`, `")+"`")
		case len(short[p]) == 1:
			out = append(out, "`"+p+short[p][0]+"`")
		default:
			out = append(out, "`"+p+"`: "+strings.Join(short[p], ", "))
		}
	}
	return strings.Join(out, ", ")
}

// reasons says of what did not work why, each reason once.
func (t *wayTable) reasons() (lines []string) {
	hooks := map[string][]string{}
	var order []string
	for _, k := range t.kernels {
		for _, way := range t.ways {
			for _, h := range t.hooks {
				w := t.results[h][k][way]
				if w == nil || w.Result == works {
					continue
				}
				_, name, _ := strings.Cut(h, ":")
				call := strings.TrimPrefix(strings.TrimPrefix(name, "sys_enter_"), "sys_exit_")
				why := strings.Join(strings.Fields(w.Why), " ")
				for _, n := range []string{name, "__x64_sys_" + call} { // what is said of one is said of many
					why = strings.ReplaceAll(why, n, "…")
				}
				key := fmt.Sprintf("%s, %s %s: %%s: %s", k, way, w.Result, strings.ReplaceAll(why, "%", "%%"))
				if hooks[key] == nil {
					order = append(order, key)
				}
				hooks[key] = append(hooks[key], h)
			}
		}
	}
	for _, key := range order {
		lines = append(lines, fmt.Sprintf(key, hookNames(hooks[key])))
	}
	return lines
}
