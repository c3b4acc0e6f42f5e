package xapi

import (
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"os"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/go-quicktest/qt"
)

// fast are options for tests that wait for failures.
// fast are options under which tests need no long waits. A call that is not answered
// at once has not failed: this machine may be busy.
func fast(s *server) Options {
	return Options{Socket: s.socket, CallTimeout: time.Minute, EventTimeout: time.Second, ApplyEvery: 20 * time.Millisecond,
		SaveEvery: 10 * time.Millisecond, BackoffMin: 20 * time.Millisecond, BackoffMax: 200 * time.Millisecond}
}

func TestFollow(t *testing.T) {
	s := newServer(t)
	s.observer(1, "hosts", []string{peerRef, hostRef, "OpaqueRef:gone"}, "attributes", map[string]string{"custom.k": "v", "dtagent.sampler": "always_on"})
	r := run(t, Options{Socket: s.socket, Version: "v1.2"})
	r.names("o1")
	st := r.state()
	qt.Check(t, qt.Equals(st.Host.UUID, hostUUID))
	qt.Check(t, qt.Equals(st.Host.Name, "dom0-1"))
	qt.Check(t, qt.Equals(st.Host.PoolUUID, poolUUID))
	o := st.Observers[0]
	qt.Check(t, qt.DeepEquals(o.Hosts, []string{peerUUID, hostUUID, "OpaqueRef:gone"}))
	qt.Check(t, qt.DeepEquals(o.Attributes, map[string]string{"custom.k": "v", "dtagent.sampler": "always_on"}))
	qt.Check(t, qt.DeepEquals(o.Endpoints, []string{"bugtool"}))
	qt.Check(t, qt.IsTrue(o.On(hostUUID)))

	s.observer(2, "hosts", []string{peerRef})
	took := r.names("o1", "o2")
	t.Log("add in force after", took)
	s.observer(1, "name_label", "renamed", "enabled", false)
	took = r.names("renamed", "o2")
	t.Log("mod in force after", took)
	qt.Check(t, qt.IsFalse(r.state().Observers[0].Enabled))
	s.del(refOf(2))
	took = r.names("renamed")
	t.Log("del in force after", took)
	qt.Check(t, qt.IsTrue(took < time.Second))

	s.put("host", hostRef, map[string]any{"uuid": hostUUID, "name_label": "new name"})
	r.until("the host's new name", func(st State) bool { return st.Host.Name == "new name" })
	// A host that joins the pool later is known by its uuid too.
	s.put("host", "OpaqueRef:host-3", map[string]any{"uuid": "3f6c0000-0000-4000-8000-000000000003", "name_label": "3"})
	s.observer(3, "hosts", []string{"OpaqueRef:host-3"})
	r.names("renamed", "o3")
	qt.Check(t, qt.DeepEquals(r.state().Observers[1].Hosts, []string{"3f6c0000-0000-4000-8000-000000000003"}))

	x := r.Status()
	qt.Check(t, qt.Equals(x.State, Connected))
	qt.Check(t, qt.Equals(x.Observers, 2))
	qt.Check(t, qt.Equals(x.Resyncs, 1))
	qt.Check(t, qt.Equals(x.Reconnects, 0))
	qt.Check(t, qt.Equals(x.LastError, ""))
	qt.Check(t, qt.IsTrue(x.Events >= 6))

	r.stop()
	s.with(func() {
		qt.Check(t, qt.Equals(s.logins, 1))
		qt.Check(t, qt.Equals(s.logouts, 1))
		qt.Check(t, qt.HasLen(s.sessions, 0))
		for _, head := range s.heads {
			qt.Check(t, qt.StringContains(head, "User-Agent: dtagent/v1.2\r\n"))
			qt.Check(t, qt.StringContains(head, "POST /jsonrpc HTTP/1.1\r\n"))
			qt.Check(t, qt.Not(qt.StringContains(head, "Encoding")))
			qt.Check(t, qt.IsTrue(len(head) < 200))
		}
	})
}

