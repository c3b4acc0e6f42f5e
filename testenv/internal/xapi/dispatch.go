//go:build linux

package xapi

import (
	"cmp"
	"fmt"
	"strings"

	"github.com/xenserver/dtagent/testenv/config"
	"github.com/xenserver/dtagent/testenv/internal/node"
	"github.com/xenserver/dtagent/testenv/truth"
)

// arity is the number of parameters, the session with them, of every method. Those
// of long do work as a task of their own.
var arity = map[string]int{
	"event.from": 4, "session.login_with_password": -1, "session.logout": 1, "session.get_uuid": 2,
	"VM.get_all": 1, "VM.get_by_name_label": 2, "VM.get_by_uuid": 2, "VM.get_record": 2, "VM.get_uuid": 2, "VM.get_name_label": 2,
	"VM.get_power_state": 2, "VM.get_all_records": 1,
	"task.get_status": 2, "task.get_error_info": 2, "task.get_result": 2, "task.get_record": 2, "task.destroy": 2, "task.get_all": 1,
	"VDI.get_by_uuid": 2, "VDI.get_sm_config": 2,
	"system.isAlive": -1, "system.listMethods": 0,
	"VM.atomic_set_resident_on": 3, "session.slave_login": 2,
	"VM.start": 4, "VM.start_on": 5, "VM.unpause": 2, "VM.clean_shutdown": 2, "VM.hard_shutdown": 2, "VM.shutdown": 2,
}

// arityOf is arity, with the classes that have files of their own.
func arityOf(method string) (int, bool) {
	for _, m := range []map[string]int{arity, observerArity, hostArity} {
		if n, ok := m[method]; ok {
			return n, true
		}
	}
	return 0, false
}

func long(method string) bool {
	if observes(method) {
		return true
	}
	switch method {
	case "VM.start", "VM.start_on", "VM.unpause", "VM.clean_shutdown", "VM.hard_shutdown", "VM.shutdown":
		return true
	}
	return false
}

// canonical is the method without its prefixes, and whether it is to be done in the
// background. `_` may stand for `.`.
func canonical(method string) (name string, async bool) {
	for _, p := range []string{"Async.", "InternalAsync."} {
		if rest, ok := strings.CutPrefix(method, p); ok {
			method, async = rest, true
			break
		}
	}
	if strings.HasPrefix(method, "system.isAlive:") {
		method = "system.isAlive"
	}
	if !strings.Contains(method, ".") {
		method = strings.Replace(method, "_", ".", 1)
	}
	return method, async
}

// str is the i-th parameter as a string.
func str(params []any, i int) string {
	if i < len(params) {
		if s, ok := params[i].(string); ok {
			return s
		}
	}
	return ""
}

