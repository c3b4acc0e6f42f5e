//go:build linux

package xapi

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"

	"github.com/xenserver/dtagent/testenv/internal/node"
)

// observerArity is arity for the methods of class Observer.
var observerArity = map[string]int{
	"Observer.get_all": 1, "Observer.get_all_records": 1, "Observer.get_record": 2, "Observer.get_by_uuid": 2, "Observer.get_by_name_label": 2,
	"Observer.get_uuid": 2, "Observer.get_name_label": 2, "Observer.get_name_description": 2, "Observer.get_hosts": 2, "Observer.get_attributes": 2,
	"Observer.get_endpoints": 2, "Observer.get_components": 2, "Observer.get_enabled": 2,
	"Observer.create": 2, "Observer.destroy": 2, "Observer.register": 3, "Observer.unregister": 3,
	"Observer.set_hosts": 3, "Observer.set_enabled": 3, "Observer.set_attributes": 3, "Observer.set_endpoints": 3, "Observer.set_components": 3,
	"Observer.set_name_label": 3, "Observer.set_name_description": 3,
}

// observes tells whether a method changes an Observer: work for a task.
func observes(method string) bool {
	return strings.HasPrefix(method, "Observer.") && !strings.HasPrefix(method, "Observer.get_")
}

// getObserver answers what needs the table only.
func (x *xapi) getObserver(method string, params []any) (any, *failure) {
	all, arg := x.db.observers, str(params, 1)
	switch method {
	case "Observer.get_all":
		out := []any{}
		for _, o := range all.all() {
			out = append(out, o.Ref)
		}
		return out, nil
	case "Observer.get_all_records":
		out := dict{}
		for _, o := range all.all() {
			out = append(out, member{o.Ref, o.record()})
		}
		return out, nil
	case "Observer.get_by_uuid":
		for _, o := range all.all() {
			if o.UUID == arg {
				return o.Ref, nil
			}
		}
		return nil, fail("UUID_INVALID", "Observer", arg)
	case "Observer.get_by_name_label":
		out := []any{}
		for _, o := range all.all() {
			if o.Name == arg {
				out = append(out, o.Ref)
			}
		}
		return out, nil
	}
	o, ok := all.get(arg)
	if !ok {
		return nil, fail("HANDLE_INVALID", "Observer", arg)
	}
	r := o.record()
	if method == "Observer.get_record" {
		return r, nil
	}
	return r.get(strings.TrimPrefix(method, "Observer.get_")), nil
}

// observe does a method that changes an Observer, and writes the audit log.
func (w *work) observe(method string, params []any) (any, *failure) {
	v, f := w.x.changeObserver(w, method, params)
	status := "OK"
	if f != nil {
		status = "ERROR:" + f.code
	}
	w.t.Tag, w.t.Trace = w.tag, ""
	w.t.Audit("('trackid=%s' 'LOCAL_SUPERUSER' 'root' 'ALLOWED' '%s' 'API' '%s' ())", trackID(str(params, 0)), status, method)
	return v, f
}

// changeObserver does such a method in the order in which the database and the
// components are told (xapi_observer.ml, message_forwarding.ml).
func (x *xapi) changeObserver(w *work, method string, params []any) (any, *failure) {
	if method == "Observer.create" {
		return x.createObserver(w, params[1])
	}
	ref := str(params, 1)
	o, f := x.findObserver(w.t, ref)
	if f != nil {
		return nil, f
	}
	change := func(f func(*observer)) *failure {
		if !x.pool.coordinates() {
			return nil // the coordinator has done it, or will
		}
		return x.db.observers.change(ref, f)
	}
	switch field := strings.TrimPrefix(method, "Observer."); field {
	case "destroy":
		w.debug("audit", "Observer.destroy: self=%s", o.UUID)
		if x.observed(o) {
			x.unregister(w, o, observed(o.Components))
		}
		if f = w.elsewhere(o.Hosts, "Observer.unregister", ref); f != nil {
			return nil, f
		}
		return "", x.db.observers.remove(ref)
	case "register":
		w.debug("audit", "Observer.register: self=%s", o.UUID)
		x.register(w, o, observed(o.Components))
		return "", nil
	case "unregister":
		w.debug("audit", "Observer.unregister: self=%s", o.UUID)
		x.unregister(w, o, observed(o.Components))
		return "", nil
	case "set_name_label":
		return "", change(func(o *observer) { o.Name = str(params, 2) })
	case "set_name_description":
		return "", change(func(o *observer) { o.Description = str(params, 2) })
	case "set_hosts":
		var hosts []string
		if hosts, f = strs(params[2], "value"); f != nil {
			return nil, f
		}
		w.debug("audit", "Observer.set_hosts: self=%s value=%s", o.UUID, strings.Join(x.db.hostUUIDs(hosts), ";"))
		if f = x.db.validHosts(hosts); f != nil {
			return nil, f
		}
		// The hosts that were are looked up after they are written: none comes, none goes.
		return "", change(func(o *observer) { o.Hosts = hosts })
	case "set_enabled":
		on, ok := params[2].(bool)
		if !ok {
			return nil, fail("FIELD_TYPE_ERROR", "value")
		}
		w.debug("audit", "Observer.set_enabled: self=%s value=%v", o.UUID, on)
		if f = change(func(o *observer) { o.Enabled = on }); f == nil && x.observed(o) {
			x.tell(w, o, "set_enabled", observed(o.Components), fmt.Sprintf(`"bool":%v,`, on))
			x.providers.enable(o.UUID, observed(o.Components), on)
		}
		if f == nil {
			f = w.elsewhere(nil, method, ref, on)
		}
	case "set_attributes":
		var attributes map[string]string
		if attributes, f = strMap(params[2], "value"); f != nil {
			return nil, f
		}
		w.debug("audit", "Observer.set_attributes: self=%s", o.UUID)
		if f = validAttributes(attributes); f != nil {
			return nil, f
		}
		if f = change(func(o *observer) { o.Attributes = attributes }); f == nil && x.observed(o) {
			o.Attributes = attributes
			x.tell(w, o, "set_attributes", observed(o.Components), `"dict":`+x.resource(o, "xenopsd")+",")
		}
		if f == nil {
			f = w.elsewhere(nil, method, ref, attributes)
		}
	case "set_endpoints":
		var endpoints []string
		if endpoints, f = strs(params[2], "value"); f != nil {
			return nil, f
		}
		w.debug("audit", "Observer.set_endpoints: self=%s", o.UUID)
		if f = x.validEndpoints(endpoints); f != nil {
			return nil, f
		}
		if f = change(func(o *observer) { o.Endpoints = endpoints }); f == nil && x.observed(o) {
			x.tell(w, o, "set_endpoints", observed(o.Components), `"endpoints":`+jsonStrings(endpoints)+",")
		}
		if f == nil {
			f = w.elsewhere(nil, method, ref, endpoints)
		}
	case "set_components":
		var components []string
		if components, f = strs(params[2], "value"); f != nil {
			return nil, f
		}
		w.debug("audit", "Observer.set_components: self=%s value=%s", o.UUID, strings.Join(components, ","))
		if f = validComponents(components); f != nil {
			return nil, f
		}
		if f = w.elsewhere(nil, method, ref, components); f != nil { // here the members come first
			return nil, f
		}
		old, now := observed(o.Components), observed(components)
		if f = change(func(o *observer) { o.Components = components }); f == nil && x.observed(o) {
			x.unregister(w, o, without(old, now))
			o.Components = components
			x.register(w, o, without(now, old))
		}
	}
	return "", f
}

