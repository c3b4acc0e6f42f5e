// Package control is the agent's unix socket: what it tells about itself, the
// stream of finished spans, and what dtagent record writes. Only root gets to it.
package control

import (
	"time"

	"github.com/xenserver/dtagent/correlate"
	"github.com/xenserver/dtagent/observer"
	"github.com/xenserver/dtagent/observer/xapi"
	"github.com/xenserver/dtagent/probes/recording"
)

// Status is what the agent tells about itself. Counters begin with its start.
type Status struct {
	Version       string    `json:"version"`
	PID           int       `json:"pid"`
	Started       time.Time `json:"started"`
	UptimeSeconds float64   `json:"uptime_seconds"`

	Tier         string        `json:"tier"`              // which programs are loaded: "modern" or "legacy"
	Restrictions []Restriction `json:"restrictions"`      // what this kernel and host do by a wider way only, or not
	Components   []string      `json:"components"`        // wanted by some enabled Observer
	Trouble      string        `json:"trouble,omitempty"` // why what is wanted is not attached
	Targets      []Target      `json:"targets"`           // processes watched
	Probes       []Probe       `json:"probes"`            // programs attached

	Children int `json:"children"` // of targets, watched too

	Events   map[string]uint64     `json:"events"`  // by kind
	Missing  uint64                `json:"missing"` // records that never arrived, by the gaps in their numbers; Losses has their causes
	Losses   []Loss                `json:"losses"`  // events that did not get through, by probe and cause
	Order    Order                 `json:"order"`
	Steps    uint64                `json:"clock_steps"` // of the wall clock: set, or the host was suspended
	Handover Handover              `json:"handover"`
	Sorter   correlate.SorterStats `json:"sorter"`
	Engine   correlate.Stats       `json:"engine"`

	Recordings recording.LiveStats `json:"recordings"` // that dtagent record makes

	ObserversDir string                   `json:"observers_dir"`
	XAPI         *xapi.Status             `json:"xapi,omitempty"` // nil: the Observers of the pool are not followed
	Observers    []observer.ObserverStats `json:"observers"`
	Totals       observer.EndpointStats   `json:"totals"`   // of all endpoints there ever were
	Mistakes     []Mistake                `json:"mistakes"` // in the Observers directory
	BugtoolDir   string                   `json:"bugtool_dir"`
	StateDir     string                   `json:"state_dir,omitempty"`
	Metrics      string                   `json:"metrics,omitempty"` // address of the metrics page

	Process Process `json:"process"`
}

// Restriction is something that works by a wider way only, as `dtagent check` says
// it.
type Restriction struct {
	Name   string `json:"name"`
	State  string `json:"state"`
	Detail string `json:"detail,omitempty"`
	Why    string `json:"why,omitempty"`
	Advice string `json:"advice,omitempty"`
}

// Target is a process that the agent watches.
type Target struct {
	TGID      uint32 `json:"tgid"`
	Component string `json:"component"`
	Program   string `json:"program,omitempty"`
}

// Probe is one program attached to one hook of the kernel.
type Probe struct {
	Probe   string `json:"probe"`
	Program string `json:"program"` // as bpftool prog shows it
	Hook    string `json:"hook"`
	Way     string `json:"way"`
}

// Loss counts events of one probe that got lost for one cause.
type Loss struct {
	Probe string `json:"probe"`
	Cause string `json:"cause"`
	Count uint64 `json:"count"`
}

// CauseNoStart is the cause of losses that are none: events of calls that had
// begun before the probes were attached came without their start.
const CauseNoStart = "start of the call not seen"

// CauseNoSwitch is the cause of another: that a thread got or lost its CPU was
// not seen, so a part of its time is in no way of spending it.
const CauseNoSwitch = "switch of a thread not seen"

// CauseNoWakeup is the cause of a third: it was not seen when a thread's wait ended,
// so the wait counts until the thread had a CPU again.
const CauseNoWakeup = "wakeup of a thread not seen"

// CauseSkipped is the cause of what may be losses: the kernel did not run a program,
// for a process that need not be watched.
const CauseSkipped = "program skipped by the kernel"

// OfEvent tells whether events are surely missing because of it.
func (l Loss) OfEvent() bool {
	switch l.Cause {
	case CauseNoStart, CauseNoSwitch, CauseNoWakeup, CauseSkipped:
		return false
	}
	return true
}

// Lost is how many events got lost, for whatever cause.
func (s *Status) Lost() uint64 {
	n := s.Handover.Dropped
	for _, l := range s.Losses {
		if l.OfEvent() {
			n += l.Count
		}
	}
	return n
}

// Handover is the queue between the reader of the probes and the correlation.
type Handover struct {
	Capacity int    `json:"capacity"` // events
	Queued   int    `json:"queued"`
	Dropped  uint64 `json:"dropped"` // because it was full
}

// Mistake is something wrong in a file of the Observers directory.
type Mistake struct {
	File  string `json:"file"` // or the directory
	Error string `json:"error"`
	Kept  bool   `json:"kept"` // its last good state is in force
}

// Process is what the agent itself costs.
type Process struct {
	RSSBytes   uint64  `json:"rss_bytes"`
	CPUSeconds float64 `json:"cpu_seconds"` // user and system
	HeapBytes  uint64  `json:"heap_bytes"`
	Goroutines int     `json:"goroutines"`
}

// Order is how well the records of several CPUs came in the order of their
// clock. It is counted for the perf buffers of the legacy tier.
type Order struct {
	Early uint64 `json:"early"` // handed on before all older ones were surely read: a buffer was half full
	Late  uint64 `json:"late"`  // handed on after a younger one
}

// Notice is a line of the trace stream that is no span: the reason for its
// end.
type Notice struct {
	Notice  string `json:"notice"`
	Dropped uint64 `json:"dropped,omitempty"` // spans that this reader missed
}
