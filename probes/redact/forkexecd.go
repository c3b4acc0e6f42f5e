package redact

import "bytes"

const (
	frameDigits = 12 // of the length that leads a message of forkexecd
	uuidLength  = 36 // of what goes with a descriptor
)

// uuidDashes are the places of a uuid's dashes.
var uuidDashes = [...]int{8, 13, 18, 23}

// forkexecd keeps what tells forkexecd's protocol, where a message begins: of a
// message its length, which is less than 100 MB, and the first byte of its JSON, of
// uuids the dashes.
func (r *Redactor) forkexecd() {
	c := &r.c
	if n := len(c.src); n > frameDigits && (c.src[frameDigits] == '[' || c.src[frameDigits] == '"') {
		if c.at(0, "0000") && len(bytes.Trim(c.src[:frameDigits], "0123456789")) == 0 {
			c.keep(0, frameDigits+1)
		}
		return
	}
	if len(c.src)%uuidLength != 0 { // several calls can be one event
		return
	}
	for i := 0; i < len(c.src); i += uuidLength {
		for _, k := range uuidDashes {
			if c.src[i+k] != '-' {
				return
			}
		}
	}
	for i := 0; i < len(c.src); i += uuidLength {
		for _, k := range uuidDashes {
			c.keep(i+k, i+k+1)
		}
	}
}
