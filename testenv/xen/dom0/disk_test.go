//go:build linux

package dom0

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/go-quicktest/qt"

	"github.com/xenserver/dtagent/testenv/xen/guest"
)

// diskMiB is the size of the disks that are files.
const diskMiB = 64

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
}

// xvda and xvdb as xenstore numbers them: major 202, sixteen minors each.
const xvda, xvdb = 202 << 8, 202<<8 | 16

func startPair(t *testing.T) *pair {
	t.Helper()
	dir := "/var/lib/dtagent-disks"
	qt.Assert(t, qt.IsNil(os.MkdirAll(dir, 0o755)))
	raw, qcow, looped := filepath.Join(dir, "raw"), filepath.Join(dir, "qcow2"), filepath.Join(dir, "looped")
	for _, f := range []string{raw, looped} {
		program(t, "fallocate", "-l", fmt.Sprintf("%dM", diskMiB), f)
	}
	program(t, "qemu-img", "create", "-q", "-f", "qcow2", "-o", "preallocation=falloc", qcow, fmt.Sprintf("%dM", diskMiB))
	loop := program(t, "losetup", "--find", "--show", "--direct-io=on", looped)
	t.Cleanup(func() { program(t, "losetup", "--detach", loop) })
	p := &pair{names: [2]string{"alpha", "beta"}}
	p.disks[0] = []*vbd{
		{order: guest.Order{Disk: "xvda", Writes: 40, Reads: 90, Bytes: 4 << 10, Seed: 1}, backend: "phy", target: loop, format: "raw", number: xvda},
		{order: guest.Order{Disk: "xvdb", Writes: 30, Reads: 20, Bytes: 8 << 10, Seed: 2}, backend: "qdisk", target: raw, format: "raw", number: xvdb},
	}
	p.disks[1] = []*vbd{
		{order: guest.Order{Disk: "xvda", Writes: 25, Reads: 70, Bytes: 16 << 10, Seed: 3}, backend: "qdisk", target: qcow, format: "qcow2", number: xvda},
		{order: guest.Order{Disk: "xvdb", Writes: 60, Reads: 35, Bytes: 12 << 10, Seed: 4}, backend: "phy", target: "/dev/vdb", format: "raw", number: xvdb},
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

// work lets both guests do what they are to do, at the same time.
func (p *pair) work(t *testing.T) {
	t.Helper()
	for i, g := range p.guests {
		for _, v := range p.disks[i] {
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
			qt.Check(t, qt.Equals(v.did, v.wants()), qt.Commentf("guest %s, %s: what its kernel counted", name, v.order.Disk))
		}
	}
}

// The guests' requests arrive at their backends, as many and as large as the
// guests say: what the agent is measured by is true.
func TestGuestIODom0(t *testing.T) {
	needDom0(t)
	p := startPair(t)
	before := p.blkback(t)
	p.work(t)
	after := p.blkback(t)
	for i, g := range p.guests {
		for _, v := range p.disks[i] {
			name := fmt.Sprintf("vbd-%d-%d", g.id, v.number)
			if v.backend == "phy" {
				qt.Check(t, qt.Equals(after[name].Sub(before[name]), v.wants()), qt.Commentf("guest %s, %s: what blkback counted", g.name, v.order.Disk))
			}
		}
	}
	qt.Check(t, qt.HasLen(after, 2))
	t.Run("agent", func(t *testing.T) {
		t.Skip("waits for the agent's verb io: guests' I/O by domain and disk")
	})
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
