package e2e

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/go-quicktest/qt"
	"golang.org/x/sys/unix"

	"github.com/xenserver/dtagent/cmd/dtagent/control"
	"github.com/xenserver/dtagent/cmd/dtagent/zipkin"
	"github.com/xenserver/dtagent/testenv"
	"github.com/xenserver/dtagent/testenv/client"
)

// receiver is a zipkin endpoint whose behaviour can be changed at any time. It
// knows every span that it has answered for with success.
type receiver struct {
	addr string
	srv  *httptest.Server

	mu   sync.Mutex
	mode string
	ids  map[string]int // span id → how often
	of   map[string]int // Observer and span name → spans

	posts atomic.Int64
}

// What a receiver does with a request.
const (
	modeTake     = ""
	modeError    = "answers 500"
	modeBusy     = "answers 429 with Retry-After"
	modeHang     = "does not answer"
	modeCut      = "closes in the middle of the request's body"
	modeCutReply = "closes in the middle of its answer"
	modeRedirect = "redirects"
)

func newReceiver(t testing.TB) *receiver {
	r := &receiver{ids: map[string]int{}, of: map[string]int{}}
	r.listen(t, "127.0.0.1:0")
	t.Cleanup(func() { r.set(modeTake); r.srv.Close() })
	return r
}

func (r *receiver) listen(t testing.TB, addr string) {
	t.Helper()
	ln, err := net.Listen("tcp", addr)
	qt.Assert(t, qt.IsNil(err))
	r.addr = ln.Addr().String()
	r.srv = &httptest.Server{Listener: ln, Config: &http.Server{Handler: r}}
	r.srv.Start()
}

func (r *receiver) url() string { return "http://" + r.addr + "/api/v2/spans" }

func (r *receiver) set(mode string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.mode = mode
}

// received are the ids of the spans that it has taken.
func (r *receiver) received() map[string]int {
	r.mu.Lock()
	defer r.mu.Unlock()
	ids := make(map[string]int, len(r.ids))
	for id, n := range r.ids {
		ids[id] = n
	}
	return ids
}

// spansOf is how many spans of that name an Observer has sent.
func (r *receiver) spansOf(observer, name string) int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.of[observer+" "+name]
}

func (r *receiver) ServeHTTP(w http.ResponseWriter, req *http.Request) {
	r.posts.Add(1)
	r.mu.Lock()
	mode := r.mode
	r.mu.Unlock()
	hijack := func(answer string) {
		c, _, err := w.(http.Hijacker).Hijack()
		if err == nil {
			_, _ = io.WriteString(c, answer)
			c.Close()
		}
	}
	switch mode {
	case modeError:
		http.Error(w, "it is broken", http.StatusInternalServerError)
		return
	case modeBusy:
		w.Header().Set("Retry-After", "1")
		w.WriteHeader(http.StatusTooManyRequests)
		return
	case modeHang:
		_, _ = io.Copy(io.Discard, req.Body) // else a client that gives up is not noticed
		<-req.Context().Done()
		return
	case modeCut:
		_, _ = io.ReadFull(req.Body, make([]byte, 10))
		hijack("")
		return
	case modeRedirect:
		w.Header().Set("Location", "http://192.0.2.1/elsewhere")
		w.WriteHeader(http.StatusTemporaryRedirect)
		return
	}
	b, err := readBody(req)
	var spans []zipkin.Span
	if err != nil || json.Unmarshal(b, &spans) != nil {
		w.WriteHeader(http.StatusBadRequest)
		return
	}
	if mode == modeCutReply {
		hijack("HTTP/1.1 202 Accep")
		return
	}
	r.mu.Lock()
	for _, s := range spans {
		r.ids[s.ID]++
		r.of[s.Tags["xs.observer.name"]+" "+s.Name]++
	}
	r.mu.Unlock()
	w.WriteHeader(http.StatusAccepted)
}

