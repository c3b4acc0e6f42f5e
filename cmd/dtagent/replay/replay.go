// Package replay makes the spans of a recording, as the agent would have.
package replay

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"time"

	"github.com/xenserver/dtagent/correlate"
	"github.com/xenserver/dtagent/probes/clock"
	"github.com/xenserver/dtagent/probes/event"
	"github.com/xenserver/dtagent/probes/recording"
)

// Options of Run.
type Options struct {
	Speed float64                    // 1: as fast as it was; 2: twice; 0: as fast as can be
	Emit  func(*correlate.Span)      // receives every span; an error of it belongs to its owner
	Tick  func(wall time.Time) error // after each step of the clock; may be nil. An error ends the replay
}

// Summary is what was in a recording, and what came of it.
type Summary struct {
	Events     uint64  `json:"events"`
	Lost       uint64  `json:"lost"`    // events that the recorder could not take
	Missing    uint64  `json:"missing"` // events that the agent had missed
	Seconds    float64 `json:"seconds"` // of recorded time
	Spans      uint64  `json:"spans"`
	Incomplete uint64  `json:"incomplete"`      // spans
	Torn       string  `json:"torn,omitempty"`  // where the recording breaks off; it was not ended
	Ended      string  `json:"ended,omitempty"` // why it was ended
}

// Rand returns the random numbers for the ids of a recording's spans.
func Rand(h *recording.Header) func() uint64 {
	return rand.New(rand.NewPCG(h.Seed[0], h.Seed[1])).Uint64
}

// Run plays a recording. What comes out depends on nothing but what it holds, and
// on this version of the correlation.
//
// A recording that was not ended is no error: Summary.Torn says so. Of one that is
// damaged or that holds what is not known, what stands before is played all the same,
// and the error says where.
func Run(ctx context.Context, r *recording.Reader, o Options) (Summary, error) {
	p := player{offsets: r.Header().Offsets, speed: o.Speed, tick: o.Tick}
	p.pipeline = correlate.NewPipeline(correlate.Config{
		Wall: func(t event.Time) int64 { return p.offsets.Wall(t) },
		Emit: o.Emit,
		Rand: Rand(r.Header()),
	})
	err := p.play(ctx, r)
	if errors.Is(err, io.EOF) {
		err = nil
	}
	p.pipeline.Drain()
	engine, _ := p.pipeline.Stats()
	t := r.Totals()
	s := Summary{Events: t.Events, Lost: t.Lost, Missing: t.Missing, Seconds: t.Span().Seconds(), Spans: engine.Spans, Incomplete: engine.Incomplete}
	if end := r.Trailer(); end != nil {
		s.Ended = end.Reason
	}
	if errors.Is(err, recording.ErrTorn) {
		s.Torn, err = err.Error(), nil
	}
	return s, err
}

// player is the state of Run.
type player struct {
	pipeline *correlate.Pipeline
	offsets  clock.Offsets
	speed    float64
	tick     func(time.Time) error

	first event.Time // of the first tick, when it was begun
	begun time.Time
}

// play gives the pipeline what it was given when the recording was made.
func (p *player) play(ctx context.Context, r *recording.Reader) error {
	var it recording.Item
	for {
		if err := r.Next(&it); err != nil {
			return err
		}
		switch it.Kind {
		case recording.ItemEvent:
			p.pipeline.Add(&it.Event)
		case recording.ItemClock:
			p.offsets = it.Offsets
		case recording.ItemLost:
			p.pipeline.Add(&event.Event{Kind: event.KindLost, Time: it.Now, Count: it.Lost})
		case recording.ItemTick:
			if err := p.pace(ctx, it.Now); err != nil {
				return err
			}
			p.pipeline.Advance(it.Now)
			if p.tick == nil {
				continue
			}
			if err := p.tick(time.Unix(0, p.offsets.Wall(it.Now))); err != nil {
				return err
			}
		}
	}
}

// pace waits until it is time for what was recorded at now.
func (p *player) pace(ctx context.Context, now event.Time) error {
	if p.speed > 0 {
		if p.begun.IsZero() {
			p.first, p.begun = now, time.Now()
		}
		due := p.begun.Add(time.Duration(float64(now-p.first) / p.speed))
		if wait := time.Until(due); wait > 0 {
			select {
			case <-time.After(wait):
			case <-ctx.Done():
			}
		}
	}
	if err := ctx.Err(); err != nil {
		return fmt.Errorf("interrupted: %w", err)
	}
	return nil
}
