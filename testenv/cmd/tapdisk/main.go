//go:build linux

// Tapdisk runs a stand-in for a tapdisk and its guest, to look at them with dtagent:
// it puts a load on the disk, says once a second what the guest saw, and loses time in
// a layer if it is told to.
//
//	go run ./testenv/cmd/tapdisk -type vhd -depth 16 -device loop-fuse -inject device -size 20ms
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"
	"time"

	"github.com/xenserver/dtagent/testenv/fault"
	"github.com/xenserver/dtagent/testenv/tapdisk"
)

const disk = 128 << 20

func main() {
	tapdisk.Main()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func run(ctx context.Context) (failed error) {
	var o tapdisk.Options
	l := tapdisk.Load{Span: disk, Keep: 1}
	flag.StringVar(&o.Type, "type", tapdisk.VHD, "of the image: vhd or aio")
	flag.IntVar(&o.Domid, "domid", 1, "of the guest")
	flag.IntVar(&o.Devid, "devid", 51712, "of the disk")
	flag.StringVar(&o.ShmRoot, "shm", "", "directory for the figures, such as /dev/shm; one that nobody looks into")
	flag.StringVar(&o.ControlDir, "control", "", "directory for the control sockets, as -shm")
	flag.DurationVar(&o.Polling, "polling", 0, "for how long it looks at the ring without being asked to")
	flag.IntVar(&o.RingPages, "ring", 1, "pages of the ring")
	flag.IntVar(&l.Depth, "depth", 1, "requests under way at once")
	flag.IntVar(&l.Size, "bytes", 4096, "of a request")
	flag.Float64Var(&l.Reads, "reads", 0.7, "share of reads")
	flag.Float64Var(&l.Writes, "writes", 0.3, "share of writes")
	flag.Float64Var(&l.Barriers, "barriers", 0, "share of barriers")
	flag.BoolVar(&l.Random, "random", true, "random places")
	flag.Float64Var(&l.Rate, "rate", 0, "requests a second; as many as can be")
	device := flag.String("device", "", "kind of testenv/fault that the image is on; a file")
	layer := flag.String("inject", "", "layer that time is lost in")
	size := flag.Duration("size", 20*time.Millisecond, "of what is injected")
	flag.Parse()

	dir, err := os.MkdirTemp("", "tapdisk")
	if err != nil {
		return err
	}
	defer func() { failed = errors.Join(failed, os.RemoveAll(dir)) }()
	o.Image = filepath.Join(dir, "image")
	if *device != "" {
		dev, err := fault.Open(ctx, *device, fault.Options{Size: disk + disk/2})
		if err != nil {
			return err
		}
		defer func() { failed = errors.Join(failed, dev.Close()) }()
		o.Device, o.Image = dev, dev.Path()
	}
	switch {
	case o.Type == tapdisk.VHD:
		err = tapdisk.CreateVHD(o.Image, tapdisk.Content{Size: disk, Blocks: 0.9, Sectors: 0.9})
	case o.Device == nil:
		if err = os.WriteFile(o.Image, nil, 0o600); err == nil {
			err = os.Truncate(o.Image, disk)
		}
	}
	if err != nil {
		return err
	}
	o.SlowCopy = tapdisk.Layer(*layer) == tapdisk.Copy
	d, err := tapdisk.Start(ctx, o)
	if err != nil {
		return err
	}
	defer func() { failed = errors.Join(failed, d.Close()) }()
	fmt.Printf("tapdisk %d, domain %d, device %d\n", d.PID(), d.Domid, d.Devid)
	if *layer != "" {
		if err := d.Inject(tapdisk.Layer(*layer), *size); err != nil {
			return err
		}
	}
	for l.Time = time.Second; ctx.Err() == nil; l.Seed++ {
		res, err := d.Guest().Run(context.Background(), l)
		if err != nil {
			return err
		}
		for _, op := range []tapdisk.Op{tapdisk.Read, tapdisk.Write, tapdisk.Barrier} {
			if v := res.Latency[op]; len(v) > 0 {
				fmt.Printf("%-8v %6d/s  mean %-12v  50%% %-12v  99%% %-12v  most %v\n", op, int(float64(len(v))/res.Took.Seconds()), v.Mean(), v.At(0.5), v.At(0.99), v.At(1))
			}
		}
	}
	return nil
}
