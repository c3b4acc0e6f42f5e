package tree

import (
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"
)

// Style says how a tree is printed. The zero value is plain text in UTC.
type Style struct {
	Colour bool
	Zone   *time.Location // nil: UTC
	All    bool           // a line for every span: nothing is folded
}

const (
	maxName   = 90 // columns for the name with its branches
	maxIndent = 20 // levels that are drawn; deeper ones keep this indent
)

// The parts of a line that stand out.
const (
	plain  = ""
	bold   = "\x1b[1m"
	faint  = "\x1b[2m"
	red    = "\x1b[31m"
	yellow = "\x1b[33m"
	cyan   = "\x1b[36m"
	reset  = "\x1b[0m"
)

func (st Style) paint(code, s string) string {
	if !st.Colour || code == plain {
		return s
	}
	return code + s + reset
}

// Print writes the tree of one trace, a line a span: its name, service, start
// after the trace's own, duration, how its parent was found, and where its
// time went: the longest part, and other ways of spending time that had a good
// part in it. Siblings that repeat, as polling does, share a line unless Style.All
// is set: see fold. Names come from other programs; what a terminal could take for
// a command is escaped.
func Print(w io.Writer, t *Trace, st Style) error {
	zone := st.Zone
	if zone == nil {
		zone = time.UTC
	}
	var b strings.Builder
	noun := "spans"
	if t.Spans == 1 {
		noun = "span"
	}
	fmt.Fprintf(&b, "%s  %d %s  %s  from %s", st.paint(bold, "trace "+t.ID), t.Spans, noun, duration(t.Total()),
		time.UnixMicro(t.Start).In(zone).Format("2006-01-02 15:04:05.000 MST"))
	if t.Continued {
		b.WriteString("  (goes on from a tree shown before)")
	}
	for _, id := range t.Joined {
		b.WriteString("  with " + clean(id))
	}
	b.WriteByte('\n')

	var rows []row
	for i := 0; i < len(t.Roots); {
		// Roots below the same span of somebody else stand together.
		r := t.Roots[i]
		j := i + 1
		for j < len(t.Roots) && t.Roots[j].ParentID == r.ParentID {
			j++
		}
		if r.ParentID != "" {
			rows = append(rows, row{name: "span " + r.ParentID + " of the caller", head: true})
			rows = st.appendRows(rows, t.Roots[i:j], "", t.Start, 1)
		} else {
			for _, n := range t.Roots[i:j] {
				rows = append(rows, row{name: clean(n.Name), node: n, at: n.Timestamp - t.Start})
				rows = st.appendRows(rows, n.Children, "", t.Start, 1)
			}
		}
		i = j
	}

	var name, service, at, length, link int
	for i := range rows {
		r := &rows[i]
		if r.head {
			continue
		}
		name = max(name, min(utf8.RuneCountInString(r.name), maxName))
		r.start, r.length = "+"+duration(time.Duration(r.at)*time.Microsecond), duration(r.took())
		r.service, r.link = clean(r.node.Service()), clean(r.node.Link())
		service = max(service, utf8.RuneCountInString(r.service))
		at = max(at, utf8.RuneCountInString(r.start))
		length = max(length, utf8.RuneCountInString(r.length))
		link = max(link, utf8.RuneCountInString(r.link))
	}
	for _, r := range rows {
		if r.head {
			b.WriteString(st.paint(faint, r.name) + "\n")
			continue
		}
		code := plain
		if r.node.Error() != "" {
			code = red
		}
		line := st.paint(code, pad(cut(r.name, maxName), name)) +
			"  " + st.paint(cyan, pad(r.service, service)) +
			"  " + left(r.start, at) +
			"  " + st.paint(bold, left(r.length, length)) +
			"  " + st.paint(faint, pad(r.link, link))
		if len(r.folded) > 0 {
			line += "  longest " + duration(r.longest())
		} else if wh, others := r.node.where(); wh.What != "" {
			line += fmt.Sprintf("  %3.0f %% %s", wh.Share*100, cut(clean(wh.What), 40))
			for _, o := range others {
				line += fmt.Sprintf(", %.0f %% %s", o.Share*100, cut(clean(o.What), 20))
			}
		}
		if e := r.node.Error(); e != "" {
			line += "  " + st.paint(red, "error: "+cut(clean(e), 80))
		}
		if skew := time.Duration(r.node.Skew) * time.Microsecond; skew != 0 && r.node.Kind == "SERVER" {
			line += "  " + st.paint(faint, fmt.Sprintf("its host's clock is %+.3f s off", skew.Seconds()))
		}
		if inc := r.node.Incomplete(); inc != "" {
			line += "  " + st.paint(yellow, "incomplete: "+cut(clean(inc), 80))
		}
		b.WriteString(strings.TrimRight(line, " ") + "\n")
	}
	_, err := io.WriteString(w, b.String())
	return err
}

// row is a line of the tree before its columns are known.
type row struct {
	name, service, start, length, link string
	node                               *Node
	folded                             []*Node // further spans that the line stands for
	at                                 int64   // µs after the start of the trace
	head                               bool
}

// took is how long the spans of the line took together.
func (r *row) took() time.Duration {
	d := r.node.Length()
	for _, n := range r.folded {
		d += n.Length()
	}
	return d
}

func (r *row) longest() time.Duration {
	d := r.node.Length()
	for _, n := range r.folded {
		d = max(d, n.Length())
	}
	return d
}

