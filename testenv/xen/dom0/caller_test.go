//go:build linux

package dom0

import (
	"bufio"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"
	"unsafe"

	"github.com/go-quicktest/qt"
	"golang.org/x/sys/unix"
)

// A caller is this test binary run once more, as a process that uses Xen's devices
// by itself: what it did is known to the call.

const callerEnv = "DTAGENT_DOM0_CALLER"

func TestMain(m *testing.M) {
	if os.Getenv(callerEnv) != "" {
		runtime.LockOSThread()
		bufio.NewReader(os.Stdin).ReadString('\n') // it is watched by now
		c, err := call()
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		json.NewEncoder(os.Stdout).Encode(c)
		return
	}
	os.Exit(m.Run())
}

// called is what a caller did, all on one thread.
type called struct {
	TID      int
	Version  int    // as the hypervisor told it: major<<16 | minor
	Pages    uint64 // of dom0, as the hypervisor told it
	Port     uint32 // that the event came on
	Bound    uint32 // the port that was to get it
	XenbusTo string // the watch that /dev/xen/xenbus told of
}

// From xen/include/public: xen.h, version.h, domctl.h (of Xen 4.17), and of Linux
// include/uapi/xen: privcmd.h, evtchn.h.
const (
	opXenVersion     = 17
	opSysctl         = 35
	opDomctl         = 36
	createDomain     = 1
	destroyDomain    = 2
	pauseDomain      = 3
	unpauseDomain    = 4
	getDomainInfo    = 5
	maxVCPUs         = 15
	domctlVersion    = 0x15
	ioctlHypercall   = 0x305000
	ioctlInterdomain = 0x084501
	ioctlUnbound     = 0x044502
	ioctlNotify      = 0x044504
	xsWatch          = 4
	xsWatchEvent     = 15
)

// versions and infos are how often a caller asks for each.
const versions, infos = 3, 2

func call() (c called, err error) {
	c.TID = unix.Gettid()
	fd, err := unix.Open("/dev/xen/privcmd", unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return c, fmt.Errorf("privcmd: %w", err)
	}
	for range versions {
		if c.Version, err = hypercall(fd, opXenVersion, 0, 0); err != nil {
			return c, fmt.Errorf("xen_version: %w", err)
		}
	}
	// The hypervisor takes no page fault for its caller: memory of its own, locked.
	page, err := unix.Mmap(-1, 0, os.Getpagesize(), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS|unix.MAP_LOCKED|unix.MAP_POPULATE)
	if err != nil {
		return c, err
	}
	for range infos {
		binary.LittleEndian.PutUint32(page, getDomainInfo) // struct xen_domctl
		binary.LittleEndian.PutUint32(page[4:], domctlVersion)
		binary.LittleEndian.PutUint16(page[8:], 0) // dom0
		if _, err := hypercall(fd, opDomctl, uint64(uintptr(unsafe.Pointer(&page[0]))), 0); err != nil {
			return c, fmt.Errorf("domctl: %w", err)
		}
		c.Pages = binary.LittleEndian.Uint64(page[24:]) // struct xen_domctl_getdomaininfo.tot_pages
	}
	if c.Port, c.Bound, err = bind(); err != nil {
		return c, err
	}
	c.XenbusTo, err = xenbus()
	return c, err
}

func hypercall(fd int, op, arg0, arg1 uint64) (int, error) {
	h := [6]uint64{op, arg0, arg1}
	n, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), ioctlHypercall, uintptr(unsafe.Pointer(&h)))
	if errno != 0 {
		return 0, errno
	}
	return int(n), nil
}

