package remote

import "github.com/xenserver/dtagent/observer/export"

// Encoder puts spans into the form of a kind of receiver. An Encoder is used by
// one goroutine at a time, except for ContentType, Name and Check, which any
// may call.
type Encoder interface {
	// Name is the name of the form, which is kept beside what is queued on disk:
	// zipkin or otlp.
	Name() string
	// ContentType is the media type of the bodies.
	ContentType() string
	// Encode appends the body of the batch to dst and returns it. lost says how many
	// of the batch could not be put into the form, and err why; the others are
	// in the body, which is empty when all are lost.
	Encode(dst []byte, batch []*export.Record) (body []byte, lost int, err error)
	// Join appends one body with the spans of several to dst.
	Join(dst []byte, bodies ...[]byte) []byte
	// Split cuts a body in two with about half of its spans each, and tells how
	// many the first has. ok is false when it has only one span or is none of the
	// Encoder's.
	Split(body []byte) (first, second []byte, n int, ok bool)
	// Check reads the body of an answer with status 2xx: how many spans the
	// receiver refused all the same, and its words.
	Check(answer []byte) (rejected int, message string)
}
