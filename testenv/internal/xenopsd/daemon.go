//go:build linux

// Package xenopsd is xenopsd-xc as it looks from outside: one thread a message,
// pools of workers that run tasks made of atoms, a metadata store, children.
package xenopsd

import (
	"encoding/json"
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/xenserver/dtagent/testenv/internal/forwarded"
	"github.com/xenserver/dtagent/testenv/internal/mswitch"
	"github.com/xenserver/dtagent/testenv/internal/node"
	"github.com/xenserver/dtagent/testenv/internal/sys"
)

// Queue is where xenopsd takes its orders.
const Queue = "org.xen.xapi.xenops.classic"

// Forwarded is where it takes the connections of migrations that xapi passes on.
const Forwarded = "/var/lib/xcp/xenopsd.forwarded"

type daemon struct {
	p       *node.Proc
	devs    devices
	store   store
	updates *updates

	defaultPool, parallelPool, nestedPool, receivePool *pool

	taskMu   sync.Mutex
	tasks    map[string]*task
	nextTask int

	xen *hypervisor

	lock sync.Mutex
	hold chan time.Duration
	held chan struct{}

	providers providers

	clientMu sync.Mutex
	mux      *mswitch.Client

	sessionMu sync.Mutex
	session   string // at squeezed, made by the first thread that needs it
}

// Run is the process.
func Run(p *node.Proc) error {
	o := p.Setup.Options
	xen, err := newHypervisor(p.Setup.Root)
	if err != nil {
		return err
	}
	d := &daemon{
		p: p, devs: devicesOf(o.Disks, o.NICs), store: store{root: "/var/run/nonpersistent/xenopsd/classic"}, updates: newUpdates(),
		defaultPool: newPool(), parallelPool: newPool(), nestedPool: newPool(), receivePool: newPool(),
		tasks: map[string]*task{}, xen: xen,
		hold: make(chan time.Duration), held: make(chan struct{}),
	}
	for _, pool := range []*pool{d.defaultPool, d.parallelPool, d.nestedPool, d.receivePool} {
		for range o.Workers {
			p.Go("", func(t *node.Thread) { d.work(t, pool) })
		}
	}
	d.register(p.Main())
	p.Go("", d.holder)
	p.Go("", node.Tick)
	if err := forwarded.Listen(p, Forwarded, d.service); err != nil {
		return err
	}
	return mswitch.Listen(p, Queue, d.call)
}

// service is what another host's xenopsd asks for, on the socket on which it asked
// xapi. What it sends of a domain's memory is taken.
func (d *daemon) service(t *node.Thread, r forwarded.Request, fd int) error {
	t.Tag = r.Method + " " + r.URI
	t.Log(node.Debug, "xenops_server", "%s %s", r.Method, r.URI)
	if r.Method == "PUT" {
		if err := sys.ReadFull(fd, make([]byte, MigrationBytes)); err != nil {
			return err
		}
		d.store.get("domain/migration")
	}
	return forwarded.Answer(fd, "text/plain", "done")
}

// MigrationBytes is how much a caller of PUT /services/xenops/… sends.
const MigrationBytes = 100_000

// client is made by the first thread that needs it, as in xenopsd.
func (d *daemon) client() (*mswitch.Client, error) {
	d.clientMu.Lock()
	defer d.clientMu.Unlock()
	if d.mux == nil {
		c, err := mswitch.NewClient(d.p)
		if err != nil {
			return nil, err
		}
		d.mux = c
	}
	return d.mux, nil
}

// register tells of all that the store knows: who follows the updates looks at it anew
// (Xenops_server.register_objects).
func (d *daemon) register(t *node.Thread) {
	for _, vm := range d.store.list("VM") {
		if _, ok := d.store.read(vm); !ok {
			continue // removed
		}
		d.signal(t, "Vm", vm)
		for _, dev := range slices.Concat(d.devs.vbds, d.devs.vifs) { // VIFs as VBDs, too: so it does
			d.signal(t, "Vbd", vm+"."+dev)
		}
	}
}

