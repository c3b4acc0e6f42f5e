package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"math"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/go-quicktest/qt"
	"golang.org/x/sys/unix"

	"github.com/xenserver/dtagent/cmd/dtagent/control"
	"github.com/xenserver/dtagent/cmd/dtagent/tree"
	"github.com/xenserver/dtagent/cmd/dtagent/zipkin"
	"github.com/xenserver/dtagent/testenv"
	"github.com/xenserver/dtagent/testenv/client"
	"github.com/xenserver/dtagent/testenv/daemon"
	"github.com/xenserver/dtagent/testenv/tapdisk"
	"github.com/xenserver/dtagent/testenv/truth"
)

// built holds the binaries that all tests share.
var built struct {
	sync.Once
	dir           string
	dom0, dtagent string
	err           error
}

func TestMain(m *testing.M) {
	tapdisk.Main()
	code := m.Run()
	if built.dir != "" {
		os.RemoveAll(built.dir)
	}
	os.Exit(code)
}

// needRoot skips tests that load eBPF and make mount namespaces.
func needRoot(t testing.TB) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root, for eBPF and a mount namespace")
	}
}

// binaries builds dtagent and the simulated dom0 once, or takes those in
// $DTAGENT_BINARIES: a test machine has no Go.
func binaries(t testing.TB) (dtagent, dom0 string) {
	t.Helper()
	if dir := os.Getenv("DTAGENT_BINARIES"); dir != "" {
		return filepath.Join(dir, "dtagent"), filepath.Join(dir, "dom0")
	}
	built.Do(func() {
		if built.dir, built.err = os.MkdirTemp("", "dtagent-e2e-"); built.err != nil {
			return
		}
		if built.dtagent, built.err = daemon.Build(context.Background(), built.dir); built.err == nil {
			built.dom0, built.err = testenv.Build(context.Background(), built.dir)
		}
	})
	qt.Assert(t, qt.IsNil(built.err))
	return built.dtagent, built.dom0
}

// lab is a simulated dom0 with an agent beside it.
type lab struct {
	t     testing.TB
	dom0  *testenv.Dom0
	agent *daemon.Daemon
	dir   string

	binary string
	args   []string
	xapi   string // socket of the XAPI whose Observers the agent follows

	ahead   time.Duration // what the agent takes its wall clock to be ahead of the machine's
	legacy  bool          // the agent has the legacy programs
	untimed bool          // times are not compared, nor how far apart events may come
}

// newLab starts both. The agent has no Observer yet, and follows none of the
// pool.
func newLab(t testing.TB, o testenv.Options, args ...string) *lab {
	t.Helper()
	l := prepare(t, o)
	l.args = append([]string{"--host-uuid", l.dom0.HostUUID(), "--host-name", "lab"}, args...)
	l.start()
	return l
}

// prepare starts the dom0 and leaves the agent to the caller.
func prepare(t testing.TB, o testenv.Options) *lab {
	t.Helper()
	needRoot(t)
	dtagent, dom0 := binaries(t)
	l := &lab{t: t, dir: t.TempDir()}
	o.Binary = dom0
	var err error
	l.dom0, err = testenv.Start(context.Background(), o)
	qt.Assert(t, qt.IsNil(err))
	t.Cleanup(func() { qt.Check(t, qt.IsNil(l.dom0.Close())) })
	l.binary = dtagent
	t.Cleanup(func() {
		if l.agent == nil {
			return
		}
		var shown []byte
		if s, err := l.agent.Status(context.Background()); err == nil {
			s.Probes = nil
			shown, _ = json.MarshalIndent(s, "", " ") // it came as JSON
		}
		qt.Check(t, qt.IsNil(l.agent.Stop()))
		if t.Failed() {
			t.Logf("the agent's status:\n%s", shown)
			t.Logf("the agent's log:\n%s", l.agent.Log())
		}
	})
	return l
}

// start starts the agent, again after it was stopped or killed.
func (l *lab) start() {
	l.t.Helper()
	agent, err := daemon.Start(context.Background(), daemon.Options{Binary: l.binary, Dir: l.dir, XAPISocket: l.xapi, Proc: l.dom0.ProcDir(), Args: l.args})
	qt.Assert(l.t, qt.IsNil(err))
	l.agent = agent
}

// pids are the dom0's processes: other tests may run theirs at the same time.
func pids(d *testenv.Dom0) []int {
	return slices.Collect(maps.Values(d.Processes()))
}

// soon makes receivers get their spans after tenths of a second, not after the
// 30 that are the default.
const soon = "attributes:dtagent.batch.interval=200ms"

