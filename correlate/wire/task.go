package wire

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

// ParseTaskRef reads the id from a task's reference, OpaqueRef:8ae06e1e-a3d1-…,
// of which only the 8 and 4 hex digits have to be there.
func ParseTaskRef(ref []byte) TaskID { return TaskID{} }

// SplitTag splits a log tag, "Async.VM.start R:8ae06e1ea3d1", into the task's
// label and its id. A tag without id is all label.
func SplitTag(tag []byte) (label []byte, id TaskID) { return tag, TaskID{} }
