package wire

import "bytes"

// Prefix is what stands before the method's name proper.
type Prefix uint8

// Prefixes.
const (
	NoPrefix      Prefix = iota
	Async                // "Async.": answered at once with the reference of a task
	InternalAsync        // "InternalAsync."
)

var prefixes = [...]string{NoPrefix: "", Async: "Async.", InternalAsync: "InternalAsync."}

// String returns the prefix as it is written.
func (p Prefix) String() string { return prefixes[p] }

// maxMethod is the number of bytes kept of a method's name. The longest that
// XAPI has is below 80.
const maxMethod = 128

// setMethod notes the method by the name that was sent.
func (d *Decoder) setMethod(c *Call, name []byte) {
	name = bytes.TrimSpace(name)
	name = name[:min(len(name), maxMethod)]
	for p := Async; p <= InternalAsync; p++ {
		if len(name) > len(prefixes[p]) && string(name[:len(prefixes[p])]) == prefixes[p] {
			c.Prefix = p
		}
	}
	proper := name[len(prefixes[c.Prefix]):]
	switch {
	case bytes.HasPrefix(proper, []byte("system.isAlive:")):
		c.Probe = true
		name = name[:len(name)-len(proper)+len("system.isAlive")]
	case bytes.HasPrefix(proper, []byte("unknown-message-")):
		c.Probe = true
		name = name[:len(name)-len(proper)+len("unknown-message")]
	case string(proper) == "system.listMethods":
		c.Probe = true
	}
	c.Method = d.printable(name)
}

// dotted gives a method of the API the form VM.start, also if VM_start was sent.
func (d *Decoder) dotted(c *Call) {
	proper := c.Method[len(prefixes[c.Prefix]):]
	if c.Probe || bytes.IndexByte(proper, '.') >= 0 {
		return
	}
	if i := classEnd(proper); i > 0 {
		start := len(d.buf)
		d.buf = append(d.buf, c.Method...)
		c.Method = d.buf[start:]
		c.Method[len(c.Method)-len(proper)+i] = '.'
	}
}

// classEnd returns where the class ends in a method's name that was written
// with '_' for '.': VM_start, VM_guest_metrics_get_all. 0 if there is no '_'.
func classEnd(name []byte) int {
	for _, class := range classes {
		if len(name) > len(class) && name[len(class)] == '_' && string(name[:len(class)]) == class {
			return len(class)
		}
	}
	return max(bytes.IndexByte(name, '_'), 0)
}

// classes are XAPI's classes with '_' in their name (the datamodel of xen-api).
// None begins with another one and '_'.
var classes = [...]string{
	"Cluster_host", "DR_task", "Driver_variant", "GPU_group", "Host_driver",
	"PIF_metrics", "PVS_cache_storage", "PVS_proxy", "PVS_server", "PVS_site",
	"Rate_limit", "SDN_controller", "USB_group", "VBD_metrics", "VGPU_type",
	"VIF_metrics", "VM_appliance", "VM_group", "VM_guest_metrics", "VM_metrics",
	"host_cpu", "host_crashdump", "host_metrics", "host_patch", "network_sriov",
	"pool_patch", "pool_update",
}

// printable returns b with every byte that is not printable ASCII as '?': names
// go into spans and from there into JSON.
func (d *Decoder) printable(b []byte) []byte {
	for i, c := range b {
		if c < ' ' || c > '~' {
			start := len(d.buf)
			d.buf = append(d.buf, b...)
			b = d.buf[start:]
			for j := i; j < len(b); j++ {
				if b[j] < ' ' || b[j] > '~' {
					b[j] = '?'
				}
			}
			break
		}
	}
	return b
}
