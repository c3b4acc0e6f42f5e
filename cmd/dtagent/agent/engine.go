package agent

import (
	"github.com/xenserver/dtagent/correlate"
	"github.com/xenserver/dtagent/probes/clock"
	"github.com/xenserver/dtagent/probes/event"
	"github.com/xenserver/dtagent/probes/recording"
)

// engine is the correlation, and those who record what it is given. It is used by
// one goroutine.
type engine struct {
	pipeline *correlate.Pipeline
	live     *recording.Live
	offsets  clock.Offsets // of this turn: wall time does not change within one, so that a recording can repeat it
}

// newEngine returns an engine whose wall time is that of its turns.
func newEngine(live *recording.Live, c correlate.Config) *engine {
	e := &engine{live: live}
	c.Wall = func(t event.Time) int64 { return e.offsets.Wall(t) }
	e.pipeline = correlate.NewPipeline(c)
	return e
}

// turn takes events, and then the time now, if it is known.
func (e *engine) turn(events []event.Event, now event.Time, o clock.Offsets) {
	e.live.Turn(events, now, o, e.pipeline.Known)
	e.offsets = o
	for i := range events {
		e.pipeline.Add(&events[i])
	}
	if now != 0 {
		e.pipeline.Advance(now)
	}
}
