//go:build linux

package dom0

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/go-quicktest/qt"
	"golang.org/x/sys/unix"

	"github.com/xenserver/dtagent/testenv/xen/guest"
)

// diskMiB is the size of the disks that are files.
const diskMiB = 16

// vbd is a disk of a guest, with what the guest does with it.
type vbd struct {
	order   guest.Order
	backend string // phy: blkback; qdisk: a QEMU of the guest's own
	target  string // what is behind it in dom0
	format  string
	number  int // as xenstore names it

	did guest.Stat
}

func (v *vbd) xl() string {
	return fmt.Sprintf("format=%s,vdev=%s,access=rw,backendtype=%s,target=%s", v.format, v.order.Disk, v.backend, v.target)
}

// wants is what the order comes to.
func (v *vbd) wants() guest.Stat {
	o := v.order
	return guest.Stat{Reads: uint64(o.Reads), ReadBytes: uint64(o.Reads * o.Bytes), Writes: uint64(o.Writes), WriteBytes: uint64(o.Writes * o.Bytes)}
}

// pair is two guests with two disks each: every kind of backend, and what each is
// used for differs in all numbers, so that nothing can be taken for another's.
type pair struct {
	names  [2]string
	disks  [2][]*vbd
	guests [2]*domu
	at     int64 // what is before is used
}

// xvda and xvdb as xenstore numbers them: major 202, sixteen minors each.
const xvda, xvdb = 202 << 8, 202<<8 | 16

func startPair(t *testing.T) *pair {
	t.Helper()
	dir := "/var/lib/dtagent-disks"
	qt.Assert(t, qt.IsNil(os.MkdirAll(dir, 0o755)))
	raw, qcow, looped := filepath.Join(dir, "raw"), filepath.Join(dir, "qcow2"), filepath.Join(dir, "looped")
	// All is written once: what a file system knows to be zero is not read from its
	// disk, and what is mapped anew makes more requests.
	size := fmt.Sprintf("%dM", diskMiB)
	for _, f := range []string{raw, looped} {
		program(t, "qemu-img", "create", "-q", "-f", "raw", "-o", "preallocation=full", f, size)
	}
	program(t, "qemu-img", "create", "-q", "-f", "qcow2", "-o", "preallocation=full", qcow, size)
	// What QEMU has written to the page cache is written out when its guest flushes,
	// by QEMU, and not by the kernel sooner.
	qt.Assert(t, qt.IsNil(os.WriteFile("/proc/sys/vm/dirty_writeback_centisecs", []byte("0"), 0)))
	loop := program(t, "losetup", "--find", "--show", "--direct-io=on", looped)
	t.Cleanup(func() { program(t, "losetup", "--detach", loop) })
	p := &pair{names: [2]string{"alpha", "beta"}}
	p.disks[0] = []*vbd{
		{order: guest.Order{Disk: "xvda", Writes: 40, Reads: 90, Bytes: 4 << 10}, backend: "phy", target: loop, format: "raw", number: xvda},
		{order: guest.Order{Disk: "xvdb", Writes: 30, Reads: 20, Bytes: 8 << 10}, backend: "qdisk", target: raw, format: "raw", number: xvdb},
	}
	p.disks[1] = []*vbd{
		{order: guest.Order{Disk: "xvda", Writes: 25, Reads: 70, Bytes: 16 << 10}, backend: "qdisk", target: qcow, format: "qcow2", number: xvda},
		{order: guest.Order{Disk: "xvdb", Writes: 60, Reads: 35, Bytes: 12 << 10}, backend: "phy", target: "/dev/vdb", format: "raw", number: xvdb},
	}
	for i, name := range p.names {
		var disks []string
		for _, v := range p.disks[i] {
			disks = append(disks, v.xl())
		}
		p.guests[i] = startGuest(t, name, disks...)
	}
	return p
}

// work lets both guests do what they are to do, at the same time, at a place that
// they have not used yet.
func (p *pair) work(t *testing.T) {
	t.Helper()
	at := p.at
	p.at += guest.Span
	qt.Assert(t, qt.IsTrue(p.at <= othersAt))
	program(t, "sync")
	qt.Assert(t, qt.IsNil(os.WriteFile("/proc/sys/vm/drop_caches", []byte("1"), 0))) // QEMU reads by the page cache
	for i, g := range p.guests {
		for _, v := range p.disks[i] {
			v.order.At = at
			g.start(v.order)
		}
	}
	for i, g := range p.guests {
		for _, v := range p.disks[i] {
			v.did = g.wait().Kernel
		}
	}
	for i, name := range p.names {
		for _, v := range p.disks[i] {
			v.did.Writes-- // the flush is a write to it, of nothing
			qt.Check(t, qt.Equals(v.did, v.wants()), qt.Commentf("guest %s, %s: what its kernel counted", name, v.order.Disk))
		}
	}
}

// The guests' requests arrive at their backends, as many and as large as the
// guests say; and the agent tells of each disk of each domain what its guest did
// with it, and of nothing that others did at the same devices.
func TestGuestIODom0(t *testing.T) {
	needDom0(t)
	first := startAgent(t)
	stream := first.io() // sees the disks come
	p := startPair(t)
	p.work(t) // QEMU knows now how its images are laid out
	t.Run("modern", func(t *testing.T) { p.judge(t, stream, true) })
	// Finds the disks there. By a tracepoint not every end is seen: docs/io.md.
	t.Run("legacy", func(t *testing.T) { p.judge(t, startAgent(t, "--legacy").io(), false) })
}

