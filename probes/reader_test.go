//go:build linux

package probes

import (
	"testing"

	"github.com/go-quicktest/qt"

	"github.com/xenserver/dtagent/bpf"
	"github.com/xenserver/dtagent/probes/event"
	"github.com/xenserver/dtagent/probes/redact"
	"github.com/xenserver/dtagent/probes/target"
)

// handler returns a function that does with records what Run does, and the
// events that came of them. Nothing is wanted, so no kernel is needed.
func handler(t *testing.T) (m *Manager, handle func(bpf.Record), events func() []event.Event) {
	m = &Manager{watcher: target.NewWatcher(target.Options{}), smDirs: []string{"/opt/xensource/sm"}}
	m.reader.redactor = redact.New(0)
	var all []event.Event
	var ev event.Event
	return m, func(r bpf.Record) {
		m.record(&r, &ev, func(e *event.Event) { all = append(all, *e) })
	}, func() []event.Event { return all }
}

func of(h bpf.Hdr, tgid uint32) bpf.Hdr {
	h.TGID, h.TID = tgid, tgid
	return h
}

// TestScriptComponent follows an SM script and its children, and the next user
// of its pid.
func TestScriptComponent(t *testing.T) {
	_, handle, events := handler(t)
	exec := func(tgid uint32, file string) bpf.Record {
		x := execRec(file, "<methodCall><methodName>sr_scan</methodName>")
		x.Hdr = of(x.Hdr, tgid)
		return bpf.Record{Raw: record(t, x, "")}
	}
	fork := func(tgid, child uint32) bpf.Record {
		return bpf.Record{Raw: record(t, bpf.ForkRec{Hdr: of(hdr(bpf.KindFork, 0), tgid), ChildTGID: child, ChildTID: child}, "")}
	}
	exit := func(tgid uint32) bpf.Record {
		return bpf.Record{Raw: record(t, bpf.ExitRec{Hdr: of(hdr(bpf.KindExit, bpf.FlagLeader), tgid)}, "")}
	}
	steps := []struct {
		rec  bpf.Record
		want event.Component
	}{
		{fork(10, 100), event.Xapi},
		{exec(100, "/usr/libexec/xapi/vfork_helper"), event.Xapi},
		{exec(100, "/opt/xensource/sm/LVMSR"), event.SMAPI},
		{fork(100, 101), event.SMAPI},
		{exec(101, "/usr/sbin/lvs"), event.SMAPI},
		{exit(101), event.SMAPI},
		{exit(100), event.SMAPI},
		{fork(10, 100), event.Xapi}, // the pid again
		{exec(100, "/opt/xensource/sm/LVMSR.py"), event.Xapi},
		{exit(100), event.Xapi},
		{fork(10, 102), event.Xapi},
		{exec(102, "/opt/xensource/sm/NFSSR"), event.SMAPI}, // its exit is lost
		{fork(10, 102), event.Xapi},
		{exec(102, "/bin/true"), event.Xapi},
	}
	for i, s := range steps {
		handle(s.rec)
		qt.Check(t, qt.Equals(events()[i].Component, s.want), qt.Commentf("step %d", i))
	}
}

func TestScriptsAreBounded(t *testing.T) {
	m, handle, _ := handler(t)
	for i := range uint32(maxScripts + 10) {
		x := execRec("/opt/xensource/sm/LVMSR")
		x.Hdr = of(x.Hdr, 1000+i)
		handle(bpf.Record{Raw: record(t, x, "")})
	}
	qt.Check(t, qt.HasLen(m.reader.scripts, maxScripts))
	qt.Check(t, qt.Equals(m.count.scripts.Load(), 10))
}

// TestLost: a gap comes before the record that showed it, and takes the
// permission away that a request gave its reply.
func TestLost(t *testing.T) {
	m, handle, events := handler(t)
	data := func(dir uint8, flags uint16, text string, lost uint64) {
		handle(bpf.Record{CPU: 3, Lost: lost, Since: 50, Raw: record(t, bpf.DataRec{Hdr: hdr(bpf.KindData, flags), Bytes: uint64(len(text)), HeadLen: uint16(len(text)), Dir: dir}, text)})
	}
	request := "POST /jsonrpc HTTP/1.1\r\ncontent-length: 32\r\n\r\n{\"method\":\"Async.VM.start\",\"x\":1}"
	reply := "HTTP/1.1 200 OK\r\ncontent-length: 60\r\n\r\n{\"result\":\"" + task + "\"}"
	data(bpf.DirIn, 0, request, 0)
	data(bpf.DirOut, 0, reply, 0)
	qt.Check(t, qt.IsTrue(holds(event.KindData, "OpaqueRef:8ae06e1e-a3d1*")(events())))
	data(bpf.DirIn, 0, request, 0)
	data(bpf.DirOut, 0, reply, 5)
	all := events()
	qt.Assert(t, qt.HasLen(all, 5))
	qt.Check(t, qt.Equals(all[3].Kind, event.KindLost))
	qt.Check(t, qt.Equals(all[3].CPU, 3))
	qt.Check(t, qt.Equals(all[3].Last, all[4].Time))
	qt.Check(t, qt.Equals(all[3].First, 50)) // when the record before was made
	qt.Check(t, qt.Equals(all[3].Time, 50))  // it goes before what was made then
	qt.Check(t, qt.Equals(all[3].Count, 5))
	qt.Check(t, qt.IsFalse(holds(event.KindData, "OpaqueRef:8")(all[4:])))
	qt.Check(t, qt.Equals(m.count.gaps.Load(), 5))
	data(bpf.DirIn, 0, request, 1<<32-1) // a late record is no loss
	qt.Check(t, qt.Equals(m.count.gaps.Load(), 5))
	handle(bpf.Record{Raw: []byte("short")})
	qt.Check(t, qt.Equals(m.count.malformed.Load(), 1))
}
