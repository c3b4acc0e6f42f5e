package control

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/go-quicktest/qt"
	"go.opentelemetry.io/otel/trace"

	"github.com/xenserver/dtagent/cmd/dtagent/zipkin"
	"github.com/xenserver/dtagent/correlate"
)

func start(t *testing.T, status Status) (*Server, string) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "run", "control.sock")
	ln, err := Listen(path)
	qt.Assert(t, qt.IsNil(err))
	s := NewServer(Sources{Status: func() Status { return status }}, slog.New(slog.DiscardHandler))
	done := make(chan error, 1)
	go func() { done <- s.Serve(ln) }()
	t.Cleanup(func() {
		qt.Check(t, qt.IsNil(s.Close()))
		qt.Check(t, qt.IsNil(<-done))
		_, err := os.Stat(path)
		qt.Check(t, qt.ErrorIs(err, os.ErrNotExist))
	})
	return s, path
}

func span(n int) *correlate.Span {
	return &correlate.Span{TraceID: trace.TraceID{1}, SpanID: trace.SpanID{byte(n >> 8), byte(n), 1}, Service: "xapi", Name: fmt.Sprintf("call %d", n), Start: 1e18, End: 1e18 + 1e6}
}

func TestStatus(t *testing.T) {
	want := Status{Version: "v1", Tier: "modern", Events: map[string]uint64{"data": 7}, Losses: []Loss{{"stream", "ring full", 2}}}
	_, path := start(t, want)
	info, err := os.Stat(path)
	qt.Assert(t, qt.IsNil(err))
	qt.Assert(t, qt.Equals(info.Mode().Perm(), 0o600))
	info, err = os.Stat(filepath.Dir(path))
	qt.Assert(t, qt.IsNil(err))
	qt.Assert(t, qt.Equals(info.Mode().Perm(), 0o700))

	got, err := NewClient(path).Status(t.Context())
	qt.Assert(t, qt.IsNil(err))
	qt.Assert(t, qt.DeepEquals(*got, want))
}

func TestNotRunning(t *testing.T) {
	path := filepath.Join(t.TempDir(), "control.sock")
	_, err := NewClient(path).Status(t.Context())
	qt.Assert(t, qt.ErrorIs(err, ErrNotRunning))

	// A socket left behind by an agent that was killed.
	ln, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	qt.Assert(t, qt.IsNil(err))
	ln.SetUnlinkOnClose(false)
	ln.Close()
	_, err = NewClient(path).Status(t.Context())
	qt.Assert(t, qt.ErrorIs(err, ErrNotRunning))
	l, err := Listen(path)
	qt.Assert(t, qt.IsNil(err))
	defer l.Close()
	_, err = Listen(path)
	qt.Assert(t, qt.ErrorMatches(err, fmt.Sprintf(`.*an agent is running on .* already \(pid %d\); stop it.*`, os.Getpid())))

	// One that has stopped listening may still be attached.
	qt.Assert(t, qt.IsNil(l.Close()))
	_, err = Listen(path)
	qt.Assert(t, qt.ErrorMatches(err, `.*an agent is running on .* already.*`))
	l.Release()
	l.Release()
	next, err := Listen(path)
	qt.Assert(t, qt.IsNil(err))
	l.Release() // is not the next one's
	_, err = Listen(path)
	qt.Assert(t, qt.ErrorMatches(err, `.*an agent is running on .* already.*`))
	next.Release()
	left, err := os.ReadDir(filepath.Dir(path))
	qt.Assert(t, qt.IsNil(err))
	qt.Check(t, qt.HasLen(left, 0))
}

// Of many that begin at once, over and over, one has the socket at any time.
func TestListenIsALock(t *testing.T) {
	path := filepath.Join(t.TempDir(), "control.sock")
	stale, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	qt.Assert(t, qt.IsNil(err))
	stale.SetUnlinkOnClose(false)
	qt.Assert(t, qt.IsNil(stale.Close()))
	var have, twice, times atomic.Int64
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for range 50 {
				l, err := Listen(path)
				if err != nil {
					continue
				}
				if have.Add(1) > 1 {
					twice.Add(1)
				}
				times.Add(1)
				have.Add(-1)
				l.Release()
			}
		})
	}
	wg.Wait()
	qt.Check(t, qt.Equals(twice.Load(), 0))
	qt.Check(t, qt.IsTrue(times.Load() > 0))
}

func TestListenKeepsOtherFiles(t *testing.T) {
	path := filepath.Join(t.TempDir(), "file")
	qt.Assert(t, qt.IsNil(os.WriteFile(path, []byte("x"), 0o600)))
	_, err := Listen(path)
	qt.Assert(t, qt.ErrorMatches(err, `.*is no socket`))
}

