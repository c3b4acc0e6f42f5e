package recording

import (
	"encoding/binary"
	"fmt"
	"net/netip"

	"github.com/xenserver/dtagent/probes/event"
)

// An event is its kind and its component, a byte each, the difference of its time
// to that of the item before, then a set of bits that says which of its other
// fields are not zero, and these in the order of their bits. Numbers are varints,
// those with a sign and differences zigzag; times are differences to the event's.

// Fields of an event, by bit. New ones are added at the end.
const (
	hasFlags = 1 << iota
	hasCPU
	hasDir
	hasHow
	hasTGID
	hasTID
	hasConn
	hasIno
	hasFirst
	hasLast
	hasBytes
	hasCalls
	hasHead
	hasTail
	hasListener
	hasPeer
	hasChildTGID
	hasChildTID
	hasProgram
	hasOperation
	hasCode
	hasCPUTime
	hasCount
	hasSpent
	hasWait
	hasRunnable
	hasSyscall
	hasDetail
	hasPeerIno
	hasPeerTGID
	hasRequest
	hasDisk
	hasSR
	hasVDI
	numFields = iota
)

// lastKind is the greatest kind that this version knows.
const lastKind = event.KindRequest

// appendEvent appends ev to b. now is the time of the item before.
func appendEvent(b []byte, ev *event.Event, now event.Time) []byte {
	var has uint64
	mark := func(field uint64, set bool) {
		if set {
			has |= field
		}
	}
	mark(hasFlags, ev.Flags != 0)
	mark(hasCPU, ev.CPU != 0)
	mark(hasDir, ev.Dir != 0)
	mark(hasHow, ev.How != 0)
	mark(hasTGID, ev.TGID != 0)
	mark(hasTID, ev.TID != 0)
	mark(hasConn, ev.Conn != event.Conn{})
	mark(hasIno, ev.Ino != 0)
	mark(hasFirst, ev.First != 0)
	mark(hasLast, ev.Last != 0)
	mark(hasBytes, ev.Bytes != 0)
	mark(hasCalls, ev.Calls != 0)
	mark(hasHead, ev.Head != nil)
	mark(hasTail, ev.Tail != nil)
	mark(hasListener, ev.Listener != "")
	mark(hasPeer, ev.Peer != netip.AddrPort{})
	mark(hasChildTGID, ev.ChildTGID != 0)
	mark(hasChildTID, ev.ChildTID != 0)
	mark(hasProgram, ev.Program != "")
	mark(hasOperation, ev.Operation != "")
	mark(hasCode, ev.Code != 0)
	mark(hasCPUTime, ev.CPUTime != 0)
	mark(hasCount, ev.Count != 0)
	mark(hasSpent, ev.Spent != event.Times{})
	mark(hasWait, ev.Wait != 0)
	mark(hasRunnable, ev.Runnable != 0)
	mark(hasSyscall, ev.Syscall != 0)
	mark(hasDetail, ev.Detail != 0)
	mark(hasPeerIno, ev.PeerIno != 0)
	mark(hasPeerTGID, ev.PeerTGID != 0)
	mark(hasRequest, ev.Request != event.Request{})
	mark(hasDisk, ev.Disk != nil)
	mark(hasSR, ev.SR != "")
	mark(hasVDI, ev.VDI != "")

	b = append(b, byte(ev.Kind), byte(ev.Component))
	b = binary.AppendVarint(b, int64(ev.Time-now))
	b = binary.AppendUvarint(b, has)
	number := func(field, n uint64) {
		if has&field != 0 {
			b = binary.AppendUvarint(b, n)
		}
	}
	signed := func(field uint64, n int64) {
		if has&field != 0 {
			b = binary.AppendVarint(b, n)
		}
	}
	number(hasFlags, uint64(ev.Flags))
	number(hasCPU, uint64(ev.CPU))
	number(hasDir, uint64(ev.Dir))
	number(hasHow, uint64(ev.How))
	number(hasTGID, uint64(ev.TGID))
	number(hasTID, uint64(ev.TID))
	number(hasConn, uint64(ev.Conn.TGID))
	signed(hasConn, int64(ev.Conn.FD))
	signed(hasConn, int64(ev.Conn.Born-ev.Time))
	number(hasIno, ev.Ino)
	signed(hasFirst, int64(ev.First-ev.Time))
	signed(hasLast, int64(ev.Last-ev.Time))
	number(hasBytes, ev.Bytes)
	number(hasCalls, uint64(ev.Calls))
	if has&hasHead != 0 {
		b = append(binary.AppendUvarint(b, uint64(len(ev.Head))), ev.Head...)
	}
	if has&hasTail != 0 {
		b = append(binary.AppendUvarint(b, uint64(len(ev.Tail))), ev.Tail...)
	}
	text := func(field uint64, s string) {
		if has&field != 0 {
			b = append(binary.AppendUvarint(b, uint64(len(s))), s...)
		}
	}
	text(hasListener, ev.Listener)
	if has&hasPeer != 0 {
		p, _ := ev.Peer.MarshalBinary() // it never fails
		b = append(binary.AppendUvarint(b, uint64(len(p))), p...)
	}
	number(hasChildTGID, uint64(ev.ChildTGID))
	number(hasChildTID, uint64(ev.ChildTID))
	text(hasProgram, ev.Program)
	text(hasOperation, ev.Operation)
	signed(hasCode, int64(ev.Code))
	signed(hasCPUTime, ev.CPUTime)
	number(hasCount, ev.Count)
	if has&hasSpent != 0 {
		var ways uint64
		for i, n := range ev.Spent {
			if n != 0 {
				ways |= 1 << i
			}
		}
		b = binary.AppendUvarint(b, ways)
		for _, n := range ev.Spent {
			if n != 0 {
				b = binary.AppendVarint(b, n)
			}
		}
	}
	number(hasWait, uint64(ev.Wait))
	signed(hasRunnable, int64(ev.Runnable-ev.Time))
	signed(hasSyscall, int64(ev.Syscall))
	number(hasDetail, ev.Detail)
	number(hasPeerIno, ev.PeerIno)
	number(hasPeerTGID, uint64(ev.PeerTGID))
	if has&hasRequest != 0 {
		b = appendRequest(b, &ev.Request)
	}
	if has&hasDisk != 0 {
		b = appendDisk(b, ev.Disk)
	}
	text(hasSR, ev.SR)
	text(hasVDI, ev.VDI)
	return b
}

