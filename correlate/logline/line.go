// Package logline reads the toolstack's log lines as they are sent to the
// system log: who logs, on behalf of which task, and, for the few lines that
// begin or end a piece of work, what.
//
// Input is untrusted and may be cut at any byte. Nothing allocates; results
// are parts of the input.
package logline

import (
	"bytes"

	"github.com/xenserver/dtagent/correlate/internal/cutjson"
	"github.com/xenserver/dtagent/correlate/wire"
)

// Line is one line. Its slices are parts of the datagram; what does not stand
// there is nil.
type Line struct {
	Priority   int    // facility*8 + severity, as in <175>
	Program    []byte // ident: xapi, xenopsd-xc
	Level      []byte // debug, info, warn, error, critical
	Trace      []byte // second field since 26.8: as XAPI got it, unchecked; a hint only
	Host       []byte // second field if it is no traceparent (old versions: the host's name)
	Thread     int    // OCaml's number of the thread, not a tid
	ThreadName []byte // "/var/lib/xcp/xapi", "HTTPS 10.0.0.9->:::80"; empty in workers
	Tag        []byte // task tag, escaped as it is in the log
	Module     []byte // nil if the line is cut before its end
	Message    []byte // escaped as it is in the log
}

// Parse reads a datagram:
//
//	<175>Nov 22 12:22:28 xenopsd-xc: [debug||46 |VM.start_on R:454f085a09b2|xenops_server] Task 0 …
//
// It is false for lines in another form. The tag can hold any character: it ends
// where a module's name and "] " follow for the first time, outside of the JSON
// of a debug_info. It is false as well for a line that a client's traceparent
// makes look like another one.
func Parse(b []byte) (l Line, ok bool) {
	b, ok = l.priority(b)
	if !ok {
		return Line{}, false
	}
	i := bytes.Index(b[:min(len(b), maxPreamble)], []byte(": ["))
	if i < 0 {
		return Line{}, false
	}
	l.Program = b[bytes.LastIndexByte(b[:i], ' ')+1 : i]
	if j := bytes.IndexByte(l.Program, '['); j >= 0 {
		l.Program = l.Program[:j] // without its pid
	}
	level, b, ok := bytes.Cut(b[i+len(": ["):], []byte{'|'})
	if !ok {
		return Line{}, false
	}
	l.Level = bytes.TrimLeft(level, " ")
	second, b, ok := l.threadField(b)
	if !ok {
		return Line{}, false
	}
	switch {
	case len(second) == 0:
	case bytes.HasPrefix(second, []byte("00-")):
		l.Trace = second
	default:
		l.Host = second
	}
	l.Tag, l.Module, l.Message = splitTag(b)
	if len(second) > 0 && holdsHead(l.Message) {
		return Line{}, false
	}
	return l, true
}

// holdsHead tells whether the rest of a line's head, "|46 name|tag|module] ",
// stands in the message. The second field can be what a client sent as
// traceparent, and then what seems to be the head may have been sent too.
func holdsHead(message []byte) bool {
	for {
		i := bytes.IndexByte(message, '|')
		if i < 0 {
			return false
		}
		message = message[i+1:]
		if _, name, ok := thread(message); ok {
			if _, rest, ok := bytes.Cut(name, []byte{'|'}); ok {
				if _, module, _ := splitTag(rest); module != nil {
					return true
				}
			}
		}
	}
}

// maxPreamble bounds the time stamp and ident before the line's head.
const maxPreamble = 128

// priority reads <175>.
func (l *Line) priority(b []byte) ([]byte, bool) {
	if len(b) == 0 || b[0] != '<' {
		return nil, false
	}
	for i, c := range b[1:min(len(b), 5)] {
		switch {
		case c >= '0' && c <= '9':
			l.Priority = l.Priority*10 + int(c-'0')
		case c == '>' && i > 0:
			return b[i+2:], true
		default:
			return nil, false
		}
	}
	return nil, false
}

