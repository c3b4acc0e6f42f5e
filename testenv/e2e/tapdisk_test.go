//go:build linux

package e2e

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/go-quicktest/qt"

	"github.com/xenserver/dtagent/cmd/dtagent/control"
	"github.com/xenserver/dtagent/cmd/dtagent/zipkin"
	"github.com/xenserver/dtagent/testenv"
	"github.com/xenserver/dtagent/testenv/loop"
	"github.com/xenserver/dtagent/testenv/tapdisk"
	"github.com/xenserver/dtagent/testenv/xenstored"
)

const (
	guestVM  = "1f1c5c0a-0000-4000-8000-000000000005"
	guestVDI = "01234567-89ab-4cde-8f01-23456789abcd"
	guestSR  = "f0e1d2c3-0000-4000-8000-00000000aaaa"
)

// guestDisk is xvdb of a guest of domain 5: a tapdisk on a loop device, and what
// xenstore says of it.
type guestDisk struct {
	*tapdisk.Disk
	t      testing.TB
	socket string // of xenstored
	device *loop.Device
}

func startGuestDisk(t testing.TB, vm string) *guestDisk {
	t.Helper()
	file, err := loop.File(t.TempDir(), 32<<20)
	qt.Assert(t, qt.IsNil(err))
	device, err := loop.New(file)
	if errors.Is(err, loop.ErrNone) {
		t.Skip(err)
	}
	qt.Assert(t, qt.IsNil(err))
	t.Cleanup(func() { device.Close() })
	// The agent looks where the real ones are.
	d, err := tapdisk.Start(context.Background(), tapdisk.Options{Domid: 5, Devid: 51728, Image: device.Path, ShmRoot: "/dev/shm"})
	qt.Assert(t, qt.IsNil(err))
	t.Cleanup(func() { qt.Check(t, qt.IsNil(d.Close())) })
	g := &guestDisk{Disk: d, t: t, socket: filepath.Join(t.TempDir(), "socket"), device: device}
	store, err := xenstored.Start(g.socket)
	qt.Assert(t, qt.IsNil(err))
	t.Cleanup(func() { store.Close() })
	store.SetAll("/local/domain/5", map[string]string{"name": "db", "vm": "/vm/" + vm})
	store.SetAll("/local/domain/0/backend/vbd3/5/51728", map[string]string{
		"dev": "xvdb", "mode": "w", "kthread-pid": strconv.Itoa(d.PID()), "params": "/dev/sm/backend/" + guestSR + "/" + guestVDI,
		"sm-data/vdi-uuid": guestVDI, "sm-data/storage-type": "lvm",
	})
	store.Set("/xapi/"+vm+"/private/vbd3/51728/vdi-id", `["VDI","`+guestSR+"/"+guestVDI+`"]`)
	return g
}

// show has the agent of the lab, which sees the processes of its dom0 only, see the
// tapdisk.
func (g *guestDisk) show(l *lab) {
	g.t.Helper()
	pid := strconv.Itoa(g.PID())
	qt.Assert(g.t, qt.IsNil(os.Symlink(filepath.Join("/proc", pid), filepath.Join(l.dom0.ProcDir(), pid))))
}

// reads has the guest read from its disk.
func (g *guestDisk) reads(n int) {
	g.t.Helper()
	_, err := g.Guest().Run(context.Background(), tapdisk.Load{Requests: n})
	qt.Assert(g.t, qt.IsNil(err))
}

// guestSpans are the requests that are in the bugtool files, and the spans below each.
func guestSpans(spans []zipkin.Span) (roots []zipkin.Span, below map[string][]zipkin.Span) {
	below = map[string][]zipkin.Span{}
	for _, s := range spans {
		switch {
		case s.Service() != "tapdisk":
		case s.ParentID == "":
			roots = append(roots, s)
		default:
			below[s.ParentID] = append(below[s.ParentID], s)
		}
	}
	return roots, below
}

// tapdiskAttached tells whether the probe of guests' requests is.
func tapdiskAttached(s *control.Status) bool {
	for _, p := range s.Probes {
		if p.Probe == "tapdisk" {
			return true
		}
	}
	return false
}

// untilSpans has the guest read until there are so many spans of its requests.
func (g *guestDisk) untilSpans(l *lab, n int) (roots []zipkin.Span, below map[string][]zipkin.Span) {
	g.t.Helper()
	told := func() uint64 { return l.status().Engine.Requests.Told }
	for range 600 { // the disk is followed a little after the probe is attached
		if told() > 0 {
			break
		}
		g.reads(1)
		time.Sleep(20 * time.Millisecond)
	}
	g.reads(n)
	l.wait("has told of the requests", func(s *control.Status) bool {
		r := s.Engine.Requests
		return r.Spans >= uint64(n) && r.Held == 0
	})
	l.traces() // all is in the files
	return guestSpans(l.spans())
}

