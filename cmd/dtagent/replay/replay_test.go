package replay

import (
	"bytes"
	"context"
	"errors"
	"io"
	"path/filepath"
	"testing"
	"time"

	"github.com/go-quicktest/qt"

	"github.com/xenserver/dtagent/correlate"
	"github.com/xenserver/dtagent/probes/event"
	"github.com/xenserver/dtagent/probes/recording"
	"github.com/xenserver/dtagent/testenv/recordings"
)

func golden(t testing.TB, name string) *recording.Reader {
	t.Helper()
	b, err := recordings.FS.ReadFile(name)
	qt.Assert(t, qt.IsNil(err))
	r, err := recording.NewReader(bytes.NewReader(b))
	qt.Assert(t, qt.IsNil(err))
	t.Cleanup(r.Close)
	return r
}

// rewrite copies a recording; before is called before each item, with how many
// there were. It returns false to leave the item out.
func rewrite(t testing.TB, r *recording.Reader, before func(n int, b *recording.Block, it *recording.Item) bool) []byte {
	t.Helper()
	var out bytes.Buffer
	w, err := recording.NewWriter(&out, r.Header(), true)
	qt.Assert(t, qt.IsNil(err))
	b := new(recording.Block)
	var it recording.Item
	for n := 0; ; n++ {
		if err := r.Next(&it); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			t.Fatal(err)
		}
		if !before(n, b, &it) {
			continue
		}
		switch it.Kind {
		case recording.ItemEvent:
			b.Event(&it.Event)
		case recording.ItemTick:
			b.Tick(it.Now)
		case recording.ItemClock:
			b.Clock(it.Offsets)
		}
		if b.Len() > 32<<10 {
			qt.Assert(t, qt.IsNil(w.Block(b)))
			b = new(recording.Block)
		}
	}
	qt.Assert(t, qt.IsNil(w.Block(b)))
	qt.Assert(t, qt.IsNil(w.End("rewritten")))
	return out.Bytes()
}

func run(t testing.TB, file []byte) (spans []*correlate.Span, sum Summary) {
	t.Helper()
	r, err := recording.NewReader(bytes.NewReader(file))
	qt.Assert(t, qt.IsNil(err))
	defer r.Close()
	sum, err = Run(t.Context(), r, Options{Emit: func(s *correlate.Span) { spans = append(spans, s) }})
	qt.Assert(t, qt.IsNil(err))
	return spans, sum
}

// TestLostMarksWhatIsOpen: events that the recorder lost do in a replay what events
// lost on their way to the agent do there.
func TestLostMarksWhatIsOpen(t *testing.T) {
	spans := map[string][]*correlate.Span{}
	for _, how := range []string{"recorder", "agent"} {
		lost, last := false, event.Time(0)
		file := rewrite(t, golden(t, "start-traceparent.dtrec"), func(_ int, b *recording.Block, it *recording.Item) bool {
			if it.Kind == recording.ItemEvent {
				last = it.Event.Time
			}
			if lost || !bytes.Contains(it.Event.Head, []byte("VM_create_device_model")) {
				return true
			}
			lost = true
			if how == "recorder" {
				b.Lost(last, 7)
			} else {
				b.Event(&event.Event{Kind: event.KindLost, Time: last, Count: 7})
			}
			return true
		})
		qt.Assert(t, qt.IsTrue(lost))
		var sum Summary
		spans[how], sum = run(t, file)
		qt.Check(t, qt.Equals(sum.Lost+sum.Missing, 7))
		qt.Check(t, qt.Equals(sum.Lost > 0, how == "recorder"))
		qt.Check(t, qt.IsTrue(sum.Incomplete > 0))
		found := false
		for _, s := range spans[how] {
			found = found || s.Name == "VM_start" && s.Incomplete == "events lost"
		}
		qt.Check(t, qt.IsTrue(found))
	}
	qt.Assert(t, qt.HasLen(spans["recorder"], len(spans["agent"])))
	for i, s := range spans["recorder"] {
		o := spans["agent"][i]
		qt.Check(t, qt.IsTrue(s.SpanID == o.SpanID && s.Name == o.Name && s.Incomplete == o.Incomplete), qt.Commentf("%+v is not %+v", s, o))
	}
}

func TestSpeed(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	ticks := 0
	_, err := Run(ctx, golden(t, "failure.dtrec"), Options{Speed: 1e-9, Emit: func(*correlate.Span) {}, Tick: func(time.Time) error {
		if ticks++; ticks > 1 {
			t.Error("it does not wait")
		}
		cancel()
		return nil
	}})
	qt.Check(t, qt.ErrorIs(err, context.Canceled))
	qt.Check(t, qt.Equals(ticks, 1))

	broken := errors.New("no space left on device")
	_, err = Run(t.Context(), golden(t, "failure.dtrec"), Options{Emit: func(*correlate.Span) {}, Tick: func(time.Time) error { return broken }})
	qt.Check(t, qt.ErrorIs(err, broken))
}

// FuzzRun plays whatever reads as a recording.
func FuzzRun(f *testing.F) {
	for _, name := range []string{"failure.dtrec", "start.dtrec"} {
		r := golden(f, name)
		var b recording.Block
		for i := 0; r.ReadBlock(&b) == nil && i < 6; i++ {
			var out bytes.Buffer
			w, err := recording.NewWriter(&out, r.Header(), false)
			qt.Assert(f, qt.IsNil(err))
			qt.Assert(f, qt.IsNil(w.Block(&b)))
			f.Add(out.Bytes()[len(out.Bytes())-b.Len():])
		}
	}
	f.Fuzz(func(t *testing.T, raw []byte) {
		b, err := recording.ParseBlock(raw)
		if err != nil {
			return
		}
		var out bytes.Buffer
		w, err := recording.NewWriter(&out, &recording.Header{ID: "x"}, false)
		qt.Assert(t, qt.IsNil(err))
		qt.Assert(t, qt.IsNil(w.Block(b)))
		r, err := recording.NewReader(&out)
		qt.Assert(t, qt.IsNil(err))
		files, err := NewFiles(filepath.Join(t.TempDir(), "spans"), r.Header())
		qt.Assert(t, qt.IsNil(err))
		sum, err := Run(t.Context(), r, Options{Emit: files.Span, Tick: files.Tick})
		qt.Assert(t, qt.IsNil(err))
		qt.Assert(t, qt.IsTrue(sum.Torn != "")) // it has no end
		qt.Assert(t, qt.IsNil(files.Close()))
	})
}
