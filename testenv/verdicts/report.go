//go:build linux

package verdicts

import (
	"fmt"
	"io"
	"math"
	"slices"
	"strings"
	"text/tabwriter"
	"time"
)

// Figures are a Result in numbers.
type Figures struct {
	Faults      int     `json:"faults"`       // trials in which something was wrong with the disk
	Named       int     `json:"named"`        // whose cause and layer are right
	Quiet       int     `json:"quiet"`        // trials in which nothing was
	Blamed      int     `json:"blamed"`       // of those, in which something was found all the same
	Inside      float64 `json:"inside"`       // part of the added time in the right layers: mean of the trials that tell it
	InsideLeast float64 `json:"inside_least"` // and the least

	Served Distance `json:"served"` // of the agent's quantiles from those of tapdisk's clock
	Guest  Distance `json:"guest"`  // from those of the guest's
}

// Distance is how far quantiles are apart, of kinds of requests in trials with 200
// requests or more.
type Distance struct {
	Compared int     `json:"compared"`
	P50      float64 `json:"p50"` // median
	P50Most  float64 `json:"p50_most"`
	P50Near  int     `json:"p50_near"` // within 5 %
	P99      float64 `json:"p99"`
	P99Most  float64 `json:"p99_most"`
	P99Near  int     `json:"p99_near"`
}

const (
	near    = 0.05
	compare = 200
)

// Figures counts.
func (r *Result) Figures() (f Figures) {
	told := 0
	f.InsideLeast = 1
	var served, guest [2][]float64
	for i := range r.Trials {
		t := &r.Trials[i]
		switch {
		case t.Wrong:
			f.Faults++
			if t.Right {
				f.Named++
			}
			if t.Told {
				told++
				f.Inside += t.Inside
				f.InsideLeast = min(f.InsideLeast, t.Inside)
			}
		default:
			f.Quiet++
			if !t.Right {
				f.Blamed++
			}
		}
		for _, o := range t.Ops {
			if o.Requests < compare {
				continue
			}
			for to, from := range map[*[2][]float64]Quantile{&served: o.Served, &guest: o.Guest} {
				to[0] = append(to[0], math.Abs(o.Agent.P50/from.P50-1))
				to[1] = append(to[1], math.Abs(o.Agent.P99/from.P99-1))
			}
		}
	}
	f.Inside /= float64(max(1, told))
	f.Served, f.Guest = distance(served), distance(guest)
	return f
}

func distance(d [2][]float64) (out Distance) {
	out.Compared = len(d[0])
	if out.Compared == 0 {
		return out
	}
	for i, at := range [2]struct {
		median, most *float64
		near         *int
	}{{&out.P50, &out.P50Most, &out.P50Near}, {&out.P99, &out.P99Most, &out.P99Near}} {
		slices.Sort(d[i])
		*at.median, *at.most = d[i][len(d[i])/2], d[i][len(d[i])-1]
		for _, v := range d[i] {
			if v <= near {
				*at.near++
			}
		}
	}
	return out
}

// Print writes tables.
func (r *Result) Print(out io.Writer) error {
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "case\tasked\tdisk\ttook\tsaid\tlayer\tsure\tinside\t")
	for i := range r.Trials {
		t := &r.Trials[i]
		inside, mark := "-", ""
		if t.Told {
			inside = fmt.Sprintf("%.0f %%", 100*t.Inside)
		}
		if !t.Right {
			var want []string
			for _, c := range t.Want {
				want = append(want, string(c))
			}
			mark = "WRONG, should be " + strings.Join(want, " or ")
		}
		fmt.Fprintf(w, "%s\t%d\t%d\t%.1f\t%s\t%s\t%.2f\t%s\t%s\n", t.Case, t.Asked, t.Disk, t.Took, t.Finding.Cause, t.Finding.Layer, t.Finding.Confidence, inside, mark)
	}
	fmt.Fprintln(w, "\ncase\tasked\tdisk\top\trequests\tagent p50\tp99\ttapdisk p50\tp99\tguest p50\tp99\tring\twake")
	us := func(v float64) string { return time.Duration(v).Round(time.Microsecond).String() }
	for i := range r.Trials {
		t := &r.Trials[i]
		for _, o := range t.Ops {
			fmt.Fprintf(w, "%s\t%d\t%d\t%s\t%d\t%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\n", t.Case, t.Asked, t.Disk, o.Op, o.Requests,
				us(o.Agent.P50), us(o.Agent.P99), us(o.Served.P50), us(o.Served.P99), us(o.Guest.P50), us(o.Guest.P99), us(o.Ring), us(o.Wake))
		}
	}
	if err := w.Flush(); err != nil {
		return err
	}
	f := r.Figures()
	fmt.Fprintf(out, "\n%d of %d faults are named, cause and layer. Where nothing was wrong, something was found in %d of %d.\n", f.Named, f.Faults, f.Blamed, f.Quiet)
	fmt.Fprintf(out, "Of the added time %.1f %% are in the right layers (least of a trial: %.1f %%).\n", 100*f.Inside, 100*f.InsideLeast)
	for _, d := range []struct {
		what string
		Distance
	}{{"tapdisk's clock", f.Served}, {"the guest's clock", f.Guest}} {
		fmt.Fprintf(out, "From %s p50 is %.1f %% off in the median, %.1f %% at most, within 5 %% in %d of %d; p99 %.1f %%, %.1f %%, %d.\n",
			d.what, 100*d.P50, 100*d.P50Most, d.P50Near, d.Compared, 100*d.P99, 100*d.P99Most, d.P99Near)
	}
	for c, why := range r.Skipped {
		fmt.Fprintf(out, "%s was left out: %s\n", c, why)
	}
	return nil
}
