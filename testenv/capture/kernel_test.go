package capture

import (
	"bytes"
	"fmt"
	"strings"
	"testing"

	"github.com/go-quicktest/qt"
	"github.com/xenserver/dtagent/probes/event"
)

// script tells a Kernel of system calls one after the other, each of which
// takes 10 ns and begins 100 ns after the one before.
type script struct {
	k      *Kernel
	now    event.Time
	task   Task
	events []event.Event
}

func newScript() *script {
	s := &script{task: Task{TGID: 10, TID: 11}}
	s.k = NewKernel(func(e *event.Event) { s.events = append(s.events, *e) })
	s.k.SetTarget(10, event.Xapi, WatchStream|WatchLog|WatchProcess)
	return s
}

func (s *script) step() { s.now += 100 }

func (s *script) read(fd int32, ask int, data string) {
	s.step()
	s.k.ReadEnter(s.now, s.task, fd, ask)
	s.k.ReadExit(s.now+10, s.task, int64(len(data)), []byte(data))
}

func (s *script) write(fd int32, data string) {
	s.step()
	s.k.WriteEnter(s.now, s.task, fd, len(data))
	s.k.WriteExit(s.now+10, s.task, int64(len(data)), []byte(data))
}

func (s *script) accept(fd int32) {
	s.step()
	s.k.AcceptEnter(s.now, s.task, 5)
	s.k.AcceptExit(s.now+10, s.task, fd, 77, "/var/lib/xcp/xapi")
}

func (s *script) close(fd int32) { s.step(); s.k.Close(s.now, s.task, fd) }

// trace writes events in one line each: kind, what it holds, flags.
func (s *script) trace() string {
	var b strings.Builder
	for _, e := range s.events {
		switch e.Kind {
		case event.KindData:
			fmt.Fprintf(&b, "%s %d [%d-%d] at %d %dB/%d %q", []string{"", "in", "out"}[e.Dir], e.Conn.FD, e.First, e.Last, e.Time, e.Bytes, e.Calls, shorten(e.Head))
			if len(e.Tail) > 0 {
				fmt.Fprintf(&b, " tail %q", shorten(e.Tail))
			}
		case event.KindOpen:
			fmt.Fprintf(&b, "open %d born %d how %d", e.Conn.FD, e.Conn.Born, e.How)
		case event.KindClose:
			fmt.Fprintf(&b, "close %d born %d", e.Conn.FD, e.Conn.Born)
		case event.KindLog:
			fmt.Fprintf(&b, "log %dB %q", e.Bytes, shorten(e.Head))
		case event.KindFork:
			fmt.Fprintf(&b, "fork %d/%d", e.ChildTGID, e.ChildTID)
		case event.KindExec:
			fmt.Fprintf(&b, "exec %s", e.Program)
		case event.KindExit:
			fmt.Fprintf(&b, "exit %d/%d %d", e.TGID, e.TID, e.Code)
		}
		for bit, name := range []string{"cut", "more", "noenter", "eof", "thread", "leader", "nocode", "nocpu"} {
			if e.Flags&(1<<bit) != 0 {
				b.WriteString(" " + name)
			}
		}
		b.WriteByte('\n')
	}
	return b.String()
}

func shorten(b []byte) string {
	if len(b) > 40 {
		return fmt.Sprintf("%s…%d", b[:8], len(b))
	}
	return string(b)
}

func TestRequestAndReply(t *testing.T) {
	s := newScript()
	s.accept(18)
	for _, p := range []string{"POST /", " HTTP/1.1\r\nH", "ost:", " a\r\n", "\r\n"} {
		s.read(18, max(4, len(p)), p)
	}
	s.read(18, 336, strings.Repeat("b", 336))
	s.write(18, "HTTP/1.1 200 OK\r\n\r\n")
	s.write(18, "short body")
	s.read(18, 6, "")
	s.close(18)
	qt.Assert(t, qt.Equals(s.trace(), `open 18 born 110 how 2
in 18 [210-610] at 610 28B/5 "POST / HTTP/1.1\r\nHost: a\r\n\r\n"
in 18 [710-710] at 710 336B/1 "bbbbbbbb…336" more
out 18 [800-810] at 810 19B/1 "HTTP/1.1 200 OK\r\n\r\n"
out 18 [900-910] at 1000 10B/1 "short body" more
in 18 [1010-1010] at 1010 0B/1 "" eof
close 18 born 110
`))
}

