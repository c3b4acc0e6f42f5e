package correlate

import (
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"github.com/go-quicktest/qt"
	"github.com/xenserver/dtagent/probes/event"
)

var forkexecd = daemon{event.Forkexecd, 500, "forkexecd"}

// programRequest is what a thread asks forkexecd for: n tells it from others, and
// gives the processes their numbers.
type programRequest struct {
	d       daemon
	tid     uint32
	n       uint32
	program string
}

func (r programRequest) ino() uint64    { return 1000 + uint64(r.n) }
func (r programRequest) child() uint32  { return 10_000 + 3*r.n }
func (r programRequest) stayer() uint32 { return r.child() + 1 }
func (r programRequest) pid() uint32    { return r.child() + 2 }
func (r programRequest) name(end string) string {
	return fmt.Sprintf("%s%d", end, r.n)
}

// ofForkexecd are processes that it has forked.
func ofForkexecd(tgid uint32) daemon { return daemon{event.Forkexecd, tgid, ""} }

// asksFor connects and writes, as Forkhelpers does.
func (s *script) asksFor(r programRequest) {
	s.peered(r.d, r.name("main"), r.tid, int32(100+2*r.n), event.Connected, "", r.ino(), 0, 0)
	s.out(r.d, r.name("main"), r.tid, `000000000104[`+strings.Repeat("*", 103))
}

// takes is the daemon's part; with peers the kernel says whose the connection is.
func (s *script) takes(r programRequest, peers bool) {
	ino, tgid := r.ino(), r.d.tgid
	if !peers {
		ino, tgid = 0, 0
	}
	s.peered(forkexecd, "taken", forkexecd.tgid, 7, event.Accepted, "/var/xapi/forker/main", 2000+r.ino(), ino, tgid)
	s.in(forkexecd, "taken", forkexecd.tgid, `000000000104["Setup",{}]`)
	s.fork(forkexecd, forkexecd.tgid, r.child())
	s.fork(ofForkexecd(r.child()), r.child(), r.stayer())
	s.exit(ofForkexecd(r.child()), r.child(), 0)
	s.out(forkexecd, "taken", forkexecd.tgid, `000000000050["Setup_response",{"fd_sock_path":"/var/run/x"}]`)
	s.close(forkexecd, "taken")
}

// begins has the program started, with the descriptors that its caller sends.
func (s *script) begins(r programRequest) event.Time {
	s.in(r.d, r.name("main"), r.tid, `000000000050["Setup_response",{"fd_sock_path":"/var/run/x"}]`)
	s.peered(r.d, r.name("fds"), r.tid, int32(101+2*r.n), event.Connected, "", 5000+r.ino(), 0, 0)
	const uuid = "********-****-****-****-************"
	s.out(r.d, r.name("fds"), r.tid, strings.Repeat(uuid, 1+int(r.n)%3)) // calls in one event
	s.out(r.d, r.name("fds"), r.tid, uuid)
	s.out(r.d, r.name("main"), r.tid, `000000000006"Exec"`)
	at := s.fork(ofForkexecd(r.stayer()), r.stayer(), r.pid())
	s.in(r.d, r.name("main"), r.tid, `000000000012["Execed",1]`)
	s.close(r.d, r.name("fds"))
	s.exec(ofForkexecd(r.pid()), r.pid(), r.program, "")
	return at
}

func (s *script) finishes(r programRequest) event.Time {
	at := s.exit(ofForkexecd(r.pid()), r.pid(), 0)
	s.exit(ofForkexecd(r.stayer()), r.stayer(), 0)
	s.in(r.d, r.name("main"), r.tid, `000000000026["Finished",["WEXITED",0]]`)
	s.close(r.d, r.name("main"))
	return at
}

