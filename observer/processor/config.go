package processor

import (
	"slices"
	"time"
)

// Sampler is the head sampler: it decides by the trace id alone, before
// anything else is known.
type Sampler uint8

// The head samplers, by their names in OpenTelemetry (OTEL_TRACES_SAMPLER).
const (
	AlwaysOn     Sampler = iota // always_on
	AlwaysOff                   // always_off
	TraceIDRatio                // traceidratio, with Config.Ratio
)

// Bounds of Config.
const (
	DefaultHold = 30 * time.Second
	MaxHold     = 5 * time.Minute
	// SlowMargin is how much longer than KeepSlow a tree must be held to be
	// known as slow while it is not finished: the spans of a tree come as late as
	// correlate waits for a trace id.
	SlowMargin = 5 * time.Second
	// MaxKeepSlow leaves room for it.
	MaxKeepSlow = MaxHold - SlowMargin
	MaxPatterns = 100 // of Drop
)

// Config of a Pipeline. The zero value passes every span at once.
type Config struct {
	Sampler Sampler
	Ratio   float64 // of traces that TraceIDRatio takes, 0 to 1

	// KeepSlow and KeepErrors filter by local tree, once it is known whole: it
	// is kept when it took at least KeepSlow from its first start to its last end
	// (0: not asked), or when one of its spans failed. Either is enough, and it is
	// kept as soon as it is known: an operation that is longer than KeepSlow by
	// SlowMargin while it is still going on is slow already. With neither, no tree
	// is held.
	KeepSlow   time.Duration
	KeepErrors bool
	// Hold bounds the time for which a tree is held; 0: DefaultHold, or what
	// KeepSlow needs if that is more. More than MaxHold is MaxHold.
	Hold time.Duration

	// NoWaits filters all spans of waits, MinWait the shorter ones.
	NoWaits bool
	MinWait time.Duration

	// MinDuration filters shorter spans, but neither failed nor incomplete ones.
	MinDuration time.Duration
	// Drop filters spans whose name matches one of these patterns, see
	// glob.Pattern. Malformed ones match nothing.
	Drop []string
}

// Equal tells whether both say the same.
func (c Config) Equal(d Config) bool {
	return c.Sampler == d.Sampler && c.Ratio == d.Ratio && c.KeepSlow == d.KeepSlow && c.KeepErrors == d.KeepErrors &&
		c.Hold == d.Hold && c.NoWaits == d.NoWaits && c.MinWait == d.MinWait && c.MinDuration == d.MinDuration && slices.Equal(c.Drop, d.Drop)
}

// tail tells whether trees are held.
func (c *Config) tail() bool { return c.KeepSlow > 0 || c.KeepErrors }

// hold returns the time for which a tree is held at most.
func (c *Config) hold() time.Duration {
	h := c.Hold
	if h <= 0 {
		h = max(DefaultHold, c.KeepSlow+SlowMargin)
	}
	return min(h, MaxHold)
}