// names keeps strings that repeat.
type names map[string]string

// Bounds of names; what is beyond is made anew.
const (
	maxNames = 4096
	maxName  = 256 // bytes
)

func (n names) of(b []byte) string {
	if s, ok := n[string(b)]; ok {
		return s
	}
	s := string(b)
	if len(n) < maxNames && len(s) <= maxName {
		n[s] = s
	}
	return s
}

// cursor reads what appendEvent and its like wrote. After an error it reads zeros.
type cursor struct {
	b   []byte
	err error
}

func (c *cursor) fail(format string, args ...any) {
	if c.err == nil {
		c.err = fmt.Errorf("%w: "+format, append([]any{ErrDamaged}, args...)...)
		c.b = nil
	}
}

func (c *cursor) byte() byte {
	if len(c.b) == 0 {
		c.fail("an item is cut off")
		return 0
	}
	v := c.b[0]
	c.b = c.b[1:]
	return v
}

// number reads an unsigned number of so many bits.
func (c *cursor) number(bits int) uint64 {
	v, n := binary.Uvarint(c.b)
	if n <= 0 || bits < 64 && v>>bits != 0 {
		c.fail("a number is cut off or too large")
		return 0
	}
	c.b = c.b[n:]
	return v
}

func (c *cursor) signed(bits int) int64 {
	v, n := binary.Varint(c.b)
	if n <= 0 || bits < 64 && v != v<<(64-bits)>>(64-bits) {
		c.fail("a number is cut off or too large")
		return 0
	}
	c.b = c.b[n:]
	return v
}

// bytes reads a length and as many bytes, which are part of what is read.
func (c *cursor) bytes() []byte {
	n := c.number(64)
	if n > uint64(len(c.b)) {
		c.fail("a text is cut off")
		return nil
	}
	v := c.b[:n:n]
	c.b = c.b[n:]
	return v
}

