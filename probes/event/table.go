package event

// Watch says what of a program's processes is watched.
type Watch uint8

// What can be watched.
const (
	WatchStreams   Watch = 1 << iota // what they read and write on sockets
	WatchLogs                        // what they tell the system log
	WatchProcesses                   // their threads and children
	WatchRequests                    // the disk requests of guests that they serve
	WatchAll       = WatchStreams | WatchLogs | WatchProcesses
)

// Words names what w has.
func (w Watch) Words() (out []string) {
	for i, name := range [...]string{"streams", "logs", "processes", "disk requests"} {
		if w&(1<<i) != 0 {
			out = append(out, name)
		}
	}
	return out
}

// Program is a program whose processes are watched for a component.
type Program struct {
	Name  string // base name of the executable
	Of    Component
	Watch Watch
}

// Description is a row of the table of components.
type Description struct {
	Name string // as Observers say it
	Is   string // what it is

	// Programs are those whose processes are watched when it is wanted. A program
	// can be of another component: then that one's spans stay its own.
	Programs []Program

	// Children are the programs that are this component wherever a watched process
	// starts one: base names, or a path whose last part is a pattern. The span of
	// such a process has the component of who started it, and this one besides.
	Children []string

	Stored bool   // XAPI can store the name in an Observer
	Cost   string // why it is costly, "" if it is not
	Spans  string // what it gives; "": none in this version
	Lacks  string // the probe that it still lacks, "" if none
}

// daemon lists programs of c that are watched in every way.
func daemon(c Component, names ...string) (out []Program) {
	for _, n := range names {
		out = append(out, Program{n, c, WatchAll})
	}
	return out
}

// asking lists programs of c that are watched in every way, and forkexecd, which
// starts others for them.
func asking(c Component, names ...string) []Program {
	return append(daemon(c, names...), daemons[Forkexecd]...)
}

// starters are the daemons that start programs, which are watched for their
// children only.
func starters(cs ...Component) (out []Program) {
	for _, c := range cs {
		for _, p := range daemons[c] {
			out = append(out, Program{p.Name, c, WatchProcesses})
		}
	}
	return out
}

// daemons are the programs that other components need watched, too. forkexecd is
// asked on its socket.
var daemons = map[Component][]Program{
	Xapi:      daemon(Xapi, "xapi"),
	Xenopsd:   daemon(Xenopsd, "xenopsd-xc", "xenopsd", "xenopsd-simulator"),
	Forkexecd: {{"forkexecd", Forkexecd, WatchStreams | WatchProcesses}},
}