// TestGuestRequests: an Observer that names tapdisk gets a span of each slow request of a
// guest, with the layers below it; and nothing is attached while nobody wants any.
func TestGuestRequests(t *testing.T) {
	for _, tier := range []string{"legacy", "modern"} {
		t.Run(tier, func(t *testing.T) {
			needRoot(t)
			g := startGuestDisk(t, guestVM)
			args := []string{"--xenstore", g.socket}
			if tier == "legacy" {
				args = append(args, "--legacy")
			}
			l := newLab(t, testenv.Options{}, args...)
			g.show(l)
			qt.Check(t, qt.IsFalse(tapdiskAttached(l.status())))
			qt.Assert(t, qt.IsNil(g.Inject(tapdisk.Busy, 5*time.Millisecond)))
			run := func(words ...string) string {
				t.Helper()
				out, err := l.agent.Run(context.Background(), append([]string{"observer"}, words...)...)
				qt.Assert(t, qt.IsNil(err))
				return strings.TrimSpace(out)
			}
			id := run("create", "name-label=e2e", "enabled=true", "attributes:dtagent.components=tapdisk", "attributes:dtagent.tapdisk.slow=2ms", soon)
			l.wait("has attached the probe", tapdiskAttached)
			roots, below := g.untilSpans(l, 5)
			qt.Assert(t, qt.IsTrue(len(roots) >= 5))
			for _, s := range roots {
				qt.Check(t, qt.Equals(s.Name, "guest read xvdb"))
				qt.Check(t, qt.IsTrue(s.Duration >= 2000))
				for key, want := range map[string]string{
					"disk.io.direction": "read", "xs.vm.uuid": guestVM, "xs.vm.name": "db", "xs.vbd.device": "xvdb", "xs.vdi.uuid": guestVDI, "xs.sr.uuid": guestSR, "xs.sr.type": "lvm",
					"dt.domid": "5", "dt.devid": "51728", "dt.io.bytes": "4096", "process.pid": strconv.Itoa(g.PID()), "system.device": fmt.Sprintf("%d:%d", g.device.Major, g.device.Minor),
					"dt.link.method": "none", "dt.io.sample": "", "dt.incomplete": "",
				} {
					qt.Check(t, qt.Equals(s.Tags[key], want), qt.Commentf("%s", key))
				}
				inside := map[string]bool{}
				for _, child := range below[s.ID] {
					inside[child.Name] = true
					qt.Check(t, qt.Equals(child.TraceID, s.TraceID))
					qt.Check(t, qt.IsTrue(child.Timestamp >= s.Timestamp && child.Timestamp+child.Duration <= s.Timestamp+s.Duration+1)) // each is cut to µs
				}
				qt.Check(t, qt.IsTrue(inside["tapdisk"] || inside["runq"]), qt.Commentf("it worked for 5 ms, or wanted to: %v", inside))
			}
			l.noLosses()
			// Nobody wants any: nothing is attached.
			run("param-set", "uuid="+id, "enabled=false")
			l.wait("has detached", func(s *control.Status) bool { return len(s.Probes) == 0 })
		})
	}
}

// TestGuestRequestsLink: a request of a guest that falls into an operation on its VM has a
// link to it.
func TestGuestRequestsLink(t *testing.T) {
	l := prepare(t, testenv.Options{VMs: 1})
	vm := l.dom0.VMs()[0]
	g := startGuestDisk(t, vm.UUID)
	l.args = []string{"--host-uuid", l.dom0.HostUUID(), "--host-name", "lab", "--xenstore", g.socket}
	g.show(l)
	l.start()
	l.observe("attributes:dtagent.components=xapi,xenopsd,tapdisk", "attributes:dtagent.tapdisk.slow=off", "attributes:dtagent.tapdisk.sample=1")
	l.wait("has attached the probe", tapdiskAttached)
	g.untilSpans(l, 1)
	began := l.status().Engine.Requests
	session := l.session()
	done := make(chan string)
	go func() {
		defer close(done)
		_, id, _ := l.startVM(session, 0)
		done <- id
	}()
	trace := ""
	for trace == "" {
		g.reads(1)
		select {
		case trace = <-done:
		case <-time.After(10 * time.Millisecond):
		}
	}
	l.wait("has told of all, with a link", func(s *control.Status) bool {
		return s.Engine.Requests.Held == 0 && s.Engine.Requests.Links > began.Links
	})
	l.traces()
	roots, _ := guestSpans(l.spans())
	linked := 0
	for _, s := range roots {
		qt.Check(t, qt.Not(qt.Equals(s.TraceID, trace))) // no part of it
		if s.Tags["dt.link.1.trace_id"] == trace {
			linked++
			qt.Check(t, qt.Equals(s.Tags["dt.link.1.object"], "vm"))
		}
	}
	qt.Check(t, qt.IsTrue(linked > 0), qt.Commentf("of %d", len(roots)))
}
