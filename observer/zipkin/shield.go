package zipkin

import (
	"bytes"
	"strings"
	"unicode"
	"unicode/utf8"
)

// The zipkin model lower-cases the names of spans and services, without a
// switch. So their capitals go through it as runes of the last private plane,
// which have no lower case, and come back when the body is sent.
const plane = 0x100000

// planeByte begins the UTF-8 form of the runes of that plane, and of no others.
const planeByte = 0xF4

func capital(r rune) bool { return r < 0x10000 && unicode.ToLower(r) != r }

func shield(s string) string {
	return strings.Map(func(r rune) rune {
		if capital(r) {
			return r + plane
		}
		return r
	}, s)
}

// unshield undoes shield in a JSON text, in place. Only capitals come out of it,
// so that the text stays JSON whatever a tag holds.
func unshield(b []byte) []byte {
	out := b[:0] // never longer than what was read
	for {
		i := bytes.IndexByte(b, planeByte)
		if i < 0 {
			return append(out, b...)
		}
		out = append(out, b[:i]...)
		c, n := utf8.DecodeRune(b[i:])
		if c >= plane && capital(c-plane) {
			out = utf8.AppendRune(out, c-plane)
		} else {
			out = append(out, b[i:i+n]...)
		}
		b = b[i+n:]
	}
}
