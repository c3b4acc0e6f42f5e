// Package judge keeps what is usual for the guests' disks while somebody watches
// them, and says of each what holds it up. What it says is correlate/verdict's.
package judge

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/xenserver/dtagent/correlate/verdict"
	"github.com/xenserver/dtagent/probes/guestio"
)

const (
	windowTime = 10 * time.Second // what is learned at a time
	stepTime   = 2 * time.Second  // between samples; figures without eBPF are read each second
	saveTime   = 10 * time.Minute // between writes of the file while it is learned
	mostBytes  = 64 << 20         // of the file
)

// Bounds of how long a verdict looks.
const (
	MinTime = time.Second
	MaxTime = 10 * time.Minute
)

// Watch is a guestio.Watcher.
type Watch interface {
	Sample() *guestio.Sample
	Close()
}

// Options of New. Only Watch is needed.
type Options struct {
	Watch func(context.Context) (Watch, error)
	File  string        // that keeps what is usual; "": it ends with the agent
	Step  time.Duration // between samples; 0: as usual
	Log   *slog.Logger  // nil: discarded

	Window time.Duration // what is learned at a time; 0: as usual
}

// Report is what Verdict answers.
type Report struct {
	Start    time.Time         `json:"start"`
	Seconds  float64           `json:"seconds"`
	Findings []verdict.Finding `json:"findings"`
	Unseen   []Unseen          `json:"unseen,omitempty"`
	Losses   []guestio.Loss    `json:"losses,omitempty"` // latencies that are missing in this time
	Trouble  string            `json:"trouble,omitempty"`
}

// Unseen is a disk of which nothing is said.
type Unseen struct {
	verdict.Who
	Why string `json:"why"`
}

// Judge learns what is usual while somebody watches. Its methods may be called by
// several goroutines at once.
type Judge struct {
	o Options

	mu    sync.Mutex // of base
	base  verdict.Baselines
	fresh bool // something was learned that is not in the file

	turn     sync.Mutex // held while the learning begins and ends
	watchers int
	stop     context.CancelFunc
	ended    chan struct{}
}

// New returns a Judge that knows what its file says.
func New(o Options) *Judge {
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	o.Step = cmp.Or(o.Step, stepTime)
	o.Window = cmp.Or(o.Window, windowTime)
	j := &Judge{o: o}
	if err := j.load(); err != nil {
		o.Log.Warn("what is usual for disks is learned anew", "err", err)
	}
	return j
}

func (j *Judge) load() error {
	if j.o.File == "" {
		return nil
	}
	f, err := os.Open(j.o.File)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer f.Close()
	text, err := io.ReadAll(io.LimitReader(f, mostBytes+1))
	if err != nil {
		return err
	}
	if len(text) > mostBytes {
		return fmt.Errorf("%s: more than %d bytes", j.o.File, mostBytes)
	}
	if err := json.Unmarshal(text, &j.base); err != nil {
		return fmt.Errorf("%s: %w", j.o.File, err)
	}
	return nil
}

// save writes the file when there is something new. What it could not write it
// tries again the next time.
func (j *Judge) save() (err error) {
	if j.o.File == "" {
		return nil
	}
	j.mu.Lock()
	if !j.fresh {
		j.mu.Unlock()
		return nil
	}
	text, err := json.Marshal(&j.base)
	j.fresh = false
	j.mu.Unlock()
	defer func() {
		if err != nil {
			j.mu.Lock()
			j.fresh = true
			j.mu.Unlock()
		}
	}()
	if err != nil {
		return err
	}
	temp, err := os.CreateTemp(filepath.Dir(j.o.File), ".disks-*.tmp") // mode 0600
	if err != nil {
		return err
	}
	_, err = temp.Write(append(text, '\n'))
	if err = errors.Join(err, temp.Close()); err == nil {
		err = os.Rename(temp.Name(), j.o.File)
	}
	if err != nil {
		return errors.Join(err, os.Remove(temp.Name()))
	}
	return nil
}

