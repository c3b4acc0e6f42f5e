package xapi

import (
	"encoding/json"
	"errors"
	"maps"
	"slices"
	"strings"

	"github.com/xenserver/dtagent/observer"
)

// mirror is the part of the pool's database that is followed. It is owned by
// one goroutine.
type mirror struct {
	host      observer.Host
	hostRef   string // of this host; "": XAPI does not know it
	observers map[string]*entry
	skipped   int               // Observers beyond maxObservers
	hosts     map[string]string // uuid by reference; "": XAPI does not know it
}

// entry is one Observer as XAPI has it.
type entry struct {
	now    observer.Observer // what is in force
	ok     bool              // now is something that can be in force
	wrong  []string
	latest identity // also when nothing is in force
}

func newMirror(hostUUID string) *mirror {
	return &mirror{
		host:      observer.Host{UUID: strings.ToLower(hostUUID)},
		observers: map[string]*entry{},
		hosts:     map[string]string{},
	}
}

// replace makes the Observers those of get_all_records. It returns false when
// the records are none.
func (m *mirror) replace(records json.RawMessage) bool {
	next, skipped := map[string]*entry{}, 0
	err := eachMember(records, func(ref string, record json.RawMessage) error {
		switch {
		case ref == "" || len(ref) > maxReference:
			return errKind
		case skipped == maxSkipped:
			return errEnough
		case len(next) == maxObservers:
			skipped++
		default:
			e := newEntry(record)
			if old := m.observers[ref]; !e.ok && old != nil && old.ok {
				e.now, e.ok = old.now, true
			}
			next[ref] = e
		}
		return nil
	})
	if err != nil && !errors.Is(err, errEnough) {
		return false
	}
	m.observers, m.skipped = next, skipped
	return true
}

func newEntry(record json.RawMessage) *entry {
	o, wrong := decodeObserver(record)
	e := &entry{now: o, wrong: wrong, ok: len(wrong) == 0, latest: identity{o.UUID, o.NameLabel}}
	if e.ok {
		e.now, e.wrong, e.ok = sound(o)
	}
	return e
}

// apply makes the changes of a batch. It returns false when they do not tell
// all, so that everything must be read again.
func (m *mirror) apply(b batch) bool {
	whole := !b.overflow
	for _, c := range b.changes {
		switch c.class {
		case "observer":
			whole = m.applyObserver(c) && whole
		case "pool":
			if c.operation == "del" {
				continue
			}
			i, ok := decodeIdentity(c.snapshot)
			if ok {
				m.host.PoolUUID = i.uuid
			}
			whole = whole && ok
		case "host":
			if c.operation == "del" {
				continue
			}
			i, ok := decodeIdentity(c.snapshot)
			if ok {
				m.addHost(c.ref, i)
			}
			whole = whole && ok
		}
	}
	return whole && (b.count < 0 || b.count == len(m.observers)+m.skipped)
}

func (m *mirror) applyObserver(c change) bool {
	if c.operation == "del" {
		_, known := m.observers[c.ref]
		delete(m.observers, c.ref)
		return known || m.skipped == 0
	}
	e := newEntry(c.snapshot)
	_, known := m.observers[c.ref]
	switch {
	case !known && len(m.observers) >= maxObservers:
		m.skipped++
		return true
	case !e.ok:
		return false // the record itself will tell
	}
	m.observers[c.ref] = e
	return true
}

func (m *mirror) addHost(ref string, i identity) {
	if m.host.UUID != "" && i.uuid == m.host.UUID {
		m.hostRef, m.host.Name = ref, i.name
	}
	if _, known := m.hosts[ref]; known || len(m.hosts) < maxHosts {
		m.hosts[ref] = i.uuid
	}
}

// maxHosts bounds the hosts whose uuids are kept; a pool has at most 64.
const maxHosts = 1024

// strangers returns the references of hosts that Observers name and that were
// not looked up yet.
func (m *mirror) strangers() []string {
	found := map[string]bool{}
	for _, e := range m.observers {
		for _, h := range e.now.Hosts {
			if _, known := m.hosts[h]; !known && isReference(h) {
				found[h] = true
			}
		}
	}
	out := slices.Sorted(maps.Keys(found))
	return out[:min(len(out), max(maxHosts-len(m.hosts), 0))]
}

func isReference(s string) bool {
	return strings.HasPrefix(s, "OpaqueRef:") && len(s) <= maxReference
}

// state returns what is in force and what is wrong. Nothing of it is shared with
// m.
func (m *mirror) state() (State, []Mistake) {
	s := State{Observers: []observer.Observer{}, Host: m.host}
	var mistakes []Mistake
	byUUID := func(a, b string) int {
		if c := strings.Compare(m.observers[a].latest.uuid, m.observers[b].latest.uuid); c != 0 {
			return c
		}
		return strings.Compare(a, b)
	}
	last := ""
	for _, ref := range slices.SortedFunc(maps.Keys(m.observers), byUUID) {
		e := m.observers[ref]
		ok, wrong := e.ok, e.wrong
		if ok && e.now.UUID == last && last != "" {
			ok, wrong = false, append(slices.Clone(wrong), "uuid: is that of another Observer too")
		}
		if ok {
			o := e.now.Clone()
			for i, h := range o.Hosts {
				if uuid := m.hosts[h]; uuid != "" {
					o.Hosts[i] = uuid
				}
			}
			s.Observers = append(s.Observers, o)
			last = o.UUID
		}
		if len(wrong) > 0 {
			mistakes = append(mistakes, Mistake{UUID: redact(e.latest.uuid, ""), NameLabel: redact(e.latest.name, ""), Kept: ok, Errors: wrong})
		}
	}
	return s, mistakes
}
