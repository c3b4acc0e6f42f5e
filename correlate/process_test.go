package correlate

import (
	"testing"
	"time"

	"github.com/go-quicktest/qt"
	"github.com/xenserver/dtagent/probes/event"
)

// A helper's pid calls exec twice; it belongs to the innermost activity of the
// thread that forked it, and what it starts belongs to it.
func TestProcess(t *testing.T) {
	s := begun(t)
	s.started(220, 6, tagged, start)
	s.performing(220, tagged, `["VM_build",["`+vm+`",false]]`)
	from := s.fork(xenopsd, 220, 300)
	s.exec(xenopsd, 300, "vfork_helper", "")
	s.exec(xenopsd, 300, "xenguest", "")
	helper := daemon{event.Xenopsd, 300, "xenguest"}
	s.fork(helper, 300, 301)
	s.exec(xenopsd, 301, "gzip", "")
	s.thread(helper, 300, 302)
	s.fork(helper, 302, 303) // by another thread of the helper
	s.exec(xenopsd, 303, "sh", "")
	s.exit(xenopsd, 303, 9)
	s.exit(xenopsd, 301, 3<<8)
	to := s.exit(xenopsd, 300, 0)
	s.completed(220, 6)
	s.respond(64, 210, `"6"`)
	s.answered(64, `"6"`)
	s.under("xenguest", "VM_build", LinkFork)
	s.under("gzip", "xenguest", LinkFork)
	s.under("sh", "xenguest", LinkFork)
	sp := s.span("xenguest")
	qt.Check(t, qt.Equals(sp.Start, int64(from)))
	qt.Check(t, qt.Equals(sp.End, int64(to)))
	qt.Check(t, qt.Equals(sp.Service, "xenopsd"))
	qt.Check(t, qt.Equals(sp.Error, ""))
	for key, want := range map[string]string{
		"process.pid": "300", "process.executable.name": "xenguest", "process.exit.code": "0", "dt.time.cpu_us": "1500",
	} {
		qt.Check(t, qt.Equals(attr(sp, key), want), qt.Commentf("%s", key))
	}
	qt.Check(t, qt.Equals(s.span("gzip").Error, "exit 3"))
	qt.Check(t, qt.Equals(attr(s.span("gzip"), "process.exit.code"), "3"))
	qt.Check(t, qt.Equals(s.span("sh").Error, "killed"))
}

func TestProcessOfNobody(t *testing.T) {
	s := newScript(t)
	s.fork(xapi, 110, 300)
	s.exec(xapi, 300, "sh", "")
	s.exit(xapi, 300, 0)
	s.drain()
	qt.Assert(t, qt.HasLen(s.spans, 0))
	qt.Assert(t, qt.Equals(s.e.Stats().Threads, 0))
}

func TestProcessWithoutExec(t *testing.T) {
	s := newScript(t)
	s.accept("c", 18)
	s.request("c", 110, "VM.start")
	s.fork(xapi, 110, 300)
	s.exit(xapi, 300, 0)
	s.reply("c", 110, success, "")
	s.under("xapi", "VM.start", LinkFork)
}

// A pid whose last owner's exit was lost.
func TestPidReused(t *testing.T) {
	s := newScript(t)
	s.accept("a", 18)
	s.accept("b", 19)
	s.request("a", 110, "VM.a")
	s.request("b", 111, "VM.b")
	s.fork(xapi, 110, 300)
	s.exec(xapi, 300, "old", "")
	s.fork(xapi, 111, 300)
	s.exec(xapi, 300, "new", "")
	s.exit(xapi, 300, 0)
	s.fork(xapi, 112, 300) // nobody's
	s.exec(xapi, 300, "other", "")
	s.exit(xapi, 300, 0)
	s.reply("a", 110, success, "")
	s.reply("b", 111, success, "")
	s.under("old", "VM.a", LinkFork)
	s.under("new", "VM.b", LinkFork)
	qt.Check(t, qt.Equals(s.span("old").Incomplete, endUnseen))
	qt.Check(t, qt.Equals(s.span("new").Incomplete, ""))
	qt.Check(t, qt.HasLen(s.spans, 4))
}

// A connection's thread belongs to its call from the first byte of the request
// to the last of the reply, and a tid is nobody's once its thread has ended.
func TestThreadKeyEnds(t *testing.T) {
	s := newScript(t)
	s.openSwitch()
	s.accept("c", 18)
	s.fork(xapi, 110, 300)
	s.call("c", 110, "VM.start")
	s.fork(xapi, 110, 301)
	s.request("c", 110, "VM.stop")
	s.threadExit(xapi, 110)
	s.thread(xapi, 105, 110)
	s.fork(xapi, 110, 302)
	for pid := uint32(300); pid <= 302; pid++ {
		s.exit(xapi, pid, 0)
	}
	s.ask(110, "VM.exists", "")
	s.drain()
	qt.Check(t, qt.HasLen(s.spans, 3))
	s.root(send + "VM.exists")
}

