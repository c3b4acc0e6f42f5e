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
}

// database is xapi's, as far as it is needed.
type database struct {
	host, hostRef string
	vms           []*vm

	mu       sync.Mutex
	sessions map[string]bool
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

func newDatabase(s config.Setup) *database {
	d := &database{host: s.Host, hostRef: s.HostRef, sessions: map[string]bool{}, tasks: map[string]*taskRow{}}
	for _, v := range s.VMs {
		d.vms = append(d.vms, &vm{VM: v, state: "Halted"})
	}
	return d
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

func (d *database) setPower(v *vm, state string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	v.state = state
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
	d.mu.Lock()
	defer d.mu.Unlock()
	for k := range d.sessions {
		if len(d.sessions) < maxRows {
			break
		}
		delete(d.sessions, k)
	}
	d.sessions[ref] = true
	return ref
}

func (d *database) removeSession(ref string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	delete(d.sessions, ref)
}

func (d *database) hasSession(ref string) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.sessions[ref]
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
	}
	d.tasks[ref] = r
	return r
}

func (d *database) finish(r *taskRow, f *failure) {
	d.mu.Lock()
	defer d.mu.Unlock()
	r.status, r.err = "success", f
	if f != nil {
		r.status = "failure"
	}
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
}
