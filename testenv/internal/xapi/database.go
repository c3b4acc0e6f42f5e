//go:build linux

package xapi

import (
	"crypto/md5"
	"fmt"
	"math/rand/v2"
	"sync"

	"github.com/xenserver/dtagent/testenv/config"
)

// vm is a row of the database.
type vm struct {
	config.VM
	state  string // Halted, Running
	change string // reference of the task that changes it, "" for none
	home   string // reference of the host that it is resident on
}

// database is xapi's, as far as it is needed.
type database struct {
	host, hostRef string
	pool, poolRef string
	hosts         []config.Host
	vms           []*vm
	observers     *observers
	journal       *journal

	mu       sync.Mutex
	sessions map[string]chan struct{} // closed when the session ends
	tasks    map[string]*taskRow
}

// taskRow is a row of the task table.
type taskRow struct {
	ref, label string
	status     string // pending, success, failure
	err        *failure
	result     string
}

// maxRows bounds sessions and tasks; the simulation forgets at random beyond it.
const maxRows = 20000

func newDatabase(s config.Setup) (*database, error) {
	d := &database{
		host: s.Host, hostRef: s.HostRef, pool: s.Pool, poolRef: s.PoolRef, hosts: []config.Host{{Ref: s.HostRef, UUID: s.Host, Name: config.HostName, Address: "127.0.0.1"}},
		journal: newJournal(), sessions: map[string]chan struct{}{}, tasks: map[string]*taskRow{},
	}
	if p := s.Options.Pool; p != nil {
		d.hosts = p.Hosts
	}
	d.journal.touch("pool", d.poolRef)
	for _, h := range d.hosts {
		d.journal.touch("host", h.Ref)
	}
	for _, v := range s.VMs {
		d.vms = append(d.vms, &vm{VM: v, state: "Halted"})
		d.journal.touch("VM", v.Ref)
	}
	var err error
	d.observers, err = loadObservers(stateDB, d.journal)
	return d, err
}

// uuid is random, in the form of a uuid.
func uuid() string {
	a, b := rand.Uint64(), rand.Uint64()
	return fmt.Sprintf("%08x-%04x-%04x-%04x-%012x", a>>32, a>>16&0xffff, a&0xffff, b>>48, b&0xffffffffffff)
}

// newRef is a new reference in the form that log tags have: kind:12 digits. Its
// full form is made by full.
func newRef(kind string) string {
	return fmt.Sprintf("%s:%012x", kind, rand.Uint64()&0xffffffffffff)
}

// full is the OpaqueRef whose log form is tag.
func full(tag string) string {
	id := tag[2:]
	return "OpaqueRef:" + id[:8] + "-" + id[8:] + "-" + uuid()[14:]
}

// trackID is how logs name a session.
func trackID(session string) string { return fmt.Sprintf("%x", md5.Sum([]byte(session))) }

func (d *database) byRef(ref string) *vm {
	for _, v := range d.vms {
		if v.Ref == ref {
			return v
		}
	}
	return nil
}

func (d *database) byUUID(id string) *vm {
	for _, v := range d.vms {
		if v.UUID == id {
			return v
		}
	}
	return nil
}

func (d *database) power(v *vm) string {
	d.mu.Lock()
	defer d.mu.Unlock()
	return v.state
}

// resident is the host that v is or was last on, "" for none.
func (d *database) resident(v *vm) string {
	d.mu.Lock()
	defer d.mu.Unlock()
	return v.home
}

func (d *database) setResident(v *vm, host string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	v.home = host
	d.journal.touch("VM", v.Ref)
}

func (d *database) setPower(v *vm, state string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	v.state = state
	d.journal.touch("VM", v.Ref)
}

// begin makes v the task's to change, if nobody else has it and it is in the state
// wanted ("" for any).
func (d *database) begin(v *vm, task, want string) *failure {
	d.mu.Lock()
	defer d.mu.Unlock()
	if v.change != "" {
		return fail("OTHER_OPERATION_IN_PROGRESS", "VM", v.Ref)
	}
	if want != "" && v.state != want {
		return fail("VM_BAD_POWER_STATE", v.Ref, lower(want), lower(v.state))
	}
	v.change = task
	return nil
}

func (d *database) end(v *vm) {
	d.mu.Lock()
	defer d.mu.Unlock()
	v.change = ""
}

func lower(s string) string {
	b := []byte(s)
	if len(b) > 0 && b[0] >= 'A' && b[0] <= 'Z' {
		b[0] += 'a' - 'A'
	}
	return string(b)
}

func (d *database) addSession() string {
	ref := "OpaqueRef:" + uuid()
	d.openSession(ref)
	return ref
}

// openSession makes ref a session.
func (d *database) openSession(ref string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for k := range d.sessions {
		if len(d.sessions) < maxRows {
			break
		}
		d.endSession(k)
	}
	d.sessions[ref] = make(chan struct{})
	d.journal.touch("session", ref)
}

// endSession ends a session and what waits in it. It is called with the lock held.
func (d *database) endSession(ref string) {
	if end, ok := d.sessions[ref]; ok {
		delete(d.sessions, ref)
		close(end)
		d.journal.remove("session", ref)
	}
}

// endSessions ends all sessions.
func (d *database) endSessions() {
	d.mu.Lock()
	defer d.mu.Unlock()
	for ref := range d.sessions {
		d.endSession(ref)
	}
}

// sessionEnd is closed when a session ends.
func (d *database) sessionEnd(ref string) (<-chan struct{}, bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	end, ok := d.sessions[ref]
	return end, ok
}

func (d *database) removeSession(ref string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.endSession(ref)
}

func (d *database) hasSession(ref string) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	_, ok := d.sessions[ref]
	return ok
}

func (d *database) addTask(ref, label string) *taskRow {
	r := &taskRow{ref: ref, label: label, status: "pending"}
	d.mu.Lock()
	defer d.mu.Unlock()
	for k := range d.tasks {
		if len(d.tasks) < maxRows {
			break
		}
		delete(d.tasks, k)
		d.journal.remove("task", k)
	}
	d.tasks[ref] = r
	d.journal.touch("task", ref)
	return r
}

func (d *database) finish(r *taskRow, f *failure) {
	d.mu.Lock()
	defer d.mu.Unlock()
	r.status, r.err = "success", f
	if f != nil {
		r.status = "failure"
	}
	d.journal.touch("task", r.ref)
}

// task is a copy of a row.
func (d *database) task(ref string) (taskRow, bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	r, ok := d.tasks[ref]
	if !ok {
		return taskRow{}, false
	}
	return *r, true
}

func (d *database) removeTask(ref string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	delete(d.tasks, ref)
	d.journal.remove("task", ref)
}
