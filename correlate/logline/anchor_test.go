package logline

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"

	"github.com/go-quicktest/qt"
)

const vm = "91b928e6-5e4c-9f1a-6147-fb162417c0e0"

func showAnchor(a *Anchor) string {
	s := a.Kind.String()
	if a.Label != nil || !a.Task.IsZero() {
		s += fmt.Sprintf(" %q %v", a.Label, a.Task)
	}
	if !a.Parent.IsZero() {
		s += fmt.Sprintf(" by %v", a.Parent)
	}
	switch a.Kind {
	case TaskStarted, TaskCompleted, TaskFailed:
		s += fmt.Sprintf(" #%d", a.Xenops)
	}
	if a.Operation != nil {
		name, whole := AppendName(nil, a.Operation)
		s += fmt.Sprintf(" <%s>", name)
		if !whole {
			s += " cut"
		}
	}
	if a.Queue != nil {
		s += fmt.Sprintf(" onto %s", a.Queue)
	}
	if a.Reason != nil {
		s += fmt.Sprintf(" reason=%s", a.Reason)
	}
	return s
}

func TestAnchor(t *testing.T) {
	line := `<175>Nov 22 12:22:29 x: [debug||48 /var/lib/xcp/xapi|dispatch:VM.hard_shutdown D:7ab1429931df|m] `
	for _, test := range []struct{ message, want string }{
		{`spawning a new thread to handle the current task (trackid=721309ea2ada41370c7209aed3a1d1cc)`, `async thread "dispatch:VM.hard_shutdown" D:7ab1429931df`},
		{`spawning a new thread to handle the current task`, `async thread "dispatch:VM.hard_shutdown" D:7ab1429931df`},
		{`task VM.atomic_set_resident_on R:6359c88e9a26 (uuid:300a6960-a3ec-6698-65a9-1f1362246299) created (trackid=b259d6d3fedb3b16caee121997b3697e) by task R:454f085a09b2`, `task created "VM.atomic_set_resident_on" R:6359c88e9a26 by R:454f085a09b2`},
		{`task dispatch:pool.get_all D:8fa4a95c3ba7 created by task D:00e1935f9bef`, `task created "dispatch:pool.get_all" D:8fa4a95c3ba7 by D:00e1935f9bef`},
		{`task my created tag R:8fa4a95c3ba7 created by task D:00e1935f9bef`, `task created "my created tag" R:8fa4a95c3ba7 by D:00e1935f9bef`},
		{`task Async.VM.start R:8ae06e1ea3d1 forwarded (trackid=b259d6d3fedb3b16caee121997b3697e)`, `task forwarded "Async.VM.start" R:8ae06e1ea3d1`},
		{`task Async.VM.start R:8ae06e1ea3d1 forwarded`, `task forwarded "Async.VM.start" R:8ae06e1ea3d1`},
		{`task x R:8ae06e1ea3d1 created by`, ``},
		{`task x R:8ae06e1ea3d1 created by task R:8ae06e1ea3d1 and more`, ``},
		{`task x R:8ae06e1ea3d1 forwarded (trackid=1) and more`, ``},
		{`spawning a new thread to handle the current task and more`, ``},
		{`spawning a new thread to handle the current task (trackid=`, ``},
		{`task x was forwarded to nobody`, ``},
		{`Queue.push ["VM_start",["` + vm + `",false]] onto ` + vm + `:[  ]`, `queue push <VM_start> onto ` + vm},
		{`Queue.push ["Atomic",["VM_unpause","` + vm + `"]] onto redirected ` + vm + `:[  ]`, `queue push <Atomic (VM_unpause)> onto ` + vm},
		{`Queue.push ["VM_poweroff",["` + vm + `",[]]] onto aliased ` + vm + `:[ ["VM_start",["` + vm + `",false]] ]`, `queue push <VM_poweroff> onto ` + vm},
		{`Queue.push ["Atomic",["VM_rename",["` + vm + `","a\\"b","c"]]] onto mxgpu:[  ]`, `queue push <Atomic (VM_rename)> onto mxgpu`},
		{`Queue.push ["Atomic",["VBD_plug",["` + vm + `","xvda"]]] onto Parallel:task=12.atoms=3.(x VM=` + vm + `).chunk=0.atom=1:[  ]`, `queue push <Atomic (VBD_plug)> onto Parallel:task=12.atoms=3.(x VM=` + vm + `).chunk=0.atom=1`},
		{`Queue.push ["Atomic",["VM_unp`, `queue push <Atomic (…)> cut`},
		{`Queue.pop returned ["VM_start",["` + vm + `",false]]`, `queue pop <VM_start>`},
		{`Task 51 reference Async.VM.start R:8ae06e1ea3d1: ["VM_start",["` + vm + `",false]]`, `task started "Async.VM.start" R:8ae06e1ea3d1 #51 <VM_start>`},
		{`Task 52 reference Parallel:task=51.atoms=2.(Devices.plug (no qemu) VM=` + vm + `): ["Atomic",["VBD_plug",["` + vm + `","xvda"]]]`, `task started "Parallel:task=51.atoms=2.(Devices.plug (no qemu) VM=` + vm + `)"  #52 <Atomic (VBD_plug)>`},
		{`Task 53 reference VM.start R:8ae06e1ea3d1\x0A{"traceparent":"x","baggage":[["a","b"]]}: ["VM_start",["` + vm + `",false]]`, `task started "VM.start" R:8ae06e1ea3d1 #53 <VM_start>`},
		{`Task 51 reference Async.VM.start R:8ae06e1ea3d1`, `task started "Async.VM.start" R:8ae06e1ea3d1 #51`},
		{`Performing: ["Best_effort",["VM_pause","` + vm + `"]]`, `performing <Best_effort (VM_pause)>`},
		{`Performing: ["VM_build",["` + vm + `",false]]`, `performing <VM_build>`},
		{`Task 51 completed; duration = 0`, `task completed #51`},
		{`Task 51 failed; Xenops_interface.Xenopsd_error(S(Cancelled(S(51))))`, `task failed #51 reason=Xenops_interface.Xenopsd_error(S(Cancelled(S(51))))`},
		{`Task 51 is not cancellable.`, ``},
		{`Task completed`, ``},
		{`Task 99999999999999999999 completed; duration = 0`, ``},
		{`Performing `, ``},
		{`Queue.delete x`, ``},
		{``, ``},
	} {
		l, ok := Parse([]byte(line + test.message))
		qt.Assert(t, qt.IsTrue(ok))
		a, ok := l.Anchor()
		qt.Check(t, qt.Equals(ok, test.want != ""), qt.Commentf("%s", test.message))
		if ok {
			qt.Check(t, qt.Equals(showAnchor(&a), test.want), qt.Commentf("%s", test.message))
		}
	}
}

