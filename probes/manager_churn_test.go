//go:build linux

package probes

import (
	"bytes"
	"fmt"
	"regexp"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/go-quicktest/qt"

	"github.com/xenserver/dtagent/bpf"
	"github.com/xenserver/dtagent/probes/event"
)

var methodName = regexp.MustCompile(`<methodName>([^<]*)</methodName>`)

// TestSeedRaceKernel switches on while connections come and go, so that their
// numbers are read from /proc, reused and accepted at the same time. Every
// call that is made after Want has returned must be seen, once, on a
// connection that was opened once, whether it is new or from before.
func TestSeedRaceKernel(t *testing.T) {
	inTiers(t, func(t *testing.T, tier bpf.Tier) {
		v := startVictim(t, "xapi")
		var kept []*client
		for range 8 {
			c := v.dial()
			c.call("VM.before", session)
			kept = append(kept, c)
		}
		c := collect(t, tier, Options{})
		var stop atomic.Bool
		var churn sync.WaitGroup
		for range 3 {
			churn.Go(func() {
				for !stop.Load() {
					x := v.dial()
					x.call("VM.churn", session, canary)
					x.c.Close()
				}
			})
		}
		for round := range 4 {
			time.Sleep(20 * time.Millisecond)
			qt.Assert(t, qt.IsNil(c.Want(event.Of(event.Xapi))))
			name := func(i int) string { return fmt.Sprintf("VM.r%d.%d", round, i) }
			const calls = 40
			for i := range calls {
				if i%2 == 0 {
					kept[i/2%len(kept)].call(name(i), session, canary)
					continue
				}
				x := v.dial()
				x.call(name(i), session, canary)
				x.c.Close()
			}
			c.wait(v.tgid, name(calls-1), holds(event.KindData, "<methodName>"+name(calls-1)+"<"))
			time.Sleep(50 * time.Millisecond)
			seen := map[string]int{}
			for _, e := range c.of(v.tgid) {
				if m := methodName.FindSubmatch(e.Head); e.Kind == event.KindData && m != nil {
					seen[string(m[1])]++
				}
			}
			for i := range calls {
				if seen[name(i)] != 1 {
					t.Errorf("%s was seen %d times", name(i), seen[name(i)])
				}
			}
			if round == 3 {
				break
			}
			qt.Assert(t, qt.IsNil(c.Want(0)))
		}
		stop.Store(true)
		churn.Wait()
		c.stop()
		c.noSecrets()

		opened := map[event.Conn]int{}
		ino := map[event.Conn]uint64{}
		for _, e := range c.of(v.tgid) {
			switch e.Kind {
			case event.KindOpen:
				opened[e.Conn]++
			case event.KindData:
				if e.Ino != 0 && ino[e.Conn] != 0 && ino[e.Conn] != e.Ino {
					t.Errorf("connection %v is of two sockets, %d and %d", e.Conn, ino[e.Conn], e.Ino)
				}
				ino[e.Conn] = e.Ino
				if opened[e.Conn] != 1 {
					t.Errorf("connection %v was opened %d times before %.30q", e.Conn, opened[e.Conn], e.Head)
				}
				if bytes.HasPrefix(e.Head, []byte("POST ")) && e.Dir != event.In || bytes.HasPrefix(e.Head, []byte("HTTP/1.1 2")) && e.Dir != event.Out {
					t.Errorf("direction %d of %.30q", e.Dir, e.Head)
				}
			}
		}
		s := c.Stats()
		t.Logf("%d events, %d lost, %d seeded, losses %v", len(c.of(v.tgid)), s.Lost, s.Seeded, s.Losses)
		qt.Check(t, qt.Equals(s.Lost, 0))
		qt.Check(t, qt.Equals(s.Malformed, 0))
	})
}

// TestWantConcurrentKernel changes its mind from several goroutines.
func TestWantConcurrentKernel(t *testing.T) {
	inTiers(t, func(t *testing.T, tier bpf.Tier) {
		v := startVictim(t, "xapi")
		c := collect(t, tier, Options{Interval: 10 * time.Millisecond})
		var wg sync.WaitGroup
		for i := range 3 {
			wg.Go(func() {
				for j := range 3 {
					qt.Check(t, qt.IsNil(c.Want(event.Components((i+j)%3<<1))))
					c.Stats()
				}
			})
		}
		wg.Wait()
		qt.Assert(t, qt.IsNil(c.Want(event.AllComponents)))
		v.dial().call("VM.last", session)
		c.wait(v.tgid, "request", holds(event.KindData, "<methodName>VM.last<"))
		qt.Assert(t, qt.IsNil(c.Close()))
		qt.Assert(t, qt.IsNil(c.Close()))
		qt.Check(t, qt.IsNotNil(c.Want(event.AllComponents)))
		qt.Check(t, qt.HasLen(attachedLinks(t), 0))
	})
}
