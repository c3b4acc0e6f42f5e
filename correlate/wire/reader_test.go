package wire

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"strings"
	"testing"

	"github.com/go-quicktest/qt"
)

// Heads as real clients and the real toolstack write them.
const (
	pythonHead = "POST / HTTP/1.1\r\nHost: localhost\r\ntraceparent: 00-2a0a2978ccf994391855a9250dd864f7-b7ad6b7169203331-01\r\nAccept-Encoding: gzip\r\nContent-Type: text/xml\r\nUser-Agent: Python-xmlrpc/3.11\r\nContent-Length: 336\r\n\r\n"
	xapiReply  = "HTTP/1.1 200 OK\r\ncontent-length: 272\r\nconnection: keep-alive\r\ncache-control: no-cache, no-store\r\ncontent-type: text/xml\r\nAccess-Control-Allow-Origin: *\r\nAccess-Control-Allow-Headers: X-Requested-With\r\n\r\n"
	switchHead = "POST /request/org.xen.xapi.xenops.classic/xapi:7661 HTTP/1.1\r\nuser-agent: cohttp\r\ncontent-length: 246\r\nconnection: keep-alive\r\nhost: localhost\r\n\r\n"
	cliHead    = "POST /cli HTTP/1.0\r\nUser-agent: xe-cli/Unix/0.2\r\noriginator: cli\r\ntraceparent: 00-2a0a2978ccf994391855a9250dd864f7-b7ad6b7169203331-01\r\ncontent-length: 33\r\n\r\n"
	memberHead = "POST /jsonrpc HTTP/1.1\r\ncontent-length: 120\r\nsubtask-of: OpaqueRef:07432559-b308-82f5-7316-ef6271639300\r\nuser-agent: xen-api-libs/1.0\r\nconnection: keep-alive\r\ntask-id: OpaqueRef:8ae06e1e-a3d1-****-****-************\r\ntraceparent: 00-2a0a2978ccf994391855a9250dd864f7-b7ad6b7169203331-01\r\nbaggage: span.depth=7\r\n\r\n"
	proxyLine6 = "PROXY TCP6 ::ffff:10.71.9.4 ::ffff:10.71.9.2 51842 443\r\n"
)

