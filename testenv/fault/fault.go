//go:build linux

package fault

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"time"
)

// Layer is where a device loses its time.
type Layer string

const (
	Queue        Layer = "queue"         // before there is a block request, or a bio of the lowest device
	DeviceMapper Layer = "device mapper" // in a bio of the device, which makes no request
	Driver       Layer = "driver"        // between issue and completion of a block request
	Network      Layer = "network"       // on the way to a storage server and back
	Server       Layer = "server"        // in a storage server
)

// Kind is a way to make a slow device.
type Kind struct {
	Name  string
	Layer Layer
	Needs []string // of the kernel: modules, or options where there is no module

	// Live tells that a new delay holds for who has the device open. Else SetDelay
	// takes the device away and makes it anew, empty: whoever has it open gets errors.
	Live bool

	// Joined tells that only processes that were started by the opener after Open,
	// and the opener, are slow; see Joiner.
	Joined bool

	open func(context.Context, Options, *device) error
}

// Options of a device. The zero value is a disk of 16 MiB without delay.
type Options struct {
	Size  int64         // bytes, a multiple of 1 MiB; kinds whose size the kernel fixes take no heed of it
	Delay time.Duration // as of SetDelay
}

const mebi = 1 << 20

// Device is a disk with a delay. Its methods may be called at any time by anybody.
type Device interface {
	// Path returns the block device, or the file, to do I/O on; with O_DIRECT, else
	// the page cache hides the delay.
	Path() string

	// Block returns the name of the block device in /sys/block, or "" for a file.
	Block() string

	// Layer returns where the delay is.
	Layer() Layer

	// SetDelay has each read and write that begins from now on take d longer, in
	// milliseconds, up to 10 s. 0 takes the delay away. See the file docs/faults.md
	// for how exact that is.
	SetDelay(d time.Duration) error

	// Close takes the device away, and everything that belongs to it. It may not be
	// in use: who still has it open gets errors, or keeps something of it until he
	// closes it. The second Close does nothing.
	Close() error
}

// Joiner is a Device of a kind that is Joined.
type Joiner interface {
	// Join has a process that was running before take the delay, too.
	Join(pid int) error
}

// Kinds returns all kinds there are.
func Kinds() []Kind {
	return []Kind{
		{Name: "throttle", Layer: Queue, Live: true, Joined: true, open: openThrottle,
			Needs: []string{"loop", "CONFIG_BLK_DEV_THROTTLING"}},
		{Name: "dm-delay", Layer: DeviceMapper, Live: true, open: openMapper,
			Needs: []string{"loop", "dm_mod", "dm_delay"}},
		{Name: "null_blk", Layer: Driver, open: openNull,
			Needs: []string{"configfs", "null_blk"}},
		{Name: "nbd", Layer: Driver, Live: true, open: openNBD,
			Needs: []string{"nbd"}},
		{Name: "loop-fuse", Layer: Driver, Live: true, open: openLoopFUSE,
			Needs: []string{"loop", "fuse"}},
		{Name: "scsi_debug", Layer: Driver, Live: true, open: openSCSIDebug,
			Needs: []string{"sd_mod", "scsi_debug"}},
		{Name: "iscsi-netem", Layer: Network, Live: true, open: openISCSI,
			Needs: []string{"sd_mod", "iscsi_tcp", "configfs", "target_core_mod", "iscsi_target_mod", "sch_netem"}},
		{Name: "nfs-netem", Layer: Network, Live: true, open: openNFSNetem,
			Needs: []string{"nfsv3", "sch_netem"}},
		{Name: "nfs-server", Layer: Server, Live: true, open: openNFSServer,
			Needs: []string{"nfsv3"}},
	}
}

// MissingError tells what a kind needs and the machine lacks.
type MissingError struct {
	What string // such as "the kernel module null_blk"
	Err  error  // how it was found out; may be nil
}

func (e *MissingError) Error() string {
	if e.Err == nil {
		return "needs " + e.What
	}
	return fmt.Sprintf("needs %s: %v", e.What, e.Err)
}

func (e *MissingError) Unwrap() error { return e.Err }

// openLimit is how long the kernel may take to make a device.
const openLimit = time.Minute

// Open makes a device of the kind of that name. When it fails, nothing is left of
// it. ctx ends the waiting for the kernel, not the device.
func Open(ctx context.Context, kind string, o Options) (Device, error) {
	if o.Size == 0 {
		o.Size = 16 * mebi
	}
	if o.Size < 0 || o.Size%mebi != 0 {
		return nil, fmt.Errorf("fault %s: size %d is no multiple of 1 MiB", kind, o.Size)
	}
	for _, k := range Kinds() {
		if k.Name != kind {
			continue
		}
		if os.Geteuid() != 0 {
			return nil, fmt.Errorf("fault %s: %w", kind, &MissingError{What: "root"})
		}
		ctx, cancel := context.WithTimeout(ctx, openLimit)
		defer cancel()
		d := &device{kind: k}
		err := k.open(ctx, o, d)
		if err == nil && o.Delay != 0 {
			err = d.setDelay(o.Delay)
		}
		if missing := (*MissingError)(nil); errors.Is(err, os.ErrPermission) && !errors.As(err, &missing) {
			err = &MissingError{What: "more privileges than root has here", Err: err}
		}
		if err != nil {
			return nil, fmt.Errorf("fault %s: %w", kind, errors.Join(err, d.undo()))
		}
		if k.Joined {
			return joiner{d}, nil
		}
		return d, nil
	}
	var names []string
	for _, k := range Kinds() {
		names = append(names, k.Name)
	}
	return nil, fmt.Errorf("fault: no kind %q; there are %s", kind, strings.Join(names, ", "))
}
