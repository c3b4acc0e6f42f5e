//go:build linux

package tapdisk

import (
	"cmp"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/xenserver/dtagent/testenv/fault"
	"github.com/xenserver/dtagent/testenv/internal/blkif"
	"github.com/xenserver/dtagent/testenv/internal/slowfile"
	"github.com/xenserver/dtagent/testenv/internal/tapdiskd"
)

// Main is to be called first thing in the main function, or TestMain, of a program
// that calls Start. It returns, unless the process is one that Start has started.
func Main() {
	fault.Main()
	options, task := os.Getenv(tapdiskd.Env), os.Getenv(helperEnv)
	var err error
	switch {
	case options != "":
		err = tapdiskd.Run(options)
	case task != "":
		err = help(task)
	default:
		return
	}
	if err != nil {
		fmt.Fprintf(os.Stderr, "%s: %v\n", filepath.Base(os.Args[0]), err)
		os.Exit(1)
	}
	os.Exit(0)
}

// Types of images.
const (
	Raw = "aio"
	VHD = "vhd"
)

// Options of a disk. The zero value of a field is what its comment says.
type Options struct {
	Domid int // of the guest; 1
	Devid int // of the disk in it; 51712, which is xvda
	Minor int // of the tapdisk's

	Type  string // of the images; Raw
	Image string // file or block device with the leaf; that of Device

	Device fault.Device // where the images are, for Inject; it is not closed with the disk; none

	Chain []string // its parents, the nearest first

	RingPages int           // 1, 2, 4 or 8; 1, with 32 requests
	Polling   time.Duration // polling-duration; none
	Select    bool          // waits by select(2), as a program of an old C library does, instead of pselect6(2)

	ShmRoot    string // for /dev/shm; a directory that is taken away with the disk
	ControlDir string // for /run/blktap-control; as ShmRoot

	Gntdev   string // the device of grants; /dev/xen/gntdev where it is, else /dev/null
	SlowCopy bool   // the device of grants is a FUSE file, for Inject; it needs root

	// Wrap has the tapdisk run by another program, such as strace: it is given the
	// arguments, and what it returns is run.
	Wrap func(argv []string) []string
}

// Disk is a tapdisk that runs, and its guest. Its methods may be called by several
// goroutines.
type Disk struct {
	Options
	cmd    *exec.Cmd
	pid    int
	mem    *blkif.Memory
	guest  *Guest
	own    string // directory that goes with it
	grants *helper
	ended  chan struct{}
	status error
	once   sync.Once
	closed error

	injection injection
}

// Start starts a tapdisk with a connected guest. ctx ends only the starting.
func Start(ctx context.Context, o Options) (*Disk, error) {
	d, err := start(ctx, o)
	if err != nil {
		return nil, fmt.Errorf("tapdisk: %w", err)
	}
	return d, nil
}

