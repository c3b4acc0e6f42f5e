package e2e

import (
	"context"
	"fmt"
	"io"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/go-quicktest/qt"

	"github.com/xenserver/dtagent/cmd/dtagent/control"
	"github.com/xenserver/dtagent/cmd/dtagent/tree"
	"github.com/xenserver/dtagent/cmd/dtagent/zipkin"
	"github.com/xenserver/dtagent/testenv"
	"github.com/xenserver/dtagent/testenv/client"
	"github.com/xenserver/dtagent/testenv/config"
	"github.com/xenserver/dtagent/testenv/truth"
)

// call is one that a caller has made.
type call struct {
	trace, span string // of the caller
	began, over int64  // ktime
	err         error
}

// callers make calls without end, each in a trace of its own.
type callers struct {
	l    *lab
	stop chan struct{}
	wg   sync.WaitGroup

	mu   sync.Mutex
	made []call
}

// logins is the method that callers call: it needs no session, which a restart ends.
const logins = "session.login_with_password"

func (l *lab) callers(n int) *callers {
	c := &callers{l: l, stop: make(chan struct{})}
	for i := range n {
		c.wg.Go(func() {
			for k := 0; ; k++ {
				select {
				case <-c.stop:
					return
				case <-time.After(2 * time.Millisecond):
				}
				one := call{trace: fmt.Sprintf("%032x", 0xca11<<32|i<<24|k), span: fmt.Sprintf("%016x", 0xca<<32|i<<24|k), began: ktime(l.t)}
				ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
				_, one.err = client.Unix(l.dom0.XapiSocket(), client.Options{Shape: client.Node, Traceparent: "00-" + one.trace + "-" + one.span + "-01"}).Login(ctx)
				cancel()
				one.over = ktime(l.t)
				c.mu.Lock()
				c.made = append(c.made, one)
				c.mu.Unlock()
			}
		})
	}
	return c
}

// end stops them and returns the calls.
func (c *callers) end() []call {
	close(c.stop)
	c.wg.Wait()
	return c.made
}

// more waits until n more calls have come to their end well.
func (c *callers) more(n int) {
	c.l.t.Helper()
	count := func() (good int) {
		c.mu.Lock()
		defer c.mu.Unlock()
		for _, m := range c.made {
			if m.err == nil {
				good++
			}
		}
		return good
	}
	before := count()
	eventually(c.l.t, "calls succeed", func() bool { return count() >= before+n })
}

// window is a time in which something was away, in ktime.
type window struct{ from, to int64 }

// told says how well calls are told by spans: each that lies outside of all windows
// once, and whole; each of the others once at most; and no span is in two.
func told(t testing.TB, spans []zipkin.Span, calls []call, away []window) {
	t.Helper()
	ids := map[string]int{}
	below := map[string][]zipkin.Span{} // by the caller's trace and span
	inTrace := map[string]int{}         // SERVER spans
	for _, s := range spans {
		ids[s.ID]++
		if s.Kind == "SERVER" {
			below[s.TraceID+s.ParentID] = append(below[s.TraceID+s.ParentID], s)
			inTrace[s.TraceID]++
		}
	}
	twice := 0
	for _, n := range ids {
		if n > 1 {
			twice++
		}
	}
	qt.Check(t, qt.Equals(twice, 0), qt.Commentf("spans told twice"))
	var missing, incomplete, apart, joined, during int
	for _, c := range calls {
		got := below[c.trace+c.span]
		touched := c.err != nil
		for _, w := range away {
			touched = touched || c.over > w.from && c.began < w.to
		}
		switch {
		case touched:
			during++
		case len(got) == 0:
			missing++
		case got[0].Incomplete() != "" || got[0].Name != logins:
			incomplete++
		}
		if len(got) > 1 {
			apart++
		}
		if inTrace[c.trace] > len(got) {
			joined++
		}
	}
	qt.Check(t, qt.Equals(missing, 0), qt.Commentf("calls without a span"))
	qt.Check(t, qt.Equals(incomplete, 0), qt.Commentf("calls with a span that is not theirs or not whole"))
	qt.Check(t, qt.Equals(apart, 0), qt.Commentf("calls with several spans"))
	qt.Check(t, qt.Equals(joined, 0), qt.Commentf("calls with others in their trace"))
	qt.Check(t, qt.IsTrue(during < len(calls)))
	t.Logf("%d calls, %d of them while something was away, %d spans", len(calls), during, len(spans))
}

// restart restarts a program and waits until the agent watches what is new.
func (l *lab) restart(p config.Program, o testenv.Outage) window {
	l.t.Helper()
	w := window{from: ktime(l.t)}
	qt.Assert(l.t, qt.IsNil(l.dom0.Restart(p, o)))
	l.wait("watches the new processes", func(s *control.Status) bool {
		watched := map[int]bool{}
		for _, x := range s.Targets {
			watched[int(x.TGID)] = true
		}
		return watched[l.dom0.PID("xapi")] && watched[l.dom0.PID("xenopsd-xc")]
	})
	w.to = ktime(l.t)
	return w
}

