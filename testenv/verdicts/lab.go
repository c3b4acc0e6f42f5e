//go:build linux

package verdicts

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/xenserver/dtagent/bpf"
	"github.com/xenserver/dtagent/cmd/dtagent/judge"
	"github.com/xenserver/dtagent/correlate/verdict"
	"github.com/xenserver/dtagent/probes/guestio"
	"github.com/xenserver/dtagent/testenv/fault"
	"github.com/xenserver/dtagent/testenv/tapdisk"
	"github.com/xenserver/dtagent/testenv/xenstored"
)

const (
	diskSize = 48 << 20 // of the guests
	firstDom = 3001
	devid    = 51712 // xvda
	device   = "xvda"
	slice    = time.Second // of a load: a new one takes its place after that
	patience = 30 * time.Second
)

// lab is a dom0 with guests, as one Case has it.
type lab struct {
	c       *Case
	dir     string
	store   *xenstored.Server
	devices []fault.Device
	guests  []*guest
	probe   *guestio.Probe
	judge   *judge.Judge
}

// guest is a VM with a load on its disk.
type guest struct {
	disk   *tapdisk.Disk
	id     string        // as verdict.Who has it
	usual  time.Duration // mean of what requests take while nothing is wrong
	middle time.Duration // and the median

	mu       sync.Mutex
	load     tapdisk.Load
	requests []tapdisk.Request // since they were taken last
	err      error
	stop     bool
	ended    chan struct{}
}

// openLab makes one, with its load under way.
func openLab(ctx context.Context, session *bpf.Session, c *Case, o *Options) (_ *lab, failed error) {
	l := &lab{c: c}
	defer func() {
		if failed != nil {
			failed = errors.Join(failed, l.close())
		}
	}()
	var err error
	if l.dir, err = os.MkdirTemp("", "verdicts"); err != nil {
		return l, err
	}
	shm := filepath.Join(l.dir, "shm")
	if err := os.Mkdir(shm, 0o700); err != nil {
		return l, err
	}
	socket := filepath.Join(l.dir, "xenstored")
	if l.store, err = xenstored.Start(socket); err != nil {
		return l, err
	}
	for i := range max(1, len(c.Disks)) {
		var d Disk
		if i < len(c.Disks) {
			d = c.Disks[i]
		}
		if err := l.add(ctx, i, &d, shm); err != nil {
			return l, err
		}
	}
	if o.First {
		if err := goFirst(); err != nil {
			return l, err
		}
	}
	l.probe = guestio.New(guestio.Options{Kernel: session, Xenstore: []string{socket}, Shm: shm})
	l.judge = judge.New(judge.Options{Window: o.Window, Step: min(o.Window, time.Second), Watch: func(ctx context.Context) (judge.Watch, error) {
		w, err := l.probe.Watch(ctx)
		if err != nil {
			return nil, err
		}
		return w, nil
	}})
	return l, nil
}

// goFirst has the processes that this one has started go before others. Each has a
// session of its own, and the scheduler is fair between sessions first.
func goFirst() error {
	self := os.Getpid()
	pids := []int{self}
	names, err := filepath.Glob("/proc/[0-9]*/stat")
	if err != nil {
		return err
	}
	for _, name := range names {
		b, err := os.ReadFile(name)
		if err != nil {
			continue // it has ended
		}
		var pid, parent int
		var state string
		rest := string(b[bytes.LastIndexByte(b, ')')+1:])
		if _, err := fmt.Sscan(rest, &state, &parent); err != nil || parent != self {
			continue
		}
		if _, err := fmt.Sscan(string(b), &pid); err == nil {
			pids = append(pids, pid)
		}
	}
	for _, pid := range pids {
		if err := unix.Setpriority(unix.PRIO_PROCESS, pid, -19); err != nil {
			return fmt.Errorf("priority: %w", err)
		}
		group := fmt.Sprintf("/proc/%d/autogroup", pid)
		if err := os.WriteFile(group, []byte("-19"), 0o644); err != nil && !errors.Is(err, os.ErrNotExist) {
			return fmt.Errorf("priority: %w", err)
		}
	}
	return nil
}