// TestRestart: the toolstack goes away for a while and comes back without the
// sessions, and with other Observers.
func TestRestart(t *testing.T) {
	s := newServer(t)
	s.observer(1)
	r := run(t, Options{Socket: s.socket})
	r.names("o1")
	for i := range 3 {
		s.stop()
		r.until("lost", func(State) bool { return r.Status().State == Lost })
		time.Sleep(time.Duration(i) * 600 * time.Millisecond)
		qt.Check(t, qt.HasLen(r.state().Observers, 1)) // stays in force
		s.del(refOf(i + 1))
		s.observer(i + 2)
		s.start()
		took := r.names(fmt.Sprint("o", i+2))
		t.Logf("restart %d noticed and in force after %v", i, took)
		qt.Check(t, qt.IsTrue(took < 2*time.Second))
		x := r.Status()
		qt.Check(t, qt.Equals(x.State, Connected))
		qt.Check(t, qt.Not(qt.Equals(x.LastError, "")))
	}
	r.stop()
	s.with(func() { qt.Check(t, qt.HasLen(s.sessions, 0)) })
}

// TestLateStart: no socket at first, then a file that is none, then XAPI.
func TestLateStart(t *testing.T) {
	s := newServer(t)
	s.stop()
	s.observer(1)
	r := run(t, Options{Socket: s.socket})
	time.Sleep(700 * time.Millisecond)
	x := r.Status()
	qt.Check(t, qt.Equals(x.State, Connecting))
	qt.Check(t, qt.StringContains(x.LastError, "no such file"))
	qt.Check(t, qt.Equals(r.applied(), 0))
	qt.Assert(t, qt.IsNil(os.WriteFile(s.socket, nil, 0o600)))
	time.Sleep(300 * time.Millisecond)
	qt.Assert(t, qt.IsNil(os.Remove(s.socket)))
	s.start()
	took := r.names("o1")
	t.Log("in force after", took)
	qt.Check(t, qt.IsTrue(took < 2*time.Second))
}

// bothRoles runs a test against a coordinator and against a member, which passes
// errors on in another form.
func bothRoles(t *testing.T, f func(t *testing.T, s *server)) {
	for name, member := range map[string]bool{"coordinator": false, "member": true} {
		t.Run(name, func(t *testing.T) {
			s := newServer(t)
			s.member.Store(member)
			f(t, s)
		})
	}
}

func TestSessionInvalid(t *testing.T) {
	bothRoles(t, func(t *testing.T, s *server) {
		s.observer(1)
		r := run(t, fast(s))
		r.names("o1")
		for i := range 3 {
			s.forget()
			s.observer(i + 2)
			s.del(refOf(i + 1))
			r.names(fmt.Sprint("o", i+2))
		}
		qt.Check(t, qt.IsTrue(r.Status().Reconnects >= 3))
		qt.Check(t, qt.StringContains(r.Status().LastError, "SESSION_INVALID"))
		r.stop()
		s.with(func() {
			qt.Check(t, qt.Equals(s.logins, 4))
			qt.Check(t, qt.HasLen(s.sessions, 0))
		})
	})
}

func TestTokenLost(t *testing.T) {
	bothRoles(t, func(t *testing.T, s *server) {
		s.observer(1)
		r := run(t, fast(s))
		r.names("o1")
		for i := range 2 {
			s.with(func() { s.badToken = true })
			s.observer(i + 2)
			s.del(refOf(i + 1))
			r.until("the token refused", func(State) bool { s.mu.Lock(); defer s.mu.Unlock(); return !s.badToken })
			r.names(fmt.Sprint("o", i+2))
		}
		qt.Check(t, qt.Equals(r.Status().Reconnects, 0))
		s.with(func() { qt.Check(t, qt.Equals(s.logins, 1)) })
	})
}