func TestSmallPiecesGoBeforeALargeOne(t *testing.T) {
	s := newScript()
	s.accept(18)
	s.write(18, "GET /persistent/q HTTP/1.1\r\n")
	s.write(18, strings.Repeat("h", 300))
	s.write(18, "tail")
	s.close(18)
	qt.Assert(t, qt.Equals(s.trace(), `open 18 born 110 how 2
out 18 [200-210] at 310 28B/1 "GET /persistent/q HTTP/1.1\r\n"
out 18 [300-310] at 310 300B/1 "hhhhhhhh…300" more
out 18 [400-410] at 500 4B/1 "tail" more
close 18 born 110
`))
}

func TestFullBuffer(t *testing.T) {
	s := newScript()
	s.accept(18)
	for range 300 {
		s.read(18, 4, "aaaa")
	}
	s.close(18)
	var sizes []uint64
	for _, e := range s.events[1:3] {
		sizes = append(sizes, e.Bytes)
	}
	qt.Assert(t, qt.DeepEquals(sizes, []uint64{1024, 176}))
}

func TestLargePieces(t *testing.T) {
	s := newScript()
	s.accept(18)
	s.read(18, 65536, strings.Repeat("a", 4096))
	s.write(18, "x")
	s.read(18, 65536, strings.Repeat("a", 9000)+"end")
	s.close(18)
	qt.Assert(t, qt.Equals(s.trace(), `open 18 born 110 how 2
in 18 [210-210] at 210 4096B/1 "aaaaaaaa…4096"
out 18 [300-310] at 400 1B/1 "x"
in 18 [410-410] at 410 9003B/1 "aaaaaaaa…4096" tail "aaaaaaaa…1024" cut
close 18 born 110
`))
	qt.Assert(t, qt.IsTrue(bytes.HasSuffix(s.events[3].Tail, []byte("end"))))
}

func TestBulk(t *testing.T) {
	s := newScript()
	s.accept(18)
	for range 4 {
		s.write(18, strings.Repeat("a", 65536))
	}
	s.write(18, "end")
	s.read(18, 6, "POST /")
	s.close(18)
	qt.Assert(t, qt.Equals(s.trace(), `open 18 born 110 how 2
out 18 [200-210] at 210 65536B/1 "aaaaaaaa…4096" tail "aaaaaaaa…1024" cut
out 18 [300-510] at 700 196608B/3 "" cut more
out 18 [600-610] at 700 3B/1 "end" more
in 18 [710-710] at 800 6B/1 "POST /"
close 18 born 110
`))
}

func TestSwitchSocketsHaveLongerHeads(t *testing.T) {
	s := newScript()
	s.k.SeedSocket(5, 10, 7, 99, false)
	s.k.SeedSocket(5, 10, 8, 100, true)
	s.read(8, 65536, strings.Repeat("b", 20000))
	s.write(7, "POST /transfer HTTP/1.1\r\n")
	s.read(7, 65536, strings.Repeat("a", 10000))
	qt.Assert(t, qt.Equals(s.trace(), `open 8 born 5 how 1
in 8 [110-110] at 110 20000B/1 "bbbbbbbb…16384" tail "bbbbbbbb…1024" cut
open 7 born 5 how 1
out 7 [200-210] at 300 25B/1 "POST /transfer HTTP/1.1\r\n"
in 7 [310-310] at 310 10000B/1 "aaaaaaaa…10000"
`))
}

