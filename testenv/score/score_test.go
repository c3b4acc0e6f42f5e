package score

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/go-quicktest/qt"

	"github.com/xenserver/dtagent/cmd/dtagent/zipkin"
	"github.com/xenserver/dtagent/testenv/truth"
)

const offset = 1_000_000_000_000 // of the tests' wall clock

// scene is a truth and what an agent might say of it.
type scene struct {
	t       *testing.T
	entries []truth.Entry
	spans   []zipkin.Span
	native  bool
	legacy  bool
}

// happened adds an entry that lasted from start to end, in ms.
func (s *scene) happened(id, parent string, k truth.Kind, name string, tid uint32, start, end int64) *truth.Entry {
	s.entries = append(s.entries, truth.Entry{ID: id, Parent: parent, Kind: k, Name: name, Component: "xapi", Start: start * 1e6, End: end * 1e6, TGID: 10, TID: tid})
	return &s.entries[len(s.entries)-1]
}

// said adds a span of trace 1.
func (s *scene) said(id, parent, kind, name, link string, tid uint32, start, end int64) *zipkin.Span {
	s.spans = append(s.spans, zipkin.Span{TraceID: "1", ID: id, ParentID: parent, Kind: kind, Name: name,
		Timestamp: (start*1e6 + offset) / 1000, Duration: (end - start) * 1000,
		Local: zipkin.Endpoint{ServiceName: "xapi"},
		Tags:  map[string]string{"process.pid": "10", "thread.id": fmt.Sprint(tid), "dt.link.method": link}})
	return &s.spans[len(s.spans)-1]
}

func (s *scene) compare() *Report {
	s.t.Helper()
	dir := s.t.TempDir()
	var b []byte
	for _, e := range s.entries {
		line, err := json.Marshal(e)
		qt.Assert(s.t, qt.IsNil(err))
		b = append(append(b, line...), '\n')
	}
	qt.Assert(s.t, qt.IsNil(os.WriteFile(filepath.Join(dir, "x.truth"), b, 0o600)))
	log, err := truth.Read(dir)
	qt.Assert(s.t, qt.IsNil(err))
	return Compare(log, s.spans, Trial{Since: 50e6, Until: 900e6, Offset: offset, Native: s.native, Legacy: s.legacy})
}

const sent = "00-000000000000000000000000000000a1-00000000000000b1-01"

// call is a call with a trace context, its task, and what the task asks for.
func call(t *testing.T) *scene {
	s := &scene{t: t}
	s.happened("call", "", truth.API, "Async.VM.start", 1, 100, 110).Traceparent = sent
	s.happened("task", "call", truth.Task, "Async.VM.start", 2, 105, 200)
	s.happened("send", "task", truth.Send, "send q VM.start", 2, 120, 150).Detail = "q 7"
	s.happened("rpc", "send", truth.RPC, "VM.start", 3, 125, 149).Detail = "q 7"
	s.said("c", "00000000000000b1", "SERVER", "Async.VM.start", "traceparent", 1, 100, 110)
	s.said("t", "c", "", "VM.start", "clone", 2, 104, 200)
	message := func(z *zipkin.Span) {
		z.Tags["messaging.destination.name"], z.Tags["messaging.message.id"] = "q", "7"
	}
	message(s.said("s", "t", "PRODUCER", "send q VM.start", "thread", 2, 120, 150))
	message(s.said("r", "s", "CONSUMER", "VM.start", "queue", 3, 124, 149))
	return s
}

func TestAllIsRight(t *testing.T) {
	r := call(t).compare()
	qt.Check(t, qt.Equals(r.Total(), Links{Right: 4}))
	qt.Check(t, qt.Equals(*r.Methods["queue"], Links{Right: 1}))
	qt.Check(t, qt.Equals(*r.Kinds["task"], Links{Right: 1}))
	qt.Check(t, qt.Equals(r.Total().Precision(), 1))
	qt.Check(t, qt.Equals(r.Total().Recall(), 1))
	qt.Check(t, qt.DeepEquals([]int{r.Entries, r.Spans, r.Absent, r.Extra, r.Traces, r.Joined, r.Unmarked}, []int{4, 4, 0, 0, 1, 0, 0}))
	qt.Check(t, qt.HasLen(r.Examples, 0))
	qt.Check(t, qt.Equals(r.Bounds["send"].Ends, 2))
	qt.Check(t, qt.Equals(r.Bounds["send"].Within, 2))
}

