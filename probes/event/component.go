package event

import (
	"fmt"
	"math/bits"
	"slices"
	"strings"
)

// Component is a part of the toolstack that an Observer can ask for. The
// number travels in the kernel's target map and in every record.
type Component uint8

// The components. The first four are those that XAPI can store in an Observer
// (constants.ml of xen-api).
const (
	NoComponent Component = iota
	Xapi
	Xenopsd
	XapiClusterd
	SMAPI
	numComponents
)

var componentNames = [numComponents]string{
	NoComponent:  "none",
	Xapi:         "xapi",
	Xenopsd:      "xenopsd",
	XapiClusterd: "xapi-clusterd",
	SMAPI:        "smapi",
}

// String returns the name that Observers use.
func (c Component) String() string {
	if c < numComponents {
		return componentNames[c]
	}
	return fmt.Sprintf("component(%d)", uint8(c))
}

// ParseComponent returns the component of that name. The error names those
// that exist.
func ParseComponent(name string) (Component, error) {
	if i := slices.Index(componentNames[1:], name); i >= 0 {
		return Component(i + 1), nil
	}
	return NoComponent, fmt.Errorf("no component %q; there are %s", name, strings.Join(componentNames[1:], ", "))
}

// Components is a set of components. The zero value is empty.
type Components uint64

// AllComponents is the set that an Observer without a list means.
const AllComponents = Components(1<<numComponents - 2)

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
