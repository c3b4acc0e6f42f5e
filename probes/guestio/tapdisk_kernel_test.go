//go:build linux

package guestio

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/go-quicktest/qt"

	"github.com/xenserver/dtagent/bpf"
	"github.com/xenserver/dtagent/probes/event"
	standin "github.com/xenserver/dtagent/testenv/tapdisk"
)

// A tapdisk serves a guest: what the guest did, what tapdisk says of it, and what the
// kernel counted, by layer, are the same.
func TestTapdiskKernel(t *testing.T) {
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
			dir := filepath.Join(t.TempDir(), "sr-mount", srUUID)
			qt.Assert(t, qt.IsNil(os.MkdirAll(dir, 0o755)))
			leaf, parent := filepath.Join(dir, vdiUUID+".vhd"), filepath.Join(dir, oldUUID+".vhd")
			qt.Assert(t, qt.IsNil(standin.CreateVHD(leaf, standin.Content{Size: 64 << 20, Blocks: 1, Sectors: 1, Batmap: true, Child: true})))
			qt.Assert(t, qt.IsNil(standin.CreateVHD(parent, standin.Content{Size: 64 << 20, Blocks: 1, Sectors: 1})))
			const domid, devid = 4005, 51728
			l.guest(domid, "web", vmUUID)
			l.vbd(Tapdisk, domid, devid, "", nil)
			w := l.watch() // before it is there
			tap, err := standin.Start(t.Context(), standin.Options{Domid: domid, Devid: devid, Type: standin.VHD, Image: leaf, Chain: []string{parent}, ShmRoot: l.shm})
			qt.Assert(t, qt.IsNil(err))
			defer func() { qt.Check(t, qt.IsNil(tap.Close())) }()
			tgid := uint32(tap.PID())
			until(t, w, "its requests are counted", func(s *Sample) bool { return s.VBDs[0].Layers != nil && len(s.VBDs[0].Images) == 2 })
			disk := l.p.DiskOf(tgid)
			qt.Assert(t, qt.IsNotNil(disk))
			qt.Check(t, qt.DeepEquals(disk.Images, []string{leaf, parent}))
			qt.Check(t, qt.Equals(fmt.Sprint(disk.Device, disk.SR, disk.VDI, disk.Type), fmt.Sprint("xvdb", srUUID, vdiUUID, "vhd")))
			leave, err := l.p.Follow(t.Context(), Want{Sample: 10})
			qt.Assert(t, qt.IsNil(err))
			defer leave()

			const requests = 400
			r, err := tap.Guest().Run(t.Context(), standin.Load{Requests: requests, Depth: 8, Reads: 1, Writes: 1, Random: true})
			qt.Assert(t, qt.IsNil(err))
			var ops [2]uint64
			for _, q := range r.Requests {
				if q.Op == standin.Write {
					ops[1]++
				} else {
					ops[0]++
				}
			}
			before := l.figuresRead()
			l.until("figures are read", func() bool { return l.figuresRead().After(before) })
			s := w.Sample()
			v := s.VBDs[0]
			for op, io := range []GuestIO{v.Layers.Read, v.Layers.Write} {
				qt.Check(t, qt.Equals(io.Total.Requests, ops[op]))
				qt.Check(t, qt.Equals(io.Total.Bytes, ops[op]*4096))
				sum := 0.
				for layer := event.LayerTotal + 1; layer < event.NumLayers; layer++ {
					at := io.Total.Layers[layer.String()]
					qt.Check(t, qt.Equals(at.Count, ops[op]))
					sum += at.Mean
				}
				total := io.Total.Layers["total"].Mean
				qt.Check(t, qt.IsTrue(sum > total*0.999 && sum < total*1.001), qt.Commentf("%f of %f", sum, total))
			}
			qt.Assert(t, qt.IsNotNil(v.Tapdisk))
			qt.Check(t, qt.Equals(v.Tapdisk.PID, tgid))
			qt.Check(t, qt.Equals(v.Tapdisk.Read.Total, ops[0]))
			qt.Check(t, qt.Equals(v.Tapdisk.Write.Total, ops[1]))
			qt.Check(t, qt.Equals(v.Tapdisk.InFlight, 0))
			qt.Check(t, qt.IsNotNil(v.Ring))
			qt.Check(t, qt.IsNotNil(s.Host))

			// A snapshot.
			qt.Assert(t, qt.IsNil(tap.Pause()))
			until(t, w, "it is paused", func(s *Sample) bool { return s.VBDs[0].Tapdisk.Paused })
			qt.Check(t, qt.IsTrue(l.p.DiskOf(tgid) == disk))
			qt.Assert(t, qt.IsNil(tap.Resume()))
			until(t, w, "it goes on", func(s *Sample) bool { return !s.VBDs[0].Tapdisk.Paused && s.VBDs[0].Tapdisk.Pauses == 1 })

			qt.Assert(t, qt.IsNil(tap.Close()))
			l.until("it is forgotten", func() bool { return l.p.DiskOf(tgid) == nil })
			leave()
			w.Close()
			qt.Check(t, qt.HasLen(session.Attached(), 0))
		})
	}
}
