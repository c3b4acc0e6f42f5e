//go:build linux

package xenopsd

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/xenserver/dtagent/testenv/config"
	"github.com/xenserver/dtagent/testenv/internal/mswitch"
	"github.com/xenserver/dtagent/testenv/internal/node"
	"github.com/xenserver/dtagent/testenv/internal/sys"
	"github.com/xenserver/dtagent/testenv/truth"
)

// task is one of xenopsd's tasks.
type task struct {
	id     string
	tag    string // log tag, without the trace
	debug  node.Context
	parent string // truth: who asked
	back   bool
	ctime  time.Time

	mu       sync.Mutex
	progress float64
	err      *mswitch.Failure
	took     time.Duration
	ended    bool
	done     chan struct{}
	points   int
}

func (d *daemon) newTask(t *node.Thread, debugInfo string) *task {
	tag, c := node.ParseDebugInfo(debugInfo)
	tk := &task{tag: tag, debug: c, parent: t.Parent, back: t.Background, ctime: time.Now(), done: make(chan struct{})}
	d.taskMu.Lock()
	tk.id = strconv.Itoa(d.nextTask)
	d.nextTask++
	d.tasks[tk.id] = tk
	d.taskMu.Unlock()
	return tk
}

func (d *daemon) task(id string) *task {
	d.taskMu.Lock()
	defer d.taskMu.Unlock()
	return d.tasks[id]
}

// stat is the answer to Task.stat.
func (tk *task) stat() string {
	tk.mu.Lock()
	defer tk.mu.Unlock()
	state := fmt.Sprintf(`["Pending",%s]`, number(tk.progress))
	switch {
	case tk.ended && tk.err != nil:
		b := []byte(`["Failed",[`)
		b = mswitch.Quote(b, tk.err.Parts[0])
		b = append(b, ",["...)
		for i, p := range tk.err.Parts[1:] {
			if i > 0 {
				b = append(b, ',')
			}
			b = mswitch.Quote(b, p)
		}
		state = string(b) + "]]]"
	case tk.ended:
		state = fmt.Sprintf(`["Completed",{"duration":%v}]`, tk.took.Seconds())
	}
	return fmt.Sprintf(`{"cancellable":true,"backtrace":"()","debug_info":{"cancel_points_seen":"%d"},"subtasks":{},"state":%s,"ctime":%f,"dbg":%s,"id":%s}`,
		tk.points, state, float64(tk.ctime.UnixMicro())/1e6, quoted(tk.tag), quoted(tk.id))
}

// number is a float as OCaml prints it: with a point.
func number(f float64) string {
	s := strconv.FormatFloat(f, 'g', -1, 64)
	if !strings.ContainsAny(s, ".e") {
		s += ".0"
	}
	return s
}

// run does one task on this worker.
func (d *daemon) run(t *node.Thread, it item) {
	tk := it.task
	t.Tag, t.Parent, t.Background = tk.tag, tk.parent, tk.back
	s := t.Begin(truth.Operation, it.op.Name())
	s.Detail = tk.id
	t.Log(node.Debug, "xenops_server", "Task %s reference %s: %s", tk.id, tk.tag, it.op.JSON())
	root := t.NewSpanIf(tk.debug)
	start := time.Now()
	err := d.perform(t, tk, it.op, root)
	tk.mu.Lock()
	tk.took = time.Since(start)
	tk.err = err
	tk.ended = true
	tk.mu.Unlock()
	t.Trace = tk.debug.String()
	if err == nil {
		t.Log(node.Debug, "task_server", "Task %s completed; duration = %d", tk.id, int(tk.took.Seconds()))
	} else {
		s.Err = err.Parts[0]
		t.Log(node.Error, "task_server", "Task %s failed; %s", tk.id, err.Error())
	}
	s.End()
	t.Tag = ""
	d.signalTask(t, tk)
	close(tk.done)
}

// signalTask tells the world that a task has changed.
func (d *daemon) signalTask(t *node.Thread, tk *task) {
	tk.mu.Lock()
	state := fmt.Sprintf(`["Pending",%s]`, number(tk.progress))
	switch {
	case tk.ended && tk.err != nil:
		state = fmt.Sprintf(`["Failed",[%s]]`, quoted(tk.err.Parts[0]))
	case tk.ended:
		state = fmt.Sprintf(`["Completed",{"duration":%v}]`, tk.took.Seconds())
	}
	tk.mu.Unlock()
	t.Log(node.Debug, "xenops_server", "TASK.signal %s = %s", tk.id, state)
	d.updates.add("Task", tk.id)
}