// observe creates an Observer and waits until the probes are attached.
func (l *lab) observe(words ...string) string {
	l.t.Helper()
	out, err := l.agent.Run(context.Background(), append(append([]string{"observer", "create", "name-label=e2e", "enabled=true"}, words...), soon)...)
	qt.Assert(l.t, qt.IsNil(err))
	l.wait("watches xapi and xenopsd", func(s *control.Status) bool {
		found := map[string]bool{}
		for _, t := range s.Targets {
			found[t.Component] = true
		}
		return len(s.Probes) > 0 && found["xapi"] && found["xenopsd"]
	})
	return strings.TrimSpace(out)
}

func (l *lab) wait(what string, ok func(*control.Status) bool) {
	l.t.Helper()
	qt.Assert(l.t, qt.IsNil(l.agent.Wait(context.Background(), time.Minute, what, ok)))
}

func (l *lab) status() *control.Status {
	l.t.Helper()
	s, err := l.agent.Status(context.Background())
	qt.Assert(l.t, qt.IsNil(err))
	return s
}

// noLosses asserts that no event got lost since the lab was made. Calls that
// were going on when the probes were attached have no start; their events came. Causes
// that the test itself makes are besides.
func (l *lab) noLosses(besides ...string) {
	l.t.Helper()
	s := l.status()
	for _, loss := range s.Losses {
		if loss.OfEvent() && !slices.Contains(besides, loss.Cause) {
			qt.Check(l.t, qt.Equals(loss.Count, 0), qt.Commentf("%s: %s", loss.Probe, loss.Cause))
		}
	}
	qt.Check(l.t, qt.Equals(s.Missing, 0))
	qt.Check(l.t, qt.Equals(s.Handover.Dropped, 0))
	qt.Check(l.t, qt.Equals(s.Engine.EventsLost, 0))
	if !l.untimed {
		qt.Check(l.t, qt.Equals(s.Sorter.Late, 0))
	}
}

// traces returns all that is in the bugtool files, once the agent has sent what
// it had.
func (l *lab) traces() []*tree.Trace {
	l.t.Helper()
	qt.Assert(l.t, qt.IsNil(l.agent.Settled(context.Background(), time.Minute)))
	return tree.Build(l.spans())
}

// spans returns the spans of the bugtool files.
func (l *lab) spans() []zipkin.Span {
	l.t.Helper()
	var spans []zipkin.Span
	qt.Assert(l.t, qt.IsNil(zipkin.ReadPath(l.agent.SpansDir(), func(s zipkin.Span) { spans = append(spans, s) })))
	return spans
}

func (l *lab) truth() *truth.Log {
	l.t.Helper()
	log, err := l.dom0.Truth()
	qt.Assert(l.t, qt.IsNil(err))
	return log
}

// dial returns a client of one of xapi's listeners: unix, tcp, tcp6, or tls,
// behind which stunnel sends PROXY lines.
func (l *lab) dial(transport string, o client.Options) *client.Client {
	addr := func(a netip.AddrPort) string { return a.String() }
	switch transport {
	case "tcp":
		return client.TCP(addr(l.dom0.Addr()), o)
	case "tcp6":
		return client.TCP(addr(l.dom0.Addr6()), o)
	case "tls":
		return client.TLS(addr(l.dom0.TLSAddr()), o)
	}
	return client.Unix(l.dom0.XapiSocket(), o)
}

// task waits until an XAPI task has ended and returns its status.
func (l *lab) task(session, ref string) string {
	l.t.Helper()
	c := l.dial("unix", client.Options{Shape: client.Node, KeepAlive: true})
	defer c.Close()
	for range 1000 {
		state, err := c.Call(context.Background(), "task.get_status", session, ref)
		qt.Assert(l.t, qt.IsNil(err))
		if state != "pending" {
			return fmt.Sprint(state)
		}
		time.Sleep(10 * time.Millisecond)
	}
	l.t.Fatalf("task %s does not end", ref)
	return ""
}

// session logs in.
func (l *lab) session() string {
	l.t.Helper()
	c := l.dial("unix", client.Options{Shape: client.Node})
	s, err := c.Login(context.Background())
	qt.Assert(l.t, qt.IsNil(err))
	return s
}

// ktime reads the clock of the ground truth.
func ktime(t testing.TB) int64 {
	t.Helper()
	var ts unix.Timespec
	qt.Assert(t, qt.IsNil(unix.ClockGettime(unix.CLOCK_MONOTONIC, &ts)))
	return ts.Nano()
}

// wallOffset is what turns the ground truth's times into ns since 1970. Of many
// tries it takes the one with the least time between the readings: this thread may
// lose its CPU in others.
func wallOffset(t testing.TB) (offset int64) {
	t.Helper()
	least := int64(math.MaxInt64)
	for range 100 {
		before, wall, after := ktime(t), time.Now().UnixNano(), ktime(t)
		if after-before < least {
			least, offset = after-before, wall-(before+after)/2
		}
	}
	return offset
}
