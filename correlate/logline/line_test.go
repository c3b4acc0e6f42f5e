package logline

import (
	"bytes"
	"fmt"
	"os"
	"strings"
	"testing"

	"github.com/go-quicktest/qt"
	"github.com/xenserver/dtagent/correlate/wire"
)

// recorded returns the recorded lines.
func recorded(t testing.TB) [][]byte {
	b, err := os.ReadFile("testdata/lines.txt")
	qt.Assert(t, qt.IsNil(err))
	return bytes.Split(bytes.TrimSuffix(b, []byte("\n")), []byte("\n"))
}

func showLine(l *Line) string {
	s := fmt.Sprintf("%d %s %s", l.Priority, l.Program, l.Level)
	if l.Trace != nil {
		s += fmt.Sprintf(" trace=%s", l.Trace)
	}
	if l.Host != nil {
		s += fmt.Sprintf(" host=%s", l.Host)
	}
	s += fmt.Sprintf(" %d %q tag=%q", l.Thread, l.ThreadName, l.Tag)
	if l.Module != nil {
		s += fmt.Sprintf(" %s: %s", l.Module, l.Message)
	}
	return s
}

func TestParse(t *testing.T) {
	for _, test := range []struct{ in, want string }{
		{`<175>Nov 22 12:22:28 xenopsd-xc: [debug||46 |VM.start_on R:454f085a09b2|xenops_server] Task 0 …`,
			`175 xenopsd-xc debug 46 "" tag="VM.start_on R:454f085a09b2" xenops_server: Task 0 …`},
		{`<174>Nov 22 12:23:14 xapi: [ info|00-ab68d9f01d9f44369ce3e6cee8e98b98-1dcca484d1465041-01|64 /var/lib/xcp/xapi|VM.start_on R:07432559b308|xapi_vm_helpers] The VM's BIOS`,
			`174 xapi info trace=00-ab68d9f01d9f44369ce3e6cee8e98b98-1dcca484d1465041-01 64 "/var/lib/xcp/xapi" tag="VM.start_on R:07432559b308" xapi_vm_helpers: The VM's BIOS`},
		{`<175>Aug  1 02:00:23 xapi: [debug|host-1|31 HTTPS 10.71.9.4->:::80|Async.VM.start R:8ae06e1ea3d1|xapi] x`,
			`175 xapi debug host=host-1 31 "HTTPS 10.71.9.4->:::80" tag="Async.VM.start R:8ae06e1ea3d1" xapi: x`},
		{`<172>Nov 22 12:22:17 xcp-networkd: [ warn||4 ||network_monitor_thread] Error in IP watcher: End_of_file\x0A`,
			`172 xcp-networkd warn 4 "" tag="" network_monitor_thread: Error in IP watcher: End_of_file\x0A`},
		{`<175>Nov 22 12:23:14 xenopsd-xc: [debug|00-ab68d9f01d9f44369ce3e6cee8e98b98-73d887606c92e489-01|90 |VM.start_on R:07432559b308\x0A{"traceparent":"00-ab68d9f01d9f44369ce3e6cee8e98b98-73d887606c92e489-01","baggage":[["span.depth","10"],["k","a|b] c"]]}|task_server] Task 5 completed; duration = 0`,
			`175 xenopsd-xc debug trace=00-ab68d9f01d9f44369ce3e6cee8e98b98-73d887606c92e489-01 90 "" tag="VM.start_on R:07432559b308\\x0A{\"traceparent\":\"00-ab68d9f01d9f44369ce3e6cee8e98b98-73d887606c92e489-01\",\"baggage\":[[\"span.depth\",\"10\"],[\"k\",\"a|b] c\"]]}" task_server: Task 5 completed; duration = 0`},
		{`<175>Nov 22 12:22:28 xapi[123]: [debug||1 |a|b|c.d-e] m] n`, `175 xapi debug 1 "" tag="a|b" c.d-e: m] n`},
		{`<175>Nov 22 12:22:28 xapi: [debug|tra|ce|7 x|tag|mod] m`, `175 xapi debug host=tra|ce 7 "x" tag="tag" mod: m`},
		{`<175>Nov 22 12:22:28 xapi: [debug||7 x|tag|mod]`, `175 xapi debug 7 "x" tag="tag" mod: `},
		{`<175>Nov 22 12:22:28 xapi: [debug||7 x|tag|mod] `, `175 xapi debug 7 "x" tag="tag" mod: `},
		{`<175>Nov 22 12:22:28 xapi: [debug||7 x|tag|`, `175 xapi debug 7 "x" tag="tag|"`},
		{`<175>Nov 22 12:22:28 xapi: [debug||7 x|`, `175 xapi debug 7 "x" tag=""`},
		// What a client sent as traceparent is logged as it is.
		{`<175>Nov 22 12:22:28 xapi: [debug|00-ab68d9f01d9f44369ce3e6cee8e98b98-73d887606c92e489-01|5 y|VM.start R:8ae06e1ea3d1|dispatcher] spawning|41 /var/lib/xcp/xapi||http] Request`, ""},
		{`<175>Nov 22 12:22:28 xapi: [debug|h|5 y|t|m] a|b 1|41 |c] d`, `175 xapi debug host=h 5 "y" tag="t" m: a|b 1|41 |c] d`},
		{`<175>Nov 22 12:22:28 xapi: [debug||5 y|t|m] a|41 b||c] d`, `175 xapi debug 5 "y" tag="t" m: a|41 b||c] d`},
		{`<30>Nov 22 12:22:28 systemd[1]: Started x.`, ""},
		{`<175>Nov 22 12:22:28 xapi: [debug||x|tag|mod] m`, ""},
		{`<175>Nov 22 12:22:28 xapi: [debug`, ""},
		{`<175`, ""},
		{`<>x: [d||1 ||m] x`, ""},
		{`<99999>x: [d||1 ||m] x`, ""},
		{``, ""},
		{"\x00\xff", ""},
	} {
		l, ok := Parse([]byte(test.in))
		qt.Check(t, qt.Equals(ok, test.want != ""), qt.Commentf("%s", test.in))
		if ok {
			qt.Check(t, qt.Equals(showLine(&l), test.want))
		}
	}
}

