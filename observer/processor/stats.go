package processor

import (
	"encoding/json"
	"fmt"
)

// Cause says which stage filtered a span.
type Cause uint8

// The causes, in the order of the stages.
const (
	SampledOut   Cause = iota // by the head sampler
	UnwantedWait              // by NoWaits or MinWait
	NotKept                   // its tree was seen whole and was neither slow nor failed
	HoldEnded                 // its tree had shown no reason to be kept when its hold ended, and was not finished
	HoldOverflow              // as HoldEnded, but too much was held and its tree was the oldest
	TooShort                  // by MinDuration
	NameDropped               // by Drop
	NumCauses
)

var causeNames = [NumCauses]string{"sampled_out", "unwanted_wait", "not_kept", "hold_ended", "hold_overflow", "too_short", "name_dropped"}

// String returns the name that status and metrics show.
func (c Cause) String() string {
	if c < NumCauses {
		return causeNames[c]
	}
	return fmt.Sprintf("cause(%d)", uint8(c))
}

// Stats say what became of the spans of a Pipeline. At every moment
// Received = Passed + Held + the sum of Filtered.
type Stats struct {
	Received uint64            `json:"received"`
	Passed   uint64            `json:"passed"` // handed on
	Held     uint64            `json:"held"`   // with a tree that is not judged yet
	Filtered [NumCauses]uint64 `json:"-"`

	Trees     int    `json:"held_trees"`
	HeldBytes int    `json:"held_bytes"` // about
	Forgotten uint64 `json:"forgotten"`  // decisions about trees that had to make room: a late span of such a tree is judged alone
}

// FilteredByCause returns Filtered by the names of its causes, without zeros.
func (s Stats) FilteredByCause() map[string]uint64 {
	m := map[string]uint64{}
	for i, n := range s.Filtered {
		if n > 0 {
			m[Cause(i).String()] = n
		}
	}
	return m
}

// plain has the fields of Stats but not its methods.
type plain Stats

type statsJSON struct {
	plain
	Filtered map[string]uint64 `json:"filtered"`
}

// MarshalJSON writes the form that dtagent status --json shows: Filtered by the
// names of its causes.
func (s Stats) MarshalJSON() ([]byte, error) {
	return json.Marshal(statsJSON{plain(s), s.FilteredByCause()})
}

// UnmarshalJSON reads what MarshalJSON writes.
func (s *Stats) UnmarshalJSON(data []byte) error {
	var in statsJSON
	if err := json.Unmarshal(data, &in); err != nil {
		return err
	}
	*s = Stats(in.plain)
	for c := range NumCauses {
		s.Filtered[c] = in.Filtered[c.String()]
	}
	return nil
}
