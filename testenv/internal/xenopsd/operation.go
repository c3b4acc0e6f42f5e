//go:build linux

package xenopsd

import (
	"fmt"
	"strconv"
	"strings"

	"github.com/xenserver/dtagent/testenv/internal/mswitch"
)

// operation is what a task does: an atom by itself, or a list of them.
type operation struct {
	name  string // VM_start, VM_poweroff; Atomic for one atom
	vm    string
	args  string // JSON behind the VM's uuid
	atoms []atom
}

// atom is one step.
type atom struct {
	name string // VM_build; Parallel, Nested_parallel, Serial, Best_effort for compounds
	vm   string
	dev  string // device of VBD_ and VIF_ atoms
	args string // JSON behind the first argument, led by a comma
	text string // description of Parallel and its like
	subs []atom
}

// JSON is the operation as log lines have it.
func (o operation) JSON() string {
	if o.name == "Atomic" {
		return `["Atomic",` + o.atoms[0].JSON() + `]`
	}
	return fmt.Sprintf(`[%q,[%q,%s]]`, o.name, o.vm, o.args)
}

// Name is the operation's name as its span has it.
func (o operation) Name() string {
	if o.name == "Atomic" {
		return "Atomic (" + o.atoms[0].Name() + ")"
	}
	return o.name
}

// JSON is the atom as log lines have it.
func (a atom) JSON() string {
	switch {
	case a.name == "Best_effort":
		return `["Best_effort",` + a.subs[0].JSON() + `]`
	case a.subs != nil:
		var subs []string
		for _, s := range a.subs {
			subs = append(subs, s.JSON())
		}
		return fmt.Sprintf(`[%q,[%q,%q,[%s]]]`, a.name, a.vm, a.text, strings.Join(subs, ","))
	case a.dev != "":
		id := fmt.Sprintf(`[%q,%q]`, a.vm, a.dev)
		if a.args != "" {
			return fmt.Sprintf(`[%q,[%s%s]]`, a.name, id, a.args)
		}
		return fmt.Sprintf(`[%q,%s]`, a.name, id)
	case a.args != "":
		return fmt.Sprintf(`[%q,[%q%s]]`, a.name, a.vm, a.args)
	}
	return fmt.Sprintf(`[%q,%q]`, a.name, a.vm)
}

// Name is the atom's name as its span has it.
func (a atom) Name() string {
	sep := map[string]string{"Parallel": " | ", "Nested_parallel": " | ", "Serial": " & ", "Best_effort": ""}
	s, ok := sep[a.name]
	if !ok {
		return a.name
	}
	var subs []string
	for _, sub := range a.subs {
		subs = append(subs, sub.Name())
	}
	return a.name + " (" + strings.Join(subs, s) + ")"
}

// devices are a VM's, by the names that xenopsd gives them.
type devices struct{ vbds, vifs []string }

func devicesOf(disks, nics int) devices {
	var d devices
	for i := range disks {
		d.vbds = append(d.vbds, "xvd"+string(rune('a'+i%26)))
	}
	for i := range nics {
		d.vifs = append(d.vifs, strconv.Itoa(i))
	}
	return d
}

// serials makes one Serial a device of the atoms names, and of these a
// Nested_parallel when there is more than one.
func serials(vm, what string, devs []string, nested string, steps func(dev string) []atom) []atom {
	var all []atom
	for _, dev := range devs {
		s := steps(dev)
		if len(s) == 1 {
			all = append(all, s[0])
			continue
		}
		all = append(all, atom{name: "Serial", vm: vm, text: what + " VM=" + vm, subs: s})
	}
	if len(all) > 1 && nested != "" {
		return []atom{{name: nested, vm: vm, text: what + " VM=" + vm, subs: all}}
	}
	return all
}

func hook(vm, script, reason string) atom {
	return atom{name: "VM_hook_script", vm: vm, args: fmt.Sprintf(",%q,%q", script, reason)}
}

// startOf is VM_start in the order of xenops_server.ml.
func startOf(vm string, d devices, force bool) operation {
	atoms := []atom{
		hook(vm, "VM_pre_start", "none"),
		{name: "VM_create", vm: vm, args: ",[],[],false"},
		{name: "VM_build", vm: vm, args: "," + strconv.FormatBool(force)},
	}
	plugs := append(
		serials(vm, "VBDs.activate_and_plug RW", d.vbds, "Nested_parallel", func(dev string) []atom {
			return []atom{{name: "VBD_set_active", vm: vm, dev: dev, args: ",true"}, {name: "VBD_plug", vm: vm, dev: dev}}
		}),
		serials(vm, "VIFs.activate_and_plug", d.vifs, "Nested_parallel", func(dev string) []atom {
			return []atom{{name: "VIF_set_active", vm: vm, dev: dev, args: ",true"}, {name: "VIF_plug", vm: vm, dev: dev}}
		})...)
	atoms = append(atoms, together(vm, "Devices.plug (no qemu)", plugs)...)
	atoms = append(atoms,
		atom{name: "VM_create_device_model", vm: vm, args: ",false"},
		atom{name: "VM_set_domain_action_request", vm: vm, args: ",[]"})
	return operation{name: "VM_start", vm: vm, args: strconv.FormatBool(force), atoms: atoms}
}

// poweroffOf is VM_poweroff; a clean one first asks the guest.
func poweroffOf(vm string, d devices, clean bool, timeout string) operation {
	reason, args := "hard-shutdown", "[]"
	var atoms []atom
	if clean {
		reason, args = "clean-shutdown", "["+timeout+"]"
		atoms = append(atoms, atom{name: "VM_shutdown_domain", vm: vm, args: `,["Halt"],` + timeout})
	}
	atoms = append([]atom{hook(vm, "VM_pre_destroy", reason)}, atoms...)
	unplugs := append(
		serials(vm, "VBDs.unplug", d.vbds, "Nested_parallel", func(dev string) []atom {
			return []atom{{name: "VBD_unplug", vm: vm, dev: dev, args: ",true"}}
		}),
		serials(vm, "VIFs.unplug", d.vifs, "Nested_parallel", func(dev string) []atom {
			return []atom{{name: "VIF_unplug", vm: vm, dev: dev, args: ",true"}}
		})...)
	atoms = append(atoms,
		atom{name: "Best_effort", vm: vm, subs: []atom{{name: "VM_pause", vm: vm}}},
		atom{name: "VM_destroy_device_model", vm: vm})
	atoms = append(atoms, together(vm, "Devices.unplug", unplugs)...)
	atoms = append(atoms, atom{name: "VM_destroy", vm: vm}, hook(vm, "VM_post_destroy", reason))
	return operation{name: "VM_poweroff", vm: vm, args: args, atoms: atoms}
}

func together(vm, text string, atoms []atom) []atom {
	if len(atoms) < 2 {
		return atoms
	}
	return []atom{{name: "Parallel", vm: vm, text: text + " VM=" + vm, subs: atoms}}
}

// atomic is the operation of one atom.
func atomic(a atom) operation { return operation{name: "Atomic", vm: a.vm, atoms: []atom{a}} }

func quoted(s string) string { return mswitch.Quoted(s) }
