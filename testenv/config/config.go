// Package config holds what a simulated dom0 can be told: Options when it
// starts, Knobs at any time.
package config

import (
	"log/slog"
	"time"
)

// Native is the state of the toolstack's own tracing, that is, whether an
// Observer is enabled in it.
type Native uint8

// States of the toolstack's tracing.
const (
	NativeOff  Native = iota // no Observer enabled: no context is passed on, log field two is empty
	NativeOn                 // xen-api 25.8 and later: debug_info ends in a JSON object with traceparent and baggage
	NativeBare               // before 25.8: debug_info ends in a bare traceparent
)

// Layer is a place where a delay can be put.
type Layer string

// Layers. Each delay is spent asleep by the thread or process named.
const (
	LayerSM       Layer = "sm"       // the SM script, in each vdi_attach and vdi_activate
	LayerXenguest Layer = "xenguest" // xenguest, while it builds the domain
	LayerFsync    Layer = "fsync"    // xenopsd's metadata store, in each of its writes, beside the fsync
	LayerLock     Layer = "lock"     // xenopsd's domain lock is held so long by another thread when VM_build wants it
	LayerSwitch   Layer = "switch"   // message-switch, before it hands a request over
	LayerAPI      Layer = "api"      // xapi, in the thread of every API call, before its work
)

// Way is a way for a thread to wait.
type Way string

// Ways. The words are those of dt.time.<word>_us. The last three need FUSE.
const (
	WayLock      Way = "lock"    // for a futex that another thread wakes
	WayChild     Way = "child"   // for a child to end
	WayFlock     Way = "flock"   // for a lock on a file that another process holds
	WayConnect   Way = "connect" // to a listener whose backlog is full
	WayNetwork   Way = "network" // for a byte from a socket
	WayPipe      Way = "pipe"    // for a byte from a pipe
	WayPoll      Way = "poll"    // for a byte to be there
	WaySleep     Way = "sleep"
	WayFile      Way = "file"      // for bytes of a slow file
	WayFsync     Way = "fsync"     // for a slow file to be synced
	WayHypercall Way = "hypercall" // in XEN_DOMCTL_createdomain, which a slow file takes in place of Xen
)

// Ways are all of them.
var Ways = []Way{WayLock, WayChild, WayFlock, WayConnect, WayNetwork, WayPipe, WayPoll, WaySleep, WayFile, WayFsync, WayHypercall}

// Knobs can be turned while the dom0 runs. The zero value is a toolstack with
// no Observer and its usual log settings, where atoms take no time beyond
// their system calls.
type Knobs struct {
	Native   Native `json:"native,omitempty"`
	LogTrace bool   `json:"log_trace,omitempty"` // with native tracing: the traceparent stands in log field two (26.8 and later)
	SMAPI    bool   `json:"smapi,omitempty"`     // smapi is observed too: SM scripts run as `python3 -m observer <script>`
	Verbose  bool   `json:"verbose,omitempty"`   // log the modules too that a dom0 mutes (http, db_write, redo_log, api_readonly)

	AtomTime map[string]time.Duration `json:"atom_time,omitempty"` // by atom name (VM_build), slept in the worker; "*" for those not named
	Fail     map[string]string        `json:"fail,omitempty"`      // atom name → error code it fails with; SM method (vdi_attach), method of xapi (event.from) → the same
	Delay    map[Layer]time.Duration  `json:"delay,omitempty"`

	// Wait has xenopsd's worker wait in each of the ways, one after the other, when
	// the atom of that name begins, for at least that long.
	Wait map[string]map[Way]time.Duration `json:"wait,omitempty"`

	Emergency string                   `json:"emergency,omitempty"` // not empty: emergency mode, all but emergency calls answer this error; see Emergency
	Slow      map[string]time.Duration `json:"slow,omitempty"`      // by method of xapi: its work takes longer by this; "*" for those not named
	Reply     map[string]Reply         `json:"reply,omitempty"`     // by method of xapi: its answer is broken; "*" for those not named
}

