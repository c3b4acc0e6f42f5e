package verdict

// say is what there is to say of a cause.
type say struct{ title, advice, team string }

var sayings = map[Cause]say{
	Healthy: {"nothing wrong in dom0 and below it", "", ""},
	TooFew:  {"too few requests to say anything", "Look for longer (--for), or while the guest works.", ""},
	OwnLoad: {"it asks for more than usual, and waits for that",
		"Look in the guest at what reads or writes more. If that is wanted, the disk's share of the storage is too small for it.", "guest"},
	Device: {"the storage is slow",
		"Look at the array or disk: its load, rebuilds, failing media, cache. The times and devices here are those to hand over.", "storage"},
	Server: {"the NFS server is slow",
		"Look at the server: its disks, CPUs, threads, snapshots. The network to it is not what takes the time.", "storage"},
	Network: {"the network to the storage is slow or loses packets",
		"Look at the host's storage network: errors and drops of the NIC, bond, switch ports, MTU along the whole way, other traffic.", "network"},
	PathFailover: {"a path to the storage failed",
		"Look at `multipath -ll`, the host's log, switch and array ports for the path that failed; check the timeouts after which another is taken.", "storage network"},
	NoisyNeighbour: {"another disk's load takes the storage",
		"Limit or move the neighbour, or give the SR more to give.", "virtualization"},
	Dom0CPU: {"dom0 has too few CPUs for what runs in it",
		"See what runs in dom0 (`top`): other disks, networks, backups, coalescing. Give dom0 more vCPUs, or move load to another host.", "virtualization"},
	Steal: {"dom0's CPUs wait for physical ones",
		"The host's CPUs are overcommitted: move VMs away, or give dom0 CPUs of its own (pinning, weight).", "virtualization"},
	TapdiskCPU: {"the disk's tapdisk needs a whole CPU, and has no more",
		"One disk is served by one thread. Spread the load over several disks, or have the guest ask for larger blocks.", "guest"},
	Tapdisk: {"tapdisk holds requests up",
		"See /var/log/daemon.log for what this tapdisk says, and whether `tap-ctl list` shows errors.", "virtualization"},
	QueueLimit: {"all places for requests are taken",
		"The guest has more in flight than ring, tapdisk or queue hold. Spread it over several disks, or lower the depth in the guest.", "guest"},
	QoS: {"a limit is set for this disk, and reached",
		"If the limit is not wanted, change it: `xe vbd-param-list` shows qos_algorithm_type and qos_algorithm_params.", "virtualization"},
	Pause: {"the disk was paused",
		"It is what a snapshot, coalescing or a resize does. If it takes long, see SMlog for the time; move the schedule of snapshots to calmer hours.", "virtualization"},
	DeepChain: {"the image's chain costs I/O of its own",
		"Delete snapshots that are not needed and let the garbage collector coalesce (SMlog says whether it does); a full copy of the disk has no chain.", "virtualization"},
	SubmitBlocking: {"handing I/O to the kernel blocks tapdisk",
		"Files that grow make writes wait for the file system (thin disks on EXT), and so does a device queue that is full. Write the disk full once or use a fully allocated one; look at the load of the SR's device.", "virtualization"},
	Copy: {"copying between guest and dom0 is slow",
		"It takes CPU and memory bandwidth of the host: look at steal, NUMA placement and other load of the host.", "virtualization"},
	FlushStorm: {"the guest flushes so often that it waits for itself",
		"While a barrier waits for earlier requests nothing more is taken off the ring. Look in the guest at what syncs: databases, copying with sync.", "guest"},
	EmulatedDisk: {"the guest uses the emulated disk",
		"Install or start the guest's PV drivers; until then each request goes by QEMU.", "guest"},
	Unknown: {"slower than usual, and no layer stands out",
		"Look again for longer (--for 2m), and at the layers in `dtagent io`.", ""},
}

// Title says a cause in words.
func (c Cause) Title() string {
	if s, ok := sayings[c]; ok {
		return s.title
	}
	return string(c)
}

// Causes are all there are.
func Causes() []Cause {
	return []Cause{Healthy, TooFew, OwnLoad, Device, Server, Network, PathFailover, NoisyNeighbour, Dom0CPU, Steal, TapdiskCPU, Tapdisk,
		QueueLimit, QoS, Pause, DeepChain, SubmitBlocking, Copy, FlushStorm, EmulatedDisk, Unknown}
}
