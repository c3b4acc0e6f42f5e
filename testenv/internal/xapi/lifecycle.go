//go:build linux

package xapi

import (
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"strings"

	"github.com/xenserver/dtagent/testenv/config"
	"github.com/xenserver/dtagent/testenv/internal/mswitch"
	"github.com/xenserver/dtagent/testenv/internal/node"
	"github.com/xenserver/dtagent/testenv/internal/xenopsd"
)

// work is a task in its thread, with its native span.
type work struct {
	x    *xapi
	t    *node.Thread
	span node.Context
	tag  string
	row  string // the task's reference
	ref  string // the same as in log tags

	session string
}

// long does a long call.
func (x *xapi) long(t *node.Thread, method string, params []any, span node.Context, row, ref string) (any, *failure) {
	w := &work{x: x, t: t, span: span, tag: t.Tag, row: row, ref: ref, session: str(params, 0)}
	if observes(method) {
		return w.observe(method, params)
	}
	v := x.db.byRef(str(params, 1))
	if v == nil {
		return nil, fail("HANDLE_INVALID", "VM", str(params, 1))
	}
	want := map[string]string{"VM.start": "Halted", "VM.start_on": "Halted", "VM.unpause": "Paused", "VM.clean_shutdown": "Running", "VM.hard_shutdown": "Running", "VM.shutdown": "Running"}[method]
	host := x.pool.host(x.db)
	var f *failure
	if x.pool.coordinates() { // a member does what it is told: the coordinator has the locks
		if host, f = x.place(method, v, params); f != nil {
			return nil, f
		}
		on := ""
		if method == "VM.start_on" {
			on = fmt.Sprintf("; host '%s (%s)'", host.UUID, host.Name)
		}
		t.Log(node.Debug, "audit", "%s: VM = '%s (%s)'%s", method, v.UUID, v.Name, on)
		if f := x.db.begin(v, ref, want); f != nil {
			t.Log(node.Error, "xapi_vm_lifecycle", "VM %s cannot be changed: %s", v.UUID, f.code)
			return nil, f
		}
		defer x.db.end(v)
		t.Log(node.Debug, "redo_log", "WriteField(VM, %s, current_operations, (), (('%s' '%s')))", v.Ref, ref, method)
		if method == "VM.start" || method == "VM.start_on" {
			w.reserve(v, host)
		}
	}
	if host.Ref == x.db.hostRef {
		f = w.here(method, v)
	} else {
		f = w.forward(host, method, params)
	}
	status := "OK"
	if f != nil {
		status = "ERROR:" + f.code
	}
	w.t.Tag = w.tag
	t.Trace = ""
	t.Audit("('trackid=%s' 'LOCAL_SUPERUSER' 'root' 'ALLOWED' '%s' 'API' '%s' (('vm' '%s' '%s' '%s')%s))", trackID(str(params, 0)), status, method, v.Name, v.UUID, v.Ref, audited(method, host))
	t.Log(node.Debug, "redo_log", "WriteField(task, %s, status, pending, success)", ref)
	return "", f
}

// here does a long call on this host.
func (w *work) here(method string, v *vm) *failure {
	switch method {
	case "VM.start", "VM.start_on":
		return w.start(v)
	case "VM.unpause":
		return w.sync(v, "VM.unpause", "")
	case "VM.clean_shutdown":
		return w.shutdown(v, "1200.")
	case "VM.hard_shutdown":
		return w.shutdown(v, "")
	}
	f := w.shutdown(v, "60.") // VM.shutdown
	if f != nil {
		w.t.Log(node.Debug, "xapi_vm", "clean_shutdown failed; attempting hard_shutdown")
		f = w.shutdown(v, "")
	}
	return f
}

// audited are the further parameters of a call in the audit log.
func audited(method string, h config.Host) string {
	const flags = " ('start_paused' 'B(false)' '' '') ('force' 'B(false)' '' '')"
	switch method {
	case "VM.start":
		return flags
	case "VM.start_on":
		return fmt.Sprintf(" ('host' '%s' '%s' '%s')", h.Name, h.UUID, h.Ref) + flags
	}
	return ""
}

func (w *work) debug(module, format string, args ...any) {
	w.t.Log(node.Debug, module, format, args...)
}

// rpc calls xenopsd under a span below parent. members stand before debug_info,
// each with a comma behind it.
func (w *work) rpc(parent node.Context, method, members string) (json.RawMessage, *failure) {
	defer func() { w.t.Trace = parent.String() }()
	return w.rpcIn(w.t.NewSpanIf(parent), method, members)
}