// What forkexecd starts is work of the thread that asked for it; the processes
// between are nobody's.
func TestForkexecd(t *testing.T) {
	s := begun(t)
	s.started(220, 6, tagged, start)
	s.performing(220, tagged, `["VM_build",["`+vm+`",false]]`)
	guest := programRequest{xenopsd, 220, 1, "xenguest"}
	s.asksFor(guest)
	s.takes(guest, true)
	from := s.begins(guest)
	s.fork(ofForkexecd(guest.pid()), guest.pid(), 400)
	s.exec(ofForkexecd(400), 400, "gzip", "")
	s.exit(ofForkexecd(400), 400, 0)
	to := s.finishes(guest)
	vif := programRequest{xenopsd, 220, 2, "vif"}
	s.asksFor(vif)
	s.takes(vif, true)
	s.begins(vif)
	s.finishes(vif)
	s.completed(220, 6)
	s.respond(64, 210, `"6"`)
	s.answered(64, `"6"`)
	s.under("xenguest", "VM_build", LinkSocket)
	s.under("gzip", "xenguest", LinkFork)
	s.under("vif", "VM_build", LinkSocket)
	sp := s.span("xenguest")
	qt.Check(t, qt.Equals(sp.Start, int64(from)))
	qt.Check(t, qt.Equals(sp.End, int64(to)))
	qt.Check(t, qt.Equals(sp.Component, event.Xenopsd))
	qt.Check(t, qt.Equals(sp.Service, "xenopsd"))
	qt.Check(t, qt.Equals(sp.Also, event.Xenguest))
	qt.Check(t, qt.Equals(attr(sp, "process.pid"), fmt.Sprint(guest.pid())))
	qt.Check(t, qt.Equals(s.span("vif").Component, event.Xenopsd))
	qt.Check(t, qt.Equals(s.span("vif").Also, event.Forkexecd))
	for _, sp := range s.spans {
		pid := attr(sp, "process.pid")
		for _, r := range []programRequest{guest, vif} {
			qt.Check(t, qt.IsFalse(pid == fmt.Sprint(r.child()) || pid == fmt.Sprint(r.stayer())), qt.Commentf("%s", sp.Name))
		}
	}
	qt.Check(t, qt.Equals(s.e.Stats().BadHeads, 0))
	s.wait(time.Minute)
	qt.Check(t, qt.Equals(s.e.errands.len()+s.e.callers.len(), 0))
}

// A script that forkexecd starts calls back for its caller.
func TestForkexecdCallBack(t *testing.T) {
	s := newScript(t)
	s.accept("c", 18)
	s.request("c", 110, "VDI.plug", "traceparent: "+caller)
	r := programRequest{xapi, 110, 1, "LVMSR"}
	s.asksFor(r)
	s.takes(r, true)
	s.begins(r)
	s.peered(xapi, "back", 120, 19, event.Accepted, "/var/lib/xcp/xapi", 7, 8, r.pid())
	s.call("back", 120, "VDI.get_by_uuid")
	s.finishes(r)
	s.reply("c", 110, success, "")
	s.under("LVMSR", "VDI.plug", LinkSocket)
	s.under("VDI.get_by_uuid", "LVMSR", LinkSocket)
	qt.Check(t, qt.Equals(s.span("VDI.get_by_uuid").TraceID.String(), callerID))
}

// What is not certain is a root: of a caller that is not known, as on the legacy
// tier, of a thread that works for nobody, after a gap, and without a request.
func TestForkexecdUnknown(t *testing.T) {
	for _, c := range []string{"no inode", "nobody's work", "the connection not seen", "events lost", "no request", "a request without a fork"} {
		t.Run(c, func(t *testing.T) {
			s := newScript(t)
			s.accept("c", 18)
			s.request("c", 110, "VM.start", "traceparent: "+caller)
			r := programRequest{xapi, 110, 1, "vif"}
			other := programRequest{xapi, 110, 2, ""}
			if c == "nobody's work" {
				r.tid = 111
			}
			if c != "the connection not seen" {
				s.asksFor(r)
			} else {
				s.conns[r.name("main")] = event.Conn{TGID: r.d.tgid, FD: 102, Born: s.now}
			}
			switch c {
			case "no request":
				s.fork(forkexecd, forkexecd.tgid, r.child())
				s.fork(ofForkexecd(r.child()), r.child(), r.stayer())
			case "a request without a fork":
				s.asksFor(other)
				s.peered(forkexecd, "taken", forkexecd.tgid, 7, event.Accepted, "/var/xapi/forker/main", 3000, other.ino(), xapi.tgid)
				s.close(forkexecd, "taken")
				s.fork(forkexecd, forkexecd.tgid, r.child())
				s.fork(ofForkexecd(r.child()), r.child(), r.stayer())
				s.close(xapi, other.name("main"))
			default:
				s.takes(r, c != "no inode")
			}
			if c == "events lost" {
				s.put(event.Event{Kind: event.KindLost, Count: 7})
			}
			s.begins(r)
			s.finishes(r)
			s.reply("c", 110, success, "")
			s.wait(time.Minute)
			s.root("vif")
			qt.Check(t, qt.Equals(s.span("vif").Component, event.Forkexecd))
			qt.Check(t, qt.Equals(s.span("VM.start").ParentID.String(), caller[36:52]))
			qt.Check(t, qt.Equals(s.e.Stats().Keys, 0))
		})
	}
}