// The anchors of the recorded lines, by what they say.
func TestRecordedAnchors(t *testing.T) {
	kinds := map[Kind]int{}
	names := map[string]bool{}
	for _, in := range recorded(t) {
		l, _ := Parse(in)
		a, ok := l.Anchor()
		if !ok {
			continue
		}
		kinds[a.Kind]++
		if a.Operation != nil {
			name, _ := AppendName(nil, a.Operation)
			names[string(name)] = true
			object := Object(a.Operation)
			qt.Check(t, qt.HasLen(object, 36), qt.Commentf("%s", a.Operation))
		}
		switch a.Kind {
		case QueuePush:
			qt.Check(t, qt.Equals(string(a.Queue), string(Object(a.Operation))), qt.Commentf("%s", in))
		case TaskCreated, AsyncThread, TaskStarted:
			qt.Check(t, qt.IsFalse(a.Task.IsZero()), qt.Commentf("%s", in))
		}
	}
	for k := AsyncThread; k < TaskFailed; k++ {
		if k != TaskForwarded {
			qt.Check(t, qt.IsTrue(kinds[k] > 0), qt.Commentf("%v", k))
		}
	}
	// xenopsd's own spans of the same runs have these names. (It has spans of the
	// same name as the only atom below Atomic (…) and Best_effort (…), which it
	// does not log.)
	qt.Check(t, qt.DeepEquals(slices.Sorted(maps.Keys(names)), []string{
		"Atomic (VM_import_metadata)", "Atomic (VM_remove)", "Atomic (VM_unpause)", "Best_effort (VM_pause)",
		"VM_build", "VM_create", "VM_create_device_model", "VM_destroy", "VM_destroy_device_model", "VM_hook_script",
		"VM_poweroff", "VM_set_domain_action_request", "VM_start",
	}))
}