// TestFaults makes each call in turn fail in each way, then lets XAPI be well
// again.
func TestFaults(t *testing.T) {
	half := func(w http.ResponseWriter, id string) {
		w.Header().Set("content-length", "1000")
		_, _ = io.WriteString(w, `{"jsonrpc":"2.0","result":{"OpaqueRef:`)
		panic(http.ErrAbortHandler)
	}
	faults := map[string]func(w http.ResponseWriter, id string){
		"garbage":  func(w http.ResponseWriter, id string) { reply(w, "\x00\xff<html>") },
		"empty":    func(w http.ResponseWriter, id string) { reply(w, "") },
		"null":     func(w http.ResponseWriter, id string) { answer(w, id, "null") },
		"number":   func(w http.ResponseWriter, id string) { answer(w, id, "17") },
		"deep":     func(w http.ResponseWriter, id string) { answer(w, id, strings.Repeat("[", 1<<20)) },
		"other id": func(w http.ResponseWriter, id string) { answer(w, "999999", `""`) },
		"null id":  func(w http.ResponseWriter, id string) { answer(w, "null", `""`) },
		"half":     half,
		"500":      func(w http.ResponseWriter, id string) { http.Error(w, "<html>oops</html>", 500) },
		"redirect": func(w http.ResponseWriter, id string) {
			w.Header().Set("Location", "http://other/")
			w.WriteHeader(302)
		},
		"closed": func(w http.ResponseWriter, id string) { panic(http.ErrAbortHandler) },
		"slave":  func(w http.ResponseWriter, id string) { fail(w, id, "HOST_IS_SLAVE", "10.0.0.1") },
		"emergency": func(w http.ResponseWriter, id string) {
			reply(w, `{"result":null,"error":["HOST_STILL_BOOTING"],"id":0}`)
		},
		"no data": func(w http.ResponseWriter, id string) { reply(w, `{"error":{"message":"X"},"id":`+id+`}`) },
		"no code": func(w http.ResponseWriter, id string) { reply(w, `{"error":{"code":1},"id":`+id+`}`) },
		"hanging": func(w http.ResponseWriter, id string) { time.Sleep(2500 * time.Millisecond) },
		"huge":    func(w http.ResponseWriter, id string) { answer(w, id, `"`+strings.Repeat("x", maxReply)+`"`) },
	}
	for name, fault := range faults {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := newServer(t)
			s.observer(1)
			o := fast(s)
			o.BackoffMax = 2 * o.BackoffMin
			if name == "hanging" {
				o.CallTimeout = time.Second
			}
			r := run(t, o)
			r.names("o1")
			for i, method := range []string{"event.from", "Observer.get_all_records", "pool.get_all_records", "host.get_by_uuid", "host.get_name_label", "session.login_with_password"} {
				if name == "huge" && i > 1 || name == "hanging" && i > 3 {
					break
				}
				var hits atomic.Int32
				s.setFault(func(w http.ResponseWriter, m string, params []json.RawMessage, id string) bool {
					if m != method || method == "session.login_with_password" && hits.Load() >= 3 {
						return false
					}
					hits.Add(1)
					fault(w, id)
					return true
				})
				s.forget() // makes it call them all
				s.observer(1, "name_label", fmt.Sprint("n", i))
				r.until(method+" failing", func(State) bool { return hits.Load() > 1 })
				s.setFault(nil)
				took := r.names(fmt.Sprint("n", i))
				t.Logf("%s: %d times, then in force after %v", method, hits.Load(), took)
			}
			s.with(func() { qt.Check(t, qt.HasLen(s.sessions, 1)) })
			var hits atomic.Int32
			s.setFault(func(w http.ResponseWriter, m string, params []json.RawMessage, id string) bool {
				if m == "session.logout" {
					hits.Add(1)
					if name == "hanging" {
						<-t.Context().Done()
					}
					fault(w, id)
				}
				return m == "session.logout"
			})
			r.stop() // one that waits for the answer does not return
			qt.Check(t, qt.Equals(hits.Load(), 1))
		})
	}
}

