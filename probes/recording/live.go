package recording

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"

	"github.com/xenserver/dtagent/probes/clock"
	"github.com/xenserver/dtagent/probes/event"
)

const (
	maxTaps   = 4                       // that record at once
	tapBlocks = 128                     // that wait for one of them, 8 MiB; beyond it blocks are lost, and counted
	liveBlock = 64 << 10                // bytes from which on a block is handed out
	liveAge   = event.Time(500_000_000) // ns after which it is, however small
)

// Live hands what an engine is given to those who record it. It never waits for
// them: of one that is too slow, blocks are lost and counted.
//
// Turn is called by the engine's goroutine, the rest by any. While nobody records
// it costs the engine one load.
type Live struct {
	on atomic.Bool // there are taps

	mu      sync.Mutex
	taps    []*Tap
	block   *Block
	begun   event.Time    // when block was
	offsets clock.Offsets // as last told
	closed  bool
	lost    uint64
}

// LiveStats are a Live's counters.
type LiveStats struct {
	Active int    `json:"active"` // recordings that are being made
	Lost   uint64 `json:"lost"`   // events that recorders were too slow for, of all recordings there were
}

// Stats returns the counters.
func (l *Live) Stats() LiveStats {
	l.mu.Lock()
	defer l.mu.Unlock()
	return LiveStats{Active: len(l.taps), Lost: l.lost}
}

// Tap is one recording in the making. It is used by one goroutine.
type Tap struct {
	live    *Live
	blocks  chan *Block // closed when there will be no more
	started bool
	behind  bool       // blocks were lost since the last one that fitted
	lost    uint64     // events in them
	last    event.Time // of what was lost
}

// ErrEnded says that there is nothing more to record: the agent stops.
var ErrEnded = errors.New("the agent stops")

// Join begins a recording, with the next Turn. The caller calls Leave.
func (l *Live) Join() (*Tap, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	switch {
	case l.closed:
		return nil, ErrEnded
	case len(l.taps) >= maxTaps:
		return nil, fmt.Errorf("%d recordings are being made already", maxTaps)
	}
	t := &Tap{live: l, blocks: make(chan *Block, tapBlocks)}
	l.taps = append(l.taps, t)
	l.on.Store(true)
	return t, nil
}

// Close ends all recordings, with all that Turn was told. It may be called twice.
func (l *Live) Close() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.flush()
	for _, t := range l.taps {
		close(t.blocks)
	}
	l.closed, l.taps = true, nil
	l.on.Store(false)
}

// Next waits for the next block, which others may read, too. The error is that of
// ctx, or ErrEnded.
func (t *Tap) Next(ctx context.Context) (*Block, error) {
	select {
	case b, ok := <-t.blocks:
		if ok {
			return b, nil
		}
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	t.live.mu.Lock()
	defer t.live.mu.Unlock()
	if !t.behind {
		return nil, ErrEnded
	}
	return t.gap(nil), nil
}

// Waiting is how many blocks Next has ready.
func (t *Tap) Waiting() int { return len(t.blocks) }

// Leave ends the recording. What Turn was told within the last half second may not
// be in a block yet, and is not in the recording then.
func (t *Tap) Leave() {
	l := t.live
	l.mu.Lock()
	defer l.mu.Unlock()
	l.taps = slices.DeleteFunc(l.taps, func(o *Tap) bool { return o == t })
	if len(l.taps) == 0 {
		l.on.Store(false)
		l.block = nil
	}
}

// Turn tells what the engine is about to be given: events, and then the time now,
// if it is not 0. known tells the events from which a recording that starts here has
// to begin.
func (l *Live) Turn(events []event.Event, now event.Time, o clock.Offsets, known func(func(*event.Event))) {
	if !l.on.Load() {
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.start(o, known)
	if l.block == nil {
		l.block, l.begun = new(Block), now
	}
	if !slices.Equal(l.offsets, o) {
		l.offsets = o
		l.block.Clock(o)
	}
	for i := range events {
		if l.block.Len() >= liveBlock {
			l.flush()
			l.block, l.begun = new(Block), now
		}
		l.block.Event(&events[i])
	}
	if now != 0 {
		l.block.Tick(now)
	}
	if l.block.Len() >= liveBlock || now-l.begun >= liveAge {
		l.flush()
	}
}

// start begins the recordings that are new.
func (l *Live) start(o clock.Offsets, known func(func(*event.Event))) {
	var first []*Block // made once, if at all
	others := false
	for _, t := range l.taps {
		if t.started {
			others = true
			continue
		}
		if first == nil {
			l.flush() // is not for them
			b := new(Block)
			b.Clock(o)
			known(func(ev *event.Event) {
				if b.Len() >= liveBlock {
					first = append(first, b)
					b = new(Block)
				}
				b.Event(ev)
			})
			first = append(first, b)
		}
		t.started = true
		for _, b := range first {
			t.put(b)
		}
	}
	if first != nil && !others {
		l.offsets = o // all have been told
	}
}

// flush hands out the block in the making.
func (l *Live) flush() {
	if l.block == nil || l.block.Len() == 0 {
		return
	}
	for _, t := range l.taps {
		if t.started {
			t.put(l.block)
		}
	}
	l.block = nil
}

// put hands b to t. When there is no room b is lost, and t is told so in front of
// the next one that fits.
func (t *Tap) put(b *Block) {
	need := 1
	if t.behind {
		need = 2
	}
	if cap(t.blocks)-len(t.blocks) < need { // only this goroutine fills it
		t.behind = true
		t.lost += b.totals.Events + b.totals.Lost
		t.live.lost += b.totals.Events + b.totals.Lost
		t.last = max(t.last, b.totals.Last)
		return
	}
	if t.behind {
		t.blocks <- t.gap(t.live.offsets)
	}
	t.blocks <- b
}

// gap tells what was lost, and how ktime became wall time meanwhile.
func (t *Tap) gap(o clock.Offsets) *Block {
	b := new(Block)
	if o != nil {
		b.Clock(o)
	}
	if t.lost > 0 {
		b.Lost(t.last, t.lost)
	}
	t.behind, t.lost, t.last = false, 0, 0
	return b
}
