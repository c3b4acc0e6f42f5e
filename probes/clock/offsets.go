// Package clock turns the kernel's ktime into wall time. It is the only place
// that does.
package clock

import "github.com/xenserver/dtagent/probes/event"

// Offset is by how much wall time is ahead of ktime, from a time on.
type Offset struct {
	Since event.Time `json:"since"` // valid for events from here on
	Add   int64      `json:"add"`   // ns
}

// Offsets is how ktime becomes wall time. The newest is first; the last one is
// valid for all times before it, too. A new one comes in front when the wall clock
// was stepped or the host was suspended.
type Offsets []Offset

// Wall returns t in nanoseconds since 1970. Without offsets it is t as it is.
func (o Offsets) Wall(t event.Time) int64 {
	for i := range o {
		if t >= o[i].Since || i == len(o)-1 {
			return int64(t) + o[i].Add
		}
	}
	return int64(t)
}
