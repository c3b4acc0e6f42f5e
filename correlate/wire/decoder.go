package wire

import (
	"bytes"

	"github.com/xenserver/dtagent/correlate/internal/cutjson"
)

// Decoder reads bodies. What it returns are parts of the input or of its
// buffer: valid until its next call (each message of SwitchMessages counts as
// one). The buffer grows with the longest input seen, not with lengths that an
// input tells. The zero value is ready. It is not safe for concurrent use; one
// for an engine is enough.
type Decoder struct {
	buf     []byte
	message SwitchMessage
}

// reset forgets what was returned before.
func (d *Decoder) reset() { d.buf = d.buf[:0] }

// unescape returns what the JSON string raw means: raw itself, or a part of the
// buffer.
func (d *Decoder) unescape(raw []byte) []byte {
	if bytes.IndexByte(raw, '\\') < 0 {
		return raw
	}
	start := len(d.buf)
	d.buf = cutjson.AppendUnescaped(d.buf, raw)
	return d.buf[start:]
}