func TestAppendName(t *testing.T) {
	plug := func(atom, dev string) string { return `["` + atom + `",["` + vm + `","` + dev + `"]]` }
	list := func(c string, atoms ...string) string {
		return `["` + c + `",["` + vm + `","Devices.plug (no qemu) VM=` + vm + `",[` + strings.Join(atoms, ",") + `]]]`
	}
	for _, test := range []struct {
		op, want string
		object   string
	}{
		{`["VM_start",["` + vm + `",false]]`, "VM_start", vm},
		{`["VM_check_state","` + vm + `"]`, "VM_check_state", vm},
		{`["VM_delay",["` + vm + `",1.5]]`, "VM_delay", vm},
		{`["VBD_hotplug",["` + vm + `","xvda"]]`, "VBD_hotplug", vm},
		{`["VM_migrate",{"vmm_id":"x"}]`, "VM_migrate", ""},
		{`["Nothing"]`, "Nothing", ""},
		{`["Best_effort",` + plug("VBD_unplug", "xvda") + `]`, "Best_effort (VBD_unplug)", vm},
		{`["Atomic",["Best_effort",["VM_pause","` + vm + `"]]]`, "Atomic (Best_effort (VM_pause))", vm},
		{list("Parallel", plug("VBD_plug", "a"), plug("VBD_plug", "b")), "Parallel (VBD_plug | VBD_plug)", vm},
		{list("Serial", plug("VBD_attach", "a"), plug("VBD_activate", "a")), "Serial (VBD_attach & VBD_activate)", vm},
		{list("Parallel", list("Nested_parallel", list("Serial", plug("VBD_attach", "a"), plug("VBD_activate", "a")), plug("VBD_plug", "b")), plug("VIF_plug", "0")),
			"Parallel (Nested_parallel (Serial (VBD_attach & VBD_activate) | VBD_plug) | VIF_plug)", vm},
		{`["Atomic",` + list("Parallel", plug("VBD_plug", "a")) + `]`, "Atomic (Parallel (VBD_plug))", vm},
		{list("Parallel"), "Parallel ()", vm},
	} {
		name, whole := AppendName(nil, []byte(test.op))
		qt.Check(t, qt.Equals(string(name), test.want))
		qt.Check(t, qt.IsTrue(whole), qt.Commentf("%s", test.op))
		qt.Check(t, qt.Equals(string(Object([]byte(test.op))), test.object), qt.Commentf("%s", test.op))
		for n := range test.op {
			name, whole := AppendName(nil, []byte(test.op[:n]))
			qt.Check(t, qt.IsFalse(whole), qt.Commentf("%s: %s", test.op[:n], name))
			// Up to its mark it is the start of the whole name.
			start, _, _ := strings.Cut(string(name), "…")
			qt.Check(t, qt.IsTrue(strings.HasPrefix(test.want, strings.TrimRight(start, " |&)"))), qt.Commentf("%s: %s", test.op[:n], name))
			if o := Object([]byte(test.op[:n])); o != nil {
				qt.Check(t, qt.Equals(string(o), test.object))
			}
		}
	}
	for _, op := range []string{``, `x`, `[]`, `["a b"]`, `{"Parallel":1}`, `["` + strings.Repeat("x", 65) + `"]`} {
		name, whole := AppendName(nil, []byte(op))
		qt.Check(t, qt.IsFalse(whole))
		qt.Check(t, qt.Equals(string(name), "…"))
	}
	deep := strings.Repeat(`["Best_effort",`, 500) + `["A"]` + strings.Repeat(`]`, 500)
	name, _ := AppendName(nil, []byte(deep))
	qt.Check(t, qt.Equals(string(name), strings.Repeat("Best_effort (", 6)+"Best_effort…"+strings.Repeat(")", 6)))
}