// calls makes n small calls of XAPI, each a span.
func (l *lab) calls(n int) {
	l.t.Helper()
	_, err := l.dial("unix", client.Options{Shape: client.Node, KeepAlive: true}).Load(context.Background(), client.LoadOptions{Connections: 2, Count: n})
	qt.Assert(l.t, qt.IsNil(err))
}

// everywhere asserts that the receiver has each span of the bugtool files.
func (l *lab) everywhere(r *receiver) {
	l.t.Helper()
	got := r.received()
	missing := 0
	spans := l.spans()
	for _, s := range spans {
		if got[s.ID] == 0 {
			missing++
		}
	}
	qt.Check(l.t, qt.Equals(missing, 0), qt.Commentf("of %d spans", len(spans)))
}

// TestReceiverFaults: whatever a receiver does, every span is accounted for, and
// once it works again it has all that were not refused for good.
func TestReceiverFaults(t *testing.T) {
	l := newLab(t, testenv.Options{})
	r := newReceiver(t)
	l.observe("endpoints=bugtool," + r.url())
	for _, mode := range []string{modeError, modeBusy, modeHang, modeCut, modeCutReply, modeRedirect, "is not there"} {
		t.Run(mode, func(t *testing.T) {
			l := l.in(t)
			before := l.exact()
			r.set(mode)
			if mode == "is not there" {
				r.set(modeTake)
				r.srv.CloseClientConnections()
				r.srv.Listener.Close()
			}
			tries := r.posts.Load()
			l.calls(200)
			if mode == modeRedirect {
				l.wait("has dropped what was redirected", func(s *control.Status) bool { return s.Totals.Lost() >= 200 })
				c := l.exact()
				qt.Check(t, qt.IsTrue(c.DroppedByCause()["redirected"] >= 200))
				r.set(modeTake)
				return
			}
			if mode != "is not there" {
				eventually(t, "tries", func() bool { return r.posts.Load() > tries })
			}
			l.wait("holds the spans", func(s *control.Status) bool { return s.Totals.Queued >= 200 })
			c := l.exact()
			qt.Check(t, qt.Equals(c.Lost(), before.Lost()))
			if mode == "is not there" {
				r.listen(t, r.addr)
			}
			if mode == modeHang {
				defer r.srv.CloseClientConnections()
			}
			r.set(modeTake)
			r.srv.CloseClientConnections() // what hangs need not time out
			l.waitLong("has sent them", func(s *control.Status) bool { return s.Totals.Queued == 0 })
			l.exact()
		})
	}
	redirected := int(l.exact().DroppedByCause()["redirected"])
	missing := 0
	got := r.received()
	for _, s := range l.spans() {
		if got[s.ID] == 0 {
			missing++
		}
	}
	qt.Check(t, qt.Equals(missing, redirected))
}

// in is l for a subtest.
func (l *lab) in(t *testing.T) *lab {
	sub := *l
	sub.t = t
	return &sub
}

func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(time.Minute); !ok(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("%s: never", what)
		}
	}
}

// waitLong is wait for what a backoff of up to a minute can put off.
func (l *lab) waitLong(what string, ok func(*control.Status) bool) {
	l.t.Helper()
	qt.Assert(l.t, qt.IsNil(l.agent.Wait(context.Background(), 90*time.Second, what, ok)))
}

