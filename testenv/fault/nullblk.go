//go:build linux

package fault

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"
)

// openNull makes a disk of null_blk, whose requests a timer completes. The driver
// takes a new delay only while it is off.
func openNull(_ context.Context, o Options, d *device) error {
	if err := module("null_blk"); err != nil {
		return err
	}
	root, err := d.detached("configfs")
	if err != nil {
		return err
	}
	name := uniqueName()
	dir := filepath.Join(root, "nullb", name)
	if err := d.mkdir(dir); err != nil {
		return missingModule("null_blk", err)
	}
	attr := func(name string, value any) error { return set(filepath.Join(dir, name), value) }
	for _, a := range []struct {
		name  string
		value int64
	}{{"size", o.Size / mebi}, {"memory_backed", 1}, {"blocksize", 512}} {
		if err := attr(a.name, a.value); err != nil {
			return err
		}
	}
	d.onClose(func() error { return attr("power", 0) })
	d.set = func(delay time.Duration) error {
		if err := attr("power", 0); err != nil {
			return err
		}
		mode := 0 // completed by who issues it
		if delay > 0 {
			mode = 2 // by a timer
		}
		if err := attr("irqmode", mode); err != nil {
			return err
		}
		if err := attr("completion_nsec", delay.Nanoseconds()); err != nil {
			return err
		}
		return attr("power", 1)
	}
	if err := d.set(0); err != nil {
		return err
	}
	d.block = name
	if _, err := os.Stat("/sys/block/" + name); err != nil { // Linux 5.10 numbers them
		index, err := os.ReadFile(filepath.Join(dir, "index"))
		if err != nil {
			return err
		}
		d.block = fmt.Sprintf("nullb%s", strings.TrimSpace(string(index)))
	}
	d.path = "/dev/" + d.block
	return nil
}