// perform does an operation: its atoms in turn, with progress, or the one atom.
func (d *daemon) perform(t *node.Thread, tk *task, op operation, root node.Context) *mswitch.Failure {
	if op.name == "Atomic" {
		return d.atom(t, tk, op.atoms[0], root, nothing)
	}
	t.Trace = tk.debug.String()
	switch op.name {
	case "VM_start":
		t.Log(node.Debug, "xenops_server", "VM.start %s (force=%s)", op.vm, op.args)
	case "VM_poweroff":
		t.Log(node.Debug, "xenops_server", "VM.poweroff %s", op.vm)
	}
	d.store.read(op.vm)
	for i, a := range op.atoms {
		t.Trace = root.String()
		if i == 0 {
			t.Trace = tk.debug.String()
		}
		begun := func() { t.Log(node.Debug, "xenops_server", "Performing: %s", a.JSON()) }
		if err := d.atom(t, tk, a, root, begun); err != nil {
			if op.name == "VM_start" { // cleaning up what has been made, as xenopsd does
				t.Trace = root.String()
				t.Log(node.Error, "xenops_server", "VM_start %s failed: %s; cleaning up", op.vm, err.Error())
				d.atom(t, tk, atom{name: "VM_destroy", vm: op.vm}, root, nothing)
			}
			return err
		}
		tk.mu.Lock()
		tk.progress = float64(i+1) / float64(len(op.atoms))
		tk.points++
		tk.mu.Unlock()
		t.Trace = root.String()
		d.signalTask(t, tk)
	}
	d.signal(t, "Vm", op.vm)
	return nil
}

// signal tells the world that a VM or a device of it has changed.
func (d *daemon) signal(t *node.Thread, kind, id string) {
	t.Log(node.Debug, "xenops_server", "%s_DB.signal %s", strings.ToUpper(kind), id)
	d.updates.add(kind, id)
}

// nothing is logged when an atom inside another one begins.
func nothing() {}

// atom does one atom on this thread. begun logs its beginning.
func (d *daemon) atom(t *node.Thread, tk *task, a atom, parent node.Context, begun func()) (failure *mswitch.Failure) {
	s := t.Begin(truth.Atom, a.Name())
	begun()
	defer func() {
		if failure != nil {
			s.Err = failure.Parts[0]
		}
		s.End()
	}()
	own := t.NewSpanIf(parent)
	k := t.P.Knobs()
	if d, ok := k.AtomTime[a.name]; ok {
		sys.Sleep(d)
	} else if a.subs == nil {
		sys.Sleep(k.AtomTime["*"])
	}
	for _, way := range slices.Sorted(maps.Keys(k.Wait[a.name])) {
		if err := t.Block(way, k.Wait[a.name][way]); err != nil {
			return &mswitch.Failure{Parts: []string{"INTERNAL_ERROR", err.Error()}}
		}
	}
	if code := k.Fail[a.name]; code != "" {
		return &mswitch.Failure{Parts: []string{code, a.vm}}
	}
	t.Trace = tk.debug.String()
	switch a.name {
	case "Parallel", "Nested_parallel":
		return d.parallel(t, tk, a, own)
	case "Serial":
		id := fmt.Sprintf("Serial:task=%s.atoms=%d.(%s)", tk.id, len(a.subs), a.text)
		t.Log(node.Debug, "xenops_server", "begin_%s", id)
		for _, sub := range a.subs {
			if err := d.atom(t, tk, sub, own, nothing); err != nil {
				return err
			}
		}
		t.Log(node.Debug, "xenops_server", "end_%s", id)
		return nil
	case "Best_effort":
		if err := d.atom(t, tk, a.subs[0], own, nothing); err != nil {
			t.Log(node.Debug, "xenops_server", "Ignoring error during best-effort operation: %s", err.Error())
		}
		return nil
	}
	return d.simple(t, tk, a, own)
}

// chunk is how many atoms of a Parallel run at once.
const chunk = 10

