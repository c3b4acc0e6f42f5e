package correlate

import (
	"testing"
	"time"

	"github.com/go-quicktest/qt"
)

// lasts returns the names of the spans that are the last of their tree.
func (s *script) lasts() (out []string) {
	for _, sp := range s.spans {
		if sp.Last {
			out = append(out, sp.Name)
		}
	}
	return out
}

// oneTree asserts that all spans so far have the number of one local tree.
func (s *script) oneTree() {
	s.Helper()
	for _, sp := range s.spans {
		qt.Check(s, qt.Equals(sp.Tree, s.spans[0].Tree), qt.Commentf("%s", sp.Name))
		qt.Check(s, qt.Not(qt.Equals(sp.Tree, 0)))
	}
}

// The last span of a tree says so, whether its spans waited for a trace id or not.
func TestLast(t *testing.T) {
	for _, headers := range [][]string{nil, {"traceparent: " + caller}} {
		s := newScript(t)
		s.openSwitch()
		s.accept("c", 18)
		s.request("c", 110, "VM.start_on", headers...)
		s.fork(xapi, 110, 300)
		s.exec(xapi, 300, "early", "")
		s.exit(xapi, 300, 0)
		s.rpc(64, 110, 210, "VM.exists", tagged, "null")
		qt.Check(t, qt.HasLen(s.lasts(), 0))
		s.reply("c", 110, success, "")
		qt.Check(t, qt.HasLen(s.spans, 4))
		qt.Check(t, qt.DeepEquals(s.lasts(), []string{"VM.start_on"}))
		s.oneTree()

		// the next request is another tree
		s.call("c", 110, "VM.next", headers...)
		qt.Check(t, qt.Not(qt.Equals(s.span("VM.next").Tree, s.spans[0].Tree)))
		qt.Check(t, qt.IsTrue(s.span("VM.next").Last))
	}
}

// A task that outlives its call has the last span.
func TestLastOfTask(t *testing.T) {
	s := newScript(t)
	s.accept("c", 18)
	s.request("c", 110, "Async.VM.start", "traceparent: "+caller)
	s.thread(xapi, 110, 120)
	s.reply("c", 110, success, taskRef)
	qt.Check(t, qt.HasLen(s.lasts(), 0))
	s.threadExit(xapi, 120)
	qt.Check(t, qt.DeepEquals(s.lasts(), []string{"VM.start"}))
	s.oneTree()
}

// Trees that turn out to be one have one number, and only the very last span is
// the last: here what the receiver did is finished before its caller is known.
func TestLastOfJoined(t *testing.T) {
	for _, headers := range [][]string{nil, {"traceparent: " + caller}} {
		s := newScript(t)
		s.openSwitch()
		s.accept("c", 18)
		s.request("c", 110, "VM.start_on", headers...)
		s.ask(110, "VM.exists", tagged)
		s.reply("c", 110, success, "") // its thread goes on without the answer
		s.deliver(64, "VM.exists", tagged)
		s.thread(xenopsd, 201, 210)
		s.fork(xenopsd, 210, 300)
		s.exec(xenopsd, 300, "helper", "")
		s.exit(xenopsd, 300, 0)
		s.respond(64, 210, "null")
		s.threadExit(xenopsd, 210)
		s.answered(64, "null")
		s.number(110, 64)
		s.wait(3 * time.Second)
		qt.Check(t, qt.HasLen(s.spans, 4))
		s.oneTree()
		qt.Assert(t, qt.HasLen(s.lasts(), 1))
		qt.Check(t, qt.IsTrue(s.spans[3].Last))
	}
}

// What is given up ends a tree, too.
func TestLastOfGivenUp(t *testing.T) {
	s := newScript(t)
	s.accept("c", 18)
	s.request("c", 110, "VM.start")
	s.fork(xapi, 110, 300)
	s.exec(xapi, 300, "helper", "")
	s.drain()
	qt.Check(t, qt.HasLen(s.spans, 2))
	qt.Check(t, qt.HasLen(s.lasts(), 1))
	qt.Check(t, qt.IsTrue(s.spans[1].Last))
	s.oneTree()
}

// The stunnel of a connection that is kept serves others, too: the tree of the
// call that needed it first does not wait for it.
func TestLastWithoutStunnel(t *testing.T) {
	for _, headers := range [][]string{nil, {"traceparent: " + caller}} {
		s := newScript(t)
		s.accept("c", 18)
		s.request("c", 110, "VM.start", headers...)
		s.fork(xapi, 110, 300)
		s.exec(xapi, 300, "vfork_helper", "")
		s.exec(xapi, 300, "stunnel", "")
		s.exec(xapi, 300, "stunnel", "")
		s.reply("c", 110, success, "")
		qt.Check(t, qt.DeepEquals(s.lasts(), []string{"VM.start"}))
		s.wait(time.Minute)
		s.exit(xapi, 300, 0)
		s.under("stunnel", "VM.start", LinkFork)
		qt.Check(t, qt.Equals(s.span("stunnel").Incomplete, ""))
		qt.Check(t, qt.Equals(s.e.Stats().Trees, 0))
		s.oneTree()
	}
}

// Of the spans that waited together for what they belong to, the last one is.
func TestLastOfLate(t *testing.T) {
	s := newScript(t)
	s.accept("c", 18)
	s.request("c", 110, "VM.start_on", "traceparent: "+caller)
	s.log(xapi, 110, tagged, "audit", "VM.start_on")
	s.started(220, 6, tagged, start)
	s.performing(220, tagged, `["VM_build",["`+vm+`",false]]`)
	s.completed(220, 6)
	s.reply("c", 110, success, "")
	qt.Check(t, qt.DeepEquals(s.lasts(), []string{"VM.start_on"})) // as far as is known
	s.wait(3 * time.Second)
	s.under("VM_build", "VM_start", LinkThread)
	s.under("VM_start", "VM.start_on", LinkTask)
	s.oneTree()
	qt.Check(t, qt.DeepEquals(s.lasts(), []string{"VM.start_on", "VM_start"}))
}
