package correlate

import (
	"fmt"
	"testing"
	"time"

	"github.com/go-quicktest/qt"
	"github.com/xenserver/dtagent/probes/event"
	"go.opentelemetry.io/otel/trace"
)

var rrdd = daemon{event.RRDD, 400, "xcp-rrdd"}

// peered is open for a socket of which the inodes are known: its own, that of the
// other end, and who connected it.
func (s *script) peered(d daemon, conn string, tid uint32, fd int32, how event.How, listener string, ino, peer uint64, tgid uint32) {
	s.now += 10_000
	s.conns[conn] = event.Conn{TGID: d.tgid, FD: fd, Born: s.now}
	ev := d.event(event.KindOpen, tid)
	ev.Conn, ev.How, ev.Listener, ev.Ino, ev.PeerIno, ev.PeerTGID = s.conns[conn], how, listener, ino, peer, tgid
	s.put(ev)
}

// xmlrpc is a call between daemons on a socket of theirs, as its server reads it.
func (s *script) xmlrpc(d daemon, conn string, tid uint32, path, method, debugInfo string) {
	body := "<?xml version='1.0'?><methodCall><methodName>" + method + "</methodName><params><param><value><struct><member><name>debug_info</name><value>" +
		debugInfo + "</value></member></struct></value></param></params></methodCall>"
	s.in(d, conn, tid, fmt.Sprintf("POST %s HTTP/1.1\r\ncontent-length: %d\r\n\r\n", path, len(body)))
	s.data(d, conn, tid, event.In, body, event.FlagMore)
}

func (s *script) answered200(d daemon, conn string, tid uint32) {
	body := "<methodResponse><params><param><value><struct><member><name>Status</name><value>Success</value></member></struct></value></param></params></methodResponse>"
	s.out(d, conn, tid, fmt.Sprintf("HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n", len(body)))
	s.data(d, conn, tid, event.Out, body, event.FlagMore)
}

// sm starts an SM script for a call.
func (s *script) sm(tid, pid uint32) {
	s.fork(xapi, tid, pid)
	s.exec(xapi, pid, "LVMSR", "vdi_attach")
}

// A process that was started for a call calls back for it.
func TestCallBack(t *testing.T) {
	s := newScript(t)
	s.accept("c", 18)
	s.request("c", 110, "VDI.plug", "traceparent: "+caller)
	s.sm(110, 300)
	for i, method := range []string{"VDI.get_by_uuid", "VDI.get_sm_config"} { // one connection
		if i == 0 {
			s.peered(xapi, "back", 120, 19, event.Accepted, "/var/lib/xcp/xapi", 7, 8, 300)
		}
		s.call("back", 120, method)
	}
	s.peered(xapi, "other", 121, 20, event.Accepted, "/var/lib/xcp/xapi", 9, 10, 999) // somebody else's
	s.call("other", 121, "VM.get_all")
	s.exit(xapi, 300, 0)
	s.peered(xapi, "late", 122, 21, event.Accepted, "/var/lib/xcp/xapi", 11, 12, 300) // its number, used again
	s.call("late", 122, "VM.get_record")
	s.reply("c", 110, success, "")
	s.under("LVMSR vdi_attach", "VDI.plug", LinkFork)
	s.under("VDI.get_by_uuid", "LVMSR vdi_attach", LinkSocket)
	s.under("VDI.get_sm_config", "LVMSR vdi_attach", LinkSocket)
	s.root("VM.get_all")
	s.root("VM.get_record")
	qt.Check(t, qt.Equals(s.span("VDI.get_by_uuid").TraceID.String(), callerID))
}

// What such a process sends as context is followed: into the trace it works in,
// or out of it.
func TestCallBackWithContext(t *testing.T) {
	s := newScript(t)
	s.accept("c", 18)
	s.request("c", 110, "VDI.plug", "traceparent: "+caller)
	s.sm(110, 300)
	s.peered(xapi, "back", 120, 19, event.Accepted, "/var/lib/xcp/xapi", 7, 8, 300)
	s.call("back", 120, "VDI.get_by_uuid", "traceparent: 00-"+callerID+"-1313131313131313-01")
	s.call("back", 120, "VDI.get_uuid", "traceparent: "+native)
	s.exit(xapi, 300, 0)
	s.reply("c", 110, success, "")
	s.under("VDI.get_by_uuid", "LVMSR vdi_attach", LinkSocket)
	qt.Check(t, qt.Equals(s.span("VDI.get_by_uuid").Native.String(), "1313131313131313"))
	own := s.span("VDI.get_uuid")
	qt.Check(t, qt.Equals(own.TraceID.String(), nativeT))
	qt.Check(t, qt.Equals(own.ParentID.String(), nativeS))
	qt.Check(t, qt.Equals(own.Link, LinkTraceparent))
}

