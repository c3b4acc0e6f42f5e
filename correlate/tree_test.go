package correlate

import (
	"testing"
	"time"

	"github.com/go-quicktest/qt"
)

// A call without traceparent joins xapi's own trace when that shows up.
func TestLateTrace(t *testing.T) {
	s := newScript(t)
	s.openSwitch()
	s.accept("c", 18)
	s.request("c", 110, "VM.start_on")
	s.fork(xapi, 110, 300)
	s.exec(xapi, 300, "early", "")
	s.exit(xapi, 300, 0)
	qt.Check(t, qt.HasLen(s.spans, 0))
	s.rpc(64, 110, 210, "VM.exists", debugInfo(tagged, native), "null")
	s.reply("c", 110, success, "")
	call := s.span("VM.start_on")
	s.root("VM.start_on") // of the span that xapi gave the call nothing is known
	qt.Check(t, qt.Equals(call.TraceID.String(), nativeT))
	s.under("early", "VM.start_on", LinkFork)
	s.under("VM.exists", send+"VM.exists", LinkQueue)
	s.under(send+"VM.exists", "VM.start_on", LinkThread)
}

// A trace id that is fixed does not change.
func TestTraceFixed(t *testing.T) {
	s := newScript(t)
	s.openSwitch()
	s.accept("c", 18)
	s.request("c", 110, "VM.start_on", "traceparent: "+caller)
	s.rpc(64, 110, 210, "VM.exists", debugInfo(tagged, native), "null")
	qt.Check(t, qt.Equals(s.span("VM.exists").TraceID.String(), callerID))
	s.reply("c", 110, success, "")

	s.request("c", 110, "VM.slow")
	s.fork(xapi, 110, 300)
	s.exec(xapi, 300, "early", "")
	s.exit(xapi, 300, 0)
	s.wait(2100 * time.Millisecond) // longer than it is held
	early := s.span("early")
	s.rpc(65, 110, 210, "VM.stat", debugInfo(tagged, native), "null")
	s.reply("c", 110, success, "")
	qt.Check(t, qt.Equals(s.span("VM.slow").TraceID, early.TraceID))
	qt.Check(t, qt.Equals(s.span("VM.stat").TraceID, early.TraceID))
	qt.Check(t, qt.Not(qt.Equals(early.TraceID.String(), nativeT)))
}

// A tree to which nothing can come any more does not wait.
func TestTraceFixedEarly(t *testing.T) {
	s := newScript(t)
	s.accept("c", 18)
	s.call("c", 110, "VM.start")
	qt.Check(t, qt.HasLen(s.spans, 1))
	qt.Check(t, qt.Equals(s.e.Stats().Trees, 0))
}

// Spans need not wait for their parents.
func TestChildrenBeforeParents(t *testing.T) {
	s := newScript(t)
	s.openSwitch()
	s.accept("c", 18)
	s.request("c", 110, "VM.start_on", "traceparent: "+caller)
	s.rpc(64, 110, 210, "VM.exists", tagged, "null")
	qt.Check(t, qt.HasLen(s.spans, 2))
	s.reply("c", 110, success, "")
	s.under(send+"VM.exists", "VM.start_on", LinkThread)
}

// No two callers end up in one trace, also when they ask for the same.
func TestCallersStayApart(t *testing.T) {
	s := newScript(t)
	s.openSwitch()
	s.accept("a", 18)
	s.accept("b", 19)
	s.request("a", 110, "VM.a", "traceparent: "+caller)
	s.request("b", 111, "VM.b", "traceparent: "+native)
	s.log(xapi, 110, "VM.a R:07432559b308", "x", "y")
	s.log(xapi, 111, "VM.b R:07432559b308", "x", "y")
	s.started(220, 6, "VM.a R:07432559b308", start)
	s.completed(220, 6)
	s.reply("a", 110, success, "")
	s.reply("b", 111, success, "")
	s.wait(3 * time.Second)
	qt.Check(t, qt.Equals(s.span("VM.a").TraceID.String(), callerID))
	qt.Check(t, qt.Equals(s.span("VM.b").TraceID.String(), nativeT))
}