func (st Style) appendRows(rows []row, nodes []*Node, indent string, start int64, depth int) []row {
	lines := make([]row, 0, len(nodes))
	if st.All {
		for _, n := range nodes {
			lines = append(lines, row{name: clean(n.Name), node: n})
		}
	} else {
		lines = fold(lines, nodes)
	}
	for i, r := range lines {
		branch, below := "├─ ", "│  "
		if i == len(lines)-1 {
			branch, below = "└─ ", "   "
		}
		r.name, r.at = indent+branch+r.name, r.node.Timestamp-start
		rows = append(rows, r)
		next := indent
		if depth < maxIndent {
			next += below
		}
		if len(r.folded) == 0 {
			rows = st.appendRows(rows, r.node.Children, next, start, depth+1)
		}
	}
	return rows
}

// minFold is how many siblings that look alike share a line.
const minFold = 3

// fold puts siblings of one name and service that did no more than ask one
// another process, and of which none failed, on the line of the first of them.
// While a task runs xapi polls xenopsd: of the 88 spans of a VM.start 50 say no
// more than that.
func fold(lines []row, nodes []*Node) []row {
	type look struct{ name, service string }
	count := map[look]int{}
	for _, n := range nodes {
		if n.dull() {
			count[look{n.Name, n.Service()}]++
		}
	}
	at := map[look]int{}
	for _, n := range nodes {
		k := look{n.Name, n.Service()}
		times := count[k]
		if times < minFold || !n.dull() {
			lines = append(lines, row{name: clean(n.Name), node: n})
			continue
		}
		if i, ok := at[k]; ok {
			lines[i].folded = append(lines[i].folded, n)
			continue
		}
		at[k] = len(lines)
		lines = append(lines, row{name: fmt.Sprintf("%s ×%d", clean(n.Name), times), node: n})
	}
	return lines
}

// dull tells that nothing is below the span but waits and one answer at most,
// and that nothing is wrong.
func (n *Node) dull() bool { return n.quiet(1) }

// quiet tells that nothing is wrong with the span, and that there are no more
// than answers spans below it that are as quiet, waits left out.
func (n *Node) quiet(answers int) bool {
	if n.Error() != "" || n.Incomplete() != "" {
		return false
	}
	for _, c := range n.Children {
		if c.isWait() {
			continue
		}
		if answers--; answers < 0 || !c.quiet(0) {
			return false
		}
	}
	return true
}

// duration is d with a unit that people read and three digits after the point
// at most.
func duration(d time.Duration) string {
	switch abs := d.Abs(); {
	case abs < time.Millisecond:
		return fmt.Sprintf("%d µs", d.Microseconds())
	case abs < time.Second:
		return fmt.Sprintf("%.2f ms", float64(d)/1e6)
	case abs < 2*time.Minute:
		return fmt.Sprintf("%.3f s", d.Seconds())
	}
	return d.Round(time.Second).String()
}

// clean escapes what is not printable.
func clean(s string) string {
	if strings.IndexFunc(s, func(r rune) bool { return !unicode.IsPrint(r) }) < 0 && utf8.ValidString(s) {
		return s
	}
	var b strings.Builder
	for i, r := range s {
		if r == utf8.RuneError {
			if _, n := utf8.DecodeRuneInString(s[i:]); n == 1 {
				fmt.Fprintf(&b, `\x%02x`, s[i])
				continue
			}
		}
		if unicode.IsPrint(r) {
			b.WriteRune(r)
		} else if r < 0x80 {
			fmt.Fprintf(&b, `\x%02x`, r)
		} else {
			fmt.Fprintf(&b, `\u%04x`, r)
		}
	}
	return b.String()
}

// cut shortens s to n characters, with a sign that it did.
func cut(s string, n int) string {
	if utf8.RuneCountInString(s) <= n {
		return s
	}
	r := []rune(s)
	return string(r[:n-1]) + "…"
}

func pad(s string, n int) string {
	return s + strings.Repeat(" ", max(0, n-utf8.RuneCountInString(s)))
}

func left(s string, n int) string {
	return strings.Repeat(" ", max(0, n-utf8.RuneCountInString(s))) + s
}

// jsonNode is a Node as --json shows it.
type jsonNode struct {
	ID         string            `json:"id"`
	ParentID   string            `json:"parent_id,omitempty"`
	Name       string            `json:"name"`
	Service    string            `json:"service"`
	Kind       string            `json:"kind,omitempty"`
	StartUS    int64             `json:"start_us"`
	DurationUS int64             `json:"duration_us"`
	Link       string            `json:"link,omitempty"`
	Error      string            `json:"error,omitempty"`
	Incomplete string            `json:"incomplete,omitempty"`
	Where      *Where            `json:"where,omitempty"`
	Attributes map[string]string `json:"attributes,omitempty"`
	Children   []jsonNode        `json:"children,omitempty"`
}

// MarshalJSON gives the trace as nested objects. Times are µs since 1970.
func (t *Trace) MarshalJSON() ([]byte, error) {
	return json.Marshal(struct {
		TraceID    string     `json:"trace_id"`
		Spans      int        `json:"spans"`
		StartUS    int64      `json:"start_us"`
		DurationUS int64      `json:"duration_us"`
		Continued  bool       `json:"continued,omitempty"`
		Roots      []jsonNode `json:"roots"`
	}{t.ID, t.Spans, t.Start, t.End - t.Start, t.Continued, jsonNodes(t.Roots)})
}

func jsonNodes(nodes []*Node) []jsonNode {
	out := make([]jsonNode, 0, len(nodes))
	for _, n := range nodes {
		j := jsonNode{
			ID: n.ID, ParentID: n.ParentID, Name: n.Name, Service: n.Service(), Kind: n.Kind,
			StartUS: n.Timestamp, DurationUS: n.Duration,
			Link: n.Link(), Error: n.Error(), Incomplete: n.Incomplete(),
			Attributes: n.Tags, Children: jsonNodes(n.Children),
		}
		if w := n.Where(); w.What != "" {
			j.Where = &w
		}
		out = append(out, j)
	}
	return out
}
