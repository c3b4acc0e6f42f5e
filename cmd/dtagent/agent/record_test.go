package agent

import (
	"bytes"
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/go-quicktest/qt"

	"github.com/xenserver/dtagent/cmd/dtagent/replay"
	"github.com/xenserver/dtagent/correlate"
	"github.com/xenserver/dtagent/probes/clock"
	"github.com/xenserver/dtagent/probes/event"
	"github.com/xenserver/dtagent/probes/recording"
	"github.com/xenserver/dtagent/testenv/recordings"
)

// recorded returns the events of a checked-in recording.
func recorded(t testing.TB, name string) (h *recording.Header, all []event.Event) {
	t.Helper()
	b, err := recordings.FS.ReadFile(name)
	qt.Assert(t, qt.IsNil(err))
	r, err := recording.NewReader(bytes.NewReader(b))
	qt.Assert(t, qt.IsNil(err))
	defer r.Close()
	var it recording.Item
	for err = r.Next(&it); err == nil; err = r.Next(&it) {
		if it.Kind == recording.ItemEvent {
			ev := it.Event
			ev.Head, ev.Tail = bytes.Clone(ev.Head), bytes.Clone(ev.Tail)
			all = append(all, ev)
		}
	}
	qt.Assert(t, qt.Equals(err, io.EOF))
	return r.Header(), all
}

// written are the bugtool files of a directory by name.
func written(t testing.TB, dir string) map[string]string {
	t.Helper()
	out := map[string]string{}
	files, err := os.ReadDir(dir)
	qt.Assert(t, qt.IsNil(err))
	for _, f := range files {
		b, err := os.ReadFile(filepath.Join(dir, f.Name()))
		qt.Assert(t, qt.IsNil(err))
		out[f.Name()] = string(b)
	}
	return out
}

// run gives events to the daemon's engine in turns of all sizes, with a wall clock
// that is stepped forth and back, events that the agent itself has lost, and the
// batches of several CPUs out of order. What is exported goes to dir; what is
// recorded meanwhile is returned.
func run(t *testing.T, h *recording.Header, all []event.Event, dir string, rng *rand.Rand) []byte {
	t.Helper()
	var live recording.Live
	files, err := replay.NewFiles(dir, h)
	qt.Assert(t, qt.IsNil(err))
	e := newEngine(&live, correlate.Config{Rand: replay.Rand(h), Emit: files.Span})
	tap, err := live.Join()
	qt.Assert(t, qt.IsNil(err))
	var out bytes.Buffer
	w, err := recording.NewWriter(&out, h, true)
	qt.Assert(t, qt.IsNil(err))
	save := func(b *recording.Block) { qt.Assert(t, qt.IsNil(w.Block(b))) }

	offsets := h.Offsets
	now := all[0].Time
	for turns := 0; len(all) > 0; turns++ {
		n := min(rng.IntN(40), len(all))
		batch := all[:n:n]
		if all = all[n:]; n > 0 {
			now = max(now, batch[n-1].Time)
		}
		now += event.Time(rng.IntN(int(5 * time.Millisecond)))
		rng.Shuffle(min(n, 4), func(i, j int) { batch[i], batch[j] = batch[j], batch[i] })
		if turns%9 == 8 {
			batch = append(batch, event.Event{Kind: event.KindLost, Time: now, Count: 3})
		}
		if turns%7 == 6 { // as clock.Clock keeps them
			step := time.Duration(rng.IntN(7200)-3600) * time.Second
			offsets = append(clock.Offsets{{Since: now, Add: offsets[0].Add + int64(step)}}, offsets[:min(len(offsets), 7)]...)
		}
		at := now
		if turns%11 == 10 {
			at = 0 // the clock could not be read
		}
		e.turn(batch, at, offsets)
		if at != 0 {
			qt.Assert(t, qt.IsNil(files.Tick(time.Unix(0, offsets.Wall(at)))))
		}
		for tap.Waiting() > 0 {
			b, err := tap.Next(t.Context())
			qt.Assert(t, qt.IsNil(err))
			save(b)
		}
	}
	live.Close()
	e.pipeline.Drain()
	qt.Assert(t, qt.IsNil(files.Close()))
	for {
		b, err := tap.Next(context.Background())
		if errors.Is(err, recording.ErrEnded) {
			break
		}
		qt.Assert(t, qt.IsNil(err))
		save(b)
	}
	qt.Assert(t, qt.IsNil(w.End("test")))
	return out.Bytes()
}

// TestReplayIsWhatTheEngineMade compares, byte for byte, what is exported of a
// recording with what the engine exported while it was recorded.
func TestReplayIsWhatTheEngineMade(t *testing.T) {
	for seed := range uint64(20) {
		rng := rand.New(rand.NewPCG(seed, 1))
		name := []string{"start.dtrec", "start-traceparent.dtrec", "failure.dtrec"}[seed%3]
		h, all := recorded(t, name)
		h.Seed = [2]uint64{seed, 2}
		dir := filepath.Join(t.TempDir(), "live")
		file := run(t, h, all, dir, rng)
		want := written(t, dir)
		qt.Assert(t, qt.Not(qt.HasLen(want, 0)))

		r, err := recording.NewReader(bytes.NewReader(file))
		qt.Assert(t, qt.IsNil(err))
		dir = filepath.Join(t.TempDir(), "replay")
		files, err := replay.NewFiles(dir, r.Header())
		qt.Assert(t, qt.IsNil(err))
		sum, err := replay.Run(t.Context(), r, replay.Options{Emit: files.Span, Tick: files.Tick})
		qt.Assert(t, qt.IsNil(err))
		qt.Assert(t, qt.IsNil(files.Close()))
		r.Close()
		got := written(t, dir)
		// A file is named when its first span is written, which is at the end of so few.
		for name, text := range want {
			qt.Assert(t, qt.Equals(got[name], text), qt.Commentf("%s of seed %d", name, seed))
		}
		qt.Assert(t, qt.HasLen(got, len(want)))
		qt.Assert(t, qt.IsTrue(sum.Missing > 0 || name == "failure.dtrec"))
	}
}