// call is one RPC, on its own thread. Such a thread's tag is the whole debug_info.
func (d *daemon) call(t *node.Thread, method string, p mswitch.Params) (string, error) {
	info := p.DebugInfo()
	tag, c := node.ParseDebugInfo(info)
	t.Trace = c.String()
	t.Tag = info
	if strings.HasPrefix(method, "Observer.") {
		t.Tag = ""
		return d.observe(t, method, info, p), nil
	}
	id := p.String("id")
	debug := func(format string, args ...any) { t.Log(node.Debug, "xenops_server", format, args...) }
	switch method {
	case "VM.exists":
		_, ok := d.store.read(id)
		return strconv.FormatBool(ok), nil
	case "VM.import_metadata":
		return d.importMetadata(t, p.String("metadata"), info, c)
	case "VM.start":
		if _, ok := d.store.read(id); !ok {
			return "", &mswitch.Failure{Parts: []string{"Does_not_exist", "VM", id}}
		}
		return d.enqueue(t, id, info, startOf(id, d.devs, string(p["paused"]) == "true")), nil
	case "VM.unpause":
		return d.enqueue(t, id, info, atomic(atom{name: "VM_unpause", vm: id})), nil
	case "VM.shutdown":
		timeout := string(p["timeout"])
		return d.enqueue(t, id, info, poweroffOf(id, d.devs, timeout != "", timeout)), nil
	case "VM.remove":
		return d.enqueue(t, id, info, atomic(atom{name: "VM_remove", vm: id})), nil
	case "VM.stat":
		t.Tag = tag
		debug("VM.stat %s", id)
		config, ok := d.store.read(id)
		if !ok {
			return "", &mswitch.Failure{Parts: []string{"Does_not_exist", "VM", id}}
		}
		d.store.get("domain/" + id)
		state, domids := d.xen.power(id), ""
		if state != "Halted" {
			domids = strconv.Itoa(d.xen.domid(id))
		}
		return fmt.Sprintf(`[%s,{"numa_node_memory":[],"numa_nodes":0,"numa_optimised":false,"featureset":"","domain_type":"Domain_undefined","nested_virt":false,"nomigrate":false,"hvm":false,"last_start_time":1795350194.942811,"pv_drivers_detected":false,"xsdata_state":{},"guest_agent":{},"uncooperative_balloon_driver":false,"rtc_timeoffset":"","shadow_multiplier_target":1.0,"vcpu_target":1,"memory_limit":0,"memory_actual":0,"memory_target":0,"consoles":[],"domids":[%s],"power_state":%s}]`,
			config, domids, quoted(state)), nil
	case "Task.stat", "TASK.stat":
		tk := d.task(id)
		if tk == nil {
			return "", &mswitch.Failure{Parts: []string{"Does_not_exist", "task", id}}
		}
		return tk.stat(), nil
	case "Task.destroy", "TASK.destroy":
		d.taskMu.Lock()
		delete(d.tasks, id)
		d.taskMu.Unlock()
		return "null", nil
	case "UPDATES.last_id":
		return strconv.FormatInt(d.updates.last(), 10), nil
	case "UPDATES.get":
		timeout := time.Duration(p.Int("timeout")) * time.Second
		if p["timeout"] == nil {
			timeout = math.MaxInt64
		}
		return d.updates.get(p.Int("last_id"), timeout), nil
	case "UPDATES.refresh_vm":
		debug("UPDATES.refresh_vm %s", id)
		d.signal(t, "Vm", id)
		return "null", nil
	case "UPDATES.inject_barrier":
		debug("UPDATES.inject_barrier %s %d", p.String("vm_id"), p.Int("id"))
		d.updates.add("Barrier", strconv.FormatInt(p.Int("id"), 10))
		return "null", nil
	case "UPDATES.remove_barrier":
		debug("UPDATES.remove_barrier %d", p.Int("id"))
		d.updates.removeBarrier(strconv.FormatInt(p.Int("id"), 10))
		return "null", nil
	}
	return "", &mswitch.Failure{Parts: []string{"Unknown_RPC", method}}
}

// enqueue makes a task of the operation and gives its id at once.
func (d *daemon) enqueue(t *node.Thread, vm, info string, op operation) string {
	tk := d.newTask(t, info)
	d.defaultPool.push(t, vm, item{op: op, task: tk})
	return quoted(tk.id)
}

// importMetadata runs on the message's own thread, as a task of its own.
func (d *daemon) importMetadata(t *node.Thread, metadata, info string, c node.Context) (string, error) {
	var md struct {
		VM json.RawMessage `json:"vm"`
	}
	var vm struct {
		ID string `json:"id"`
	}
	if json.Unmarshal([]byte(metadata), &md) != nil || json.Unmarshal(md.VM, &vm) != nil || vm.ID == "" {
		return "", &mswitch.Failure{Parts: []string{"Internal_error", "bad metadata"}}
	}
	tk := d.newTask(t, info)
	op := operation{name: "Atomic", vm: vm.ID, atoms: []atom{{name: "VM_import_metadata", vm: vm.ID, args: "," + metadata}}}
	s := t.Begin("operation", op.Name())
	s.Detail = tk.id
	t.Log(node.Debug, "xenops_server", "Task %s reference %s: %s", tk.id, tk.tag, op.JSON())
	a := t.Begin("atom", "VM_import_metadata")
	t.Log(node.Debug, "xenops_server", "VM.import_metadata: overwriting VM metadata for VM: %s", vm.ID)
	t.Log(node.Debug, "xenops_server", "Platformdata:featureset=")
	t.Log(node.Debug, "xenops_server", "VM.add %s", md.VM)
	d.write(t, "VM/"+vm.ID, "config", string(md.VM))
	d.store.read(vm.ID)
	a.End()
	t.Log(node.Debug, "task_server", "Task %s completed; duration = 0", tk.id)
	s.End()
	d.taskMu.Lock()
	delete(d.tasks, tk.id)
	d.taskMu.Unlock()
	return quoted(vm.ID), nil
}
