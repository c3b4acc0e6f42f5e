//go:build linux

package xapi

import (
	"encoding/json"
	"fmt"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/xenserver/dtagent/testenv/config"
	"github.com/xenserver/dtagent/testenv/internal/node"
	"github.com/xenserver/dtagent/testenv/internal/sys"
	"github.com/xenserver/dtagent/testenv/truth"
)

// framed is a header with its length in front, as hosts send it to each other.
func framed(head string) string { return fmt.Sprintf("FRAME %012d%s", len(head), head) }

// trace are the headers that pass a native span on; none without one.
func trace(c node.Context) string {
	if c.TraceID == "" {
		return ""
	}
	return fmt.Sprintf("traceparent: %s\r\nbaggage: span.depth=%d\r\n", c, c.Depth)
}

// answered is what an answer in JSON-RPC 1.0 says.
type answered struct {
	Result json.RawMessage `json:"result"`
	Error  json.RawMessage `json:"error"`
}

func (a *answered) failure() *failure {
	if len(a.Error) == 0 || string(a.Error) == "null" {
		return nil
	}
	var parts []string
	if json.Unmarshal(a.Error, &parts) != nil || len(parts) == 0 {
		return fail("INTERNAL_ERROR", string(a.Error))
	}
	return fail(parts[0], parts[1:]...)
}

// jsonFault is the failure that an answer in JSON tells of, if it does.
func jsonFault(b []byte) *failure {
	var a answered
	if err := json.Unmarshal(b, &a); err != nil {
		return fail("INTERNAL_ERROR", err.Error())
	}
	return a.failure()
}

// xmlFault is the same of an answer in XML.
func xmlFault(b []byte) *failure {
	_, list, ok := strings.Cut(string(b), "<name>ErrorDescription</name>")
	if !ok {
		return nil
	}
	_, code, _ := strings.Cut(list, "<data><value>")
	code, _, _ = strings.Cut(strings.TrimPrefix(code, "<string>"), "<")
	return fail(xmlText.Replace(code))
}

// ask makes a call of xapi's own to another host: JSON-RPC 1.0 over a stunnel of
// the cache. params is what stands between the brackets.
func (x *xapi) ask(t *node.Thread, host, method, params, subtask, more string) (json.RawMessage, *failure) {
	body := `{"method":` + quoted(method) + `,"params":[` + params + `],"id":` + strconv.FormatInt(x.pool.ids.Add(1), 10) + `}`
	var got []byte
	err := x.pool.tunnels.withTunnel(t, host, func(tn *tunnel) (err error) {
		got, err = tn.call(t, method, ownHeader("POST /jsonrpc HTTP/1.1", len(body), subtask, more), body, sys.Piece, jsonFault)
		return err
	})
	if err != nil {
		return nil, fail("CANNOT_CONTACT_HOST", err.Error())
	}
	var a answered
	if err := json.Unmarshal(got, &a); err != nil {
		return nil, fail("INTERNAL_ERROR", err.Error())
	}
	return a.Result, a.failure()
}

// forward has another host do the work, in the task's thread. That host's part of
// the task has the same reference.
func (w *work) forward(h config.Host, method string, params []any) *failure {
	t := w.t
	session := w.x.hostSession(t)
	defer w.x.endHostSession(t, session)
	args := params[1:]
	if method == "VM.start_on" { // the other host is not asked where
		method, args = "VM.start", append([]any{args[0]}, args[2:]...)
	}
	list := quoted(session)
	for _, a := range args {
		b, err := json.Marshal(a)
		if err != nil {
			return fail("INTERNAL_ERROR", err.Error())
		}
		list += "," + string(b)
	}
	t.Trace = w.span.String()
	_, f := w.x.ask(t, h.Address, method, list, "", "task-id: "+w.row+"\r\n"+trace(w.span))
	if f != nil && f.code == "CANNOT_CONTACT_HOST" {
		f = fail(f.code, h.Ref)
	}
	return f
}

// tagOf is the form that log tags have of a task's reference.
func tagOf(ref string) (string, bool) {
	id, ok := strings.CutPrefix(ref, "OpaqueRef:")
	if !ok || len(id) < 13 {
		return "", false
	}
	return "R:" + id[:8] + id[9:13], true
}

// forwarded does what the coordinator has given this host to do, as part of the
// coordinator's task.
func (c *conn) forwarded(s *node.Span, method string, params []any, task string) (any, *failure) {
	t, x := c.t, c.x
	ref, ok := tagOf(task)
	if !ok {
		return nil, fail("HANDLE_INVALID", "task", task)
	}
	label := method
	if !x.pool.coordinates() {
		name, f := x.pool.remote(t, "Read_field", []string{"task", "name__label", task})
		if f != nil {
			return nil, fail("HANDLE_INVALID", "task", task)
		}
		label = text(name)
	}
	t.Log(node.Info, "taskhelper", "task %s %s forwarded (trackid=%s)", label, ref, trackID(str(params, 0)))
	c.names()
	s.Tag = ref
	t.NewSpan(c.in)
	t.Delay(config.LayerAPI)
	return x.task(t, label, method, params, c.in, task, ref)
}

