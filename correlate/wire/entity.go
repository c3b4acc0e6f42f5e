package wire

import (
	"bytes"
	"unicode/utf8"
)

// xmlText returns what text means: itself, or with its entities replaced a part
// of the buffer.
func (d *Decoder) xmlText(text []byte) []byte {
	if bytes.IndexByte(text, '&') < 0 {
		return text
	}
	start := len(d.buf)
	for {
		i := bytes.IndexByte(text, '&')
		if i < 0 {
			d.buf = append(d.buf, text...)
			return d.buf[start:]
		}
		d.buf = append(d.buf, text[:i]...)
		text = text[i:]
		end := bytes.IndexByte(text[:min(len(text), 12)], ';')
		if end < 0 {
			d.buf = append(d.buf, '&')
			text = text[1:]
			continue
		}
		d.buf = appendEntity(d.buf, text[:end+1])
		text = text[end+1:]
	}
}

func appendEntity(dst, entity []byte) []byte {
	switch string(entity) {
	case "&lt;":
		return append(dst, '<')
	case "&gt;":
		return append(dst, '>')
	case "&amp;":
		return append(dst, '&')
	case "&quot;":
		return append(dst, '"')
	case "&apos;":
		return append(dst, '\'')
	}
	if code, ok := charReference(entity); ok {
		return utf8.AppendRune(dst, code)
	}
	return append(dst, entity...)
}

// charReference reads &#65; and &#x41;.
func charReference(entity []byte) (r rune, ok bool) {
	if len(entity) < 4 || entity[1] != '#' {
		return 0, false
	}
	digits, base := entity[2:len(entity)-1], rune(10)
	if digits[0] == 'x' || digits[0] == 'X' {
		digits, base = digits[1:], 16
	}
	if len(digits) == 0 || !isHex(digits) {
		return 0, false
	}
	for _, c := range digits {
		d := rune(unhex(c))
		if d >= base || r > utf8.MaxRune {
			return 0, false
		}
		r = r*base + d
	}
	return r, true
}
