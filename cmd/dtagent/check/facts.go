package check

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/xenserver/dtagent/probes/target"
)

// host reads the files of a host. A test's has them below root.
type host struct{ root string }

func (h host) path(name string) string { return filepath.Join(h.root, name) }

// maxRead bounds what is read of any file.
const maxRead = 1 << 20

func (h host) read(name string) (string, error) {
	f, err := os.Open(h.path(name))
	if err != nil {
		return "", err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, maxRead))
	return strings.TrimSpace(string(b)), err
}

func (h host) exists(name string) bool {
	_, err := os.Lstat(h.path(name))
	return err == nil
}

// facts are what files tell of kernel and host.
func (h host) facts() []Item {
	return slices.Concat([]Item{h.kernel(), h.xen(), h.clock(), h.statistics()}, h.capabilities(), []Item{h.memory()})
}

// kernel says which kernel this is. Builds of dom0 kernels share a release; their
// build-ids tell them apart.
func (h host) kernel() Item {
	release, err := h.read("/proc/sys/kernel/osrelease")
	if err != nil {
		return unknown("kernel", err.Error(), "mount proc")
	}
	detail := release + ", " + runtime.GOARCH
	if id := h.buildID(); id != "" {
		detail += ", build-id " + id
	}
	if !atLeast(release, 4, 19) {
		return wider("kernel", detail, "dtagent is made for Linux 4.19 and later", "update the host")
	}
	return works("kernel", detail)
}

// atLeast compares the first two numbers of a release. What has none counts as new.
func atLeast(release string, major, minor int) bool {
	var a, b int
	if n, _ := fmt.Sscanf(release, "%d.%d", &a, &b); n != 2 {
		return true
	}
	return a > major || a == major && b >= minor
}

// buildID reads the note NT_GNU_BUILD_ID of the running kernel, "" if there is
// none.
func (h host) buildID() string {
	b, err := os.ReadFile(h.path("/sys/kernel/notes"))
	if err != nil || len(b) > maxRead {
		return ""
	}
	const gnuBuildID = 3
	pad := func(n uint32) uint64 { return (uint64(n) + 3) &^ 3 }
	for len(b) >= 12 {
		name, desc, kind := binary.NativeEndian.Uint32(b), binary.NativeEndian.Uint32(b[4:]), binary.NativeEndian.Uint32(b[8:])
		b = b[12:]
		if pad(name)+uint64(desc) > uint64(len(b)) {
			return ""
		}
		owner, id := b[:name], b[pad(name):][:desc]
		if kind == gnuBuildID && bytes.Equal(owner, []byte("GNU\x00")) {
			return hex.EncodeToString(id)
		}
		b = b[min(pad(name)+pad(desc), uint64(len(b))):]
	}
	return ""
}

// xen says whether this is the dom0 of a Xen host.
func (h host) xen() Item {
	kind, err := h.read("/sys/hypervisor/type")
	if err != nil || kind != "xen" {
		return absent("Xen", "this is no Xen host", "for a XenServer or XCP-ng host, run dtagent in its dom0")
	}
	version := ""
	for _, part := range []string{"major", "minor", "extra"} {
		if s, err := h.read("/sys/hypervisor/version/" + part); err == nil {
			if part == "minor" {
				version += "."
			}
			version += s
		}
	}
	if version != "" {
		version = " " + version
	}
	is, err := h.read("/proc/xen/capabilities")
	switch {
	case err != nil:
		return unknown("Xen", "whether this is the dom0 is not known: "+plain(err), "mount -t xenfs xenfs /proc/xen")
	case slices.Contains(strings.FieldsFunc(is, func(r rune) bool { return r == ',' || r == ' ' || r == '\n' }), "control_d"):
		return works("Xen", "dom0 of Xen"+version)
	}
	return absent("Xen", "this is a guest of Xen"+version+", which has no toolstack", "run dtagent in dom0")
}

// slowClocks are clock sources that are read from a device, or that stand still
// between ticks.
var slowClocks = map[string]string{
	"hpet": "it is read from a device", "acpi_pm": "it is read from a device", "pit": "it is read from a device",
	"jiffies": "it stands still between ticks", "refined-jiffies": "it stands still between ticks",
}

// clock says what the kernel takes the time from, as every event does.
func (h host) clock() Item {
	source, err := h.read("/sys/devices/system/clocksource/clocksource0/current_clocksource")
	if err != nil {
		return unknown("clock source", plain(err), "mount sysfs")
	}
	if why := slowClocks[source]; why != "" {
		return wider("clock source", source, why+": each event costs more, or short durations are wrong", "boot with clocksource=tsc where the processor allows, or see why the kernel gave it up (dmesg)")
	}
	return works("clock source", source)
}

// statistics says whether the kernel tells what programs cost.
func (h host) statistics() Item {
	if h.exists("/proc/sys/kernel/bpf_stats_enabled") {
		return works("bpf statistics", "what programs cost can be measured")
	}
	return absent("bpf statistics", "the kernel does not measure what programs cost (Linux 5.1)", "nothing: tracing does not need them")
}

// capability is one that the agent uses.
type capability struct {
	bit   uint
	name  string
	use   string
	or    []capability // do as well
	until int          // Linux 5.until does without; 0: none does
}

// sysAdmin is what CAP_BPF and CAP_PERFMON are parts of since Linux 5.8.
var sysAdmin = []capability{{bit: unix.CAP_SYS_ADMIN, name: "CAP_SYS_ADMIN"}}

