package e2e

import (
	"compress/gzip"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"github.com/go-quicktest/qt"

	"github.com/xenserver/dtagent/cmd/dtagent/control"
	"github.com/xenserver/dtagent/cmd/dtagent/zipkin"
	"github.com/xenserver/dtagent/observer"
	"github.com/xenserver/dtagent/testenv"
	"github.com/xenserver/dtagent/testenv/client"
)

// attached lists the programs of process pid that the kernel has attached by a
// link, by their names: the kernel's list of links, cut to the programs that
// the process holds.
func attached(t testing.TB, pid int) []string {
	t.Helper()
	held := map[ebpf.ProgramID]bool{}
	files, err := filepath.Glob(fmt.Sprintf("/proc/%d/fdinfo/*", pid))
	qt.Assert(t, qt.IsNil(err))
	for _, f := range files {
		b, err := os.ReadFile(f)
		if err != nil {
			continue // closed meanwhile
		}
		for line := range strings.Lines(string(b)) {
			var id uint32
			if n, _ := fmt.Sscanf(line, "prog_id:\t%d", &id); n == 1 {
				held[ebpf.ProgramID(id)] = true
			}
		}
	}
	var names []string
	it := new(link.Iterator)
	defer it.Close()
	for it.Next() {
		info, err := it.Link.Info()
		if err != nil || !held[info.Program] {
			continue
		}
		p, err := ebpf.NewProgramFromID(info.Program)
		if errors.Is(err, os.ErrNotExist) {
			continue
		}
		qt.Assert(t, qt.IsNil(err))
		i, err := p.Info()
		p.Close()
		qt.Assert(t, qt.IsNil(err))
		names = append(names, i.Name)
	}
	qt.Assert(t, qt.IsNil(it.Err()))
	return names
}

// within waits until ok is true, and says how long that took. It is a second at
// most on a machine that has a processor to spare, which no test can ask for.
func within(t testing.TB, what string, ok func() bool) {
	t.Helper()
	began := time.Now()
	for !ok() {
		if time.Since(began) > time.Minute {
			t.Fatalf("%s: never", what)
		}
		time.Sleep(5 * time.Millisecond)
	}
	t.Logf("%s: after %v", what, time.Since(began).Round(time.Millisecond))
}

// zipkinServer is an endpoint that keeps what it gets.
type zipkinServer struct {
	*httptest.Server
	mu    sync.Mutex
	spans []zipkin.Span
}

func newZipkinServer(t testing.TB) *zipkinServer {
	z := &zipkinServer{}
	z.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		b, _ := readBody(r)
		var spans []zipkin.Span
		if r.URL.Path != "/api/v2/spans" || json.Unmarshal(b, &spans) != nil {
			w.WriteHeader(http.StatusBadRequest)
			return
		}
		z.mu.Lock()
		z.spans = append(z.spans, spans...)
		z.mu.Unlock()
		w.WriteHeader(http.StatusAccepted)
	}))
	t.Cleanup(z.Close)
	return z
}

// readBody reads the body of a request, compressed or not.
func readBody(r *http.Request) ([]byte, error) {
	if r.Header.Get("Content-Encoding") != "gzip" {
		return io.ReadAll(r.Body)
	}
	z, err := gzip.NewReader(r.Body)
	if err != nil {
		return nil, err
	}
	return io.ReadAll(z)
}

func (z *zipkinServer) received() []zipkin.Span {
	z.mu.Lock()
	defer z.mu.Unlock()
	return append([]zipkin.Span(nil), z.spans...)
}

