//go:build linux

package tapdisk

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/xenserver/dtagent/testenv/fault"
)

// Layer is where Inject has requests lose time.
type Layer string

// Layers, and what the size of an injection is.
const (
	// Device has the driver of Options.Device take size longer for each I/O.
	Device Layer = "device"
	// Queue has the block layer hold I/O back on the way to Options.Device, which is of
	// a kind that does so: one each size.
	Queue Layer = "queue"
	// Submit has io_submit wait for a free request of the device, of which there are
	// few: those under way take size longer each. It needs a load of some depth.
	Submit Layer = "submit"
	// RunQueue takes the CPU that the tapdisk is on away for size, and leaves it alone
	// for as long.
	RunQueue Layer = "runq"
	// Busy has the tapdisk work for size before it issues a request.
	Busy Layer = "busy"
	// Metadata has the bitmaps of a VHD read anew for each request, on each level of the
	// chain. How long that takes is the device's business; any size will do.
	Metadata Layer = "metadata"
	// Limit lets the tapdisk have no more than size I/O under way, a number; what is
	// more waits in its queue.
	Limit Layer = "limit"
	// Copy has each GRANT_COPY take size longer. It needs Options.SlowCopy.
	Copy Layer = "copy"
	// Pause pauses the disk for size, as a snapshot does, and leaves it alone for as long.
	Pause Layer = "pause"
)

// Another guest on the same device is another Disk with the same Image, and a storm of
// flushes a Load with barriers.

// injection is one under way.
type injection struct {
	mu      sync.Mutex
	running map[Layer]func() error // ends it
}

// Inject has requests lose time in a layer from now on, by a size that the layer's
// comment explains; 0 ends that.
func (d *Disk) Inject(l Layer, size time.Duration) error {
	d.injection.mu.Lock()
	defer d.injection.mu.Unlock()
	if err := d.inject(l, size); err != nil {
		return fmt.Errorf("tapdisk: inject %s: %w", l, err)
	}
	return nil
}

func (d *Disk) inject(l Layer, size time.Duration) error {
	if end := d.injection.running[l]; end != nil {
		delete(d.injection.running, l)
		if err := end(); err != nil {
			return err
		}
	}
	k := d.mem.Knobs()
	switch l {
	case Busy:
		k.BusyNs.Store(int64(size))
	case Limit:
		k.Tiocbs.Store(int64(size))
	case Metadata:
		k.Uncached.Store(0)
		if size > 0 {
			k.Uncached.Store(1)
		}
	case Copy:
		if d.grants == nil {
			return errors.New("the disk was started without SlowCopy")
		}
		k.GrantNs.Store(int64(size))
	case Device, Queue:
		if d.Options.Device == nil || (d.Options.Device.Layer() == fault.Queue) != (l == Queue) {
			return errors.New("the disk is on no device that is slow in this layer")
		}
		return d.Options.Device.SetDelay(size)
	case Submit:
		return d.fewRequests(size)
	case RunQueue:
		if size > 0 {
			return d.hog(size)
		}
	case Pause:
		if size > 0 {
			d.repeat(l, size, d.Pause, d.Resume)
		}
	default:
		return errors.New("no such layer")
	}
	return nil
}

// repeat does begin and, size later, end, again and again.
func (d *Disk) repeat(l Layer, size time.Duration, begin, end func() error) {
	stop, done := make(chan struct{}), make(chan error, 1)
	go func() {
		for {
			if err := begin(); err != nil {
				done <- err
				return
			}
			stopped := false
			select {
			case <-time.After(size):
			case <-stop:
				stopped = true
			}
			err := end()
			if err == nil && !stopped {
				select {
				case <-time.After(size):
				case <-stop:
					stopped = true
				}
			}
			if err != nil || stopped {
				done <- err
				return
			}
		}
	}()
	d.injection.running[l] = func() error {
		close(stop)
		return <-done
	}
}

// leastRequests is BLKDEV_MIN_RQ.
const leastRequests = 4

// fewRequests leaves the device few requests, of which each takes size.
func (d *Disk) fewRequests(size time.Duration) error {
	dev := d.Options.Device
	if dev == nil || dev.Block() == "" || dev.Layer() == fault.Queue {
		return errors.New("the disk is on no block device that is slow")
	}
	if size == 0 {
		return nil
	}
	file := filepath.Join("/sys/block", dev.Block(), "queue/nr_requests")
	old, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	if err := os.WriteFile(file, []byte(fmt.Sprint(leastRequests)), 0o644); err != nil {
		return err
	}
	d.injection.running[Submit] = func() error {
		return errors.Join(dev.SetDelay(0), os.WriteFile(file, []byte(strings.TrimSpace(string(old))), 0o644))
	}
	return dev.SetDelay(size)
}

// hog starts a process that takes the CPU from the tapdisk.
func (d *Disk) hog(size time.Duration) error {
	var all unix.CPUSet
	if err := unix.SchedGetaffinity(d.pid, &all); err != nil {
		return err
	}
	cpu := 0
	for !all.IsSet(cpu) {
		cpu++
	}
	var one unix.CPUSet
	one.Set(cpu)
	if err := unix.SchedSetaffinity(d.pid, &one); err != nil {
		return err
	}
	h, err := startHelper(d.own, "hog", fmt.Sprintf("%d %d", cpu, int64(size)))
	if err != nil {
		return errors.Join(err, unix.SchedSetaffinity(d.pid, &all))
	}
	d.injection.running[RunQueue] = func() error {
		return errors.Join(h.end(), unix.SchedSetaffinity(d.pid, &all))
	}
	return nil
}

// Scheduled returns for how long the tapdisk has run on a CPU, and waited for one.
func (d *Disk) Scheduled() (ran, waited time.Duration, err error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%[1]d/schedstat", d.pid))
	if err != nil {
		return 0, 0, fmt.Errorf("tapdisk: %w", err)
	}
	if _, err := fmt.Sscan(string(b), &ran, &waited); err != nil {
		return 0, 0, fmt.Errorf("tapdisk: schedstat: %w", err)
	}
	return ran, waited, nil
}

// helper is a process that helps to make a tapdisk slow.
type helper struct {
	cmd *exec.Cmd
	in  *os.File // its end has it end
}

// startHelper starts one, which gets its task by its environment.
func startHelper(dir, name, task string, files ...*os.File) (_ *helper, failed error) {
	exe, err := os.Executable()
	if err != nil {
		return nil, err
	}
	link := filepath.Join(dir, name)
	if err := os.Symlink(exe, link); err != nil && !errors.Is(err, os.ErrExist) {
		return nil, err
	}
	r, w, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	defer r.Close()
	up, upW, err := os.Pipe()
	if err != nil {
		return nil, errors.Join(err, w.Close())
	}
	defer up.Close()
	h := &helper{cmd: exec.Command(link), in: w}
	h.cmd.Env = append(os.Environ(), helperEnv+"="+name+" "+task, "GORACE=atexit_sleep_ms=0") // else the race detector waits for 1 s
	h.cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	h.cmd.Stdin, h.cmd.Stdout, h.cmd.ExtraFiles = r, upW, files
	var said saying
	h.cmd.Stderr = &said
	err = h.cmd.Start()
	upW.Close()
	if err != nil {
		return nil, errors.Join(err, w.Close())
	}
	if _, err := up.Read(make([]byte, 1)); err != nil {
		return nil, errors.Join(fmt.Errorf("%s: %w", name, err), h.end(), errors.New(said.String()))
	}
	return h, nil
}

func (h *helper) end() error {
	return errors.Join(h.in.Close(), h.cmd.Wait())
}