// event reads an event that follows an item of the time now. Head and Tail are part
// of what is read.
func (c *cursor) event(ev *event.Event, now event.Time, names names) {
	*ev = event.Event{Kind: event.Kind(c.byte()), Component: event.Component(c.byte())}
	switch {
	case c.err != nil:
		return
	case ev.Kind == 0:
		c.fail("an event without a kind")
		return
	case ev.Kind > lastKind:
		c.err = fmt.Errorf("%w: event of kind %d", ErrNewer, ev.Kind)
		return
	case ev.Component != event.NoComponent && !ev.Component.Exists():
		c.err = fmt.Errorf("%w: event of component %d", ErrNewer, uint8(ev.Component))
		return
	}
	ev.Time = now + event.Time(c.signed(64))
	has := c.number(64)
	if has>>numFields != 0 {
		c.err = fmt.Errorf("%w: event with fields %#x", ErrNewer, has)
		return
	}
	number := func(field uint64, bits int) uint64 {
		if has&field == 0 {
			return 0
		}
		return c.number(bits)
	}
	signed := func(field uint64, bits int) int64 {
		if has&field == 0 {
			return 0
		}
		return c.signed(bits)
	}
	time := func(field uint64) event.Time {
		if has&field == 0 {
			return 0
		}
		return ev.Time + event.Time(c.signed(64))
	}
	text := func(field uint64) string {
		if has&field == 0 {
			return ""
		}
		return names.of(c.bytes())
	}
	ev.Flags = event.Flags(number(hasFlags, 16))
	ev.CPU = uint16(number(hasCPU, 16))
	ev.Dir = event.Dir(number(hasDir, 8))
	ev.How = event.How(number(hasHow, 8))
	ev.TGID = uint32(number(hasTGID, 32))
	ev.TID = uint32(number(hasTID, 32))
	ev.Conn.TGID = uint32(number(hasConn, 32))
	ev.Conn.FD = int32(signed(hasConn, 32))
	ev.Conn.Born = time(hasConn)
	ev.Ino = number(hasIno, 64)
	ev.First = time(hasFirst)
	ev.Last = time(hasLast)
	ev.Bytes = number(hasBytes, 64)
	ev.Calls = uint32(number(hasCalls, 32))
	if has&hasHead != 0 {
		ev.Head = c.bytes()
	}
	if has&hasTail != 0 {
		ev.Tail = c.bytes()
	}
	ev.Listener = text(hasListener)
	if has&hasPeer != 0 {
		if p := c.bytes(); c.err == nil && ev.Peer.UnmarshalBinary(p) != nil {
			c.fail("an address of %d bytes", len(p))
		}
	}
	ev.ChildTGID = uint32(number(hasChildTGID, 32))
	ev.ChildTID = uint32(number(hasChildTID, 32))
	ev.Program = text(hasProgram)
	ev.Operation = text(hasOperation)
	ev.Code = int32(signed(hasCode, 32))
	ev.CPUTime = signed(hasCPUTime, 64)
	ev.Count = number(hasCount, 64)
	if has&hasSpent != 0 {
		ways := c.number(64)
		if ways>>event.NumSpent != 0 {
			c.err = fmt.Errorf("%w: time spent in ways %#x", ErrNewer, ways)
			return
		}
		for i := range ev.Spent {
			if ways&(1<<i) != 0 {
				ev.Spent[i] = c.signed(64)
			}
		}
	}
	ev.Wait = event.Spent(number(hasWait, 8))
	ev.Runnable = time(hasRunnable)
	ev.Syscall = int32(signed(hasSyscall, 32))
	ev.Detail = number(hasDetail, 64)
	ev.PeerIno = number(hasPeerIno, 64)
	ev.PeerTGID = uint32(number(hasPeerTGID, 32))
	if has&hasRequest != 0 {
		c.request(&ev.Request)
	}
	if has&hasDisk != 0 {
		ev.Disk = c.disk(names)
	}
	ev.SR = text(hasSR)
	ev.VDI = text(hasVDI)
}