// whitelist are the methods that a member does itself when they come over its unix
// socket (datamodel.ml).
var whitelist = map[string]bool{
	"session.login_with_password": true, "session.slave_login": true, "session.slave_local_login": true, "session.slave_local_login_with_password": true,
	"session.local_logout": true, "pool.emergency_reset_master": true, "pool.emergency_transition_to_master": true, "pool.ping_slave": true,
	"host.is_in_emergency_mode": true, "host.get_system_status_capabilities": true, "host.management_disable": true, "host.shutdown_agent": true,
}

// forwards tells whether a call on c goes to the coordinator as it came.
func (x *xapi) forwards(c *conn, method string) bool {
	return !x.pool.coordinates() && !c.l.tcp && !whitelist[method]
}

// forward gives the coordinator a call that came over a member's unix socket, and
// the client its answer. Headers stay, in an order of their own; of those with
// native tracing the trace context is this host's.
func (c *conn) forward(s *node.Span, r *request, cl *call, body []byte, contentType string) bool {
	t, x := c.t, c.x
	var fault func([]byte) *failure
	if cl.json {
		params := make([]string, len(cl.raw))
		for i, p := range cl.raw {
			params[i] = string(p)
		}
		body = []byte(`{"method":` + quoted(cl.method) + `,"params":[` + strings.Join(params, ",") + `],"id":` + strconv.FormatInt(x.pool.ids.Add(1), 10) + `}`)
		fault = jsonFault
	} else {
		fault = xmlFault
	}
	own := t.NewSpanIf(c.in)
	var got []byte
	err := x.pool.tunnels.withTunnel(t, x.pool.Hosts[0].Address, func(tn *tunnel) (err error) {
		got, err = tn.call(t, cl.method, framed(r.again(len(body), own)), string(body), sys.Piece, fault)
		return err
	})
	if err != nil {
		s.Err = err.Error()
		c.refuse(s, 500, "Internal Error")
		return false
	}
	if f := fault(got); f != nil {
		s.Err = f.code
	}
	answer := string(got)
	if cl.json {
		var a answered
		if err := json.Unmarshal(got, &a); err != nil {
			c.refuse(s, 500, "Internal Error")
			return false
		}
		answer = cl.passed(a)
	}
	err = c.reply(s, r, cl.method, contentType, answer)
	s.Entry.End = truth.Now()
	if err != nil {
		s.Err = err.Error()
		return false
	}
	return r.keepAlive()
}

// again is the header of a request that is sent on, as http.ml writes it: fields in its
// own order, then all others, the last first.
func (r *request) again(length int, own node.Context) string {
	var b strings.Builder
	path := r.path
	if r.query != "" {
		path += "?" + r.query
	}
	fmt.Fprintf(&b, "%s %s HTTP/%s\r\n", r.method, path, r.version)
	line := func(name, value string) {
		if value != "" {
			fmt.Fprintf(&b, "%s: %s\r\n", name, value)
		}
	}
	for _, name := range []string{"cookie", "transfer-encoding", "accept", "content-length", "authorization", "task-id", "subtask-of", "content-type", "host", "user-agent"} {
		if name == "content-length" {
			line(name, strconv.Itoa(length))
			continue
		}
		line(name, r.header[name])
	}
	if r.keepAlive() {
		line("connection", "keep-alive")
	} else {
		line("connection", "close")
	}
	for _, kv := range r.others {
		if own.TraceID == "" || kv[0] != "traceparent" && kv[0] != "baggage" {
			line(kv[0], kv[1])
		}
	}
	b.WriteString(trace(own))
	b.WriteString("\r\n")
	return b.String()
}

// passed is a member's answer in JSON with what the coordinator has answered. In
// version 2.0 an error is the list of XAPI's, not the object that the standard asks
// for and the coordinator itself sends.
func (c *call) passed(a answered) string {
	failed := a.failure() != nil
	switch {
	case c.v2 && failed:
		return `{"jsonrpc":"2.0","error":` + string(a.Error) + `,"id":` + c.id + `}`
	case c.v2:
		return `{"jsonrpc":"2.0","result":` + string(a.Result) + `,"id":` + c.id + `}`
	case failed:
		return `{"result":null,"error":` + string(a.Error) + `,"id":` + c.id + `}`
	}
	return `{"result":` + string(a.Result) + `,"error":null,"id":` + c.id + `}`
}

