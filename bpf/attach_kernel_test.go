//go:build linux

package bpf

import (
	"errors"
	"os"
	"regexp"
	"runtime"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"github.com/go-quicktest/qt"
	"golang.org/x/sys/unix"
)

// loaded returns the ids of our programs in the kernel's own list.
func loaded(t *testing.T) map[ebpf.ProgramID]string {
	t.Helper()
	out := map[ebpf.ProgramID]string{}
	for id := ebpf.ProgramID(0); ; {
		next, err := ebpf.ProgramGetNextID(id)
		if errors.Is(err, os.ErrNotExist) {
			return out
		}
		qt.Assert(t, qt.IsNil(err))
		id = next
		p, err := ebpf.NewProgramFromID(id)
		if err != nil {
			continue // it is just going
		}
		if info, err := p.Info(); err == nil && strings.HasPrefix(info.Name, "dt_") {
			out[id] = info.Name
		}
		p.Close()
	}
}

// linked returns how many links of the kernel's list hold one of the programs.
func linked(t *testing.T, progs map[ebpf.ProgramID]string) int {
	t.Helper()
	n := 0
	it := new(link.Iterator)
	defer it.Close()
	for it.Next() {
		info, err := it.Link.Info()
		if err != nil {
			continue
		}
		if _, ours := progs[info.Program]; ours {
			n++
		}
	}
	qt.Assert(t, qt.IsNil(it.Err()))
	return n
}

// ownPrograms returns the ids of a session's programs.
func ownPrograms(t *testing.T, s *Session) map[ebpf.ProgramID]string {
	t.Helper()
	out := map[ebpf.ProgramID]string{}
	for _, progs := range s.progs {
		for name, p := range progs {
			info, err := p.Info()
			qt.Assert(t, qt.IsNil(err))
			id, ok := info.ID()
			qt.Assert(t, qt.IsTrue(ok))
			out[id] = name
		}
	}
	return out
}

func TestAttachDetachKernel(t *testing.T) {
	for _, tier := range []Tier{Legacy, Modern} {
		t.Run(tier.String(), func(t *testing.T) {
			c := newCollector(t, openKernel(t, tier, Options{}))
			defer c.close()
			own := ownPrograms(t, c.s)
			inKernel := loaded(t)
			for id, name := range own {
				qt.Check(t, qt.Equals(inKernel[id], name))
			}
			qt.Check(t, qt.HasLen(c.s.Attached(), 0))
			qt.Check(t, qt.Equals(linked(t, own), 0))

			qt.Assert(t, qt.IsNil(c.s.Attach(Process)))
			n := len(c.s.Attached())
			qt.Check(t, qt.Equals(n, len(c.s.kernel.hooks[Process])+len(c.s.kernel.dispatched[Process])))
			qt.Assert(t, qt.IsNil(c.s.Attach(Process))) // once more does nothing
			qt.Check(t, qt.HasLen(c.s.Attached(), n))
			qt.Assert(t, qt.IsNil(c.s.Attach(Stream)))
			n = len(c.s.Attached())
			if have := linked(t, own); have > 0 { // links of tracepoints are listed from 5.15 on
				qt.Check(t, qt.Equals(have, n-len(c.s.kernel.dispatched[Process])-len(c.s.kernel.dispatched[Stream])))
			}

			v, peer := c.pair(streamAndLog | WatchProcess)
			send(t, peer, "hello")
			v.read(3, 100)
			qt.Check(t, qt.HasLen(c.take(v.pid(), KindData), 1))

			qt.Assert(t, qt.IsNil(c.s.Detach(Stream)))
			send(t, peer, "hello")
			v.read(3, 100)
			v.must(order{Do: "exec", Parts: []string{"/bin/true"}})
			recs := c.all()
			qt.Check(t, qt.HasLen(ofKind(recs, KindData), 0))
			qt.Check(t, qt.HasLen(ofKind(recs, KindExec), 1)) // the other probe stays

			// A socket known before a detach is not the one known after it.
			qt.Assert(t, qt.IsNil(c.s.Attach(Stream)))
			send(t, peer, "hello")
			v.read(3, 100)
			qt.Check(t, qt.HasLen(ofKind(c.all(), KindData), 0))

			for range 2 {
				qt.Assert(t, qt.IsNil(c.s.Detach(Stream)))
				qt.Assert(t, qt.IsNil(c.s.Detach(Process)))
			}
			qt.Check(t, qt.HasLen(c.s.Attached(), 0))
			qt.Check(t, qt.Equals(linked(t, own), 0))
			v.must(order{Do: "exec", Parts: []string{"/bin/true"}})
			qt.Check(t, qt.HasLen(c.all(), 0))

			qt.Assert(t, qt.IsNil(c.close()))
			qt.Assert(t, qt.IsNil(c.s.Close()))
			// Programs go a moment after their last user.
			deadline := time.Now().Add(5 * time.Second)
			for {
				left := 0
				for id := range loaded(t) {
					if own[id] != "" {
						left++
					}
				}
				if left == 0 {
					break
				}
				qt.Assert(t, qt.IsTrue(time.Now().Before(deadline)), qt.Commentf("%d programs left", left))
				time.Sleep(20 * time.Millisecond)
			}
			qt.Check(t, qt.ErrorIs(c.s.Attach(Stream), os.ErrClosed))
			qt.Check(t, qt.ErrorIs(c.s.SetTarget(1, Target{}), os.ErrClosed))
		})
	}
}

var processed = regexp.MustCompile(`processed (\d+) insns`)