func TestReusedDescriptor(t *testing.T) {
	s := newScript()
	s.accept(18)
	s.write(18, "lost")
	s.accept(18) // closed by something that is not seen
	s.write(18, "new")
	s.close(18)
	qt.Assert(t, qt.Equals(s.k.Reused, 1))
	qt.Assert(t, qt.Equals(s.trace(), `open 18 born 110 how 2
open 18 born 310 how 2
out 18 [400-410] at 500 3B/1 "new"
close 18 born 310
`))
}

func TestConnect(t *testing.T) {
	s := newScript()
	for fd := int32(18); fd < 21; fd++ {
		s.step()
		if fd < 20 { // 20 is no stream socket
			s.k.Socket(s.now, s.task, fd)
		}
		s.write(fd, "not connected")
		s.step()
		s.k.ConnectEnter(s.now, s.task, fd)
		s.k.ConnectExit(s.now+10, s.task, fd != 19, 7)
		s.write(fd, "hello")
		s.step()
		s.k.Shutdown(s.now, s.task, fd)
		s.close(fd)
	}
	qt.Assert(t, qt.Equals(s.trace(), `open 18 born 310 how 3
out 18 [400-410] at 500 5B/1 "hello"
close 18 born 310
`))
}

// TestEndIsToldOnce: xe's connection sees reads that ask for nothing, and
// some programs read on after the end.
func TestEndIsToldOnce(t *testing.T) {
	s := newScript()
	s.accept(18)
	s.read(18, 4, "abcd")
	s.read(18, 0, "")
	s.read(18, 4, "")
	s.read(18, 4, "")
	qt.Assert(t, qt.Equals(s.trace(), `open 18 born 110 how 2
in 18 [210-210] at 410 4B/1 "abcd"
in 18 [410-410] at 410 0B/1 "" more eof
`))
}

func TestFailedCallsMoveNothing(t *testing.T) {
	s := newScript()
	s.accept(-1)
	s.accept(18)
	s.step()
	s.k.ReadEnter(s.now, s.task, 18, 6)
	s.k.ReadExit(s.now+10, s.task, -1, nil)
	s.k.ReadExit(s.now+20, s.task, 5, []byte("abcde")) // no start: whose is it?
	s.read(99, 6, "POST /")                            // not a known socket
	s.close(99)
	qt.Assert(t, qt.Equals(s.trace(), "open 18 born 210 how 2\n"))
	qt.Assert(t, qt.Equals(s.k.Orphans, 1))
}

func TestLogLines(t *testing.T) {
	s := newScript()
	s.write(4, "<175>Nov 22 12:23:14 xapi: [debug||1 ||x] hello")
	s.write(4, "no priority")
	s.write(4, "<1>"+strings.Repeat("l", 2000))
	qt.Assert(t, qt.Equals(s.trace(), `log 47B "<175>Nov…47"
log 2003B "<1>lllll…1024" cut
`))
}

func TestProcesses(t *testing.T) {
	s := newScript()
	child := Task{TGID: 20, TID: 20}
	s.k.Fork(1, s.task, Task{TGID: 10, TID: 12})
	s.k.Fork(2, s.task, child)
	s.k.Exec(3, child, "vfork_helper", "")
	s.k.WriteEnter(4, child, 4, 5) // a child's log lines and sockets are not watched
	s.k.WriteExit(5, child, 5, []byte("<1>hi"))
	s.k.Fork(6, child, Task{TGID: 21, TID: 21})
	s.k.Fork(7, Task{TGID: 99, TID: 99}, Task{TGID: 98, TID: 98})
	s.k.Exit(8, child, 127<<8)
	s.k.Exit(9, Task{TGID: 10, TID: 12}, 0)
	qt.Assert(t, qt.Equals(s.trace(), `fork 10/12 thread
fork 20/20
exec vfork_helper
fork 21/21
exit 20/20 32512 leader nocpu
exit 10/12 0 nocpu
`))
	qt.Assert(t, qt.Equals(s.events[2].Component, event.Xapi))
}