// stuck is a call that xapi does not answer any more.
type stuck struct {
	began      int64
	id, parent string
	entry      string       // of the ground truth, which has what is below it only
	err        <-chan error // of the call
}

// startVMStuck starts VM n on a dom0 whose xapi does not hear of what xenopsd does,
// and returns when that is done.
func (l *lab) startVMStuck(session string, n int) stuck {
	l.t.Helper()
	err := make(chan error, 1)
	s := stuck{began: ktime(l.t), id: fmt.Sprintf("%032x", 0x57bc<<16+n), parent: fmt.Sprintf("%016x", 0x57bc<<16+n), err: err}
	c := l.dial("unix", client.Options{Shape: client.Node, Traceparent: "00-" + s.id + "-" + s.parent + "-01"})
	go func() {
		_, e := c.Call(context.Background(), "VM.start", session, l.dom0.VMs()[n].Ref, false, false)
		err <- e
	}()
	// The barrier is the last that the call has of xenopsd.
	eventually(l.t, "VM.start sets a barrier", func() bool {
		for _, e := range l.truth().Find(truth.Send, "send "+xenopsd+" UPDATES.inject_barrier") {
			if e.Start > s.began {
				s.entry = e.Parent
			}
		}
		return s.entry != ""
	})
	return s
}

// xenopsd is its queue.
const xenopsd = "org.xen.xapi.xenops.classic"

// compareStuck compares what is below a call that had no answer with the ground truth.
func (l *lab) compareStuck(traces []*tree.Trace, log *truth.Log, s stuck) {
	l.t.Helper()
	qt.Check(l.t, qt.ErrorIs(<-s.err, io.EOF))
	c := &comparison{t: l.t, truth: log, offset: wallOffset(l.t), legacy: l.legacy, untimed: l.untimed}
	for _, tr := range traces {
		for _, n := range tr.Roots {
			if n.TraceID != s.id {
				continue
			}
			qt.Check(l.t, qt.Equals(n.Name, "VM.start"))
			qt.Check(l.t, qt.Equals(n.Kind, "SERVER"))
			qt.Check(l.t, qt.Equals(n.ParentID, s.parent))
			qt.Check(l.t, qt.Not(qt.Equals(n.Incomplete(), "")))
			var done []string // by xenopsd, as asked for
			for _, e := range log.Entries {
				if p := log.Path(e.ID); e.Kind == truth.Operation && len(p) == 3 && p[0].Parent == s.entry {
					done = append(done, e.Name)
				}
			}
			qt.Check(l.t, qt.ContentEquals(done, []string{"Atomic (VM_import_metadata)", "VM_start", "Atomic (VM_unpause)"}))
			e := truth.Entry{ID: s.entry, Kind: truth.API, Name: n.Name}
			c.below(e, n, "VM.start")
			c.report(e, tr)
			return
		}
	}
	l.t.Errorf("no span of the call without an answer; there are %d traces", len(traces))
}

// TestRestarts restarts daemons while calls go on. What was cut off is not taken for
// what comes after it, and when the daemon is back everything is traced as before.
//
// After a restart of xenopsd alone, calls to xapi go on. One that changes a VM
// comes to its end if the xenopsd before had told xapi no more than the new one does; else
// xapi waits for news that it never gets, until it is restarted too.
func TestRestarts(t *testing.T) {
	l := newLab(t, testenv.Options{VMs: 8})
	l.observe()
	calls := l.callers(2)
	var away []window
	type started struct {
		began      int64
		id, parent string
	}
	var starts []started
	var without []stuck
	type outage struct {
		program config.Program
		testenv.Outage
	}
	for n, outages := range [][]outage{
		{},
		{{program: config.Xapi}},
		{{config.Xapi, testenv.Outage{Signal: syscall.SIGKILL, Gone: -1, Refused: -1}}},
		{{program: config.Xenopsd}}, // xenopsd has told of three VMs' starts
		{{program: config.Toolstack}},
		{{program: config.Toolstack}, {program: config.Xenopsd}}, // of what there is, as the one after it
		{{program: config.Syslog}},
	} {
		calls.more(10)
		deaf := false
		for i, o := range outages {
			w := l.restart(o.program, o.Outage)
			if o.program != config.Xenopsd { // whose end calls to xapi do not notice
				away = append(away, w)
			}
			deaf = o.program == config.Xenopsd && i == 0
		}
		calls.more(10)
		if deaf {
			without = append(without, l.startVMStuck(l.session(), n))
			calls.more(10)
			away = append(away, l.restart(config.Xapi, testenv.Outage{}))
			continue
		}
		began, id, parent := l.startVM(l.session(), n)
		starts = append(starts, started{began, id, parent})
	}
	made := calls.end()
	traces, log := l.traces(), l.truth()
	for i, s := range starts {
		until := ktime(t)
		if i+1 < len(starts) {
			until = starts[i+1].began
		}
		l.compareIn(traces, log, s.began, until, "VM.start", s.id, s.parent)
	}
	for _, s := range without {
		l.compareStuck(traces, log, s)
	}
	told(t, l.spans(), made, away)
	// A daemon that ends in the midst of a request takes with it what was gathered of it.
	l.noLosses("socket ended with its process")
}
