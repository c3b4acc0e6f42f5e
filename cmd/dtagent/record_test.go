package main

import (
	"encoding/json"
	"io"
	"log/slog"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"

	"github.com/go-quicktest/qt"

	"github.com/xenserver/dtagent/cmd/dtagent/control"
	"github.com/xenserver/dtagent/probes/event"
	"github.com/xenserver/dtagent/probes/recording"
)

// agentWith serves the control socket of an agent whose engine is fed by turn,
// again and again until the test ends.
func agentWith(t *testing.T, turn func(l *recording.Live, n int)) (socket string, live *recording.Live) {
	t.Helper()
	live = new(recording.Live)
	socket = filepath.Join(t.TempDir(), "run", "control.sock")
	ln, err := control.Listen(socket)
	qt.Assert(t, qt.IsNil(err))
	s := control.NewServer(control.Sources{Record: func() (*recording.Header, *recording.Tap, error) {
		tap, err := live.Join()
		return &recording.Header{ID: "id", Components: []string{}}, tap, err
	}}, slog.New(slog.DiscardHandler))
	served, stop, stopped := make(chan error, 1), make(chan struct{}), make(chan struct{})
	go func() { served <- s.Serve(ln) }()
	go func() {
		defer close(stopped)
		for n := 1; ; n++ {
			select {
			case <-stop:
				return
			default:
				turn(live, n)
			}
		}
	}()
	t.Cleanup(func() {
		close(stop)
		<-stopped
		live.Close()
		qt.Check(t, qt.IsNil(s.Close()))
		qt.Check(t, qt.IsNil(<-served))
	})
	return socket, live
}

// noise tells events that cannot be compressed.
func noise(l *recording.Live, n int) {
	rng := rand.New(rand.NewPCG(uint64(n), 0))
	head := make([]byte, 4<<10)
	for i := range head {
		head[i] = byte(rng.Uint32())
	}
	at := event.Time(n) * 1_000_000
	l.Turn([]event.Event{{Kind: event.KindData, Dir: event.In, Time: at, Bytes: uint64(len(head)), Head: head}}, at, nil, func(func(*event.Event)) {})
}

// items counts what is in a recording, which has to end in order.
func items(t *testing.T, file string) recording.Totals {
	t.Helper()
	f, err := os.Open(file)
	qt.Assert(t, qt.IsNil(err))
	defer f.Close()
	r, err := recording.NewReader(f)
	qt.Assert(t, qt.IsNil(err))
	defer r.Close()
	var it recording.Item
	for err = r.Next(&it); err == nil; err = r.Next(&it) {
	}
	qt.Assert(t, qt.Equals(err, io.EOF))
	return r.Totals()
}

func TestRecordEndsInTime(t *testing.T) {
	socket, live := agentWith(t, noise)
	for _, c := range []struct {
		args   []string
		reason string
	}{
		{[]string{"--max-size", "1MiB"}, "--max-size"},
		{[]string{"--for", "1500ms"}, "--for"},
		{nil, "the agent stops"},
	} {
		file := filepath.Join(t.TempDir(), "x.dtrec")
		if c.args == nil {
			go live.Close()
			// Whoever comes too late is told.
			if code, _, stderr := dtagent("record", file, "--control", socket); code != 0 {
				qt.Check(t, qt.StringContains(stderr, "the agent stops"))
				continue
			}
		} else {
			code, out, stderr := dtagent(append([]string{"record", file, "--control", socket, "--json"}, c.args...)...)
			qt.Assert(t, qt.Equals(code, 0), qt.Commentf("%s", stderr))
			qt.Check(t, qt.StringContains(stderr, "no Observer is enabled"))
			var sum recordSummary
			qt.Assert(t, qt.IsNil(json.Unmarshal([]byte(out), &sum)))
			qt.Check(t, qt.Equals(sum.Reason, c.reason))
			info, err := os.Stat(file)
			qt.Assert(t, qt.IsNil(err))
			qt.Check(t, qt.Equals(info.Size(), sum.Bytes))
			if c.reason == "--max-size" {
				qt.Check(t, qt.IsTrue(sum.Bytes <= 1<<20 && sum.Bytes > 1<<19), qt.Commentf("%d bytes", sum.Bytes))
			}
			got := items(t, file)
			qt.Check(t, qt.Equals(got.Events, sum.Events))
			qt.Check(t, qt.Equals(got.Lost, sum.Lost))
		}
		items(t, file)
	}
}
