// Package wire reads what the toolstack says on its sockets: the heads of
// HTTP/1.x messages, the calls and replies of XML-RPC and JSON-RPC, the
// messages of message-switch, and debug_info.
//
// Its input is untrusted, masked in parts by package redact, and cut at any
// byte: of a long body only the first and the last bytes are there. The JSON
// and XML libraries want whole documents and allocate what they find, so these
// parsers are dtagent's own. They never fail on a cut document, they return
// what stands before (or, in the tail, after) the cut; they never allocate by a
// length they were told, and in steady state not at all: results are fixed-size
// values, or parts of the input or of a Decoder's buffer. Who keeps them copies
// them, strings that repeat by an Interner.
package wire
