//go:build linux

package bpf

import (
	"errors"
	"log/slog"
)

// Tier is a build of the programs.
type Tier uint8

// Tiers.
const (
	Legacy Tier = 1 // Linux 4.19 and later: perf buffers, no BTF
	Modern Tier = 2 // Linux 5.8 and later with BTF: ring buffer, CO-RE
)

// String returns "legacy" or "modern".
func (t Tier) String() string {
	if t == Modern {
		return "modern"
	}
	return "legacy"
}

// Probe is a set of programs that are attached together.
type Probe uint8

// Probes.
const (
	Stream  Probe = 1 // sockets and log lines of targets
	Process Probe = 2 // fork, exec and exit of targets and their children
)

// allProbes in the order in which they are attached.
var allProbes = []Probe{Stream, Process}

// String returns the name that losses and attachments are shown with.
func (p Probe) String() string {
	switch p {
	case Stream:
		return "stream"
	case Process:
		return "process"
	}
	return "unknown"
}

// Options of Open. The zero value chooses everything by what the kernel allows.
type Options struct {
	Legacy      bool         // take the legacy tier even where modern works
	Log         *slog.Logger // nil: discarded
	RingBytes   int          // of the ring buffer; 0: 8 MiB; rounded up to a power of two of pages
	PerfBytes   int          // of each CPU's perf buffer in the legacy tier; 0: 1 MiB
	Conns       int          // known sockets of all targets at once; 0: 16,384
	Gathers     int          // sockets that gather small pieces at once, 1.1 KiB each way; 0: 4,096
	TargetsMax  int          // processes watched at once, children included; 0: 16,384
	InflightMax int          // threads of targets inside a watched system call at once; 0: 16,384
}

// Check is one thing that Open found out about this kernel and host.
type Check struct {
	Name   string // what was tried, e.g. "BTF"
	OK     bool
	Needed bool   // without it no probe runs
	Detail string // how it works here
	Why    string // why it does not
	Advice string // what to do about it
}

// Kernel is what this kernel and host allow.
type Kernel struct {
	tier   Tier
	checks []Check
	log    *slog.Logger
	opt    Options
}

var errUnfinished = errors.New("not written yet")

// Open finds the tier and the attach points. When something needed is missing
// the error says what and how to get it, and the Kernel is returned all the
// same for its Checks.
func Open(o Options) (*Kernel, error) { return nil, errUnfinished }

// Tier returns the build that Load takes.
func (k *Kernel) Tier() Tier { return k.tier }

// Checks returns what Open tried, in the order in which it matters.
func (k *Kernel) Checks() []Check { return k.checks }

// Load loads the maps and programs of all probes and attaches nothing. Only one
// Session should exist at a time; nothing prevents more.
func (k *Kernel) Load() (*Session, error) { return nil, errUnfinished }