// manyAsk has callers ask forkexecd for programs at once: program3 is VM.m3's. The
// daemon takes their requests in the order in which they connected.
func manyAsk(s *script, pick choose) {
	callers := 2 + pick(6)
	steps := make([][]func(), callers)
	var waiting []programRequest
	for i := range callers {
		n := uint32(i)
		r := programRequest{xapi, 110 + n, n, fmt.Sprintf("program%d", i)}
		conn := fmt.Sprintf("c%d", i)
		steps[i] = []func(){
			func() {
				s.accept(conn, int32(20+i))
				s.request(conn, r.tid, fmt.Sprintf("VM.m%d", i))
			},
			func() { s.asksFor(r); waiting = append(waiting, r) },
			func() {
				for len(waiting) > 0 && waiting[0].n != r.n { // those before it
					s.takes(waiting[0], true)
					waiting = waiting[1:]
				}
				if len(waiting) > 0 {
					s.takes(r, true)
					waiting = waiting[1:]
				}
				s.begins(r)
			},
			func() { s.finishes(r) },
			func() { s.reply(conn, r.tid, success, "") },
		}
	}
	for left := callers; left > 0; {
		i := pick(callers)
		for len(steps[i]) == 0 {
			i = (i + 1) % callers
		}
		steps[i][0]()
		if steps[i] = steps[i][1:]; len(steps[i]) == 0 {
			left--
		}
	}
}

// Requests of many callers, in any order, with and without events lost: a program
// is its caller's, or a root.
func TestForkexecdMany(t *testing.T) {
	joined := 0
	for seed := range uint64(200) {
		chance := rand.New(rand.NewPCG(seed, 4))
		s := gather(t)
		manyAsk(s, chance.IntN)
		events := s.events
		if seed%2 == 1 {
			events = lose(events, chance, 100, 3)
		}
		p := play(t, inOrder(events), Limits{})
		byID := map[string]string{}
		for _, sp := range p.spans {
			byID[sp.SpanID.String()] = sp.Name
		}
		for _, sp := range p.spans {
			n, ok := strings.CutPrefix(sp.Name, "program")
			if !ok {
				continue
			}
			switch parent := byID[sp.ParentID.String()]; {
			case parent == "VM.m"+n:
				joined++
			case sp.ParentID.IsValid():
				t.Fatalf("seed %d: %s hangs under %q", seed, sp.Name, parent)
			case seed%2 == 0:
				t.Fatalf("seed %d: %s has no parent", seed, sp.Name)
			}
		}
	}
	qt.Check(t, qt.IsTrue(joined > 500), qt.Commentf("%d joined", joined))
}

// FuzzForkexecd damages what forkexecd and its callers do: nothing panics, and
// nothing is held beyond the limits.
func FuzzForkexecd(f *testing.F) {
	f.Add([]byte{3, 1, 0, 1, 2}, []byte{0, 250, 0, 251, 3, 252, 9, 253, 1, 254, 0, 255, 7})
	f.Add([]byte{1, 1, 0, 1, 1, 0}, []byte{})
	f.Add([]byte{5}, []byte{0, 0, 0, 0, 0, 0, 249, 249, 249, 249, 248, 1})
	f.Fuzz(func(t *testing.T, choices, damage []byte) {
		s := gather(t)
		manyAsk(s, func(n int) int {
			if len(choices) == 0 || n == 0 {
				return 0
			}
			c := int(choices[0])
			choices = choices[1:]
			return c % n
		})
		l := Limits{Activities: 8, Conns: 8, Threads: 8, Keys: 2, Age: time.Minute}
		e := New(Config{Limits: l})
		for i := range s.events {
			for _, ev := range damaged(&s.events[i], s.events, &damage) {
				e.Handle(&ev)
			}
			e.check(t)
			if e.errands.len() > l.Keys || e.activities.live.len > l.Activities {
				t.Fatalf("too much is held: %+v", e.Stats())
			}
		}
		e.Drain()
		e.check(t)
		if n := e.Stats().Activities; n != 0 {
			t.Fatalf("%d activities are left", n)
		}
	})
}

// Each process of forkexecd forks once for a caller: what comes after that is not
// for it.
func TestForkexecdForksAgain(t *testing.T) {
	s := newScript(t)
	s.accept("c", 18)
	s.request("c", 110, "VM.start", "traceparent: "+caller)
	r := programRequest{xapi, 110, 1, "vif"}
	s.asksFor(r)
	s.takes(r, true)
	s.begins(r)
	for i, by := range []uint32{forkexecd.tgid, r.child(), r.stayer()} {
		pid := 600 + uint32(10*i)
		s.fork(ofForkexecd(by), by, pid)
		s.fork(ofForkexecd(pid), pid, pid+1)
		s.fork(ofForkexecd(pid+1), pid+1, pid+2)
		for n := range uint32(3) {
			s.exec(ofForkexecd(pid+n), pid+n, fmt.Sprintf("again%d", pid+n), "")
			s.exit(ofForkexecd(pid+n), pid+n, 0)
		}
	}
	s.finishes(r)
	s.reply("c", 110, success, "")
	s.under("vif", "VM.start", LinkSocket)
	for _, sp := range s.spans {
		if strings.HasPrefix(sp.Name, "again") {
			s.root(sp.Name)
		}
	}
	qt.Check(t, qt.HasLen(s.spans, 2+9))
}