// threadField goes over the second and third field: "…|46 name|". The second is
// what some client sent when it is a traceparent, and could hold a '|': the
// third is the first field that begins with a number and a blank.
func (l *Line) threadField(b []byte) (second, rest []byte, ok bool) {
	for at := 0; ; {
		i := bytes.IndexByte(b[at:], '|')
		if i < 0 {
			return nil, nil, false
		}
		start := at + i + 1
		if n, name, ok := thread(b[start:]); ok {
			name, rest, ok = bytes.Cut(name, []byte{'|'})
			l.Thread, l.ThreadName = n, name
			return b[:start-1], rest, ok
		}
		at = start
	}
}

// thread reads "46 ".
func thread(b []byte) (n int, name []byte, ok bool) {
	for i, c := range b[:min(len(b), 10)] {
		switch {
		case c >= '0' && c <= '9':
			n = n*10 + int(c-'0')
		case c == ' ' && i > 0:
			return n, b[i+1:], true
		default:
			return 0, nil, false
		}
	}
	return 0, nil, false
}

// splitTag splits what follows the thread's name: "tag|module] message". When
// it is cut before that, all of it is the tag.
func splitTag(b []byte) (tag, module, message []byte) {
	for at := 0; ; {
		i := bytes.IndexByte(b[at:], ']')
		if i < 0 {
			return b, nil, nil
		}
		end := at + i
		if i := bytes.Index(b[at:end], []byte(`\x0A{`)); i >= 0 {
			// A debug_info, whose JSON may hold anything in its strings.
			at += i + len(`\x0A`)
			c := cutjson.AtLogged(b[at:])
			if !c.Skip() {
				return b, nil, nil
			}
			at += c.Pos()
			continue
		}
		at = end + 1
		if at < len(b) && b[at] != ' ' {
			continue
		}
		bar := bytes.LastIndexByte(b[:end], '|')
		if bar >= 0 && isModule(b[bar+1:end]) {
			return b[:bar], b[bar+1 : end], b[min(at+1, len(b)):]
		}
	}
}

// isModule tells whether b can be the name of a module.
func isModule(b []byte) bool {
	for _, c := range b {
		if c <= ' ' || c == ']' || c == '"' || c == '{' || c == '}' {
			return false
		}
	}
	return len(b) <= 64
}

// Task returns the label and id of the task on whose behalf the line was
// logged, also when the tag is a whole debug_info.
func (l *Line) Task() (label []byte, id wire.TaskID) {
	return wire.SplitTag(firstLine(l.Tag))
}

// firstLine returns an escaped tag up to its newline.
func firstLine(tag []byte) []byte {
	if i := bytes.Index(tag, []byte(`\x0A`)); i >= 0 {
		return tag[:i]
	}
	return tag
}

// DebugInfo reads a tag that may be a whole debug_info, its newline written
// \x0A. The result is valid until d's next call.
func (l *Line) DebugInfo(d *wire.Decoder) wire.DebugInfo { return d.LogTag(l.Tag) }

// ParentTask returns the number of the xenopsd task that waits for this one,
// when the tag is that of a parallel atom: "Parallel:task=12.atoms=3.(…)" or
// "Nested_parallel:task=…". Of several levels it is the nearest: the tag of the
// one above names that task's own parent.
func ParentTask(tag []byte) (xenops uint64, ok bool) {
	tag = bytes.TrimPrefix(tag, []byte("Nested_parallel"))
	tag = bytes.TrimPrefix(tag, []byte("Parallel"))
	tag, ok = bytes.CutPrefix(tag, []byte(":task="))
	if !ok {
		return 0, false
	}
	n, rest, ok := number(tag)
	return n, ok && len(rest) > 0 && rest[0] == '.'
}

// number reads the decimal number that b begins with.
func number(b []byte) (n uint64, rest []byte, ok bool) {
	i := 0
	for ; i < len(b) && b[i] >= '0' && b[i] <= '9'; i++ {
		if i == 18 {
			return 0, nil, false
		}
		n = n*10 + uint64(b[i]-'0')
	}
	return n, b[i:], i > 0
}
