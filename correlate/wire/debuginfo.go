package wire

import (
	"bytes"

	"github.com/xenserver/dtagent/correlate/internal/cutjson"
	"github.com/xenserver/dtagent/correlate/tracecontext"
)

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
func (d *Decoder) DebugInfo(b []byte) DebugInfo {
	d.reset()
	return d.debugInfo(b)
}

// LogTag reads a task tag as it stands in a log line: it may be a whole
// debug_info, with its newline written \x0A and a backslash doubled.
func (d *Decoder) LogTag(tag []byte) DebugInfo {
	d.reset()
	return d.debugInfo(d.unescapeLog(tag))
}

func (d *Decoder) debugInfo(b []byte) (di DebugInfo) {
	tag, context, two := bytes.Cut(b, []byte{'\n'})
	if two && bytes.IndexByte(context, '\n') >= 0 {
		tag, context = b, nil
	}
	di.Tag = tag
	di.Label, di.Task = SplitTag(tag)
	c := cutjson.At(context)
	if !c.Enter('{') {
		di.Context, _ = tracecontext.ParseTraceparent(context)
		return di
	}
	for {
		key, ok := c.Key()
		switch {
		case !ok:
			return di
		case cutjson.Is(key, "traceparent") && c.Peek() == '"':
			if raw, whole := c.String(); whole {
				di.Context, _ = tracecontext.ParseTraceparent(d.unescape(raw))
			}
		case cutjson.Is(key, "baggage") && c.Peek() == '[':
			di.Baggage = d.baggage(&c)
		default:
			c.Skip()
		}
	}
}

// baggage reads [["k","v"],…].
func (d *Decoder) baggage(c *cutjson.Cursor) tracecontext.Baggage {
	start := len(d.buf)
	c.Enter('[')
	for c.More() && c.Enter('[') {
		if !c.More() {
			continue
		}
		key, ok := c.String()
		if !ok || !c.More() {
			break
		}
		value, ok := c.String()
		if !ok {
			break
		}
		if len(d.buf) > start {
			d.buf = append(d.buf, ';')
		}
		d.buf = append(cutjson.AppendUnescaped(d.buf, key), '=')
		d.buf = cutjson.AppendUnescaped(d.buf, value)
		for c.More() {
			if !c.Skip() {
				break
			}
		}
	}
	if len(d.buf) == start {
		return nil
	}
	return d.buf[start:]
}

// unescapeLog undoes what the log does to bytes outside 0x20-0x7E (\x0A) and to
// the backslash.
func (d *Decoder) unescapeLog(b []byte) []byte {
	i := bytes.IndexByte(b, '\\')
	if i < 0 {
		return b
	}
	start := len(d.buf)
	for i >= 0 {
		d.buf = append(d.buf, b[:i]...)
		b = b[i:]
		if len(b) >= 4 && b[1] == 'x' && isHex(b[2:4]) {
			d.buf = append(d.buf, unhex(b[2])<<4|unhex(b[3]))
			b = b[4:]
		} else if len(b) >= 2 {
			d.buf = append(d.buf, b[1])
			b = b[2:]
		} else {
			b = nil
		}
		i = bytes.IndexByte(b, '\\')
	}
	d.buf = append(d.buf, b...)
	return d.buf[start:]
}

func unhex(c byte) byte {
	if c <= '9' {
		return c - '0'
	}
	return c | 0x20 - 'a' + 10
}
