package cutjson

import (
	"bytes"
	"unicode/utf16"
	"unicode/utf8"
)

// AppendUnescaped appends to dst what the string raw means. raw is what stands
// between the quotes; an escape that it ends in the middle of is left out. The
// result is never longer than raw.
func AppendUnescaped(dst, raw []byte) []byte {
	for {
		i := bytes.IndexByte(raw, '\\')
		if i < 0 {
			return append(dst, raw...)
		}
		dst = append(dst, raw[:i]...)
		raw = raw[i+1:]
		if len(raw) == 0 {
			return dst
		}
		e := raw[0]
		raw = raw[1:]
		switch e {
		case 'n':
			e = '\n'
		case 't':
			e = '\t'
		case 'r':
			e = '\r'
		case 'b':
			e = '\b'
		case 'f':
			e = '\f'
		case 'u':
			r, n := unicode(raw)
			if n == 0 {
				if len(raw) < 4 {
					return dst
				}
				r, n = utf8.RuneError, 4
			}
			dst = utf8.AppendRune(dst, r)
			raw = raw[n:]
			continue
		}
		dst = append(dst, e)
	}
}

// unicode reads what stands behind \u: four hex digits, or the two halves of a
// surrogate pair. n is 0 if there are no four hex digits.
func unicode(b []byte) (r rune, n int) {
	r, ok := hex4(b)
	if !ok {
		return 0, 0
	}
	if utf16.IsSurrogate(r) {
		if len(b) >= 10 && b[4] == '\\' && b[5] == 'u' {
			if low, ok := hex4(b[6:]); ok {
				if pair := utf16.DecodeRune(r, low); pair != utf8.RuneError {
					return pair, 10
				}
			}
		}
		return utf8.RuneError, 4
	}
	return r, 4
}

func hex4(b []byte) (r rune, ok bool) {
	if len(b) < 4 {
		return 0, false
	}
	for _, c := range b[:4] {
		switch {
		case c >= '0' && c <= '9':
			c -= '0'
		case c|0x20 >= 'a' && c|0x20 <= 'f':
			c = (c | 0x20) - 'a' + 10
		default:
			return 0, false
		}
		r = r<<4 | rune(c)
	}
	return r, true
}

// Is tells whether the escaped string raw means s. s has at most 32 bytes.
func Is(raw []byte, s string) bool {
	if string(raw) == s {
		return true
	}
	if len(raw) <= len(s) || len(raw) > 6*len(s) || bytes.IndexByte(raw, '\\') < 0 {
		return false
	}
	var buf [6 * 32]byte
	return string(AppendUnescaped(buf[:0], raw[:min(len(raw), len(buf))])) == s
}