func TestTrace(t *testing.T) {
	s, path := start(t, Status{})
	s.Publish(span(0)) // nobody listens
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var got []string
	err := NewClient(path).Trace(ctx,
		func() {
			for i := 1; i <= 5000; i++ {
				s.Publish(span(i))
			}
		},
		func(z zipkin.Span) {
			if got = append(got, z.Name); len(got) == 5000 {
				cancel()
			}
		})
	qt.Assert(t, qt.IsNil(err))
	qt.Assert(t, qt.HasLen(got, 5000))
	qt.Assert(t, qt.Equals(got[0], "call 1"))
	qt.Assert(t, qt.Equals(got[4999], "call 5000"))
}

func TestSlowReaderIsDroppedAndTold(t *testing.T) {
	s, path := start(t, Status{})
	// The reader does not read while more is published than its queue and the
	// socket's buffers hold.
	published := 0
	n := 0
	err := NewClient(path).Trace(t.Context(),
		func() {
			for s.watched.Load() == 1 {
				published++
				s.Publish(span(published))
				qt.Assert(t, qt.IsTrue(published < 1_000_000))
			}
		},
		func(zipkin.Span) { n++ })
	qt.Assert(t, qt.ErrorIs(err, ErrTooSlow))
	qt.Assert(t, qt.Equals(n, published-1)) // all but the one that did not fit
}

func TestStopIsTold(t *testing.T) {
	s, path := start(t, Status{})
	n := 0
	err := NewClient(path).Trace(t.Context(),
		func() { s.Publish(span(1)); go s.Close() },
		func(zipkin.Span) { n++ })
	qt.Assert(t, qt.IsNil(err))
	qt.Assert(t, qt.Equals(n, 1))
}

func TestBadPeersDoNoHarm(t *testing.T) {
	_, path := start(t, Status{Version: "still there"})
	for _, in := range []string{
		"", "\x00\xff\xfe garbage\r\n\r\n", "GET /status", "GET /nothing HTTP/1.1\r\nHost: x\r\n\r\n", "POST /status HTTP/1.1\r\nHost: x\r\nContent-Length: 99999999999\r\n\r\n",
		"GET /status HTTP/1.1\r\nX: " + strings.Repeat("y", 1<<20),
	} {
		c, err := net.Dial("unix", path)
		qt.Assert(t, qt.IsNil(err))
		_, _ = c.Write([]byte(in)) // the server may hang up in the middle
		defer c.Close()            // and the peer says nothing more
	}
	got, err := NewClient(path).Status(t.Context())
	qt.Assert(t, qt.IsNil(err))
	qt.Assert(t, qt.Equals(got.Version, "still there"))
}

func TestReadersAreBounded(t *testing.T) {
	s, path := start(t, Status{})
	for range maxReaders {
		_, err := s.join()
		qt.Assert(t, qt.IsNil(err))
	}
	err := NewClient(path).Trace(t.Context(), nil, func(zipkin.Span) {})
	qt.Assert(t, qt.ErrorMatches(err, `.*503 .*readers follow the traces already.*`))
	qt.Assert(t, qt.IsFalse(errors.Is(err, ErrTooSlow)))
}

func TestCost(t *testing.T) {
	path := filepath.Join(t.TempDir(), "run", "control.sock")
	ln, err := Listen(path)
	qt.Assert(t, qt.IsNil(err))
	want := Cost{Seconds: 2, CPUs: 4, Probes: []ProbeCost{{Probe: "wait", Runs: 3, Own: 6e7, Entry: 2e7}}}
	s := NewServer(Sources{Cost: func(_ context.Context, d time.Duration) (Cost, error) {
		if d != 2*time.Second {
			return Cost{}, errors.New("statistics of programs: not permitted")
		}
		return want, nil
	}}, slog.New(slog.DiscardHandler))
	done := make(chan error, 1)
	go func() { done <- s.Serve(ln) }()
	client := NewClient(path)
	got, err := client.Cost(t.Context(), 2*time.Second)
	qt.Assert(t, qt.IsNil(err))
	qt.Check(t, qt.DeepEquals(*got, want))
	qt.Check(t, qt.Equals(got.Share(), 0.01))
	_, err = client.Cost(t.Context(), time.Second)
	qt.Check(t, qt.ErrorMatches(err, ".*statistics of programs: not permitted"))
	for _, d := range []time.Duration{0, -1, MaxCost + 1} {
		_, err = client.Cost(t.Context(), d)
		qt.Check(t, qt.ErrorMatches(err, "measure for .*"))
	}
	for _, q := range []string{"", "?for=", "?for=x", "?for=-1s", "?for=1h"} {
		_, err := client.get(t.Context(), "cost"+q)
		qt.Check(t, qt.ErrorMatches(err, ".*400 Bad Request.*"), qt.Commentf("%s", q))
	}
	qt.Check(t, qt.Equals((&Cost{}).Share(), 0))
	qt.Check(t, qt.IsNil(s.Close()))
	qt.Check(t, qt.IsNil(<-done))
}
