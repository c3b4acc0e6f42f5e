//go:build linux

package xapi

import (
	"encoding/json"
	"fmt"
	"maps"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"

	"github.com/xenserver/dtagent/testenv/internal/node"
)

// observer is a row of the Observer table.
type observer struct {
	Ref         string            `json:"ref"`
	UUID        string            `json:"uuid"`
	Name        string            `json:"name_label"`
	Description string            `json:"name_description"`
	Hosts       []string          `json:"hosts"`
	Attributes  map[string]string `json:"attributes"`
	Endpoints   []string          `json:"endpoints"`
	Components  []string          `json:"components"`
	Enabled     bool              `json:"enabled"`
}

// record is the row in the order of the datamodel.
func (o observer) record() dict {
	return dict{
		{"uuid", o.UUID}, {"name_label", o.Name}, {"name_description", o.Description}, {"hosts", anys(o.Hosts)}, {"attributes", o.attributes()},
		{"endpoints", anys(o.Endpoints)}, {"components", anys(o.Components)}, {"enabled", o.Enabled},
	}
}

func (o observer) attributes() dict {
	out := dict{}
	for _, k := range slices.Sorted(maps.Keys(o.Attributes)) {
		out = append(out, member{k, o.Attributes[k]})
	}
	return out
}

func anys(all []string) []any {
	out := make([]any, len(all))
	for i, s := range all {
		out[i] = s
	}
	return out
}

// observers is the Observer table, which outlives the process.
type observers struct {
	journal *journal
	path    string

	mu   sync.Mutex
	rows map[string]observer
}

// stateDB is where xapi keeps its database.
const stateDB = "/var/lib/xcp/state.db"

// state is what the file holds.
type state struct {
	Generation int64      `json:"generation"`
	Observers  []observer `json:"observers"`
}

// lag is by how much the generations of a database that is read are ahead of the
// last one written: what changes all the time is not written each time.
const lag = 1 << 20

func loadObservers(path string, j *journal) (*observers, error) {
	t := &observers{journal: j, path: path, rows: map[string]observer{}}
	data, err := os.ReadFile(path)
	if os.IsNotExist(err) {
		return t, nil
	}
	var s state
	if err == nil {
		err = json.Unmarshal(data, &s)
	}
	if err != nil {
		return nil, fmt.Errorf("database: %w", err)
	}
	j.generation = s.Generation
	for _, o := range s.Observers {
		t.rows[o.Ref] = o
		j.touch("Observer", o.Ref)
	}
	j.generation += lag
	return t, nil
}

// write stores the table. It is called with the lock held.
func (t *observers) write() *failure {
	s := state{Generation: t.journal.at()}
	for _, ref := range slices.Sorted(maps.Keys(t.rows)) {
		s.Observers = append(s.Observers, t.rows[ref])
	}
	data, err := json.Marshal(s)
	tmp := t.path + ".tmp"
	if err == nil {
		err = os.MkdirAll(filepath.Dir(t.path), 0o700)
	}
	if err == nil {
		err = os.WriteFile(tmp, data, 0o600)
	}
	if err == nil {
		err = os.Rename(tmp, t.path)
	}
	if err != nil {
		return fail("INTERNAL_ERROR", err.Error())
	}
	return nil
}

func (t *observers) get(ref string) (observer, bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	o, ok := t.rows[ref]
	return o, ok
}

func (t *observers) record(ref string) (any, bool) {
	o, ok := t.get(ref)
	return o.record(), ok
}

// all gives the rows in the order of their references.
func (t *observers) all() []observer {
	t.mu.Lock()
	defer t.mu.Unlock()
	out := make([]observer, 0, len(t.rows))
	for _, ref := range slices.Sorted(maps.Keys(t.rows)) {
		out = append(out, t.rows[ref])
	}
	return out
}

// add makes a row.
func (t *observers) add(o observer) *failure {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.rows[o.Ref] = o
	t.journal.touch("Observer", o.Ref)
	return t.write()
}

