//go:build linux

package xapi

import (
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"sync"
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
	Created     int64             `json:"__ctime"`
	Modified    int64             `json:"__mtime"`
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
	j.rows["Observer"] = map[string]stat{}
	for _, o := range s.Observers {
		t.rows[o.Ref] = o
		j.rows["Observer"][o.Ref] = stat{created: o.Created, modified: o.Modified}
	}
	j.generation += lag
	return t, nil
}

// write stores the table. It is called with the lock held.
func (t *observers) write() *failure {
	s := state{Generation: t.journal.at()}
	for _, ref := range slices.Sorted(maps.Keys(t.rows)) {
		o, at := t.rows[ref], t.journal.stat("Observer", ref)
		o.Created, o.Modified = at.created, at.modified
		s.Observers = append(s.Observers, o)
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