// TestGarbledEvents: events that tell nothing, or wrong things, are made up for
// by reading everything, and the others go on.
func TestGarbledEvents(t *testing.T) {
	events := func(id, list, counts, token string) string {
		return fmt.Sprintf(`{"jsonrpc":"2.0","result":{"events":%s,"valid_ref_counts":%s,"token":%s},"id":%s}`, list, counts, token, id)
	}
	const token = `"00000000000000000001,00000000000000000000"`
	part, _ := json.Marshal(map[string]any{"name_label": "half"})
	for name, list := range map[string]string{
		"partial snapshot":    `[{"class":"observer","operation":"mod","ref":"OpaqueRef:observer-1","snapshot":` + string(part) + `}]`,
		"snapshot null":       `[{"class":"observer","operation":"mod","ref":"OpaqueRef:observer-1","snapshot":null}]`,
		"snapshot a string":   `[{"class":"observer","operation":"add","ref":"OpaqueRef:observer-1","snapshot":"x"}]`,
		"no ref":              `[{"class":"observer","operation":"mod"}]`,
		"unknown operation":   `[{"class":"observer","operation":"xyz","ref":"OpaqueRef:observer-1"}]`,
		"no event":            `[17,null,"x",[]]`,
		"events no list":      `"x"`,
		"host without record": `[{"class":"host","operation":"mod","ref":"OpaqueRef:host-1","snapshot":{}}]`,
		"wrong del":           `[{"class":"observer","operation":"del","ref":"OpaqueRef:observer-1"}]`,
		"many":                `[` + strings.Repeat(`{},`, maxEvents+1) + `{}]`,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := newServer(t)
			s.observer(1)
			s.observer(2)
			var hits atomic.Int32
			renamed := make(chan struct{})
			// Only the database itself knows the new name: no event tells it.
			s.setFault(func(w http.ResponseWriter, m string, params []json.RawMessage, id string) bool {
				if m != "event.from" {
					return false
				}
				<-renamed
				if hits.Add(1) > 1 {
					time.Sleep(100 * time.Millisecond)
					reply(w, events(id, `[]`, `{"observer":2}`, token))
					return true
				}
				reply(w, events(id, list, `{"observer":2}`, token))
				return true
			})
			r := run(t, fast(s))
			r.names("o1", "o2")
			s.observer(1, "name_label", "changed")
			close(renamed)
			r.names("changed", "o2")
			x := r.Status()
			qt.Check(t, qt.Equals(x.Reconnects, 0))
			qt.Check(t, qt.Equals(x.Resyncs, 2))
		})
	}
}

// TestWrongCounts: an XAPI that goes on to contradict itself is asked less and
// less.
func TestWrongCounts(t *testing.T) {
	s := newServer(t)
	s.observer(1)
	s.setFault(func(w http.ResponseWriter, m string, params []json.RawMessage, id string) bool {
		if m != "event.from" {
			return false
		}
		answer(w, id, `{"events":[],"valid_ref_counts":{"observer":7},"token":"00000000000000000001,00000000000000000000"}`)
		return true
	})
	r := run(t, fast(s))
	r.names("o1")
	time.Sleep(4 * time.Second)
	x := r.Status()
	qt.Check(t, qt.IsTrue(x.Resyncs >= 2 && x.Resyncs <= 4), qt.Commentf("%d", x.Resyncs))
	n := s.count("event.from")
	qt.Check(t, qt.IsTrue(n < 20), qt.Commentf("%d event.from", n))
	s.setFault(nil)
	s.observer(2)
	r.names("o1", "o2")
}

// TestDestroyedBetween: an Observer that is destroyed between the two first
// reads is noticed, also without counts.
func TestDestroyedBetween(t *testing.T) {
	s := newServer(t)
	s.observer(1)
	s.observer(2)
	var once atomic.Bool
	s.with(func() { s.noCounts = true })
	s.setFault(func(w http.ResponseWriter, m string, params []json.RawMessage, id string) bool {
		if m == "event.from" && !once.Swap(true) {
			s.del(refOf(1))
		}
		return false
	})
	r := run(t, fast(s))
	r.names("o2")
}

// TestFutureToken: XAPI took an older copy of its database, so the token is one
// that it will reach much later, and tells of no change until then.
func TestFutureToken(t *testing.T) {
	s := newServer(t)
	s.observer(1)
	r := run(t, fast(s))
	r.names("o1")
	time.Sleep(100 * time.Millisecond) // in event.from
	s.with(func() { s.mute = true })
	s.observer(1, "name_label", "unseen")
	took := r.names("unseen")
	t.Log("found after", took) // EventTimeout is 1 s, twice at most
	s.with(func() { s.mute = false })
	s.observer(2)
	r.names("unseen", "o2")
	qt.Check(t, qt.Equals(r.Status().Reconnects, 0))
}

