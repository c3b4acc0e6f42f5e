package correlate

import (
	"bytes"

	"github.com/xenserver/dtagent/probes/event"
)

// The programs that forkexecd starts as a daemon, as it did for all callers before
// XAPI 25.14 and does where told to.
//
// A caller's thread connects to the daemon's socket and asks there for a program.
// The daemon takes one request at a time: from accepting the connection to closing
// it, what it forks is for that caller. It forks a child, which does nothing but
// fork another one and end; that one stays with the connection, forks the program
// when it has its descriptors, and waits for it. None of the two is anybody's work.
//
// Whose connection it is the kernel says: see socket.go. Where it does not say, the
// program has no parent.

// toProgram is how many forks lead from the daemon to the program.
const toProgram = 3

// errand is what a process of forkexecd forks next for somebody.
type errand struct {
	caller uint64 // the daemon itself: inode of the caller's socket
	work   ref    // its children: what the caller's thread did
	forks  int    // up to the program, that one included
	epoch  uint32 // of what was seen last: see gaps
}

func (e *Engine) dropErrand(*errand) {}

// asked notes that forkexecd takes a request.
func (e *Engine) asked(c *conn) {
	c.role = clientRole // it is no HTTP
	e.errands.del(c.id.TGID)
	if c.peerIno != 0 {
		*e.errands.put(c.id.TGID, e.now) = errand{caller: c.peerIno, forks: toProgram, epoch: e.gaps.epoch}
	}
}

// served notes that forkexecd is done with a request.
func (e *Engine) served(c *conn) {
	if p := e.errands.get(c.id.TGID); p != nil && p.caller != 0 && p.caller == c.peerIno {
		e.errands.del(c.id.TGID)
	}
}

// errandForked follows a fork of forkexecd. It returns what the new process is
// started for when that is the program, else nil.
func (e *Engine) errandForked(ev *event.Event) *activity {
	p := e.errands.get(ev.TGID)
	if p == nil {
		return nil
	}
	next := *p
	e.errands.del(ev.TGID) // each forks once
	if next.epoch != e.gaps.epoch {
		return nil
	}
	if next.caller != 0 {
		// the caller has connected: its request was read
		caller := e.callers.get(next.caller)
		if caller == nil || !caller.known {
			return nil
		}
		next.work = caller.work
		e.callers.del(next.caller)
		next.caller = 0
	}
	work := next.work.get()
	if next.forks--; work == nil || next.forks == 0 {
		return work
	}
	*e.errands.put(ev.ChildTGID, e.now) = next
	return nil
}

// asksForkexecd tells that a process asks forkexecd, or hands it a program's
// descriptors: what is said there is no HTTP. The one is JSON behind its length in
// twelve digits, the other are uuids, one with each, of which the dashes are left.
func asksForkexecd(text []byte) bool {
	const length, uuid = 12, 36
	if len(text) > length && text[length] == '[' {
		return len(bytes.Trim(text[:length], "0123456789")) == 0
	}
	for ; len(text) >= uuid; text = text[uuid:] { // several calls can be one event
		if text[8] != '-' || text[13] != '-' || text[18] != '-' || text[23] != '-' || len(bytes.Trim(text[:uuid], "0123456789abcdef-*")) > 0 {
			return false
		}
		if len(text) == uuid {
			return true
		}
	}
	return false
}
