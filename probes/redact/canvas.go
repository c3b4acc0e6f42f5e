package redact

import "bytes"

// canvas is where a text is masked: src is the text as it was, dst begins as
// nothing but Mask. What is not put back is masked.
type canvas struct {
	src, dst []byte
}

// load takes a text that may come in two parts.
func (c *canvas) load(parts ...[]byte) {
	c.src = c.src[:0]
	for _, p := range parts {
		c.src = append(c.src, p...)
	}
	n := len(c.src)
	if cap(c.dst) < n {
		c.dst = make([]byte, n, cap(c.src))
	}
	c.dst = c.dst[:n]
	mask(c.dst)
}

// store writes the result over the parts that load was given.
func (c *canvas) store(parts ...[]byte) {
	n := 0
	for _, p := range parts {
		n += copy(p, c.dst[n:])
	}
}

// keep puts src[i:j] back.
func (c *canvas) keep(i, j int) { copy(c.dst[i:j], c.src[i:j]) }

// keepText puts src[i:j] back but for the secrets that scrub knows.
func (c *canvas) keepText(i, j int) {
	c.keep(i, j)
	scrub(c.dst[i:j])
}

// number replaces src[i:j] by a number of the same length.
func (c *canvas) number(i, j int) {
	for ; i < j; i++ {
		c.dst[i] = '1'
	}
}

// at tells whether s stands at i.
func (c *canvas) at(i int, s string) bool {
	return i >= 0 && i+len(s) <= len(c.src) && string(c.src[i:i+len(s)]) == s
}

// index returns where b is in src[i:j], or -1.
func (c *canvas) index(i, j int, b byte) int {
	if i >= j {
		return -1
	}
	if k := bytes.IndexByte(c.src[i:j], b); k >= 0 {
		return i + k
	}
	return -1
}

// spaces returns the first place from i that is no white space.
func (c *canvas) spaces(i, j int) int {
	for i < j && isSpace(c.src[i]) {
		i++
	}
	return i
}

func isSpace(b byte) bool { return b == ' ' || b == '\t' || b == '\r' || b == '\n' }