// The same number of another socket is another connection.
func TestFDReused(t *testing.T) {
	s := newScript(t)
	s.accept("old", 18)
	s.request("old", 110, "VM.old")
	s.accept("new", 18)
	s.request("new", 111, "VM.new")
	s.reply("old", 110, success, "") // late
	s.close(xapi, "old")
	qt.Check(t, qt.Equals(s.e.Stats().StaleEvents, 3))
	s.reply("new", 111, success, "")
	qt.Check(t, qt.Equals(s.span("VM.old").Incomplete, endUnseen))
	qt.Check(t, qt.Equals(s.span("VM.new").Incomplete, ""))
	s.wait(time.Second)
	s.drain()
	qt.Check(t, qt.HasLen(s.spans, 2))
}

func TestEventsLost(t *testing.T) {
	s := newScript(t)
	s.accept("a", 18)
	s.accept("b", 19)
	s.call("a", 110, "VM.before")
	s.request("a", 110, "VM.during")
	s.put(event.Event{Kind: event.KindLost, Count: 7})
	s.reply("a", 110, success, "")
	s.call("b", 111, "VM.after")
	qt.Check(t, qt.Equals(s.span("VM.before").Incomplete, ""))
	qt.Check(t, qt.Equals(s.span("VM.during").Incomplete, "events lost"))
	qt.Check(t, qt.Equals(s.span("VM.after").Incomplete, ""))
	qt.Check(t, qt.Equals(s.e.Stats().EventsLost, 7))
}

// A process is its maker's and, besides, the component that its program is.
func TestProcessAlso(t *testing.T) {
	s := begun(t)
	s.started(220, 6, tagged, start)
	for i, programs := range [][]string{
		{"vfork_helper", "xenguest"}, {"vfork_helper", "vif"}, {"vfork_helper", "qemu-wrapper", "logger"}, {"sh"},
	} {
		pid := uint32(300 + i)
		s.fork(xenopsd, 220, pid)
		for _, p := range programs {
			s.exec(xenopsd, pid, p, "")
		}
	}
	s.fork(daemon{event.Xenopsd, 302, ""}, 302, 310) // qemu-wrapper has several processes
	s.fork(daemon{event.Xenopsd, 301, ""}, 301, 311)
	s.exec(xenopsd, 311, "ip", "") // started by the script, not by vfork_helper
	for _, pid := range []uint32{310, 311, 300, 301, 302, 303} {
		s.exit(xenopsd, pid, 0)
	}
	s.drain()
	for name, also := range map[string]event.Component{
		"xenguest": event.Xenguest, "vif": event.Forkexecd, "sh": event.NoComponent, "ip": event.NoComponent,
	} {
		qt.Check(t, qt.Equals(s.span(name).Component, event.Xenopsd), qt.Commentf("%s", name))
		qt.Check(t, qt.Equals(s.span(name).Service, "xenopsd"), qt.Commentf("%s", name))
		qt.Check(t, qt.Equals(s.span(name).Also, also), qt.Commentf("%s", name))
	}
	for _, sp := range s.spans {
		if sp.Name == "logger" {
			qt.Check(t, qt.Equals(sp.Also, event.QEMU))
		}
	}
	s.under("ip", "vif", LinkFork)
}

// Where nothing but children is watched, a process that a component wants is the
// root of its own tree.
func TestProcessWithoutCaller(t *testing.T) {
	s := newScript(t)
	s.fork(xenopsd, 220, 300)
	s.exec(xenopsd, 300, "vfork_helper", "")
	s.exec(xenopsd, 300, "xenguest", "")
	guest := daemon{event.Xenopsd, 300, "xenguest"}
	s.fork(guest, 300, 301)
	s.exec(xenopsd, 301, "gzip", "")
	s.exit(xenopsd, 301, 0)
	s.exit(xenopsd, 300, 0)
	s.fork(xapi, 110, 400)
	s.exec(daemon{event.SMAPI, 100, ""}, 400, "LVMSR", "sr_scan")
	s.exit(daemon{event.SMAPI, 100, ""}, 400, 0)
	s.exec(daemon{event.Forkexecd, 500, ""}, 501, "vif", "")
	s.exit(daemon{event.Forkexecd, 500, ""}, 501, 0)
	s.root("xenguest")
	qt.Check(t, qt.Equals(s.span("xenguest").Component, event.Xenopsd))
	qt.Check(t, qt.Equals(s.span("xenguest").Also, event.Xenguest))
	s.under("gzip", "xenguest", LinkFork)
	qt.Check(t, qt.Equals(s.span("gzip").Also, event.NoComponent))
	s.root("LVMSR sr_scan")
	qt.Check(t, qt.Equals(s.span("LVMSR sr_scan").Component, event.SMAPI))
	s.root("vif")
	qt.Check(t, qt.Equals(s.span("vif").Service, "forkexecd"))
	qt.Check(t, qt.Equals(s.e.Stats().Activities, 0))
}
