//go:build linux

package verdicts

import (
	"context"
	"errors"
	"fmt"
	"math"
	"slices"
	"time"

	"github.com/xenserver/dtagent/bpf"
	"github.com/xenserver/dtagent/cmd/dtagent/judge"
	"github.com/xenserver/dtagent/correlate/verdict"
	"github.com/xenserver/dtagent/probes/event"
	"github.com/xenserver/dtagent/probes/guestio"
	"github.com/xenserver/dtagent/testenv/fault"
	"github.com/xenserver/dtagent/testenv/tapdisk"
)

// Options of Run. The zero value of a field is what its comment says.
type Options struct {
	Cases   []string      // their names; all
	Times   []int         // how many times as long requests are to take; 1, 5, 50
	Window  time.Duration // that the agent learns at a time; 3 s
	Windows int           // how many it has learned before anything is wrong; 10
	Look    time.Duration // that a verdict looks; 8 s
	Legacy  bool          // the programs for Linux 4.19
	First   bool          // what stands in for a dom0 goes before other work of the machine, which would else be found to be in its way
	Tell    func(format string, args ...any)
}

// Trial is what was said of one disk in a time in which something was wrong, or not.
type Trial struct {
	Case    string          `json:"case"`
	What    string          `json:"what"`
	Asked   int             `json:"asked"` // times that requests were to take as long; 1: nothing was injected
	Disk    int             `json:"disk"`
	Wrong   bool            `json:"wrong"`  // something was, with this disk
	Took    float64         `json:"took"`   // times as long as usual that the guest's requests really took
	Want    []verdict.Cause `json:"want"`   // any of these
	Right   bool            `json:"right"`  // cause and layer are
	Inside  float64         `json:"inside"` // part of the added time that was told to be in the right layers
	Told    bool            `json:"told"`   // Inside is known
	Finding verdict.Finding `json:"finding"`
	Ops     []Latencies     `json:"ops"`
	Lost    []guestio.Loss  `json:"lost,omitempty"`
}

// Latencies are those of a kind of requests in ns, by three clocks.
type Latencies struct {
	Op       string   `json:"op"`
	Requests int      `json:"requests"` // that the guest knows of
	Counted  uint64   `json:"counted"`  // by the agent in about the same time
	Agent    Quantile `json:"agent"`    // the histogram of the total
	Served   Quantile `json:"served"`   // from tapdisk's beginning to take it off the ring until it is answered, by tapdisk's clock
	Guest    Quantile `json:"guest"`    // from the guest's putting it into the ring until it sees the answer
	Ring     float64  `json:"ring"`     // mean before it is taken
	Wake     float64  `json:"wake"`     // mean after it is answered
}

// Quantile are two.
type Quantile struct {
	P50 float64 `json:"p50"`
	P99 float64 `json:"p99"`
}

// Result is what came of it.
type Result struct {
	Trials  []Trial           `json:"trials"`
	Skipped map[string]string `json:"skipped,omitempty"` // cases that this machine cannot have, and why
}

// Run runs the cases one after the other. The error wraps bpf.ErrKernel where there is
// no eBPF.
func Run(ctx context.Context, o Options) (_ *Result, failed error) {
	if o.Times == nil {
		o.Times = []int{1, 5, 50}
	}
	for at, v := range map[*time.Duration]time.Duration{&o.Window: 3 * time.Second, &o.Look: 8 * time.Second} {
		if *at == 0 {
			*at = v
		}
	}
	if o.Windows == 0 {
		o.Windows = 10
	}
	if o.Tell == nil {
		o.Tell = func(string, ...any) {}
	}
	for _, name := range o.Cases {
		if !slices.ContainsFunc(Cases(), func(c Case) bool { return c.Name == name }) {
			return nil, fmt.Errorf("verdicts: no case %q", name)
		}
	}
	k, err := bpf.Open(bpf.Options{Legacy: o.Legacy})
	if err != nil {
		return nil, fmt.Errorf("verdicts: %w", err)
	}
	session, err := k.Load()
	if err != nil {
		return nil, fmt.Errorf("verdicts: %w", err)
	}
	defer func() { failed = errors.Join(failed, session.Close()) }()
	r := &Result{Skipped: map[string]string{}}
	for _, c := range Cases() {
		if len(o.Cases) > 0 && !slices.Contains(o.Cases, c.Name) {
			continue
		}
		o.Tell("%s: %s", c.Name, c.What)
		trials, err := runCase(ctx, session, &c, &o)
		if missing := (*fault.MissingError)(nil); errors.As(err, &missing) {
			o.Tell("%s: left out: %v", c.Name, err)
			r.Skipped[c.Name] = err.Error()
			continue
		}
		if err != nil {
			return r, fmt.Errorf("verdicts: %s: %w", c.Name, err)
		}
		r.Trials = append(r.Trials, trials...)
	}
	return r, nil
}