// rpcIn is rpc in a span that is there already.
func (w *work) rpcIn(own node.Context, method, members string) (json.RawMessage, *failure) {
	params := "{" + members + `"debug_info":` + mswitch.Quoted(w.t.P.DebugInfo(w.tag, own)) + "}"
	got, err := w.x.client.Call(w.t, xenopsd.Queue, method, params)
	if err != nil {
		var f *mswitch.Failure
		if errors.As(err, &f) {
			return nil, translated(f.Parts[0], f.Parts[1:])
		}
		return nil, fail("INTERNAL_ERROR", err.Error())
	}
	return got, nil
}

func id(s string) string { return `"id":` + mswitch.Quoted(s) + "," }

// reserve makes room for v on the host that it is to run on.
func (w *work) reserve(v *vm, h config.Host) {
	w.t.Trace = "" // writing to the database has cleared it
	w.debug("xapi_vm_helpers", "Checking whether VM %s can run on host %s", v.Ref, h.Ref)
	w.debug("xapi_vm_helpers", "host %s; available_memory = 7503609856; memory_required = 71303168", h.Name)
	w.debug("xapi_vm_helpers", "All fine, VM %s can run on host %s!", v.Ref, h.Ref)
	w.debug("audit", "Reserve resources for VM %s on host %s", v.Ref, h.Ref)
	w.debug("redo_log", "WriteField(host, %s, current_operations, (), (('%s' 'vm_start')))", h.Ref, w.ref)
}

// start is VM.start in the order in which xapi has been seen to do it.
func (w *work) start(v *vm) *failure {
	t := w.t
	w.debug("vgpuops", "vGPUs allocated to VM (%s) are: ", v.Ref)

	if f := w.bridge(); f != nil {
		return f
	}
	outer := t.NewSpanIf(w.span)
	if _, f := w.rpc(outer, "VM.exists", id(v.UUID)); f != nil {
		return f
	}
	w.debug("xenops", "Sending VM %s configuration to xenopsd", v.Ref)
	md := metadata(v, w.x.p.Setup.Options.Disks, w.x.p.Setup.Options.NICs)
	inner := t.NewSpanIf(outer)
	t.Log(node.Info, "xenops", "xenops: VM.import_metadata %s", md)
	if _, f := w.rpc(inner, "VM.import_metadata", `"metadata":`+mswitch.Quoted(md)+","); f != nil {
		return f
	}
	w.debug("xenops", "xapi_cache: creating cache for %s", v.UUID)
	w.debug("xenops", "xenops_cache: creating empty cache for %s", v.UUID)
	t.Trace = outer.String()
	t.Log(node.Info, "xenops", "xenops: VM.start %s", v.UUID)
	start, f := w.rpc(outer, "VM.start", `"paused":false,`+id(v.UUID))
	if f != nil {
		return f
	}
	t.Log(node.Info, "xenops", "xenops: Queueing VM.unpause %s", v.UUID)
	unpause, f := w.rpc(outer, "VM.unpause", id(v.UUID))
	if f != nil {
		return f
	}
	failed := w.wait(outer, text(start))
	if f := w.wait(outer, text(unpause)); failed == nil {
		failed = f
	}
	if failed != nil {
		return failed
	}
	w.debug("xenops", "VM %s set_resident_on", v.UUID)
	if w.x.pool.coordinates() {
		w.internal(outer, v)
	} else if f := w.residentOn(outer, v); f != nil {
		return f
	}
	w.debug("xenops", "Signalling xenapi event thread to re-register, and xenopsd events to sync")
	t.Log(node.Info, "xenops", "xenops: UPDATES.refresh_vm %s", v.UUID)
	return w.settle(outer, v, true)
}

// internal are calls that xapi makes to itself in this thread: their log lines have
// other tags and other traces.
func (w *work) internal(outer node.Context, v *vm) {
	t := w.t
	session := "OpaqueRef:" + uuid()
	t.NewSpanIf(outer)
	d := newRef("D")
	w.debug("dummytaskhelper", "task dispatch:session.slave_login %s created by task %s", d, w.ref)
	t.Tag = "session.slave_login " + newRef("D")
	t.NewSpan(node.Context{})
	t.Log(node.Info, "xapi_session", "Session.create trackid=%s pool=true uname= originator=xapi is_local_superuser=true auth_user_sid= parent=trackid=9834f5af41c964e225f24279aefe4e49", trackID(session))
	t.Tag = w.tag
	t.NewSpanIf(outer)
	d = newRef("D")
	w.debug("dummytaskhelper", "task dispatch:VM.atomic_set_resident_on %s created by task %s", d, w.ref)
	sub := newRef("R")
	t.Tag = "dispatch:VM.atomic_set_resident_on " + d
	t.Trace = ""
	t.Log(node.Info, "taskhelper", "task VM.atomic_set_resident_on %s (uuid:%s) created (trackid=%s) by task %s", sub, uuid(), trackID(session), w.ref)
	t.Tag = "VM.atomic_set_resident_on " + sub
	t.NewSpan(node.Context{})
	w.debug("audit", "VM.atomic_set_resident_on: VM = '%s (%s)'", v.UUID, v.Name)
	w.debug("redo_log", "WriteField(VM, %s, resident_on, OpaqueRef:NULL, %s)", v.Ref, w.x.db.hostRef)
	w.x.db.setResident(v, w.x.db.hostRef)
	t.Tag = w.tag
	t.NewSpanIf(outer)
	w.debug("dummytaskhelper", "task dispatch:session.logout %s created by task %s", newRef("D"), w.ref)
	t.Tag = "session.logout " + newRef("D")
	t.NewSpan(node.Context{})
	t.Log(node.Info, "xapi_session", "Session.destroy trackid=%s", trackID(session))
	t.Tag = w.tag
	t.Trace = outer.String()
}

