//go:build linux

package judge

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/go-quicktest/qt"

	"github.com/xenserver/dtagent/bpf"
	"github.com/xenserver/dtagent/correlate/verdict"
	"github.com/xenserver/dtagent/probes/event"
	"github.com/xenserver/dtagent/probes/guestio"
	"github.com/xenserver/dtagent/testenv/fault"
	"github.com/xenserver/dtagent/testenv/tapdisk"
	"github.com/xenserver/dtagent/testenv/xenstored"
)

func TestMain(m *testing.M) {
	tapdisk.Main()
	os.Exit(m.Run())
}

// A tapdisk that is slow in a known layer is told to be slow in that, with the cause
// that makes it so, from what the kernel counted.
func TestJudgeKernel(t *testing.T) {
	k, err := bpf.Open(bpf.Options{})
	if errors.Is(err, bpf.ErrKernel) {
		t.Skip("needs eBPF: " + strings.ReplaceAll(err.Error(), "\n", "; "))
	}
	qt.Assert(t, qt.IsNil(err))
	session, err := k.Load()
	qt.Assert(t, qt.IsNil(err))
	defer session.Close()
	load := tapdisk.Load{Depth: 4, Reads: 2, Writes: 1, Random: true, Rate: 400, Time: 500 * time.Millisecond}
	for i, c := range []struct {
		name   string
		layer  tapdisk.Layer
		size   time.Duration
		device string // kind of fault; "": a file
		vhd    bool
		load   tapdisk.Load
		causes []verdict.Cause
		layers []event.Layer
	}{
		{name: "device", layer: tapdisk.Device, size: 20 * time.Millisecond, device: "loop-fuse", load: load, causes: []verdict.Cause{verdict.Device}, layers: []event.Layer{event.LayerDevice}},
		// On a machine that has other things to do, too, who works longer waits longer for a CPU.
		{name: "busy", layer: tapdisk.Busy, size: 5 * time.Millisecond, load: load, causes: []verdict.Cause{verdict.TapdiskCPU, verdict.Tapdisk, verdict.Dom0CPU}, layers: []event.Layer{event.LayerTapdisk, event.LayerPickup, event.LayerRunQueue}},
		{name: "runq", layer: tapdisk.RunQueue, size: 300 * time.Millisecond, load: load, causes: []verdict.Cause{verdict.Dom0CPU}, layers: []event.Layer{event.LayerRunQueue}},
		{name: "pause", layer: tapdisk.Pause, size: 400 * time.Millisecond, load: load, causes: []verdict.Cause{verdict.Pause}, layers: nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			dir := t.TempDir()
			store, err := xenstored.Start(filepath.Join(dir, "xenstored"))
			qt.Assert(t, qt.IsNil(err))
			defer store.Close()
			domid, shm := 4100+i, t.TempDir()
			o := tapdisk.Options{Domid: domid, ShmRoot: shm}
			if c.device != "" {
				dev, err := fault.Open(t.Context(), c.device, fault.Options{Size: 64 << 20})
				if missing := (*fault.MissingError)(nil); errors.As(err, &missing) {
					t.Skip(err)
				}
				qt.Assert(t, qt.IsNil(err))
				defer dev.Close()
				o.Device = dev
			} else {
				o.Image = filepath.Join(dir, "image")
				qt.Assert(t, qt.IsNil(os.WriteFile(o.Image, make([]byte, 64<<20), 0o600)))
			}
			store.SetAll(fmt.Sprintf("/local/domain/%d", domid), map[string]string{"name": "web", "vm": "/vm/u-5"})
			store.SetAll(fmt.Sprintf("/local/domain/0/backend/vbd3/%d/51712", domid), map[string]string{"mode": "w", "frontend-id": fmt.Sprint(domid)})
			disk, err := tapdisk.Start(t.Context(), o)
			qt.Assert(t, qt.IsNil(err))
			defer func() { qt.Check(t, qt.IsNil(disk.Close())) }()
			disks := guestio.New(guestio.Options{Kernel: session, Xenstore: []string{filepath.Join(dir, "xenstored")}, Shm: shm})
			w, err := disks.Watch(t.Context())
			qt.Assert(t, qt.IsNil(err))
			defer w.Close()
			ctx, stop := context.WithCancel(t.Context())
			guest := make(chan error, 1)
			go func() {
				var err error
				for err == nil && ctx.Err() == nil { // what it is behind with is forgotten each time
					_, err = disk.Guest().Run(t.Context(), c.load)
				}
				guest <- err
			}()
			defer func() {
				stop()
				qt.Check(t, qt.IsNil(<-guest))
			}()
			j := New(Options{})
			// A window lasts until it has enough requests.
			window := func(requests uint64, least time.Duration, also func(*verdict.Disk) bool) *verdict.Window {
				var all *verdict.Window
				for {
					time.Sleep(200 * time.Millisecond)
					next := []*verdict.Window{Window(w.Sample())}
					if all != nil {
						next = slices.Insert(next, 0, all)
					}
					all = verdict.Fold(next)
					if len(all.Disks) == 1 && all.Disks[0].Layered && all.Disks[0].Requests[verdict.Read].Layers[event.LayerTotal].Count >= requests && all.Duration >= least && also(&all.Disks[0]) {
						return all
					}
					qt.Assert(t, qt.IsTrue(all.Duration < time.Minute), qt.Commentf("not in a minute: %+v", all))
				}
			}
			anything := func(*verdict.Disk) bool { return true }
			window(1, 0, anything)
			w.Sample()
			var worst time.Duration
			for range 10 {
				learned := window(60, 0, anything)
				worst = max(worst, learned.Disks[0].Requests[verdict.Read].Layers[event.LayerTotal].Mean())
				j.take(learned)
			}
			f := j.base.Judge(window(60, 0, anything))
			t.Logf("before: %s", f[0].Text())

			qt.Assert(t, qt.IsNil(disk.Inject(c.layer, c.size)))
			window(5, 0, anything)
			slow := window(60, 3*time.Second, func(d *verdict.Disk) bool {
				return c.layer != tapdisk.Pause || d.Process != nil && d.Process.Paused > time.Second
			})
			qt.Assert(t, qt.IsNil(disk.Inject(c.layer, 0)))
			f = j.base.Judge(slow)
			t.Logf("after: %s", f[0].Text())
			if mean := slow.Disks[0].Requests[verdict.Read].Layers[event.LayerTotal].Mean(); c.layer != tapdisk.Pause && mean < 8*worst && !f[0].Cause.Fault() {
				t.Skipf("this machine is too busy with others: reads take %s with what was injected, and took %s before", mean, worst)
			}
			qt.Check(t, qt.IsTrue(slices.Contains(c.causes, f[0].Cause)), qt.Commentf("%s", f[0].Cause))
			share := 0.0
			for _, l := range c.layers {
				share += f[0].Shares[l.String()]
			}
			qt.Check(t, qt.IsTrue(len(c.layers) == 0 || share >= 0.9), qt.Commentf("%v", f[0].Shares))
		})
	}
}
