//go:build linux

package probes

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/cilium/ebpf/link"
	"github.com/go-quicktest/qt"

	"github.com/xenserver/dtagent/bpf"
	"github.com/xenserver/dtagent/probes/event"
)

// collector is a Manager whose events are kept.
type collector struct {
	*Manager
	t    testing.TB
	stop func()

	mu  sync.Mutex
	all []event.Event
}

// inTiers runs a test with a Manager of each tier that the kernel has.
func inTiers(t *testing.T, f func(t *testing.T, tier bpf.Tier)) {
	for _, tier := range []bpf.Tier{bpf.Legacy, bpf.Modern} {
		t.Run(tier.String(), func(t *testing.T) { f(t, tier) })
	}
}

func collect(t testing.TB, tier bpf.Tier, o Options) *collector {
	t.Helper()
	k, err := bpf.Open(bpf.Options{Legacy: tier == bpf.Legacy})
	if errors.Is(err, bpf.ErrKernel) {
		t.Skip("needs eBPF: " + strings.ReplaceAll(err.Error(), "\n", "; "))
	}
	qt.Assert(t, qt.IsNil(err))
	if k.Tier() != tier {
		t.Skipf("needs the %s tier; this kernel has the %s tier", tier, k.Tier())
	}
	o.Proc = victimsProc(t)
	m, err := Open(k, o)
	qt.Assert(t, qt.IsNil(err))
	c := &collector{Manager: m, t: t}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() {
		ended <- m.Run(ctx, func(ev *event.Event) {
			e := *ev
			e.Head, e.Tail = bytes.Clone(ev.Head), bytes.Clone(ev.Tail)
			c.mu.Lock()
			defer c.mu.Unlock()
			c.all = append(c.all, e)
		})
	}()
	c.stop = sync.OnceFunc(func() {
		cancel()
		qt.Check(t, qt.IsNil(<-ended))
	})
	t.Cleanup(func() {
		c.stop()
		qt.Check(t, qt.IsNil(m.Close()))
	})
	return c
}

// of returns the events of some process so far.
func (c *collector) of(tgid uint32) (out []event.Event) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, e := range c.all {
		if e.TGID == tgid {
			out = append(out, e)
		}
	}
	return out
}

// wait waits until f is content with the events of a process.
func (c *collector) wait(tgid uint32, what string, f func([]event.Event) bool) []event.Event {
	c.t.Helper()
	for range 2000 { // 20 s: the machine may be busy
		if all := c.of(tgid); f(all) {
			return all
		}
		time.Sleep(10 * time.Millisecond)
	}
	for _, e := range c.of(tgid) {
		c.t.Logf("kind %d flags %#x dir %d fd %d: %q", e.Kind, e.Flags, e.Dir, e.Conn.FD, e.Head)
	}
	c.t.Fatalf("no %s; %s", what, marshal(c.Stats()))
	return nil
}

// holds returns a condition: some event of kind has s in its payload.
func holds(kind event.Kind, s string) func([]event.Event) bool {
	return func(all []event.Event) bool {
		for _, e := range all {
			if e.Kind == kind && bytes.Contains(append(bytes.Clone(e.Head), e.Tail...), []byte(s)) {
				return true
			}
		}
		return false
	}
}

// noSecrets fails if 8 bytes of a secret are in any event.
func (c *collector) noSecrets() {
	c.t.Helper()
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, e := range c.all {
		text := string(e.Head) + "\x00" + string(e.Tail) + "\x00" + e.Program + "\x00" + e.Operation + "\x00" + e.Listener
		for _, s := range []string{canary, strings.TrimPrefix(session, "OpaqueRef:"), "-1111-2222-333344445555"} {
			for i := 0; i+8 <= len(s); i++ {
				if strings.Contains(text, s[i:i+8]) {
					c.t.Fatalf("an event of kind %d shows %q: %q", e.Kind, s[i:i+8], text)
				}
			}
		}
	}
}

// perfEvents returns how many perf events this process holds: one for each
// attached tracepoint, and one for each CPU's perf buffer.
func perfEvents(t testing.TB) (n int) {
	t.Helper()
	files, err := filepath.Glob("/proc/self/fd/*")
	qt.Assert(t, qt.IsNil(err))
	for _, f := range files {
		if what, err := os.Readlink(f); err == nil && what == "anon_inode:[perf_event]" {
			n++
		}
	}
	return n
}

// attachedLinks returns the ids of BPF links that this process holds, as the
// kernel tells in fdinfo. Before Linux 5.15 tracepoints have none.
func attachedLinks(t testing.TB) (ids []string) {
	t.Helper()
	files, err := filepath.Glob("/proc/self/fdinfo/*")
	qt.Assert(t, qt.IsNil(err))
	for _, f := range files {
		b, err := os.ReadFile(f)
		if err != nil {
			continue
		}
		for line := range strings.Lines(string(b)) {
			if id, ok := strings.CutPrefix(line, "link_id:"); ok {
				ids = append(ids, strings.TrimSpace(id))
			}
		}
	}
	return ids
}