// TestObserverChanges changes an Observer while the agent runs: each change comes
// into force, and no span in flight is lost.
func TestObserverChanges(t *testing.T) {
	l := newLab(t, testenv.Options{VMs: 2, Knobs: testenv.Knobs{AtomTime: map[string]time.Duration{"VM_build": 2 * time.Second}}})
	ctx := context.Background()
	session := l.session()
	get := func() {
		_, err := l.dial("unix", client.Options{}).Call(ctx, "VM.get_all", session)
		qt.Assert(t, qt.IsNil(err))
	}
	run := func(args ...string) string {
		out, err := l.agent.Run(ctx, append([]string{"observer"}, args...)...)
		qt.Assert(t, qt.IsNil(err))
		return strings.TrimSpace(out)
	}

	// Off means nothing is attached.
	qt.Assert(t, qt.HasLen(attached(t, l.agent.PID()), 0))
	get()
	qt.Assert(t, qt.Equals(l.status().Engine.Events, 0))

	id := run("create", "name-label=first", "enabled=true", "attributes=phase:one")
	within(t, "attach", func() bool { return len(attached(t, l.agent.PID())) > 0 && len(l.status().Targets) > 0 })
	for _, name := range attached(t, l.agent.PID()) {
		qt.Check(t, qt.IsTrue(strings.HasPrefix(name, "dt_")), qt.Commentf("%s", name))
	}
	get()
	l.traces()
	qt.Assert(t, qt.Not(qt.HasLen(l.spans(), 0)))

	// A change in the middle of a call: none of its spans is lost.
	began := ktime(t)
	done := make(chan error, 1)
	go func() {
		_, err := l.dial("unix", client.Options{}).Call(ctx, "VM.start", session, l.dom0.VMs()[0].Ref, false, false)
		done <- err
	}()
	time.Sleep(time.Second)
	z := newZipkinServer(t)
	run("param-set", "uuid="+id, "attributes=phase:two,dtagent.batch.interval:200ms", "endpoints=bugtool,"+z.URL+"/api/v2/spans")
	within(t, "new endpoint", func() bool {
		s := l.status()
		return len(s.Observers) == 1 && len(s.Observers[0].Endpoints) == 2
	})
	qt.Assert(t, qt.IsNil(<-done))
	l.compare(began, "VM.start", "", "")
	phases := map[string]bool{}
	for _, s := range z.received() {
		phases[s.Tags["phase"]] = true
	}
	qt.Assert(t, qt.DeepEquals(phases, map[string]bool{"two": true}))

	// A second Observer gets the same spans with its own attributes.
	second := run("create", "name-label=second", "enabled=true", "components=xapi", "attributes=phase:three")
	within(t, "second Observer", func() bool { return len(l.status().Observers) == 2 })
	get()
	l.traces()
	names := map[string]map[string]bool{}
	for _, s := range l.spans() {
		if names[s.ID] == nil {
			names[s.ID] = map[string]bool{}
		}
		names[s.ID][s.Tags["xs.observer.name"]+" "+s.Tags["phase"]] = true
	}
	shared := 0
	for _, n := range names {
		if n["first two"] && n["second three"] {
			shared++
		}
	}
	qt.Assert(t, qt.Not(qt.Equals(shared, 0)))

	// The last one that wants a component takes its probes along.
	run("param-set", "uuid="+id, "enabled=false")
	within(t, "only xapi wanted", func() bool { return strings.Join(l.status().Components, ",") == "xapi" })
	run("destroy", "uuid="+second)
	within(t, "nothing wanted", func() bool { return len(l.status().Components) == 0 })
	gone := time.Now()
	spans := len(l.spans())
	get()
	// The kernel lets go of a tracepoint only after a grace period; there are
	// dozens of them.
	l.wait("has detached its programs", func(*control.Status) bool { return len(attached(t, l.agent.PID())) == 0 })
	t.Logf("the last program was detached %v after", time.Since(gone).Round(time.Millisecond))
	// What was recorded until then goes through the sorter.
	var events uint64
	since := time.Now()
	l.wait("has handled what was recorded", func(s *control.Status) bool {
		if s.Engine.Events != events || s.Handover.Queued > 0 || s.Sorter.Held > 0 {
			events, since = s.Engine.Events, time.Now()
		}
		return time.Since(since) > 2*time.Second
	})
	get()
	time.Sleep(3 * time.Second)
	qt.Assert(t, qt.Equals(l.status().Engine.Events, events))
	qt.Assert(t, qt.HasLen(l.spans(), spans))
	qt.Assert(t, qt.HasLen(l.status().Targets, 0))

	for _, o := range l.status().Observers {
		for _, e := range o.Endpoints {
			qt.Check(t, qt.Equals(e.Produced, e.Sent+e.Lost()+e.Queued), qt.Commentf("%s", e.Endpoint))
			qt.Check(t, qt.Equals(e.Lost(), 0), qt.Commentf("%s", e.Endpoint))
		}
	}
	l.noLosses()
}

// TestDeadEndpoint has one endpoint that nobody serves: the others get theirs,
// and every span is accounted for.
func TestDeadEndpoint(t *testing.T) {
	l := newLab(t, testenv.Options{})
	z := newZipkinServer(t)
	dead := httptest.NewServer(http.NotFoundHandler())
	dead.Close()
	l.observe("endpoints=" + dead.URL + "/api/v2/spans," + z.URL + "/api/v2/spans,bugtool")
	session := l.session()
	for range 20 {
		_, err := l.dial("unix", client.Options{}).Call(context.Background(), "VM.get_all", session)
		qt.Assert(t, qt.IsNil(err))
	}
	l.wait("has sent the spans to the endpoints that live", func(s *control.Status) bool {
		return len(z.received()) >= 20 && len(l.spansSoFar()) >= 20
	})
	l.exact()
	qt.Assert(t, qt.IsNil(l.agent.Stop())) // in less time than a flush may take for all: see daemon.Stop

	// What nobody took waits on disk.
	kept := l.agent.SpansDir()
	l.start()
	qt.Assert(t, qt.Equals(l.agent.SpansDir(), kept))
	l.wait("has found the spans that were not sent", func(s *control.Status) bool { return s.Totals.Recovered >= 20 })
	l.exact()
}

// exact asserts that every span of every endpoint is accounted for, and returns
// the sum.
func (l *lab) exact() observer.Counters {
	l.t.Helper()
	s := l.status()
	for _, o := range s.Observers {
		if p := o.Processors; p != nil {
			var filtered uint64
			for _, n := range p.Filtered {
				filtered += n
			}
			qt.Check(l.t, qt.Equals(p.Received, p.Passed+p.Held+filtered), qt.Commentf("processors of %s", o.NameLabel))
		}
		for _, e := range o.Endpoints {
			qt.Check(l.t, qt.Equals(e.Produced, e.Sent+e.Lost()+e.Queued), qt.Commentf("%s", e.Endpoint))
		}
	}
	e := s.Totals
	qt.Check(l.t, qt.Equals(e.Produced, e.Sent+e.Lost()+e.Queued))
	return e.Counters
}

// spansSoFar are the spans that the files hold now; half a line at the end is
// not waited for.
func (l *lab) spansSoFar() []zipkin.Span {
	var spans []zipkin.Span
	_ = zipkin.ReadPath(l.agent.SpansDir(), func(s zipkin.Span) { spans = append(spans, s) }) // the caller asks again
	return spans
}
