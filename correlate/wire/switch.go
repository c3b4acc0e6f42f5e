package wire

// Action is what a request to message-switch asks for.
type Action uint8

// Actions. What is not listed (list, destroy, trim, diagnostics, shutdown, …)
// is OtherAction.
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

// SwitchRequest is the request line of a message-switch request.
type SwitchRequest struct {
	Action     Action
	Queue      []byte // Login: the token
	ReplyQueue []byte // Request, Response
	ID         uint64 // Response, Ack: number of the message in Queue
}

// SwitchRequest reads the path of a request to message-switch.
func (d *Decoder) SwitchRequest(path []byte) SwitchRequest { return SwitchRequest{} }

// MessageID names a message: its queue and its number, which the switch gives.
type MessageID struct {
	Queue []byte
	N     uint64
}

// SwitchSent reads the switch's answer to Request and Response, [["queue",n]].
// It is false for [], which says that the queue is gone, and for what is cut.
func (d *Decoder) SwitchSent(body []byte) (MessageID, bool) { return MessageID{}, false }

// SwitchMessage is a message that the switch delivers in answer to Transfer.
type SwitchMessage struct {
	ID         MessageID
	Kind       Action    // Request or Response, OtherAction if cut before it was told
	ReplyQueue []byte    // Request: where the answer goes
	Request    MessageID // Response: the message that it answers
	Call       Call      // Request
	Reply      Reply     // Response
	Cut        bool      // not all of it was there
}

// SwitchMessages yields the messages of a Transfer's answer. head and tail are
// the first and last bytes of the body; tail is nil when head is all of it. It
// returns false when messages may have followed that were not there to read.
func (d *Decoder) SwitchMessages(head, tail []byte, yield func(*SwitchMessage)) (all bool) {
	return true
}