// TestStorm: 200 changes a second.
func TestStorm(t *testing.T) {
	const seconds, rate = 4, 200
	s := newServer(t)
	for n := range 10 {
		s.observer(n)
	}
	r := run(t, Options{Socket: s.socket, StateFile: t.TempDir() + "/state.json"})
	r.until("ten", func(st State) bool { return len(st.Observers) == 10 })
	calls := r.applied()
	begin := time.Now()
	next := 10
	for i := range seconds * rate {
		switch i % 4 {
		case 0:
			s.observer(next)
			next++
		case 1:
			s.del(refOf(next - 10 - 1))
		default:
			s.observer(next-1-i%5, "name_label", fmt.Sprint("c", i))
		}
		time.Sleep(time.Until(begin.Add(time.Duration(i+1) * time.Second / rate)))
	}
	wrote := time.Since(begin)
	s.observer(next-1, "name_label", "the last")
	took := r.until("the last state", func(st State) bool {
		return len(st.Observers) == 10 && st.Observers[9].NameLabel == "the last"
	})
	calls = r.applied() - calls
	x := r.Status()
	t.Logf("%d changes in %v: %d events, %d calls of apply, %d full reads; the last in force after %v", seconds*rate, wrote, x.Events, calls, x.Resyncs, took)
	qt.Check(t, qt.IsTrue(calls <= 4*(int((wrote+took)/time.Second)+2)))
	qt.Check(t, qt.IsTrue(x.Resyncs <= 2))
	qt.Check(t, qt.Equals(x.Reconnects, 0))
}

// TestSlowApply: one call at a time, and the last state arrives.
func TestSlowApply(t *testing.T) {
	s := newServer(t)
	r := run(t, fast(s))
	r.until("connected", func(State) bool { return r.Status().State == Connected })
	r.mu.Lock()
	r.slow = 300 * time.Millisecond
	r.mu.Unlock()
	for i := range 20 {
		s.observer(1, "name_label", fmt.Sprint("n", i))
		time.Sleep(50 * time.Millisecond)
	}
	r.names("n19")
	qt.Check(t, qt.IsTrue(r.applied() < 8))
}

func TestMany(t *testing.T) {
	s := newServer(t)
	for n := range maxObservers + 50 {
		s.observer(n)
	}
	r := run(t, fast(s))
	r.until("the bound", func(st State) bool { return len(st.Observers) == maxObservers })
	qt.Check(t, qt.Equals(r.Status().Skipped, 50))
	for n := range 60 {
		s.del(refOf(n))
	}
	r.until("all", func(st State) bool { return len(st.Observers) == maxObservers-10 })
	qt.Check(t, qt.Equals(r.Status().Skipped, 0))
	qt.Check(t, qt.Equals(r.Status().Reconnects, 0))
}

// TestMistakes: one Observer that is wrong does no harm to the others.
func TestMistakes(t *testing.T) {
	s := newServer(t)
	s.observer(1)
	s.observer(3, "components", []string{"xapi-nbd"})
	s.observer(4, "enabled", "yes", "hosts", nil)
	s.observer(5, "hosts", []string{"me"})
	s.put("Observer", refOf(6), map[string]any{"uuid": uuidOf(6)})
	s.put("Observer", refOf(7), record(1, "name_label", "same uuid"))
	s.observer(8, "uuid", "not one")
	s.observer(9, "hosts", []any{1, 2})
	s.observer(10, "name_description", nil)
	s.observer(2, "components", []string{"xapi", "xapi-nbd"}, "endpoints", []string{"bugtool", "ftp://user:hunter2@h/"}, "attributes", map[string]string{"Bad": "x", "ok": "y"}, "added.later", map[string]any{"x": 1})
	r := run(t, fast(s))
	r.until("the two good ones", func(st State) bool { return len(st.Observers) == 2 })
	st := r.state()
	qt.Check(t, qt.Equals(st.Observers[1].NameLabel, "o2"))
	qt.Check(t, qt.DeepEquals(st.Observers[1].Components, []string{"xapi"}))
	qt.Check(t, qt.DeepEquals(st.Observers[1].Endpoints, []string{"bugtool"}))
	qt.Check(t, qt.DeepEquals(st.Observers[1].Attributes, map[string]string{"ok": "y"}))
	text, err := json.Marshal(r.Status())
	qt.Assert(t, qt.IsNil(err))
	t.Logf("%s", text)
	ms := r.Status().Mistakes
	kept := 0
	for _, m := range ms {
		if m.Kept {
			kept++
		}
	}
	qt.Check(t, qt.Equals(kept, 1))
	qt.Check(t, qt.HasLen(ms, 9))
	qt.Check(t, qt.Not(qt.StringContains(string(text)+r.log.String(), "hunter2")))

	// Good at first, then wrong: the last good one stays in force.
	s.observer(11)
	r.until("o11", func(st State) bool { return st.Observers[len(st.Observers)-1].NameLabel == "o11" })
	s.observer(11, "enabled", 17)
	r.until("the mistake", func(State) bool { return len(r.Status().Mistakes) == 10 })
	st = r.state()
	qt.Check(t, qt.IsTrue(st.Observers[len(st.Observers)-1].Enabled))
}

