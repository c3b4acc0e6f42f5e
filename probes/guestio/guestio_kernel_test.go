//go:build linux

package guestio

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"testing"

	"github.com/go-quicktest/qt"
	"golang.org/x/sys/unix"

	"github.com/xenserver/dtagent/bpf"
	"github.com/xenserver/dtagent/testenv/loop"
	standin "github.com/xenserver/dtagent/testenv/tapdisk"
	"github.com/xenserver/dtagent/testenv/xenstored"
)

// backendEnv makes the test binary a process that does I/O at the file that it names,
// as QEMU does for a guest.
const backendEnv = "DTAGENT_GUESTIO_TEST_BACKEND"

func TestMain(m *testing.M) {
	standin.Main()
	if path := os.Getenv(backendEnv); path != "" {
		if err := backend(path); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	os.Exit(m.Run())
}

// backend obeys lines "read N SIZE", "write N SIZE", "flush N", each with N requests
// one after the other, and answers each with a line.
func backend(path string) error {
	f, err := os.OpenFile(path, os.O_RDWR|unix.O_DIRECT, 0)
	if err != nil {
		return err
	}
	mem, err := unix.Mmap(-1, 0, 1<<20, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
	if err != nil {
		return err
	}
	fmt.Println("ready")
	in := bufio.NewScanner(os.Stdin)
	for in.Scan() {
		w := strings.Fields(in.Text())
		n, err := strconv.Atoi(w[1])
		if err != nil {
			return err
		}
		size := 0
		if len(w) > 2 {
			if size, err = strconv.Atoi(w[2]); err != nil {
				return err
			}
		}
		for i := range n {
			switch at := int64(i * size); w[0] {
			case "read":
				_, err = f.ReadAt(mem[:size], at)
			case "write":
				_, err = f.WriteAt(mem[:size], at)
			case "flush":
				err = f.Sync()
			}
			if err != nil {
				return fmt.Errorf("%s: %w", in.Text(), err)
			}
		}
		fmt.Println("done")
	}
	return in.Err()
}

// guest is a process that serves a disk.
type guest struct {
	t   testing.TB
	cmd *exec.Cmd
	in  *os.File
	out *bufio.Scanner
}

// startGuest starts a QEMU of that domain which has the file at path open.
func startGuest(t testing.TB, domid int, path string) *guest {
	t.Helper()
	exe, err := os.Executable()
	qt.Assert(t, qt.IsNil(err))
	cmd := exec.Command(exe, domidFlag, strconv.Itoa(domid), "-machine", "xenpv")
	cmd.Env = append(os.Environ(), backendEnv+"="+path)
	cmd.Stderr = os.Stderr
	r, in, err := os.Pipe()
	qt.Assert(t, qt.IsNil(err))
	defer r.Close()
	cmd.Stdin = r
	out, err := cmd.StdoutPipe()
	qt.Assert(t, qt.IsNil(err))
	qt.Assert(t, qt.IsNil(cmd.Start()))
	g := &guest{t: t, cmd: cmd, in: in, out: bufio.NewScanner(out)}
	t.Cleanup(func() {
		in.Close()
		cmd.Process.Kill()
		cmd.Wait()
	})
	qt.Assert(t, qt.IsTrue(g.out.Scan())) // it is ready
	return g
}

// do makes I/O and waits until it is done.
func (g *guest) do(format string, args ...any) {
	g.t.Helper()
	_, err := fmt.Fprintf(g.in, format+"\n", args...)
	qt.Assert(g.t, qt.IsNil(err))
	qt.Assert(g.t, qt.IsTrue(g.out.Scan()))
}

// device makes a loop device, or skips and says why.
func newDevice(t testing.TB) *loop.Device {
	t.Helper()
	file, err := loop.File(t.TempDir(), 4<<20)
	qt.Assert(t, qt.IsNil(err))
	d, err := loop.New(file)
	if errors.Is(err, loop.ErrNone) {
		t.Skip(err)
	}
	qt.Assert(t, qt.IsNil(err))
	t.Cleanup(func() { d.Close() })
	return d
}

// newRealLab has a real kernel, and processes that are real.
func newRealLab(t testing.TB, session *bpf.Session) *lab {
	t.Helper()
	l := &lab{t: t, path: t.TempDir() + "/socket", shm: t.TempDir()}
	var err error
	l.store, err = xenstored.Start(l.path)
	qt.Assert(t, qt.IsNil(err))
	t.Cleanup(func() { l.store.Close() })
	l.p = New(Options{Kernel: session, Xenstore: []string{l.path}, Shm: l.shm})
	return l
}

// Guests do I/O; whose it is, how much, and at which disk, is told by their domains.
func TestGuestsKernel(t *testing.T) {
	for _, legacy := range []bool{true, false} {
		t.Run(map[bool]string{true: "legacy", false: "modern"}[legacy], func(t *testing.T) {
			k, err := bpf.Open(bpf.Options{Legacy: legacy})
			if errors.Is(err, bpf.ErrKernel) {
				t.Skip("needs eBPF: " + strings.ReplaceAll(err.Error(), "\n", "; "))
			}
			qt.Assert(t, qt.IsNil(err))
			if !legacy && k.Tier() != bpf.Modern {
				t.Skip("needs the modern tier (ring buffer and BTF)")
			}
			session, err := k.Load()
			qt.Assert(t, qt.IsNil(err))
			defer session.Close()
			l := newRealLab(t, session)

			// Guest 4005 has a device for itself, 4006 and 4007 share one.
			own, shared := newDevice(t), newDevice(t)
			l.guest(4005, "web", "u-5")
			l.guest(4006, "db", "u-6")
			l.guest(4007, "mail", "u-7")
			web, db, mail := startGuest(t, 4005, own.Path), startGuest(t, 4006, shared.Path), startGuest(t, 4007, shared.Path)
			l.vbd(Qdisk, 4005, 51712, "xvda", map[string]string{"params": "aio:" + own.Path})
			l.vbd(Qdisk, 4006, 51712, "xvda", map[string]string{"params": "aio:" + shared.Path})
			w := l.watch()
			l.vbd(Qdisk, 4007, 51728, "xvdb", map[string]string{"params": "aio:" + shared.Path}) // while it is watched
			until(t, w, "all three are counted", func(s *Sample) bool {
				return len(s.VBDs) == 3 && s.VBDs[0].Seen && len(s.VBDs[1].PIDs) == 1 && s.VBDs[2].Seen
			})
			attached := len(session.Attached())
			qt.Check(t, qt.IsTrue(attached > 0))

			web.do("read 10 4096")
			db.do("read 20 8192")
			mail.do("write 30 512")
			db.do("flush 2")
			// Who is no backend is nobody's, and a whole device is its only user's.
			stranger := startGuest(t, 9, shared.Path)
			stranger.do("write 5 4096")

			s := w.Sample()
			io := func(i int) *VBD { return &s.VBDs[i] }
			check := func(what string, io IO, ops, bytes uint64) {
				t.Helper()
				note := qt.Commentf("%s: %+v", what, io)
				qt.Check(t, qt.Equals(io.Total.Ops, ops), note)
				qt.Check(t, qt.Equals(io.Total.Bytes, bytes), note)
				qt.Check(t, qt.Equals(io.Total.Errors, 0), note)
				qt.Check(t, qt.Equals(io.Interval.Ops, ops), note)
				qt.Check(t, qt.IsTrue(io.Total.Done <= ops), note)
				if c := io.Total; ops > 0 && c.Latency != nil {
					qt.Check(t, qt.IsTrue(c.Latency.P50 > 0 && c.Latency.P50 <= c.Latency.P99 && c.Latency.P99 <= c.Latency.Max), note)
				}
			}
			check("web read", io(0).Read, 10, 10*4096)
			check("web write", io(0).Write, 0, 0)
			check("db read", io(1).Read, 20, 20*8192)
			check("db write", io(1).Write, 0, 0)
			check("db flush", io(1).Flush, 2, 0)
			check("mail write", io(2).Write, 30, 30*512)
			check("mail read", io(2).Read, 0, 0)
			qt.Check(t, qt.Equals(io(2).Domain+io(2).Device, "mailxvdb"))
			s = w.Sample()
			qt.Check(t, qt.Equals(io(0).Read.Interval.Ops, 0))
			qt.Check(t, qt.Equals(io(0).Read.Total.Ops, 10))

			// A guest goes: so does its disk, and the other has its device alone.
			mail.cmd.Process.Kill()
			l.store.Remove(backends + "/qdisk/4007")
			until(t, w, "its disk is gone", func(s *Sample) bool { return len(s.VBDs) == 2 && s.VBDs[1].PIDs == nil })
			w.Close()
			qt.Check(t, qt.HasLen(session.Attached(), 0))
		})
	}
}