// TestKillDuringExport kills the agent with SIGKILL while it exports, again and
// again: what was in its queues on disk is sent by the next, and every account is
// exact.
func TestKillDuringExport(t *testing.T) {
	l := newLab(t, testenv.Options{})
	r := newReceiver(t)
	r.set(modeError)
	l.observe("endpoints=bugtool," + r.url())
	l.calls(300)
	l.wait("holds the spans", func(s *control.Status) bool { return s.Totals.Queued >= 300 })
	time.Sleep(1500 * time.Millisecond) // the files have them too
	recovered := uint64(0)
	for round := range 4 {
		if round == 2 {
			r.set(modeTake) // killed while it sends
		}
		load := make(chan error, 1)
		go func() {
			_, err := l.dial("unix", client.Options{Shape: client.Node, KeepAlive: true}).Load(context.Background(), client.LoadOptions{Connections: 2, Count: 1000})
			load <- err
		}()
		time.Sleep(time.Duration(700+400*round) * time.Millisecond)
		held := l.status().Totals.Queued
		qt.Assert(t, qt.IsNil(l.agent.Kill()))
		qt.Assert(t, qt.HasLen(attached(t, l.agent.PID()), 0))
		qt.Assert(t, qt.IsNil(<-load))
		l.start()
		l.wait("has taken up the queue", func(s *control.Status) bool { return len(s.Observers) > 0 && len(s.Probes) > 0 })
		c := l.exact()
		t.Logf("round %d: %d queued before the kill, %d recovered", round, held, c.Recovered)
		if round < 2 {
			qt.Check(t, qt.IsTrue(c.Recovered >= recovered), qt.Commentf("%d recovered, %d the time before", c.Recovered, recovered))
			recovered = c.Recovered
		}
	}
	l.calls(100)
	l.waitLong("has sent all", func(s *control.Status) bool { return s.Totals.Queued == 0 && s.Totals.Sent > 0 })
	l.exact()
	// The first spans were held when the first kill came.
	got := r.received()
	qt.Check(t, qt.IsTrue(len(got) >= int(recovered)), qt.Commentf("%d received, %d were on disk", len(got), recovered))
	left, err := filepath.Glob(filepath.Join(l.agent.StateDir(), "queue", "*", "*.zst"))
	qt.Assert(t, qt.IsNil(err))
	qt.Check(t, qt.HasLen(left, 0))
}

var outage = flag.Duration("outage", 15*time.Second, "how long the receiver of TestOutage is down")

// TestOutage has a receiver that is down for a long time under steady load: when
// it is back it gets everything, and the agent has not grown.
func TestOutage(t *testing.T) {
	l := newLab(t, testenv.Options{NoTruth: true})
	r := newReceiver(t)
	l.observe("endpoints=bugtool," + r.url())
	l.calls(50)
	l.wait("has sent the first", func(s *control.Status) bool { return len(r.received()) >= 50 })
	rss := l.status().Process.RSSBytes
	r.srv.CloseClientConnections()
	r.srv.Listener.Close()
	down := time.Now()
	for time.Since(down) < *outage {
		l.calls(20)
		time.Sleep(500 * time.Millisecond)
	}
	c := l.exact()
	qt.Check(t, qt.Equals(c.Lost(), 0))
	qt.Check(t, qt.IsTrue(c.Queued > 0))
	t.Logf("after %v: %d spans queued", time.Since(down).Round(time.Second), c.Queued)
	r.listen(t, r.addr)
	back := time.Now()
	l.waitLong("has sent what it held", func(s *control.Status) bool { return s.Totals.Queued == 0 })
	t.Logf("all of them sent %v after the receiver was back", time.Since(back).Round(time.Millisecond))
	l.traces()
	l.everywhere(r)
	qt.Check(t, qt.Equals(l.exact().Lost(), 0))
	now := l.status().Process.RSSBytes
	t.Logf("%.1f MiB resident before, %.1f MiB after", float64(rss)/(1<<20), float64(now)/(1<<20))
}

