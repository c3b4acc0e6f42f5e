// Package logline reads the toolstack's log lines as they are sent to the
// system log: who logs, on behalf of which task, and, for the few lines that
// begin or end a piece of work, what.
//
// Input is untrusted and may be cut at any byte. Nothing allocates; results
// are parts of the input.
package logline

import "github.com/xenserver/dtagent/correlate/wire"

// Line is one line. Its slices are parts of the datagram; what does not stand
// there is nil.
type Line struct {
	Priority   int    // facility*8 + severity, as in <175>
	Program    []byte // ident: xapi, xenopsd-xc
	Level      []byte // debug, info, warn, error, critical
	Trace      []byte // second field if it is a traceparent (since 26.8); a hint only
	Host       []byte // second field if it is a host name (old versions)
	Thread     int    // OCaml's number of the thread, not a tid; -1 if not there
	ThreadName []byte // "/var/lib/xcp/xapi", "HTTPS 10.0.0.9->:::80"; empty in workers
	Tag        []byte // task tag, escaped as it is in the log
	Module     []byte
	Message    []byte // escaped as it is in the log
}

// Parse reads a datagram:
//
//	<175>Nov 22 12:22:28 xenopsd-xc: [debug||46 |VM.start_on R:454f085a09b2|xenops_server] Task 0 …
//
// It is false for lines in another form.
func Parse(b []byte) (Line, bool) { return Line{}, false }

// Task returns the label and id of the task on whose behalf the line was
// logged, also when the tag is a whole debug_info.
func (l *Line) Task() (label []byte, id wire.TaskID) { return nil, wire.TaskID{} }

// DebugInfo reads a tag that may be a whole debug_info, its newline written
// \x0A. The result is valid until d's next call.
func (l *Line) DebugInfo(d *wire.Decoder) wire.DebugInfo { return wire.DebugInfo{} }

// ParentTask returns the xenopsd task that waits for this one, when the tag is
// that of a parallel atom: "Parallel:task=12.atoms=3.(…)". Tags nest; the task
// returned is the nearest.
func ParentTask(tag []byte) (xenops uint64, ok bool) { return 0, false }