// TestJudgements gives one span another parent and looks what becomes of it.
func TestJudgements(t *testing.T) {
	for _, test := range []struct {
		name   string
		span   int
		change func(*zipkin.Span)
		method string
		want   Links
		joined int
	}{
		{"none", 2, func(z *zipkin.Span) { z.ParentID = "" }, "thread", Links{Missed: 1}, 0},
		{"one further up", 3, func(z *zipkin.Span) { z.ParentID = "t" }, "queue", Links{Above: 1}, 0},
		{"the caller itself", 3, func(z *zipkin.Span) { z.ParentID = "00000000000000b1" }, "queue", Links{Above: 1}, 0},
		{"its own child", 2, func(z *zipkin.Span) { z.ParentID = "r" }, "thread", Links{Wrong: 1}, 0},
		{"one that there is not", 2, func(z *zipkin.Span) { z.ParentID = "9" }, "thread", Links{Wrong: 1}, 0},
		{"another caller", 0, func(z *zipkin.Span) { z.ParentID = "00000000000000b2" }, "traceparent", Links{Wrong: 1}, 0},
		{"not even its caller", 0, func(z *zipkin.Span) { z.ParentID = "" }, "traceparent", Links{Missed: 1}, 0},
		{"another method", 3, func(z *zipkin.Span) { z.ParentID = "t"; z.Tags["dt.link.method"] = "task" }, "task", Links{Above: 1}, 0},
	} {
		t.Run(test.name, func(t *testing.T) {
			s := call(t)
			test.change(&s.spans[test.span])
			r := s.compare()
			total := r.Total()
			qt.Check(t, qt.Equals(total.Right, 3))
			total.Right = 0
			qt.Check(t, qt.Equals(total, test.want))
			got := *r.Methods[test.method]
			got.Right = 0
			qt.Check(t, qt.Equals(got, test.want))
			qt.Check(t, qt.Equals(r.Joined, test.joined))
			qt.Check(t, qt.Equals(r.Unmarked, test.want.Missed+test.want.Above))
			qt.Check(t, qt.HasLen(r.Mistakes, test.want.Wrong))
			qt.Check(t, qt.HasLen(r.Examples, 1-test.want.Wrong))
		})
	}
}

// TestNowhere: the parent of what another host asks for is a span of that host,
// which it may not have made. On one host there is no such thing.
func TestNowhere(t *testing.T) {
	s := &scene{t: t}
	s.happened("client", "", truth.Client, "VM.start", 1, 100, 110).Tag = "R:1"
	s.happened("call", "client", truth.API, "VM.start", 2, 101, 109)
	s.said("c", "", "CLIENT", "VM.start", "none", 1, 100, 110)
	s.said("a", "9", "SERVER", "VM.start", "task", 2, 101, 109)
	r := s.compare()
	qt.Check(t, qt.Equals(r.Total(), Links{Nowhere: 1}))
	qt.Check(t, qt.Equals(r.Total().Precision(), 0))
	s.spans[1].ParentID = "c"
	qt.Check(t, qt.Equals(s.compare().Total(), Links{Right: 1}))
}

// TestJoined: a trace with spans of two callers is found, whatever its parents are.
func TestJoined(t *testing.T) {
	s := call(t)
	s.happened("other", "", truth.API, "VM.get_record", 1, 300, 301)
	s.said("o", "", "SERVER", "VM.get_record", "none", 1, 300, 301)
	r := s.compare()
	qt.Check(t, qt.Equals(r.Joined, 1))
	s.spans[4].TraceID = "2"
	qt.Check(t, qt.Equals(s.compare().Joined, 0))
	s.entries[4].Background = true
	s.spans[4].TraceID = "1"
	qt.Check(t, qt.Equals(s.compare().Joined, 1)) // background work is nobody's who calls
}

// TestThreadsOfOneNumber: a number that is used again is told apart by the time.
func TestThreadsOfOneNumber(t *testing.T) {
	s := &scene{t: t}
	for i := range int64(20) {
		id := fmt.Sprint(i)
		s.happened("call"+id, "", truth.API, "VM.start", 1, 100+10*i, 109+10*i)
		s.happened("send"+id, "call"+id, truth.Send, "send q VM.start", 1, 101+10*i, 108+10*i).Detail = "q " + id
		s.said("c"+id, "", "SERVER", "VM.start", "none", 1, 100+10*i, 109+10*i).TraceID = id
		z := s.said("s"+id, "c"+id, "PRODUCER", "send q VM.start", "thread", 1, 101+10*i, 108+10*i)
		z.TraceID, z.Tags["messaging.destination.name"], z.Tags["messaging.message.id"] = id, "q", id
	}
	r := s.compare()
	qt.Check(t, qt.Equals(r.Total(), Links{Right: 20}))
	s.spans[7].ParentID = "c4" // the next call's
	s.spans[7].TraceID = "4"
	r = s.compare()
	qt.Check(t, qt.Equals(r.Total(), Links{Right: 19, Wrong: 1}))
	qt.Check(t, qt.Equals(r.Joined, 1))
}