// TestDiskFull has the queues and the bugtool files on a file system that is
// full: spans for the files are dropped and counted, those for the receiver go on
// through memory; when there is room again all is well.
func TestDiskFull(t *testing.T) {
	needRoot(t)
	small := t.TempDir()
	qt.Assert(t, qt.IsNil(unix.Mount("tmpfs", small, "tmpfs", 0, "size=256k")))
	t.Cleanup(func() { qt.Check(t, qt.IsNil(unix.Unmount(small, unix.MNT_DETACH))) })
	l := newLab(t, testenv.Options{}, "--state-dir", filepath.Join(small, "state"), "--bugtool-dir", filepath.Join(small, "dt"))
	r := newReceiver(t)
	l.observe("endpoints=bugtool," + r.url())
	l.calls(50)
	l.wait("has sent the first", func(s *control.Status) bool { return s.Totals.Sent >= 100 })
	fill, err := os.Create(filepath.Join(small, "fill"))
	qt.Assert(t, qt.IsNil(err))
	var full error
	for block := make([]byte, 4096); full == nil; {
		_, full = fill.Write(block)
	}
	qt.Assert(t, qt.ErrorIs(full, syscall.ENOSPC))
	qt.Assert(t, qt.IsNil(fill.Close()))
	sent := len(r.received())
	l.calls(300)
	l.wait("has counted what the disk did not take", func(s *control.Status) bool {
		return s.Totals.DroppedByCause()["disk_full"] > 0 && len(r.received()) >= sent+300
	})
	l.exact()
	qt.Assert(t, qt.IsNil(os.Remove(fill.Name())))
	dropped := l.exact().Lost()
	sent = len(r.received())
	l.calls(50)
	l.wait("has sent the last", func(s *control.Status) bool { return len(r.received()) >= sent+50 && s.Totals.Queued == 0 })
	qt.Check(t, qt.Equals(l.exact().Lost(), dropped))
}

// TestFiftyObservers: fifty at once, each with its own name, attribute, sampler
// and endpoint, get the same spans with the same ids.
func TestFiftyObservers(t *testing.T) {
	l := newLab(t, testenv.Options{})
	r := newReceiver(t)
	const n = 50
	for i := range n {
		words := []string{"observer", "create", fmt.Sprintf("name-label=o%02d", i), "enabled=true", fmt.Sprintf("attributes:number=%d", i), soon}
		if i%2 == 0 {
			words = append(words, "endpoints=bugtool")
		} else {
			words = append(words, "endpoints="+r.url()+fmt.Sprintf("?o=%d", i))
		}
		if i%4 == 1 {
			words = append(words, "attributes:dtagent.sampler=always_off")
		}
		_, err := l.agent.Run(context.Background(), words...)
		qt.Assert(t, qt.IsNil(err))
	}
	l.wait("has all in force", func(s *control.Status) bool { return len(s.Observers) == n && len(s.Probes) > 0 && len(s.Targets) >= 2 })
	session := l.session()
	_, err := l.dial("unix", client.Options{Traceparent: "00-3100a3ead5c4210a99c27e3e5578158c-34991b6261208b64-01"}).
		Call(context.Background(), "VM.start", session, l.dom0.VMs()[0].Ref, false, false)
	qt.Assert(t, qt.IsNil(err))
	l.traces()
	byObserver := map[string]map[string]bool{}
	for _, s := range l.spans() {
		name := s.Tags["xs.observer.name"]
		if byObserver[name] == nil {
			byObserver[name] = map[string]bool{}
		}
		byObserver[name][s.TraceID+s.ID] = true
		qt.Assert(t, qt.Equals(strings.TrimLeft(name, "o0"), strings.TrimLeft(s.Tags["number"], "0")))
	}
	qt.Assert(t, qt.HasLen(byObserver, n/2))
	for name, ids := range byObserver {
		qt.Check(t, qt.DeepEquals(ids, byObserver["o00"]), qt.Commentf("%s", name))
	}
	// The sampler of every second one with the receiver takes nothing.
	const sending = n / 4
	l.waitLong("has sent all", func(s *control.Status) bool { return s.Totals.Queued == 0 })
	got := r.received()
	qt.Check(t, qt.HasLen(got, len(byObserver["o00"])))
	for id := range byObserver["o00"] {
		if id = id[32:]; got[id] != sending {
			t.Errorf("span %s was sent %d times", id, got[id])
		}
	}
	s := l.status()
	for _, o := range s.Observers {
		if strings.HasSuffix(o.Endpoints[0].Endpoint, "?o=1") {
			qt.Check(t, qt.IsTrue(o.Processors.FilteredByCause()["sampled_out"] > 0))
		}
	}
	c := l.exact()
	t.Logf("%d spans for each of %d Observers, %d in all; %.1f MiB resident", len(byObserver["o00"]), n, c.Produced, float64(s.Process.RSSBytes)/(1<<20))
}
