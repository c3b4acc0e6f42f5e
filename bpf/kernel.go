//go:build linux

package bpf

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"runtime"
	"sync"

	"github.com/cilium/ebpf/rlimit"
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

// Defaults of Options: 2,000 XAPI calls a second make some 15,000 records and
// 15 MB, so the ring buffer holds a quarter of a second; it stands twice in the
// resident memory of who reads it. Perf buffers belong to a CPU each, so the fewer
// there are the larger each has to be.
const (
	defaultRing     = 4 << 20
	defaultPerf     = 16 << 20 // of all CPUs
	minPerf         = 1 << 20
	maxPerf         = 4 << 20
	defaultConns    = 16384
	defaultGathers  = 4096
	defaultTargets  = 16384
	defaultInflight = 16384
	defaultBios     = 8192
	defaultDisks    = 512
)

// Options of Open. The zero value chooses everything by what the kernel allows.
type Options struct {
	Legacy      bool         // take the legacy tier even where modern works
	Log         *slog.Logger // nil: discarded
	RingBytes   int          // of the ring buffer; 0: 4 MiB; rounded up to a power of two of pages
	PerfBytes   int          // of each CPU's perf buffer in the legacy tier; 0: 16 MiB for all, 1 MiB to 4 MiB for each
	Conns       int          // known sockets of all targets at once; 0: 16,384
	Gathers     int          // sockets that have had small pieces, 1.4 KiB each; 0: 4,096
	TargetsMax  int          // processes watched at once, children included; 0: 16,384
	InflightMax int          // threads of targets at once; 0: 16,384
	BiosMax     int          // pieces of guests' block I/O in flight at once; 0: 8,192
	DisksMax    int          // guests' disks at once; 0: 512

	dispatch bool // as if callsYield, for tests
}

func (o Options) withDefaults() Options {
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	for _, v := range []struct {
		p   *int
		def int
	}{
		{&o.RingBytes, defaultRing},
		{&o.PerfBytes, min(max(defaultPerf/runtime.NumCPU(), minPerf), maxPerf)},
		{&o.Conns, defaultConns},
		{&o.Gathers, defaultGathers}, {&o.TargetsMax, defaultTargets}, {&o.InflightMax, defaultInflight},
		{&o.BiosMax, defaultBios}, {&o.DisksMax, defaultDisks},
	} {
		if *v.p <= 0 {
			*v.p = v.def
		}
	}
	ring := os.Getpagesize()
	for ring < o.RingBytes {
		ring *= 2
	}
	o.RingBytes = ring
	return o
}

// Kernel is what this kernel and host allow.
type Kernel struct {
	tier   Tier
	checks []Check
	opt    Options
	config config
	block  blockConf
	hooks  map[Probe][]found // to attach to

	dispatched map[Probe][]found // hooks behind dispatchers, which are among hooks

	tracefs string
	cannot  func(*functions) func(way) error // says why a way does not work

	mu         sync.Mutex
	hookChecks []HookCheck
}

// ErrKernel is wrapped by the error of Open when something is missing that all
// probes need.
var ErrKernel = errors.New("eBPF cannot be used here")

// Open finds the tier and the attach points by trying them. When something
// needed is missing the error wraps ErrKernel and says what and how to get it,
// and the Kernel is returned all the same for its Checks.
//
// It mounts tracefs where it is not mounted, and lifts the limit on locked
// memory where the kernel (before 5.11) counts maps against it.
func Open(o Options) (*Kernel, error) {
	k := &Kernel{tier: Legacy, opt: o.withDefaults()}
	memlock := rlimit.RemoveMemlock()
	k.probe(memlock)
	var missing []error
	for _, c := range k.checks {
		if c.Needed && !c.OK {
			missing = append(missing, fmt.Errorf("%s: %s; %s", c.Name, c.Why, c.Advice))
		}
	}
	if missing != nil {
		return k, fmt.Errorf("%w: %w", ErrKernel, errors.Join(missing...))
	}
	return k, nil
}

// Tier returns the build that Load takes.
func (k *Kernel) Tier() Tier { return k.tier }

// Checks returns what Open tried, in the order in which it matters.
func (k *Kernel) Checks() []Check { return k.checks }
