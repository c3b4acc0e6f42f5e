package event

import (
	"fmt"
	"math/bits"
	"strings"
)

// Component is a part of the toolstack that an Observer can ask for. The
// number travels in the kernel's target map and in every record.
type Component uint8

// The components; what each is says the table of components. The first four
// are those that XAPI can store in an Observer (constants.ml of xen-api).
const (
	NoComponent Component = iota
	Xapi
	Xenopsd
	XapiClusterd
	SMAPI
	Networkd
	RRDD
	Squeezed
	VarstoredGuard
	V6d
	Forkexecd
	Xenguest
	QEMU
	MessageSwitch
	Xenstored
	Tapdisk
	numComponents
)

// Exists tells whether c is in the table of components.
func (c Component) Exists() bool { return c > NoComponent && c < numComponents }

// String returns the name that Observers use.
func (c Component) String() string {
	switch {
	case c == NoComponent:
		return "none"
	case c.Exists():
		return components[c].Name
	}
	return fmt.Sprintf("component(%d)", uint8(c))
}

// Stored tells whether XAPI can store the name in an Observer's components.
// The others are asked for with the attribute dtagent.components.
func (c Component) Stored() bool { return c.Exists() && components[c].Stored }

// Costly tells whether tracing c costs so much that an Observer has to name it.
func (c Component) Costly() bool { return c.Exists() && components[c].Cost != "" }

// Lacks says which probe c needs to give any spans, when this version has none:
// nothing is attached for such a component. It is "" for the others.
func (c Component) Lacks() string {
	if !c.Exists() || components[c].Spans != "" {
		return ""
	}
	return components[c].Lacks
}

// Describe returns the row of c in the table of components, the zero value if
// there is none. Its slices are shared and must not be changed.
func (c Component) Describe() Description {
	if !c.Exists() {
		return Description{}
	}
	return components[c]
}

// ParseComponent returns the component of that name. The error names those
// that exist.
func ParseComponent(name string) (Component, error) {
	for _, c := range AllComponents.All() {
		if components[c].Name == name {
			return c, nil
		}
	}
	return NoComponent, fmt.Errorf("no component %q; there are %s", name, strings.ReplaceAll(AllComponents.String(), ",", ", "))
}

// Components is a set of components. The zero value is empty.
type Components uint64

// AllComponents is the set of all that the table has.
const AllComponents = Components(1<<numComponents - 2)

// DefaultComponents is the set that an Observer without a list means: all that
// are not costly.
func DefaultComponents() Components {
	var s Components
	for _, c := range AllComponents.All() {
		if !c.Costly() {
			s |= Of(c)
		}
	}
	return s
}

// Of returns the set of the given components.
func Of(cs ...Component) Components {
	var s Components
	for _, c := range cs {
		s |= 1 << c
	}
	return s
}

// Has tells whether c is in the set.
func (s Components) Has(c Component) bool { return s&(1<<c) != 0 }

// All yields the components of the set in ascending order.
func (s Components) All() []Component {
	out := make([]Component, 0, bits.OnesCount64(uint64(s)))
	for c := NoComponent + 1; c < numComponents; c++ {
		if s.Has(c) {
			out = append(out, c)
		}
	}
	return out
}

// String lists the names, separated by commas.
func (s Components) String() string {
	var names []string
	for _, c := range s.All() {
		names = append(names, c.String())
	}
	return strings.Join(names, ",")
}
