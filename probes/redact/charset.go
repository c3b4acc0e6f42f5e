package redact

import (
	"bytes"

	"github.com/xenserver/dtagent/probes/event"
)

// Sets of bytes; a table is faster than comparisons and easier to read.
type charset [256]bool

func chars(s string) *charset {
	var c charset
	for i := 0; i < len(s); i++ {
		c[s[i]] = true
	}
	return &c
}

const (
	digits  = "0123456789"
	lower   = "abcdefghijklmnopqrstuvwxyz"
	upper   = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
	letters = lower + upper
)

var (
	setDigit   = chars(digits)
	setHex     = chars(digits + "abcdefABCDEF")
	setMethod  = chars(digits + letters + "_.:-")     // VM.start, system.isAlive:<uuid>
	setWord    = chars(digits + letters + "_.:-@")    // queue names, tokens
	setCode    = chars(digits + letters + "_.")       // HANDLE_INVALID, Does_not_exist
	setOp      = chars(digits + letters + "_")        // VM_start
	setToken   = chars(digits + letters + "_-")       // header names
	setTrace   = chars(digits + letters + "- ")       // traceparent, well formed or not
	setCommand = chars(digits + lower + "-")          // vm-start
	setPath    = chars(digits + letters + "/._-:+~@") // no query, no escapes
	setProxy   = chars(digits + letters + ":. ")
	setRef     = chars(digits + letters + ":%-")
	setKey     = chars(digits + letters + "_-")
	setNoQuery = chars(" &;\"\\'|<>)}]\r\n") // ends a value of a query
)

// all tells whether b has from 1 to most bytes, all of the set.
func (c *charset) all(b []byte, most int) bool {
	return len(b) > 0 && len(b) <= most && c.run(b) == len(b)
}

// run returns how many bytes at the start of b are of the set.
func (c *charset) run(b []byte) int {
	for i, x := range b {
		if !c[x] {
			return i
		}
	}
	return len(b)
}

// isIdent tells whether b is what toolstack services name objects and tasks
// by: a UUID or a short decimal number.
func isIdent(b []byte) bool { return event.IsUUID(b) || setDigit.all(b, 10) }

// taskID returns where the id of a task, R:8ae06e1ea3d1, begins that ends b, with
// the space between it and the task's label; the end of b if there is none.
func taskID(b []byte) int {
	const size = len("R:8ae06e1ea3d1")
	i := len(b) - size
	if i < 0 || i > 0 && b[i-1] != ' ' || b[i] != 'R' && b[i] != 'D' || b[i+1] != ':' {
		return len(b)
	}
	for _, x := range b[i+2:] {
		if !setHex[x] {
			return len(b)
		}
	}
	return max(i-1, 0)
}

// isSwitchWord tells whether b is the name of a queue, "org.xen.xapi.storage"
// or "xapi:7661", a message's number or its kind.
func isSwitchWord(b []byte) bool {
	switch string(b) {
	case "Request", "Response":
		return true
	}
	if setDigit.all(b, 20) {
		return true
	}
	return setWord.all(b, 128) && taskRef(b) == 0 && bytes.ContainsAny(b, ".:")
}

const (
	refPrefix = "OpaqueRef:"
	refKept   = len(refPrefix) + 8 + 1 + 4 // as far as R:<12 digits> tells
)

// taskRef returns how much of the reference at the start of b may be kept, 0
// if it is none.
func taskRef(b []byte) int {
	if len(b) < len(refPrefix) || string(b[:len(refPrefix)]) != refPrefix {
		return 0
	}
	i := len(refPrefix)
	for ; i < len(b) && i < refKept; i++ {
		if i == len(refPrefix)+8 {
			if b[i] != '-' {
				return 0
			}
		} else if !setHex[b[i]] {
			return 0
		}
	}
	return i
}

// equalFold compares b with s, which is in lower case, without regard to case.
func equalFold(b []byte, s string) bool {
	if len(b) != len(s) {
		return false
	}
	for i, x := range b {
		if toLower(x) != s[i] {
			return false
		}
	}
	return true
}

func toLower(x byte) byte {
	if 'A' <= x && x <= 'Z' {
		return x + 'a' - 'A'
	}
	return x
}
