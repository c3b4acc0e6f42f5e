// Package intern makes one string of equal bytes.
package intern

import (
	"hash/maphash"
	"math/bits"
)

// Interner gives out strings for bytes, the same string for the same bytes as
// long as it remembers them: names of methods and programs, paths,
// queues. It is a table of small
// sets: a newcomer takes the place of one other string of its set, one that was
// not asked for since another was replaced, so callers that send ever new names cost
// allocations, not memory, and push out of it what repeats only if they come
// more often. Make it by New. It is not safe for concurrent use.
type Interner struct {
	seed maphash.Seed
	sets []internSet
}

// internWays is how many strings whose hashes meet are remembered together.
const internWays = 4

type internSet struct {
	strings [internWays]string
	used    uint8 // bit by string: asked for since the last replacement
	hand    uint8 // where the next replacement looks first
}

// maxInterned is the length of the longest string that an Interner remembers.
const maxInterned = 256

// New returns an Interner that remembers at most n strings, n rounded up
// to a power of two.
func New(n int) *Interner {
	return &Interner{seed: maphash.MakeSeed(), sets: make([]internSet, 1<<bits.Len(uint(max((n+internWays-1)/internWays, 1)-1)))}
}

// String returns b as a string.
func (t *Interner) String(b []byte) string {
	if len(b) == 0 || len(b) > maxInterned {
		return string(b)
	}
	set := &t.sets[maphash.Bytes(t.seed, b)&uint64(len(t.sets)-1)]
	for i := range set.strings {
		if set.strings[i] == string(b) {
			set.used |= 1 << i
			return set.strings[i]
		}
	}
	return set.replace(string(b))
}

// replace puts s in place of a string that was not asked for lately: the hand
// goes round and gives those that were another turn.
func (s *internSet) replace(with string) string {
	for s.used&(1<<s.hand) != 0 {
		s.used &^= 1 << s.hand
		s.hand = (s.hand + 1) % internWays
	}
	s.strings[s.hand] = with
	s.hand = (s.hand + 1) % internWays
	return with
}