// judge lets the guests work and checks what the agent says of it; allEnds says
// whether it has to have seen each request's end.
func (p *pair) judge(t *testing.T, stream *ioStream, allEnds bool) {
	stream.t = t
	before := stream.next("all disks seen", func(s *ioSample) bool {
		for i, g := range p.guests {
			for _, v := range p.disks[i] {
				if d := s.disk(g.id, v.number); d == nil || !d.Seen {
					return false
				}
			}
		}
		return true
	})
	backends := p.blkback(t)
	stop := others(t, "/dev/vdb", p.disks[0][1].target)
	p.work(t)
	stop()
	now := p.blkback(t)
	after := stream.next("the work done", func(*ioSample) bool { return true })
	qt.Check(t, qt.HasLen(after.VBDs, 4))
	qt.Check(t, qt.HasLen(now, 2))
	for i, g := range p.guests {
		for _, v := range p.disks[i] {
			what := qt.Commentf("guest %s, %s, a %s of %s", g.name, v.order.Disk, v.backend, v.target)
			if name := fmt.Sprintf("vbd-%d-%d", g.id, v.number); v.backend == "phy" {
				qt.Check(t, qt.Equals(now[name].Sub(backends[name]), v.wants()), what)
			}
			was, is := before.disk(g.id, v.number), after.disk(g.id, v.number)
			if !qt.Check(t, qt.IsNotNil(is), what) {
				continue
			}
			t.Logf("domain %s, %s (%s, %v): %+v, %+v", is.Domain, is.Device, is.Kind, is.Devices, is.total().Sub(was.total()), v.wants())
			qt.Check(t, qt.Equals(is.Domain, g.name), what)
			qt.Check(t, qt.Equals(is.Device, v.order.Disk), what)
			qt.Check(t, qt.Equals(is.Kind, map[string]string{"phy": "vbd", "qdisk": "qdisk"}[v.backend]), what)
			qt.Check(t, qt.IsTrue(is.Seen), what)
			told, wants := is.total().Sub(was.total()), v.wants()
			if v.backend == "qdisk" { // the page cache makes requests of its own of them
				qt.Check(t, qt.IsTrue(told.Reads > 0 && told.Reads <= wants.Reads), what)
				qt.Check(t, qt.IsTrue(told.Writes > 0 && told.Writes <= wants.Writes), what)
				told.Reads, told.Writes = wants.Reads, wants.Writes
			}
			qt.Check(t, qt.Equals(told, wants), what)
			for _, k := range []ioKind{is.Read, is.Write} {
				qt.Check(t, qt.IsTrue(k.Total.Done == k.Total.Ops || !allEnds && k.Total.Done < k.Total.Ops), qt.Commentf("%+v", k.Total))
				qt.Check(t, qt.Equals(k.Total.Errors, 0), what)
				if qt.Check(t, qt.IsNotNil(k.Total.Latency), what) {
					qt.Check(t, qt.IsTrue(k.Total.Latency.Mean > 0), what)
				}
			}
		}
	}
	qt.Check(t, qt.Equals(after.Trouble, ""))
	t.Logf("losses: %+v", after.Losses)
}

func (d *ioDisk) total() guest.Stat {
	return guest.Stat{Reads: d.Read.Total.Ops, ReadBytes: d.Read.Total.Bytes, Writes: d.Write.Total.Ops, WriteBytes: d.Write.Total.Bytes}
}

// othersAt is behind what the guests use.
const othersAt = 3 * guest.Span

// others reads what is behind disks of guests, as a backup in dom0 does, until
// the function it returns is called.
func others(t *testing.T, targets ...string) (stop func()) {
	t.Helper()
	const bytes = 20 << 10 // as no guest reads
	var (
		wg    sync.WaitGroup
		ended atomic.Bool
		reads atomic.Int64
	)
	for _, name := range targets {
		fd, err := unix.Open(name, unix.O_RDONLY|unix.O_DIRECT|unix.O_CLOEXEC, 0)
		qt.Assert(t, qt.IsNil(err), qt.Commentf(name))
		buf, err := unix.Mmap(-1, 0, bytes, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
		qt.Assert(t, qt.IsNil(err))
		wg.Go(func() {
			defer unix.Munmap(buf)
			defer unix.Close(fd)
			for at := int64(0); !ended.Load(); at = (at + bytes) % (1 << 20) {
				if n, err := unix.Pread(fd, buf, othersAt+at); err != nil || n != bytes {
					t.Errorf("read %s at %d: %d, %v", name, at, n, err)
					return
				}
				reads.Add(1)
			}
		})
	}
	return func() {
		ended.Store(true)
		wg.Wait()
		qt.Check(t, qt.IsTrue(reads.Load() > 0))
	}
}

// blkback reads what the kernel's backends have counted, by their device.
func (p *pair) blkback(t *testing.T) map[string]guest.Stat {
	t.Helper()
	dirs, err := filepath.Glob("/sys/bus/xen-backend/devices/vbd-*/statistics")
	qt.Assert(t, qt.IsNil(err))
	all := map[string]guest.Stat{}
	for _, d := range dirs {
		read := func(name string) uint64 {
			b, err := os.ReadFile(filepath.Join(d, name))
			qt.Assert(t, qt.IsNil(err))
			n, err := strconv.ParseUint(strings.TrimSpace(string(b)), 10, 64)
			qt.Assert(t, qt.IsNil(err))
			return n
		}
		const sector = 512
		all[filepath.Base(filepath.Dir(d))] = guest.Stat{
			Reads: read("rd_req"), ReadBytes: read("rd_sect") * sector,
			Writes: read("wr_req"), WriteBytes: read("wr_sect") * sector,
		}
	}
	return all
}