func start(ctx context.Context, o Options) (_ *Disk, failed error) {
	o.Domid = cmp.Or(o.Domid, 1)
	o.Devid = cmp.Or(o.Devid, 51712)
	o.Type = cmp.Or(o.Type, Raw)
	o.RingPages = cmp.Or(o.RingPages, 1)
	if o.RingPages&(o.RingPages-1) != 0 || o.RingPages > 8 || o.RingPages < 0 {
		return nil, fmt.Errorf("a ring of %d pages", o.RingPages)
	}
	if o.Image == "" && o.Device != nil {
		o.Image = o.Device.Path()
	}
	if o.Type == Raw && len(o.Chain) > 0 {
		return nil, errors.New("an image of type aio has no parents")
	}
	if o.Gntdev == "" {
		o.Gntdev = os.DevNull
		if _, err := os.Stat("/dev/xen/gntdev"); err == nil {
			o.Gntdev = "/dev/xen/gntdev"
		}
	}
	d := &Disk{ended: make(chan struct{})}
	d.injection.running = map[Layer]func() error{}
	var err error
	if d.own, err = os.MkdirTemp("", "tapdisk"); err != nil {
		return nil, err
	}
	defer func() {
		if failed != nil {
			os.RemoveAll(d.own)
		}
	}()
	for at, name := range map[*string]string{&o.ShmRoot: "shm", &o.ControlDir: "blktap-control"} {
		if *at == "" {
			*at = filepath.Join(d.own, name)
			if err := os.Mkdir(*at, 0o700); err != nil {
				return nil, err
			}
		}
	}
	d.Options = o

	mem, memFD, err := blkif.Create(o.RingPages)
	if err != nil {
		return nil, err
	}
	memFile := os.NewFile(uintptr(memFD), "guest")
	defer memFile.Close()
	d.mem = mem
	mem.Knobs().PollUs.Store(o.Polling.Microseconds())
	channel, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, errors.Join(err, mem.Close())
	}
	theirs := os.NewFile(uintptr(channel[1]), "evtchn")
	defer theirs.Close()
	notify, notifyW, err := os.Pipe()
	if err != nil {
		return nil, errors.Join(err, unix.Close(channel[0]), mem.Close())
	}
	defer notifyW.Close()
	d.guest = newGuest(d, channel[0], notify)
	defer func() {
		if failed != nil {
			failed = errors.Join(failed, d.guest.close(), mem.Close())
		}
	}()

	var grants *helper
	files := []*os.File{memFile, theirs, notifyW}
	if o.SlowCopy {
		var file *os.File
		if grants, file, err = openGrants(d.own, memFile, o.RingPages); err != nil {
			return nil, fmt.Errorf("slow copies: %w", err)
		}
		defer file.Close()
		files = append(files, file)
		o.Gntdev = fmt.Sprintf("/proc/self/fd/%d", 2+len(files))
		defer func() {
			if failed != nil {
				failed = errors.Join(failed, grants.end())
			}
		}()
	}

	// The name of the file becomes that of the process.
	exe, err := os.Executable()
	if err != nil {
		return nil, err
	}
	link := filepath.Join(d.own, "tapdisk")
	if err := os.Symlink(exe, link); err != nil {
		return nil, err
	}
	options, err := json.Marshal(tapdiskd.Options{Domid: o.Domid, Devid: o.Devid, Minor: o.Minor, Type: o.Type,
		Images: append([]string{o.Image}, o.Chain...), ShmRoot: o.ShmRoot, ControlDir: o.ControlDir,
		RingPages: o.RingPages, Gntdev: o.Gntdev, Select: o.Select})
	if err != nil {
		return nil, err
	}
	argv := []string{link}
	if o.Wrap != nil {
		argv = o.Wrap(argv)
	}
	d.cmd = exec.Command(argv[0], argv[1:]...)
	if o.Wrap == nil {
		d.cmd.Args[0] = "tapdisk"
	}
	d.cmd.Env = append(os.Environ(), tapdiskd.Env+"="+string(options), "GOMAXPROCS=1", "GODEBUG=asyncpreemptoff=1", "GOGC=off",
		"GORACE=atexit_sleep_ms=0") // else the race detector waits for 1 s
	d.cmd.ExtraFiles = files
	d.cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true} // as a daemon: it gets no signals of a terminal
	var said saying
	d.cmd.Stderr = &said
	out, outW, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	defer out.Close()
	d.cmd.Stdout = outW
	err = d.cmd.Start()
	outW.Close()
	if err != nil {
		return nil, err
	}
	go func() {
		d.status = d.cmd.Wait()
		close(d.ended)
	}()
	stop := context.AfterFunc(ctx, func() { _ = d.cmd.Process.Kill() })
	var up [4]byte
	_, err = io.ReadFull(out, up[:])
	stop()
	if err != nil {
		_ = d.cmd.Process.Kill()
		<-d.ended
		return nil, fmt.Errorf("%w: %s", cmp.Or(ctx.Err(), errors.New("it did not start")), said.String())
	}
	d.pid = int(binary.NativeEndian.Uint32(up[:]))
	d.guest.run()
	d.grants = grants
	return d, nil
}

