// Package cutjson walks JSON that may be cut at any byte, without allocating.
//
// It does not validate: it finds its way through what well-formed JSON allows,
// and never reads past the input or goes back. Who gets false has come to the
// end of an array or object, to something unexpected, or to the cut; Cut tells
// the last apart.
package cutjson

// Cursor is a position in a JSON text.
type Cursor struct {
	text   []byte
	pos    int
	cut    bool
	logged bool // every backslash stands there twice
}

// At returns a cursor at the start of text.
func At(text []byte) Cursor { return Cursor{text: text} }

// AtLogged returns a cursor at the start of a text from the toolstack's log,
// which doubles every backslash.
func AtLogged(text []byte) Cursor { return Cursor{text: text, logged: true} }

// Cut tells that the text ended where more was expected.
func (c *Cursor) Cut() bool { return c.cut }

// Pos is the number of bytes behind the cursor.
func (c *Cursor) Pos() int { return c.pos }

// Rest returns the text before the cursor.
func (c *Cursor) Rest() []byte { return c.text[c.pos:] }

// Peek returns the first byte of the next token, 0 at the end of the text.
func (c *Cursor) Peek() byte {
	for c.pos < len(c.text) {
		switch b := c.text[c.pos]; b {
		case ' ', '\t', '\r', '\n':
			c.pos++
		default:
			return b
		}
	}
	c.cut = true
	return 0
}

// Enter goes into an array or object that opens with open.
func (c *Cursor) Enter(open byte) bool {
	if c.Peek() != open {
		return false
	}
	c.pos++
	return true
}

// More goes to the next element of the array that the cursor is in, before its
// first one or behind one of them. At the array's end it leaves it and is
// false.
func (c *Cursor) More() bool {
	switch c.Peek() {
	case 0:
		return false
	case ']', '}':
		c.pos++
		return false
	case ',':
		c.pos++
		return c.Peek() != 0
	}
	return true
}

// Key goes to the value of the next member of the object that the cursor is in
// and returns the member's name, escaped as it stands there. At the object's
// end it leaves it and is false.
func (c *Cursor) Key() ([]byte, bool) {
	if !c.More() {
		return nil, false
	}
	key, whole := c.String()
	if !whole || c.Peek() != ':' {
		return nil, false
	}
	c.pos++
	return key, true
}

// String reads a string and returns what is between its quotes, escaped as it
// stands there. whole is false when the string is cut, then the part before the
// cut is returned, or when there is no string.
func (c *Cursor) String() (raw []byte, whole bool) {
	if c.Peek() != '"' {
		return nil, false
	}
	c.pos++
	if c.logged {
		raw, whole = loggedStringRest(c.text[c.pos:])
	} else {
		raw, whole = StringRest(c.text[c.pos:])
	}
	c.pos += len(raw)
	if whole {
		c.pos++
	} else {
		c.cut = true
	}
	return raw, whole
}

// StringRest returns the part of text before the quote that ends the string
// which text begins in.
func StringRest(text []byte) (raw []byte, whole bool) {
	for i := 0; i < len(text); i++ {
		switch text[i] {
		case '"':
			return text[:i], true
		case '\\':
			i++
		}
	}
	return text, false
}

// loggedStringRest is StringRest for a text whose backslashes are doubled.
func loggedStringRest(text []byte) (raw []byte, whole bool) {
	for i := 0; i < len(text); i++ {
		switch text[i] {
		case '"':
			return text[:i], true
		case '\\':
			i += 2 // at what is escaped
			if i < len(text) && text[i] == '\\' {
				i++
			}
		}
	}
	return text, false
}

// Uint reads a number without sign, fraction and exponent, also one between
// quotes.
func (c *Cursor) Uint() (uint64, bool) {
	quoted := c.Peek() == '"'
	if quoted {
		c.pos++
	}
	start, n := c.pos, uint64(0)
	for ; c.pos < len(c.text); c.pos++ {
		d := uint64(c.text[c.pos]) - '0'
		if d > 9 {
			break
		}
		if n > (1<<64-1-d)/10 {
			return 0, false
		}
		n = n*10 + d
	}
	if c.pos == len(c.text) {
		c.cut = true // the next digit may be behind the cut
		return 0, false
	}
	if quoted {
		if c.text[c.pos] != '"' {
			return 0, false
		}
		c.pos++
		return n, c.pos > start+1
	}
	return n, c.pos > start
}

// Skip goes past the next value, whatever it is.
func (c *Cursor) Skip() bool {
	for depth := 0; ; {
		switch c.Peek() {
		case 0:
			return false
		case '"':
			if _, whole := c.String(); !whole {
				return false
			}
		case '{', '[':
			depth++
			c.pos++
			continue
		case '}', ']':
			if depth == 0 {
				return false // no value here
			}
			depth--
			c.pos++
		case ',', ':':
			if depth == 0 {
				return false
			}
			c.pos++
			continue
		default:
			c.literal()
		}
		if depth == 0 {
			return !c.cut
		}
	}
}

// literal goes past a number, true, false or null. One that the text ends in
// is cut, for all that is known.
func (c *Cursor) literal() {
	for ; c.pos < len(c.text); c.pos++ {
		switch c.text[c.pos] {
		case ',', ':', '}', ']', '{', '[', '"', ' ', '\t', '\r', '\n':
			return
		}
	}
	c.cut = true
}

// Null goes past a null and tells whether there was one.
func (c *Cursor) Null() bool {
	if c.Peek() != 'n' {
		return false
	}
	return c.Skip()
}