// text is a JSON string's value.
func text(j json.RawMessage) string {
	var s string
	_ = json.Unmarshal(j, &s) // xenopsd answers strings here
	return s
}

// wait waits for a task of xenopsd by its updates, asks how it went, and removes it.
// It asks about the task only when an update names it: one that a restart of xenopsd
// has ended is waited for until the new one has a task of that number.
func (w *work) wait(parent node.Context, task string) *failure {
	deeper := w.t.NewSpanIf(w.t.NewSpanIf(parent))
	last, f := w.rpc(deeper, "UPDATES.last_id", "")
	if f != nil {
		return f
	}
	from := string(last)
	st, f := w.stat(deeper, task)
	for f == nil && !st.done {
		var named bool
		if from, named, f = w.told(deeper, from, task); f == nil && named {
			st, f = w.stat(deeper, task)
		}
	}
	if f != nil {
		return f
	}
	deep := w.t.NewSpanIf(parent)
	w.debug("redo_log", "WriteField(task, %s, allowed_operations, ('cancel'), ())", w.ref)
	if st, f = w.stat(deep, task); f != nil {
		return f
	}
	if _, f := w.rpc(deep, "Task.destroy", id(task)); f != nil {
		return f
	}
	if st.failed != nil {
		w.t.Log(node.Error, "xenops", "Re-raising as %s [ %s ]", st.failed.code, strings.Join(st.failed.params, "; "))
	}
	return st.failed
}

// told waits for updates behind from, for 30 s at most. It returns where they end and
// whether one is of the task.
func (w *work) told(parent node.Context, from, task string) (next string, named bool, f *failure) {
	got, f := w.rpc(parent, "UPDATES.get", `"timeout":30,"last_id":`+from+",")
	if f != nil {
		return from, false, f
	}
	var u []json.RawMessage
	if json.Unmarshal(got, &u) != nil || len(u) != 3 {
		return from, false, fail("INTERNAL_ERROR", "UPDATES.get")
	}
	var changes [][]json.RawMessage
	_ = json.Unmarshal(u[1], &changes) // xenopsd is ours: it is of this form
	for _, c := range changes {
		named = named || len(c) == 2 && text(c[0]) == "Task" && text(c[1]) == task
	}
	return string(u[2]), named, nil
}

type status struct {
	done   bool
	failed *failure
}

func (w *work) stat(parent node.Context, task string) (status, *failure) {
	got, f := w.rpc(parent, "Task.stat", id(task))
	if f != nil {
		return status{}, f
	}
	var r struct {
		State []json.RawMessage `json:"state"`
	}
	if err := json.Unmarshal(got, &r); err != nil || len(r.State) != 2 {
		return status{}, fail("INTERNAL_ERROR", "Task.stat")
	}
	switch text(r.State[0]) {
	case "Completed":
		return status{done: true}, nil
	case "Failed":
		var e []json.RawMessage
		var params []string
		if json.Unmarshal(r.State[1], &e) == nil && len(e) == 2 {
			_ = json.Unmarshal(e[1], &params) // without parameters it is the code alone
			return status{done: true, failed: translated(text(e[0]), params)}, nil
		}
		return status{done: true, failed: fail("INTERNAL_ERROR", "Task failed")}, nil
	}
	return status{}, nil
}

// translated is xenopsd's error as XAPI's.
func translated(code string, params []string) *failure {
	switch {
	case code == "Storage_backend_error" && len(params) > 0:
		return fail(params[0], params[1:]...)
	case code == "Does_not_exist" && len(params) == 2:
		return fail("HANDLE_INVALID", params...)
	}
	return fail("INTERNAL_ERROR", "xenopsd internal error: "+strings.Join(append([]string{code}, params...), " "))
}