// TestOldXAPI has no Observers.
func TestOldXAPI(t *testing.T) {
	s := newServer(t)
	s.setFault(func(w http.ResponseWriter, m string, params []json.RawMessage, id string) bool {
		if m == "Observer.get_all_records" {
			fail(w, id, codeUnknownMethod, m)
			return true
		}
		return false
	})
	r := run(t, fast(s))
	r.names()
	qt.Check(t, qt.IsTrue(r.Status().Unsupported))
	qt.Check(t, qt.Equals(r.state().Host.Name, "dom0-1"))
	qt.Check(t, qt.Equals(r.Status().State, Connected))
}

// TestUnknownHost: XAPI does not know this host yet.
func TestUnknownHost(t *testing.T) {
	s := newServer(t)
	s.observer(1, "hosts", []string{peerRef})
	o := fast(s)
	o.HostUUID = "3F6C0000-0000-4000-8000-00000000000A"
	r := run(t, o)
	r.names("o1")
	qt.Check(t, qt.DeepEquals(r.state().Observers[0].Hosts, []string{peerUUID}))
	qt.Check(t, qt.Equals(r.state().Host.PoolUUID, poolUUID))
	s.put("host", "OpaqueRef:me", map[string]any{"uuid": "3f6c0000-0000-4000-8000-00000000000a", "name_label": "joined"})
	r.until("our name", func(st State) bool { return st.Host.Name == "joined" })
}

// TestSecrets: an XAPI that puts the session everywhere does not get it into log,
// status or state file.
func TestSecrets(t *testing.T) {
	s := newServer(t)
	s.observer(1)
	dir := t.TempDir()
	o := fast(s)
	o.BackoffMax = o.BackoffMin
	o.StateFile = dir + "/state.json"
	r := run(t, o)
	r.names("o1")
	var n atomic.Int32
	s.setFault(func(w http.ResponseWriter, m string, params []json.RawMessage, id string) bool {
		session := str(params[0])
		if !strings.HasPrefix(session, "OpaqueRef:") {
			return false
		}
		n.Add(1)
		switch rand.IntN(7) {
		case 0:
			fail(w, id, "INTERNAL_ERROR", "call with "+session+" failed", strings.ToLower(session))
		case 1:
			fail(w, id, "SESSION_INVALID", "SESSION_INVALID", session)
		case 2:
			fail(w, id, "SESSION "+session)
		case 3:
			http.Error(w, session, 500)
		case 4:
			fail(w, id, "X", strings.Repeat("y", 4*maxErrorText-40)+session)
		case 5:
			answer(w, id, `{"`+session+`":`)
		case 6:
			fail(w, id, session, session)
		}
		return true
	})
	s.forget()
	var all strings.Builder
	for n.Load() < 100 {
		x, _ := json.Marshal(r.Status())
		all.Write(x)
		time.Sleep(5 * time.Millisecond)
	}
	s.setFault(nil)
	s.observer(2)
	r.names("o1", "o2")
	r.stop()
	file, err := os.ReadFile(o.StateFile)
	qt.Assert(t, qt.IsNil(err))
	text := all.String() + r.log.String() + string(file)
	for _, part := range []string{"INTERNAL_ERROR", "SESSION_INVALID", "X [", "HTTP status 500", "not a JSON-RPC object"} {
		qt.Check(t, qt.IsTrue(strings.Contains(text, part)), qt.Commentf("%s is not in it", part))
	}
	for _, part := range []string{"canary", "c0ffee", "session-can"} {
		qt.Check(t, qt.IsFalse(strings.Contains(text, part)), qt.Commentf("%s is in it", part))
	}
}
