//go:build linux

package e2e

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/go-quicktest/qt"
	"golang.org/x/sys/unix"

	"github.com/xenserver/dtagent/cmd/dtagent/control"
	"github.com/xenserver/dtagent/probes/guestio"
	"github.com/xenserver/dtagent/testenv/daemon"
	"github.com/xenserver/dtagent/testenv/loop"
	"github.com/xenserver/dtagent/testenv/xenstored"
)

// disksAttached tells whether the disk probe is.
func disksAttached(s *control.Status) bool {
	for _, p := range s.Probes {
		if p.Probe == "disk" {
			return true
		}
	}
	return false
}

// An agent without Observers shows what a guest's disk does, and watches it only
// meanwhile.
func TestIO(t *testing.T) {
	for _, tier := range []string{"legacy", "modern"} {
		t.Run(tier, func(t *testing.T) {
			needRoot(t)
			dtagent, _ := binaries(t)
			file, err := loop.File(t.TempDir(), 4<<20)
			qt.Assert(t, qt.IsNil(err))
			device, err := loop.New(file)
			if errors.Is(err, loop.ErrNone) {
				t.Skip(err)
			}
			qt.Assert(t, qt.IsNil(err))
			defer device.Close()
			socket := filepath.Join(t.TempDir(), "socket")
			args := []string{"--xenstore", socket}
			if tier == "legacy" {
				args = append(args, "--legacy")
			}
			agent, err := daemon.Start(t.Context(), daemon.Options{Binary: dtagent, Dir: t.TempDir(), Args: args})
			qt.Assert(t, qt.IsNil(err))
			defer func() { qt.Check(t, qt.IsNil(agent.Stop())) }()

			// No Xen here.
			_, err = agent.Run(context.Background(), "io", "--once")
			qt.Check(t, qt.ErrorMatches(err, "(?s).*no xenstored answers.*Xen dom0.*"))

			store, err := xenstored.Start(socket)
			qt.Assert(t, qt.IsNil(err))
			defer store.Close()
			store.SetAll("/local/domain/5", map[string]string{"name": "web\x1b[2J", "vm": "/vm/1f1c5c0a-0000-4000-8000-000000000005"})
			store.SetAll("/local/domain/0/backend/qdisk/5/51712", map[string]string{"dev": "xvda", "mode": "w", "params": "aio:" + device.Path})
			st, err := agent.Status(t.Context())
			qt.Assert(t, qt.IsNil(err))
			qt.Check(t, qt.IsFalse(disksAttached(st)))

			// The guest reads while somebody looks.
			disk, err := os.OpenFile(device.Path, os.O_RDWR|unix.O_DIRECT, 0)
			qt.Assert(t, qt.IsNil(err))
			defer disk.Close()
			mem, err := unix.Mmap(-1, 0, 4096, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
			qt.Assert(t, qt.IsNil(err))
			defer unix.Munmap(mem)
			ctx, stop := context.WithCancel(t.Context())
			defer stop()
			const reads = 50
			var last *guestio.Sample
			err = control.NewClient(agent.Control()).IO(ctx, control.MinInterval, func() {
				for i := range int64(reads) {
					_, err := disk.ReadAt(mem, 4096*i)
					qt.Check(t, qt.IsNil(err))
				}
			}, func(s *guestio.Sample) error {
				if last = s; s.VBDs[0].Read.Total.Ops < reads {
					return nil
				}
				st, err := agent.Status(t.Context())
				qt.Check(t, qt.IsNil(err))
				qt.Check(t, qt.IsTrue(disksAttached(st)))
				stop()
				return nil
			})
			qt.Assert(t, qt.IsNil(err))
			v := last.VBDs[0]
			qt.Check(t, qt.Equals(v.Read.Total.Ops, reads))
			qt.Check(t, qt.Equals(v.Read.Total.Bytes, reads*4096))
			qt.Check(t, qt.Equals(v.VMUUID, "1f1c5c0a-0000-4000-8000-000000000005"))
			qt.Check(t, qt.DeepEquals(v.Devices, []string{fmt.Sprintf("%d:%d", device.Major, device.Minor)}))
			qt.Assert(t, qt.IsNil(agent.Wait(t.Context(), time.Minute, "has detached", func(s *control.Status) bool { return !disksAttached(s) })))

			// The verb, for machines and for people.
			out, err := agent.Run(context.Background(), "io", "--json", "--count", "2", "--interval", "100ms")
			qt.Assert(t, qt.IsNil(err))
			lines := 0
			for in := bufio.NewScanner(strings.NewReader(out)); in.Scan(); lines++ {
				var s guestio.Sample
				qt.Assert(t, qt.IsNil(json.Unmarshal(in.Bytes(), &s)))
				qt.Assert(t, qt.HasLen(s.VBDs, 1))
				qt.Check(t, qt.IsTrue(s.VBDs[0].Seen))
				qt.Check(t, qt.Equals(s.VBDs[0].Device, "xvda"))
			}
			qt.Check(t, qt.Equals(lines, 2))
			out, err = agent.Run(context.Background(), "io", "--once", "--interval", "100ms")
			qt.Assert(t, qt.IsNil(err))
			qt.Check(t, qt.StringContains(out, "web?[2J")) // a name is not obeyed by the terminal
			qt.Check(t, qt.StringContains(out, "xvda"))
		})
	}
}
