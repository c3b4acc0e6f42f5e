//go:build linux

package xapi

import (
	"fmt"
	"maps"
	"math"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/xenserver/dtagent/testenv/internal/node"
	"github.com/xenserver/dtagent/testenv/internal/sys"
)

// tables are the classes of the database, whose rows valid_ref_counts counts. All of
// those that have rows here generate events, but for sessions.
var tables = []string{
	"Bond", "Caller", "Certificate", "Cluster", "Cluster_host", "DR_task", "Feature", "GPU_group", "Host_driver", "LVHD", "Observer", "PBD", "PCI", "PGPU",
	"PIF", "PIF_metrics", "PUSB", "PVS_cache_storage", "PVS_proxy", "PVS_server", "PVS_site", "Rate_limit", "Repository", "SDN_controller", "SM", "SR",
	"USB_group", "VBD", "VBD_metrics", "VDI", "VGPU", "VGPU_type", "VIF", "VIF_metrics", "VLAN", "VM", "VMPP", "VMSS", "VM_appliance", "VM_group",
	"VM_guest_metrics", "VM_metrics", "VTPM", "VUSB", "blob", "console", "crashdump", "host", "host_cpu", "host_crashdump", "host_metrics", "host_patch",
	"network", "network_sriov", "pool", "pool_patch", "pool_update", "role", "secret", "session", "subject", "task", "tunnel", "user",
}

// journal is when each row of the database was made and changed last, in
// generations of the database (db_cache_types.ml).
type journal struct {
	mu         sync.Mutex
	generation int64
	rows       map[string]map[string]stat // by table and reference
	deleted    map[string][]deletion      // by table, oldest first
	changed    chan struct{}              // closed at the next change of any row
}

type stat struct{ created, modified int64 }

type deletion struct {
	ref     string
	created int64
	at      int64
}

// Deletions are kept until there are so many of a table, then all but the newest
// are forgotten.
const (
	maxDeleted  = 512
	keptDeleted = 256
)

func newJournal() *journal {
	return &journal{generation: 1, rows: map[string]map[string]stat{}, deleted: map[string][]deletion{}, changed: make(chan struct{})}
}

// do changes a row's entry under the lock, at the next generation, and wakes who waits.
func (j *journal) do(f func(at int64)) {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.generation++
	f(j.generation)
	close(j.changed)
	j.changed = make(chan struct{})
}

// touch says that a row has been made or changed.
func (j *journal) touch(table, ref string) {
	j.do(func(at int64) {
		if j.rows[table] == nil {
			j.rows[table] = map[string]stat{}
		}
		s, ok := j.rows[table][ref]
		if !ok {
			s.created = at
		}
		s.modified = at
		j.rows[table][ref] = s
	})
}

// remove says that a row is gone.
func (j *journal) remove(table, ref string) {
	j.do(func(at int64) {
		s, ok := j.rows[table][ref]
		if !ok {
			return
		}
		delete(j.rows[table], ref)
		d := append(j.deleted[table], deletion{ref: ref, created: s.created, at: at})
		if len(d) >= maxDeleted {
			d = slices.Clone(d[len(d)-keptDeleted:])
		}
		j.deleted[table] = d
	})
}

// forget starts the generations anew, with the rows that there are.
func (j *journal) forget() {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.generation = 1
	clear(j.deleted)
	for _, t := range slices.Sorted(maps.Keys(j.rows)) {
		for _, ref := range slices.Sorted(maps.Keys(j.rows[t])) {
			j.generation++
			j.rows[t][ref] = stat{created: j.generation, modified: j.generation}
		}
	}
	close(j.changed)
	j.changed = make(chan struct{})
}

// stat is that of a row.
func (j *journal) stat(table, ref string) stat {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.rows[table][ref]
}

func (j *journal) at() int64 {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.generation
}

// subscription is one of event.from's classes.
type subscription struct{ class, ref string } // "*" is all; ref "" all of the class

func subscriptions(classes []any) []subscription {
	var out []subscription
	for _, c := range classes {
		s, _ := c.(string)
		class, ref, _ := strings.Cut(s, "/")
		out = append(out, subscription{strings.ToLower(class), ref})
	}
	return out
}

func wants(subs []subscription, table, ref string) bool {
	table = strings.ToLower(table)
	for _, s := range subs {
		if s.class == "*" && s.ref == "" || s.class == table && (s.ref == "" || s.ref == ref) {
			return true
		}
	}
	return false
}

// change is one event, without its snapshot.
type change struct {
	table, ref, op string
	at             int64
}

// since gives what has happened after a generation: additions, then changes, then
// deletions; the generation of the last of it; and what the next change closes.
func (j *journal) since(from int64, subs []subscription) ([]change, int64, <-chan struct{}) {
	j.mu.Lock()
	defer j.mu.Unlock()
	var added, modified, gone []change
	last := from
	for _, t := range tables {
		if t == "session" {
			continue
		}
		for _, ref := range slices.Sorted(maps.Keys(j.rows[t])) {
			s := j.rows[t][ref]
			if s.modified <= from || !wants(subs, t, ref) {
				continue
			}
			last = max(last, s.modified)
			if s.created > from {
				added = append(added, change{t, ref, "add", s.created})
			} else {
				modified = append(modified, change{t, ref, "mod", s.modified})
			}
		}
		for _, d := range slices.Backward(j.deleted[t]) {
			if d.at > from && d.created <= from && wants(subs, t, d.ref) {
				last = max(last, d.at)
				gone = append(gone, change{t, d.ref, "del", d.at})
			}
		}
	}
	return slices.Concat(added, modified, gone), last, j.changed
}