func TestRecordedLines(t *testing.T) {
	for _, in := range recorded(t) {
		l, ok := Parse(in)
		qt.Assert(t, qt.IsTrue(ok), qt.Commentf("%s", in))
		qt.Check(t, qt.IsNotNil(l.Module), qt.Commentf("%s", in))
		_, hasAnchor := l.Anchor()
		// Cut anywhere it says less, never other things.
		for n := range in {
			cut, ok := Parse(in[:n:n])
			if !ok {
				continue
			}
			qt.Assert(t, qt.Equals(string(cut.Program), string(l.Program)))
			qt.Assert(t, qt.Equals(cut.Thread, l.Thread), qt.Commentf("%s", in[:n]))
			qt.Assert(t, qt.Equals(string(cut.Trace), string(l.Trace)))
			if cut.Module != nil {
				qt.Assert(t, qt.Equals(string(cut.Module), string(l.Module)))
				qt.Assert(t, qt.Equals(string(cut.Tag), string(l.Tag)))
			}
			if _, task := cut.Task(); !task.IsZero() {
				_, want := l.Task()
				qt.Assert(t, qt.Equals(task, want))
			}
			if a, ok := cut.Anchor(); ok {
				qt.Assert(t, qt.IsTrue(hasAnchor), qt.Commentf("%s: %v", in[:n], a.Kind))
			}
		}
	}
}

func TestDebugInfo(t *testing.T) {
	l, ok := Parse([]byte(`<175>Nov 22 12:23:14 xenopsd-xc: [debug||90 |VM.start_on R:07432559b308\x0A{"traceparent":"00-ab68d9f01d9f44369ce3e6cee8e98b98-73d887606c92e489-01","baggage":[["span.depth","10"]]}|task_server] Task 5 completed; duration = 0`))
	qt.Assert(t, qt.IsTrue(ok))
	label, task := l.Task()
	qt.Check(t, qt.Equals(string(label), "VM.start_on"))
	qt.Check(t, qt.Equals(task.String(), "R:07432559b308"))
	var d wire.Decoder
	di := l.DebugInfo(&d)
	qt.Check(t, qt.Equals(di.Task, task))
	qt.Check(t, qt.Equals(di.Context.SpanID.String(), "73d887606c92e489"))
	qt.Check(t, qt.Equals(string(di.Baggage), "span.depth=10"))
}