// components is the table of components: what an Observer can ask for. The
// rules of package target, `dtagent check --components` and docs/components.md
// are made from it.
var components = [numComponents]Description{
	Xapi: {
		Name: "xapi", Is: "the toolstack's API server", Stored: true,
		Programs: asking(Xapi, "xapi"),
		Spans:    "API calls (SERVER), Async tasks, calls to other daemons (PRODUCER) and hosts (CLIENT), storage RPCs that xapi answers (CONSUMER), helper processes",
	},
	Xenopsd: {
		Name: "xenopsd", Is: "the domain manager", Stored: true,
		Programs: asking(Xenopsd, "xenopsd-xc", "xenopsd", "xenopsd-simulator"),
		Spans:    "RPCs (CONSUMER), operations and their atoms, calls to other daemons (PRODUCER), helper processes",
	},
	XapiClusterd: {
		Name: "xapi-clusterd", Is: "the cluster daemon", Stored: true,
		Programs: asking(XapiClusterd, "xapi-clusterd"),
		Spans:    "RPCs (CONSUMER), requests of other hosts as far as they are plain HTTP (SERVER), helper processes",
	},
	SMAPI: {
		Name: "smapi", Is: "the storage scripts and what runs them", Stored: true,
		Programs: append(asking(SMAPI, "xapi-storage-script"), starters(Xapi)...),
		Children: []string{"/opt/xensource/sm/*SR"},
		Spans:    "one a script, named with its operation, and one a program that it starts; RPCs of xapi-storage-script (CONSUMER)",
	},
	Networkd: {
		Name: "xcp-networkd", Is: "the network configuration daemon",
		Programs: asking(Networkd, "xcp-networkd"),
		Spans:    "RPCs (CONSUMER; on its own unix socket SERVER), helper processes",
	},
	RRDD: {
		Name: "xcp-rrdd", Is: "the metrics daemon",
		Programs: daemon(RRDD, "xcp-rrdd"),
		Cost:     "its plugins and xapi ask it every few seconds, and each of these calls is a trace of its own",
		Spans:    "RPCs on its own unix socket (SERVER) and by the switch (CONSUMER), requests for metrics that xapi passes on to it (SERVER)",
		Lacks:    "its plugins' shared memory; without the kernel's BTF, who is at the other end of its socket: its calls have no parent then",
	},
	Squeezed: {
		Name: "squeezed", Is: "the memory ballooning daemon",
		Programs: daemon(Squeezed, "squeezed"),
		Spans:    "RPCs (CONSUMER; on its own unix socket SERVER)",
		Lacks:    "its xenstore watches and hypercalls",
	},
	VarstoredGuard: {
		Name: "varstored-guard", Is: "the gate between the UEFI variable daemons and xapi",
		Programs: daemon(VarstoredGuard, "varstored-guard"),
		Spans:    "RPCs (CONSUMER), requests of varstored (SERVER)",
	},
	V6d: {
		Name: "v6d", Is: "the licence daemon",
		Programs: daemon(V6d, "v6d"),
		Spans:    "RPCs (CONSUMER; on its own unix socket SERVER)",
	},
	Forkexecd: {
		Name: "forkexecd", Is: "the starter of helper programs: vfork_helper, before XAPI 25.14 a daemon",
		Programs: append(starters(Xapi, Xenopsd), daemons[Forkexecd]...),
		Children: []string{"vfork_helper"},
		Cost:     "each helper that a daemon starts for nobody's call is a trace of its own",
		Spans:    "one a program that it starts, but for those of xenguest and qemu",
		Lacks:    "without the kernel's BTF, who is at the other end of the daemon's socket: what the daemon starts has no parent then; nor has it where of who asks nothing but processes is watched",
	},
	Xenguest: {
		Name: "xenguest", Is: "the domain builder, which also saves and restores",
		Programs: starters(Xenopsd, Forkexecd),
		Children: []string{"xenguest", "emu-manager"},
		Spans:    "one a process",
		Lacks:    "its hypercalls",
	},
	QEMU: {
		Name: "qemu", Is: "the device model",
		Programs: starters(Xenopsd, Forkexecd),
		Children: []string{"qemu-wrapper", "qemu-system-i386", "qemu-system-x86_64"},
		Spans:    "one a process, as long as its domain lives",
		Lacks:    "its disk and monitor requests",
	},
	MessageSwitch: {
		Name: "message-switch", Is: "the broker of calls between daemons",
		Programs: []Program{{"message-switch", MessageSwitch, WatchStreams}},
		Cost:     "each message crosses it twice: nearly twice the records of xapi and xenopsd, from a single thread that all daemons wait for",
		Spans:    "one a call that it takes (SERVER), from its request to the answer with its number; none for answers, and for waiting",
		Lacks:    "the time that a message waits in its queue",
	},
	Xenstored: {
		Name: "xenstored", Is: "the xenstore daemon",
		Cost:  "every daemon and every domain asks it all the time",
		Lacks: "the xenstore protocol",
	},
	Tapdisk: {
		Name: "tapdisk", Is: "the disk backend",
		Programs: []Program{{"tapdisk", Tapdisk, WatchRequests}},
		Cost:     "every disk request of a guest passes through it",
		Spans:    "one a guest's disk request that is slow or a sample (`dtagent.tapdisk.slow`, `dtagent.tapdisk.sample`), named `guest read xvdb`, with one for each layer that took its part, and links to what the toolstack did meanwhile to the VM, the disk or its repository",
		Lacks:    "requests of emulated disks, which have no guest's memory in them; disks whose backend is not a tapdisk",
	},
}

// childComponents is the column Children, without patterns.
var childComponents = func() map[string]Component {
	out := map[string]Component{}
	for _, c := range AllComponents.All() {
		for _, name := range components[c].Children {
			out[name] = c
		}
	}
	return out
}()

// ComponentOf returns the component that a program is when a watched process
// starts it, by its base name; NoComponent if it is none of its own. Scripts of
// SMAPI are told by their place: see package target.
func ComponentOf(program string) Component { return childComponents[program] }