// A process that outlives what it was started for does not call for that.
func TestCallBackLater(t *testing.T) {
	s := newScript(t)
	s.accept("c", 18)
	s.request("c", 110, "VM.start", "traceparent: "+caller)
	s.sm(110, 300)
	s.reply("c", 110, success, "")
	s.peered(xapi, "back", 120, 19, event.Accepted, "/var/lib/xcp/xapi", 7, 8, 300)
	s.call("back", 120, "VDI.get_by_uuid")
	s.exit(xapi, 300, 0)
	s.root("VDI.get_by_uuid")
}

// A process that may have ended, and another have its pid, is not the one that
// calls; and one that calls may be the child of which nothing was seen.
func TestLostCaller(t *testing.T) {
	s := newScript(t)
	s.accept("c", 18)
	s.request("c", 110, "VDI.plug", "traceparent: "+caller)
	s.sm(110, 300)
	s.lose()
	s.peered(xapi, "back", 120, 19, event.Accepted, "/var/lib/xcp/xapi", 7, 8, 300)
	s.call("back", 120, "VDI.get_by_uuid")
	s.exit(xapi, 300, 0)
	s.reply("c", 110, success, "")
	s.drain()
	s.none("VDI.get_by_uuid")
	s.under("LVMSR vdi_attach", "VDI.plug", LinkFork)
}

// Without message-switch a daemon's thread connects and calls: whose work that is
// is the call's parent, whichever end is seen first.
func TestSocketCall(t *testing.T) {
	for _, late := range []bool{false, true} {
		t.Run(fmt.Sprintf("the caller's end late %v", late), func(t *testing.T) {
			s := newScript(t)
			s.openSwitch() // xapi and xenopsd are daemons that are watched
			s.accept("c", 18)
			s.request("c", 110, "VM.start", "traceparent: 00-"+nativeT+"-1212121212121212-01")
			connect := func() {
				s.peered(xapi, "ask", 110, 30, event.Connected, "", 71, 0, 0)
			}
			if !late {
				connect()
			}
			s.peered(xenopsd, "serve", 200, 31, event.Accepted, "/var/lib/xcp/xenopsd", 72, 71, xapi.tgid)
			s.xmlrpc(xenopsd, "serve", 210, "/var/lib/xcp/xenopsd", "VM.exists", debugInfo(tagged, native))
			if late {
				connect()
			}
			s.answered200(xenopsd, "serve", 210)
			s.close(xenopsd, "serve")
			s.close(xapi, "ask")
			s.reply("c", 110, success, "")
			s.under("VM.exists", "VM.start", LinkSocket)
			got := s.span("VM.exists")
			qt.Check(t, qt.Equals(got.TraceID.String(), nativeT))
			qt.Check(t, qt.Equals(got.Native.String(), nativeS))
			s.wait(time.Minute)
			qt.Check(t, qt.Equals(s.e.Stats().Trees, 0))
		})
	}
	t.Run("a thread that nobody asked", func(t *testing.T) {
		s := newScript(t)
		s.openSwitch()
		s.peered(xapi, "ask", 110, 30, event.Connected, "", 71, 0, 0)
		s.peered(xenopsd, "serve", 200, 31, event.Accepted, "/var/lib/xcp/xenopsd", 72, 71, xapi.tgid)
		s.xmlrpc(xenopsd, "serve", 210, "/var/lib/xcp/xenopsd", "UPDATES.get", debugInfo("events D:8d0890bd8862", native))
		s.answered200(xenopsd, "serve", 210)
		s.wait(time.Minute)
		got := s.span("UPDATES.get")
		qt.Check(t, qt.Equals(got.ParentID.String(), nativeS))
		qt.Check(t, qt.Equals(got.Link, LinkTraceparent))
	})
	t.Run("one whose task is known", func(t *testing.T) {
		s := newScript(t)
		s.openSwitch()
		s.accept("c", 18)
		s.request("c", 110, "VM.start_on", "traceparent: "+caller)
		s.log(xapi, 110, tagged, "xapi", "x")
		s.peered(xenopsd, "serve", 200, 31, event.Accepted, "/var/lib/xcp/xenopsd", 72, 71, xapi.tgid)
		s.xmlrpc(xenopsd, "serve", 210, "/var/lib/xcp/xenopsd", "VM.exists", tagged)
		s.answered200(xenopsd, "serve", 210)
		s.wait(3 * time.Second)
		s.reply("c", 110, success, "")
		s.under("VM.exists", "VM.start_on", LinkTask)
	})
}