// dispatch does one call in the connection's thread, or starts a thread for it.
func (c *conn) dispatch(s *node.Span, r *request, cl *call) (any, *failure) {
	t, x := c.t, c.x
	method, async := canonical(cl.method)
	want, known := arityOf(method)
	t.Tag = "dispatch:" + method + " " + newRef("D")
	s.Tag = node.LastWord(t.Tag)
	switch {
	case !known || async && !long(method):
		return nil, fail("MESSAGE_METHOD_UNKNOWN", cl.method)
	case want >= 0 && len(cl.params) != want:
		return nil, fail("MESSAGE_PARAMETER_COUNT_MISMATCH", method, fmt.Sprint(want), fmt.Sprint(len(cl.params)))
	}
	if code := x.p.Knobs().Fail[method]; code != "" {
		return nil, fail(code)
	}
	session := str(cl.params, 0)
	if method == "session.slave_login" {
		return c.hostLogin(s, session, str(cl.params, 1))
	}
	if strings.HasPrefix(method, "session.login") && c.l.tcp && !x.pool.coordinates() {
		return nil, fail("HOST_IS_SLAVE", x.pool.Hosts[0].Address)
	}
	if strings.HasPrefix(method, "session.login") {
		c.names()
		c.names()
		return c.login(s, r, str(cl.params, 3))
	}
	if !strings.HasPrefix(method, "system.") {
		if f := x.checkSession(t, session); f != nil {
			return nil, f
		}
	}
	if !long(method) {
		t.NewSpan(node.Context{}) // dispatch:* and session_check are traces of their own
		t.Log(node.Debug, "api_readonly", "%s", method)
		c.name()
		c.names()
		t.Delay(config.LayerAPI)
		if strings.HasPrefix(method, "VM.atomic_") {
			return x.internalCall(t, c.in, r, cl.params)
		}
		return x.lookUp(t, method, cl.params)
	}
	if task := r.header["task-id"]; task != "" && !async {
		return c.forwarded(s, method, cl.params, task)
	}
	ref := newRef("R")
	t.Trace = ""
	t.Log(node.Debug, "db_write", "create_row task (%s) [(_ref,v),(uuid,v),(name__label,v),(status,v),(session,v)]", full(ref))
	c.names()
	if async {
		return c.async(method, cl.params, ref, session)
	}
	s.Tag = ref
	t.NewSpan(c.in)
	t.Delay(config.LayerAPI)
	row := x.db.addTask(full(ref), method)
	defer x.db.removeTask(row.ref)
	return x.task(t, method, method, cl.params, c.in, row.ref, ref)
}

// login opens a session; two more internal calls leave their tags in the log.
func (c *conn) login(s *node.Span, r *request, originator string) (any, *failure) {
	t, x := c.t, c.x
	t.Tag = "session.login_with_password " + newRef("D")
	s.Tag = node.LastWord(t.Tag)
	own := t.NewSpan(c.in)
	if c.l.tcp && !x.pool.coordinates() {
		return nil, fail("HOST_IS_SLAVE", x.pool.Hosts[0].Address)
	}
	session, f := x.newSession(t)
	if f != nil {
		return nil, f
	}
	t.Log(node.Info, "xapi_session", "Session.create trackid=%s pool=false uname=root originator=%s is_local_superuser=true auth_user_sid= parent=trackid=9834f5af41c964e225f24279aefe4e49", trackID(session), originator)
	t.Log(node.Debug, "db_write", "create_row session (%s) [(_ref,v),(uuid,v),(this_host,v),(this_user,v),(last_active,v),(pool,v)]", session)
	inner := "dispatch:pool.get_all " + newRef("D")
	t.NewSpanIf(own)
	t.Log(node.Debug, "dummytaskhelper", "task %s created by task %s", inner, s.Tag)
	old := t.Tag
	t.Tag = inner
	t.NewSpan(node.Context{})
	t.Log(node.Debug, "api_readonly", "pool.get_all")
	t.Tag = old
	return session, nil
}

// async starts the work's thread and answers with the task.
func (c *conn) async(method string, params []any, ref, session string) (any, *failure) {
	t, x, in := c.t, c.x, c.in
	row := x.db.addTask(full(ref), "Async."+method)
	t.NewSpan(in)
	t.Log(node.Info, "dispatcher", "spawning a new thread to handle the current task (trackid=%s)", trackID(session))
	parent := t.Parent
	x.p.Go("", func(w *node.Thread) {
		w.Parent = parent
		w.Tag = "Async." + method + " " + ref
		s := w.Begin(truth.Task, "Async."+method)
		s.Tag = ref
		own := w.NewSpan(in)
		w.Delay(config.LayerAPI)
		_, f := x.long(w, method, params, own, row.ref, ref)
		if f != nil {
			s.Err = f.code
		}
		x.db.finish(row, f)
		s.End()
	})
	return row.ref, nil
}

// task does a long call as a task in the calling thread. row is the task's
// reference, ref the form of it that log tags have, label its name.
func (x *xapi) task(t *node.Thread, label, method string, params []any, in node.Context, row, ref string) (any, *failure) {
	old, trace := t.Tag, t.Trace
	defer func() { t.Tag, t.Trace = old, trace }()
	t.Tag = label + " " + ref
	own := t.NewSpan(in)
	return x.long(t, method, params, own, row, ref)
}