func (x *xapi) createObserver(w *work, arg any) (any, *failure) {
	s, ok := arg.(map[string]any)
	if !ok {
		return nil, fail("INTERNAL_ERROR", "Failure(\"bad __structure\")")
	}
	o := observer{Ref: "OpaqueRef:" + uuid(), UUID: uuid()}
	// The two names have no default; all others do.
	for field, to := range map[string]*string{"name_label": &o.Name, "name_description": &o.Description} {
		if *to, ok = s[field].(string); !ok {
			return nil, fail("INTERNAL_ERROR", "Server_helpers.Dispatcher_FieldNotFound(\""+field+"\")")
		}
	}
	var f *failure
	for field, to := range map[string]*[]string{"hosts": &o.Hosts, "endpoints": &o.Endpoints, "components": &o.Components} {
		if v, ok := s[field]; ok {
			if *to, f = strs(v, field); f != nil {
				return nil, f
			}
		}
	}
	if v, ok := s["attributes"]; ok {
		if o.Attributes, f = strMap(v, "attributes"); f != nil {
			return nil, f
		}
	}
	if v, ok := s["enabled"]; ok {
		if o.Enabled, ok = v.(bool); !ok {
			return nil, fail("FIELD_TYPE_ERROR", "enabled")
		}
	}
	w.debug("audit", "Observer.create: name_label=%s", o.Name)
	for _, f := range []*failure{validComponents(o.Components), x.validEndpoints(o.Endpoints), x.db.validHosts(o.Hosts), validAttributes(o.Attributes)} {
		if f != nil {
			return nil, f
		}
	}
	if f := x.db.observers.add(o); f != nil {
		return nil, f
	}
	if x.observed(o) {
		x.register(w, o, observed(o.Components))
	}
	if f := w.elsewhere(o.Hosts, "Observer.register", o.Ref); f != nil {
		return nil, f
	}
	return o.Ref, nil
}

// elsewhere has the members do their part of a change: those that are named, or
// all. register and unregister say for which host they are.
func (w *work) elsewhere(hosts []string, method string, params ...any) *failure {
	if !w.x.pool.coordinates() {
		return nil
	}
	for _, h := range w.x.db.hosts {
		if h.Ref == w.x.db.hostRef || len(hosts) > 0 && !slices.Contains(hosts, h.Ref) {
			continue
		}
		all := append([]any{""}, params...)
		if strings.HasSuffix(method, "register") {
			all = append(all, h.Ref)
		}
		if f := w.forward(h, method, all); f != nil {
			return f
		}
	}
	return nil
}

// findObserver looks an Observer up in the pool's database.
func (x *xapi) findObserver(t *node.Thread, ref string) (observer, *failure) {
	missing := fail("HANDLE_INVALID", "Observer", ref)
	if x.pool.coordinates() {
		if o, ok := x.db.observers.get(ref); ok {
			return o, nil
		}
		return observer{}, missing
	}
	got, f := x.pool.remote(t, "Read_record", []string{"Observer", ref})
	var o observer
	switch {
	case f != nil && f.code == "Dbcache_notfound":
		return o, missing
	case f != nil:
		return o, f
	case json.Unmarshal(got, &o) != nil:
		return o, fail("INTERNAL_ERROR", "Observer")
	}
	return o, nil
}

// allObservers are those of the pool's database.
func (x *xapi) allObservers(t *node.Thread) ([]observer, *failure) {
	if x.pool.coordinates() {
		return x.db.observers.all(), nil
	}
	got, f := x.pool.remote(t, "Read_records_where", []string{"Observer", "True"})
	if f != nil {
		return nil, f
	}
	var all []observer
	if json.Unmarshal(got, &all) != nil {
		return nil, fail("INTERNAL_ERROR", "Observer")
	}
	return all, nil
}
