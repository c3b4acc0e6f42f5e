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
	if r.Status != Failed {
		r.Code = nil
	} else if r.Code != nil {
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
	void := false // the result is null
	for {
		key, ok := c.Key()
		if !ok {
			if void && !c.Cut() {
				r.Status = Succeeded
			}
			return
		}
		switch {
		case cutjson.Is(key, "error"):
			if c.Null() {
				r.Status = Succeeded
				continue
			}
			if c.Peek() != 0 {
				r.Status, r.Value = Failed, nil
				r.Code = d.jsonError(c)
			}
			return
		case cutjson.Is(key, "result"):
			if c.Null() { // also in 1.0's failures
				void = true
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
				r.Status, r.Code = d.jsonStatus(c)
				if r.Status != Succeeded {
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
// "ErrorDescription":[…]}, which old XAPIs put into a JSON-RPC result. Any other
// object is a success.
func (d *Decoder) jsonStatus(c cutjson.Cursor) (s Status, code []byte) {
	c.Enter('{')
	for {
		key, ok := c.Key()
		switch {
		case !ok && c.Cut():
			return s, code
		case ok && string(key) == "Status":
			if raw, whole := c.String(); !whole && c.Cut() {
				return s, code
			} else if string(raw) != "Failure" {
				return Succeeded, nil
			}
			s = Failed
		case ok && string(key) == "ErrorDescription":
			code = d.firstString(&c)
			for c.More() {
				if !c.Skip() {
					break
				}
			}
			if c.Cut() {
				return s, code
			}
		case s == Failed:
			return s, code
		default:
			return Succeeded, nil
		}
		if s == Failed && code != nil {
			return s, code
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
