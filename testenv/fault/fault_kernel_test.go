//go:build linux

package fault

import (
	"bufio"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/go-quicktest/qt"
	"golang.org/x/sys/unix"
)

const (
	injected = 50 * time.Millisecond
	reads    = 20
	hang     = time.Minute // how long something may take before the test gives it up
)

func TestMain(m *testing.M) {
	Main()
	if kind := os.Getenv(killedKind); kind != "" {
		readForEver(kind)
		os.Exit(1)
	}
	os.Exit(m.Run())
}

// open makes a device, or skips the test by the name of what the machine lacks.
func open(t *testing.T, kind string) *device {
	t.Helper()
	d, err := Open(t.Context(), kind, Options{})
	if missing := (*MissingError)(nil); errors.As(err, &missing) {
		t.Skip(err)
	}
	qt.Assert(t, qt.IsNil(err))
	t.Cleanup(func() { qt.Check(t, qt.IsNil(d.Close())) })
	if j, ok := d.(joiner); ok {
		return j.device
	}
	return d.(*device)
}

// disk is the device, open for I/O past the page cache.
type disk struct {
	t   *testing.T
	fd  int
	buf []byte
}

func openDisk(t *testing.T, d Device) *disk {
	t.Helper()
	fd, err := unix.Open(d.Path(), unix.O_RDWR|unix.O_DIRECT|unix.O_CLOEXEC, 0)
	qt.Assert(t, qt.IsNil(err))
	buf, err := unix.Mmap(-1, 0, 4096, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
	qt.Assert(t, qt.IsNil(err))
	return &disk{t, fd, buf}
}

func (d *disk) close() {
	d.t.Helper()
	qt.Check(d.t, qt.IsNil(unix.Munmap(d.buf)))
	qt.Check(d.t, qt.IsNil(unix.Close(d.fd)))
}

// read reads a page, and returns how long that took.
func (d *disk) read(page int) time.Duration {
	d.t.Helper()
	begin := time.Now()
	n, err := unix.Pread(d.fd, d.buf, int64(page)*4096)
	took := time.Since(begin)
	qt.Assert(d.t, qt.IsNil(err))
	qt.Assert(d.t, qt.Equals(n, len(d.buf)))
	return took
}

func (d *disk) write(page int, text string) {
	d.t.Helper()
	clear(d.buf)
	copy(d.buf, text)
	n, err := unix.Pwrite(d.fd, d.buf, int64(page)*4096)
	qt.Assert(d.t, qt.IsNil(err))
	qt.Assert(d.t, qt.Equals(n, len(d.buf)))
}

// fast reads until one read took less than half of what is injected: no more can
// be said of a machine that has other things to do. It returns the median.
func (d *disk) fast() time.Duration {
	d.t.Helper()
	var took []time.Duration
	for begin := time.Now(); ; {
		took = append(took, d.read(len(took)%reads))
		if len(took) >= reads && slices.Min(took) < injected/2 {
			return median(took)
		}
		if time.Since(begin) > hang {
			d.t.Fatalf("without delay the fastest of %d reads took %v", len(took), slices.Min(took))
		}
	}
}

func median(s []time.Duration) time.Duration {
	return slices.Sorted(slices.Values(s))[len(s)/2]
}

// blockTime returns how many reads a block device has done and how long they were
// under way in it: from issue to completion where it makes requests.
func blockTime(t *testing.T, name string) (n int, took time.Duration) {
	t.Helper()
	b, err := os.ReadFile(filepath.Join("/sys/block", name, "stat"))
	qt.Assert(t, qt.IsNil(err))
	f := strings.Fields(string(b)) // Documentation/block/stat.rst
	qt.Assert(t, qt.IsTrue(len(f) >= 4))
	n, err = strconv.Atoi(f[0])
	qt.Assert(t, qt.IsNil(err))
	ms, err := strconv.Atoi(f[3])
	qt.Assert(t, qt.IsNil(err))
	return n, time.Duration(ms) * time.Millisecond
}

// mountTime returns how many READs a mount of NFS has made, and how long their
// answers were waited for.
func mountTime(t *testing.T, dir string) (n int, took time.Duration) {
	t.Helper()
	b, err := os.ReadFile("/proc/self/mountstats")
	qt.Assert(t, qt.IsNil(err))
	_, of, ok := strings.Cut(string(b), " mounted on "+dir+" ")
	qt.Assert(t, qt.IsTrue(ok))
	_, of, ok = strings.Cut(of, "READ: ")
	qt.Assert(t, qt.IsTrue(ok))
	f := strings.Fields(of) // ops, transmissions, timeouts, sent, received, queue, rtt, execute
	n, err = strconv.Atoi(f[0])
	qt.Assert(t, qt.IsNil(err))
	ms, err := strconv.Atoi(f[6])
	qt.Assert(t, qt.IsNil(err))
	return n, time.Duration(ms) * time.Millisecond
}

// counter returns how many reads something below the reader has done, and in what
// time.
type counter func() (n int, took time.Duration)

// layerOf returns the counter of the layer that a device is of.
func layerOf(t *testing.T, d *device) counter {
	if d.Block() == "" {
		return func() (int, time.Duration) { return mountTime(t, filepath.Dir(d.Path())) }
	}
	return func() (int, time.Duration) { return blockTime(t, d.Block()) }
}

// seen is what reads with the delay took, all together.
type seen struct {
	app   time.Duration // for who reads
	layer time.Duration // in the device itself: a block device's requests, or an NFS mount's
	least time.Duration // of a read, for who reads
}

// slow reads from d without delay, with one and without one again, and finds there
// afterwards what it wrote before. It returns what was seen with the delay.
func slow(t *testing.T, d *device) seen {
	t.Helper()
	dev := openDisk(t, d)
	dev.write(3, t.Name())
	before := dev.fast()
	set := func(delay time.Duration) {
		t.Helper()
		if !d.kind.Live {
			dev.close()
		}
		qt.Assert(t, qt.IsNil(d.SetDelay(delay)))
		if !d.kind.Live {
			dev = openDisk(t, d)
		}
	}
	set(injected)
	counted := layerOf(t, d)
	var s seen
	var each []time.Duration
	n0, took0 := counted()
	for page := range reads {
		each = append(each, dev.read(page))
		s.app += each[page]
	}
	n, took := counted()
	s.layer, s.least = took-took0, slices.Min(each)
	qt.Check(t, qt.IsTrue(n-n0 >= reads), qt.Commentf("the layer counts %d reads", n-n0)) // others may look at a new disk, too
	set(0)
	after := dev.fast()
	if d.kind.Live {
		dev.read(3)
		qt.Check(t, qt.Equals(string(dev.buf[:len(t.Name())]), t.Name()))
	}
	dev.close()
	t.Logf("%s: %.3f ms a read without delay (median); with %v %.2f ms (mean of %d), of that %.2f ms in %s; %.3f ms without it again",
		d.kind.Name, ms(before), injected, ms(s.app)/reads, reads, ms(s.layer)/float64(max(n-n0, 1)), cmp.Or(d.Block(), "the mount"), ms(after))
	return s
}

func ms(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }

// atLeast checks a sum of reads. Counters of the kernel are cut to milliseconds.
func atLeast(t *testing.T, what string, took, want time.Duration) {
	t.Helper()
	qt.Check(t, qt.IsTrue(took >= want-time.Millisecond), qt.Commentf("%s: %v, less than %v", what, took, want))
}

// TestFaultThrottleKernel: the reader waits before there is a request.
func TestFaultThrottleKernel(t *testing.T) {
	d := open(t, "throttle")
	slow(t, d)
	waitsAbove(t, d, d.Block())

	// It is a rate: what the rest before has left passes without waiting, at most
	// what may pass within 100 ms, and the first. The kernel counts in jiffies, which
	// may be late, so that for a reader it may be less now and then.
	const free = 3
	dev := openDisk(t, d)
	defer dev.close()
	for begin := time.Now(); ; {
		var sum time.Duration
		for page := range reads {
			sum += dev.read(page)
		}
		if sum >= (reads-free)*injected {
			return
		}
		if time.Since(begin) > hang {
			t.Fatalf("%d reads of %v took %v", reads, injected, sum)
		}
	}
}

// TestFaultMapperKernel: the device mapper's bio waits, the request of the device
// below does not.
func TestFaultMapperKernel(t *testing.T) {
	d := open(t, "dm-delay")
	s := slow(t, d)
	// In jiffies both. For a reader it may be less, as the kernel's jiffies may be late.
	atLeast(t, "device mapper", s.layer, reads*injected)
	waitsAbove(t, d, d.base)
}

// waitsAbove reads until a read took long and its request did not.
func waitsAbove(t *testing.T, d *device, block string) {
	t.Helper()
	qt.Assert(t, qt.IsNil(d.SetDelay(injected)))
	dev := openDisk(t, d)
	defer dev.close()
	for begin := time.Now(); ; {
		_, before := blockTime(t, block)
		app := dev.read(0)
		_, after := blockTime(t, block)
		if request := after - before; app >= injected && request < app/2 {
			t.Logf("%s: a read of %.2f ms, its request of %s %.0f ms", d.kind.Name, ms(app), block, ms(request))
			return
		}
		if time.Since(begin) > hang {
			t.Fatal("no read waited for longer than its request took")
		}
	}
}

// testDriver: the block device's requests take the time.
func testDriver(t *testing.T, kind string) *device {
	d := open(t, kind)
	s := slow(t, d)
	atLeast(t, "fastest read", s.least, injected)
	atLeast(t, "requests", s.layer, reads*injected)
	return d
}

func TestFaultNullKernel(t *testing.T)      { testDriver(t, "null_blk") }
func TestFaultNBDKernel(t *testing.T)       { testDriver(t, "nbd") }
func TestFaultLoopFUSEKernel(t *testing.T)  { testDriver(t, "loop-fuse") }
func TestFaultSCSIDebugKernel(t *testing.T) { testDriver(t, "scsi_debug") }

// TestFaultISCSIKernel: requests take the time, and so does all else on their way.
func TestFaultISCSIKernel(t *testing.T) {
	d := testDriver(t, "iscsi-netem")
	qt.Assert(t, qt.IsNil(d.SetDelay(injected)))
	qt.Check(t, qt.IsTrue(echo(t, d.net) >= injected))
}

// testNFS: the mount's READs take the time.
func testNFS(t *testing.T, kind string) *device {
	d := open(t, kind)
	s := slow(t, d)
	atLeast(t, "fastest read", s.least, injected)
	atLeast(t, "READs", s.layer, reads*injected)
	qt.Assert(t, qt.IsNil(d.SetDelay(injected)))
	return d
}

// TestFaultNFSNetemKernel: whatever goes the way of the READs takes the time.
func TestFaultNFSNetemKernel(t *testing.T) {
	d := testNFS(t, "nfs-netem")
	qt.Check(t, qt.IsTrue(echo(t, d.net) >= injected))
}

// TestFaultNFSServerKernel: what goes the way of the READs but to another server
// does not take the time.
func TestFaultNFSServerKernel(t *testing.T) {
	d := testNFS(t, "nfs-server")
	for begin := time.Now(); echo(t, d.net) >= injected/2; {
		if time.Since(begin) > hang {
			t.Fatal("no packet and its answer were faster than the delay")
		}
	}
}

// echo returns how long a byte is under way to a server in the network and back.
func echo(t *testing.T, n *network) (took time.Duration) {
	t.Helper()
	qt.Assert(t, qt.IsNil(n.inside(func() error {
		l, err := net.Listen("tcp4", "127.0.0.1:0")
		if err != nil {
			return err
		}
		defer l.Close()
		c, err := net.Dial("tcp4", l.Addr().String())
		if err != nil {
			return err
		}
		defer c.Close()
		s, err := l.Accept()
		if err != nil {
			return err
		}
		defer s.Close()
		done := make(chan error, 1)
		go func() {
			b := make([]byte, 1)
			_, err := io.ReadFull(s, b)
			if err == nil {
				_, err = s.Write(b)
			}
			done <- err
		}()
		begin := time.Now()
		b := []byte{1}
		if _, err := c.Write(b); err != nil {
			return err
		}
		_, err = io.ReadFull(c, b)
		took = time.Since(begin)
		return errors.Join(err, <-done)
	})))
	return took
}

// TestFaultNothingLeftKernel: after Close, also of a device in use, and after an
// Open that fails when all but the delay is there, nothing of a device is left.
func TestFaultNothingLeftKernel(t *testing.T) {
	for _, k := range Kinds() {
		t.Run(k.Name, func(t *testing.T) {
			open(t, k.Name).Close() // what the runtime and the libraries keep is there after it
			before := left(t)
			d, err := Open(t.Context(), k.Name, Options{Delay: time.Millisecond})
			qt.Assert(t, qt.IsNil(err))
			qt.Check(t, qt.Not(qt.DeepEquals(left(t), before)))
			path := d.Path()
			qt.Check(t, qt.IsNil(d.Close()))
			qt.Check(t, qt.IsNil(d.Close()))
			qt.Check(t, qt.IsNotNil(d.SetDelay(0)))
			qt.Check(t, qt.IsNotNil(firstByte(path)))
			used, err := Open(t.Context(), k.Name, Options{})
			qt.Assert(t, qt.IsNil(err))
			fd, err := unix.Open(used.Path(), unix.O_RDONLY|unix.O_CLOEXEC, 0)
			qt.Assert(t, qt.IsNil(err))
			qt.Check(t, qt.IsNil(used.Close()))
			qt.Check(t, qt.IsNil(unix.Close(fd)))
			_, err = Open(t.Context(), k.Name, Options{Delay: time.Hour})
			qt.Check(t, qt.ErrorMatches(err, "fault "+k.Name+": delay 1h0m0s: .*"))
			for begin := time.Now(); !slices.Equal(left(t), before) && time.Since(begin) < hang; { // connections end by and by
				time.Sleep(time.Millisecond)
			}
			qt.Check(t, qt.DeepEquals(left(t), before))
		})
	}
}

// firstByte returns an error unless there is something to read.
func firstByte(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	_, err = f.Read(make([]byte, 1))
	return err
}

// left returns what devices of this process could leave behind: descriptors, mounts,
// the control group, disks, and directories in configfs and of control groups.
func left(t *testing.T) []string {
	t.Helper()
	var all []string
	fds, err := os.ReadDir("/proc/self/fd")
	qt.Assert(t, qt.IsNil(err))
	for _, fd := range fds {
		if to, err := os.Readlink("/proc/self/fd/" + fd.Name()); err == nil { // the directory's own is gone
			all = append(all, fd.Name()+" "+to)
		}
	}
	mounts, err := os.ReadFile("/proc/self/mounts")
	qt.Assert(t, qt.IsNil(err))
	for line := range strings.Lines(string(mounts)) {
		if strings.Contains(line, ownPrefix()) {
			all = append(all, line)
		}
	}
	sizes, err := filepath.Glob("/sys/block/*/size")
	qt.Assert(t, qt.IsNil(err))
	for _, file := range sizes {
		name := filepath.Base(filepath.Dir(file))
		b, err := os.ReadFile(file)
		if err == nil && string(b) != "0\n" && !strings.HasPrefix(name, "loop") { // which others use, too
			all = append(all, name)
		}
	}
	d := &device{}
	glob := func(root, pattern string) {
		found, err := filepath.Glob(filepath.Join(root, pattern))
		qt.Assert(t, qt.IsNil(err))
		all = append(all, found...)
	}
	if root, v2, err := d.ioController(); err == nil {
		glob(root, ownPrefix()+"*")
		own, err := cgroupOf(os.Getpid(), v2)
		qt.Assert(t, qt.IsNil(err))
		all = append(all, own)
	}
	if root, err := d.detached("configfs"); err == nil {
		for _, pattern := range []string{"nullb/*", "target/core/rd_mcp_*", "target/iscsi/*"} {
			glob(root, pattern)
		}
	}
	qt.Assert(t, qt.IsNil(d.undo()))
	return all
}

// killedKind has the test process open a device of that kind, and read from it for
// ever.
const killedKind = "FAULT_KILLED"

func readForEver(kind string) {
	d, err := Open(context.Background(), kind, Options{Delay: time.Second})
	if err != nil {
		fmt.Println(err)
		return
	}
	fd, err := unix.Open(d.Path(), unix.O_RDONLY|unix.O_DIRECT, 0)
	if err != nil {
		fmt.Println(err)
		return
	}
	buf, err := unix.Mmap(-1, 0, 4096, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
	fmt.Println("reading", err)
	for err == nil {
		_, err = unix.Pread(fd, buf, 0)
	}
}

// TestFaultKilledKernel: a process that is killed while it reads from a disk whose
// server it has started ends.
func TestFaultKilledKernel(t *testing.T) {
	for _, kind := range []string{"nbd", "loop-fuse"} {
		t.Run(kind, func(t *testing.T) {
			open(t, kind).Close() // or skip
			reader := exec.Command("/proc/self/exe", "-test.run=^$")
			reader.Env = append(os.Environ(), killedKind+"="+kind, "GORACE=atexit_sleep_ms=0")
			reader.Stderr = os.Stderr
			out, err := reader.StdoutPipe()
			qt.Assert(t, qt.IsNil(err))
			qt.Assert(t, qt.IsNil(reader.Start()))
			line, err := bufio.NewReader(out).ReadString('\n')
			qt.Check(t, qt.IsNil(err))
			qt.Check(t, qt.Equals(line, "reading <nil>\n"))
			time.Sleep(20 * time.Millisecond) // most likely it reads by now; if not, this tests less
			qt.Check(t, qt.IsNil(reader.Process.Kill()))
			qt.Check(t, qt.ErrorMatches(reader.Wait(), "signal: killed"))
		})
	}
}