// asking is a call whose SM script asks xapi for something.
func asking(t *testing.T) *scene {
	s := call(t)
	s.happened("script", "rpc", truth.Process, "LVMSR vdi_attach", 20, 126, 140).TGID = 20
	s.happened("ask", "script", truth.API, "VDI.get_by_uuid", 5, 130, 131)
	z := s.said("p", "r", "", "LVMSR vdi_attach", "fork", 0, 126, 140)
	z.Tags["process.pid"] = "20"
	delete(z.Tags, "thread.id")
	s.said("a", "", "SERVER", "VDI.get_by_uuid", "none", 5, 130, 131).TraceID = "2"
	return s
}

// TestUntold: what an SM script asks xapi for names neither script nor task. Where
// the kernel side does not know who is at the other end, nothing tells it.
func TestUntold(t *testing.T) {
	s := asking(t)
	s.legacy = true
	r := s.compare()
	qt.Check(t, qt.Equals(r.Total(), Links{Right: 5}))
	qt.Check(t, qt.DeepEquals([]int{r.Untold, r.Guessed, r.Joined}, []int{1, 0, 0}))
	s.spans[5].ParentID = "t"
	qt.Check(t, qt.Equals(s.compare().Guessed, 1)) // an ancestor, by luck
	s.spans[5].ParentID = "x"
	qt.Check(t, qt.Equals(s.compare().Total(), Links{Right: 5, Wrong: 1}))
}

// TestScriptsCall: where it knows, the call is the script's.
func TestScriptsCall(t *testing.T) {
	s := asking(t)
	r := s.compare()
	qt.Check(t, qt.Equals(r.Total(), Links{Right: 5, Missed: 1}))
	qt.Check(t, qt.DeepEquals([]int{r.Untold, r.Guessed, r.Methods["socket"].Missed}, []int{0, 0, 1}))
	s.spans[5].ParentID, s.spans[5].TraceID = "p", "1"
	qt.Check(t, qt.Equals(s.compare().Total(), Links{Right: 6}))
	s.spans[5].ParentID = "r"
	qt.Check(t, qt.Equals(s.compare().Total(), Links{Right: 5, Above: 1}))
	s.spans[5].ParentID = "x"
	qt.Check(t, qt.Equals(s.compare().Total(), Links{Right: 5, Nowhere: 1}))
}

// TestPiecesOfAProcess: what losses made of one process is not taken for a part of
// the next one with its number, however long it seemed to last.
func TestPiecesOfAProcess(t *testing.T) {
	s := asking(t)
	process := func(id, parent, name, link string, pid, start, end int64) {
		z := s.said(id, parent, "", name, link, 0, start, end)
		z.Tags["process.pid"] = fmt.Sprint(pid)
		delete(z.Tags, "thread.id")
	}
	s.happened("tap", "script", truth.Process, "tap-ctl", 30, 133, 135).TGID = 30
	s.happened("other", "", truth.API, "VM.shutdown", 9, 150, 200)
	s.happened("again", "other", truth.Process, "LVMSR vdi_attach", 20, 160, 170).TGID = 20
	s.spans = slices.DeleteFunc(s.spans, func(z zipkin.Span) bool { return z.ID == "p" || z.ID == "a" })
	process("p1", "r", "xapi", "fork", 20, 126, 130)
	process("p2", "", "LVMSR vdi_attach", "none", 20, 130, 160) // its end was not seen
	process("c", "p2", "tap-ctl", "fork", 30, 133, 135)
	for i := range s.spans {
		switch z := &s.spans[i]; z.ID {
		case "p1", "p2":
			z.Tags["dt.incomplete"] = "events lost"
			if z.ID == "p2" {
				z.TraceID = "3"
			}
		case "c":
			z.TraceID = "3"
		}
	}
	r := s.compare()
	qt.Check(t, qt.Equals(r.Total().Wrong, 0), qt.Commentf("%v", r.Mistakes))
	qt.Check(t, qt.Equals(r.Joined, 0))
}

// TestProcessWithoutItsName: a child whose exec and end were lost has its parent's name,
// which the next process with its number may have, too.
func TestProcessWithoutItsName(t *testing.T) {
	s := asking(t)
	s.happened("tap", "script", truth.Process, "tap-ctl", 30, 133, 135).TGID = 30
	s.happened("other", "", truth.API, "VM.shutdown", 9, 150, 200)
	s.happened("again", "other", truth.Process, "LVMSR vdi_attach", 30, 160, 170).TGID = 30
	s.spans = slices.DeleteFunc(s.spans, func(z zipkin.Span) bool { return z.ID == "a" })
	z := s.said("c", "p", "", "LVMSR vdi_attach", "fork", 0, 132, 170)
	z.Tags["process.pid"] = "30"
	delete(z.Tags, "thread.id")
	z.Tags["dt.incomplete"] = "events lost"
	r := s.compare()
	qt.Check(t, qt.Equals(r.Total().Wrong, 0), qt.Commentf("%v", r.Mistakes))
}