// kernelLinks returns the ids of all BPF links of the kernel.
func kernelLinks(t testing.TB) map[string]bool {
	t.Helper()
	out := map[string]bool{}
	it := new(link.Iterator)
	defer it.Close()
	for it.Next() {
		info, err := it.Link.Info()
		if err == nil {
			out[fmt.Sprint(info.ID)] = true
		}
	}
	qt.Assert(t, qt.IsNil(it.Err()))
	return out
}

func TestWantKernel(t *testing.T) {
	inTiers(t, func(t *testing.T, tier bpf.Tier) {
		v := startVictim(t, "xapi")
		before := v.dial()
		before.call("host.get_all", session) // before the probes: its connection has to be seeded
		c := collect(t, tier, Options{SMDirs: []string{v.dir + "/sm"}})
		qt.Assert(t, qt.HasLen(attachedLinks(t), 0))
		buffers := perfEvents(t)

		qt.Assert(t, qt.IsNil(c.Want(event.Of(event.Xapi))))
		qt.Assert(t, qt.IsNil(c.Want(event.Of(event.Xapi))))
		attachments := len(c.Stats().Attachments)
		qt.Assert(t, qt.IsTrue(attachments > 30))
		for _, a := range c.Stats().Attachments {
			if a.Way == bpf.ByDispatcher { // which has the link
				attachments--
			}
		}
		qt.Assert(t, qt.Equals(perfEvents(t)-buffers, attachments))
		links := attachedLinks(t)
		if len(links) > 0 {
			qt.Assert(t, qt.HasLen(links, attachments))
		}

		before.call("VM.get_record", session, canary)
		c.wait(v.tgid, "request on a connection from before", holds(event.KindData, "<methodName>VM.get_record</methodName>"))

		cl := v.dial()
		cl.call("session.login_with_password", "root", canary, "1.0", canary)
		cl.call("Async.VM.start", session, canary)
		cl.call("SR.scan", session)
		cl.call("session.login_with_password", "root", canary)
		cl.c.Close()
		all := c.wait(v.tgid, "close", func(all []event.Event) bool {
			for _, e := range all {
				if e.Kind == event.KindClose {
					return true
				}
			}
			return false
		})
		for _, want := range []string{
			"<methodName>session.login_with_password</methodName>", "<methodName>Async.VM.start</methodName>",
			"traceparent: 00-3100a3ead5c4210a99c27e3e5578158c-34991b6261208b64-00\r\n", "POST / HTTP/1.1\r\n", "HTTP/1.1 200 OK\r\n",
			"<name>Status</name><value>Success</value>", "<value>OpaqueRef:8ae06e1e-a3d1*",
		} {
			qt.Check(t, qt.IsTrue(holds(event.KindData, want)(all)), qt.Commentf(want))
		}
		qt.Check(t, qt.IsTrue(holds(event.KindLog, "spawning a new thread to handle the current task (trackid=fda2d175b935dd6aa2c32cf5043ef959)")(all)))
		qt.Check(t, qt.IsTrue(holds(event.KindLog, "|session.login D:7fab96eb5fb1|db_write] *")(all)))
		c.noSecrets()

		opens := 0
		for _, e := range all {
			qt.Check(t, qt.Equals(e.Component, event.Xapi))
			if e.Kind == event.KindOpen && e.How == event.Accepted {
				opens++
				qt.Check(t, qt.Equals(e.Listener, v.dir+"/socket"))
			}
		}
		qt.Check(t, qt.Equals(opens, 1))
		c.script(all)

		s := c.Stats()
		qt.Check(t, qt.Equals(s.Malformed, 0))
		qt.Check(t, qt.Equals(s.Lost, 0))
		qt.Check(t, qt.IsTrue(s.Events[event.KindData] > 0), qt.Commentf(marshal(s)))

		qt.Assert(t, qt.IsNil(c.Want(0)))
		qt.Check(t, qt.HasLen(attachedLinks(t), 0))
		qt.Check(t, qt.Equals(perfEvents(t), buffers))
		kernel := kernelLinks(t)
		for _, id := range links {
			qt.Check(t, qt.IsFalse(kernel[id]), qt.Commentf("link %s is still there", id))
		}
		s = c.Stats()
		qt.Check(t, qt.HasLen(s.Targets, 0))
		qt.Check(t, qt.Equals(s.Children, 0))
		qt.Check(t, qt.HasLen(s.Attachments, 0))
		time.Sleep(50 * time.Millisecond)
		n := len(c.of(v.tgid))
		v.dial().call("VM.get_all", session)
		time.Sleep(100 * time.Millisecond)
		qt.Check(t, qt.HasLen(c.of(v.tgid), n))

		// Components without a probe want nothing attached.
		qt.Assert(t, qt.IsNil(c.Want(event.Of(event.Tapdisk, event.Xenstored))))
		qt.Check(t, qt.HasLen(attachedLinks(t), 0))
		qt.Assert(t, qt.IsNil(c.Want(event.Of(event.Xapi))))
		qt.Assert(t, qt.IsNil(c.Want(event.Of(event.Tapdisk))))
		qt.Check(t, qt.HasLen(attachedLinks(t), 0))
		qt.Check(t, qt.HasLen(c.Stats().Targets, 0))

		qt.Assert(t, qt.IsNil(c.Want(event.Of(event.Xapi))))
		v.dial().call("pool.get_all", session)
		c.wait(v.tgid, "request after switching on again", holds(event.KindData, "<methodName>pool.get_all</methodName>"))
		c.stop()
		qt.Check(t, qt.HasLen(attachedLinks(t), 0))
		c.noSecrets()
	})
}

