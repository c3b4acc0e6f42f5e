//go:build linux

package fault

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"
)

const scsiDebug = "/sys/bus/pseudo/drivers/scsi_debug"

// openSCSIDebug adds a host with one disk to those of scsi_debug. Their size, and
// their content, are the module's, and so is the delay: there can be one at a time.
func openSCSIDebug(ctx context.Context, _ Options, d *device) error {
	if err := module("scsi_debug"); err != nil {
		return err
	}
	if err := module("sd_mod"); err != nil {
		return err
	}
	dir, err := os.Open(scsiDebug)
	if err != nil {
		return missingModule("scsi_debug", err)
	}
	d.onClose(dir.Close) // and with it the lock
	if err := unix.Flock(int(dir.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		return fmt.Errorf("scsi_debug: %w: another process has a disk of it", err)
	}
	attr := func(name string, value int64) error { return set(filepath.Join(scsiDebug, name), value) }
	d.block, err = newDisk(ctx, func() error {
		if err := attr("add_host", 1); err != nil {
			return err
		}
		d.onClose(func() error { return attr("add_host", -1) }) // the last that was added
		return nil
	}, func() string { return "/pseudo_0/adapter" })
	if err != nil {
		return err
	}
	d.path = "/dev/" + d.block
	busy := func(name string, value int64) error { // it is while a command is under way
		return unbusy(func() error { return attr(name, value) })
	}
	d.set = func(delay time.Duration) error {
		if delay == 0 {
			return busy("delay", 0) // ndelay 0 stands for a jiffy
		}
		return busy("ndelay", delay.Nanoseconds())
	}
	d.onClose(func() error { return busy("ndelay", 0) }) // the module's default
	return d.set(0)
}
