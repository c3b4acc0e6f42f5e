package observer

import (
	"fmt"
	"slices"
	"strings"
)

// steeringPrefix begins the attributes that steer dtagent itself. XAPI stores
// them like any other; they are not exported.
const steeringPrefix = "dtagent."

// Warnings returns what is allowed but probably not meant: steering attributes
// that this version does not know and that therefore do nothing, and an
// Observer that exports nowhere.
func (o Observer) Warnings() []string {
	var out []string
	for k := range o.Attributes {
		if strings.HasPrefix(k, steeringPrefix) {
			out = append(out, fmt.Sprintf("attribute %q: this dtagent has no such setting; it has no effect", k))
		}
	}
	slices.Sort(out)
	if len(o.Endpoints) > maxEndpoints {
		out = append(out, fmt.Sprintf("endpoints: %d, of which the first %d are used", len(o.Endpoints), maxEndpoints))
	}
	if len(o.Endpoints) == 0 {
		out = append(out, `endpoints: none, so its spans go nowhere; add "bugtool" or an http URL`)
	}
	return out
}
