package wire

import (
	"bytes"

	"github.com/xenserver/dtagent/correlate/internal/cutjson"
)

// Action is what a request to message-switch asks for.
type Action uint8

// Actions. What is not listed (list, destroy, trace, shutdown, …) is
// OtherAction.
const (
	OtherAction Action = iota
	Login              // GET /login/<token>; Queue is the token, which names the client's reply queue too
	Persistent         // GET /persistent/<queue>
	Transient          // GET /transient/<queue>
	Request            // POST /request/<queue>/<reply queue>
	Response           // POST /response/<reply queue>/<queue>/<n>: answers message n of queue
	Transfer           // POST /transfer: waits for messages
	Ack                // GET /ack/<queue>/<n>
)

var actionNames = [...]string{"other", "login", "persistent", "transient", "request", "response", "transfer", "ack"}

// String returns the action's word in the path.
func (a Action) String() string { return actionNames[a] }

// SwitchRequest is the request line of a message-switch request.
type SwitchRequest struct {
	Action     Action
	Queue      []byte // Login: the token
	ReplyQueue []byte // Request, Response
	ID         uint64 // Response, Ack: number of the message in Queue
}

// SwitchRequest reads the path of a request to message-switch.
func (d *Decoder) SwitchRequest(path []byte) (r SwitchRequest) {
	d.reset()
	path, ok := bytes.CutPrefix(path, []byte{'/'})
	if !ok {
		return r
	}
	var part [4][]byte
	parts := 0
	for more := true; more; parts++ {
		if parts == len(part) {
			return r
		}
		part[parts], path, more = bytes.Cut(path, []byte{'/'})
	}
	action := OtherAction
	for a, name := range actionNames {
		if a > 0 && string(part[0]) == name {
			action = Action(a)
		}
	}
	n := int64(0)
	switch action {
	case Transfer:
		ok = parts == 1
	case Login, Persistent, Transient:
		ok = parts == 2
		r.Queue = d.percentDecode(part[1])
	case Request:
		ok = parts == 3
		r.Queue, r.ReplyQueue = d.percentDecode(part[1]), d.percentDecode(part[2])
	case Ack:
		n = parseUint(part[2], 1<<63-1)
		ok = parts == 3 && n >= 0
		r.Queue, r.ID = d.percentDecode(part[1]), uint64(n)
	case Response:
		n = parseUint(part[3], 1<<63-1)
		ok = parts == 4 && n >= 0
		// The switch decodes the reply queue's name, but not the other (protocol.ml).
		r.ReplyQueue, r.Queue, r.ID = d.percentDecode(part[1]), part[2], uint64(n)
	}
	if !ok {
		return SwitchRequest{}
	}
	r.Action = action
	return r
}

func (d *Decoder) percentDecode(b []byte) []byte {
	if bytes.IndexByte(b, '%') < 0 {
		return b
	}
	start := len(d.buf)
	for i := 0; i < len(b); i++ {
		if b[i] == '%' && i+2 < len(b) && isHex(b[i+1:i+3]) {
			d.buf = append(d.buf, unhex(b[i+1])<<4|unhex(b[i+2]))
			i += 2
			continue
		}
		d.buf = append(d.buf, b[i])
	}
	return d.buf[start:]
}

// MessageID names a message: its queue and its number, which the switch gives.
type MessageID struct {
	Queue []byte
	N     uint64
}

// SwitchSent reads the switch's answer to Request and Response, [["queue",n]].
// It is false for [], which says that the queue is gone, and for what is cut.
func (d *Decoder) SwitchSent(body []byte) (MessageID, bool) {
	d.reset()
	c := cutjson.At(body)
	if !c.Enter('[') || !c.More() {
		return MessageID{}, false
	}
	return d.messageID(&c)
}

// messageID reads ["queue",n].
func (d *Decoder) messageID(c *cutjson.Cursor) (id MessageID, ok bool) {
	if !c.Enter('[') || !c.More() {
		return id, false
	}
	raw, ok := c.String()
	if !ok || !c.More() {
		return id, false
	}
	n, ok := c.Uint()
	if !ok || c.More() || c.Cut() {
		return id, false
	}
	return MessageID{Queue: d.unescape(raw), N: n}, true
}

// SwitchMessage is a message that the switch delivers in answer to Transfer.
type SwitchMessage struct {
	ID         MessageID
	Kind       Action    // Request or Response, OtherAction if cut before it was told
	ReplyQueue []byte    // Request: where the answer goes
	Request    MessageID // Response: the message that it answers
	Call       Call      // Request, and OtherAction if it is one
	Reply      Reply     // Response, and OtherAction if it is one
	Cut        bool      // not all of it was there
}