// change changes a row by f.
func (t *observers) change(ref string, f func(*observer)) *failure {
	t.mu.Lock()
	defer t.mu.Unlock()
	o, ok := t.rows[ref]
	if !ok {
		return fail("HANDLE_INVALID", "Observer", ref)
	}
	f(&o)
	t.rows[ref] = o
	t.journal.touch("Observer", ref)
	return t.write()
}

func (t *observers) remove(ref string) *failure {
	t.mu.Lock()
	defer t.mu.Unlock()
	if _, ok := t.rows[ref]; !ok {
		return fail("HANDLE_INVALID", "Observer", ref)
	}
	delete(t.rows, ref)
	t.journal.remove("Observer", ref)
	return t.write()
}

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

// strs is a set of strings.
func strs(v any, name string) ([]string, *failure) {
	all, ok := v.([]any)
	if !ok {
		return nil, fail("FIELD_TYPE_ERROR", name)
	}
	out := make([]string, len(all))
	for i, e := range all {
		if out[i], ok = e.(string); !ok {
			return nil, fail("FIELD_TYPE_ERROR", name)
		}
	}
	return out, nil
}

// strMap is a map of strings.
func strMap(v any, name string) (map[string]string, *failure) {
	all, ok := v.(map[string]any)
	if !ok {
		return nil, fail("FIELD_TYPE_ERROR", name)
	}
	out := make(map[string]string, len(all))
	for k, e := range all {
		if out[k], ok = e.(string); !ok {
			return nil, fail("FIELD_TYPE_ERROR", name)
		}
	}
	return out, nil
}

// components are all names that an Observer can have.
var components = []string{"smapi", "xapi", "xapi-clusterd", "xenopsd"}

func validComponents(all []string) *failure {
	for _, c := range all {
		if !slices.Contains(components, c) {
			return fail("INVALID_VALUE", "component", c)
		}
	}
	return nil
}

// observed are the components that are told of an Observer: clusterd is not
// enabled here, smapi is experimental even when it is named.
func observed(named []string) []string {
	if len(named) == 0 {
		return []string{"xapi", "xenopsd"}
	}
	var out []string
	for _, c := range components {
		if c != "smapi" && slices.Contains(named, c) {
			out = append(out, c)
		}
	}
	return out
}

func without(a, b []string) []string {
	return slices.DeleteFunc(slices.Clone(a), func(s string) bool { return slices.Contains(b, s) })
}

func (x *xapi) validEndpoints(all []string) *failure {
	for _, e := range all {
		if e != "bugtool" && !x.validURL(e) {
			return fail("INVALID_VALUE", "endpoint", e)
		}
	}
	return nil
}

func (x *xapi) validURL(e string) bool {
	rest, ok := strings.CutPrefix(e, "http://")
	if !ok {
		rest, ok = strings.CutPrefix(e, "https://")
	}
	if !ok || x.p.Setup.Options.Pool.Coordinator() && !x.p.Setup.Options.EndpointHTTP {
		return false
	}
	host := rest
	if i := strings.IndexAny(host, "/?#"); i >= 0 {
		host = host[:i]
	}
	if i := strings.LastIndexByte(host, '@'); i >= 0 {
		host = host[i+1:]
	}
	if inner, ok := strings.CutPrefix(host, "["); ok {
		inner, _, ok = strings.Cut(inner, "]")
		_, err := netip.ParseAddr(inner)
		return ok && err == nil
	}
	host, _, _ = strings.Cut(host, ":")
	if len(host) == 0 || len(host) > 253 {
		return false
	}
	for _, label := range strings.Split(strings.TrimSuffix(host, "."), ".") {
		if len(label) == 0 || len(label) > 63 {
			return false
		}
	}
	return true
}

// attributeKey is Tracing.attribute_key_regex.
var attributeKey = regexp.MustCompile(`^[a-z0-9][a-z0-9._]{0,253}[a-z0-9]$`)

// maxAttribute is the most bytes that an attribute's value has.
const maxAttribute = 4095

func validAttributes(all map[string]string) *failure {
	for _, k := range slices.Sorted(maps.Keys(all)) {
		if v := all[k]; len(v) > maxAttribute || !attributeKey.MatchString(k) {
			return fail("INVALID_VALUE", "attributes", k+":"+v)
		}
	}
	return nil
}