// counts is valid_ref_counts: all tables, the last name first.
func (j *journal) counts() dict {
	j.mu.Lock()
	defer j.mu.Unlock()
	out := make(dict, 0, len(tables))
	for _, t := range slices.Backward(tables) {
		out = append(out, member{strings.ToLower(t), int32(len(j.rows[t]))})
	}
	return out
}

// parseToken takes an event token as xapi does: nothing, or two numbers.
func parseToken(s string) (int64, bool) {
	if s == "" {
		return 0, true
	}
	a, b, ok := strings.Cut(s, ",")
	if !ok || strings.Contains(b, ",") {
		return 0, false
	}
	n, err := strconv.ParseInt(a, 10, 64)
	if err != nil {
		return 0, false
	}
	_, err = strconv.ParseInt(b, 10, 64)
	return n, err == nil
}

// The delays of event.from (xapi_globs.ml, throttle.ml): before it looks, and
// between looks that are in vain, the latter growing.
const (
	batchBefore  = 50 * time.Millisecond
	batchBetween = 50 * time.Millisecond
)

// longest is event.from's time for a timeout that is no span of time.
const longest = 24 * time.Hour

// eventFrom is event.from: it blocks the connection's thread until something has
// happened, the time is over, or the session is.
func (x *xapi) eventFrom(t *node.Thread, params []any) (any, *failure) {
	session, token := str(params, 0), str(params, 2)
	classes, ok := params[1].([]any)
	if !ok {
		return nil, fail("FIELD_TYPE_ERROR", "classes")
	}
	subs := subscriptions(classes)
	seconds, err := strconv.ParseFloat(str(params, 3), 64)
	if err != nil {
		return nil, fail("FIELD_TYPE_ERROR", "timeout")
	}
	timeout := longest
	if ns := seconds * float64(time.Second); ns >= 0 && ns < math.MaxInt64 {
		timeout = time.Duration(ns)
	}
	end := time.Now().Add(timeout)
	over := time.NewTimer(timeout)
	defer over.Stop()
	from, ok := parseToken(token)
	if !ok {
		t.Log(node.Warn, "xapi_event", "Failed to parse event.from token: %s (Failure(\"Int64.of_string\"))", token)
		return nil, fail("EVENT_FROM_TOKEN_PARSE_FAILURE", token)
	}
	invalid, ok := x.db.sessionEnd(session)
	if !ok {
		return nil, fail("SESSION_INVALID", session)
	}
	before := batchBefore
	if !slices.ContainsFunc(subs, func(s subscription) bool { return s.class != "task" }) {
		before = 0
	}
	for start := from; ; {
		sys.Sleep(before)
		events, last, f := x.wait(t, session, start, subs, end, over.C, invalid)
		if f != nil {
			return nil, f
		}
		if len(events) == 0 && time.Now().Before(end) { // what had changed is gone again
			t.Log(node.Debug, "xapi_event", "suppressing empty event.from")
			continue
		}
		return dict{
			{"events", events},
			{"valid_ref_counts", x.db.journal.counts()},
			{"token", fmt.Sprintf("%020d,%020d", last, 0)},
		}, nil
	}
}

// wait looks until there is something, or the end.
func (x *xapi) wait(t *node.Thread, session string, from int64, subs []subscription, end time.Time, over <-chan time.Time, invalid <-chan struct{}) ([]any, int64, *failure) {
	between := batchBetween / 16
	for {
		all, last, changed := x.db.journal.since(from, subs)
		if len(all) > 0 || !time.Now().Before(end) {
			return x.withSnapshots(all), last, nil
		}
		from = last
		select {
		case <-changed:
		case <-over:
			continue
		case <-invalid:
			t.Log(node.Info, "xapi_event", "trackid=%s raising SESSION_INVALID *because* subscription is invalid", trackID(session))
			return nil, 0, fail("SESSION_INVALID", session)
		}
		between = min(2*between, batchBetween)
		sys.Sleep(between)
	}
}

// withSnapshots makes events of changes. Those whose object has gone meanwhile are
// left out.
func (x *xapi) withSnapshots(all []change) []any {
	out := make([]any, 0, len(all))
	for _, c := range all {
		e := dict{
			{"id", strconv.FormatInt(c.at, 10)}, {"timestamp", "0.0"}, {"class", strings.ToLower(c.table)}, {"operation", c.op}, {"ref", c.ref},
		}
		if c.op != "del" {
			snapshot, ok := x.snapshot(c.table, c.ref)
			if !ok {
				continue
			}
			e = append(e, member{"snapshot", snapshot})
		}
		out = append(out, e)
	}
	return out
}

// snapshot is the record of an object.
func (x *xapi) snapshot(table, ref string) (any, bool) {
	switch table {
	case "Observer":
		return x.db.observers.record(ref)
	case "VM":
		if v := x.db.byRef(ref); v != nil {
			return x.db.record(v), true
		}
	case "task":
		if r, ok := x.db.task(ref); ok {
			return taskField(r, "task.get_record"), true
		}
	case "host":
		if h, ok := x.db.hostByRef(ref); ok {
			return x.db.hostRecord(h), true
		}
	case "pool":
		return x.db.poolRecord(), ref == x.db.poolRef
	}
	return nil, false
}
