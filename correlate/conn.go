package correlate

import (
	"net/netip"

	"github.com/xenserver/dtagent/correlate/wire"
	"github.com/xenserver/dtagent/probes/event"
)

// role is what a process does on a connection.
type role uint8

const (
	unknownRole role = iota // nothing was read that tells
	serverRole              // answers requests: API calls
	clientRole              // asks others: not reported
	switchRole              // asks message-switch
	hostRole                // asks other hosts' xapi
	relayRole               // is message-switch, and answers
)

// replies is the direction of replies, 0 when there are none of interest.
func (r role) replies() event.Dir {
	switch r {
	case serverRole:
		return event.Out
	case hostRole:
		return event.In
	}
	return 0
}

// conn is the socket key: one open socket of one process.
type conn struct {
	connState
	side       [2]side // by direction: side[event.In-1]
	body       body
	prev, next *conn
}

type connState struct {
	id        event.Conn
	component event.Component
	how       event.How
	role      role
	bad       uint8 // heads in turn that were none
	rpc       bool  // server: the request is a call of the API, whose reply is always HTTP
	inside    bool  // server: the request is one of another daemon
	tunnel    bool  // server: no longer HTTP, the call lasts until the socket closes
	dir       event.Dir
	listener  string
	peer      netip.AddrPort
	call      ref  // server, host: the request in progress
	agent     bool // server: the request can be one of the agent itself
	hop       hop
	outgoing  outgoing
	ino       uint64 // of the socket, 0 if not known
	peerIno   uint64 // accepted unix socket: of the socket at the other end
	peerTGID  uint32 // the process that connected it
	requests  uint32 // server: so far
	passed    bool   // by another process, which has read the request
	exchange  exchange

	epoch  uint32 // of where in its messages it is, and of what is under way: see gaps
	doubt  bool   // call: what comes back may be for another request
	read   bool   // a head was read
	unsure bool   // what came before the first head that was read may have been missed
}

func (c *conn) links() (prev, next **conn) { return &c.prev, &c.next }

// side is what goes in one direction.
type side struct {
	reader wire.Reader
	begun  bool       // a head has begun that is not complete
	first  event.Time // its first byte
	busy   bool       // a message's head is complete, its body is not
	skip   bool       // up to the next message: what comes is of one of which something was missed
}

// body is what is kept of the body of the message in progress.
type body struct {
	buf        []byte // from Engine.buffers; nil when nothing is kept
	tail       []byte // part of buf: bytes from the end when some between were not seen
	read       bool   // nothing more is wanted
	prev, next *body  // those that keep something, oldest first
}

func (b *body) links() (prev, next **body) { return &b.prev, &b.next }

type fdKey struct {
	tgid uint32
	fd   int32
}

type connTable struct {
	byFD map[fdKey]*conn
	lru  list[conn, *conn]
	free *conn
}

func (t *connTable) init() { t.byFD = make(map[fdKey]*conn) }

// connOf returns the connection of ev, nil when a newer one has its number
// already.
func (e *Engine) connOf(ev *event.Event) *conn {
	key := fdKey{ev.Conn.TGID, ev.Conn.FD}
	c := e.conns.byFD[key]
	if c != nil && c.id.Born != ev.Conn.Born {
		if c.id.Born > ev.Conn.Born {
			e.stats.StaleEvents++
			return nil
		}
		e.dropConn(c, endUnseen)
		c = nil
	}
	if c != nil {
		e.conns.lru.moveToEnd(c)
		e.resync(c)
		return c
	}
	if e.conns.lru.len >= e.limits.Conns {
		e.stats.ConnsEvicted++
		e.dropConn(e.conns.lru.head, "connection evicted")
	}
	c = e.conns.free
	if c == nil {
		c = new(conn)
	} else {
		e.conns.free = c.next
		c.next = nil
	}
	c.id, c.component, c.epoch = ev.Conn, ev.Component, e.gaps.epoch
	// its KindOpen, or more, may have been missed
	c.unsure = ev.Kind != event.KindOpen && e.gaps.any && ev.Conn.Born <= e.gaps.last
	e.conns.byFD[key] = c
	e.conns.lru.add(c)
	e.processes.conns[c.id.TGID]++
	return c
}