// SwitchMessages yields the messages of a Transfer's answer. head and tail are
// the first and last bytes of the body; tail is nil when head is all of it. It
// returns false when messages may have followed that were not there to read.
// A message is valid until yield returns.
func (d *Decoder) SwitchMessages(head, tail []byte, yield func(*SwitchMessage)) (all bool) {
	d.reset()
	c := cutjson.At(head)
	if !c.Enter('{') {
		return false
	}
	for {
		key, ok := c.Key()
		if !ok {
			return false
		}
		if cutjson.Is(key, "messages") {
			break
		}
		c.Skip()
	}
	return c.Enter('[') && d.messages(&c, tail, yield)
}

// messages yields what the array holds that c is in, and then what begins in
// tail.
func (d *Decoder) messages(c *cutjson.Cursor, tail []byte, yield func(*SwitchMessage)) (all bool) {
	// In a string the quotes would be escaped.
	next := bytes.Index(tail, []byte(`,[["`))
	for {
		if !c.More() {
			if !c.Cut() {
				return true
			}
			break
		}
		d.reset()
		m := &d.message
		*m = SwitchMessage{}
		payload, whole := d.envelope(m, c)
		if m.ID.Queue == nil {
			break
		}
		if whole {
			d.payload(m, payload)
			yield(m)
			continue
		}
		m.Cut = true
		last := next < 0 && lastMessage(tail) == m.ID.N // so tail is its end
		if last {
			d.kind(m, afterKind(tail))
		}
		d.payload(m, payload)
		if last && m.Kind == Request && m.Call.DebugInfo.Tag == nil {
			m.Call.DebugInfo = d.tailDebugInfo(tail, 1)
		}
		yield(m)
		if last {
			return true
		}
		break
	}
	if next >= 0 {
		rest := cutjson.At(tail[next:])
		d.messages(&rest, nil, yield)
	}
	return false
}

// envelope reads [["queue",n],{"payload":"…","kind":…}] and returns what of the
// payload is there, escaped. whole is false if not all of it is there.
func (d *Decoder) envelope(m *SwitchMessage, c *cutjson.Cursor) (payload []byte, whole bool) {
	if !c.Enter('[') || !c.More() {
		return nil, false
	}
	id, ok := d.messageID(c)
	if !ok {
		return nil, false
	}
	m.ID = id
	if !c.More() || !c.Enter('{') {
		return nil, false
	}
	for {
		key, ok := c.Key()
		switch {
		case !ok:
			return payload, !c.Cut() && !c.More() && !c.Cut()
		case cutjson.Is(key, "payload"):
			payload, _ = c.String()
		case cutjson.Is(key, "kind"):
			at := *c
			if c.Skip() {
				d.kind(m, at)
			}
		default:
			c.Skip()
		}
	}
}

// kind reads ["Request","reply queue"] or ["Response",["queue",n]].
func (d *Decoder) kind(m *SwitchMessage, c cutjson.Cursor) {
	if !c.Enter('[') || !c.More() {
		return
	}
	name, ok := c.String()
	if !ok || !c.More() {
		return
	}
	switch string(name) {
	case "Request":
		if queue, ok := c.String(); ok {
			m.Kind, m.ReplyQueue = Request, d.unescape(queue)
		}
	case "Response":
		if id, ok := d.messageID(&c); ok {
			m.Kind, m.Request = Response, id
		}
	}
}

// payload reads the call or reply that a message carries.
func (d *Decoder) payload(m *SwitchMessage, escaped []byte) {
	body := d.unescape(escaped)
	if m.Kind != Response {
		switch m.Call.Protocol = protocolOf(body); m.Call.Protocol {
		case JSONRPC:
			d.jsonCall(&m.Call, body, true)
		case XMLRPC:
			d.xmlMethod(&m.Call, body)
			d.xmlDebugInfo(&m.Call, body, nil)
		}
	}
	if m.Kind == Response || m.Kind == OtherAction && m.Call.Method == nil {
		m.Call = Call{}
		m.Reply = d.reply(body)
	}
}

// lastMessage returns the number of the last message from the end of an answer
// to Transfer, …],"next":"66"}; 0 if it is not there.
func lastMessage(tail []byte) uint64 {
	key := []byte(`"next":`)
	i := bytes.LastIndex(tail, key)
	if i < 0 {
		return 0
	}
	c := cutjson.At(tail[i+len(key):])
	n, _ := c.Uint()
	return n
}

// afterKind returns a cursor at the kind of the last message in tail.
func afterKind(tail []byte) cutjson.Cursor {
	key := []byte(`,"kind":`) // its quotes would be escaped in the payload
	if i := bytes.LastIndex(tail, key); i >= 0 {
		return cutjson.At(tail[i+len(key):])
	}
	return cutjson.At(nil)
}
