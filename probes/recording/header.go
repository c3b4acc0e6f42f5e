package recording

import (
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/xenserver/dtagent/probes/clock"
	"github.com/xenserver/dtagent/probes/event"
)

// Header is what a recording says about itself.
type Header struct {
	ID      string    `json:"id"`      // a uuid
	Version string    `json:"dtagent"` // of the agent that saw the events
	Started time.Time `json:"started"`
	KTime   int64     `json:"started_ktime"` // ns, the same on the clock of the events

	Host    Host   `json:"host"`
	Kernel  string `json:"kernel"`  // release
	Machine string `json:"machine"` // architecture
	Tier    string `json:"tier"`    // of the programs: "modern" or "legacy"

	// Components were wanted when it began. Others' processes may be in it: those
	// that the wanted ones are seen through.
	Components []string `json:"components"`

	// Offsets turned ktime into wall time when it began. A change is an item.
	Offsets clock.Offsets `json:"clock_offsets"`

	// Seed makes the random numbers for trace and span ids (rand.NewPCG of
	// math/rand/v2), so that all who play it back make the same ids.
	Seed [2]uint64 `json:"seed"`

	Note string `json:"note,omitempty"` // what a person should know of it
}

// Host is the host that was recorded, as exporters name it.
type Host struct {
	UUID     string `json:"uuid,omitempty"`
	Name     string `json:"name,omitempty"`
	PoolUUID string `json:"pool_uuid,omitempty"`
}

// Trailer is the end of a recording that was ended in order.
type Trailer struct {
	Reason string `json:"reason"` // why it ended
	Totals
}

// Totals count what is in a recording.
type Totals struct {
	Events uint64 `json:"events"`
	// Lost events are those that the recorder could not take; Missing those that the
	// agent itself had missed (event.KindLost).
	Lost    uint64 `json:"lost"`
	Missing uint64 `json:"missing"`
	// First and Last are the times of the first and of the last item, 0 without any.
	First event.Time `json:"first_ktime"`
	Last  event.Time `json:"last_ktime"`
}

// add counts what is in a block that follows.
func (t *Totals) add(o Totals) {
	t.Events += o.Events
	t.Lost += o.Lost
	t.Missing += o.Missing
	t.at(o.First)
	t.at(o.Last)
}

// count counts an item.
func (t *Totals) count(it *Item) {
	switch it.Kind {
	case ItemEvent:
		t.Events++
		t.at(it.Event.Time)
		if it.Event.Kind == event.KindLost {
			t.Missing += it.Event.Count
		}
	case ItemLost:
		t.Lost += it.Lost
		t.at(it.Now)
	case ItemTick:
		t.at(it.Now)
	}
}

// at notes that there is something of that time.
func (t *Totals) at(now event.Time) {
	if now == 0 {
		return
	}
	if t.First == 0 || now < t.First {
		t.First = now
	}
	t.Last = max(t.Last, now)
}

// Span is how much time the recording is of.
func (t *Totals) Span() time.Duration { return time.Duration(t.Last - t.First) }

// Errors of a Reader. They are wrapped with where in the file it is.
var (
	// ErrFormat says that a file is no recording.
	ErrFormat = errors.New("not a recording of dtagent")
	// ErrNewer says that a newer dtagent is needed to read the recording.
	ErrNewer = errors.New("made by a newer dtagent than this one, which cannot read it")
	// ErrTorn says that the recording ends before its end, as after a crash, or
	// while it is still written. What came before is good.
	ErrTorn = errors.New("the recording was not ended")
	// ErrDamaged says that bytes of the recording are not those that were written.
	// What came before is good.
	ErrDamaged = errors.New("the recording is damaged")
)

// maxOffsets bounds the offsets of one clock; a clock remembers 8.
const maxOffsets = 64

func decodeJSON(b []byte, v any, what string) error {
	if err := json.Unmarshal(b, v); err != nil {
		return fmt.Errorf("%w: %s: %w", ErrDamaged, what, err)
	}
	return nil
}
