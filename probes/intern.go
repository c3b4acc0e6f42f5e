package probes

// maxNames bounds the interned strings: programs and operations of a dom0 are
// some hundred.
const maxNames = 4096

// interner makes one string of equal bytes. When it is full, further names are
// made anew each time.
type interner struct {
	names map[string]string
	full  uint64 // names that found no room
}

func (n *interner) get(b []byte) string {
	if len(b) == 0 {
		return ""
	}
	if s, ok := n.names[string(b)]; ok {
		return s
	}
	s := string(b)
	if len(n.names) >= maxNames {
		n.full++
		return s
	}
	if n.names == nil {
		n.names = make(map[string]string)
	}
	n.names[s] = s
	return s
}