// Watch has the disks watched until the Watch is closed, and learns meanwhile.
func (j *Judge) Watch(ctx context.Context) (Watch, error) {
	w, err := j.o.Watch(ctx)
	if err != nil {
		return nil, err
	}
	if err := j.join(ctx); err != nil {
		w.Close()
		return nil, err
	}
	return &watched{Watch: w, leave: j.leave}, nil
}

type watched struct {
	Watch
	leave func()
	once  sync.Once
}

func (w *watched) Close() {
	w.once.Do(func() {
		w.Watch.Close()
		w.leave()
	})
}

func (j *Judge) join(ctx context.Context) error {
	j.turn.Lock()
	defer j.turn.Unlock()
	if j.watchers > 0 {
		j.watchers++
		return nil
	}
	w, err := j.o.Watch(ctx)
	if err != nil {
		return err
	}
	run, stop := context.WithCancel(context.Background())
	j.watchers, j.stop, j.ended = 1, stop, make(chan struct{})
	go j.learn(run, w, j.ended)
	return nil
}

func (j *Judge) leave() {
	j.turn.Lock()
	defer j.turn.Unlock()
	if j.watchers--; j.watchers > 0 {
		return
	}
	j.stop()
	<-j.ended
	if err := j.save(); err != nil {
		j.o.Log.Warn("what is usual for disks is not kept", "err", err)
	}
}

// learn takes windows until ctx ends.
func (j *Judge) learn(ctx context.Context, w Watch, ended chan struct{}) {
	defer close(ended)
	defer w.Close()
	tick := time.NewTicker(j.o.Step)
	defer tick.Stop()
	var windows []*verdict.Window
	n := max(int(j.o.Window/j.o.Step), 1)
	for saved := time.Now(); ; {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		if windows = append(windows, Window(w.Sample())); len(windows) < n {
			continue
		}
		all := verdict.Fold(windows)
		windows = windows[:0]
		j.take(all)
		if time.Since(saved) > saveTime {
			if err := j.save(); err != nil {
				j.o.Log.Warn("what is usual for disks is not kept", "err", err)
			}
			saved = time.Now()
		}
	}
}

// take learns from a window.
func (j *Judge) take(w *verdict.Window) {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.base.Learn(w, j.base.Judge(w))
	j.fresh = true
}

// Verdict watches the disks for d and says what holds them up. It calls tell, when
// there is one, after each step with how long it has watched.
func (j *Judge) Verdict(ctx context.Context, d time.Duration, tell func(time.Duration)) (*Report, error) {
	if d < MinTime || d > MaxTime {
		return nil, fmt.Errorf("watch for %s: a time from %s to %s", d, MinTime, MaxTime)
	}
	w, err := j.Watch(ctx)
	if err != nil {
		return nil, err
	}
	defer w.Close()
	step := min(j.o.Step, d)
	tick := time.NewTicker(step)
	defer tick.Stop()
	var all *verdict.Window
	var last *guestio.Sample
	before := w.Sample()
	for {
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-tick.C:
		}
		last = w.Sample()
		windows := []*verdict.Window{Window(last)}
		if all != nil {
			windows = []*verdict.Window{all, windows[0]}
		}
		all = verdict.Fold(windows)
		if tell != nil {
			tell(min(all.Duration, d))
		}
		if all.Duration >= d-step/2 {
			break
		}
	}
	r := &Report{Start: all.Start, Seconds: all.Duration.Seconds(), Trouble: last.Trouble, Losses: lost(before.Losses, last.Losses)}
	j.mu.Lock()
	r.Findings = j.base.Judge(all)
	j.mu.Unlock()
	for i := range last.VBDs {
		if v := &last.VBDs[i]; !seen(v) {
			r.Unseen = append(r.Unseen, Unseen{WhoOf(v), cmp.Or(v.Why, v.LayersWhy, "it is not watched yet")})
		}
	}
	return r, nil
}

// lost returns what was lost since before.
func lost(before, now []guestio.Loss) (l []guestio.Loss) {
	was := map[string]uint64{}
	for _, b := range before {
		was[b.Cause] = b.Count
	}
	for _, n := range now {
		if n.Count > was[n.Cause] {
			l = append(l, guestio.Loss{Cause: n.Cause, Count: n.Count - was[n.Cause]})
		}
	}
	return l
}