// TestRequestsOfOneThread: of requests of one thread whose ends losses hide, the one
// that came with the span's trace context is the span's.
func TestRequestsOfOneThread(t *testing.T) {
	s := &scene{t: t}
	other := "00-000000000000000000000000000000a2-00000000000000b2-01"
	s.happened("first", "", truth.API, "VM.start", 1, 100, 140).Traceparent = sent
	s.happened("second", "", truth.API, "VM.start", 1, 139, 150).Traceparent = other
	s.said("c", "00000000000000b1", "SERVER", "VM.start", "traceparent", 1, 139, 150).Tags["dt.incomplete"] = "events lost"
	qt.Check(t, qt.Equals(s.compare().Total(), Links{Right: 1, Missed: 1}))
	s.spans[0].ParentID = "00000000000000b3" // nobody's
	qt.Check(t, qt.Equals(s.compare().Total(), Links{Wrong: 1, Missed: 1}))
}

// TestNative: what nobody called for can hang under a span of XAPI's own, when there
// are such spans.
func TestNative(t *testing.T) {
	s := &scene{t: t}
	s.happened("send", "", truth.Send, "send q M", 1, 100, 110).Detail = "q 1"
	z := s.said("s", "4711", "PRODUCER", "send q M", "traceparent", 1, 100, 110)
	z.Tags["messaging.destination.name"], z.Tags["messaging.message.id"] = "q", "1"
	qt.Check(t, qt.Equals(s.compare().Total(), Links{Wrong: 1}))
	s.native = true
	r := s.compare()
	qt.Check(t, qt.Equals(r.Total(), Links{}))
	qt.Check(t, qt.Equals(r.OfXapi, 1))
	s.spans[0].Tags["dt.link.method"] = "thread"
	qt.Check(t, qt.Equals(s.compare().Total(), Links{Wrong: 1}))
}

// TestSilent: what makes no sign has no span, and what it does is its parent's.
func TestSilent(t *testing.T) {
	s := &scene{t: t}
	s.happened("op", "", truth.Operation, "VM_start", 1, 100, 200).Detail = "4"
	s.happened("parallel", "op", truth.Atom, "Parallel (VBD_plug)", 1, 110, 150)
	s.happened("inner", "parallel", truth.Atom, "VBD_plug", 1, 110, 150)
	s.happened("send", "inner", truth.Send, "send q M", 1, 120, 130).Detail = "q 1"
	s.said("o", "", "", "VM_start", "none", 1, 100, 200).Tags["dt.xenopsd.task.id"] = "4"
	s.said("a", "o", "", "Parallel (VBD_plug)", "thread", 1, 110, 150).Local.ServiceName = "xenopsd"
	z := s.said("s", "a", "PRODUCER", "send q M", "thread", 1, 120, 130)
	z.Tags["messaging.destination.name"], z.Tags["messaging.message.id"] = "q", "1"
	r := s.compare()
	qt.Check(t, qt.Equals(r.Total(), Links{Right: 2}))
	qt.Check(t, qt.Equals(r.Entries, 3))
}

// TestEdgesOfTheTrial: what began before or ended after it does not count, and
// neither does what belongs to a call whose end is not in the truth.
func TestEdgesOfTheTrial(t *testing.T) {
	s := call(t)
	s.happened("early", "", truth.API, "VM.start", 9, 40, 60)
	s.happened("late", "", truth.API, "VM.start", 9, 800, 1000)
	s.happened("part", "unknown", truth.Send, "send q M", 9, 300, 310).Detail = "q 8"
	r := s.compare()
	qt.Check(t, qt.Equals(r.Entries, 4))
	qt.Check(t, qt.Equals(r.Absent, 0))
}

func TestBounds(t *testing.T) {
	s := call(t)
	s.spans[2].Timestamp -= 6000 // before its entry
	s.spans[2].Duration += 3000
	r := s.compare()
	b := r.Bounds["send"]
	qt.Check(t, qt.DeepEquals([]int{b.Ends, b.Outside, b.Within}, []int{2, 1, 1}))
	qt.Check(t, qt.Equals(b.P99, 6*time.Millisecond))
	s.spans[2].Tags["dt.incomplete"] = "events lost" // says so itself
	qt.Check(t, qt.IsNil(s.compare().Bounds["send"]))
}

func TestPrint(t *testing.T) {
	s := call(t)
	s.spans[2].ParentID = ""
	var b strings.Builder
	qt.Assert(t, qt.IsNil(s.compare().Print(&b)))
	for _, want := range []string{"thread", "queue", "0.75000", "4 things happened", "1 traces, 0 with more than one caller"} {
		qt.Check(t, qt.IsTrue(strings.Contains(b.String(), want)), qt.Commentf("%s in\n%s", want, b.String()))
	}
}