// add makes a VM whose disk is d.
func (l *lab) add(ctx context.Context, i int, d *Disk, shm string) error {
	o := l.c.Options
	o.Domid, o.Devid, o.ShmRoot = firstDom+i, devid, shm
	if !d.Shares || len(l.devices) == 0 {
		dev, err := fault.Open(ctx, l.c.Device, fault.Options{Size: diskSize * 3 / 2})
		if err != nil {
			return err
		}
		l.devices = append(l.devices, dev)
		if o.Type == tapdisk.VHD {
			if err := tapdisk.CreateVHD(dev.Path(), tapdisk.Content{Size: diskSize, Blocks: 1, Sectors: 1 - btoi(d.Parents > 0), Child: d.Parents > 0}); err != nil {
				return err
			}
		}
		if err := dev.SetDelay(l.c.Base); err != nil {
			return err
		}
	}
	o.Device = l.devices[len(l.devices)-1]
	if d.Parents > 0 { // only the last one has what is looked for
		root, err := fault.Open(ctx, l.c.Device, fault.Options{Size: diskSize * 3 / 2, Delay: l.c.Base})
		if err != nil {
			return err
		}
		l.devices = append(l.devices, root)
		if err := tapdisk.CreateVHD(root.Path(), tapdisk.Content{Size: diskSize, Blocks: 1, Sectors: 1}); err != nil {
			return err
		}
		for range d.Parents - 1 {
			o.Chain = append(o.Chain, o.Device.Path())
		}
		o.Chain = append(o.Chain, root.Path())
	}
	vm := fmt.Sprintf("7e57%04x-0000-4000-8000-%012x", i, o.Domid)
	l.store.SetAll(fmt.Sprintf("/local/domain/%d", o.Domid), map[string]string{"name": fmt.Sprintf("vm%d", i), "vm": "/vm/" + vm})
	l.store.Set(fmt.Sprintf("/xapi/%s/private/vbd3/%d/vdi-id", vm, devid), fmt.Sprintf(`["VDI","5e5e5e5e-0000-4000-8000-000000000001/d15c%04x-0000-4000-8000-%012x"]`, i, o.Domid))
	l.store.SetAll(fmt.Sprintf("/local/domain/0/backend/vbd3/%d/%d", o.Domid, devid), map[string]string{"dev": device, "mode": "w", "frontend-id": fmt.Sprint(o.Domid)})
	t, err := tapdisk.Start(ctx, o)
	if err != nil {
		return err
	}
	load := l.c.Load
	load.Time, load.Random, load.Seed = slice, true, uint64(1000*i)
	load.Span = 4 << 20
	if d.Shares {
		load.Begin = int64(i) * load.Span
	}
	g := &guest{disk: t, id: guestio.Tapdisk + " " + vm + " " + device, load: load, ended: make(chan struct{})}
	l.guests = append(l.guests, g)
	go g.run()
	return nil
}

func btoi(b bool) float64 {
	if b {
		return 1
	}
	return 0
}

// run is what the guest does.
func (g *guest) run() {
	defer close(g.ended)
	for {
		g.mu.Lock()
		load, stop := g.load, g.stop
		g.load.Seed++
		g.mu.Unlock()
		if stop {
			return
		}
		r, err := g.disk.Guest().Run(context.Background(), load)
		if err == nil && r.Failed > 0 {
			err = fmt.Errorf("%d requests failed", r.Failed)
		}
		g.mu.Lock()
		g.requests = append(g.requests, r.Requests...)
		g.err = err
		g.mu.Unlock()
		if err != nil {
			return
		}
	}
}

// change has the load be another one from the next slice on.
func (g *guest) change(f func(*tapdisk.Load)) (undo func() error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	old := g.load
	f(&g.load)
	return func() error {
		g.mu.Lock()
		defer g.mu.Unlock()
		g.load = old
		return nil
	}
}

// took returns the requests that were answered from one time to another, and forgets
// all that are older.
func (g *guest) took(from, to int64) ([]tapdisk.Request, error) {
	time.Sleep(slice + slice/2) // until what is under way is told
	g.mu.Lock()
	defer g.mu.Unlock()
	var out []tapdisk.Request
	for _, r := range g.requests {
		if r.Answered >= from && r.Answered < to {
			out = append(out, r)
		}
	}
	g.requests = nil
	return out, g.err
}

// seen waits until the requests of all disks are counted by layer.
func (l *lab) seen(ctx context.Context, w judge.Watch) error {
	for deadline := time.Now().Add(patience); ; time.Sleep(100 * time.Millisecond) {
		s := w.Sample()
		n := 0
		for i := range s.VBDs {
			if s.VBDs[i].Layers != nil {
				n++
			}
		}
		if n == len(l.guests) {
			return nil
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("%d of %d disks are seen: %s", n, len(l.guests), s.Trouble)
		}
	}
}

func (l *lab) close() error {
	var errs []error
	for _, g := range l.guests {
		g.mu.Lock()
		g.stop = true
		g.mu.Unlock()
	}
	for _, g := range l.guests {
		<-g.ended
		errs = append(errs, g.disk.Close())
	}
	for i := len(l.devices) - 1; i >= 0; i-- {
		errs = append(errs, l.devices[i].Close())
	}
	if l.store != nil {
		errs = append(errs, l.store.Close())
	}
	return errors.Join(append(errs, os.RemoveAll(l.dir))...)
}

// diskOf finds a guest's in a window.
func diskOf(w *verdict.Window, id string) *verdict.Disk {
	for i := range w.Disks {
		if w.Disks[i].ID == id {
			return &w.Disks[i]
		}
	}
	return nil
}

func monotonic() int64 {
	var ts unix.Timespec
	_ = unix.ClockGettime(unix.CLOCK_MONOTONIC, &ts)
	return ts.Nano()
}
