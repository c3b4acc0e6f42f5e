//go:build linux

package probes

import (
	"context"
	"errors"
	"fmt"
	"os"

	"github.com/xenserver/dtagent/bpf"
	"github.com/xenserver/dtagent/probes/event"
	"github.com/xenserver/dtagent/probes/redact"
	"github.com/xenserver/dtagent/probes/target"
)

// maxScripts bounds the SM scripts followed at once.
const maxScripts = 4096

// reader is the state of the goroutine in Run.
type reader struct {
	decoder  Decoder
	redactor *redact.Redactor
	lost     event.Event     // KindLost on its way
	scripts  map[uint32]bool // SM scripts and their children: their component is smapi
}

// Run reads records and calls sink with decoded and redacted events, in the
// order in which each CPU made its records, from one goroutine. The event and
// what it points at belong to Run again when sink returns.
//
// When ctx ends, Run detaches everything, hands on what was recorded until
// then, and returns nil; the Manager is closed then.
func (m *Manager) Run(ctx context.Context, sink func(*event.Event)) error {
	ended := make(chan error, 1)
	stop := context.AfterFunc(ctx, func() { ended <- m.Close() })
	defer stop()
	err := m.read(sink)
	if !errors.Is(err, os.ErrClosed) {
		return fmt.Errorf("probes: %w", err)
	}
	if ctx.Err() != nil {
		return <-ended
	}
	return nil // closed by Close
}

// read hands on records until the session ends.
func (m *Manager) read(sink func(*event.Event)) error {
	var (
		rec bpf.Record
		ev  event.Event
	)
	for {
		if err := m.session.Read(&rec); err != nil {
			return err
		}
		m.record(&rec, &ev, sink)
	}
}

// Rounds is how often Run came back from the kernel's buffers, with a record or
// without. It grows once a second at least while Run gets on.
func (m *Manager) Rounds() uint64 { return m.session.Rounds() }

// late is how large a gap in the numbers of records must be to be none: a
// record that came after its successor.
const late = 1 << 31

// record hands on what one Read returned.
func (m *Manager) record(rec *bpf.Record, ev *event.Event, sink func(*event.Event)) {
	r := &m.reader
	if err := r.decoder.Decode(ev, rec.Raw); err != nil {
		m.count.malformed.Add(1)
		return
	}
	if rec.Lost > 0 && rec.Lost < late {
		m.count.gaps.Add(rec.Lost)
	}
	// What is not known of a thread's time shows in the spans as the rest, and a request of
	// a guest is a record by itself; no link depends on them.
	if p := probeOf(ev.Kind); rec.Lost > 0 && rec.Lost < late && p != bpf.Wait && p != bpf.Tapdisk {
		m.count.kinds[event.KindLost].Add(1)
		if probeOf(ev.Kind) == bpf.Stream {
			r.redactor.Reset() // what it thinks of connections may be wrong
		}
		first := event.Time(rec.Since)
		r.lost = event.Event{Kind: event.KindLost, CPU: ev.CPU, Time: first, First: first, Last: ev.Time, Count: rec.Lost}
		sink(&r.lost)
	}
	switch ev.Kind {
	case event.KindOpen:
		if fd := listenFD(rec.Raw); fd >= 0 {
			ev.Listener = m.listeners.name(ev.TGID, fd, ev.Time)
		}
	case event.KindRequest:
		m.disk(ev)
	case event.KindExec:
		if x := execOf(rec.Raw); target.IsSM(x.script(), m.smDirs) {
			m.script(ev.TGID)
		}
	case event.KindFork:
		if ev.Flags&event.FlagThread != 0 {
			break
		}
		delete(r.scripts, ev.ChildTGID) // whoever had the pid before
		if r.scripts[ev.TGID] {
			r.addScript(ev.ChildTGID)
		}
	}
	if r.scripts[ev.TGID] && ev.Kind != event.KindRequest {
		ev.Component = event.SMAPI
	}
	if ev.Kind == event.KindExit && ev.Flags&event.FlagLeader != 0 {
		delete(r.scripts, ev.TGID)
		if m.daemons.has(ev.TGID) {
			m.watcher.Wake()
		}
	}
	r.redactor.Event(ev)
	m.count.kinds[ev.Kind].Add(1)
	m.count.forgotten.Store(r.redactor.Forgotten())
	sink(ev)
}

// script makes a child of xapi that has executed an SM script a target of
// component smapi. Its own children inherit that in the kernel; those that it
// made before are found by their fork.
func (m *Manager) script(tgid uint32) {
	if !m.reader.addScript(tgid) {
		m.count.scripts.Add(1)
		return
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.wanted == 0 || m.targets[tgid] != nil || !m.watcher.Proc().Exists(tgid) {
		return
	}
	if err := m.session.SetTarget(tgid, bpf.Target{Component: uint8(event.SMAPI), Watch: bpf.WatchProcess | m.waitWatch()}); err != nil {
		m.count.scripts.Add(1)
		return
	}
	if !m.watcher.Proc().Exists(tgid) { // ended meanwhile: the entry is nobody's
		_ = m.session.DeleteTarget(tgid)
	}
}

func (r *reader) addScript(tgid uint32) bool {
	if len(r.scripts) >= maxScripts {
		return r.scripts[tgid]
	}
	if r.scripts == nil {
		r.scripts = make(map[uint32]bool)
	}
	r.scripts[tgid] = true
	return true
}

// probeOf returns the probe that makes records of a kind.
func probeOf(k event.Kind) bpf.Probe {
	switch k {
	case event.KindFork, event.KindExec, event.KindExit:
		return bpf.Process
	case event.KindTime:
		return bpf.Wait
	case event.KindRequest:
		return bpf.Tapdisk
	}
	return bpf.Stream
}