// scriptOf returns the child that has executed the SM script, 0 if none has yet.
// Not every fork is the script's: the Go runtime tries one first.
func (c *collector) scriptOf(all []event.Event) uint32 {
	for _, e := range all {
		if e.Kind != event.KindFork || e.Flags&event.FlagThread != 0 {
			continue
		}
		for _, g := range c.of(e.ChildTGID) {
			if g.Kind == event.KindExec && g.Program == "LVMSR" {
				return e.ChildTGID
			}
		}
	}
	return 0
}

// script checks the life of the SM script that the victim has run: fork, exec
// with its method, exit, and the programs that it ran in turn, all of smapi.
func (c *collector) script(all []event.Event) {
	c.t.Helper()
	child := c.scriptOf(all)
	life := c.wait(child, "end of the SM script", func(all []event.Event) bool {
		for _, e := range all {
			if e.Kind == event.KindExit && e.Flags&event.FlagLeader != 0 {
				return true
			}
		}
		return false
	})
	ran := false
	for _, e := range life {
		if e.Kind == event.KindExec && e.Program == "LVMSR" {
			ran = true
			qt.Check(c.t, qt.Equals(e.Operation, "sr_scan"))
		}
		if ran {
			qt.Check(c.t, qt.Equals(e.Component, event.SMAPI))
		}
		if e.Kind == event.KindFork {
			for _, g := range c.of(e.ChildTGID) {
				qt.Check(c.t, qt.Equals(g.Component, event.SMAPI), qt.Commentf("kind %d of %s", g.Kind, g.Program))
			}
		}
	}
	qt.Check(c.t, qt.IsTrue(ran))
}

// TestSMAPIOnlyKernel: smapi needs xapi's children, not its streams.
func TestSMAPIOnlyKernel(t *testing.T) {
	inTiers(t, func(t *testing.T, tier bpf.Tier) {
		v := startVictim(t, "xapi")
		c := collect(t, tier, Options{SMDirs: []string{v.dir + "/sm"}})
		qt.Assert(t, qt.IsNil(c.Want(event.Of(event.SMAPI))))
		v.dial().call("SR.scan", session)
		c.script(c.wait(v.tgid, "SM script", func(all []event.Event) bool { return c.scriptOf(all) != 0 }))
		for _, e := range c.of(v.tgid) {
			qt.Check(t, qt.IsTrue(e.Kind == event.KindFork || e.Kind == event.KindExec || e.Kind == event.KindExit), qt.Commentf("kind %d", e.Kind))
		}
		// Streams come with xapi itself, on connections from before too.
		cl := v.dial()
		cl.call("VM.a", session)
		qt.Assert(t, qt.IsNil(c.Want(event.Of(event.Xapi, event.SMAPI))))
		cl.call("VM.b", session)
		c.wait(v.tgid, "request", holds(event.KindData, "<methodName>VM.b</methodName>"))
		qt.Check(t, qt.IsFalse(holds(event.KindData, "<methodName>VM.a</methodName>")(c.of(v.tgid))))
		c.noSecrets()
	})
}

// TestRestartKernel: a daemon that starts later or again becomes a target
// within the scan interval.
func TestRestartKernel(t *testing.T) {
	inTiers(t, func(t *testing.T, tier bpf.Tier) {
		c := collect(t, tier, Options{Interval: 100 * time.Millisecond})
		qt.Assert(t, qt.IsNil(c.Want(event.AllComponents)))
		target := func(tgid uint32) bool {
			for _, x := range c.Stats().Targets {
				if x.TGID == tgid {
					return x.Program == "xenopsd-xc" && x.Component == event.Xenopsd
				}
			}
			return false
		}
		follows := func(tgid uint32, want bool) {
			t.Helper()
			start := time.Now()
			for target(tgid) != want {
				if time.Since(start) > 2*time.Minute {
					t.Fatalf("target %d: still %v", tgid, !want)
				}
				time.Sleep(5 * time.Millisecond)
			}
			t.Logf("followed within %v", time.Since(start).Round(time.Millisecond))
		}
		v := startVictim(t, "xenopsd-xc")
		follows(v.tgid, true)
		v.dial().call("VM.start", session)
		c.wait(v.tgid, "request", holds(event.KindData, "<methodName>VM.start</methodName>"))
		old := v.tgid
		v.end()
		follows(old, false)
		v.start("xenopsd-xc")
		follows(v.tgid, true)
		v.dial().call("VM.stop", session)
		c.wait(v.tgid, "request", holds(event.KindData, "<methodName>VM.stop</methodName>"))
	})
}
