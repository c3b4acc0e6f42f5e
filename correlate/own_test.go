package correlate

import (
	"testing"
	"time"

	"github.com/go-quicktest/qt"
)

func TestOwnCalls(t *testing.T) {
	p := newPool(t)
	s := p.member
	s.accept("agent", 17)
	s.accept("c", 18)
	for i, method := range ownMethods {
		r := request{method: method, userAgent: "dtagent/1.0"}
		// passed on to the coordinator, with a helper and a slow answer
		r.arrive(s, "agent", 110)
		s.fork(xapi, 110, 300)
		s.exec(xapi, 300, "helper", "")
		framed := r
		framed.framed = true
		framed.send(s, "stunnel", 110)
		framed.arrive(p.coordinator, "tunnel", 510)
		s.wait(3 * time.Second)
		s.call("c", 120, "VM.start")
		s.exit(xapi, 300, 0)
		framed.answered(p.coordinator, "tunnel", 510)
		framed.returned(s, "stunnel", 110)
		r.answered(s, "agent", 110)
		qt.Check(t, qt.Equals(s.e.Stats().OwnCalls, uint64(i+1)))
	}
	p.all()
	qt.Check(t, qt.HasLen(p.coordinator.spans, 0))
	qt.Check(t, qt.Equals(p.coordinator.e.Stats().OwnCalls, uint64(len(ownMethods))))
	qt.Check(t, qt.HasLen(s.spans, len(ownMethods)))
	for _, sp := range s.spans {
		qt.Check(t, qt.Equals(sp.Name, "VM.start"))
	}
	for _, e := range []*Engine{s.e, p.coordinator.e} {
		st := e.Stats()
		qt.Check(t, qt.Equals(st.Activities, 0))
		qt.Check(t, qt.Equals(st.Trees, 0))
		qt.Check(t, qt.Equals(st.Conflicts, 0))
	}
	qt.Check(t, qt.Equals(s.e.Stats().Spans, uint64(len(s.spans))))
}

// A call that is passed on is left out also where it was not seen to arrive.
func TestOwnCallHalfSeen(t *testing.T) {
	p := newPool(t)
	r := request{method: "event.from", userAgent: "dtagent/1.0", framed: true}
	p.call(p.member, p.coordinator, 110, r)
	qt.Check(t, qt.HasLen(p.all(), 0))
	qt.Check(t, qt.Equals(p.member.e.Stats().OwnCalls, 1))
	r.userAgent = "Python-xmlrpc/3.11"
	p.call(p.member, p.coordinator, 110, r)
	qt.Check(t, qt.HasLen(p.all(), 2))
}

// Others are recorded, also those who call themselves so.
func TestNotOwnCalls(t *testing.T) {
	for _, r := range []request{
		{method: "VM.start", userAgent: "dtagent/1.0"},
		{method: "Async.event.from", userAgent: "dtagent"},
		{method: "event.from", userAgent: "dtagents/1.0"},
		{method: "event.from", userAgent: "Python-xmlrpc/3.11"},
		{method: "event.from", userAgent: "dtagent/1.0", headers: []string{"traceparent: " + caller}},
		{method: "event.from", userAgent: "dtagent/1.0", headers: []string{"task-id: " + taskRef}},
	} {
		s := newScript(t)
		s.accept("c", 18)
		r.arrive(s, "c", 110)
		r.answered(s, "c", 110)
		s.wait(3 * time.Second)
		s.span(r.method)
		qt.Check(t, qt.Equals(s.e.Stats().OwnCalls, 0))
	}
}

// What other hosts ask of the pool's database is nobody's call.
func TestDatabaseCalls(t *testing.T) {
	p := newPool(t)
	s := p.coordinator
	s.accept("c", 17)
	for _, path := range []string{"/remote_db_access", "/remote_db_access_v2"} {
		s.in(xapi, "c", 110, "POST "+path+" HTTP/1.1\r\ncontent-length: 5\r\n\r\nhello")
		s.out(xapi, "c", 110, "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok")
	}
	qt.Check(t, qt.HasLen(p.all(), 0))
	qt.Check(t, qt.Equals(s.e.Stats().DatabaseCalls, 2))
}
