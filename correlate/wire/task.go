package wire

import "bytes"

// TaskID is the short form of an XAPI task reference that stands in log tags:
// R: (a real task), D: (dummy) or O: (other), and 12 hex digits. It can be a
// map key. The zero value is none.
type TaskID [14]byte

// IsZero tells that there is no id.
func (t TaskID) IsZero() bool { return t[0] == 0 }

// Real tells that the task is in XAPI's database (R:), so that other hosts and
// processes know it by the same id.
func (t TaskID) Real() bool { return t[0] == 'R' }

// String returns the id as logs show it, "" for none.
func (t TaskID) String() string {
	if t.IsZero() {
		return ""
	}
	return string(t[:])
}

var (
	opaqueRef = []byte("OpaqueRef:")
	dummyRef  = []byte("DummyRef:|")
)

// ParseTaskRef reads the id from a task's reference, OpaqueRef:8ae06e1e-a3d1-…
// or DummyRef:|8ae06e1e-a3d1-…|name, of which only the 8 and 4 hex digits have
// to be there. Any other reference reads the same: what it refers to does not
// show in it.
func ParseTaskRef(ref []byte) (id TaskID) {
	kind := byte('R')
	digits, ok := bytes.CutPrefix(ref, opaqueRef)
	if !ok {
		kind = 'D'
		if digits, ok = bytes.CutPrefix(ref, dummyRef); !ok {
			return TaskID{}
		}
	}
	if len(digits) < 13 || digits[8] != '-' {
		return TaskID{}
	}
	id[0], id[1] = kind, ':'
	copy(id[2:10], digits)
	copy(id[10:], digits[9:13])
	if !isHex(id[2:]) {
		return TaskID{}
	}
	return id
}

// ParseTaskID reads the short form, all of b.
func ParseTaskID(b []byte) (id TaskID) {
	if len(b) != len(id) || b[1] != ':' || b[0] != 'R' && b[0] != 'D' && b[0] != 'O' || !isHex(b[2:]) {
		return TaskID{}
	}
	return TaskID(b)
}

// SplitTag splits a log tag, "Async.VM.start R:8ae06e1ea3d1", into the task's
// label and its id. A tag without id is all label.
func SplitTag(tag []byte) (label []byte, id TaskID) {
	i := len(tag) - len(id)
	if i < 0 || i > 0 && tag[i-1] != ' ' {
		return tag, id
	}
	if id = ParseTaskID(tag[i:]); id.IsZero() {
		return tag, id
	}
	return tag[:max(i-1, 0)], id
}

func isHex(b []byte) bool {
	for _, c := range b {
		if (c < '0' || c > '9') && (c < 'a' || c > 'f') && (c < 'A' || c > 'F') {
			return false
		}
	}
	return true
}