// xapi passes a request on; who goes on with its socket answers it.
func TestPassedOn(t *testing.T) {
	for _, order := range []string{"taken before it is closed", "closed before it is taken"} {
		for _, path := range []string{"GET /rrd_updates", "PUT /services/xenops/memory"} {
			t.Run(path+" "+order, func(t *testing.T) {
				s := newScript(t)
				s.peered(xapi, "c", 100, 18, event.Accepted, "/var/lib/xcp/xapi", 70, 69, 999)
				s.in(xapi, "c", 110, path+" HTTP/1.1\r\nhost: x\r\ntraceparent: "+caller+"\r\n\r\n")
				s.peered(xapi, "pass", 110, 30, event.Connected, "", 71, 0, 0)
				s.out(xapi, "pass", 110, `{"m":["Get"],"uri":"`+path+`"}`)
				take := func() {
					s.peered(rrdd, "control", 410, 5, event.Accepted, "/var/lib/xcp/xcp-rrdd.forwarded", 72, 71, xapi.tgid)
					s.in(rrdd, "control", 410, `{"m":["Get"],"uri":"`+path+`"}`)
					s.peered(rrdd, "client", 410, 6, event.Passed, "", 70, 0, 0)
				}
				if order[0] == 't' {
					take()
				}
				s.close(xapi, "pass")
				s.close(xapi, "c")
				s.threadExit(xapi, 110)
				if order[0] == 'c' {
					take()
				}
				s.in(rrdd, "client", 410, "the rest of what the client sends")
				end := s.out(rrdd, "client", 410, "HTTP/1.1 200 OK\r\nconnection: close\r\n\r\nall of it")
				s.close(rrdd, "client")
				s.wait(5 * time.Second)
				var ours, theirs *Span
				for _, sp := range s.spans {
					if sp.Component == event.RRDD {
						theirs = sp
					} else {
						ours = sp
					}
				}
				qt.Assert(t, qt.IsTrue(ours != nil && theirs != nil))
				qt.Assert(t, qt.HasLen(s.spans, 2))
				qt.Check(t, qt.Equals(ours.Name, path))
				qt.Check(t, qt.Equals(ours.Incomplete, ""))
				qt.Check(t, qt.Equals(ours.TraceID.String(), callerID))
				qt.Check(t, qt.Equals(theirs.Name, path))
				qt.Check(t, qt.Equals(theirs.Kind, trace.SpanKindServer))
				qt.Check(t, qt.Equals(theirs.Incomplete, ""))
				qt.Check(t, qt.Equals(theirs.ParentID, ours.SpanID))
				qt.Check(t, qt.Equals(theirs.TraceID, ours.TraceID))
				qt.Check(t, qt.Equals(theirs.Link, LinkSocket))
				qt.Check(t, qt.Equals(theirs.End, int64(end-1000)))
				qt.Check(t, qt.Equals(attr(theirs, "http.response.status_code"), "200"))
				st := s.e.Stats()
				qt.Check(t, qt.Equals(st.BadHeads+st.NoRequest, 0))
				qt.Check(t, qt.Equals(st.Activities+st.Trees+st.Keys, 0))
			})
		}
	}
}

// A request whose socket nobody goes on with was closed without an answer, when it
// was closed.
func TestNotPassedOn(t *testing.T) {
	s := newScript(t)
	s.peered(xapi, "c", 100, 18, event.Accepted, "/var/lib/xcp/xapi", 70, 69, 999)
	s.in(xapi, "c", 110, "GET /rrd_updates HTTP/1.1\r\nhost: x\r\n\r\n")
	s.close(xapi, "c")
	closed := s.now
	// another socket that is passed on, and one that has the number later
	s.peered(rrdd, "other", 410, 6, event.Passed, "", 71, 0, 0)
	s.out(rrdd, "other", 410, "HTTP/1.1 200 OK\r\n\r\nx")
	s.wait(5 * time.Second)
	s.peered(rrdd, "late", 410, 7, event.Passed, "", 70, 0, 0)
	s.out(rrdd, "late", 410, "HTTP/1.1 200 OK\r\n\r\nx")
	s.wait(5 * time.Second)
	qt.Assert(t, qt.HasLen(s.spans, 1))
	qt.Check(t, qt.Equals(s.spans[0].Incomplete, "closed before the reply"))
	qt.Check(t, qt.Equals(s.spans[0].End, int64(closed)))
}