func (e *Engine) handleOpen(ev *event.Event) {
	c := e.connOf(ev)
	if c == nil {
		return
	}
	c.how, c.listener, c.peer = ev.How, ev.Listener, ev.Peer
	c.ino, c.peerIno, c.peerTGID = ev.Ino, ev.PeerIno, ev.PeerTGID
	switch ev.How {
	case event.Accepted:
		c.role = serverRoleOf(ev.Component)
		switch {
		case ev.Component == event.Forkexecd:
			e.asked(c)
		case isForwarded(c.listener):
			c.role = clientRole
		}
	case event.Connected:
		e.connected(c, ev)
	case event.Passed:
		e.passed(c, ev)
	}
}

// serverRoleOf is what the processes of a component do on connections that they
// accepted.
func serverRoleOf(c event.Component) role {
	if c == event.MessageSwitch {
		return relayRole
	}
	return serverRole
}

func (e *Engine) handleClose(ev *event.Event) {
	c := e.conns.byFD[fdKey{ev.Conn.TGID, ev.Conn.FD}]
	if c == nil || c.id.Born != ev.Conn.Born {
		e.stats.StaleEvents++
		return
	}
	if c.component == event.Forkexecd {
		e.served(c)
	}
	if !e.handedOver(c, ev) {
		e.dropConn(c, "closed before the reply")
	}
}

// dropConn forgets the connection. cause is why a call without a reply is
// incomplete.
func (e *Engine) dropConn(c *conn, cause string) {
	if a := c.call.get(); a != nil {
		e.endCall(a, cause)
	}
	if a := c.exchange.send.get(); a != nil && !c.exchange.answered {
		e.finish(a, e.now, cause)
	}
	if c.role == switchRole && c.exchange.action == wire.Transfer {
		e.switchGone(c.id.TGID)
	}
	e.dropBody(c)
	delete(e.conns.byFD, fdKey{c.id.TGID, c.id.FD})
	e.conns.lru.del(c)
	if n := e.processes.conns[c.id.TGID]; n > 1 {
		e.processes.conns[c.id.TGID] = n - 1
	} else {
		delete(e.processes.conns, c.id.TGID)
	}
	for i := range c.side {
		d := &c.side[i]
		d.reader.Reset() // keeps its buffers
		d.begun, d.first, d.busy, d.skip = false, 0, false, false
	}
	c.connState = connState{}
	c.next = e.conns.free
	e.conns.free = c
}

func (e *Engine) handleData(ev *event.Event) {
	if ev.Component == event.NoComponent || ev.Dir != event.In && ev.Dir != event.Out {
		return
	}
	c := e.connOf(ev)
	if c == nil || c.role == clientRole || c.passed && ev.Dir == event.In {
		return
	}
	if forwards(c, ev) {
		c.role = clientRole
		return
	}
	turned := ev.Dir != c.dir || ev.Flags&event.FlagMore == 0
	c.dir = ev.Dir
	if ev.Dir == c.role.replies() {
		if a := c.call.get(); a != nil {
			a.reply = max(a.reply, ev.Last)
		}
	}
	if c.tunnel {
		return
	}
	s := &c.side[ev.Dir-event.In]
	if s.skip && ev.Flags&event.FlagMore != 0 {
		return
	}
	s.skip = false
	if turned {
		s.reader.Turn()
	}
	e.read(c, s, ev, ev.Head, false)
	seen := uint64(len(ev.Head) + len(ev.Tail))
	if ev.Bytes > seen && !c.tunnel && c.role != clientRole {
		if s.reader.Skip(ev.Bytes-seen) == wire.PartBad {
			s.begun, s.busy = false, false
			e.badHead(c, ev)
		}
		e.maybeDone(c, s, ev)
	}
	if len(ev.Tail) > 0 {
		e.read(c, s, ev, ev.Tail, true)
	}
}

// read takes the bytes of ev that follow those already taken.
func (e *Engine) read(c *conn, s *side, ev *event.Event, p []byte, tail bool) {
	for len(p) > 0 && !c.tunnel && c.role != clientRole {
		n, part := s.reader.Next(p)
		if n <= 0 || n > len(p) {
			return
		}
		b := p[:n]
		p = p[n:]
		switch part {
		case wire.PartNone:
			if !s.begun {
				s.begun, s.first = true, ev.First
			}
		case wire.PartHead:
			if !s.begun {
				s.first = ev.First
			}
			s.begun, s.busy = false, true
			e.dropBody(c)
			e.head(c, s, ev)
			if !c.tunnel && c.role != clientRole {
				e.maybeDone(c, s, ev)
			}
		case wire.PartBody:
			if s.busy {
				e.keep(c, b, tail)
				if c.role == serverRole || c.role == hostRole {
					e.peek(c, ev, false)
				}
				e.maybeDone(c, s, ev)
			}
		case wire.PartBad:
			s.begun, s.busy = false, false
			e.badHead(c, ev)
		}
	}
}

