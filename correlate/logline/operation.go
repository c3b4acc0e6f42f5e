package logline

// AppendName appends to dst the name that xenopsd gives the span of an
// operation or atom: VM_start, Atomic (VM_unpause), Parallel (VBD_plug | …).
// op is its JSON from an Anchor. A cut one gives what there was, with "…" for
// the rest, and whole = false.
func AppendName(dst, op []byte) (name []byte, whole bool) { return dst, false }

// Object returns the first argument of an operation or atom, the UUID of its
// VM for most; nil if it is no UUID.
func Object(op []byte) []byte { return nil }