func runCase(ctx context.Context, session *bpf.Session, c *Case, o *Options) (_ []Trial, failed error) {
	l, err := openLab(ctx, session, c, o)
	if err != nil {
		return nil, err
	}
	defer func() { failed = errors.Join(failed, l.close()) }()
	w, err := l.judge.Watch(ctx)
	if err != nil {
		return nil, err
	}
	defer w.Close()
	if err := l.seen(ctx, w); err != nil {
		return nil, err
	}
	from := monotonic()
	if err := sleep(ctx, time.Duration(o.Windows)*o.Window+o.Window/2); err != nil {
		return nil, err
	}
	to := monotonic()
	for _, g := range l.guests {
		all, err := g.took(from, to)
		if err != nil {
			return nil, err
		}
		if len(all) == 0 {
			return nil, errors.New("a guest has done nothing")
		}
		g.usual, g.middle = mean(all), middle(all)
	}
	o.Tell("%s: learned; a request takes %v, half of them %v at most", c.Name, l.guests[0].usual.Round(time.Microsecond), l.guests[0].middle.Round(time.Microsecond))
	var out []Trial
	for _, times := range o.Times {
		trials, err := l.trial(ctx, w, times, o)
		if err != nil {
			return nil, err
		}
		for _, t := range trials {
			mark := "right"
			if !t.Right {
				mark = "WRONG"
			}
			o.Tell("%s x%d, disk %d: %s: %s in %q, %.0f %% inside; took %.1f times as long", c.Name, times, t.Disk, mark, t.Finding.Cause, t.Finding.Layer, 100*t.Inside, t.Took)
			if !t.Right {
				o.Tell("%s", t.Finding.Text())
			}
		}
		out = append(out, trials...)
	}
	return out, nil
}

// trial has requests take so many times as long, and sees what is said of that.
func (l *lab) trial(ctx context.Context, w judge.Watch, times int, o *Options) (_ []Trial, failed error) {
	if times > 1 {
		undo, err := l.c.inject(l, times)
		if undo != nil {
			defer func() { failed = errors.Join(failed, undo()) }()
		}
		if err != nil {
			return nil, err
		}
		if err := sleep(ctx, 2*slice); err != nil { // until a load that has changed is there
			return nil, err
		}
	}
	w.Sample()
	from := monotonic()
	report, err := l.judge.Verdict(ctx, max(o.Look, l.c.Look), nil)
	if err != nil {
		return nil, err
	}
	window := judge.Window(w.Sample())
	to := monotonic()
	var out []Trial
	for i, g := range l.guests {
		requests, err := g.took(from, to)
		if err != nil {
			return nil, err
		}
		if i < len(l.c.Disks) && l.c.Disks[i].Only == -1 && times > 1 {
			continue
		}
		t := Trial{Case: l.c.Name, What: l.c.What, Asked: times, Disk: i, Took: float64(mean(requests)) / float64(g.usual), Lost: report.Losses,
			Wrong: times > 1 && (l.c.All || i == 0 && (len(l.c.Disks) == 0 || l.c.Disks[0].Only == 0) || i < len(l.c.Disks) && l.c.Disks[i].Only == times)}
		j := slices.IndexFunc(report.Findings, func(f verdict.Finding) bool { return f.Disk.ID == g.id })
		if j < 0 {
			return nil, fmt.Errorf("nothing is said of disk %s: %+v", g.id, report.Unseen)
		}
		t.Finding = report.Findings[j]
		t.score(l.c)
		if d := diskOf(window, g.id); d != nil {
			t.compare(d, requests)
		}
		out = append(out, t)
	}
	return out, nil
}

// score says whether the finding is right.
func (t *Trial) score(c *Case) {
	f := &t.Finding
	if !t.Wrong {
		t.Want = []verdict.Cause{verdict.Healthy, verdict.OwnLoad}
		t.Right = slices.Contains(t.Want, f.Cause)
		return
	}
	t.Want = c.Causes
	t.Right = slices.Contains(c.Causes, f.Cause) && (len(c.Places) == 0 || slices.Contains(c.Places, f.Layer))
	if len(c.Layers) > 0 && len(f.Shares) > 0 {
		t.Told = true
		for _, l := range c.Layers {
			t.Inside += f.Shares[l.String()]
		}
	}
}

// compare holds the agent's histogram against what tapdisk and guest measured.
func (t *Trial) compare(d *verdict.Disk, all []tapdisk.Request) {
	for op, what := range []tapdisk.Op{verdict.Read: tapdisk.Read, verdict.Write: tapdisk.Write} {
		var served, seen tapdisk.Latencies
		var ring, wake float64
		for i := range all {
			if r := &all[i]; r.Op == what {
				served = append(served, r.Served())
				seen = append(seen, r.Latency())
				ring += float64(r.Ring())
				wake += float64(r.Seen - r.Answered)
			}
		}
		if len(served) == 0 {
			continue
		}
		h := &d.Requests[op].Layers[event.LayerTotal]
		n := float64(len(served))
		t.Ops = append(t.Ops, Latencies{Op: what.String(), Requests: len(served), Counted: h.Count,
			Agent:  Quantile{float64(h.Quantile(0.5)), float64(h.Quantile(0.99))},
			Served: quantiles(served), Guest: quantiles(seen), Ring: ring / n, Wake: wake / n})
	}
}

func quantiles(l tapdisk.Latencies) Quantile {
	slices.Sort(l)
	return Quantile{float64(l.At(0.5)), float64(l.At(0.99))}
}

// mean is that of what the guest saw.
func mean(all []tapdisk.Request) time.Duration {
	var sum float64
	for i := range all {
		sum += float64(all[i].Latency())
	}
	return time.Duration(math.Round(sum / float64(max(1, len(all)))))
}

// middle is the median of the same, which a busy machine changes less.
func middle(all []tapdisk.Request) time.Duration {
	l := make(tapdisk.Latencies, len(all))
	for i := range all {
		l[i] = all[i].Latency()
	}
	slices.Sort(l)
	return l.At(0.5)
}

func sleep(ctx context.Context, d time.Duration) error {
	select {
	case <-time.After(d):
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