// The verifier of 4.19 gives up after 131,072 steps. The one of 5.10 treats
// programs with subprograms much as that one does; newer ones need fewer steps.
func TestVerifierStepsKernel(t *testing.T) {
	openKernel(t, Legacy, Options{})
	objects, err := specs(Legacy)
	qt.Assert(t, qt.IsNil(err))
	for p, spec := range objects {
		c, err := ebpf.NewCollectionWithOptions(spec, ebpf.CollectionOptions{Programs: ebpf.ProgramOptions{LogLevel: ebpf.LogLevelStats}})
		qt.Assert(t, qt.IsNil(err))
		defer c.Close()
		for name, prog := range c.Programs {
			m := processed.FindStringSubmatch(prog.VerifierLog)
			if m == nil {
				t.Skip("needs a kernel that counts the verifier's steps (5.2)")
			}
			steps, err := strconv.Atoi(m[1])
			qt.Assert(t, qt.IsNil(err))
			t.Logf("%s %s: %d steps", p, name, steps)
			qt.Check(t, qt.IsTrue(steps < 131072/2), qt.Commentf("%s: %d steps", name, steps))
		}
	}
}

// Far more records than a tiny buffer holds: every one arrives or is counted.
func TestOverloadKernel(t *testing.T) {
	for _, tier := range []Tier{Legacy, Modern} {
		t.Run(tier.String(), func(t *testing.T) {
			page := os.Getpagesize()
			c := collect(t, openKernel(t, tier, Options{RingBytes: 4 * page, PerfBytes: page}))
			qt.Assert(t, qt.IsNil(c.s.Attach(Stream)))
			v, peer := c.pair(streamAndLog)
			go func() {
				b := make([]byte, 1<<16)
				for {
					if _, err := peer.Read(b); err != nil {
						return
					}
				}
			}()
			c.mu.Lock() // the reader stands still
			const produced = 2000
			v.must(order{Do: "write", FD: 3, Data: header(200), Times: produced}) // each ends with CR LF CR LF
			c.mu.Unlock()
			c.settle()
			// One more on each CPU shows how many are missing before it.
			tid := v.must(order{Do: "tid"}).TID
			for cpu := range runtime.NumCPU() {
				var one unix.CPUSet
				one.Set(cpu)
				qt.Assert(t, qt.IsNil(unix.SchedSetaffinity(tid, &one)))
				v.must(order{Do: "write", FD: 3, Data: header(200)})
				c.settle()
			}
			sent := len(c.take(v.pid(), KindData)) // and one DT_OPEN
			var lost uint64
			for _, l := range c.losses() {
				qt.Check(t, qt.Equals(l, Loss{Stream, lossNames[lossOutput], l.Count}))
				lost += l.Count
			}
			t.Logf("%d sent, %d lost", sent, lost)
			qt.Check(t, qt.IsTrue(lost > 0))
			qt.Check(t, qt.Equals(uint64(sent)+lost, produced+uint64(runtime.NumCPU())))
			qt.Check(t, qt.Equals(c.lost, lost))
		})
	}
}

// Each table that is full degrades and is counted.
func TestFullTablesKernel(t *testing.T) {
	for _, tier := range []Tier{Legacy, Modern} {
		t.Run(tier.String(), func(t *testing.T) {
			c := collect(t, openKernel(t, tier, Options{Conns: 3, Gathers: 1, TargetsMax: 1, InflightMax: 2}))
			for _, p := range allProbes {
				qt.Assert(t, qt.IsNil(c.s.Attach(p)))
			}
			count := func(cause lossCause) uint64 {
				for _, l := range c.losses() {
					if l.Cause == cause.String() {
						return l.Count
					}
				}
				return 0
			}
			v, peer := c.pair(streamAndLog | WatchProcess)
			qt.Check(t, qt.IsNotNil(c.s.SetTarget(1, Target{})))

			// Sockets: 3 and one pair fit.
			a := v.must(order{Do: "pair"})
			b := v.must(order{Do: "pair"})
			qt.Check(t, qt.Equals(count(lossConns), 2))
			v.write(b.Ret, strings.Repeat("x", 300))
			qt.Check(t, qt.HasLen(c.take(v.pid(), KindData), 0))

			// Gathered pieces: the second socket's go out alone.
			send(t, peer, "aaaabbbb")
			v.must(order{Do: "read", FD: 3, N: 4, Times: 2})
			v.write(a.Ret, "one")
			v.write(a.Ret, "two")
			recs := c.take(v.pid(), KindData)
			qt.Assert(t, qt.HasLen(recs, 2))
			qt.Check(t, qt.Equals(recs[0].Head+recs[1].Head, "onetwo"))
			qt.Check(t, qt.Equals(count(lossGathers), 2))

			// Threads: some calls are not followed.
			for i := range 4 {
				v.must(order{Thread: 20 + i, Do: "write", FD: a.Ret, Data: strings.Repeat("x", 300)})
			}
			qt.Check(t, qt.IsTrue(count(lossInflight) > 0))

			// Processes: the child is not followed.
			c.all()
			v.must(order{Do: "exec", Parts: []string{"/bin/true"}})
			recs = c.all()
			qt.Check(t, qt.HasLen(ofKind(recs, KindExec), 0))
			qt.Check(t, qt.IsTrue(count(lossTargets) > 0))
		})
	}
}

// A session that nobody reads can be closed.
func TestCloseWithoutReaderKernel(t *testing.T) {
	s, err := openKernel(t, Legacy, Options{}).Load()
	qt.Assert(t, qt.IsNil(err))
	qt.Assert(t, qt.IsNil(s.Close()))
	var r Record
	qt.Check(t, qt.ErrorIs(s.Read(&r), os.ErrClosed))
}
