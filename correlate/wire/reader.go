package wire

import (
	"errors"
	"net/netip"
)

// MaxHead is the number of bytes of an unfinished head that a Reader keeps.
// xapi takes 1,006 bytes from TCP unless told otherwise.
const MaxHead = 4096

// What can be wrong with a message head.
var (
	ErrNotHTTP     = errors.New("no HTTP/1.x message")
	ErrHeadTooLong = errors.New("message head too long")
	ErrHeadCut     = errors.New("message head cut")
)

// Part says what the bytes that Reader.Next took are.
type Part uint8

// Parts of a message.
const (
	PartNone Part = iota // of a head that is not complete yet, or of a PROXY line
	PartHead             // the end of a head; Head is set
	PartBody             // of the body of the message that Head was of
	PartBad              // not HTTP; Err says why, Head holds what could be read. Said once, then PartRaw
	PartRaw              // after PartBad, up to the next turn of direction
)

// Reader follows one direction of one HTTP/1.x connection: it finds the heads
// of its messages in the pieces in which they come, and the bodies between
// them. It keeps at most MaxHead bytes. The zero value is ready for a new
// connection. It is not safe for concurrent use.
type Reader struct {
	head Head
	err  error
}

// Next reads the next part of p, the bytes that follow those it has taken
// already, and returns how many of them it took. It takes at least one unless p
// is empty; call it until p is used up. A message without a body has no
// PartBody.
func (r *Reader) Next(p []byte) (n int, part Part) { return len(p), PartRaw }

// Skip says that n bytes were moved that nobody saw.
func (r *Reader) Skip(n uint64) {}

// Turn says that bytes went in the other direction: what was not HTTP is over,
// and if the next bytes look like a message head they are one, even when the
// body of the last message has not ended by its content-length.
func (r *Reader) Turn() {}

// Head is the last head that was read.
func (r *Reader) Head() *Head { return &r.head }

// Err is the reason of the last PartBad: ErrNotHTTP, ErrHeadTooLong or
// ErrHeadCut.
func (r *Reader) Err() error { return r.err }

// Left is the number of bytes of the body still to come: 0 when the message is
// complete, -1 when its end is not told by its head (chunked, until close).
func (r *Reader) Left() int64 { return 0 }

// Client is the client's address from the PROXY line that opened the
// connection, the zero value if there was none or it did not say.
func (r *Reader) Client() netip.AddrPort { return netip.AddrPort{} }
