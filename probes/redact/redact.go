// Package redact masks the payload of events in place and at the same length
// before they leave probes.
//
// It works by default deny: every byte of a payload becomes Mask, then what
// correlation needs is put back, and nothing else:
//
//   - HTTP: the PROXY and FRAME prefix, the start line without query and user
//     information, header names, and the values of the headers in headerRules;
//   - XML-RPC and JSON-RPC: punctuation and tags, the method, the id, failure
//     codes, the member debug_info or dbg, uuids of VMs, SRs and VDIs and task ids of
//     toolstack services;
//   - message-switch: queue names, message numbers, kinds and, inside the
//     payload, what is kept of JSON-RPC;
//   - the command word of a /cli body;
//   - what tells forkexecd's protocol: see forkexecd.go;
//   - log lines: the part in brackets, and the messages listed in log.go;
//   - of the reference in the reply to an Async call: OpaqueRef: and its first
//     8 and next 4 hex digits, which XAPI itself logs as R:<12 digits>.
//
// Text that is kept and may hold anything (tags, header values, debug_info) is
// scrubbed of references, passwords and the like (see scrub.go). A piece whose
// place in its message is not known keeps debug_info and nothing else.
package redact

import (
	"strings"

	"github.com/xenserver/dtagent/probes/event"
)

// Mask is what a masked byte becomes. In JSON numbers it is '1', so that they
// stay numbers.
const Mask = '*'

// DefaultConns is the number of connections whose place is remembered when New
// is given 0.
const DefaultConns = 16384

// Redactor masks events. It belongs to one goroutine.
//
// It keeps a little state for each connection, so it must see the events of
// one connection in order to keep all that can be kept. When it does not (lost
// or reordered records) it masks more, never less: permission to keep part of
// a reply is given by the request before it and lasts for one reply.
type Redactor struct {
	young, old map[event.Conn]connState // two generations: bounded, without a list
	max        int                      // of each generation
	forgotten  uint64
	c          canvas

	// Of the document being parsed:
	reply    reply // what its result may keep
	request  reply // what the reply to it may keep
	method   bool  // it is a request
	messages bool  // it brings messages of message-switch
}

// New returns a Redactor that remembers at most conns connections; 0 means
// DefaultConns. When more are open the longest unused are forgotten, counted,
// and what follows on them is masked more.
func New(conns int) *Redactor {
	if conns <= 0 {
		conns = DefaultConns
	}
	return &Redactor{
		young: make(map[event.Conn]connState),
		old:   make(map[event.Conn]connState),
		max:   max(conns/2, 1),
	}
}

// Forgotten returns how many connections were forgotten for want of room.
func (r *Redactor) Forgotten() uint64 { return r.forgotten }

// Reset forgets all connections, as is right after lost records.
func (r *Redactor) Reset() {
	clear(r.young)
	clear(r.old)
}

// Event masks the payload of ev in place. Lengths do not change.
func (r *Redactor) Event(ev *event.Event) {
	switch ev.Kind {
	case event.KindData:
		r.data(ev)
	case event.KindLog:
		r.c.load(ev.Head)
		r.logLine()
		r.c.store(ev.Head)
		mask(ev.Tail)
	case event.KindClose:
		delete(r.young, ev.Conn)
		delete(r.old, ev.Conn)
	default:
		mask(ev.Head)
		mask(ev.Tail)
	}
}

// data masks one piece of a stream. Head and Tail that meet are one text.
func (r *Redactor) data(ev *event.Event) {
	st := r.get(ev.Conn)
	f := &st.flow[ev.Dir&1]
	if ev.Flags&event.FlagMore == 0 {
		*f = flow{}
	}
	if ev.Bytes > uint64(len(ev.Head))+uint64(len(ev.Tail)) {
		r.c.load(ev.Head)
		r.piece(&st, f, int64(ev.Bytes))
		r.c.store(ev.Head)
		r.c.load(ev.Tail)
		if st.readable() && st.class != classUnknown {
			r.islands(0, len(r.c.src))
		}
		r.c.store(ev.Tail)
	} else {
		r.c.load(ev.Head, ev.Tail)
		r.piece(&st, f, int64(ev.Bytes))
		r.c.store(ev.Head, ev.Tail)
	}
	r.put(ev.Conn, st)
}

func (r *Redactor) get(c event.Conn) connState {
	if st, ok := r.young[c]; ok {
		return st
	}
	return r.old[c]
}

func (r *Redactor) put(c event.Conn, st connState) {
	if len(r.young) >= r.max {
		if _, ok := r.young[c]; !ok {
			r.young, r.old = r.old, r.young
			r.forgotten += uint64(len(r.young))
			clear(r.young)
		}
	}
	r.young[c] = st
	delete(r.old, c)
}

// stars is copied from: the compiler has no memset for bytes that are not 0.
var stars = strings.Repeat(string(rune(Mask)), 1024)

func mask(b []byte) {
	for len(b) > 0 {
		b = b[copy(b, stars):]
	}
}