// openGrants makes a device of grants that is as slow as it is told to be. The file
// is it, open.
func openGrants(dir string, mem *os.File, ringPages int) (_ *helper, _ *os.File, failed error) {
	mount, dev, err := slowfile.MountDisk()
	if err != nil {
		return nil, nil, err
	}
	defer unix.Close(mount) // the open file keeps the file system
	fuse := os.NewFile(uintptr(dev), "/dev/fuse")
	defer fuse.Close()
	h, err := startHelper(dir, "grants", fmt.Sprint(ringPages), fuse, mem)
	if err != nil {
		return nil, nil, err
	}
	fuse.Close() // so that the file system ends with the helper
	file, err := unix.Open(fmt.Sprintf("/proc/self/fd/%d", mount), unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, nil, errors.Join(err, h.end())
	}
	return h, os.NewFile(uintptr(file), "gntdev"), nil
}

// saying keeps the beginning of what a process writes.
type saying struct {
	mu sync.Mutex
	b  []byte
}

func (s *saying) Write(b []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.b = append(s.b, b[:min(len(b), 4096-min(len(s.b), 4096))]...)
	return len(b), nil
}

func (s *saying) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return string(s.b)
}

// PID returns the number of the process, and of its only thread that does something.
func (d *Disk) PID() int { return d.pid }

// Guest returns the one whose disk it is.
func (d *Disk) Guest() *Guest { return d.guest }

// Ended is closed when the process has ended.
func (d *Disk) Ended() <-chan struct{} { return d.ended }

// ask sends a message to the control socket and awaits the answer.
func (d *Disk) ask(kind uint16) ([]byte, error) {
	c, err := net.Dial("unix", filepath.Join(d.ControlDir, fmt.Sprintf("ctl%d", d.pid)))
	if err != nil {
		return nil, fmt.Errorf("tapdisk: %w", err)
	}
	defer c.Close()
	b := make([]byte, tapdiskd.MessageSize)
	binary.NativeEndian.PutUint16(b, kind)
	binary.NativeEndian.PutUint16(b[2:], uint16(d.Minor))
	if _, err := c.Write(b); err != nil {
		return nil, fmt.Errorf("tapdisk: %w", err)
	}
	if _, err := io.ReadFull(c, b); err != nil {
		return nil, fmt.Errorf("tapdisk: answer: %w", err)
	}
	if got := binary.NativeEndian.Uint16(b); got != kind+1 {
		return nil, fmt.Errorf("tapdisk: message %d was answered by %d", kind, got)
	}
	return b, nil
}

// Pause has the tapdisk end what it has begun, take no more requests, and close its
// images, as a snapshot does. It returns when that is so.
func (d *Disk) Pause() error {
	_, err := d.ask(tapdiskd.MsgPause)
	return err
}

// Resume ends a pause.
func (d *Disk) Resume() error {
	_, err := d.ask(tapdiskd.MsgResume)
	return err
}

// patience is how long the process may take to end. An emulated machine is slow.
const patience = time.Minute

// Close ends the tapdisk, and everything that belongs to it. A second one does nothing.
func (d *Disk) Close() error {
	d.once.Do(func() {
		d.injection.mu.Lock()
		defer d.injection.mu.Unlock()
		var errs []error
		for _, end := range d.injection.running {
			errs = append(errs, end())
		}
		clear(d.injection.running)
		_, err := d.ask(tapdiskd.MsgClose)
		if err == nil {
			select {
			case <-d.ended:
				err = d.status
			case <-time.After(patience):
				err = errors.New("tapdisk: it does not end")
			}
		}
		if err != nil {
			_ = d.cmd.Process.Kill()
			<-d.ended
		}
		if d.grants != nil {
			errs = append(errs, d.grants.end())
		}
		d.closed = errors.Join(append(errs, err, d.guest.close(), d.mem.Close(), os.RemoveAll(d.own))...)
	})
	return d.closed
}