// forwardCLI gives the coordinator an xe command that came over a member's unix
// socket, without its trace context, and carries what the two sides say. The
// stunnel is for this alone.
func (c *conn) forwardCLI(lines []string, session string) error {
	t, p := c.t, c.x.pool
	tn, err := openTunnel(t, p.Hosts[0].Address, p.tunnels.number(), "")
	if err != nil {
		return err
	}
	defer tn.disconnect()
	t.Log(node.Debug, "xmlrpc_client", "stunnel pid: %d (not cached) connected to %s:%d", tn.child.PID, tn.host, config.HTTPSPort)
	body := strings.Join(append([]string{"session_id=" + session}, lines...), "\r\n")
	s := t.Begin(truth.Client, "POST /cli")
	defer s.End()
	tn.sent++
	head := fmt.Sprintf("POST /cli HTTP/1.0\r\ncontent-length: %d\r\nuser-agent: xapi/2.21\r\nconnection: keep-alive\r\n\r\n", len(body))
	if err := sys.Write(tn.fd, []byte(head+body)); err != nil {
		return err
	}
	if !hello(tn.fd, false) {
		return errClosed
	}
	err = carry(c.fd, tn.fd)
	if key, ok := tn.key(); ok {
		s.Keys = append(s.Keys, key)
	}
	return err
}

// carry passes on what comes from either side until both have ended (unixext.ml,
// proxy).
func carry(a, b int) error {
	buf := make([]byte, sys.Piece)
	sides := []unix.PollFd{{Fd: int32(a), Events: unix.POLLIN}, {Fd: int32(b), Events: unix.POLLIN}}
	for open := 2; open > 0; {
		if _, err := unix.Poll(sides, -1); err != nil && err != unix.EINTR {
			return fmt.Errorf("poll: %w", err)
		}
		for i := range sides {
			if sides[i].Revents == 0 || sides[i].Fd < 0 {
				continue
			}
			other := []int{b, a}[i]
			n, err := sys.Read(int(sides[i].Fd), buf)
			if err == nil {
				err = sys.Write(other, buf[:n])
			}
			if err != nil { // an end is an end
				_ = unix.Shutdown(other, unix.SHUT_WR)
				sides[i].Fd = -1
				open--
			}
		}
	}
	return nil
}

// ownCalls is what a member does when nobody asks: event loops that log in at the
// coordinator, look, and log out.
func (x *xapi) ownCalls(label string, every time.Duration) func(t *node.Thread) {
	return func(t *node.Thread) {
		t.Background = true
		tag := label + " " + newRef("D")
		subtask := "subtask-of: DummyRef:|" + uuid() + "|" + label + "\r\n"
		master := x.pool.Hosts[0].Address
		for {
			sys.Sleep(every)
			t.Tag = tag
			own := t.NewSpan(node.Context{})
			got, f := x.ask(t, master, "session.slave_login", quoted(x.db.hostRef, x.pool.Secret), subtask, trace(own))
			if f != nil {
				t.Log(node.Error, "xapi_event", "session.slave_login: %s", f.code)
				continue
			}
			session := text(got)
			if _, f := x.ask(t, master, "event.from", quoted(session)+`,["pool"],"",0.05`, subtask, trace(own)); f != nil {
				t.Log(node.Error, "xapi_event", "event.from: %s", f.code)
			}
			if _, f := x.ask(t, master, "session.logout", quoted(session), subtask, trace(own)); f != nil {
				t.Log(node.Error, "xapi_event", "session.logout: %s", f.code)
			}
		}
	}
}

// residentOn tells the coordinator that v runs here now, in the session in which the
// coordinator has given the work.
func (w *work) residentOn(outer node.Context, v *vm) *failure {
	own := w.t.NewSpanIf(outer)
	_, f := w.x.ask(w.t, w.x.pool.Hosts[0].Address, "VM.atomic_set_resident_on", quoted(w.session, v.Ref, w.x.db.hostRef), "subtask-of: "+w.row+"\r\n", trace(own))
	w.t.Trace = outer.String()
	return f
}

// internalCall is a call of a member's own, on behalf of a task: it is a sub-task.
func (x *xapi) internalCall(t *node.Thread, in node.Context, r *request, params []any) (any, *failure) {
	v, ok := x.db.byRef(str(params, 1)), false
	if v != nil {
		_, ok = x.pool.byRef(x.db, str(params, 2))
	}
	if !ok {
		return nil, fail("HANDLE_INVALID", "VM", str(params, 1))
	}
	old := t.Tag
	defer func() { t.Tag = old }()
	sub := newRef("R")
	if parent, ok := tagOf(r.header["subtask-of"]); ok {
		t.Log(node.Info, "taskhelper", "task VM.atomic_set_resident_on %s (uuid:%s) created (trackid=%s) by task %s", sub, uuid(), trackID(str(params, 0)), parent)
	}
	t.Tag = "VM.atomic_set_resident_on " + sub
	t.NewSpan(in)
	t.Log(node.Debug, "audit", "VM.atomic_set_resident_on: VM = '%s (%s)'", v.UUID, v.Name)
	t.Log(node.Debug, "redo_log", "WriteField(VM, %s, resident_on, OpaqueRef:NULL, %s)", v.Ref, str(params, 2))
	x.db.setResident(v, str(params, 2))
	return "", nil
}
