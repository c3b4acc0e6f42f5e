package redact

import (
	"bytes"
	"strings"
	"testing"

	"github.com/xenserver/dtagent/probes/event"
)

// FuzzStream passes any bytes in any pieces: nothing panics, lengths stay, and
// every byte is what it was, or Mask, or a digit that stands for another.
func FuzzStream(f *testing.F) {
	for _, m := range messages() {
		f.Add([]byte(m.text), uint16(len(m.text)/2), uint16(10), byte(1))
	}
	f.Add([]byte("POST /"), uint16(3), uint16(1), byte(0))
	f.Fuzz(func(t *testing.T, b []byte, cut, tail uint16, how byte) {
		r := New(4)
		c := min(int(cut), len(b))
		e := len(b) - min(int(tail), len(b)-c)
		for i, p := range [][2][]byte{{b[:c], nil}, {b[c:e], b[e:]}, {b, nil}, {b[:c], b[e:]}} {
			ev := event.Event{Kind: event.KindData, Dir: event.Dir(1 + (int(how)>>i)&1), Head: bytes.Clone(p[0]), Tail: bytes.Clone(p[1])}
			ev.Bytes = uint64(len(p[0]) + len(p[1]))
			if how&16 != 0 {
				ev.Bytes += uint64(how)
			}
			if how>>(i+4)&1 != 0 {
				ev.Flags = event.FlagMore
			}
			r.Event(&ev)
			check(t, p[0], ev.Head)
			check(t, p[1], ev.Tail)
		}
	})
}

func FuzzLog(f *testing.F) {
	f.Add([]byte("<175>Aug 21 02:00:23 xenopsd-xc: [debug|00-1-2-01|31 |Async.VM.start R:8ae06e1ea3d1|xenops_server] Task 51 reference x: [\"VM_start\",[\"u\",false]]"))
	f.Add([]byte("<175>Nov 22 12:23:14 xapi: [debug||63 |VM.start R:a3c936a85333|audit] VM.start: VM = '91b928e6-5e4c-9f1a-6147-fb162417c0e0 (x)'; SR = '"))
	f.Add([]byte("<1>[|a] Queue.push [\"A\",{}] onto x"))
	f.Fuzz(func(t *testing.T, b []byte) {
		ev := event.Event{Kind: event.KindLog, Head: bytes.Clone(b)}
		New(1).Event(&ev)
		check(t, b, ev.Head)
	})
}

// FuzzSecret puts a reference as the first parameter, a password and a member
// of any name and any text around them into calls of each form.
func FuzzSecret(f *testing.F) {
	f.Add("VM.start", "name", "text", uint16(100))
	f.Add("session.login_with_password", `a"b\`, `\"debug\":\"`, uint16(3))
	f.Fuzz(func(t *testing.T, method, name, text string, cut uint16) {
		for _, s := range []string{method, name, text} {
			// Text that pretends to be debug_info shows what it holds.
			if leaks([]byte(s), secrets...) != "" || strings.Contains(s, "debug_info") || strings.Contains(s, "dbg") {
				return
			}
		}
		value := `{` + quoted(name) + `:` + quoted(text+canary) + `,"p":[` + quoted(canary) + `,` + quoted(text) + `,` + quoted(canaryRef) + `]}`
		call := `{"method":` + quoted(method) + `,"params":[` + quoted(canaryRef) + `,` + value + `],"id":1}`
		xmlText := strings.NewReplacer("<", "&lt;", "&", "&amp;", ">", "&gt;").Replace(text)
		for _, m := range []string{
			post("/jsonrpc", "", call),
			answer(transfer(call)),
			answer(transfer(switchCall(value))),
			post("/request/a.b/c:1", "", switchCall(value)),
			post("/", "", xmlCall("VM.start", canaryRef, xmlText, canary)),
			answer(xmlFailure("X", xmlText, canary)),
		} {
			x := newExchange()
			n := int(cut) % len(m)
			if got := leaks([]byte(x.send(event.In, m, n)), secrets...); got != "" {
				t.Fatalf("%q shows %q", m, got)
			}
		}
	})
}

func check(t *testing.T, before, after []byte) {
	if len(before) != len(after) {
		t.Fatalf("%d bytes became %d", len(before), len(after))
	}
	for i, b := range after {
		if b != before[i] && b != Mask && b != '1' {
			t.Fatalf("byte %d: %q became %q", i, before[i], b)
		}
	}
}

func BenchmarkRedact(b *testing.B) {
	r := New(0)
	for _, m := range []struct{ name, text string }{
		{"header", "POST / HTTP/1.1\r\nhost: localhost\r\nuser-agent: Python-xmlrpc/3.11\r\ntraceparent: " + traceparent + "\r\ncontent-type: text/xml\r\ncontent-length: 202\r\n\r\n"},
		{"xml", xmlCall("VM.get_record", canaryRef, canaryRef)},
		{"transfer", answer(transfer(switchCall(`{"vm":"` + strings.Repeat("x", 1000) + `"}`)))},
		{"log", "<175>Aug 21 02:00:23 xenopsd-xc: [debug|" + traceparent + "|31 |Async.VM.start R:8ae06e1ea3d1|xenops_server] Task 51 reference Async.VM.start R:8ae06e1ea3d1: [\"VM_start\",[\"91b928e6-5e4c-9f1a-6147-fb162417c0e0\",false]]"},
	} {
		b.Run(m.name, func(b *testing.B) {
			b.ReportAllocs()
			b.SetBytes(int64(len(m.text)))
			ev := event.Event{Kind: event.KindData, Dir: event.In, Conn: event.Conn{TGID: 1}, Head: make([]byte, len(m.text)), Bytes: uint64(len(m.text))}
			if m.name == "log" {
				ev.Kind = event.KindLog
			}
			for range b.N {
				copy(ev.Head, m.text)
				r.Event(&ev)
			}
		})
	}
}

func TestNoAllocations(t *testing.T) {
	r := New(0)
	texts := []string{}
	for _, m := range messages() {
		texts = append(texts, m.text)
	}
	buf := make([]byte, 1<<16)
	run := func() {
		for i, text := range texts {
			n := copy(buf, text)
			ev := event.Event{Kind: event.KindData, Dir: event.In, Conn: event.Conn{TGID: 1, FD: int32(i)}, Head: buf[:n], Bytes: uint64(n)}
			r.Event(&ev)
		}
	}
	run()
	if n := testing.AllocsPerRun(100, run); n != 0 {
		t.Errorf("%v allocations for %d events", n, len(texts))
	}
}
