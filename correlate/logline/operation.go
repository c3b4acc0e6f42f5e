package logline

import (
	"github.com/xenserver/dtagent/correlate/internal/cutjson"
	"github.com/xenserver/dtagent/probes/event"
)

// maxDepth bounds how deep compound operations are followed. xenopsd's own are
// three deep: Parallel of Nested_parallel of Serial.
const maxDepth = 6

// AppendName appends to dst the name that xenopsd gives the span of an
// operation or atom (name_of_operation, name_of_atomic in xenops_server.ml):
// VM_start, Atomic (VM_unpause), Parallel (VBD_plug | …). op is its JSON from
// an Anchor. Of a cut one it appends what is there, with "…" for the rest, and
// whole is false.
func AppendName(dst, op []byte) (name []byte, whole bool) {
	c := cutjson.AtLogged(op)
	return appendName(dst, &c, maxDepth)
}

func appendName(dst []byte, c *cutjson.Cursor, depth int) ([]byte, bool) {
	constructor, ok := enter(c)
	if !ok {
		return append(dst, cutMark...), false
	}
	dst = append(dst, constructor...)
	separator := ""
	switch string(constructor) {
	case "Atomic", "Best_effort":
	case "Parallel", "Nested_parallel":
		separator = " | "
	case "Serial":
		separator = " & "
	default:
		return dst, leave(c)
	}
	if depth == 0 {
		return append(dst, cutMark...), leave(c)
	}
	dst = append(dst, " ("...)
	if separator == "" {
		ok = c.More()
		if ok {
			dst, ok = appendName(dst, c, depth-1)
		} else {
			dst = append(dst, cutMark...)
		}
	} else {
		dst, ok = appendNames(dst, c, separator, depth-1)
	}
	return append(dst, ')'), ok && leave(c)
}

// appendNames appends the names of the list in ["<vm>","<description>",[…]].
func appendNames(dst []byte, c *cutjson.Cursor, separator string, depth int) ([]byte, bool) {
	ok := c.More() && c.Enter('[') && // the arguments
		c.More() && c.Skip() && c.More() && c.Skip() && c.More() && c.Enter('[')
	if !ok {
		return append(dst, cutMark...), false
	}
	for first := true; c.More(); first = false {
		if !first {
			dst = append(dst, separator...)
		}
		if dst, ok = appendName(dst, c, depth); !ok {
			return dst, false
		}
	}
	if c.Cut() {
		return append(append(dst, separator...), cutMark...), false
	}
	return dst, leave(c)
}

// cutMark stands in a name for what is behind the cut.
const cutMark = "…"

// enter goes into ["Constructor",…] and returns the constructor's name.
func enter(c *cutjson.Cursor) ([]byte, bool) {
	if !c.Enter('[') || !c.More() {
		return nil, false
	}
	name, ok := c.String()
	if !ok || len(name) == 0 || len(name) > 64 {
		return nil, false
	}
	for _, b := range name {
		if (b < 'a' || b > 'z') && (b < 'A' || b > 'Z') && (b < '0' || b > '9') && b != '_' {
			return nil, false
		}
	}
	return name, true
}

// leave goes behind the end of the array that c is in.
func leave(c *cutjson.Cursor) bool {
	for c.More() {
		if !c.Skip() {
			return false
		}
	}
	return !c.Cut()
}

// Object returns the first argument of an operation or atom, the UUID of its
// VM for most; nil if it is no UUID.
func Object(op []byte) []byte {
	c := cutjson.AtLogged(op)
	for depth := 0; depth <= 2*maxDepth; depth++ {
		if _, ok := enter(&c); !ok || !c.More() {
			return nil
		}
		if c.Peek() == '"' {
			break // ["VM_unpause","<uuid>"]
		}
		at := c
		if !c.Enter('[') || !c.More() || c.Peek() != '"' {
			return nil
		}
		first, ok := c.String()
		if !ok {
			return nil
		}
		if event.IsUUID(first) {
			return first
		}
		c = at // ["Atomic",["VM_unpause",…]]
	}
	id, ok := c.String()
	if !ok || !event.IsUUID(id) {
		return nil
	}
	return id
}
