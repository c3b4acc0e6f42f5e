//go:build linux

package verdicts

import (
	"errors"
	"time"

	"github.com/xenserver/dtagent/correlate/verdict"
	"github.com/xenserver/dtagent/probes/event"
	"github.com/xenserver/dtagent/testenv/tapdisk"
)

// Case is a way to lose time, and what has to be said of it.
type Case struct {
	Name  string
	What  string        // in words
	Disks []Disk        // nil: one. The first is the one that is slow
	All   bool          // all are
	Base  time.Duration // that the device always takes
	Look  time.Duration // that the agent has to look for at least

	Device  string // kind of testenv/fault
	Options tapdisk.Options
	Load    tapdisk.Load

	Causes []verdict.Cause // any of these is right
	Places []string        // so is any of these as the layer; nil: whichever
	Layers []event.Layer   // that hold the added time; nil: it is in none of them

	// inject has requests take about so many times as long as they did.
	inject func(l *lab, times int) (undo func() error, err error)
}

// Disk is one of a Case.
type Disk struct {
	Shares  bool // the device of the one before
	Parents int  // of its image
	Only    int  // it is slow in the trial of that many times only; 0: in all; -1: what is said of it is right, whatever it is
}

const (
	base     = time.Millisecond
	slowBase = 2 * time.Millisecond
)

// easy is a load that asks for little.
var easy = tapdisk.Load{Depth: 4, Rate: 80, Reads: 0.6, Writes: 0.4}

func only(l tapdisk.Load, f func(*tapdisk.Load)) tapdisk.Load {
	f(&l)
	return l
}

var (
	oneAtATime = only(easy, func(l *tapdisk.Load) { l.Depth = 1 })
	rare       = only(oneAtATime, func(l *tapdisk.Load) { l.Rate = 40 })
)

// more is what each request has to take longer, in milliseconds as devices have it, for
// all to take so many times as long: they are served one after the other, and wait for
// those before them when there are too many.
func (l *lab) more(times int) time.Duration {
	d := time.Duration(times-1) * min(l.guests[0].middle, 2*base) // a busy machine's are no measure
	load := &l.c.Load
	n := time.Duration(0)
	for i := range l.guests {
		if l.c.All || i == 0 {
			n++
		}
	}
	if load.Rate*d.Seconds()*float64(n) > 0.7 {
		d /= n * time.Duration(load.Depth)
	}
	return max(d.Round(time.Millisecond), time.Millisecond)
}

// layer injects into the first disk's tapdisk.
func (l *lab) layer(layer tapdisk.Layer, size time.Duration) (func() error, error) {
	d := l.guests[0].disk
	return func() error { return d.Inject(layer, 0) }, d.Inject(layer, size)
}

func (l *lab) delay(d time.Duration) (func() error, error) {
	dev := l.devices[0]
	return func() error { return dev.SetDelay(l.c.Base) }, dev.SetDelay(d)
}

func slowDevice(l *lab, times int) (func() error, error) { return l.delay(l.c.Base + l.more(times)) }