// parallel gives the atoms to the workers of another pool and waits for them.
func (d *daemon) parallel(t *node.Thread, tk *task, a atom, own node.Context) *mswitch.Failure {
	p, child := d.parallelPool, "Parallel"
	if a.name == "Nested_parallel" {
		p, child = d.nestedPool, "Nested_parallel"
	}
	id := fmt.Sprintf("%s:task=%s.atoms=%d.(%s)", child, tk.id, len(a.subs), a.text)
	t.Log(node.Debug, "xenops_server", "begin_%s", id)
	var failure *mswitch.Failure
	for n, rest := 0, a.subs; len(rest) > 0 && failure == nil; n++ {
		now := rest[:min(chunk, len(rest))]
		rest = rest[len(now):]
		t.Log(node.Debug, "xenops_server", "queue_atomics_and_wait: %s: chunk of %d atoms", id, len(now))
		var tasks []*task
		for i, sub := range now {
			c := d.newTask(t, t.P.DebugInfo(id, own))
			p.push(t, fmt.Sprintf("%s.chunk=%d.atom=%d", id, n, i), item{op: atomic(sub), task: c})
			tasks = append(tasks, c)
		}
		for _, c := range tasks {
			<-c.done
			if c.err != nil {
				failure = c.err
			}
			d.taskMu.Lock()
			delete(d.tasks, c.id)
			d.taskMu.Unlock()
		}
	}
	t.Trace = tk.debug.String()
	t.Log(node.Debug, "xenops_server", "end_%s", id)
	return failure
}

// simple does an atom that is none of the compounds.
func (d *daemon) simple(t *node.Thread, tk *task, a atom, own node.Context) *mswitch.Failure {
	debug := func(format string, args ...any) { t.Log(node.Debug, "xenops_server", format, args...) }
	switch a.name {
	case "VM_hook_script":
	case "VM_create":
		debug("VM.create %s memory_upper_bound = None, memory_total_source = None, num_of_vbds = %d, num_of_vifs = %d", a.vm, len(d.devs.vbds), len(d.devs.vifs))
		d.store.read(a.vm)
		reservation, err := d.reserve(t, tk)
		if err != nil {
			return err
		}
		debug("using domid %d", d.xen.create(a.vm))
		if err := d.transfer(t, tk, reservation, d.xen.domid(a.vm)); err != nil {
			return err
		}
		d.xen.set(a.vm, "Paused")
		d.write(t, "domain", a.vm, domainJSON(a.vm, d.xen.domid(a.vm)))
	case "VM_build":
		debug("VM.build %s", a.vm)
		d.domainLock(t)
		if err := d.xenguest(t, a.vm); err != nil {
			return &mswitch.Failure{Parts: []string{"Domain_build_failed", err.Error()}}
		}
		d.write(t, "domain", a.vm, domainJSON(a.vm, d.xen.domid(a.vm)))
	case "VM_create_device_model":
		debug("VM.create_device_model %s", a.vm)
		d.write(t, "domain", a.vm, domainJSON(a.vm, d.xen.domid(a.vm)))
	case "VM_set_domain_action_request":
		debug("VM.set_domain_action_request %s None", a.vm)
		d.store.read(a.vm)
	case "VM_unpause":
		debug("VM.unpause %s", a.vm)
		d.store.read(a.vm)
		if d.xen.power(a.vm) != "Paused" {
			t.Log(node.Info, "xenops_server", "VM %s is not paused", a.vm)
			break
		}
		d.xen.set(a.vm, "Running")
		d.signal(t, "Vm", a.vm)
	case "VM_pause":
		debug("VM.pause %s", a.vm)
		d.write(t, "domain", a.vm, domainJSON(a.vm, d.xen.domid(a.vm)))
		d.signal(t, "Vm", a.vm)
	case "VM_shutdown_domain":
		timeout, _ := strconv.ParseFloat(strings.TrimPrefix(a.args, `,["Halt"],`), 64) // of our own making
		debug("VM.shutdown_domain %s, reason = Halt, timeout = %f, ack timeout = 60.000000", a.vm, timeout)
	case "VM_destroy_device_model":
		debug("VM.destroy_device_model %s", a.vm)
		d.write(t, "domain", a.vm, domainJSON(a.vm, d.xen.domid(a.vm)))
	case "VM_destroy":
		debug("VM.destroy %s", a.vm)
		d.store.remove("domain", a.vm)
		d.xen.set(a.vm, "Halted")
	case "VM_remove":
		debug("VM.remove %s", a.vm)
		d.store.remove("VM/"+a.vm, "config")
	case "VBD_set_active":
		debug("VBD.set_active %s.%s true", a.vm, a.dev)
		d.signal(t, "Vbd", a.vm+"."+a.dev)
	case "VBD_plug":
		debug("VBD.plug %s.%s", a.vm, a.dev)
		for _, m := range []string{"VDI.attach3", "VDI.activate3"} {
			if err := d.storage(t, tk, m, a, own); err != nil {
				return err
			}
		}
		d.signal(t, "Vbd", a.vm+"."+a.dev)
	case "VBD_unplug":
		debug("VBD.unplug %s.%s", a.vm, a.dev)
		for _, m := range []string{"VDI.deactivate", "VDI.detach"} {
			if err := d.storage(t, tk, m, a, own); err != nil {
				return err
			}
		}
		d.signal(t, "Vbd", a.vm+"."+a.dev)
	case "VIF_set_active":
		debug("VIF.set_active %s.%s true", a.vm, a.dev)
		d.signal(t, "Vif", a.vm+"."+a.dev)
	case "VIF_plug":
		debug("VIF.plug %s.%s", a.vm, a.dev)
		d.signal(t, "Vif", a.vm+"."+a.dev)
	case "VIF_unplug":
		debug("VIF.unplug %s.%s", a.vm, a.dev)
		d.signal(t, "Vif", a.vm+"."+a.dev)
	}
	return nil
}

