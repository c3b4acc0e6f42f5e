package wire

import (
	"bytes"
	"errors"
	"net/netip"
)

// MaxHead is the longest message head that is read, and the number of bytes
// that a Reader keeps at most of an unfinished one. xapi takes 1,006 bytes from
// TCP unless told otherwise.
const MaxHead = 4096

// What can be wrong with a message head.
var (
	ErrNotHTTP     = errors.New("no HTTP/1.x message")
	ErrHeadTooLong = errors.New("message head too long")
	ErrHeadCut     = errors.New("message head cut")
)

// Part says what the bytes that a Reader took are.
type Part uint8

// Parts of a message.
const (
	PartNone Part = iota // of a head that is not complete yet, or of a PROXY line
	PartHead             // the end of a head; Head is set
	PartBody             // of the body of the message that Head was of
	PartBad              // no head; Err says why, Head holds what could be read. Said once, then PartRaw
	PartRaw              // after PartBad, up to the next turn of direction
)

var partNames = [...]string{"none", "head", "body", "bad", "raw"}

// String returns the part's name.
func (p Part) String() string { return partNames[p] }

// Reader follows one direction of one HTTP/1.x connection: it finds the heads
// of its messages in the pieces in which they come, and the bodies between
// them. It keeps at most MaxHead bytes of a head, and as many of headers that
// are joined. The zero value is ready for a new connection. It is not safe for
// concurrent use.
type Reader struct {
	head   Head
	client netip.AddrPort
	err    error
	state  state
	left   int64 // inBody: bytes to come, -1 if that is not known
	turned bool  // the other direction moved since the last byte
	buf    []byte
	parsed bool   // head was parsed out of buf, which is kept until the next call
	join   []byte // headers that stand there several times, joined
}

// state says what a Reader takes the next byte for.
type state uint8

const (
	inHead state = iota
	inBody
	inRaw
)

// Next reads the next part of p, the bytes that follow those it has taken
// already, and returns how many of them it took. It takes at least one unless p
// is empty; call it until p is used up. A message without a body has no
// PartBody.
func (r *Reader) Next(p []byte) (n int, part Part) {
	if len(p) == 0 {
		return 0, PartNone
	}
	r.release()
	if r.turned {
		r.turned = false
		if r.state != inHead || len(r.buf) > 0 {
			if r.state == inRaw || startsMessage(p) {
				r.state, r.buf = inHead, r.buf[:0]
			}
		}
	}
	switch r.state {
	case inBody:
		return r.nextBody(p), PartBody
	case inRaw:
		return len(p), PartRaw
	}
	return r.nextHead(p)
}

func (r *Reader) nextBody(p []byte) int {
	if r.left < 0 || int64(len(p)) < r.left {
		if r.left > 0 {
			r.left -= int64(len(p))
		}
		return len(p)
	}
	n := int(r.left)
	r.state, r.left = inHead, 0
	return n
}

// nextHead takes from p what belongs to a head. When all of the head is in p it
// is read there, else it is gathered in buf.
func (r *Reader) nextHead(p []byte) (int, Part) {
	old := len(r.buf)
	text := p
	if old > 0 {
		r.buf = append(r.buf, p[:min(len(p), MaxHead-old)]...)
		text = r.buf
	}
	size, what := measure(text, max(old-len(endOfHead)+1, 0))
	switch what {
	case needMore:
		if len(text) >= MaxHead {
			return len(p), r.bad(text[:MaxHead], ErrHeadTooLong)
		}
		if old == 0 {
			r.buf = append(r.buf, p...)
		}
		return len(p), PartNone
	case notHead:
		return len(p), r.bad(text[:min(len(text), MaxHead)], ErrNotHTTP)
	case proxyLine:
		r.client = proxyClient(text[:size])
		r.buf = r.buf[:0]
		return size - old, PartNone
	}
	if size > MaxHead {
		return len(p), r.bad(text[:MaxHead], ErrHeadTooLong)
	}
	if !r.parse(text[:size]) {
		return len(p), r.bad(text[:size], ErrNotHTTP)
	}
	r.parsed = old > 0
	if r.left = r.head.bodyLength(); r.left != 0 {
		r.state = inBody
	}
	return size - old, PartHead
}

// parse reads a head, behind its frame header if it has one.
func (r *Reader) parse(text []byte) (ok bool) {
	r.head.Framed = bytes.HasPrefix(text, frame)
	if r.head.Framed {
		text = text[min(frameLength, len(text)):]
	}
	r.join, ok = r.head.parse(text, r.join[:0])
	return ok
}

// bad gives up on the message. What stands at the start of text is read all the
// same: it may be enough to say what is lost.
func (r *Reader) bad(text []byte, err error) Part {
	r.parse(text)
	r.parsed = true
	r.err = err
	r.state, r.left = inRaw, -1
	return PartBad
}

// release forgets the head that was read last.
func (r *Reader) release() {
	if r.parsed {
		r.parsed = false
		r.buf = r.buf[:0]
	}
}

// Skip says that n bytes were moved that nobody saw, and returns what they
// were. A head that they were part of is lost (PartBad, ErrHeadCut).
func (r *Reader) Skip(n uint64) Part {
	if n == 0 {
		return PartNone
	}
	r.release()
	if r.turned && r.state == inRaw {
		r.state = inHead
	}
	r.turned = false
	switch {
	case r.state == inRaw:
		return PartRaw
	case r.state == inHead:
		return r.bad(r.buf, ErrHeadCut)
	case r.left < 0:
	case n > uint64(r.left):
		return r.bad(nil, ErrHeadCut)
	case n == uint64(r.left):
		r.state, r.left = inHead, 0
	default:
		r.left -= int64(n)
	}
	return PartBody
}