// lookUp answers what is no work for a task.
func (x *xapi) lookUp(t *node.Thread, method string, params []any) (any, *failure) {
	class, name, _ := strings.Cut(method, ".")
	switch {
	case method == "event.from":
		return x.eventFrom(t, params)
	case class == "Observer":
		return x.getObserver(method, params)
	case class == "host":
		return x.db.getHost(strings.TrimPrefix(name, "get_"), str(params, 1))
	case class == "pool":
		return x.db.getPool(strings.TrimPrefix(name, "get_"), str(params, 1))
	}
	return x.get(method, params)
}

// get answers what needs the database only.
func (x *xapi) get(method string, params []any) (any, *failure) {
	db := x.db
	arg := str(params, 1)
	var v *vm
	switch method {
	case "VM.get_record", "VM.get_uuid", "VM.get_name_label", "VM.get_power_state":
		if v = db.byRef(arg); v == nil {
			return nil, fail("HANDLE_INVALID", "VM", arg)
		}
	case "task.get_status", "task.get_error_info", "task.get_result", "task.get_record":
		row, ok := db.task(arg)
		if !ok {
			return nil, fail("HANDLE_INVALID", "task", arg)
		}
		return taskField(row, method), nil
	}
	switch method {
	case "session.logout":
		db.removeSession(str(params, 0))
		return "", nil
	case "session.get_uuid":
		return uuid(), nil
	case "VM.get_all":
		return refs(db.vms, func(*vm) bool { return true }), nil
	case "VM.get_all_records":
		out := map[string]any{}
		for _, v := range db.vms {
			out[v.Ref] = db.record(v)
		}
		return out, nil
	case "VM.get_by_name_label":
		return refs(db.vms, func(v *vm) bool { return v.Name == arg }), nil
	case "VM.get_by_uuid":
		if v := db.byUUID(arg); v != nil {
			return v.Ref, nil
		}
		return nil, fail("UUID_INVALID", "VM", arg)
	case "VM.get_record":
		return db.record(v), nil
	case "VM.get_uuid":
		return v.UUID, nil
	case "VM.get_name_label":
		return v.Name, nil
	case "VM.get_power_state":
		return db.power(v), nil
	case "task.destroy":
		db.removeTask(arg)
		return "", nil
	case "VDI.get_by_uuid":
		return "OpaqueRef:" + arg, nil
	case "VDI.get_sm_config":
		return map[string]any{"vdi_type": "vhd"}, nil
	case "system.isAlive":
		return str(params, 0), nil
	case "system.listMethods":
		return []any{}, nil
	}
	return []any{}, nil // task.get_all and the like
}

func taskField(r taskRow, method string) any {
	info := []any{}
	if r.err != nil {
		info = append(info, r.err.code)
		for _, p := range r.err.params {
			info = append(info, p)
		}
	}
	switch method {
	case "task.get_status":
		return r.status
	case "task.get_error_info":
		return info
	case "task.get_result":
		return r.result
	}
	return map[string]any{"uuid": r.ref, "name_label": r.label, "status": r.status, "error_info": info, "result": r.result}
}

func refs(vms []*vm, want func(*vm) bool) []any {
	out := []any{}
	for _, v := range vms {
		if want(v) {
			out = append(out, v.Ref)
		}
	}
	return out
}

func (d *database) record(v *vm) map[string]any {
	home := d.resident(v)
	if home == "" {
		home = "OpaqueRef:NULL"
	}
	return map[string]any{
		"uuid": v.UUID, "name_label": v.Name, "name_description": "", "power_state": d.power(v), "user_version": "1",
		"is_a_template": false, "memory_static_max": "67108864", "VCPUs_max": "1", "allowed_operations": []any{"start", "start_on", "clone"},
		"resident_on": home, "affinity": cmp.Or(v.Affinity, "OpaqueRef:NULL"), "other_config": map[string]any{},
	}
}
