package recording

import (
	"encoding/binary"
	"fmt"
	"slices"

	"github.com/xenserver/dtagent/probes/clock"
	"github.com/xenserver/dtagent/probes/event"
)

// ItemKind says what an Item is.
type ItemKind uint8

// Kinds of items.
const (
	ItemEvent ItemKind = 1 // an event came
	ItemTick  ItemKind = 2 // the clock was moved on, when all before had come
	ItemClock ItemKind = 3 // how ktime becomes wall time, from here on
	ItemLost  ItemKind = 4 // events that the recorder could not take, up to Now
)

// Item is one thing in a recording.
type Item struct {
	Kind    ItemKind
	Event   event.Event   // ItemEvent; its bytes belong to the Reader
	Now     event.Time    // ItemTick, ItemLost
	Offsets clock.Offsets // ItemClock
	Lost    uint64        // ItemLost
}

// maxEvent bounds the bytes of one event. The probes' hold 17 KiB at most.
const maxEvent = 64 << 10

// Block is a row of items that can be read without those before it. The zero value
// is empty. A Writer takes those of up to MaxBlock bytes.
type Block struct {
	raw    []byte
	now    event.Time // of the last item that has a time
	totals Totals
}

// MaxBlock is how large a Block may grow, in bytes.
const MaxBlock = maxFrame - maxEvent

// Event adds an event. One that is larger than any that the probes make is lost,
// and counted in the block.
func (b *Block) Event(ev *event.Event) {
	if len(ev.Head)+len(ev.Tail)+len(ev.Listener)+len(ev.Program)+len(ev.Operation)+len(ev.SR)+len(ev.VDI)+diskBytes(ev.Disk) > maxEvent/2 {
		b.Lost(ev.Time, 1)
		return
	}
	b.raw = appendEvent(append(b.raw, byte(ItemEvent)), ev, b.now)
	b.at(ev.Time)
	b.totals.Events++
	if ev.Kind == event.KindLost {
		b.totals.Missing += ev.Count
	}
}

// Tick adds that the clock was moved on to now.
func (b *Block) Tick(now event.Time) {
	b.raw = binary.AppendVarint(append(b.raw, byte(ItemTick)), int64(now-b.now))
	b.at(now)
}

// Clock adds how ktime becomes wall time from here on.
func (b *Block) Clock(o clock.Offsets) {
	o = o[:min(len(o), maxOffsets)]
	b.raw = binary.AppendUvarint(append(b.raw, byte(ItemClock)), uint64(len(o)))
	for _, f := range o {
		b.raw = binary.AppendVarint(b.raw, int64(f.Since))
		b.raw = binary.AppendVarint(b.raw, f.Add)
	}
}

// Lost adds that n events up to now are not in the recording.
func (b *Block) Lost(now event.Time, n uint64) {
	b.raw = binary.AppendVarint(append(b.raw, byte(ItemLost)), int64(now-b.now))
	b.raw = binary.AppendUvarint(b.raw, n)
	b.at(now)
	b.totals.Lost += n
}

func (b *Block) at(now event.Time) {
	b.now = now
	b.totals.at(now)
}

// Len is the size of the block in bytes.
func (b *Block) Len() int { return len(b.raw) }

// Totals count what is in the block.
func (b *Block) Totals() Totals { return b.totals }

// item reads the next item of a block.
func (c *cursor) item(it *Item, now *event.Time, names names) {
	it.Kind = ItemKind(c.byte())
	if c.err != nil {
		return
	}
	switch it.Kind {
	case ItemEvent:
		c.event(&it.Event, *now, names)
		*now = it.Event.Time
	case ItemTick:
		*now += event.Time(c.signed(64))
		it.Now = *now
	case ItemClock:
		n := c.number(64)
		if n > maxOffsets {
			c.fail("a clock with %d offsets", n)
			return
		}
		it.Offsets = make(clock.Offsets, n)
		for i := range it.Offsets {
			it.Offsets[i] = clock.Offset{Since: event.Time(c.signed(64)), Add: c.signed(64)}
		}
	case ItemLost:
		*now += event.Time(c.signed(64))
		it.Now, it.Lost = *now, c.number(64)
	default:
		c.err = fmt.Errorf("%w: item of kind %d", ErrNewer, uint8(it.Kind))
	}
}

// ParseBlock returns the block that is in raw, which is copied.
func ParseBlock(raw []byte) (*Block, error) {
	if len(raw) > maxFrame {
		return nil, fmt.Errorf("%w: block of %d bytes", ErrDamaged, len(raw))
	}
	b := &Block{raw: slices.Clone(raw)}
	c, n := cursor{b: b.raw}, names{}
	var it Item
	for len(c.b) > 0 {
		if c.item(&it, &b.now, n); c.err != nil {
			return nil, c.err
		}
		b.totals.count(&it)
	}
	return b, nil
}
