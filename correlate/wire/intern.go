package wire

import (
	"hash/maphash"
	"math/bits"
)

// Interner gives out strings for bytes, the same string for the same bytes as
// long as it remembers them: method names, paths, queues. A newcomer takes the
// place of one other string, so callers that send ever new names cost
// allocations, not memory. Make it by NewInterner. It is not safe for
// concurrent use.
type Interner struct {
	seed  maphash.Seed
	slots []string
}

// maxInterned is the length of the longest string that an Interner remembers.
const maxInterned = 256

// NewInterner returns an Interner that remembers at most n strings, rounded up
// to a power of two.
func NewInterner(n int) *Interner {
	return &Interner{seed: maphash.MakeSeed(), slots: make([]string, 1<<bits.Len(uint(max(n, 1)-1)))}
}

// String returns b as a string.
func (t *Interner) String(b []byte) string {
	if len(b) == 0 || len(b) > maxInterned {
		return string(b)
	}
	slot := &t.slots[maphash.Bytes(t.seed, b)&uint64(len(t.slots)-1)]
	if *slot != string(b) {
		*slot = string(b)
	}
	return *slot
}