func TestHead(t *testing.T) {
	for _, test := range []struct {
		name, in string
		want     string
		left     int64
	}{
		{"python", pythonHead,
			`POST / 1.1 length=336 keep traceparent="00-2a0a2978ccf994391855a9250dd864f7-b7ad6b7169203331-01" agent="Python-xmlrpc/3.11" host="localhost" type="text/xml"`, 336},
		{"reply", xapiReply, `200 1.1 length=272 keep type="text/xml"`, 272},
		{"switch", switchHead, `POST /request/org.xen.xapi.xenops.classic/xapi:7661 1.1 length=246 keep agent="cohttp" host="localhost"`, 246},
		{"xe", cliHead, `POST /cli 1.0 length=33 traceparent="00-2a0a2978ccf994391855a9250dd864f7-b7ad6b7169203331-01" agent="xe-cli/Unix/0.2"`, 33},
		{"member", memberHead, `POST /jsonrpc 1.1 length=120 keep traceparent="00-2a0a2978ccf994391855a9250dd864f7-b7ad6b7169203331-01" baggage="span.depth=7" agent="xen-api-libs/1.0" task=R:8ae06e1ea3d1 subtask-of=R:07432559b308`, 120},
		{"framed", "FRAME 000000000310" + memberHead, `framed POST /jsonrpc 1.1 length=120 keep traceparent="00-2a0a2978ccf994391855a9250dd864f7-b7ad6b7169203331-01" baggage="span.depth=7" agent="xen-api-libs/1.0" task=R:8ae06e1ea3d1 subtask-of=R:07432559b308`, 120},
		{"framed reply", "FRAME 000000000041HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n", `framed 200 1.1 length=2 keep`, 2},
		{"hdr form", "POST / HTTP/1.1\r\nhdr:00021\r\ncontent-length: 5\r\n\r\n", `POST / 1.1 length=5 keep`, 5},
		{"any case, no blanks, blanks", "POST / HTTP/1.1\r\nTRACEPARENT:x\r\nTraceParent:\t y \r\nContent-LENGTH:7\r\n\r\n", `POST / 1.1 length=7 keep traceparent="y"`, 7},
		{"the last traceparent wins", "GET / HTTP/1.1\r\ntraceparent: a\r\ntraceparent: b\r\n\r\n", `GET / 1.1 length=-1 keep traceparent="b"`, 0},
		{"joined", "GET / HTTP/1.1\r\ntracestate: a=1\r\nbaggage: k=1\r\ntracestate: b=2\r\nbaggage: l=2;m=3\r\nTraceState: c=3\r\nbaggage: n=4\r\n\r\n",
			`GET / 1.1 length=-1 keep tracestate="a=1,b=2,c=3" baggage="n=4;l=2;m=3;k=1"`, 0},
		{"dbg", "GET / HTTP/1.1\r\nx-http-other-config-dbg: my tag R:8ae06e1ea3d1\r\n\r\n", `GET / 1.1 length=-1 keep dbg="my tag R:8ae06e1ea3d1"`, 0},
		{"query", "PUT /import?session_id=OpaqueRef:1&task_id=x HTTP/1.1\r\n\r\n", `PUT /import 1.1 length=-1 keep`, -1},
		{"masked query", "GET /rrd_updates******** HTTP/1.1\r\n\r\n", `GET /rrd_updates 1.1 length=-1 keep`, 0},
		{"asterisk", "OPTIONS * HTTP/1.1\r\n\r\n", `OPTIONS * 1.1 length=-1 keep`, 0},
		{"absolute target", "GET http://host:80/rrd_updates?start=1 HTTP/1.1\r\n\r\n", `GET /rrd_updates 1.1 length=-1 keep`, 0},
		{"close", "GET / HTTP/1.1\r\nConnection: Close\r\n\r\n", `GET / 1.1 length=-1`, 0},
		{"1.0 keep-alive", "GET / HTTP/1.0\r\nconnection: Keep-Alive\r\n\r\n", `GET / 1.0 length=-1 keep`, 0},
		{"chunked", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", `200 1.1 length=-1 chunked keep`, -1},
		{"no body", "HTTP/1.1 204 No Content\r\n\r\n", `204 1.1 length=-1 keep`, 0},
		{"continue", "HTTP/1.1 100 Continue\r\n\r\n", `100 1.1 length=-1 keep`, 0},
		{"until close", "HTTP/1.0 200 OK\r\n\r\n", `200 1.0 length=-1`, -1},
		{"no reason", "HTTP/1.1 403\r\n\r\n", `403 1.1 length=-1 keep`, -1},
		{"absurd lengths", "POST / HTTP/1.1\r\ncontent-length: 99999999999999999999\r\ncontent-length: -5\r\n\r\n", `POST / 1.1 length=-1 keep`, -1},
		{"lines without a colon, long names", "GET / HTTP/1.1\r\nnonsense\r\n: x\r\n" + strings.Repeat("n", 300) + ": v\r\n\r\n", `GET / 1.1 length=-1 keep`, 0},
		{"null tasks", "GET / HTTP/1.1\r\ntask-id: OpaqueRef:NULL\r\nsubtask-of: DummyRef:|8ae06e1e-a3d1-0000-0000-000000000000|x\r\n\r\n", `GET / 1.1 length=-1 keep subtask-of=D:8ae06e1ea3d1`, 0},
	} {
		t.Run(test.name, func(t *testing.T) {
			in := []byte(test.in)
			// in one piece, and cut in two at every position
			for cut := range in {
				var r Reader
				first, part := r.Next(in[:cut])
				qt.Assert(t, qt.Equals(first, cut))
				qt.Assert(t, qt.Equals(part, PartNone), qt.Commentf("cut at %d", cut))
				qt.Assert(t, qt.Equals(r.Partial(), cut > 0))
				n, part := r.Next(append(in[cut:], "body"...))
				qt.Assert(t, qt.Equals(part, PartHead), qt.Commentf("cut at %d: %v", cut, r.Err()))
				qt.Assert(t, qt.Equals(cut+n, len(in)))
				qt.Assert(t, qt.Equals(show(r.Head()), test.want))
				qt.Assert(t, qt.Equals(r.Left(), test.left))
				qt.Assert(t, qt.IsFalse(r.Partial()))
			}
			// byte by byte, as xapi reads replies
			var r Reader
			for i := range in {
				n, part := r.Next(in[i : i+1])
				qt.Assert(t, qt.Equals(n, 1))
				qt.Assert(t, qt.Equals(part == PartHead, i == len(in)-1))
			}
			qt.Assert(t, qt.Equals(show(r.Head()), test.want))
		})
	}
}

// show writes a head so that a test can be read.
func show(h *Head) string {
	var b strings.Builder
	if h.Framed {
		b.WriteString("framed ")
	}
	if h.Reply {
		fmt.Fprintf(&b, "%d 1.%d", h.Status, h.Minor)
	} else {
		fmt.Fprintf(&b, "%s %s 1.%d", h.Method, h.Path, h.Minor)
	}
	fmt.Fprintf(&b, " length=%d", h.ContentLength)
	if h.Chunked {
		b.WriteString(" chunked")
	}
	if h.KeepAlive {
		b.WriteString(" keep")
	}
	for _, f := range []struct {
		name  string
		value []byte
	}{
		{"traceparent", h.Traceparent}, {"tracestate", h.Tracestate}, {"baggage", h.Baggage},
		{"agent", h.UserAgent}, {"host", h.Host}, {"type", h.ContentType}, {"dbg", h.Dbg},
	} {
		if f.value != nil {
			fmt.Fprintf(&b, " %s=%q", f.name, f.value)
		}
	}
	if !h.Task.IsZero() {
		fmt.Fprintf(&b, " task=%v", h.Task)
	}
	if !h.SubtaskOf.IsZero() {
		fmt.Fprintf(&b, " subtask-of=%v", h.SubtaskOf)
	}
	return b.String()
}

func TestProxyLine(t *testing.T) {
	for _, test := range []struct {
		line   string
		client netip.AddrPort
	}{
		{proxyLine6, netip.MustParseAddrPort("10.71.9.4:51842")},
		{"PROXY TCP6 fd00::4 fd00::2 51842 443\r\n", netip.MustParseAddrPort("[fd00::4]:51842")},
		{"PROXY TCP4 10.71.9.4 10.71.9.2 51842 443\r\n", netip.MustParseAddrPort("10.71.9.4:51842")},
		{"PROXY UNKNOWN\r\n", netip.AddrPort{}},
		{"PROXY TCP4 10.71.9.4 10.71.9.2 99999 443\r\n", netip.AddrPort{}},
		{"PROXY TCP4 masked masked 1 443\r\n", netip.AddrPort{}},
		{"PROXY \r\n", netip.AddrPort{}},
	} {
		in := []byte(test.line + pythonHead)
		for cut := range in {
			var r Reader
			heads := feed(t, &r, in[:cut], in[cut:])
			qt.Assert(t, qt.HasLen(heads, 1), qt.Commentf("%q cut at %d", test.line, cut))
			qt.Assert(t, qt.Equals(r.Client(), test.client))
		}
	}
}

// feed gives a Reader pieces and returns the heads that it found. What it says
// of the bytes must fit.
func feed(t testing.TB, r *Reader, pieces ...[]byte) (heads []string) {
	for _, p := range pieces {
		for len(p) > 0 {
			left := r.Left()
			n, part := r.Next(p)
			if n <= 0 || n > len(p) {
				t.Fatalf("took %d of %d bytes", n, len(p))
			}
			if part == PartBody && left >= 0 && left-int64(n) != r.Left() {
				t.Fatalf("body of %d, took %d, left %d", left, n, r.Left())
			}
			if part == PartHead {
				heads = append(heads, show(r.Head()))
			}
			if (part == PartBad) != (part == PartBad && r.Err() != nil) {
				t.Fatal("bad without an error")
			}
			if len(r.buf) > MaxHead || cap(r.buf) > 2*MaxHead || cap(r.join) > 2*MaxHead {
				t.Fatalf("keeps %d and %d bytes", cap(r.buf), cap(r.join))
			}
			p = p[n:]
		}
	}
	return heads
}

func TestConversation(t *testing.T) {
	get := "GET /persistent/q HTTP/1.1\r\ncontent-length: 0\r\n\r\n"
	post := "POST /request/q/r HTTP/1.1\r\ncontent-length: 5\r\n\r\nhello"
	var r Reader
	// Pipelined, whole and in three writes, with the end of one in the piece of the next.
	all := get + post + post + get + post
	want := []string{
		"GET /persistent/q 1.1 length=0 keep", "POST /request/q/r 1.1 length=5 keep", "POST /request/q/r 1.1 length=5 keep",
		"GET /persistent/q 1.1 length=0 keep", "POST /request/q/r 1.1 length=5 keep",
	}
	for cut := range all {
		r = Reader{}
		qt.Assert(t, qt.DeepEquals(feed(t, &r, []byte(all[:cut]), []byte(all[cut:])), want), qt.Commentf("cut at %d", cut))
		qt.Assert(t, qt.Equals(r.Left(), 0))
	}
}

func TestRecovery(t *testing.T) {
	garbage := make([]byte, 100)
	random := rand.New(rand.NewPCG(1, 2))
	for i := range garbage {
		garbage[i] = byte(random.Uint32())
	}
	for _, test := range []struct {
		name string
		in   []byte
		err  error
	}{
		{"binary", garbage, ErrNotHTTP},
		{"binary behind a method", append([]byte("GET "), garbage...), nil}, // waits for its end
		{"reply that is not HTTP", []byte("XenSource thin CLI protocol\x00\x00\x00\x00\x02\x00\x00\x00"), ErrNotHTTP},
		{"100 KiB of header", []byte("GET / HTTP/1.1\r\n" + strings.Repeat("x-filler: 0123456789\r\n", 5000) + "\r\n"), ErrHeadTooLong},
		{"one endless header", []byte("GET / HTTP/1.1\r\nx: " + strings.Repeat("y", 100<<10)), ErrHeadTooLong},
		{"HTTP/2", []byte("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"), ErrNotHTTP},
		{"no version", []byte("GET /\r\n\r\n"), ErrNotHTTP},
		{"four fields", []byte("GET / x HTTP/1.1\r\n\r\n"), ErrNotHTTP},
		{"status", []byte("HTTP/1.1 OK\r\n\r\n"), ErrNotHTTP},
		{"endless PROXY line", []byte("PROXY " + strings.Repeat("x", 200)), ErrNotHTTP},
		{"frame without a length", []byte("FRAME 00000000x000GET / HTTP/1.1\r\n\r\n"), ErrNotHTTP},
		{"lower case", []byte("get / HTTP/1.1\r\n\r\n"), ErrNotHTTP},
	} {
		t.Run(test.name, func(t *testing.T) {
			for _, piece := range []int{1, 4, 100, 1 << 20} {
				var r Reader
				bad := 0
				for p := test.in; len(p) > 0; {
					n, part := r.Next(p[:min(piece, len(p))])
					qt.Assert(t, qt.IsTrue(n > 0))
					qt.Assert(t, qt.IsTrue(part != PartHead))
					if part == PartBad {
						bad++
					}
					qt.Assert(t, qt.IsTrue(cap(r.buf) <= 2*MaxHead))
					p = p[n:]
				}
				if test.err != nil {
					qt.Check(t, qt.Equals(bad, 1))
					qt.Check(t, qt.ErrorIs(r.Err(), test.err))
				}
				r.Turn()
				n, part := r.Next([]byte(pythonHead))
				qt.Assert(t, qt.Equals(part, PartHead))
				qt.Assert(t, qt.Equals(n, len(pythonHead)))
			}
		})
	}
	t.Run("what a long head says", func(t *testing.T) {
		var r Reader
		_, part := r.Next([]byte("POST /jsonrpc HTTP/1.1\r\ntraceparent: x\r\nx: " + strings.Repeat("y", MaxHead)))
		qt.Assert(t, qt.Equals(part, PartBad))
		qt.Check(t, qt.Equals(show(r.Head()), `POST /jsonrpc 1.1 length=-1 keep traceparent="x"`))
	})
}

func TestTurn(t *testing.T) {
	head := []byte("POST / HTTP/1.1\r\ncontent-length: 100\r\n\r\n")
	t.Run("early answer", func(t *testing.T) {
		var r Reader
		feed(t, &r, head, make([]byte, 40))
		r.Turn() // xapi answers an import before it reads it
		n, part := r.Next(make([]byte, 60))
		qt.Check(t, qt.Equals(n, 60))
		qt.Check(t, qt.Equals(part, PartBody))
		qt.Check(t, qt.Equals(r.Left(), 0))
	})
	t.Run("lost end of a body", func(t *testing.T) {
		var r Reader
		feed(t, &r, head, make([]byte, 40))
		r.Turn()
		qt.Check(t, qt.HasLen(feed(t, &r, head), 1))
		qt.Check(t, qt.Equals(r.Left(), 100))
	})
	t.Run("lost end of a head", func(t *testing.T) {
		var r Reader
		feed(t, &r, head[:20])
		r.Turn()
		qt.Check(t, qt.HasLen(feed(t, &r, head), 1))
	})
	t.Run("until the turn", func(t *testing.T) {
		var r Reader
		feed(t, &r, []byte("HTTP/1.1 200 OK\r\n\r\n"), make([]byte, 1000))
		qt.Check(t, qt.Equals(r.Left(), -1))
		r.Turn()
		qt.Check(t, qt.HasLen(feed(t, &r, []byte(xapiReply)), 1))
	})
}

func TestSkip(t *testing.T) {
	var r Reader
	qt.Check(t, qt.Equals(r.Skip(0), PartNone))
	feed(t, &r, []byte("POST / HTTP/1.1\r\ncontent-length: 100\r\n\r\n0123456789"))
	qt.Check(t, qt.Equals(r.Skip(80), PartBody))
	qt.Check(t, qt.Equals(r.Left(), 10))
	qt.Check(t, qt.Equals(r.Skip(10), PartBody))
	qt.Check(t, qt.Equals(r.Left(), 0))
	qt.Check(t, qt.HasLen(feed(t, &r, []byte(pythonHead)), 1))
	qt.Check(t, qt.Equals(r.Skip(1000), PartBad)) // past the end of the body: into the next head
	qt.Check(t, qt.ErrorIs(r.Err(), ErrHeadCut))
	qt.Check(t, qt.Equals(r.Skip(1000), PartRaw))
	r.Turn()
	qt.Check(t, qt.HasLen(feed(t, &r, []byte(pythonHead)[:30]), 0))
	qt.Check(t, qt.Equals(r.Skip(5), PartBad))
	qt.Check(t, qt.Equals(string(r.Head().Method), "POST"))
	r.Turn()
	qt.Check(t, qt.Equals(r.Skip(5), PartBad)) // the start of a message that nobody saw
	r.Turn()
	qt.Check(t, qt.HasLen(feed(t, &r, []byte("HTTP/1.1 200 OK\r\n\r\n")), 1))
	qt.Check(t, qt.Equals(r.Skip(1<<63), PartBody))
	qt.Check(t, qt.Equals(r.Left(), -1))
}

// However a stream is cut into pieces, the same heads come out.
func FuzzReader(f *testing.F) {
	for _, s := range []string{pythonHead, xapiReply + "x", proxyLine6 + cliHead, "FRAME 000000000310" + memberHead, switchHead + "{}", "HTTP/1.1 200 OK\r\n\r\nbody", "GET / HTTP/1.1\r\nbaggage: a\r\nbaggage: b\r\n\r\n\x00"} {
		f.Add([]byte(s), uint64(3))
	}
	f.Fuzz(func(t *testing.T, b []byte, seed uint64) {
		var whole, cut Reader
		want := feed(t, &whole, b)
		random := rand.New(rand.NewPCG(seed, 0))
		var pieces [][]byte
		for p := b; len(p) > 0; {
			n := 1 + random.IntN(min(len(p), 40))
			pieces = append(pieces, bytes.Clone(p[:n]))
			p = p[n:]
		}
		got := feed(t, &cut, pieces...)
		if fmt.Sprint(got) != fmt.Sprint(want) || whole.Left() != cut.Left() || whole.Client() != cut.Client() {
			t.Fatalf("%q\nwhole %q\ncut   %q", b, want, got)
		}
		cut.Skip(seed)
		cut.Turn()
		feed(t, &cut, b)
		cut.Reset()
		if got := feed(t, &cut, b); fmt.Sprint(got) != fmt.Sprint(want) {
			t.Fatalf("%q\nfirst %q\nthen  %q", b, want, got)
		}
	})
}

// TestLost: after bytes of which nothing is known, the next turn begins a message, in
// whatever state the Reader was; the client stays known.
func TestLost(t *testing.T) {
	for _, before := range []string{"", "POST / HTTP/1.1\r\ncontent-le", "POST / HTTP/1.1\r\ncontent-length: 1000\r\n\r\n{", "nonsense\r\n"} {
		var r Reader
		next := func(text string) (parts []Part) {
			for p := []byte(text); len(p) > 0; {
				n, part := r.Next(p)
				parts = append(parts, part)
				p = p[n:]
			}
			return parts
		}
		next("PROXY TCP4 10.0.0.1 10.0.0.2 40000 443\r\n" + before)
		r.Lost()
		qt.Check(t, qt.DeepEquals(next("GET / HTTP/1.1\r\n\r\n"), []Part{PartRaw})) // the middle of something
		r.Turn()
		qt.Check(t, qt.DeepEquals(next("GET / HTTP/1.1\r\ncontent-length: 1\r\n\r\nx"), []Part{PartHead, PartBody}))
		qt.Check(t, qt.Equals(r.Client().String(), "10.0.0.1:40000"))
		qt.Check(t, qt.Equals(r.Left(), 0))
	}
}

func TestReaderNoAllocation(t *testing.T) {
	head, body := []byte(memberHead), make([]byte, 120)
	twice := []byte("GET / HTTP/1.1\r\nbaggage: a=1\r\nbaggage: b=2\r\n\r\n")
	var r Reader
	run := func() {
		r.Turn()
		r.Next(head)
		r.Next(body)
		r.Turn()
		for i := 0; i < len(head); i += 4 {
			r.Next(head[i:min(i+4, len(head))])
		}
		r.Next(body)
		r.Next(twice)
		r.Reset()
	}
	run()
	qt.Assert(t, qt.Equals(testing.AllocsPerRun(100, run), 0))
}

func BenchmarkReader(b *testing.B) {
	head, body := []byte(pythonHead), make([]byte, 336)
	b.Run("one piece", func(b *testing.B) {
		var r Reader
		b.SetBytes(int64(len(head)))
		b.ReportAllocs()
		for b.Loop() {
			r.Next(head)
			r.Next(body)
		}
	})
	b.Run("pieces of 4 bytes", func(b *testing.B) {
		var r Reader
		b.SetBytes(int64(len(head)))
		b.ReportAllocs()
		for b.Loop() {
			for i := 0; i < len(head); i += 4 {
				r.Next(head[i:min(i+4, len(head))])
			}
			r.Next(body)
		}
	})
}
