package score

import (
	"fmt"
	"io"
	"slices"
	"strings"
	"text/tabwriter"
	"time"
)

// Links counts the links to parents of one method. What a span that has none
// should have been linked by is what its kind is mostly linked by.
type Links struct {
	Right   int // the parent is the nearest ancestor that can be seen
	Above   int // the parent is an ancestor further up
	Nowhere int // the parent is a span that there is not: that of another host, which did not see what this one did
	Wrong   int // it is no ancestor at all
	Missed  int // there should be a parent and is none, or there is no span
}

// Precision is the share of the links made that are right, 1 if none was made.
func (l Links) Precision() float64 {
	return share(l.Right, l.Right+l.Above+l.Nowhere+l.Wrong)
}

// Recall is the share of the links that there really are that were made and are
// right, 1 if there are none.
func (l Links) Recall() float64 {
	return share(l.Right, l.Right+l.Above+l.Nowhere+l.Wrong+l.Missed)
}

func share(n, of int) float64 {
	if of == 0 {
		return 1
	}
	return float64(n) / float64(of)
}

func (l *Links) add(o Links) {
	l.Right += o.Right
	l.Above += o.Above
	l.Nowhere += o.Nowhere
	l.Wrong += o.Wrong
	l.Missed += o.Missed
}

// Bounds says how well the starts and ends of spans agree with the truth, which a
// process writes down before its first system call and after its last: a span
// lies inside its entry.
type Bounds struct {
	Ends    int // starts and ends compared
	Outside int // of these, more than Tolerance outside the entry
	Within  int // of these, not more than Tolerance inside it
	Median  time.Duration
	P99     time.Duration
}

// Tolerance is what two readings of the clock by threads that the scheduler may
// stop in between may differ by.
const Tolerance = 5 * time.Millisecond

// Report is the result of a comparison.
type Report struct {
	Entries int // of the truth that should have a span
	Spans   int // that were found in the truth
	Absent  int // entries without a span
	Extra   int // spans that are not in the truth: of what had not ended when it was read

	Methods map[string]*Links // by link method
	Kinds   map[string]*Links // by kind of the span
	Untold  int               // links that no message names: they can be made by nobody
	OfXapi  int               // roots that hang under a span of XAPI's own tracing
	Guessed int               // of Untold, those that were made all the same: they count as wrong

	Traces     int // with spans of the truth
	Joined     int // of these, those with spans of more than one caller
	Incomplete int // spans that say that they are
	Unmarked   int // spans with a parent further up, or with none, that do not say that they are incomplete

	Bounds   map[string]*Bounds // by kind of the span
	Mistakes []string           // links that are wrong, and traces with several callers: the first of them
	Examples []string           // of links that are not right otherwise, and of bounds outside
}

// Total adds up all methods.
func (r *Report) Total() (l Links) {
	for _, m := range r.Methods {
		l.add(*m)
	}
	return l
}

func links(m map[string]*Links, name string) *Links {
	l := m[name]
	if l == nil {
		l = &Links{}
		m[name] = l
	}
	return l
}

// Print writes the report for people.
func (r *Report) Print(w io.Writer) error {
	t := tabwriter.NewWriter(w, 0, 8, 2, ' ', tabwriter.AlignRight)
	table := func(head string, m map[string]*Links) {
		fmt.Fprintf(t, "%s\tright\tabove\tnowhere\twrong\tmissed\tprecision\trecall\t\n", head)
		for _, name := range sorted(m) {
			row(t, name, *m[name])
		}
	}
	table("link method", r.Methods)
	row(t, "all", r.Total())
	fmt.Fprintln(t, "\t\t\t\t\t\t\t\t")
	table("kind of span", r.Kinds)
	fmt.Fprintln(t, "\t\t\t\t\t\t\t\t")
	fmt.Fprintln(t, "bounds of\tends\toutside\twithin 5 ms\tmedian\tp99\t\t\t")
	for _, name := range sorted(r.Bounds) {
		b := r.Bounds[name]
		fmt.Fprintf(t, "%s\t%d\t%d\t%.4f\t%v\t%v\t\t\t\n", name, b.Ends, b.Outside, share(b.Within, b.Ends), b.Median.Round(time.Microsecond), b.P99.Round(time.Microsecond))
	}
	if err := t.Flush(); err != nil {
		return err
	}
	_, err := fmt.Fprintf(w, "\n%d things happened that have a span, %d spans of them were found, %d are absent; %d spans more are of what had not ended.\n"+
		"%d links are told by nothing on the wire; %d of them were made. %d roots hang under spans of XAPI's own.\n"+
		"%d traces, %d with more than one caller. %d spans are marked incomplete; %d lack a link or have one further up and are not.\n",
		r.Entries, r.Spans, r.Absent, r.Extra, r.Untold, r.Guessed, r.OfXapi, r.Traces, r.Joined, r.Incomplete, r.Unmarked)
	return err
}

func row(w io.Writer, name string, l Links) {
	fmt.Fprintf(w, "%s\t%d\t%d\t%d\t%d\t%d\t%.5f\t%.5f\t\n", name, l.Right, l.Above, l.Nowhere, l.Wrong, l.Missed, l.Precision(), l.Recall())
}

func sorted[V any](m map[string]V) []string {
	var names []string
	for name := range m {
		names = append(names, name)
	}
	slices.SortFunc(names, strings.Compare)
	return names
}
