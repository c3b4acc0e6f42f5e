//go:build linux

package xapi

import (
	"encoding/json"
	"strconv"
	"sync"
	"time"

	"github.com/xenserver/dtagent/testenv/internal/node"
	"github.com/xenserver/dtagent/testenv/internal/rrdd"
	"github.com/xenserver/dtagent/testenv/internal/sys"
	"github.com/xenserver/dtagent/testenv/internal/xenopsd"
)

// events is xapi's thread that follows xenopsd. It is no task's, and works all the
// time, so that its calls mingle with those of tasks.
type events struct {
	mu   sync.Mutex
	next int64
	wait map[int64]chan struct{}
}

func newEvents() *events { return &events{next: 1, wait: map[int64]chan struct{}{}} }

// barrier is a new barrier's number, and what is closed when the thread has seen it.
func (e *events) barrier() (int64, <-chan struct{}) {
	e.mu.Lock()
	defer e.mu.Unlock()
	n := e.next
	e.next++
	ch := make(chan struct{})
	e.wait[n] = ch
	return n, ch
}

func (e *events) passed(n int64) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if ch := e.wait[n]; ch != nil {
		delete(e.wait, n)
		close(ch)
	}
}

// follow is that thread's life. A xenopsd that takes the place of another counts its
// updates from the start, but gets the request that the one before had not answered: what
// it has to tell until it has come as far stays unknown here, and a barrier of that
// time is never seen, so that the task that set it does not end
// (xapi_xenops.ml: events_from_xenopsd, updates.ml: get).
// xe-toolstack-restart restarts xapi as well.
func (x *xapi) follow(t *node.Thread) {
	t.Background = true
	t.Tag = xenopsd.Queue + " events " + newRef("D")
	from := "0"
	for {
		root := t.NewSpan(node.Context{})
		w := &work{x: x, t: t, tag: t.Tag, span: root}
		got, f := w.rpcIn(root, "UPDATES.get", `"last_id":`+from+",") // without a timeout: it waits for ever
		if f != nil {
			t.Log(node.Error, "xenops", "%s event thread caught: %s %v", xenopsd.Queue, f.code, f.params)
			sys.Sleep(10 * time.Second)
			from = "0"
			continue
		}
		var all []json.RawMessage
		if json.Unmarshal(got, &all) != nil || len(all) != 3 {
			t.Log(node.Error, "xenops", "%s event thread caught: UPDATES.get answers %s", xenopsd.Queue, got)
			sys.Sleep(10 * time.Second)
			from = "0"
			continue
		}
		var barriers [][]json.RawMessage
		var changes [][]json.RawMessage
		_ = json.Unmarshal(all[0], &barriers) // xenopsd is ours: it is of this form
		_ = json.Unmarshal(all[1], &changes)
		for _, c := range changes {
			x.change(w, root, c)
		}
		for _, b := range barriers {
			if len(b) == 0 {
				continue
			}
			n, err := strconv.ParseInt(string(b[0]), 10, 64)
			if err != nil {
				continue
			}
			if _, f := w.rpc(root, "UPDATES.remove_barrier", `"id":`+strconv.FormatInt(n, 10)+","); f == nil {
				x.events.passed(n)
			}
		}
		from = string(all[2])
	}
}

// change takes one change of xenopsd's into the database.
func (x *xapi) change(w *work, root node.Context, c []json.RawMessage) {
	if len(c) != 2 {
		return
	}
	kind, ref := text(c[0]), text(c[1])
	w.debug("xenops", "Processing event: [%s,%s]", c[0], c[1])
	switch kind {
	case "Task":
		w.debug("xenops", "xenops event on Task %s", ref)
		w.rpc(root, "Task.stat", id(ref)) // a task that is gone is none of ours any more
	case "Vm":
		w.debug("xenops", "xenops event on VM %s", ref)
		got, f := w.rpc(root, "VM.stat", id(ref))
		v := x.db.byUUID(ref)
		if f != nil || v == nil {
			return
		}
		w.debug("xenops", "xenopsd event: processing event for VM %s", ref)
		var pair []json.RawMessage
		var st struct {
			Power  string `json:"power_state"`
			Domids []int  `json:"domids"`
		}
		if json.Unmarshal(got, &pair) == nil && len(pair) == 2 && json.Unmarshal(pair[1], &st) == nil && st.Power != x.db.power(v) {
			w.debug("xenops", "xenopsd event: Updating VM %s power_state <- %s", ref, st.Power)
			w.debug("redo_log", "WriteField(VM, %s, power_state, %s, %s)", v.Ref, x.db.power(v), st.Power)
			x.setPower(w.t, v, st.Power)
			if st.Power == "Running" && len(st.Domids) > 0 && x.p.Setup.Options.RRDD {
				if err := rrdd.Push("/opt/xensource/bin/xapi", v.UUID, strconv.Itoa(st.Domids[0])); err != nil {
					w.t.Log(node.Error, "xenops", "%v", err)
				}
			}
		}
	default:
		w.debug("xenops", "xenops event on %s %s", kind, c[1])
	}
}

// chatter is what xapi does when nobody asks: event loops that log in, look,
// and log out.
func (x *xapi) chatter(label string, every time.Duration) func(t *node.Thread) {
	return func(t *node.Thread) {
		t.Background = true
		tag := label + " " + newRef("D")
		for {
			sys.Sleep(every)
			t.Tag = tag
			t.NewSpan(node.Context{})
			session := "OpaqueRef:" + uuid()
			t.Log(node.Debug, "dummytaskhelper", "task dispatch:session.slave_login %s created by task %s", newRef("D"), node.LastWord(tag))
			t.Tag = "session.slave_login " + newRef("D")
			t.NewSpan(node.Context{})
			t.Log(node.Info, "xapi_session", "Session.create trackid=%s pool=true uname= originator=xapi is_local_superuser=true auth_user_sid= parent=trackid=9834f5af41c964e225f24279aefe4e49", trackID(session))
			t.Log(node.Debug, "db_write", "create_row session (%s) [(_ref,v)]", session)
			t.Tag = tag
			t.Log(node.Debug, "dummytaskhelper", "task dispatch:event.from %s created by task %s", newRef("D"), node.LastWord(tag))
			sys.Sleep(50 * time.Millisecond)
			t.Log(node.Debug, "dummytaskhelper", "task dispatch:session.logout %s created by task %s", newRef("D"), node.LastWord(tag))
			t.Tag = "session.logout " + newRef("D")
			t.NewSpan(node.Context{})
			t.Log(node.Info, "xapi_session", "Session.destroy trackid=%s", trackID(session))
		}
	}
}
