//go:build linux

package xapi

import (
	"encoding/json"
	"slices"
	"sync"

	"github.com/xenserver/dtagent/testenv/internal/node"
)

// providers is xapi's own table of tracer providers, by the uuid of their Observer.
type providers struct {
	p  *node.Proc
	mu sync.Mutex
	on map[string]bool
}

// set makes or changes a provider. The process traces while one is enabled.
func (t *providers) set(uuid string, enabled bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.on[uuid] = enabled
	t.update()
}

func (t *providers) remove(uuid string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	delete(t.on, uuid)
	t.update()
}

// enable changes a provider that there is.
func (t *providers) enable(uuid string, components []string, enabled bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if _, ok := t.on[uuid]; ok && slices.Contains(components, "xapi") {
		t.on[uuid] = enabled
		t.update()
	}
}

func (t *providers) has(uuid string) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	_, ok := t.on[uuid]
	return ok
}

func (t *providers) update() {
	for _, on := range t.on {
		if on {
			t.p.Observe(true)
			return
		}
	}
	t.p.Observe(false)
}

// observed tells whether an Observer is for this host.
func (x *xapi) observed(o observer) bool {
	return len(o.Hosts) == 0 || slices.Contains(o.Hosts, x.db.hostRef)
}

// register tells components of an Observer.
func (x *xapi) register(w *work, o observer, components []string) {
	for _, c := range components {
		if c == "xapi" {
			w.debug("xapi_observer", "xapi Observer.create %s", o.UUID)
			if x.providers.has(o.UUID) {
				w.debug("tracing", "TracerProvider %s already exists", o.Name)
				continue
			}
			x.providers.set(o.UUID, o.Enabled)
			continue
		}
		enabled, _ := json.Marshal(o.Enabled)
		x.tell(w, o, "create", []string{c}, `"bool":`+string(enabled)+`,"endpoints":`+jsonStrings(o.Endpoints)+
			`,"dict":`+x.resource(o, c)+`,"name_label":`+jsonString(o.Name)+",")
	}
}

// unregister tells components that an Observer is no more.
func (x *xapi) unregister(w *work, o observer, components []string) {
	for _, c := range components {
		if c == "xapi" {
			w.debug("xapi_observer", "xapi Observer.destroy %s", o.UUID)
			x.providers.remove(o.UUID)
			continue
		}
		x.tell(w, o, "destroy", []string{c}, "")
	}
}

// tell makes the calls of a change. members are those of the struct before uuid and
// dbg, each with a comma behind it. The debug_info has no trace context.
func (x *xapi) tell(w *work, o observer, method string, components []string, members string) {
	for _, c := range components {
		switch c {
		case "xapi":
			w.debug("xapi_observer", "xapi Observer.%s %s", method, o.UUID)
		case "xenopsd":
			w.tellXenopsd("Observer."+method, members+`"uuid":`+jsonString(o.UUID)+",")
		}
	}
}

// resource is the attributes of an Observer's spans: six defaults, then the user's.
func (x *xapi) resource(o observer, component string) string {
	host, _ := x.db.hostByRef(x.db.hostRef)
	b := []byte{'{'}
	add := func(k, v string) {
		if len(b) > 1 {
			b = append(b, ',')
		}
		b = append(append(append(b, jsonString(k)...), ':'), jsonString(v)...)
	}
	add("xs.pool.uuid", x.db.pool)
	add("xs.host.name", host.Name)
	add("xs.host.uuid", host.UUID)
	add("xs.observer.name", o.Name)
	add("xs.observer.uuid", o.UUID)
	add("service.name", component)
	for _, m := range o.attributes() {
		add(m.name, m.value.(string))
	}
	return string(append(b, '}'))
}

func jsonString(s string) string { return string(writeJSON(nil, s)) }

func jsonStrings(all []string) string { return string(writeJSON(nil, anys(all))) }

// initialise is xapi's step "Initialise Observability": the limits to every
// component, then to each component that any Observer names all Observers of this
// host, named by them or not.
func (x *xapi) initialise(t *node.Thread) {
	w := &work{x: x, t: t, tag: "Initialise Observability " + newRef("D")}
	t.Tag = w.tag
	w.debug("xapi_observer", "xapi Observer.init")
	for _, m := range [][2]string{
		{"set_trace_log_dir", `"string":"/var/log/dt/zipkinv2/json",`}, {"set_export_interval", `"float":30.0,`}, {"set_export_chunk_size", `"int":10000,`},
		{"set_max_spans", `"int":10000,`}, {"set_max_traces", `"int":10000,`}, {"set_max_depth", `"int":100,`}, {"set_max_file_size", `"int":1048576,`},
		{"set_host_id", `"string":` + jsonString(x.db.host) + ","}, {"set_compress_tracing_files", `"bool":true,`}, {"init", ""},
	} {
		w.tellXenopsd("Observer."+m[0], m[1])
	}
	all, f := x.allObservers(t)
	if f != nil {
		t.Log(node.Error, "xapi_observer", "%s %v", f.code, f.params)
	}
	for _, named := range all {
		for _, c := range observed(named.Components) {
			for _, o := range all {
				if x.observed(o) {
					x.register(w, o, []string{c})
				}
			}
		}
	}
	t.Tag = ""
}

// tellXenopsd makes a call that xenopsd's answer to is of no interest.
func (w *work) tellXenopsd(method, members string) {
	if _, f := w.rpcIn(node.Context{}, method, members); f != nil {
		w.t.Log(node.Error, "xapi_observer", "%s: %s %v", method, f.code, f.params)
	}
}
