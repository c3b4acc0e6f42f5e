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
	Kind       Action    // Request or Response; of a cut message OtherAction, unless its payload shows that it is a Request
	ReplyQueue []byte    // Request: where the answer goes; nil if cut
	Request    MessageID // Response: the message that it answers
	Call       Call      // Request
	Reply      Reply     // Response, and OtherAction
	Cut        bool      // not all of it was there
}

// TransferFrom reads the number in the body of a Transfer request,
// {"from":"63",…}: only messages with a higher one are wanted. It is false for
// the first request of a client, which has none.
func (d *Decoder) TransferFrom(body []byte) (uint64, bool) {
	c := cutjson.At(body)
	if !c.Enter('{') {
		return 0, false
	}
	for {
		key, ok := c.Key()
		if !ok {
			return 0, false
		}
		if cutjson.Is(key, "from") {
			return c.Uint()
		}
		c.Skip()
	}
}

// SwitchMessages yields the messages of a Transfer's answer. head and tail are
// the first and last bytes of the body; tail is nil when head is all of it. It
// returns false when messages may have followed that were not there to read.
// A message is valid until yield returns.
//
// Of a message that begins in head and is cut, the tail is not used: it may be
// the end of another one. See SwitchMessagesAfter.
func (d *Decoder) SwitchMessages(head, tail []byte, yield func(*SwitchMessage)) (all bool) {
	return d.SwitchMessagesAfter(1<<64-1, head, tail, yield)
}

// SwitchMessagesAfter is SwitchMessages for an answer of which it is known what
// was asked for: messages above from (see TransferFrom). The switch numbers the
// messages of a queue without gaps and says the highest number at the end, so
// when that is from+1 there is one message, and tail is its end.
func (d *Decoder) SwitchMessagesAfter(from uint64, head, tail []byte, yield func(*SwitchMessage)) (all bool) {
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
	last, ok := lastMessage(tail)
	return c.Enter('[') && d.messages(&c, tail, ok && last == from+1, yield)
}

// messages yields what the array holds that c is in, and then what begins in
// tail.
func (d *Decoder) messages(c *cutjson.Cursor, tail []byte, only bool, yield func(*SwitchMessage)) (all bool) {
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
		m.Cut = !whole
		if m.Cut && only {
			d.kind(m, afterKind(tail))
		}
		d.payload(m, payload)
		if m.Cut && only && m.Kind == Request && m.Call.DebugInfo.Tag == nil {
			m.Call.DebugInfo = d.tailDebugInfo(tail, 1)
		}
		yield(m)
		if m.Cut {
			if only {
				return true
			}
			break
		}
	}
	// In a payload the quotes would be escaped.
	if i := bytes.Index(tail, []byte(`,[["`)); i >= 0 {
		rest := cutjson.At(tail[i:])
		d.messages(&rest, nil, false, yield)
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
		if m.Call.Method != nil {
			m.Kind = Request
		}
	}
	if m.Kind != Request {
		m.Call = Call{}
		m.Reply = d.reply(body)
	}
}

// lastMessage returns the number of the newest message from the end of an
// answer to Transfer, …],"next":"66"}.
func lastMessage(tail []byte) (n uint64, ok bool) {
	key := []byte(`,"next":`) // its quotes would be escaped in a payload
	i := bytes.LastIndex(tail, key)
	if i < 0 {
		return 0, false
	}
	c := cutjson.At(tail[i+len(key):])
	return c.Uint()
}

// afterKind returns a cursor at the kind of the last message in tail.
func afterKind(tail []byte) cutjson.Cursor {
	key := []byte(`,"kind":`)
	if i := bytes.LastIndex(tail, key); i >= 0 {
		return cutjson.At(tail[i+len(key):])
	}
	return cutjson.At(nil)
}