// Reset makes the Reader ready for a new connection. It keeps its buffers.
func (r *Reader) Reset() { *r = Reader{buf: r.buf[:0], join: r.join[:0]} }

// Turn says that bytes went in the other direction: what was not HTTP is over,
// and if the next bytes look like a message head they are one, even when the
// message before has not ended by its content-length.
func (r *Reader) Turn() { r.turned = true }

// Lost says that it is not known what bytes were missed: all that comes is raw up
// to the next turn of direction. The client's address stays.
func (r *Reader) Lost() {
	r.buf, r.parsed = r.buf[:0], false
	r.state, r.left, r.turned = inRaw, -1, false
}

// Head is the last head that was read.
func (r *Reader) Head() *Head { return &r.head }

// Err is the reason of the last PartBad: ErrNotHTTP, ErrHeadTooLong or
// ErrHeadCut.
func (r *Reader) Err() error { return r.err }

// Left is the number of bytes of the body still to come: 0 when the message is
// complete, -1 when its end is not told by its head (chunked, until close) or
// it is not HTTP.
func (r *Reader) Left() int64 {
	if r.state == inHead {
		return 0
	}
	return r.left
}

// Partial tells that a head has begun and is not complete.
func (r *Reader) Partial() bool { return r.state == inHead && len(r.buf) > 0 && !r.parsed }

// Client is the client's address from the PROXY line that opened the
// connection, the zero value if there was none or it did not say.
func (r *Reader) Client() netip.AddrPort { return r.client }

// What measure finds at the start of a text.
type finding uint8

const (
	needMore finding = iota
	notHead
	proxyLine
	wholeHead
)

// frameLength is the length of "FRAME " and its 12 digits, which xapi puts
// before the head of a message to another host: the length of the smallest
// HTTP request (http.ml).
const frameLength = 18

// maxProxyLine is the longest PROXY line, its end included (HAProxy's
// proxy-protocol.txt, version 1).
const maxProxyLine = 107

var (
	endOfHead = []byte("\r\n\r\n")
	endOfLine = []byte("\r\n")
	frame     = []byte("FRAME ")
	proxy     = []byte("PROXY ")
)

// measure finds the head or PROXY line that text begins with and returns its
// size. The end of it is looked for from the given position on.
func measure(text []byte, from int) (size int, what finding) {
	switch {
	case hasPrefixOrIs(text, proxy):
		if i := bytes.Index(text[:min(len(text), maxProxyLine)], endOfLine); i >= 0 {
			return i + len(endOfLine), proxyLine
		}
		if len(text) >= maxProxyLine {
			return 0, notHead
		}
		return 0, needMore
	case hasPrefixOrIs(text, frame):
		for i := len(frame); i < min(len(text), frameLength); i++ {
			if text[i] < '0' || text[i] > '9' {
				return 0, notHead
			}
		}
		if len(text) > frameLength && !plausible(text[frameLength:]) {
			return 0, notHead
		}
	case !plausible(text):
		return 0, notHead
	}
	if i := bytes.Index(text[from:], endOfHead); i >= 0 {
		return from + i + len(endOfHead), wholeHead
	}
	return 0, needMore
}

// hasPrefixOrIs tells whether text begins with prefix, or is the start of it.
func hasPrefixOrIs(text, prefix []byte) bool {
	n := min(len(text), len(prefix))
	return bytes.Equal(text[:n], prefix[:n])
}

// plausible tells whether text can be the start of a request or status line: a
// method and a blank, or HTTP/1.
func plausible(text []byte) bool {
	if text[0] == 'H' && hasPrefixOrIs(text, http1) {
		return true
	}
	const longest = 16 // methods are short; what is longer is not HTTP
	for i, c := range text[:min(len(text), longest)] {
		switch {
		case c >= 'A' && c <= 'Z', c == '-' && i > 0, c == '_' && i > 0:
		default:
			return c == ' ' && i > 2
		}
	}
	return len(text) < longest
}

// startsMessage tells whether text surely begins a message, also where the body
// of another was expected.
func startsMessage(text []byte) bool {
	for _, start := range [...]string{"HTTP/1.", "POST /", "GET /", "PUT /", "CONNECT /", "FRAME 0", "PROXY TCP"} {
		if len(text) >= len(start) && string(text[:len(start)]) == start {
			return true
		}
	}
	return false
}

// proxyClient reads "PROXY TCP6 <client> <server> <client port> <server
// port>\r\n".
func proxyClient(line []byte) netip.AddrPort {
	_, rest := cutField(line)
	family, rest := cutField(rest)
	client, rest := cutField(rest)
	_, rest = cutField(rest)
	port, _ := cutField(rest)
	if string(family) != "TCP4" && string(family) != "TCP6" {
		return netip.AddrPort{}
	}
	n := parseUint(port, 65535)
	addr, err := netip.ParseAddr(string(client)) // once a connection
	if err != nil || n < 0 {
		return netip.AddrPort{}
	}
	return netip.AddrPortFrom(addr.Unmap(), uint16(n))
}
