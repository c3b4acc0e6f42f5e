package processor

import (
	"github.com/xenserver/dtagent/correlate"
	"github.com/xenserver/dtagent/probes/event"
)

// isUnwantedWait tells whether sp is filtered by NoWaits or MinWait. A wait is no
// work: that it is incomplete or failed says nothing, and nothing hangs below it.
func (p *Pipeline) isUnwantedWait(sp *correlate.Span) bool {
	return sp.Wait != event.OnCPU && (p.c.NoWaits || sp.End-sp.Start < int64(p.c.MinWait))
}

// tooShort tells whether sp is filtered by MinDuration. What failed is shown
// however short it was, and of an incomplete span nobody knows how long it
// really was.
func (p *Pipeline) tooShort(sp *correlate.Span) bool {
	return sp.End-sp.Start < int64(p.c.MinDuration) && sp.Error == "" && sp.Incomplete == ""
}

// dropped tells whether sp is filtered by Drop, failed or not: its name was
// asked for.
func (p *Pipeline) dropped(sp *correlate.Span) bool { return p.drop.Match(sp.Name) }