// Options of a dom0. The zero value starts one VM, with one disk and one
// network interface, and no background work.
type Options struct {
	Binary string // the built testenv/cmd/dom0; "": built into Dir by the go command
	Dir    string // files of this dom0: truth, devlog, logs; "": a temporary one, removed by Close

	Port    uint16 // of xapi's TCP listeners on 127.0.0.1 and [::1] (80 in a dom0); 0: any free one
	TLSPort uint16 // of stunnel on 127.0.0.1 (443 in a dom0); 0: any free one

	VMs     int // named vm-1, vm-2, …; 0: one
	Disks   int // per VM; 0: one; < 0: none
	NICs    int // per VM; 0: one; < 0: none
	Workers int // per pool of xenopsd; 0: 4, as it is

	Squeezed  bool // squeezed runs, and xenopsd reserves memory with it
	Sockets   bool // use-switch=false in the configurations of xenopsd and squeezed: they meet on squeezed's socket
	NoSwitch  bool // use-switch=false for xenopsd and storage: xapi and xenopsd call each other on sockets of their own, in XML-RPC
	RRDD      bool // xcp-rrdd runs, and xapi tells it of VMs that start
	Forkexecd bool // xapi and xenopsd have forkexecd, the daemon, start programs, as all did before 25.14; else vfork_helper
	Networkd  bool // xcp-networkd runs, and xapi has it make the bridges of VMs that start

	Background bool // xapi's own threads that log and poll all the time, calls or not
	NoTruth    bool // write no truth; for measurements

	// NativeByObserver lets the pool's Observers switch the toolstack's own tracing, as
	// they really do, in place of Knobs.Native: xapi passes a context on while an
	// enabled Observer has it as component, xenopsd when it was told of one.
	NativeByObserver bool
	EndpointHTTP     bool // observer-endpoint-http-enabled and -https-enabled of xapi.conf: Observers may have URLs as endpoints

	Pool *Pool `json:",omitempty"` // set by StartPool

	Knobs Knobs
	Log   *slog.Logger `json:"-"` // of the launcher; nil: discarded
}

// WithDefaults returns o with the defaults of its zero values filled in.
func (o Options) WithDefaults() Options {
	count := func(n *int, def int) {
		switch {
		case *n == 0:
			*n = def
		case *n < 0:
			*n = 0
		}
	}
	count(&o.VMs, 1)
	count(&o.Disks, 1)
	count(&o.NICs, 1)
	count(&o.Workers, 4)
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	return o
}

// VM is one guest of the simulated pool.
type VM struct {
	Ref      string `json:"ref"` // OpaqueRef:…
	UUID     string `json:"uuid"`
	Name     string `json:"name"`
	Affinity string `json:"affinity,omitempty"` // reference of the host that VM.start chooses; "": the coordinator
}

// Setup is what the launcher tells each process, and the processes' common
// knowledge: the pool database, so to say.
type Setup struct {
	Options  Options
	HostRef  string
	Host     string // uuid
	HostName string
	Pool     string // uuid
	PoolRef  string
	VMs      []VM
	Root     string        // directory for truth, devlog and logs
	Refused  time.Duration // how long xapi's socket is there before it listens
}

// HostName and PoolName are the name labels of the only host and of the pool.
const (
	HostName = "dom0"
	PoolName = "pool"
)

// SR is the uuid of the pool's one storage repository, of type lvm.
const SR = "5c1a8d0e-7b7c-4f6e-9a53-2d6c1f0e8b11"

// VDI is the uuid of the virtual disk of a VM's device.
func VDI(vm, dev string) string {
	if len(vm) < 8 || dev == "" {
		return vm
	}
	return "d" + vm[1:len(vm)-2] + hexByte(dev[len(dev)-1])
}

func hexByte(c byte) string {
	const hex = "0123456789abcdef"
	return string([]byte{hex[c>>4], hex[c&15]})
}
