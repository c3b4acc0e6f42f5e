package capture

import (
	"bytes"
	"fmt"
	"io"
	"strings"
	"syscall"

	"github.com/xenserver/dtagent/probes/event"
	"github.com/xenserver/dtagent/testenv/capture/strace"
	"golang.org/x/sys/unix"
)

// Cut writes a recording again as a fixture: the threads of the targets and
// the system calls that Convert uses, with the end of each call (as strace -T
// prints it) and with everything secret masked in place, so that every length
// stays what it was. It returns what it masked with, for the recording's other
// files.
func Cut(w io.Writer, records []strace.Record, procs *Processes) (*Mask, error) {
	EstimateEnds(records)
	c := cutter{tgids: make(map[uint32]uint32), procs: procs}
	records = c.keep(records)
	payloads := payloads(records, c.tgids)
	mask := newMask(payloads)
	for _, p := range payloads {
		p.redact(mask)
	}
	for _, r := range records {
		if _, err := io.WriteString(w, c.line(r)); err != nil {
			return nil, fmt.Errorf("fixture: %w", err)
		}
	}
	return mask, nil
}

type cutter struct {
	procs *Processes
	tgids map[uint32]uint32 // of the threads that stay
}

// keep leaves the records that a fixture needs.
func (c *cutter) keep(records []strace.Record) []strace.Record {
	for tid, tgid := range c.procs.Threads {
		if component(c.procs.Names[tgid]) != event.NoComponent {
			c.tgids[tid] = tgid
		}
	}
	var out []strace.Record
	for _, r := range records {
		tgid, ok := c.tgids[r.TID]
		if !ok {
			continue
		}
		if r.Kind == strace.Death || needed(r.Call) {
			out = append(out, r)
		}
		if r.Kind == strace.Enter && forks(r.Call.Name) && r.Call.Return > 0 {
			child := uint32(r.Call.Return)
			c.tgids[child] = child
			if strings.Contains(string(arg(r.Call, 0)), "CLONE_THREAD") {
				c.tgids[child] = tgid
			}
		}
	}
	return out
}

func forks(name string) bool {
	return name == "clone" || name == "clone3" || name == "fork" || name == "vfork"
}

func needed(c *strace.Call) bool {
	switch c.Name {
	case "read", "write", "recvfrom", "sendto", "close", "connect", "shutdown":
		fd, _ := arg(c, 0).FD()
		return fd.Stream() || c.Name == "sendto"
	case "accept", "accept4", "execve":
		return true
	case "socket":
		fd, _ := c.Result.FD()
		return fd.Stream()
	}
	return forks(c.Name)
}

// line writes a record as strace would.
func (c *cutter) line(r strace.Record) string {
	at := fmt.Sprintf("%-5d %d.%06d ", r.TID, r.Time/1e9, r.Time%1e9/1e3)
	if r.Kind == strace.Death {
		if sig := r.Status & 0x7f; sig != 0 {
			return fmt.Sprintf("%s+++ killed by %s +++\n", at, unix.SignalName(syscall.Signal(sig)))
		}
		return fmt.Sprintf("%s+++ exited with %d +++\n", at, r.Status>>8)
	}
	call := r.Call
	args := make([]string, len(call.Args))
	for i, a := range call.Args {
		args[i] = string(a)
		if forks(call.Name) {
			args[i] = withoutAddresses(args[i])
		}
	}
	// An interrupted read shows its buffer when it is resumed.
	early := args
	if call.Name == "read" || strings.HasPrefix(call.Name, "accept") || call.Name == "recvfrom" {
		early = args[:min(1, len(args))]
	}
	result := ") = " + string(call.Result)
	switch {
	case !call.Resumed && r.Kind == strace.Enter:
		d := call.End - call.Start
		return fmt.Sprintf("%s%s(%s%s <%d.%06d>\n", at, call.Name, strings.Join(args, ", "), result, d/1e9, d%1e9/1e3)
	case !call.Resumed:
		return ""
	case r.Kind == strace.Enter:
		comma := ""
		if len(early) < len(args) {
			comma = ", "
		}
		return fmt.Sprintf("%s%s(%s%s <unfinished ...>\n", at, call.Name, strings.Join(early, ", "), comma)
	default:
		return fmt.Sprintf("%s<... %s resumed>%s%s\n", at, call.Name, strings.Join(args[len(early):], ", "), result)
	}
}

// withoutAddresses leaves the flags of clone's arguments.
func withoutAddresses(s string) string {
	if flags, _, ok := strings.Cut(s, ", child_tid="); ok && strings.HasPrefix(s, "{flags=") {
		return flags + "}"
	}
	return s
}

// payload is what went one way through one socket until it turned, or one
// datagram, with the calls that moved it.
type payload struct {
	data  []byte
	calls []*strace.Call
	ends  []int // offset in data after each call
	out   bool
}

// payloads puts the bytes together that belong together: a header comes in
// pieces of four bytes.
func payloads(records []strace.Record, tgids map[uint32]uint32) []*payload {
	type socket struct {
		tgid uint32
		ino  uint64
	}
	streams := make(map[socket]*payload)
	var all []*payload
	for _, r := range records {
		if r.Kind != strace.Exit || result(r.Call) <= 0 {
			continue
		}
		out := r.Call.Name == "write" || r.Call.Name == "sendto"
		if !out && r.Call.Name != "read" && r.Call.Name != "recvfrom" {
			continue
		}
		data, _, ok := arg(r.Call, 1).Bytes()
		if !ok {
			continue
		}
		fd, _ := arg(r.Call, 0).FD()
		s := socket{tgids[r.TID], fd.Ino}
		p := streams[s]
		if p == nil || p.out != out || !fd.Stream() {
			p = &payload{out: out}
			all = append(all, p)
			if fd.Stream() {
				streams[s] = p
			}
		}
		p.data = append(p.data, data...)
		p.calls = append(p.calls, r.Call)
		p.ends = append(p.ends, len(p.data))
	}
	return all
}

// redact masks the payload and writes it back into the calls.
func (p *payload) redact(m *Mask) {
	before := bytes.Clone(p.data)
	m.Bytes(p.data)
	start := 0
	for i, c := range p.calls {
		end := p.ends[i]
		if !bytes.Equal(before[start:end], p.data[start:end]) {
			c.Args[1] = strace.Quote(p.data[start:end])
		}
		start = end
	}
}

// CutStrings counts the strings read from or written to sockets that strace
// did not print whole (its option -s): an event made of them lacks bytes.
func CutStrings(records []strace.Record) int {
	n := 0
	for _, r := range records {
		if r.Kind != strace.Exit || !needed(r.Call) {
			continue
		}
		if _, cut, ok := arg(r.Call, 1).Bytes(); ok && cut {
			n++
		}
	}
	return n
}
