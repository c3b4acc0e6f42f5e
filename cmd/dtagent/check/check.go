// Package check finds out what a kernel and a host allow, what runs there, and what
// Observers ask for. `dtagent check` prints it, and the daemon starts by it: both say
// the same in the same words.
//
// It attaches nothing that stays, starts nothing, and writes no file. Receivers get a
// request without spans.
package check

import (
	"cmp"
	"context"
	"fmt"
	"os"
	"time"

	"github.com/xenserver/dtagent/bpf"
	"github.com/xenserver/dtagent/observer"
	"github.com/xenserver/dtagent/observer/bugtool"
	"github.com/xenserver/dtagent/observer/spanlog"
	"github.com/xenserver/dtagent/observer/xapi"
)

// Options are the agent's settings, as far as they matter. Zero values are its
// defaults, but an empty XAPISocket or StateDir means none.
type Options struct {
	Version      string
	Settings     string // file of the settings; "": none
	SettingsErr  error  // what is wrong with it
	Legacy       bool
	ObserversDir string
	BugtoolDir   string
	SpanLog      string
	XAPISocket   string
	StateDir     string
	CAFile       string
	Control      string
	Proc         string
	HostUUID     string
	SMDir        string // further directory of SM scripts
	Offline      bool   // do not connect to receivers
}

// Report is all that was found out.
type Report struct {
	OK        bool       `json:"ok"` // all that is needed works
	Tier      string     `json:"tier,omitempty"`
	Kernel    []Item     `json:"kernel"`
	Hooks     []Hook     `json:"hooks"`
	Toolstack []Item     `json:"toolstack"` // the host, and what of its toolstack is not there
	Targets   []Target   `json:"targets"`   // its processes
	Sources   []Item     `json:"sources"`   // of Observers
	Observers []Observer `json:"observers"`
	Endpoints []Endpoint `json:"endpoints"` // of Observers in force
	Agent     []Item     `json:"agent"`
	Notes     []string   `json:"notes,omitempty"` // what could not be looked at
}

// checker is a Report in the making.
type checker struct {
	o Options
	host
	logRoom, queueRoom uint64 // bytes that are to be free on the disks of spans
}

// xapiTimeout is for each of the few calls to XAPI.
const xapiTimeout = 10 * time.Second

// Run looks at everything. It takes some seconds at most, unless XAPI is slow.
func Run(ctx context.Context, o Options) *Report {
	k, err := bpf.Open(bpf.Options{Legacy: o.Legacy})
	c := &checker{o: o, logRoom: leastLogRoom, queueRoom: leastQueueRoom}
	r := c.report(ctx, OfKernel(k), findRPM())
	if err != nil && k == nil {
		r.OK = false
		r.Notes = append(r.Notes, err.Error())
	}
	return r
}

// report is Run with what was found out about the kernel.
func (c *checker) report(ctx context.Context, k Kernel, rpm func(context.Context, string) string) *Report {
	o := &c.o
	o.ObserversDir, o.BugtoolDir, o.SpanLog = cmp.Or(o.ObserversDir, observer.DefaultDir), cmp.Or(o.BugtoolDir, bugtool.DefaultDir), cmp.Or(o.SpanLog, spanlog.DefaultPath)
	r := &Report{Tier: k.Tier, Kernel: append([]Item{}, k.Items...), Hooks: append([]Hook{}, k.Hooks...), Targets: []Target{}, Observers: []Observer{}}
	if os.Geteuid() != 0 {
		r.Notes = append(r.Notes, "not run as root: eBPF, XAPI, and which files processes of others run, could not be looked at; run `sudo dtagent check`")
	}

	product, uuid := c.product(o.HostUUID)
	r.Toolstack = append(r.Toolstack, product)
	local, fromFiles := localSource(o.ObserversDir)
	r.Sources = local
	var fromXAPI []observer.Observer
	v := newVersions(rpm)
	if o.XAPISocket != "" {
		items, sight := xapiSource(ctx, xapi.Options{Socket: o.XAPISocket, HostUUID: uuid, Version: o.Version, CallTimeout: xapiTimeout})
		r.Sources = append(items, r.Sources...)
		if sight != nil {
			fromXAPI, v.xapi = sight.State.Observers, sight.Software["xapi_build"]
		}
	}

	targets, found, err := c.targets(ctx, o.Proc, v)
	if err != nil {
		r.Notes = append(r.Notes, fmt.Sprintf("processes: %v", err))
	} else {
		r.Targets = append(r.Targets, targets...)
		r.Toolstack = append(r.Toolstack, missing(found)...)
	}
	r.Toolstack = append(r.Toolstack, c.scripts(ctx, o.SMDir, v)...)

	r.Observers = append(r.Observers, observers(fromXAPI, fromFiles, uuid)...)
	r.Endpoints = c.endpoints(ctx, r.Observers)

	r.Agent = append(r.Agent, c.settings(o.Settings, o.SettingsErr))
	if o.StateDir != "" {
		r.Agent = append(r.Agent, directory("state directory", o.StateDir, c.queueRoom).needed())
	}
	r.Agent = append(r.Agent, running(ctx, o.Control, o.Version), c.service())
	r.OK = true
	for _, i := range r.all() {
		r.OK = r.OK && !i.stops()
	}
	return r
}

// all returns every Item.
func (r *Report) all() []Item {
	out := Kernel{Items: r.Kernel, Hooks: r.Hooks}.All()
	out = append(out, r.Toolstack...)
	for _, t := range r.Targets {
		out = append(out, t.Item)
	}
	return append(out, r.Configured()...)
}

// Configured returns what Observers ask for, and where they come from.
func (r *Report) Configured() []Item {
	out := append([]Item{}, r.Sources...)
	for _, o := range r.Observers {
		out = append(out, o.Item)
	}
	for _, e := range r.Endpoints {
		out = append(out, e.Item)
	}
	return append(out, r.Agent...)
}

// Strict tells whether also all that is configured works: no Observer, source or
// endpoint fails, and the agent that runs has no trouble.
func (r *Report) Strict() bool {
	for _, i := range r.Configured() {
		if i.State == Fails {
			return false
		}
	}
	return r.OK
}