// settle waits until xapi's event thread has taken all that xenopsd has told so
// far.
func (w *work) settle(outer node.Context, v *vm, refresh bool) *failure {
	deep := w.t.NewSpanIf(outer)
	if refresh {
		if _, f := w.rpc(deep, "UPDATES.refresh_vm", id(v.UUID)); f != nil {
			return f
		}
	}
	n, passed := w.x.events.barrier()
	w.debug("xenops", "Client.UPDATES.inject_barrier %d", n)
	if _, f := w.rpc(deep, "UPDATES.inject_barrier", `"id":`+strconv.FormatInt(n, 10)+`,"vm_id":`+mswitch.Quoted(v.UUID)+","); f != nil {
		return f
	}
	<-passed
	if refresh {
		w.debug("xenops", "triggering xapi event thread to re-register via event injection")
		if _, f := w.rpc(deep, "VM.exists", id(v.UUID)); f != nil {
			return f
		}
		w.debug("xenops", "xapi_cache: not updating cache for %s", v.UUID)
	}
	return nil
}

// sync is a call to xenopsd that is one task.
func (w *work) sync(v *vm, method, members string) *failure {
	outer := w.t.NewSpanIf(w.span)
	w.t.Log(node.Info, "xenops", "xenops: %s %s", method, v.UUID)
	got, f := w.rpc(outer, method, members+id(v.UUID))
	if f != nil {
		return f
	}
	if f := w.wait(outer, text(got)); f != nil {
		return f
	}
	return w.settle(outer, v, false)
}

func (w *work) shutdown(v *vm, timeout string) *failure {
	members := ""
	if timeout != "" {
		members = `"timeout":` + timeout + "0,"
		w.debug("xapi_vm", "Setting ha_always_run on vm=%s as false during VM.clean_shutdown", v.Ref)
	} else {
		w.debug("xapi_vm", "Setting ha_always_run on vm=%s as false during VM.hard_shutdown", v.Ref)
	}
	return w.sync(v, "VM.shutdown", members)
}

// metadata is what xenopsd is told of a VM: kilobytes, before debug_info comes.
func metadata(v *vm, disks, nics int) string {
	var vbds, vifs []string
	for i := range disks {
		vbds = append(vbds, fmt.Sprintf(`{"persistent":true,"qos":[],"extra_private_keys":{},"extra_backend_keys":{"polling-duration":"1000","polling-idle-threshold":"50"},"unpluggable":true,"ty":["Disk"],"backend":["VDI","%s/%s"],"mode":["ReadWrite"],"position":[%d,%d,%d],"id":[%q,"xvd%c"]}`,
			"5c1a8d0e-7b7c-4f6e-9a53-2d6c1f0e8b11", v.UUID, i, 0, 0, v.UUID, 'a'+i%26))
	}
	for i := range nics {
		vifs = append(vifs, fmt.Sprintf(`{"static_ip_setting":{},"vlan":null,"ipv6_configuration":["Unspecified6"],"ipv4_configuration":["Unspecified4"],"extra_private_keys":{"vif-uuid":%q},"locking_mode":["Unlocked"],"other_config":{},"mtu":1500,"rate":null,"backend":["Local","xenbr%d"],"carrier":true,"mac":"fe:ff:ff:00:00:%02x","position":%d,"id":[%q,"%d"]}`,
			v.UUID, i, i, i, v.UUID, i))
	}
	return `{"vusbs":[],"vgpus":[],"pcis":[],"vifs":[` + strings.Join(vifs, ",") + `],"vbds":[` + strings.Join(vbds, ",") +
		`],"vm":{"generation_id":"","has_vendor_device":false,"pci_power_mgmt":false,"pci_msitranslate":true,"on_softreboot":["Softreboot"],"on_reboot":["Start"],"on_shutdown":["Shutdown"],"on_crash":["Start"],"scheduler_params":{"affinity":[],"priority":[256,0]},"vcpus":1,"vcpu_max":1,"memory_dynamic_min":67108864,"memory_dynamic_max":67108864,"memory_static_max":67108864,"suppress_spurious_page_faults":false,"ty":["PV",{"pci_passthrough":false,"vncterm":true,"framebuffer":false,"boot":["Direct",{"cmdline":"","kernel":"/var/lib/xcp/guest/vmlinuz"}]}],"bios_strings":{"bios-vendor":"Xen","bios-version":"","system-manufacturer":"Xen","system-product-name":"HVM domU","system-version":"","system-serial-number":"","baseboard-manufacturer":"","baseboard-product-name":"","baseboard-version":"","baseboard-serial-number":"","baseboard-asset-tag":"","baseboard-location-in-chassis":"","enclosure-asset-tag":"","hp-rombios":"","oem-1":"Xen","oem-2":"MS_VM_CERT/SHA1/bdbeb6e0a816d43fa6d3fe8aaef04c2bad9d3e3d"},"platformdata":{"featureset":"","timeoffset":"0","usb":"true","usb_tablet":"true"},"xsdata":{},"ssidref":0,"name":` +
		mswitch.Quoted(v.Name) + `,"id":` + mswitch.Quoted(v.UUID) + "}}"
}
