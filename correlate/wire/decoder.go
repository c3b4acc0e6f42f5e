package wire

// Decoder reads bodies. What it returns are parts of the input or of its
// buffer: valid until its next call (an iteration counts as one call a step).
// The zero value is ready. It is not safe for concurrent use; one for an
// engine is enough.
type Decoder struct {
	buf []byte
}
