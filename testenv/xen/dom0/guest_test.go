//go:build linux

package dom0

import (
	"bufio"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/go-quicktest/qt"
	"golang.org/x/sys/unix"

	"github.com/xenserver/dtagent/testenv/xen/guest"
)

// domu is a guest that runs and takes orders.
type domu struct {
	t     testing.TB
	name  string
	id    int
	line  *os.File // the other end of its console
	lines *bufio.Reader
}

// startGuest starts a guest with these disks, in xl's words, and waits until it
// takes orders. It is gone when the test ends.
func startGuest(t testing.TB, name string, disks ...string) *domu {
	t.Helper()
	xl(t, "create", "-q", "-e", guestConfig(t, name, disks...))
	t.Cleanup(func() {
		if t.Failed() {
			show(t, "xl", "list")
			show(t, "top", "-b", "-n", "1")
			show(t, "xenstore-ls", "/local/domain/0/backend")
			show(t, "tail", "-n", "40", "/var/log/xen/console/guest-"+name+".log")
			show(t, "tail", "-n", "40", "/var/log/xen/qemu-dm-"+name+".log")
		}
		xl(t, "destroy", name)
	})
	g := &domu{t: t, name: name}
	var err error
	g.id, err = strconv.Atoi(xl(t, "domid", name))
	qt.Assert(t, qt.IsNil(err))
	tty := ""
	for end := time.Now().Add(hang); tty == ""; time.Sleep(50 * time.Millisecond) {
		out, _ := exec.Command("xenstore-read", fmt.Sprintf("/local/domain/%d/console/tty", g.id)).Output()
		tty = strings.TrimSpace(string(out)) // xenconsoled makes it a little later
		qt.Assert(t, qt.IsTrue(time.Now().Before(end)), qt.Commentf("guest %s has no console", name))
	}
	g.line, err = os.OpenFile(tty, os.O_RDWR|unix.O_NOCTTY|unix.O_NONBLOCK, 0)
	qt.Assert(t, qt.IsNil(err))
	t.Cleanup(func() { g.line.Close() })
	g.lines = bufio.NewReader(g.line)
	qt.Assert(t, qt.IsTrue(g.wait().Ready))
	return g
}

// wait returns what the guest says next.
func (g *domu) wait() guest.Done {
	g.t.Helper()
	qt.Assert(g.t, qt.IsNil(g.line.SetReadDeadline(time.Now().Add(hang))))
	for said := ""; ; {
		line, err := g.lines.ReadString('\n')
		said += line
		qt.Assert(g.t, qt.IsNil(err), qt.Commentf("guest %s said: %s", g.name, said))
		if d, ok := guest.ParseDone(line); ok {
			qt.Assert(g.t, qt.Equals(d.Error, ""), qt.Commentf("guest %s", g.name))
			return d
		}
	}
}

// start gives an order; wait returns what came of it.
func (g *domu) start(o guest.Order) {
	g.t.Helper()
	b, err := json.Marshal(o)
	qt.Assert(g.t, qt.IsNil(err))
	_, err = g.line.Write(append(b, '\n'))
	qt.Assert(g.t, qt.IsNil(err))
}

// show logs what a program prints, of a test that has failed.
func show(t testing.TB, argv ...string) {
	out, err := exec.Command(argv[0], argv[1:]...).CombinedOutput()
	t.Logf("%q: %v\n%s", argv, err, out[:min(len(out), 4<<10)])
}

// xl runs xl and returns what it prints.
func xl(t testing.TB, args ...string) string {
	t.Helper()
	cmd := exec.Command("xl", args...)
	stuck := time.AfterFunc(hang, func() { cmd.Process.Kill() })
	defer stuck.Stop()
	out, err := cmd.CombinedOutput()
	qt.Assert(t, qt.IsNil(err), qt.Commentf("xl %q: %s", args, out))
	return strings.TrimSpace(string(out))
}

// program runs another one of dom0's programs.
func program(t testing.TB, argv ...string) string {
	t.Helper()
	out, err := exec.Command(argv[0], argv[1:]...).CombinedOutput()
	qt.Assert(t, qt.IsNil(err), qt.Commentf("%q: %s", argv, out))
	return strings.TrimSpace(string(out))
}

// guestConfig writes what xl needs for a guest.
func guestConfig(t testing.TB, name string, disks ...string) (file string) {
	t.Helper()
	var list strings.Builder
	for _, d := range disks {
		fmt.Fprintf(&list, "%q, ", d)
	}
	text := fmt.Sprintf(`name = %q
type = "pv"
kernel = "/domu/vmlinux"
ramdisk = "/domu/initramfs"
extra = "console=hvc0 loglevel=5 panic=-1 nokaslr"
memory = 128
vcpus = 1
on_crash = "destroy"
on_reboot = "destroy"
disk = [%s]
`, name, list.String())
	file = filepath.Join(t.TempDir(), name+".cfg")
	qt.Assert(t, qt.IsNil(os.WriteFile(file, []byte(text), 0o644)))
	return file
}