func TestParentTask(t *testing.T) {
	for in, want := range map[string]int{
		`Parallel:task=12.atoms=3.(Devices.plug (qemu) VM=91b928e6-5e4c-9f1a-6147-fb162417c0e0)`:       12,
		`Nested_parallel:task=34.atoms=2.(VBD.plug RW VM=91b9)\x0A{"traceparent":null,"baggage":null}`: 34,
		`Parallel:task=34.atoms=1.(Nested_parallel:task=12.atoms=2.(x))`:                               34,
		`VM.start_on R:07432559b308`:            -1,
		`Parallel:task=`:                        -1,
		`Parallel:task=1`:                       -1,
		`Parallel:task=x.atoms`:                 -1,
		`Parallel:task=9999999999999999999999.`: -1,
		`x Parallel:task=1.`:                    -1,
		``:                                      -1,
	} {
		n, ok := ParentTask([]byte(in))
		qt.Check(t, qt.Equals(ok, want >= 0), qt.Commentf("%s", in))
		if ok {
			qt.Check(t, qt.Equals(n, uint64(want)))
		}
	}
}

func FuzzParse(f *testing.F) {
	for i, in := range recorded(f) {
		if i%10 == 0 {
			f.Add(in)
		}
	}
	f.Add([]byte(`<175>Nov 22 12:22:28 xapi: [debug|a|b|7 x|t]|g|mod] task x R:8ae06e1ea3d1 created by task D:8ae06e1ea3d1`))
	f.Add([]byte(`<175>Nov 22 12:22:28 x: [debug||7 ||m] Performing: ["Parallel",["a","b",[["A",1],["Serial",["","",[["B"]]]]]]]`))
	var d wire.Decoder
	var name []byte
	f.Fuzz(func(t *testing.T, b []byte) {
		l, ok := Parse(b)
		if !ok {
			if l.Tag != nil || l.Message != nil {
				t.Fatal("a line that is none")
			}
			return
		}
		if n := len(l.Program) + len(l.Level) + len(l.ThreadName) + len(l.Tag) + len(l.Module) + len(l.Message) + len(l.Trace) + len(l.Host); n > len(b) {
			t.Fatalf("%d bytes of %d", n, len(b))
		}
		l.Task()
		l.DebugInfo(&d)
		ParentTask(l.Tag)
		a, ok := l.Anchor()
		if ok != (a.Kind != NoKind) {
			t.Fatal(a.Kind)
		}
		name, _ = AppendName(name[:0], a.Operation)
		if len(name) > 4*len(a.Operation)+64 {
			t.Fatalf("%s: %s", a.Operation, name)
		}
		if o := Object(a.Operation); o != nil && !strings.Contains(string(a.Operation), string(o)) {
			t.Fatal(string(o))
		}
	})
}

func TestNoAllocation(t *testing.T) {
	lines := recorded(t)
	var d wire.Decoder
	var name []byte
	run := func() {
		for _, b := range lines {
			l, ok := Parse(b)
			if !ok {
				continue
			}
			l.Task()
			l.DebugInfo(&d)
			if a, ok := l.Anchor(); ok {
				name, _ = AppendName(name[:0], a.Operation)
				Object(a.Operation)
			}
		}
	}
	run()
	qt.Assert(t, qt.Equals(testing.AllocsPerRun(20, run), 0))
}

func BenchmarkParse(b *testing.B) {
	lines := recorded(b)
	size := 0
	for _, l := range lines {
		size += len(l)
	}
	b.Run("line and anchor", func(b *testing.B) {
		b.SetBytes(int64(size / len(lines)))
		b.ReportAllocs()
		for i := 0; b.Loop(); i++ {
			if l, ok := Parse(lines[i%len(lines)]); ok {
				l.Task()
				l.Anchor()
			}
		}
	})
}