// Cases are all there are.
func Cases() []Case {
	layers := func(l ...event.Layer) []event.Layer { return l }
	causes := func(c ...verdict.Cause) []verdict.Cause { return c }
	return []Case{
		{Name: "device", What: "the device is slow", Device: "loop-fuse", Base: base, Load: easy,
			Causes: causes(verdict.Device), Places: []string{"device"}, Layers: layers(event.LayerDevice), inject: slowDevice},
		{Name: "repository", What: "the device of three disks is slow", Device: "loop-fuse", Base: base, Load: rare,
			Disks: []Disk{{}, {Shares: true}, {Shares: true}}, All: true,
			Causes: causes(verdict.Device), Places: []string{"device"}, Layers: layers(event.LayerDevice), inject: slowDevice},
		{Name: "throttle", What: "the block layer holds I/O back", Device: "throttle", Load: tapdisk.Load{Rate: 1500},
			Causes: causes(verdict.QueueLimit, verdict.QoS), Places: []string{"queue"}, Layers: layers(event.LayerQueue),
			inject: func(l *lab, times int) (func() error, error) {
				return l.layer(tapdisk.Queue, max(time.Duration(times)*l.guests[0].middle, time.Millisecond).Round(time.Millisecond))
			}},
		{Name: "submit", What: "the device has four places for requests", Device: "loop-fuse", Base: slowBase, Load: tapdisk.Load{Depth: 16, Rate: 300},
			Causes: causes(verdict.SubmitBlocking), Places: []string{"submit"}, Layers: layers(event.LayerSubmit, event.LayerTapdisk, event.LayerPickup, event.LayerDevice),
			inject: func(l *lab, times int) (func() error, error) {
				undo, err := l.layer(tapdisk.Submit, max(time.Duration(times)*l.guests[0].middle/16, 4*time.Millisecond).Round(time.Millisecond))
				return func() error { return errors.Join(undo(), l.devices[0].SetDelay(l.c.Base)) }, err
			}},
		{Name: "cpu", What: "others take the CPU", Device: "loop-fuse", Base: base, Load: easy,
			Causes: causes(verdict.Dom0CPU), Places: []string{"runq"}, Layers: layers(event.LayerRunQueue),
			inject: func(l *lab, times int) (func() error, error) { return l.layer(tapdisk.RunQueue, 2*l.more(times)) }},
		{Name: "busy", What: "tapdisk works long for each", Device: "loop-fuse", Base: base, Load: oneAtATime,
			Causes: causes(verdict.Tapdisk, verdict.TapdiskCPU), Places: []string{"tapdisk"}, Layers: layers(event.LayerTapdisk),
			inject: func(l *lab, times int) (func() error, error) { return l.layer(tapdisk.Busy, l.more(times)) }},
		{Name: "copy", What: "copies are slow", Device: "loop-fuse", Base: base, Load: oneAtATime, Options: tapdisk.Options{SlowCopy: true},
			Causes: causes(verdict.Copy), Places: []string{"copy"}, Layers: layers(event.LayerCopy),
			inject: func(l *lab, times int) (func() error, error) { return l.layer(tapdisk.Copy, l.more(times)) }},
		{Name: "copies", What: "copies are slow, of several at once", Device: "loop-fuse", Base: base, Load: easy, Options: tapdisk.Options{SlowCopy: true},
			Causes: causes(verdict.Copy), Places: []string{"copy"}, Layers: layers(event.LayerCopy, event.LayerTapdisk, event.LayerPickup),
			inject: func(l *lab, times int) (func() error, error) {
				return l.layer(tapdisk.Copy, l.more(times))
			}},
		{Name: "chain", What: "the tables of a chain of images are read anew", Device: "loop-fuse", Base: base, Load: only(easy, func(l *tapdisk.Load) { l.Writes = 0 }),
			Options: tapdisk.Options{Type: tapdisk.VHD}, Disks: []Disk{{Parents: 3, Only: 5}, {Parents: 45, Only: 50}},
			Causes: causes(verdict.DeepChain), Places: []string{"metadata"}, Layers: layers(event.LayerMetadata),
			inject: func(l *lab, times int) (func() error, error) {
				d := l.guests[0].disk
				if times > 5 {
					d = l.guests[1].disk
				}
				return func() error { return d.Inject(tapdisk.Metadata, 0) }, d.Inject(tapdisk.Metadata, 1)
			}},
		{Name: "pause", What: "tapdisk is paused, as for a snapshot, again and again", Device: "loop-fuse", Base: base, Load: easy,
			Causes: causes(verdict.Pause),
			inject: func(l *lab, times int) (func() error, error) {
				return l.layer(tapdisk.Pause, time.Duration(times)*50*time.Millisecond)
			}},
		{Name: "barriers", What: "the guest sends many barriers", Device: "loop-fuse", Base: base, Load: easy, Look: 30 * time.Second,
			Causes: causes(verdict.FlushStorm), Places: []string{"ring"},
			inject: func(l *lab, times int) (func() error, error) {
				return l.guests[0].change(func(l *tapdisk.Load) {
					l.Barriers, l.Rate, l.Depth = map[bool]float64{true: 0.1, false: 0.5}[times <= 5], 0, min(4*times, 32)
				}), nil
			}},
		{Name: "storm", What: "the guest sends many small requests", Device: "loop-fuse", Base: base, Load: easy, Options: tapdisk.Options{RingPages: 2},
			Causes: causes(verdict.OwnLoad, verdict.TapdiskCPU, verdict.Healthy),
			inject: func(l *lab, times int) (func() error, error) {
				return l.guests[0].change(func(l *tapdisk.Load) { l.Rate, l.Depth, l.Size = 0, times, 512 }), nil
			}},
		{Name: "neighbour", What: "another disk takes what the device can do", Device: "throttle", Base: 2 * time.Millisecond, Load: only(easy, func(l *tapdisk.Load) { l.Writes = 0 }),
			Options: tapdisk.Options{RingPages: 2}, Disks: []Disk{{}, {Shares: true, Only: -1}},
			Causes: causes(verdict.NoisyNeighbour), Places: []string{"queue", "device"}, Layers: layers(event.LayerQueue, event.LayerDevice),
			inject: func(l *lab, times int) (func() error, error) {
				return l.guests[1].change(func(l *tapdisk.Load) { l.Rate, l.Depth = 0, times }), nil
			}},
		{Name: "nfs-server", What: "the NFS server is slow", Device: "nfs-server", Base: base, Load: easy,
			Causes: causes(verdict.Server), Places: []string{"device"}, Layers: layers(event.LayerDevice, event.LayerQueue), inject: slowDevice},
		{Name: "nfs-network", What: "the network to the NFS server is slow", Device: "nfs-netem", Base: base, Load: easy,
			Causes: causes(verdict.Network), Places: []string{"device"}, Layers: layers(event.LayerDevice, event.LayerQueue), inject: slowDevice},
	}
}