// bind binds two ports of dom0 to each other and waits for an event on one.
func bind() (got, bound uint32, err error) {
	fd, err := unix.Open("/dev/xen/evtchn", unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return 0, 0, fmt.Errorf("evtchn: %w", err)
	}
	ioctl := func(nr uintptr, arg ...uint32) (uint32, error) {
		n, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), nr, uintptr(unsafe.Pointer(&arg[0])))
		if errno != 0 {
			return 0, fmt.Errorf("evtchn: ioctl %#x: %w", nr, errno)
		}
		return uint32(n), nil
	}
	if bound, err = ioctl(ioctlUnbound, 0); err != nil {
		return 0, 0, err
	}
	port, err := ioctl(ioctlInterdomain, 0, bound)
	if err != nil {
		return 0, 0, err
	}
	sent := make(chan error, 1)
	tid := unix.Gettid()
	go func() {
		if err := reads(os.Getpid(), tid, fd); err != nil {
			fmt.Fprintln(os.Stderr, err) // what comes now is too short a wait
		}
		_, err := ioctl(ioctlNotify, port)
		sent <- err
	}()
	for { // the other port has an event from being bound
		var b [4]byte
		if _, err := unix.Read(fd, b[:]); err != nil {
			return 0, 0, fmt.Errorf("evtchn: read: %w", err)
		}
		if got = binary.LittleEndian.Uint32(b[:]); got != port {
			return got, bound, <-sent
		}
	}
}

// xenbus watches a key by the kernel's own way to xenstored, and waits until
// another process changes it.
func xenbus() (path string, err error) {
	fd, err := unix.Open("/dev/xen/xenbus", unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return "", fmt.Errorf("xenbus: %w", err)
	}
	read := func() (kind uint32, payload []byte, err error) {
		var b []byte
		for len(b) < 16 || len(b) < 16+int(binary.LittleEndian.Uint32(b[12:])) {
			buf := make([]byte, 4096)
			n, err := unix.Read(fd, buf)
			if err != nil {
				return 0, nil, fmt.Errorf("xenbus: read: %w", err)
			}
			b = append(b, buf[:n]...)
		}
		return binary.LittleEndian.Uint32(b), b[16:], nil
	}
	tid := unix.Gettid()
	body := []byte(callerKey + "\x00token\x00")
	msg := make([]byte, 16, 64)
	binary.LittleEndian.PutUint32(msg, xsWatch)
	binary.LittleEndian.PutUint32(msg[12:], uint32(len(body)))
	if _, err := unix.Write(fd, append(msg, body...)); err != nil {
		return "", fmt.Errorf("xenbus: write: %w", err)
	}
	for events := 0; ; { // the first event comes at once
		kind, payload, err := read()
		if err != nil {
			return "", err
		}
		if kind != xsWatchEvent {
			continue
		}
		if events++; events == 2 {
			return string(payload), nil
		}
		go func() {
			if err := reads(os.Getpid(), tid, fd); err != nil {
				fmt.Fprintln(os.Stderr, err)
			}
			exec.Command("xenstore-write", callerKey, "x").Run()
		}()
	}
}

// reads waits until a thread, or any of the process if tid is 0, has been in a
// read of fd, or of any if fd is negative, for long.
func reads(pid, tid, fd int) error {
	pattern, call := fmt.Sprintf("/proc/%d/task/*/syscall", pid), "0 "
	if tid != 0 {
		pattern = fmt.Sprintf("/proc/%d/task/%d/syscall", pid, tid)
	}
	if fd >= 0 {
		call = fmt.Sprintf("0 %#x ", fd)
	}
	for end := time.Now().Add(hang); time.Now().Before(end); time.Sleep(time.Millisecond) {
		files, err := filepath.Glob(pattern)
		if err != nil {
			return err
		}
		for _, file := range files {
			if b, err := os.ReadFile(file); err == nil && strings.HasPrefix(string(b), call) {
				time.Sleep(long)
				return nil
			}
		}
	}
	return fmt.Errorf("process %d does not read", pid)
}

const callerKey = "/dtagent-caller"

// checkCaller checks what Xen told the caller: that there was a Xen.
func checkCaller(t *testing.T, out []byte) called {
	t.Helper()
	var c called
	qt.Assert(t, qt.IsNil(json.Unmarshal(out, &c)), qt.Commentf("%q", out))
	qt.Check(t, qt.Equals(c.Version>>16, 4))
	qt.Check(t, qt.IsTrue(c.Pages > 0))
	qt.Check(t, qt.Equals(c.Port, c.Bound))
	qt.Check(t, qt.Equals(c.XenbusTo, callerKey+"\x00token\x00"))
	return c
}
