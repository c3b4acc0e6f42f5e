package capture

import (
	"bytes"
	"testing"

	"github.com/go-quicktest/qt"
	"github.com/xenserver/dtagent/correlate"
	"github.com/xenserver/dtagent/probes/event"
	"go.opentelemetry.io/otel/trace"
)

// TestNativeParents compares the native spans that messages name with what the
// toolstack wrote: a send lies under the native span below which xapi's own send
// does, and the RPC below it is that span's child.
func TestNativeParents(t *testing.T) {
	for _, name := range []string{"lifecycle-on", "lifecycle-three"} {
		t.Run(name, func(t *testing.T) {
			c := know(t, name)
			cmp := compare(c, c.r.Events())
			n := newNatives(cmp.r.Native)
			right, wrong, none := 0, 0, 0
			for s, o := range cmp.pair(t, n) {
				var under trace.SpanID // what ours says it lies under
				switch {
				case s.Kind == "PRODUCER":
					under = nativeOf(cmp.o, o)
				case s.Kind == "CONSUMER":
					if send := cmp.o.byID[o.ParentID]; send != nil && send.Kind == trace.SpanKindProducer {
						under = nativeOf(cmp.o, send)
					}
				default:
					continue
				}
				switch above := n.byID[s.ParentID]; {
				case !under.IsValid():
					none++
				case s.Kind == "CONSUMER" && s.ParentID == under.String(), s.Kind == "PRODUCER" && above.ParentID == under.String():
					right++
				default:
					wrong++
					t.Logf("%s of %s is under %s, ours says %s", s.Name, at(event.Time(s.Start())), s.ParentID, under)
				}
			}
			t.Logf("%d right, %d wrong, %d without", right, wrong, none)
			qt.Check(t, qt.IsTrue(right >= 20))
			qt.Check(t, qt.IsTrue(ratio(right, right+wrong+none) >= 0.99))
		})
	}
	t.Run("lifecycle-off", func(t *testing.T) {
		k := know(t, "lifecycle-off")
		for _, s := range run(k.r.Events()).spans {
			qt.Check(t, qt.IsFalse(s.Native.IsValid()), qt.Commentf(s.Name))
		}
	})
}

// nativeOf returns the native span that s lies under: its Native, or its parent
// when that is none of ours.
func nativeOf(o *outcome, s *correlate.Span) trace.SpanID {
	if s.Native.IsValid() || o.byID[s.ParentID] != nil {
		return s.Native
	}
	return s.ParentID
}

// TestLateBinding hides the traceparent of every request. The toolstack's own
// spans are still in the callers' traces, and what it sends and logs says so:
// the calls that show it join that trace, and none joins another one.
func TestLateBinding(t *testing.T) {
	for _, logs := range []bool{true, false} {
		for name, show := range map[string]map[bool]int{"lifecycle-on": {true: 6, false: 2}, "lifecycle-three": {true: 12, false: 4}} {
			what := name + " with log lines that carry the trace"
			if !logs {
				what = name + " with log lines as before 26.8"
			}
			t.Run(what, func(t *testing.T) {
				k := know(t, name)
				events := k.r.Events()
				for i := range events {
					e := &events[i]
					if e.Kind == event.KindLog && !logs {
						e.Head = withoutTrace(e.Head)
					}
					if e.Kind == event.KindData && e.Component == event.Xapi && e.Dir == event.In {
						hide(e.Head)
					}
				}
				o := run(events)
				callers := make(map[string]bool)
				for _, call := range k.x.Calls {
					if call.TraceID != "" {
						callers[call.TraceID] = true
					}
				}
				bound, open := 0, 0
				for _, call := range k.x.Calls {
					s := callAt(o, call)
					if s == nil {
						t.Errorf("no span for %s", call.Name)
						continue
					}
					if s.ParentID.IsValid() {
						t.Errorf("%s has a parent: %s", call.Name, o.path(s))
					}
					switch {
					case call.TraceID == "":
						if callers[s.TraceID.String()] {
							t.Errorf("%s, which was sent without a traceparent, joined the caller's trace %s", call.Name, s.TraceID)
						}
					case s.TraceID.String() == call.TraceID:
						bound++
					default:
						open++
						if callers[s.TraceID.String()] {
							t.Errorf("%s of trace %s joined %s", call.Name, call.TraceID, s.TraceID)
						}
					}
				}
				t.Logf("%d calls joined their trace, %d showed none", bound, open)
				// Those that send a message, and those whose thread logs in their name before
				// it does anything else.
				qt.Check(t, qt.Equals(bound, show[logs]))
			})
		}
	}
}

// hide makes a traceparent header one that nobody reads, of the same length.
func hide(b []byte) {
	for i := range b {
		if n := len("\ntraceparent:"); len(b)-i >= n && bytes.EqualFold(b[i:i+n], []byte("\ntraceparent:")) {
			b[i+1] = 'x'
		}
	}
}

// withoutTrace empties the second field of a log line.
func withoutTrace(b []byte) []byte {
	i := bytes.Index(b, []byte("|00-"))
	j := bytes.IndexByte(b, '[')
	if i < 0 || j < 0 || i > j+16 {
		return b
	}
	end := bytes.IndexByte(b[i+1:], '|')
	if end < 0 {
		return b
	}
	return append(append([]byte(nil), b[:i+1]...), b[i+1+end:]...)
}

func callAt(o *outcome, call *Call) *correlate.Span {
	for _, s := range o.spans {
		if s.Kind == trace.SpanKindServer && s.Component == event.Xapi && s.Name == call.Name && near(s.Start, int64(call.Start), 2000) {
			return s
		}
	}
	return nil
}