// maybeDone ends the message when its body is complete.
func (e *Engine) maybeDone(c *conn, s *side, ev *event.Event) {
	if !s.busy || s.reader.Left() != 0 {
		return
	}
	s.busy = false
	switch c.role {
	case serverRole, hostRole:
		e.peek(c, ev, true)
		if ev.Dir == c.role.replies() {
			e.replied(c, s, ev)
		}
	case relayRole:
		e.relayed(c, ev)
	default:
		e.exchanged(c, s, ev)
	}
	e.dropBody(c)
}

// head takes a complete message head.
func (e *Engine) head(c *conn, s *side, ev *event.Event) {
	h := s.reader.Head()
	c.bad, c.read = 0, true
	if c.role == unknownRole {
		switch {
		case ev.Dir == event.In && !h.Reply:
			c.role = serverRoleOf(c.component)
		case ev.Dir == event.Out && h.Reply:
			c.role = serverRoleOf(c.component)
		case ev.Dir == event.Out && c.callsHosts(h):
			c.role = hostRole
		case ev.Dir == event.Out && e.dec.SwitchRequest(h.Path).Action == wire.OtherAction:
			c.role = clientRole
			return
		case ev.Dir == event.Out:
			c.role = switchRole
		}
	}
	switch {
	case c.role == serverRole && ev.Dir == event.In && !h.Reply:
		e.startCall(c, ev, h, s.first)
	case c.role == serverRole && ev.Dir == event.Out && h.Reply:
		e.replyHead(c, s, h)
	case c.role == relayRole && ev.Dir == event.In && !h.Reply:
		e.startRelay(c, ev, h, s.first)
	case c.role == switchRole && ev.Dir == event.Out && !h.Reply:
		e.startExchange(c, ev, h, s.first)
	case c.role == hostRole && ev.Dir == event.Out && !h.Reply:
		e.startOutgoing(c, ev, h, s.first)
	case c.role == hostRole && ev.Dir == event.In && h.Reply:
		e.replyHead(c, s, h)
	case c.role == serverRole, c.role == hostRole:
		c.body.read = true
	}
}

func (e *Engine) badHead(c *conn, ev *event.Event) {
	a := c.call.get()
	if a != nil && ev.Dir == c.role.replies() {
		if c.role == serverRole && !c.rpc {
			c.tunnel = true // answers in a protocol of its own
			return
		}
		if a.incomplete == "" {
			a.incomplete = "head of the reply not seen" // and with the next request all is well again
		}
	}
	e.stats.BadHeads++
	if c.bad++; c.bad == maxBad {
		e.dropBody(c)
		c.role = clientRole // it is no HTTP: xenstore, a monitor of qemu, TLS, …
	}
}

// maxBad is how many heads in turn may be bad before a connection is no longer
// read. One whose beginning was not seen recovers much sooner.
const maxBad = 64

// keep keeps bytes of the body.
func (e *Engine) keep(c *conn, p []byte, tail bool) {
	b := &c.body
	if b.read {
		return
	}
	if b.buf == nil {
		if e.bodies.len >= e.limits.Buffers {
			// the one that has been incomplete for the longest time
			e.stats.UnreadBodies++
			e.readBody(e.bodies.head)
		}
		if n := len(e.buffers); n > 0 {
			b.buf = e.buffers[n-1]
			e.buffers = e.buffers[:n-1]
		} else {
			b.buf = make([]byte, 0, e.limits.BodyBytes)
		}
		e.bodies.add(b)
	}
	if tail && b.tail == nil {
		// what was not seen lies before: room is made for the end
		if room := cap(b.buf) - len(p); len(b.buf) > room {
			b.buf = b.buf[:max(room, 0)]
		}
		n := len(b.buf)
		b.buf = append(b.buf, p[max(0, len(p)-cap(b.buf)+n):]...)
		b.tail = b.buf[n:]
		b.buf = b.buf[:n]
		return
	}
	if b.tail != nil {
		return
	}
	b.buf = append(b.buf, p[:min(len(p), cap(b.buf)-len(b.buf))]...)
}

// readBody keeps nothing more of the body.
func (e *Engine) readBody(b *body) {
	if b.buf != nil {
		e.bodies.del(b)
		e.buffers = append(e.buffers, b.buf[:0])
	}
	*b = body{read: true}
}

// dropBody makes room for the next body.
func (e *Engine) dropBody(c *conn) {
	e.readBody(&c.body)
	c.body.read = false
}
