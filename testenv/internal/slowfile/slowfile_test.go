//go:build linux

package slowfile

import (
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/go-quicktest/qt"
	"golang.org/x/sys/unix"
)

// server makes the test binary the server.
const server = "SLOWFILE_SERVER"

func TestMain(m *testing.M) {
	if os.Getenv(server) == "" {
		os.Exit(m.Run())
	}
	if err := Serve(3, 0); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

// TestHeld reads and syncs the file, and gives it an ioctl: none ends before the
// gate does.
func TestHeld(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root, for a mount namespace")
	}
	if f, err := os.OpenFile("/dev/fuse", os.O_RDWR, 0); err != nil {
		t.Skipf("needs FUSE: %v", err)
	} else {
		f.Close()
	}
	for name, c := range map[string]struct {
		nr   int
		call func(fd int) error
	}{
		"read": {unix.SYS_READ, func(fd int) error {
			b := make([]byte, 8)
			n, err := unix.Read(fd, b)
			if err == nil && string(b[:n]) != content {
				err = fmt.Errorf("read %q", b[:n])
			}
			return err
		}},
		"fsync": {unix.SYS_FSYNC, unix.Fsync},
		"ioctl": {unix.SYS_IOCTL, func(fd int) error { return unix.IoctlSetInt(fd, 0x00305000, 0) }},
	} {
		t.Run(name, func(t *testing.T) {
			// This thread has mounts of its own, which go with it.
			runtime.LockOSThread()
			qt.Assert(t, qt.IsNil(unix.Unshare(unix.CLONE_NEWNS)))
			qt.Assert(t, qt.IsNil(unix.Mount("", "/", "", unix.MS_PRIVATE|unix.MS_REC, "")))
			path := filepath.Join(t.TempDir(), "slow")
			qt.Assert(t, qt.IsNil(os.WriteFile(path, nil, 0o600)))
			dev, err := Mount(path)
			qt.Assert(t, qt.IsNil(err))
			gate, opener, err := os.Pipe()
			qt.Assert(t, qt.IsNil(err))
			pid, err := syscall.ForkExec("/proc/self/exe", os.Args[:1], &syscall.ProcAttr{
				Env:   []string{server + "=1", "GORACE=atexit_sleep_ms=0"}, // else the race detector waits for 1 s
				Files: []uintptr{gate.Fd(), 2, 2, uintptr(dev)},
				Sys:   &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL},
			})
			qt.Assert(t, qt.IsNil(err))
			gate.Close()
			unix.Close(dev)
			fd, err := unix.Open(path, unix.O_RDWR|unix.O_CLOEXEC, 0)
			qt.Assert(t, qt.IsNil(err))

			tids, done := make(chan int, 1), make(chan error, 1)
			go func() {
				runtime.LockOSThread()
				defer runtime.UnlockOSThread()
				tids <- unix.Gettid()
				done <- c.call(fd)
			}()
			asleep, in := fmt.Sprintf("/proc/self/task/%d/syscall", <-tids), fmt.Sprintf("%d %#x ", c.nr, fd)
			for begin := time.Now(); ; time.Sleep(time.Millisecond) {
				b, err := os.ReadFile(asleep)
				qt.Assert(t, qt.IsNil(err))
				if strings.HasPrefix(string(b), in) {
					break
				}
				if time.Since(begin) > time.Minute {
					t.Fatalf("it does not wait, but is in system call %s", b)
				}
			}
			select {
			case err := <-done:
				t.Fatalf("it is not held: %v", err)
			default:
			}
			opener.Close()
			qt.Check(t, qt.IsNil(<-done))

			qt.Check(t, qt.IsNil(Unmount(path)))
			qt.Check(t, qt.IsNil(unix.Close(fd)))
			var ws unix.WaitStatus
			_, err = unix.Wait4(pid, &ws, 0, nil) // the file is gone, so the server ends
			qt.Check(t, qt.IsNil(err))
			qt.Check(t, qt.Equals(ws.ExitStatus(), 0))
		})
	}
}
