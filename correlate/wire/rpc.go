package wire

import (
	"bytes"

	"github.com/xenserver/dtagent/correlate/internal/cutjson"
	"github.com/xenserver/dtagent/probes/event"
)

// Protocol is a way to write remote procedure calls.
type Protocol uint8

// Protocols.
const (
	NoProtocol Protocol = iota // not recognised
	XMLRPC
	JSONRPC // 1.0 and 2.0
)

// Call is the request of a remote procedure call.
type Call struct {
	Protocol  Protocol
	Prefix    Prefix
	Method    []byte    // with its prefix; "system.isAlive" without its uuid; nil: not found
	Probe     bool      // asks whether the server is there: system.isAlive, system.listMethods, unknown-message-…
	Batch     bool      // a JSON-RPC batch; Method is its first call's
	Cut       bool      // the body ended before a method was found
	DebugInfo DebugInfo // set by SwitchCall and SwitchMessages only
	Object    []byte    // likewise: member "id" or "vm" of the first parameter, the VM of ["<vm>","xvda"], when it is a UUID
	SR        []byte    // likewise: member "sr"
	VDI       []byte    // likewise: member "vdi"
}

// Call reads the method from the first bytes of the body of a request to XAPI,
// XML-RPC or JSON-RPC, and no further. Method has the form VM.start also if
// VM_start was sent.
func (d *Decoder) Call(body []byte) (c Call) {
	d.reset()
	switch c.Protocol = protocolOf(body); c.Protocol {
	case XMLRPC:
		d.xmlMethod(&c, body)
	case JSONRPC:
		d.jsonCall(&c, body, false)
	default:
		c.Cut = len(bytes.TrimSpace(body)) == 0
	}
	if c.Method != nil {
		d.dotted(&c)
	}
	return c
}

// SwitchCall reads a call between toolstack processes: as Call, and its
// debug_info or dbg, which may stand at the far end. head and tail are the
// first and last bytes of the body; tail is nil when head is all of it.
func (d *Decoder) SwitchCall(head, tail []byte) (c Call) {
	d.reset()
	switch c.Protocol = protocolOf(head); c.Protocol {
	case XMLRPC:
		d.xmlMethod(&c, head)
		d.xmlDebugInfo(&c, head, tail)
	case JSONRPC:
		d.jsonCall(&c, head, true)
		if c.DebugInfo.Tag == nil && tail != nil {
			c.DebugInfo = d.tailDebugInfo(tail, 0)
		}
	default:
		c.Cut = len(bytes.TrimSpace(head)) == 0
	}
	return c
}

// protocolOf tells by its first byte what a body is.
func protocolOf(body []byte) Protocol {
	c := cutjson.At(body)
	switch c.Peek() {
	case '<':
		return XMLRPC
	case '{', '[':
		return JSONRPC
	}
	return NoProtocol
}

// jsonCall reads the first call in body. With params it also reads the first
// parameter.
func (d *Decoder) jsonCall(call *Call, body []byte, params bool) {
	c := cutjson.At(body)
	if c.Enter('[') {
		call.Batch = true
		if !c.More() {
			call.Cut = c.Cut()
			return
		}
	}
	if !c.Enter('{') {
		call.Cut = c.Cut()
		return
	}
	first := cutjson.At(nil) // at the parameters
	for call.Method == nil || params && len(first.Rest()) == 0 {
		key, ok := c.Key()
		if !ok {
			break
		}
		switch {
		case call.Method == nil && cutjson.Is(key, "method") && c.Peek() == '"':
			if raw, whole := c.String(); whole {
				d.setMethod(call, d.unescape(raw))
			}
		case params && cutjson.Is(key, "params"):
			first = c
			if call.Method == nil {
				c.Skip()
			}
		default:
			c.Skip()
		}
	}
	call.Cut = call.Method == nil && c.Cut()
	if params && first.Enter('[') && first.More() {
		d.firstParameters(call, &first)
	}
}

// firstParameters reads debug_info out of a call's first parameters: a member of
// an object, which may be the last one; or the first parameter that has no name
// (networkd, squeezed, v6d), before which stands the object of those that have.
func (d *Decoder) firstParameters(call *Call, c *cutjson.Cursor) {
	if c.Peek() == '{' {
		named := *c
		d.namedParameters(call, &named)
		if call.DebugInfo.Tag != nil || !c.Skip() || !c.More() {
			return
		}
	}
	if c.Peek() == '"' {
		if info := d.wholeString(c); info != nil {
			call.DebugInfo = d.debugInfo(info)
		}
	}
}

func (d *Decoder) namedParameters(call *Call, c *cutjson.Cursor) {
	c.Enter('{')
	for {
		key, ok := c.Key()
		if !ok {
			return
		}
		at := *c
		c.Skip()
		switch {
		case string(key) == "id" || string(key) == "vm":
			if id := d.firstString(&at); event.IsUUID(id) && call.Object == nil {
				call.Object = id
			}
		case string(key) == "sr":
			if id := d.firstString(&at); event.IsUUID(id) && call.SR == nil {
				call.SR = id
			}
		case string(key) == "vdi":
			if id := d.firstString(&at); event.IsUUID(id) && call.VDI == nil {
				call.VDI = id
			}
		case cutjson.Is(key, "debug_info") || cutjson.Is(key, "dbg"):
			if info := d.wholeString(&at); info != nil {
				call.DebugInfo = d.debugInfo(info)
			}
		}
	}
}

// tailDebugInfo finds the last debug_info or dbg in the last bytes of a JSON
// text. The text stands in a JSON string (level 1) or not (level 0): quotes of
// its own have one backslash or none before them, while those in strings that
// somebody chose have more. So no such string can pass for a member.
func (d *Decoder) tailDebugInfo(tail []byte, level int) (di DebugInfo) {
	at := max(memberValue(tail, "debug_info", level), memberValue(tail, "dbg", level))
	if at < 0 {
		return di
	}
	text := tail[at:]
	if level > 0 {
		raw, _ := cutjson.StringRest(text)
		text = d.unescape(raw)
	}
	raw, whole := cutjson.StringRest(text)
	if !whole {
		return di
	}
	return d.debugInfo(d.unescape(raw))
}

// memberValue returns where, in the last bytes of a JSON text, the string value
// of the last member of that name begins, behind its quote; -1 if there is
// none.
func memberValue(text []byte, name string, level int) int {
	for end := len(text); ; {
		i := bytes.LastIndex(text[:end], []byte(name))
		if i < 0 {
			return -1
		}
		end = i
		before, ok := quoteBefore(text, i, level)
		if !ok || before == 0 || text[before-1] != ',' && text[before-1] != '{' && text[before-1] != ' ' {
			continue
		}
		at, ok := quoteAfter(text, i+len(name), level)
		if !ok {
			continue
		}
		for at < len(text) && text[at] == ' ' {
			at++
		}
		if at == len(text) || text[at] != ':' {
			continue
		}
		at++
		for at < len(text) && text[at] == ' ' {
			at++
		}
		if at, ok = quoteAfter(text, at, level); ok {
			return at
		}
	}
}

// quoteBefore goes back over a quote of that level.
func quoteBefore(text []byte, i, level int) (int, bool) {
	if i < 1+level || text[i-1] != '"' || level > 0 && text[i-2] != '\\' {
		return 0, false
	}
	return i - 1 - level, true
}

// quoteAfter goes over a quote of that level.
func quoteAfter(text []byte, i, level int) (int, bool) {
	if i+level >= len(text) || text[i+level] != '"' || level > 0 && text[i] != '\\' {
		return 0, false
	}
	return i + level + 1, true
}
