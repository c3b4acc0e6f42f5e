package correlate

import (
	"fmt"
	"testing"
	"time"

	"github.com/go-quicktest/qt"
	"github.com/xenserver/dtagent/probes/event"
)

// restarted ends a daemon's process and lets it go on as another one.
func (s *script) restarted(d *daemon) {
	old := *d
	s.put(event.Event{Kind: event.KindExit, Component: old.component, TGID: old.tgid, TID: old.tgid, Flags: event.FlagLeader})
	d.tgid += 1000
}

// xenopsd counts its tasks from 0 again after a restart: what the process before
// left unfinished has nothing to do with those.
func TestXenopsdRestarts(t *testing.T) {
	defer func(d daemon) { xenopsd = d }(xenopsd)
	s := newScript(t)
	s.openSwitch()
	op := func(n string) string { return fmt.Sprintf(`["VM_%s",["%s",false]]`, n, vm) }
	s.accept("a", 18)
	s.request("a", 110, "VM.old", "traceparent: "+caller)
	s.rpc(1, 110, 210, "VM.begin", "VM.old R:000000000001", `"0"`) // answered, and never started
	s.accept("b", 19)
	s.request("b", 111, "VM.older")
	s.started(260, 1, "VM.older R:000000000002", op("older")) // started, and never answered
	s.restarted(&xenopsd)
	s.openSwitch()
	s.accept("c", 20)
	s.request("c", 112, "VM.new", "traceparent: "+native)
	s.ask(112, "VM.start", "VM.new R:000000000003")
	s.number(112, 2)
	s.deliver(2, "VM.start", "VM.new R:000000000003")
	s.thread(xenopsd, 201, 1210)
	s.respond(2, 1210, `"0"`)
	s.answered(2, `"0"`)
	s.started(1260, 0, "VM.new R:000000000003", op("new"))
	s.completed(1260, 0)
	s.started(1261, 1, "VM.newer R:000000000004", op("newer"))
	s.completed(1261, 1)
	s.reply("c", 112, success, "")
	s.reply("b", 111, success, "")
	s.reply("a", 110, success, "")
	s.wait(3 * time.Second)
	s.under("VM_new", "VM.start", LinkTask)
	s.root("VM_newer")
	qt.Check(t, qt.Equals(s.span("VM_new").TraceID.String(), nativeT))
	qt.Check(t, qt.Not(qt.Equals(s.span("VM_newer").TraceID.String(), callerID)))
	s.wait(time.Minute)
	qt.Check(t, qt.Equals(s.e.Stats().Trees, 0))
}

// message-switch counts from 1 again after a restart unless it keeps its state. A
// message that the one before lost is not taken for a new one of its number.
func TestSwitchRestarts(t *testing.T) {
	for _, c := range []struct {
		name  string
		first func(s *script)
	}{
		{"one that was sent, never delivered", func(s *script) {
			s.ask(110, "VM.old", "VM.old R:000000000001")
			s.number(110, 5)
		}},
		{"one that was delivered, never answered", func(s *script) {
			s.ask(110, "VM.old", "VM.old R:000000000001")
			s.number(110, 5)
			s.deliver(5, "VM.old", "VM.old R:000000000001")
			s.thread(xenopsd, 201, 210)
		}},
		{"one whose sender was not seen", func(s *script) {
			s.deliver(5, "VM.old", "VM.old R:000000000001")
			s.thread(xenopsd, 201, 210)
		}},
		{"one of the same method", func(s *script) {
			s.deliver(5, "VM.start", "VM.old R:000000000001")
			s.thread(xenopsd, 201, 210)
		}},
		{"one that was answered, its number not seen", func(s *script) {
			s.ask(110, "VM.old", "VM.old R:000000000001")
			s.deliver(5, "VM.old", "VM.old R:000000000001")
			s.thread(xenopsd, 201, 210)
			s.respond(5, 210, `"0"`)
			s.answered(5, `"0"`)
			s.wait(3 * time.Second)
		}},
	} {
		for _, early := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s, delivered early %v", c.name, early), func(t *testing.T) {
				s := newScript(t)
				s.openSwitch()
				s.accept("a", 18)
				s.request("a", 110, "VM.old_call", "traceparent: "+caller)
				c.first(s)
				// the switch restarts: its clients' connections end while they wait
				s.post(xapi, "wait", 101, "/transfer", "{}")
				s.post(xenopsd, "listen", 201, "/transfer", "{}")
				for _, conn := range []string{"ask", "wait"} {
					s.close(xapi, conn)
				}
				for _, conn := range []string{"listen", "answer"} {
					s.close(xenopsd, conn)
				}
				s.openSwitch()
				s.accept("c", 20)
				s.request("c", 112, "VM.new_call", "traceparent: "+native)
				s.ask(112, "VM.start", "VM.new R:000000000003")
				if !early {
					s.number(112, 5)
				}
				s.deliver(5, "VM.start", "VM.new R:000000000003")
				if early {
					s.number(112, 5)
				}
				s.thread(xenopsd, 201, 211)
				s.respond(5, 211, `null`)
				s.answered(5, `null`)
				s.reply("c", 112, success, "")
				s.reply("a", 110, success, "")
				s.drain()
				var rpc *Span
				for _, sp := range s.spans {
					if sp.Name == "VM.start" && attr(sp, "xs.xapi.task.id") == "R:000000000003" {
						rpc = sp
					}
				}
				qt.Assert(t, qt.IsNotNil(rpc))
				parent := s.span(send + "VM.start")
				qt.Check(t, qt.Equals(rpc.ParentID, parent.SpanID))
				qt.Check(t, qt.Equals(rpc.TraceID.String(), nativeT))
				qt.Check(t, qt.Equals(rpc.Incomplete, ""))
				for _, sp := range s.spans {
					if attr(sp, "xs.xapi.task.id") == "R:000000000001" {
						qt.Check(t, qt.Not(qt.Equals(sp.TraceID.String(), nativeT)), qt.Commentf(sp.Name))
					}
				}
			})
		}
	}
}
