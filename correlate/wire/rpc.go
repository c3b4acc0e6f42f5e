package wire

// Protocol is a way to write remote procedure calls.
type Protocol uint8

// Protocols.
const (
	NoProtocol Protocol = iota // not recognised
	XMLRPC
	JSONRPC // 1.0 and 2.0
)

// Prefix is what stands before the method's name proper.
type Prefix uint8

// Prefixes.
const (
	NoPrefix      Prefix = iota
	Async                // "Async.": answered at once with the reference of a task
	InternalAsync        // "InternalAsync."
)

// String returns the prefix as it is written.
func (p Prefix) String() string { return [...]string{"", "Async.", "InternalAsync."}[p] }

// Call is the request of a remote procedure call.
type Call struct {
	Protocol  Protocol
	Prefix    Prefix
	Method    []byte    // with its prefix, in the form VM.start also if VM_start was sent; "system.isAlive" without its uuid; nil: not found
	Probe     bool      // asks whether the server is there: system.isAlive, unknown-message-…
	Batch     bool      // a JSON-RPC batch; Method is its first call's
	Cut       bool      // the body ended before a method was found
	DebugInfo DebugInfo // set by SwitchCall only
	Object    []byte    // SwitchCall: member "id" or "vm" of the first parameter when it is a UUID
}

// Call reads the method from the first bytes of a request body, XML-RPC or
// JSON-RPC. It reads no further than that.
func (d *Decoder) Call(body []byte) Call { return Call{} }

// SwitchCall reads a call between toolstack processes: as Call, and its
// debug_info or dbg, which may stand at the far end. head and tail are the
// first and last bytes of the body; tail is nil when head is all of it.
func (d *Decoder) SwitchCall(head, tail []byte) Call { return Call{} }

// Reply is the answer to a remote procedure call.
type Reply struct {
	Protocol Protocol
	Status   Status
	Code     []byte // Failed: XAPI's failure code, or the error's name or message; nil if it was not found
	Value    []byte // Succeeded: the value if it is a string: "51", "OpaqueRef:…"
	Task     TaskID // Succeeded: the task whose reference Value is
}

// Status is the outcome of a call.
type Status uint8

// Outcomes.
const (
	Unknown Status = iota // cut before it was told, or not an RPC reply
	Succeeded
	Failed
)

// Reply reads the first bytes of a reply body: XML-RPC's Status, failure and
// fault, JSON-RPC's 1.0 and 2.0 error and result.
func (d *Decoder) Reply(body []byte) Reply { return Reply{} }