// domainLock is taken while a domain is built. With a delay set, another thread
// has it first for that long.
func (d *daemon) domainLock(t *node.Thread) {
	if hold := t.P.Knobs().Delay[config.LayerLock]; hold > 0 {
		d.hold <- hold
		<-d.held
		s := t.Begin(truth.Delay, string(config.LayerLock))
		d.lock.Lock()
		s.End()
	} else {
		d.lock.Lock()
	}
	d.lock.Unlock()
}

// holder is the thread that holds the domain lock when told so.
func (d *daemon) holder(*node.Thread) {
	for long := range d.hold {
		d.lock.Lock()
		d.held <- struct{}{}
		sys.Sleep(long)
		d.lock.Unlock()
	}
}

// xenguest builds the domain in a process of its own and gives it orders over pipes.
func (d *daemon) xenguest(t *node.Thread, vm string) error {
	out, err := t.Run(node.Child{
		Path:      "/usr/libexec/xen/bin/xenguest",
		Args:      []string{"-controloutfd", "1", "-controlinfd", "0", "-debuglog", "/tmp/xenguest." + strconv.Itoa(d.xen.domid(vm)) + ".log", "-mode", "hvm_build", "-domid", strconv.Itoa(d.xen.domid(vm))},
		Component: t.P.Component,
		Env:       []string{node.DelayEnv(t.P.Knobs().Delay[config.LayerXenguest])},
		Input:     []byte("result\n"),
	})
	if err != nil {
		return err
	}
	if !strings.HasPrefix(string(out), "result:") {
		return fmt.Errorf("xenguest says %.100q", out)
	}
	t.Log(node.Debug, "xenguesthelper", "Message from xenguest: %s", strings.TrimSpace(string(out)))
	return nil
}

// storage calls the storage mux in xapi.
func (d *daemon) storage(t *node.Thread, tk *task, method string, a atom, own node.Context) *mswitch.Failure {
	c, err := d.client()
	if err != nil {
		return &mswitch.Failure{Parts: []string{"Internal_error", err.Error()}}
	}
	params := fmt.Sprintf(`"vm":%s,"vdi":%s,"sr":%s,"dp":%s,"dbg":%s}`, quoted(strconv.Itoa(d.xen.domid(a.vm))), quoted(config.VDI(a.vm, a.dev)), quoted(config.SR),
		quoted("vbd/"+strconv.Itoa(d.xen.domid(a.vm))+"/"+a.dev), quoted(t.P.DebugInfo(tk.tag, own)))
	if method == "VDI.attach3" {
		params = `{"read_write":true,` + params
	} else {
		params = "{" + params
	}
	if _, err := c.Call(t, "org.xen.xapi.storage", method, params); err != nil {
		var f *mswitch.Failure
		if errors.As(err, &f) && len(f.Parts) > 1 && f.Parts[0] == "Backend_error" {
			return &mswitch.Failure{Parts: append([]string{"Storage_backend_error"}, f.Parts[1:]...)}
		}
		return &mswitch.Failure{Parts: []string{"Internal_error", err.Error()}}
	}
	return nil
}
