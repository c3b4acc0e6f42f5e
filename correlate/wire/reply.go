package wire

import (
	"bytes"

	"github.com/xenserver/dtagent/correlate/internal/cutjson"
)

// Status is the outcome of a call.
type Status uint8

// Outcomes.
const (
	Unknown Status = iota // cut before it was told, or not an RPC reply
	Succeeded
	Failed
)

// Reply is the answer to a remote procedure call.
type Reply struct {
	Protocol Protocol
	Status   Status
	Code     []byte // Failed: XAPI's failure code, or the error's name or message; nil if it was not found or is cut
	Value    []byte // Succeeded: the value if it is a string: "51", "OpaqueRef:…"
	Task     TaskID // Succeeded: the task whose reference Value is, if the call was an asynchronous one
}

// maxCode is the number of bytes kept of a failure's code or message.
const maxCode = 128

// Reply reads the first bytes of a reply body: XML-RPC's Status, failure and
// fault, JSON-RPC's 1.0 and 2.0 error and result.
func (d *Decoder) Reply(body []byte) Reply {
	d.reset()
	return d.reply(body)
}

func (d *Decoder) reply(body []byte) (r Reply) {
	switch r.Protocol = protocolOf(body); r.Protocol {
	case XMLRPC:
		d.xmlReply(&r, body)
	case JSONRPC:
		d.jsonReply(&r, body)
	}
	if r.Code != nil {
		r.Code = d.printable(r.Code[:min(len(r.Code), maxCode)])
	}
	r.Task = ParseTaskRef(r.Value)
	return r
}

func (d *Decoder) jsonReply(r *Reply, body []byte) {
	c := cutjson.At(body)
	if c.Enter('[') && !c.More() || !c.Enter('{') {
		return
	}
	for {
		key, ok := c.Key()
		if !ok {
			return
		}
		switch {
		case cutjson.Is(key, "error"):
			if c.Null() {
				continue
			}
			if c.Peek() != 0 {
				r.Status, r.Value = Failed, nil
				r.Code = d.jsonError(c)
			}
			return
		case cutjson.Is(key, "result"):
			if c.Null() { // also in 1.0 failures, which tell the error elsewhere
				continue
			}
			switch c.Peek() {
			case 0:
				return
			case '"':
				raw, whole := c.String()
				if value := d.unescape(raw); whole || bytes.HasPrefix(value, opaqueRef) {
					r.Value = value
				}
				r.Status = Succeeded
			case '{':
				r.Status = Succeeded
				if d.jsonStatus(r, c) {
					return
				}
				c.Skip()
			case 'n', '}', ']':
				return
			default:
				r.Status = Succeeded
				c.Skip()
			}
		default:
			c.Skip()
		}
	}
}

// jsonStatus reads XML-RPC's form of a failure, {"Status":"Failure",
// "ErrorDescription":[…]}, which old XAPIs put into a JSON-RPC result. It is
// false for any other object.
func (d *Decoder) jsonStatus(r *Reply, c cutjson.Cursor) bool {
	c.Enter('{')
	for {
		key, ok := c.Key()
		if !ok {
			return r.Status == Failed
		}
		switch {
		case string(key) == "Status" && c.Peek() == '"':
			if raw, _ := c.String(); string(raw) != "Failure" {
				return false
			}
			r.Status = Failed
		case string(key) == "ErrorDescription":
			r.Code = d.firstString(&c)
			if c.Cut() || r.Status == Failed {
				return r.Status == Failed
			}
		default:
			return r.Status == Failed
		}
	}
}

// jsonError returns what names an error: 2.0's message, in which XAPI puts its
// failure code, with the code's parameters in data; 1.0's first string.
func (d *Decoder) jsonError(c cutjson.Cursor) []byte {
	if c.Peek() != '{' {
		return d.firstString(&c)
	}
	c.Enter('{')
	for {
		key, ok := c.Key()
		switch {
		case !ok:
			return nil
		case cutjson.Is(key, "message") && c.Peek() == '"':
			return d.wholeString(&c)
		default:
			c.Skip()
		}
	}
}

// firstString returns the string at the cursor, or the first of the array that
// is there. The cursor may stay in the array.
func (d *Decoder) firstString(c *cutjson.Cursor) []byte {
	for depth := 0; depth < 4 && c.Enter('['); depth++ {
		if !c.More() {
			return nil
		}
	}
	return d.wholeString(c)
}

// wholeString returns the string at the cursor, nil if there is none or it is
// cut: a part of a failure's code could be another one.
func (d *Decoder) wholeString(c *cutjson.Cursor) []byte {
	raw, whole := c.String()
	if !whole {
		return nil
	}
	return d.unescape(raw)
}
