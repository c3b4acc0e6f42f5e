package e2e

import (
	"context"
	"fmt"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/go-quicktest/qt"

	"github.com/xenserver/dtagent/cmd/dtagent/control"
	"github.com/xenserver/dtagent/cmd/dtagent/zipkin"
	"github.com/xenserver/dtagent/testenv"
	"github.com/xenserver/dtagent/testenv/client"
	"github.com/xenserver/dtagent/testenv/config"
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

// TestRestarts restarts daemons while calls go on. What was cut off is not taken for
// what comes after it, and when the daemon is back everything is traced as before.
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
	for n, r := range []struct {
		program config.Program
		outage  testenv.Outage
	}{
		{"", testenv.Outage{}},
		{config.Xapi, testenv.Outage{}},
		{config.Xapi, testenv.Outage{Signal: syscall.SIGKILL, Gone: -1, Refused: -1}},
		{config.Xenopsd, testenv.Outage{}},
		{config.Toolstack, testenv.Outage{}},
		{config.Syslog, testenv.Outage{}},
	} {
		calls.more(10)
		if r.program == config.Xenopsd { // calls to xapi do not notice
			qt.Assert(t, qt.IsNil(l.dom0.Restart(r.program, r.outage)))
			calls.more(10)
			// xapi waits for news that the new xenopsd never has: they go together.
			r.program = config.Xapi
		}
		if r.program != "" {
			w := window{from: ktime(t)}
			qt.Assert(t, qt.IsNil(l.dom0.Restart(r.program, r.outage)))
			l.wait("watches the new processes", func(s *control.Status) bool {
				watched := map[int]bool{}
				for _, x := range s.Targets {
					watched[int(x.TGID)] = true
				}
				return watched[l.dom0.PID("xapi")] && watched[l.dom0.PID("xenopsd-xc")]
			})
			w.to = ktime(t)
			away = append(away, w)
		}
		calls.more(10)
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
	told(t, l.spans(), made, away)
	l.noLosses()
}