// usedCapabilities are those that the agent uses, and what it lacks without.
var usedCapabilities = []capability{
	{unix.CAP_BPF, "CAP_BPF", "loading eBPF programs and maps", sysAdmin, 0},
	{unix.CAP_PERFMON, "CAP_PERFMON", "attaching to tracepoints", sysAdmin, 0},
	{unix.CAP_SYS_RESOURCE, "CAP_SYS_RESOURCE", "lifting the limit on locked memory, which counts for maps before Linux 5.11", nil, 11},
	{unix.CAP_NET_ADMIN, "CAP_NET_ADMIN", "noticing at once that a daemon has started; without it only scans do", nil, 0},
	{unix.CAP_SYS_PTRACE, "CAP_SYS_PTRACE", "seeing programs, descriptors and sockets of other processes", nil, 0},
	{unix.CAP_DAC_READ_SEARCH, "CAP_DAC_READ_SEARCH", "reading what belongs to other users", []capability{{bit: unix.CAP_DAC_OVERRIDE, name: "CAP_DAC_OVERRIDE"}}, 0},
}

// capabilities says which this process lacks. Whether it works without is for the
// other items to say.
func (h host) capabilities() []Item {
	const name = "capabilities"
	has, err := h.effective()
	if err != nil {
		return []Item{unknown(name, plain(err), "mount proc")}
	}
	release, _ := h.read("/proc/sys/kernel/osrelease")
	var out []Item
	for _, c := range usedCapabilities {
		if c.until > 0 && atLeast(release, 5, c.until) {
			continue
		}
		names := c.name
		found := has&(1<<c.bit) != 0
		for _, o := range c.or {
			found = found || has&(1<<o.bit) != 0
			names += " or " + o.name
		}
		if !found {
			out = append(out, absent(c.name, names+" is not there, which is for "+c.use, "run as root, or add it to the service's AmbientCapabilities and CapabilityBoundingSet"))
		}
	}
	if out == nil {
		return []Item{works(name, "all that are used")}
	}
	return out
}

// effective returns the effective capabilities of this process.
func (h host) effective() (uint64, error) {
	status, err := h.read("/proc/self/status")
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(status) {
		if s, ok := strings.CutPrefix(line, "CapEff:"); ok {
			return strconv.ParseUint(strings.TrimSpace(s), 16, 64)
		}
	}
	return 0, fmt.Errorf("/proc/self/status has no CapEff")
}

// leastMemory is what the agent needs at the least, in bytes: it has some 50 MB
// resident at full load, and loading takes more for a moment.
const leastMemory = 96 << 20

// memory says how much memory the control groups of this process leave it.
func (h host) memory() Item {
	const name = "memory limit"
	limit, where := h.memoryLimit()
	if where == "" {
		return works(name, "none for this process")
	}
	detail := fmt.Sprintf("%d MiB, of %s", limit>>20, where)
	if limit < leastMemory {
		return wider(name, detail, fmt.Sprintf("dtagent may need %d MiB while it loads its programs; the kernel kills it when it cannot have them", leastMemory>>20),
			"raise it: MemoryMax of the service, memory.max of the group")
	}
	return works(name, detail)
}

// memoryLimit returns the least limit of the control groups of this process and
// which group has it, "" if none has one.
func (h host) memoryLimit() (limit uint64, where string) {
	groups, err := h.read("/proc/self/cgroup")
	if err != nil {
		return 0, ""
	}
	for line := range strings.Lines(groups) {
		w := strings.SplitN(strings.TrimSpace(line), ":", 3)
		if len(w) != 3 {
			continue
		}
		var file string
		var mounts []string
		switch {
		case w[0] == "0" && w[1] == "": // v2, alone or beside v1
			file, mounts = "memory.max", []string{"/sys/fs/cgroup", "/sys/fs/cgroup/unified"}
		case slices.Contains(strings.Split(w[1], ","), "memory"):
			file, mounts = "memory.limit_in_bytes", []string{"/sys/fs/cgroup/memory", "/sys/fs/cgroup/" + w[1]}
		default:
			continue
		}
		for group := filepath.Clean(w[2]); ; group = filepath.Dir(group) {
			for _, m := range mounts {
				s, err := h.read(filepath.Join(m, group, file))
				if err != nil {
					continue
				}
				// v1 says "no limit" with the largest number of pages.
				if n, err := strconv.ParseUint(s, 10, 64); err == nil && n < 1<<62 && (where == "" || n < limit) {
					limit, where = n, "control group "+group
				}
			}
			if group == "/" || group == "." || strings.HasPrefix(group, "/..") {
				break
			}
		}
	}
	return limit, where
}

// netlinkItems say how daemons and their connections are found.
func netlinkItems() []Item {
	var out []Item
	if err := target.Connector(); err != nil {
		out = append(out, wider("proc connector", "by a scan each second", plain(err), "run with CAP_NET_ADMIN in the first network and pid name space; until then the first second of a daemon's life is not traced"))
	} else {
		out = append(out, works("proc connector", "daemons are noticed as they start"))
	}
	if _, err := target.Clients(target.SwitchPath); err != nil {
		out = append(out, wider("unix_diag", "by what goes over each connection", plain(err), "modprobe unix_diag; until then the agent knows message-switch's and xenstored's older connections late or not, and waits on those for xenstore count as network"))
	} else {
		out = append(out, works("unix_diag", "connections that are open already are known"))
	}
	return out
}

// plain is the error in one line.
func plain(err error) string { return strings.Join(strings.Fields(err.Error()), " ") }
